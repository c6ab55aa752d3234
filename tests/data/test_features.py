"""Planted features fire as often, as strongly, together and below each other as they are told to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from ellzero.data import FeatureModel
from ellzero.data.features import LowRank, Matrix, forest, zipf_probabilities
from ellzero.data.generators import Block, Equicorrelated
from ellzero.errors import InputError

N = 40_000


def shares(f):
    return (f != 0).mean(0)


@given(d=st.integers(1, 9), m=st.integers(1, 20), n=st.integers(0, 30), seed=st.integers(0, 50), data=st.data())
def test_rows_are_sums_of_unit_atoms_and_repeat(d, m, n, seed, data):
    parents = np.array([data.draw(st.integers(-1, i - 1)) for i in range(m)])
    options = {
        "parents": parents,
        "probability": data.draw(st.lists(st.floats(0, 1), min_size=m, max_size=m)),
        "magnitude": data.draw(st.sampled_from(["constant", "folded_normal", "exponential"])),
        "scale_by_parent": data.draw(st.booleans()),
        "orthogonalize": data.draw(st.integers(0, 3)),
    }
    model = FeatureModel(d, m, seed=seed, **options)
    x, f = model.sample(n)
    assert (x.dtype, f.dtype, x.shape, f.shape) == (np.float32, np.float32, (n, d), (n, m))
    np.testing.assert_allclose(np.linalg.norm(model.atoms, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(x, f.astype(np.float64) @ model.atoms, atol=1e-4 * (1 + abs(f).max(initial=0)))
    assert (f >= 0).all()
    children = parents >= 0
    assert not ((f[:, children] != 0) & (f[:, parents[children]] == 0)).any()
    again = FeatureModel(d, m, seed=seed, **options).sample(n)
    np.testing.assert_array_equal(x, again[0])
    np.testing.assert_array_equal(f, again[1])


def test_another_round_or_seed_gives_other_rows_of_the_same_world():
    one, other = FeatureModel(6, 12, seed=1), FeatureModel(6, 12, seed=2)
    assert not np.array_equal(one.sample(50)[1], one.sample(50, round=1)[1])
    assert not np.array_equal(one.sample(50)[1], other.sample(50)[1])
    assert not np.array_equal(one.atoms, other.atoms)


@pytest.mark.parametrize("correlation", [None, Equicorrelated(0.6), Block(0.9, 3), LowRank.random(8, 2, 0.7)])
def test_each_fires_as_often_as_it_should_whatever_the_correlation(correlation):
    p = zipf_probabilities(8, 2.0)
    f = FeatureModel(4, 8, probability=p, correlation=correlation).sample(N)[1]
    assert p.sum() == pytest.approx(2)
    np.testing.assert_allclose(shares(f), p, atol=5 * np.sqrt(0.25 / N))


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.5, 0.95])
def test_two_fire_together_as_the_bivariate_normal_says(rho):
    p = np.array([0.3, 0.1])
    R = np.array([[1, rho], [rho, 1]])
    f = FeatureModel(2, 2, probability=p, correlation=Matrix(R)).sample(N)[1]
    both = multivariate_normal([0, 0], R).cdf(norm.ppf(p))  # by symmetry the upper orthant
    assert (f != 0).all(1).mean() == pytest.approx(both, abs=5 * np.sqrt(0.1 / N))


def test_shared_causes_have_the_stated_correlation():
    shape = LowRank.random(5, 2, 0.8, seed=3)
    drawn = shape.draw(np.random.default_rng(0), N, 5)
    np.testing.assert_allclose(np.cov(drawn.T), shape.covariance(5), atol=0.03)
    np.testing.assert_allclose(np.square(shape.loadings).sum(1), 0.8)


@pytest.mark.parametrize("exclusive", [False, True])
def test_children_fire_below_their_parents_at_their_own_rate(exclusive):
    parents = forest(4, (3, 2))
    p = np.where(parents < 0, 0.5, 0.3)
    model = FeatureModel(40, 40, probability=p, parents=parents, exclusive=exclusive)
    on = model.sample(N)[1] != 0
    np.testing.assert_array_equal(parents[:4], -1)
    np.testing.assert_array_equal(parents[4:16], np.repeat(np.arange(4), 3))
    np.testing.assert_array_equal(parents[16:], 4 + np.repeat(np.arange(12), 2))
    np.testing.assert_allclose(shares(on), model.marginals, atol=0.015)
    np.testing.assert_allclose(model.marginals[[0, 4, 16]], [0.5, 0.15, 0.045])
    together = max((on[:, a] & on[:, b]).mean() for a in range(40) for b in range(a) if parents[a] == parents[b] >= 0)
    assert (together == 0) == exclusive


def test_siblings_that_exclude_each_other_keep_their_rates_under_correlation():
    parents = np.array([-1, 0, 0, 0, -1])
    p = np.array([1.0, 0.5, 0.3, 0.2, 0.4])
    model = FeatureModel(5, 5, probability=p, parents=parents, exclusive=True, correlation=Equicorrelated(0.5))
    on = model.sample(N)[1] != 0
    np.testing.assert_allclose(on.mean(0), p, atol=0.02)
    assert (on[:, 1:4].sum(1) == 1).all()


def test_magnitudes_follow_their_law():
    size = np.array([0.5, 2.0])
    for kind, mean, deviation in [
        ("constant", size, 0 * size),
        ("exponential", size, size),
        ("folded_normal", [0.5 * (2 * norm.cdf(5) - 1) + 0.2 * norm.pdf(5), 2.0], [0.1, 0.1]),
    ]:
        f = FeatureModel(2, 2, probability=1.0, magnitude=kind, size=size, spread=0.1).sample(N)[1]
        np.testing.assert_allclose(f.mean(0), mean, rtol=0.05)
        np.testing.assert_allclose(f.std(0), deviation, rtol=0.05, atol=1e-6)
    f = FeatureModel(1, 1, probability=1.0, magnitude="folded_normal", size=0.0, spread=2.0).sample(N)[1]
    assert f.mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.03)


def test_a_child_may_follow_its_parents_size():
    model = FeatureModel(3, 3, probability=1.0, size=[2.0, 3.0, 0.5], parents=[-1, 0, 1], scale_by_parent=True)
    np.testing.assert_array_equal(model.sample(2)[1], [[2, 6, 3]] * 2)


def test_noise_has_the_stated_size():
    model = FeatureModel(6, 3, noise=0.3)
    x, f = model.sample(N)
    assert (x - f @ model.atoms).std() == pytest.approx(0.3, rel=0.02)


def test_atoms_are_pushed_apart_down_to_the_bound():
    """The sum of squared cosines is at least m^2 / d (Welch), and m where the atoms fit."""
    for d, m in ((16, 12), (16, 40)):
        potential = [
            np.square((a := FeatureModel(d, m, orthogonalize=steps).atoms.astype(np.float64)) @ a.T).sum()
            for steps in (0, 5, 200)
        ]
        bound = max(m, m**2 / d)
        assert potential[0] > 1.1 * bound
        assert potential[0] > potential[1] > potential[2] >= bound * (1 - 1e-6)
        assert potential[2] < 1.001 * bound


@pytest.mark.parametrize(("settings", "words"), [
    ({"d": 0}, "d: got 0"), ({"n_features": 0}, "n_features: got 0"), ({"probability": 1.5}, "probability: got 1.5"),
    ({"probability": [0.5]}, r"probability: got shape \(1,\)"),
    ({"magnitude": "constnt"}, "did you mean 'constant'"), ({"parents": [0, -1, -1, -1]}, "below themselves"),
    ({"parents": [1, 0, -1, -1]}, "2 features are below themselves"), ({"parents": [-1, 9, -1, -1]}, "parents: got -1"),
    ({"noise": -1.0}, "noise: got -1"), ({"correlation": 0.5}, "correlation: got 0.5"), ({"size": -1}, "size: got -1"),
    ({"parents": [-1, 0, 0, 0], "probability": 0.5, "exclusive": True}, "have 1.5 in all"),
    ({"orthogonalize": -1}, "orthogonalize: got -1"),
])  # fmt: skip
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        FeatureModel(**{"d": 3, "n_features": 4, **settings})


def test_bad_correlations_and_forests_are_named():
    with pytest.raises(InputError, match="no correlation matrix"):
        Matrix(np.array([[1, 0.5], [0.2, 1]]))
    with pytest.raises(InputError, match="eigenvalue"):
        Matrix(np.array([[1, 2.0], [2.0, 1]]))
    with pytest.raises(InputError, match="row of norm 2"):
        LowRank(np.array([[2.0]]))
    with pytest.raises(InputError, match="want 4"):
        FeatureModel(3, 4, correlation=LowRank.random(5)).sample(1)
    with pytest.raises(InputError, match="want 4"):
        FeatureModel(3, 4, correlation=Matrix(np.eye(2))).sample(1)
    with pytest.raises(InputError, match="n: got -1"):
        FeatureModel(3, 4).sample(-1)
    with pytest.raises(InputError, match="trees: got 0"):
        forest(0)
    with pytest.raises(InputError, match="mean_l0: got 7"):
        zipf_probabilities(4, 7)

"""The estimator: units, seeds, honest deviations, and what it refuses."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from ellzero.errors import InputError

pytest.importorskip("torch")

from ellzero.linear.gaussian_process import SparseWithinSparseGP


def field(n=300, seed=0):
    g = np.random.default_rng(seed)
    X = g.uniform(size=(n, 2))
    return X, np.sin(12 * X[:, 0]) * np.cos(9 * X[:, 1]) + 0.1 * g.standard_normal(n)


def small(**options):
    return SparseWithinSparseGP(**{"n_inducing": 60, "n_neighbors": 12, "steps": 60, "lr": 0.05, **options})


def test_it_is_an_estimator_of_scikit_learn():
    check_estimator(SparseWithinSparseGP(64, n_neighbors=8, steps=1))


def test_it_follows_a_field_and_knows_how_well():
    model, (X, y) = small().fit(*field()), field(400, seed=1)
    mean, std = model.predict(X, return_std=True)
    assert np.sqrt(((mean - y) ** 2).mean()) < 0.2
    assert 0.5 < (((mean - y) / std) ** 2).mean() < 1.6
    assert np.array_equal(model.predict(X), mean)
    assert (std**2 > model.noise_).all()
    assert model.losses_[-10:].mean() < model.losses_[:10].mean()


def test_seeds_are_exact_and_the_global_generator_is_left_alone():
    import torch

    X, y = field()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (small(steps=3, seed=s).fit(X, y).predict(X) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_units_of_columns_and_target_do_not_matter():
    X, y = field()
    plain, scaled = small(steps=5).fit(X, y), small(steps=5).fit(X * [1000, 1] + [5, 7], 50 * y - 3)
    mean, std = plain.predict(X[:20], return_std=True)
    other, other_std = scaled.predict(X[:20] * [1000, 1] + [5, 7], return_std=True)
    np.testing.assert_allclose(other, 50 * mean - 3, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other_std, 50 * std, rtol=1e-5)
    np.testing.assert_allclose(scaled.lengthscale_, plain.lengthscale_ * [1000, 1], rtol=1e-5)
    np.testing.assert_allclose(scaled.inducing_, plain.inducing_ * [1000, 1] + [5, 7], rtol=1e-5)
    assert scaled.noise_ == pytest.approx(2500 * plain.noise_, rel=1e-5)
    assert scaled.variance_ == pytest.approx(2500 * plain.variance_, rel=1e-5)
    bounds = scaled.lower_bound(X * [1000, 1] + [5, 7], 50 * y - 3), plain.lower_bound(X, y) - np.log(50)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


def test_all_neighbours_asked_for_are_all_neighbours():
    X, y = field()
    one, other = small(n_neighbors=None, steps=5).fit(X, y), small(n_neighbors=60, steps=5).fit(X, y)
    assert np.array_equal(one.predict(X), other.predict(X))
    assert (one.n_inducing_, one.n_neighbors_) == (60, 60)


def test_more_inducing_points_than_distinct_rows():
    X = np.repeat(np.arange(5.0)[:, None], 4, axis=0)
    model = small().fit(X, X[:, 0])
    assert (model.n_inducing_, model.n_neighbors_) == (5, 5)
    np.testing.assert_array_equal(np.sort(small(steps=1, lr=1e-12).fit(X, X[:, 0]).inducing_[:, 0]).round(6), range(5))


@pytest.mark.parametrize("constant", ["column", "target"])
def test_what_is_constant_is_no_trouble(constant):
    X, y = field(50)
    X, y = (np.column_stack([X, np.full(50, 3.3)]), y) if constant == "column" else (X, np.full(50, 7.7))
    found = small(steps=2).fit(X, y).predict(X)
    assert np.isfinite(found).all()
    if constant == "target":
        np.testing.assert_allclose(found, 7.7)


@pytest.mark.parametrize(("options", "message"), [
    ({"n_inducing": 0}, "n_inducing: got 0"), ({"n_inducing": 10**6}, "n_inducing: got 1000000"),
    ({"n_neighbors": 0}, "n_neighbors: got 0"), ({"kernel": "matern"}, "kernel: got 'matern'"),
    ({"covariance": "triangl"}, "did you mean 'triangle'"), ({"n_inducing": 9000}, "want 'diagonal' above 8192"),
    ({"steps": 0}, "steps: got 0"), ({"batch_size": 0}, "batch_size: got 0"), ({"lr": 0}, "lr: got 0"),
    ({"lengthscale": 0}, "lengthscale: got 0"), ({"noise": -1}, "noise: got -1"), ({"jitter": 0}, "jitter: got 0"),
    ({"seed": -1}, "seed: got -1"),
])  # fmt: skip
def test_bad_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        small(**options).fit(*field(20))

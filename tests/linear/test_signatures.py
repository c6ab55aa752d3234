"""Signatures against their definition and laws; what the regression reads, chooses and refuses."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.data.dynamics import driven_systems
from ellzero.errors import InputError
from ellzero.linear.sig_lasso import SigLasso
from ellzero.linear.signatures import level_sizes, prefix_signatures, signature, words


def path(seed, points=8, channels=3):
    return np.random.default_rng(seed).standard_normal((points, channels)).cumsum(0)


def product_of(a, b, channels, depth):
    """The product of two signatures as tensors, written out."""
    cuts = np.cumsum(level_sizes(channels, depth))[:-1]
    left, right = ([np.ones(1), *np.split(s, cuts)] for s in (a, b))
    return np.concatenate(
        [sum(np.outer(left[k], right[n - k]).ravel() for k in range(n + 1)) for n in range(1, depth + 1)]
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_straight_line_gives_powers_over_factorials(channels):
    step = np.random.default_rng(channels).standard_normal(channels)
    found = signature(np.stack([step * 0, step]), 5)
    want = [np.prod(step[list(word)]) / math.factorial(len(word)) for word in words(channels, 5)]
    np.testing.assert_allclose(found, want, atol=1e-12)
    split = signature(np.stack([step * t for t in (0, 0.1, 0.1, 0.7, 1)]), 5)
    np.testing.assert_allclose(split, want, atol=1e-12)  # points on a segment, also twice, change nothing


def test_the_first_levels_are_the_iterated_sums():
    x = path(0, points=6, channels=2)
    steps = np.diff(x, axis=0)
    found = signature(x, 2)
    np.testing.assert_allclose(found[:2], steps.sum(0), atol=1e-12)
    for place, (i, j) in enumerate(product(range(2), repeat=2)):
        area = (
            sum(steps[s, i] * steps[t, j] for t in range(5) for s in range(t)) + (steps[:, i] * steps[:, j]).sum() / 2
        )
        assert found[2 + place] == pytest.approx(area, abs=1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 9999), cut=st.integers(1, 6), depth=st.integers(1, 5), channels=st.integers(1, 3))
def test_chens_relation(seed, cut, depth, channels):
    x = path(seed, channels=channels)
    whole = product_of(signature(x[: cut + 1], depth), signature(x[cut:], depth), channels, depth)
    np.testing.assert_allclose(signature(x, depth), whole, rtol=1e-9, atol=1e-9 * abs(whole).max())


@settings(max_examples=30)
@given(seed=st.integers(0, 9999))
def test_the_shuffle_product(seed):
    s = dict(zip(words(3, 3), signature(path(seed), 3)))
    for i, j, k in product(range(3), repeat=3):
        scale = 1 + max(map(abs, s.values()))
        assert s[i,] * s[j,] == pytest.approx(s[i, j] + s[j, i], abs=1e-10 * scale**2)
        assert s[i,] * s[j, k] == pytest.approx(s[i, j, k] + s[j, i, k] + s[j, k, i], abs=1e-10 * scale**2)


def test_a_path_walked_back_gives_nothing_and_speed_does_not_matter():
    x = path(3)
    there_and_back = signature(np.concatenate([x, x[::-1]]), 4)
    np.testing.assert_allclose(there_and_back, 0, atol=1e-9 * abs(signature(x, 4)).max())
    np.testing.assert_array_equal(signature(np.repeat(x, 2, axis=0), 4), signature(x, 4))


def test_prefixes_and_batches_are_single_paths():
    x = np.stack([path(0), path(1)])
    streamed = signature(x, 4, stream=True)
    assert streamed.shape == (2, 8, sum(level_sizes(3, 4)))
    assert (streamed[:, 0] == 0).all()
    for t in range(1, 8):
        for i in range(2):
            np.testing.assert_allclose(streamed[i, t], signature(x[i, : t + 1], 4), atol=1e-12)
    np.testing.assert_array_equal(signature(x, 4), streamed[:, -1])
    assert signature(x.astype(np.float32), 4).dtype == np.float64


def test_irregular_prefixes_read_nothing_later():
    t, v = np.array([0, 0.2, 0.5, 0.9]), path(2, 4, 2)
    at = np.array([0, 0.2, 0.35, 0.9, 1.4])
    found = prefix_signatures([t, t[:2]], [v, v[:2]], [at, np.array([0.2])], 3)
    rows = np.column_stack([t, v])
    want = [rows[:1], rows[:2], np.vstack([rows[:2], [0.35, *v[1]]]), rows, np.vstack([rows, [1.4, *v[3]]])]
    for own, whole in zip(found[0], want):
        np.testing.assert_allclose(own, signature(whole, 3), atol=1e-12)
    np.testing.assert_allclose(found[1][0], signature(rows[:2], 3), atol=1e-12)
    other = v.copy()
    other[2:] += 5
    np.testing.assert_array_equal(prefix_signatures([t], [other], [at[:3]], 3)[0], found[0][:3])
    began = prefix_signatures([t], [v], [at], 2, origin=True, scale=0.5)[0]
    np.testing.assert_allclose(began[3], signature(np.vstack([[0, 0, 0], rows]) / 2, 2), atol=1e-12)


def test_a_linear_functional_of_the_signature_is_found():
    g = np.random.default_rng(0)
    paths = [(np.sort(np.append(0, g.random(14))), g.standard_normal((15, 1)).cumsum(0) / 4) for _ in range(60)]
    at = [t[[4, 9, 14]] for t, _ in paths]
    rows = prefix_signatures(*zip(*paths), at, 2)
    targets = [(wanted, 1 + 2 * row[:, 1] - 3 * row[:, words(2, 2).index((0, 1))]) for wanted, row in zip(at, rows)]
    model = SigLasso(depths=(1, 2, 3), scale="none").fit(paths, targets)
    assert model.depth_ >= 2
    found = dict(zip(model.words_, model.coef_))
    assert found[1,] == pytest.approx(2, abs=0.1)
    assert found[0, 1] == pytest.approx(-3, abs=0.4)
    assert model.scores_[2] < 0.01 * model.scores_[1]
    np.testing.assert_allclose(model.predict(paths, at)[3], targets[3][1], atol=0.05)
    assert model.importance().sum() == pytest.approx(1)


@pytest.mark.parametrize("scale", ["training", "path", "none"])
def test_predictions_do_not_depend_on_later_samples_nor_on_who_else_is_asked(scale):
    data = driven_systems("ornstein-uhlenbeck", 12, samples=30, seed=1)
    model = SigLasso(depths=(2,), cv=3, scale=scale).fit(data.paths, data.targets)
    at = [t[:15] for t, _ in data.paths]
    whole = model.predict(data.paths, at)
    alone = model.predict(data.paths[3:4], at[3:4])[0]
    np.testing.assert_allclose(alone, whole[3], atol=1e-12)
    cut = model.predict([(t[:15], v[:15]) for t, v in data.paths], at)
    if scale != "path":  # that one knows the length of the whole path, as the paper does
        np.testing.assert_allclose(cut, whole, atol=1e-12)


def test_several_targets_are_fitted_beside_one_another():
    data = driven_systems("cde", 20, seed=0)
    two = [(t, np.column_stack([y, -2 * y])) for t, y in data.targets]
    both = SigLasso(depths=(2,), cv=4).fit(data.paths, two)
    one = SigLasso(depths=(2,), cv=4).fit(data.paths, data.targets)
    assert both.coef_.shape == (2, len(one.coef_))
    np.testing.assert_allclose(both.coef_, [one.coef_, -2 * one.coef_], atol=1e-2 * abs(one.coef_).max())
    assert both.predict(data.paths[:1], [[0.5, 0.6]])[0].shape == (2, 2)


def test_a_subject_without_observations_is_passed_over():
    data = driven_systems("tumour", 10, seed=0)
    data.targets[4] = (np.zeros(0), np.zeros(0))
    assert np.isfinite(SigLasso(depths=(1, 2), cv=3).fit(data.paths, data.targets).coef_).all()


@pytest.mark.parametrize("system", ["cde", "ornstein-uhlenbeck", "tumour"])
def test_generated_systems_are_what_is_seen_of_the_truth(system):
    data = driven_systems(system, 4, samples=20, observations=3, seed=2)
    again = driven_systems(system, 4, samples=20, observations=3, seed=2)
    other = driven_systems(system, 4, samples=20, observations=3, seed=2, part="test")
    assert np.isfinite(data.truth).all()
    np.testing.assert_array_equal(data.truth, again.truth)
    assert abs(data.truth - other.truth).max() > 0.01
    assert len(np.unique(data.truth[:, 0])) == 1  # all begin alike
    for i, ((t, v), (at, y)) in enumerate(zip(data.paths, data.targets)):
        assert t[0] == 0
        assert v.shape == (20, 2)
        np.testing.assert_allclose(y, data.truth[i, np.searchsorted(data.grid, at)], atol=1e-12)
    noisy = driven_systems(system, 4, samples=20, observations=3, seed=2, noise=0.5)
    assert abs(noisy.targets[0][1] - data.targets[0][1]).max() > 0.01


T, V = np.arange(4.0), np.ones((4, 1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: signature(np.ones(3), 2), r"paths: got shape \(3,\)"),
    (lambda: signature(np.full((2, 2), np.nan), 2), "paths: 4 entries not finite"),
    (lambda: signature(np.ones((2, 2)), 0), "depth: got 0"),
    (lambda: signature(np.ones((2, 50)), 6), "depth: 6 levels of 50 channels"),
    (lambda: SigLasso().fit([], []), "paths: got none"),
    (lambda: SigLasso().fit([T], [(T, T)]), r"paths\[0\]: got ndarray"),
    (lambda: SigLasso().fit([(T[::-1], V)], [(T, T)]), r"paths\[0\]: times do not rise at 1"),
    (lambda: SigLasso().fit([(T, V[:3])], [(T, T)]), r"paths\[0\]: values: got shape \(3, 1\), want \(4, any\)"),
    (lambda: SigLasso().fit([(T, V), (T, np.ones((4, 2)))], [(T, T)] * 2), r"paths\[1\]: values: got shape \(4, 2\)"),
    (lambda: SigLasso().fit([(T, V)], []), "targets: got 0, want 1"),
    (lambda: SigLasso().fit([(T, V)], [(T - 1, T)]), r"targets\[0\]: got the time -1, want none before"),
    (lambda: SigLasso().fit([(T, V)], [(T, T[:2])]), r"targets\[0\]: got values of shape \(2,\) at 4 times"),
    (lambda: SigLasso().fit([(T, V)], [(T[:0], T[:0])]), "targets: got no observation"),
    (lambda: SigLasso().fit([(T, V)], [(T, T)]), "cv: got 5 folds for 1 paths"),
    (lambda: SigLasso(()).fit([(T, V)], [(T, T)]), "depths: got none"),
    (lambda: SigLasso((0,)).fit([(T, V)], [(T, T)]), "depths: got 0"),
    (lambda: SigLasso(scale="traning").fit([(T, V)], [(T, T)]), "did you mean 'training'"),
    (lambda: driven_systems("cd", 3), "did you mean 'cde'"),
    (lambda: driven_systems("cde", 3, samples=1), "samples: got 1"),
    (lambda: driven_systems("cde", 3, noise=-1), "noise: got -1"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()

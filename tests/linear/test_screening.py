"""Mutual information: known values, oracles written apart, invariances, the selector and its baseline."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from ellzero.errors import InputError
from ellzero.linear.screening import (
    KernelDensity,
    MutualInformationScreening,
    NearestNeighbours,
    PlugIn,
    mutual_information,
)

ESTIMATES = [KernelDensity(), KernelDensity(scale="range"), PlugIn(), NearestNeighbours()]


def gaussian_pair(rho, n=1500, seed=0):
    g = np.random.default_rng(seed)
    x = g.standard_normal(n)
    return x[:, None], rho * x + math.sqrt(1 - rho**2) * g.standard_normal(n)


def smoothed_by_images(x, bins, width):
    """Linear weights of each sample on the cells, smoothed by an explicit sum over mirror images."""
    centres = (np.arange(bins) + 0.5) / bins
    hat = np.maximum(0, 1 - abs(np.clip(x, centres[0], centres[-1])[:, None] - centres) * bins)
    kernel = np.zeros((bins, bins))
    for m in range(-3, 4):
        for image in (centres + 2 * m, -centres + 2 * m):
            kernel += np.exp(-((centres[:, None] - image) ** 2) / (2 * width**2))
    return hat @ kernel


def test_the_kernel_estimate_is_that_of_an_explicit_double_sum():
    g = np.random.default_rng(3)
    x, y = g.beta(2, 3, 200), g.beta(1, 1, 200)
    y = 0.7 * x + 0.3 * y
    x, y = ((v - v.min()) / np.ptp(v) for v in (x, y))
    bins, fraction = 32, 0.4
    joint = smoothed_by_images(x, bins, fraction * x.std()).T @ smoothed_by_images(y, bins, fraction * y.std())
    joint /= joint.sum()
    want = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    got = mutual_information(x[:, None], y, estimate=KernelDensity(bins, fraction, "range"))[0]
    assert got == pytest.approx(want, rel=1e-4)


def test_the_plug_in_estimate_is_that_of_the_table():
    x, y = np.array([0, 0, 1, 1, 1, 0.0]), np.array(list("aabbab"))
    table = np.array([[2, 1], [1, 2]]) / 6
    want = (table * np.log(table / np.outer(table.sum(1), table.sum(0)))).sum()
    got = mutual_information(x[:, None], y, estimate=PlugIn(2, correct=False))
    assert got[0] == pytest.approx(want, abs=1e-12)
    corrected = mutual_information(x[:, None], y, estimate=PlugIn(2))
    assert corrected[0] == pytest.approx(want - 1 / 12, abs=1e-12)  # (4 - 2 - 2 + 1) / (2 * 6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_neighbours_agree_with_another_implementation(k):
    g = np.random.default_rng(k)
    X = g.standard_normal((400, 4))
    y = np.sin(2 * X[:, 0]) + X[:, 1] + 0.3 * g.standard_normal(400)
    ours = mutual_information(X, y, estimate=NearestNeighbours(k))
    theirs = mutual_info_regression(X, y, n_neighbors=k, random_state=0)
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, atol=2e-3)
    ours = mutual_information(X, y > 0, estimate=NearestNeighbours(k))
    theirs = mutual_info_classif(X, y > 0, n_neighbors=k, random_state=0)
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, atol=2e-2)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("estimate", "low", "high"), [
    (KernelDensity(), 0.6, 0.02), (PlugIn(), 0.85, 0.04), (NearestNeighbours(), 0.9, 0.05)])  # fmt: skip
def test_a_gaussian_pair_has_about_its_known_information(rho, estimate, low, high):
    true = -0.5 * math.log(1 - rho**2)
    got = mutual_information(*gaussian_pair(rho), estimate=estimate)[0]
    assert low * true - 0.04 <= got <= true + high


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_class_that_decides_by_sign_carries_one_bit(estimate):
    x = np.random.default_rng(0).standard_normal((600, 1))
    got = mutual_information(x, np.where(x[:, 0] > 0, "up", "down"), estimate=estimate)[0]
    assert 0.7 * math.log(2) < got < math.log(2) + 0.02


@pytest.mark.parametrize("estimate", [KernelDensity(), PlugIn()])
@settings(max_examples=20)
@given(seed=st.integers(0, 999), n=st.integers(20, 120))
def test_monotone_maps_row_order_and_labels_change_nothing(estimate, seed, n):
    g = np.random.default_rng(seed)
    X, y = g.standard_normal((n, 3)), g.standard_normal(n)
    base = mutual_information(X, y, estimate=estimate)
    np.testing.assert_allclose(mutual_information(np.exp(X), y**3, estimate=estimate), base, atol=1e-6)
    order = g.permutation(n)
    np.testing.assert_allclose(mutual_information(X[order], y[order], estimate=estimate), base, atol=1e-6)
    np.testing.assert_allclose(mutual_information(X[:, ::-1], y, estimate=estimate), base[::-1], atol=1e-6)
    labels = np.array(["c", "a"])[(y > 0).astype(int)]
    by_name = mutual_information(X, labels, estimate=estimate)
    np.testing.assert_allclose(by_name, mutual_information(X, (y <= 0).astype(int), estimate=estimate), atol=1e-6)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_it_is_symmetric(estimate):
    x, y = gaussian_pair(0.5, n=300)
    forth = mutual_information(x, y, estimate=estimate)
    back = mutual_information(y[:, None], x[:, 0], estimate=estimate)
    np.testing.assert_allclose(forth, back, atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), bandwidth=st.floats(0.05, 2))
def test_smoothing_more_never_adds_information(seed, bandwidth):
    x, y = gaussian_pair(0.7, n=80, seed=seed)
    less = mutual_information(x, y, estimate=KernelDensity(bandwidth=bandwidth))[0]
    more = mutual_information(x, y, estimate=KernelDensity(bandwidth=1.5 * bandwidth))[0]
    assert 0 <= more <= less + 1e-5


def test_more_columns_than_a_block_and_sparse_columns_give_the_same():
    g = np.random.default_rng(1)
    X = g.standard_normal((60, 75)) * (g.random((60, 75)) < 0.3)
    y = X[:, 70] + 0.1 * g.standard_normal(60)
    for estimate in ESTIMATES[:3]:
        whole = mutual_information(X, y, estimate=estimate)
        np.testing.assert_array_equal(mutual_information(sparse.csr_array(X), y, estimate=estimate), whole)
        alone = np.concatenate([mutual_information(X[:, [j]], y, estimate=estimate) for j in range(75)])
        np.testing.assert_allclose(alone, whole, atol=1e-6)
        assert whole.argmax() == 70


def test_constant_columns_and_targets_say_nothing():
    X = np.column_stack([np.full(30, 7.0), np.arange(30)])
    for estimate in ESTIMATES[:2]:
        np.testing.assert_allclose(mutual_information(X, np.arange(30) + 0.5, estimate=estimate)[0], 0, atol=1e-6)
        np.testing.assert_allclose(mutual_information(X, np.zeros(30), estimate=estimate), 0, atol=1e-6)


def test_whole_numbers_of_many_values_are_a_count_and_not_classes():
    x = np.random.default_rng(0).poisson(40, 100).astype(float)
    auto = mutual_information(x[:, None], x)
    np.testing.assert_array_equal(auto, mutual_information(x[:, None], x, discrete=False))
    few = np.minimum(x // 20, 2)
    np.testing.assert_array_equal(
        mutual_information(x[:, None], few), mutual_information(x[:, None], few, discrete=True)
    )


@pytest.mark.parametrize(("call", "message"), [
    (lambda: KernelDensity(bins=2), "bins: got 2"),
    (lambda: KernelDensity(bandwidth=0), "bandwidth: got 0"),
    (lambda: KernelDensity(scale="rang"), "did you mean 'range'"),
    (lambda: PlugIn(bins=1), "bins: got 1"),
    (lambda: NearestNeighbours(k=0), "k: got 0"),
    (lambda: mutual_information(np.ones((5, 2)), np.ones(4)), r"y: got shape \(4,\), want \(5,\)"),
    (lambda: mutual_information(np.ones(5), np.ones(5)), "X: got shape"),
    (lambda: mutual_information(np.full((5, 1), np.nan), np.ones(5)), "X: 5 entries not finite"),
    (lambda: mutual_information(np.ones((5, 1)), np.full(5, np.inf)), "y: 5 entries not finite"),
    (lambda: mutual_information(np.ones((5, 1)), np.ones(5), estimate="bins"), "estimate: got 'bins'"),
    (lambda: mutual_information(np.ones((5, 1)), np.array(list("abcde")), discrete=False), "want numbers"),
    (lambda: mutual_information(np.ones((3, 1)), np.ones(3) / 2, estimate=NearestNeighbours(3)), "3 neighbours"),
    (lambda: mutual_information(np.ones((6, 1)), np.arange(6), estimate=NearestNeighbours(1), discrete=True),
     "single sample"),
    (lambda: MutualInformationScreening(k=9).fit(np.ones((6, 2)), np.arange(6)), "k: got 9, want at most 2"),
    (lambda: MutualInformationScreening(k=0).fit(np.ones((6, 2)), np.arange(6)), "k: got 0"),
    (lambda: MutualInformationScreening(permutations=-1).fit(np.ones((6, 2)), np.arange(6)), "permutations: got -1"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_selector_keeps_the_k_best_and_names_them():
    X, y = gaussian_pair(0.9, n=200)
    X = np.column_stack([np.random.default_rng(5).standard_normal((200, 5)), X, X])
    selector = MutualInformationScreening(k=1).fit(X, y)
    assert selector.get_support(indices=True).tolist() == [5]  # a draw goes to the lowest index
    assert selector.transform(X).shape == (200, 1)
    assert not hasattr(selector, "p_values_")
    assert MutualInformationScreening().fit(X, y).get_support().all()  # n / log(n) = 37 columns or all


def test_the_baseline_holds_its_level_and_finds_the_planted_column():
    hits = 0
    for seed in range(40):
        g = np.random.default_rng(seed)
        X, y = g.standard_normal((40, 5)), g.standard_normal(40)
        hits += MutualInformationScreening(k=1, permutations=9, seed=seed).fit(X, y).p_values_.min() <= 0.1
    assert hits <= 10  # 4 expected; more than 10 has probability 0.002 where the level is right
    X[:, 3] = y**2
    found = MutualInformationScreening(k=1, permutations=9).fit(X, y)
    assert found.p_values_[3] == pytest.approx(0.1)
    assert found.get_support(indices=True).tolist() == [3]

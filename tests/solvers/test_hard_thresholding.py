"""Hard thresholding pursuit against exhaustive search, least squares by SVD, and the laws of its fixed points."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.hard_thresholding import fit_support, hard_thresholding_pursuit


def system(n, p, k, seed, targets=None):
    generator = rng(seed, "hard_thresholding")
    A = generator.standard_normal((n, p)) / np.sqrt(n)
    x = np.zeros((p, targets or 1))
    for column in x.T:
        column[generator.choice(p, k, replace=False)] = generator.choice([-1, 1], k) * (1 + generator.random(k))
    x = x if targets else x[:, 0]
    return A, x, A @ x


def best_subset(A, b, k):
    """The least residual norm over all supports of k columns."""
    fits = (np.linalg.lstsq(A[:, list(s)], b, rcond=None)[0] for s in itertools.combinations(range(A.shape[1]), k))
    supports = itertools.combinations(range(A.shape[1]), k)
    return min(np.linalg.norm(b - A[:, list(s)] @ c) for s, c in zip(supports, fits))


@given(n=st.integers(2, 12), k=st.integers(0, 12), seed=st.integers(0, 99), double=st.booleans())
def test_the_fit_of_a_support_is_least_squares(n, k, seed, double):
    generator = rng(seed, "fit")
    A, b = generator.standard_normal((n, 14)), generator.standard_normal(n)
    if double:
        A[:, 1] = A[:, 0]  # dependent columns: the smallest solution
    support = np.arange(k)
    values, residual = fit_support(np.ascontiguousarray(A.T), b, support)
    np.testing.assert_allclose(values, np.linalg.pinv(A[:, :k]) @ b, atol=1e-7)
    np.testing.assert_allclose(residual, b - A[:, :k] @ values, atol=1e-12)


def test_it_finds_what_was_planted_in_few_steps():
    A, x, b = system(100, 300, 8, 0)
    found = hard_thresholding_pursuit(A, b, 8)
    np.testing.assert_allclose(found.coef, x, atol=1e-10)
    assert found.reached
    assert found.converged
    assert found.count == 8
    assert 1 <= found.n_iter <= 10
    assert found.residual == pytest.approx(np.linalg.norm(b - A @ found.coef), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_with_noise_it_ends_at_a_fixed_point_near_the_best_subset(seed):
    A, _, b = system(20, 10, 3, seed)
    b = b + 0.05 * rng(seed, "noise").standard_normal(20)
    found = hard_thresholding_pursuit(A, b, 3)
    assert found.converged
    assert not found.reached
    assert found.residual == pytest.approx(best_subset(A, b, 3), rel=1e-9)
    support = np.flatnonzero(found.coef)
    np.testing.assert_allclose(A[:, support].T @ (b - A @ found.coef), 0, atol=1e-10)


def test_many_right_sides_equal_one_by_one():
    A, x, b = system(60, 150, 6, 3, targets=7)
    together = hard_thresholding_pursuit(A, b, 6)
    assert together.coef.shape == x.shape
    for t in range(7):
        alone = hard_thresholding_pursuit(A, b[:, t], 6)
        np.testing.assert_allclose(together.coef[:, t], alone.coef, atol=1e-12)
        assert (together.n_iter[t], together.count[t]) == (alone.n_iter, alone.count)
        assert together.residual[t] == pytest.approx(alone.residual, abs=1e-12)


def test_ties_keep_the_lowest_index_and_zero_stays_zero():
    found = hard_thresholding_pursuit(np.eye(5), np.ones(5), 2)
    np.testing.assert_array_equal(found.coef, [1, 1, 0, 0, 0])
    nothing = hard_thresholding_pursuit(np.eye(5), np.zeros(5), 2)
    assert not nothing.coef.any()
    assert nothing.reached
    assert nothing.n_iter == 0


def test_noise_level_is_where_it_stops():
    A, _, b = system(80, 200, 5, 1)
    loose = hard_thresholding_pursuit(A, b, 5, noise_level=np.linalg.norm(b) / np.sqrt(80))
    assert loose.reached
    assert loose.n_iter == 0
    assert hard_thresholding_pursuit(A, b, 5, noise_level=0.01).residual <= 0.01 * np.sqrt(80)


def test_dtypes_layouts_and_integers():
    A, x, b = system(60, 100, 4, 2)
    single = hard_thresholding_pursuit(A.astype(np.float32), b.astype(np.float32), 4)
    assert single.coef.dtype == np.float32
    np.testing.assert_allclose(single.coef, x, atol=1e-5)
    strided = hard_thresholding_pursuit(np.asfortranarray(np.repeat(A, 2, axis=1))[:, ::2], b, 4)
    np.testing.assert_allclose(strided.coef, x, atol=1e-10)
    assert hard_thresholding_pursuit(np.eye(3, dtype=int), np.array([0, 2, 0]), 1).coef.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 9}, "k: got 9"),
        ({"k": 1.5}, "k: got 1.5"),
        ({"step": 0}, "step: got 0"),
        ({"tol": -1}, "tol: got -1"),
        ({"noise_level": -1}, "noise_level: got -1"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"b": np.ones(3)}, "b: got 3 entries per right side, want 4"),
        ({"b": np.ones((4, 1, 1))}, "b: got shape"),
        ({"b": np.array([1, np.nan, 0, 0])}, "b: 1 entry not finite"),
        ({"A": np.full((4, 8), np.inf)}, "A: 32 entries not finite"),
        ({"A": np.ones(4)}, "A: got shape"),
        ({"A": np.ones((4, 8), dtype=complex)}, "A: got dtype complex128"),
    ],
)
def test_bad_input(change, message):
    arguments = {"A": rng(0).standard_normal((4, 8)), "b": np.ones(4), "k": 2} | change
    with pytest.raises(InputError, match=message):
        hard_thresholding_pursuit(**arguments)

"""Iterative hard thresholding: monotone, exact where it can be, and refused where it cannot."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.solvers.thresholding import iht


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 30), p=st.integers(2, 40), seed=st.integers(0, 999), polish=st.booleans())
def test_the_residual_never_rises(n, p, seed, polish):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) * np.exp(generator.standard_normal(p))
    y = generator.standard_normal(n)
    k = int(generator.integers(1, p + 1))
    found = iht(X, y, k, polish=polish, max_iter=200)
    assert np.count_nonzero(found.coef) <= k
    assert (np.diff(found.history) <= 1e-12).all()
    assert found.history[-1] == pytest.approx(np.linalg.norm(y - X @ found.coef))


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_support_of_a_good_design(seed):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((60, 10))
    y = X[:, [2, 7]] @ [1.0, -2.0] + 0.3 * generator.standard_normal(60)
    best = min(
        combinations(range(10), 2),
        key=lambda S: np.linalg.norm(y - X[:, S] @ np.linalg.lstsq(X[:, S], y, rcond=None)[0]),
    )
    found = iht(X, y, 2)
    assert found.converged
    assert tuple(np.flatnonzero(found.coef)) == best
    np.testing.assert_allclose(found.coef[list(best)], np.linalg.lstsq(X[:, best], y, rcond=None)[0])


def test_fixed_step_is_its_formula():
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((30, 12)), generator.standard_normal(30)
    step = 0.9 / np.linalg.norm(X, 2) ** 2
    w = np.zeros(12)
    for _ in range(3):
        w = w + step * X.T @ (y - X @ w)
        w[np.argsort(-abs(w))[4:]] = 0
    np.testing.assert_allclose(iht(X, y, 4, step=step, max_iter=3, polish=False, tol=0.0).coef, w)


def test_all_columns_is_least_squares_and_a_start_is_used():
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((30, 6)), generator.standard_normal(30)
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(iht(X, y, 6, tol=1e-10).coef, best)
    assert iht(X, y, 6, start=best).n_iter == 1
    assert not iht(X, np.zeros(30), 3).coef.any()
    assert iht(X.astype(np.float32), y, 3).coef.dtype == np.float32


def test_bad_input():
    X, y = np.eye(4), np.ones(4)
    for k in (0, 5):
        with pytest.raises(InputError, match="k: got"):
            iht(X, y, k)
    with pytest.raises(InputError, match="step"):
        iht(X, y, 1, step=0.0)
    with pytest.raises(InputError, match="grows without bound"):
        iht(np.random.default_rng(0).standard_normal((9, 4)), np.ones(9), 4, step=1e6)
    with pytest.raises(InputError, match="y: got shape"):
        iht(X, y[:2], 1)
    with pytest.raises(InputError, match="max_iter"):
        iht(X, y, 1, max_iter=0)

"""Least absolute deviations: optima of another linear program, exact zeros, certificates, weights and signs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linprog
from sklearn.linear_model import QuantileRegressor

from ellzero.errors import InputError
from ellzero.parts.penalties import L1, MCP
from ellzero.solvers.least_absolute import alpha_max, path, solve


def data(seed=0, n=60, p=15):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) * rng.uniform(0.1, 10, p)
    return X, X[:, 0] - 0.3 * X[:, 1] + rng.standard_t(1.5, size=n) + 7


def objective(X, y, w, b, alpha, weights=1.0, v=None):
    priced = np.where(w != 0, weights, 0.0) * abs(w)
    return np.average(abs(y - X @ w - b), weights=v) + alpha * priced.sum()


def primal_program(X, y, alpha, weights, positive, v):
    """The same problem in its primal form, with residuals as variables: shares nothing with ours."""
    n = len(X)
    keep = np.isfinite(weights)
    cost = np.concatenate([alpha * weights[keep], alpha * weights[keep], [0], np.tile(v / v.sum(), 2)])
    equal = np.hstack([X[:, keep], -X[:, keep], np.ones((n, 1)), np.eye(n), -np.eye(n)])
    count = keep.sum()
    bounds = [(0, None)] * count + [(0, 0 if positive else None)] * count + [(None, None)] + [(0, None)] * 2 * n
    return linprog(cost, A_eq=equal, b_eq=y, bounds=bounds).fun


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.9), positive=st.booleans(), weighted=st.booleans())
def test_the_optimum_is_that_of_the_primal_program(seed, share, positive, weighted):
    X, y = data(seed, n=30, p=8)
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 0.5, 2.0, np.inf], 8, p=[0.1, 0.4, 0.4, 0.1]) if weighted else np.ones(8)
    v = rng.integers(0, 3, 30) + 0.0 if weighted else np.ones(30)
    penalty = L1(1.0, weights=weights, positive=positive)
    top = alpha_max(X, y, penalty, sample_weight=v)
    alpha = share * top if 0 < top < np.inf else 0.1
    fit = solve(X, y, L1(alpha, weights=weights, positive=positive), sample_weight=v, tol=1e-9)
    assert fit.converged
    best = primal_program(X, y, alpha, weights, positive, v)
    assert objective(X, y, fit.coef, fit.intercept, alpha, weights, v) == pytest.approx(best, abs=1e-8)
    assert not positive or (fit.coef >= 0).all()
    assert not fit.coef[np.isinf(weights)].any()


@pytest.mark.parametrize("shape", [(100, 20), (60, 200)])
def test_it_is_the_median_regression_of_scikit_learn(shape):
    X, y = data(1, *shape)
    for share in (0.5, 0.05):
        alpha = share * alpha_max(X, y, L1(1.0))
        ours = solve(X, y, L1(alpha), tol=1e-9)
        theirs = QuantileRegressor(quantile=0.5, alpha=alpha / 2).fit(X, y)
        assert ours.converged
        assert objective(X, y, ours.coef, ours.intercept, alpha) <= (
            objective(X, y, theirs.coef_, theirs.intercept_, alpha) + 1e-9
        )


def test_the_certificate_is_true_and_zeros_are_exact():
    X, y = data(2, 50, 120)
    alpha = 0.1 * alpha_max(X, y, L1(1.0))
    best = solve(X, y, L1(alpha), tol=1e-10)
    scale = abs(y - np.median(y)).mean()
    for rounds in (1, 2, 3):
        rough = solve(X, y, L1(alpha), tol=1e-12, max_iter=rounds)
        excess = objective(X, y, rough.coef, rough.intercept, alpha) - objective(X, y, best.coef, best.intercept, alpha)
        assert excess <= rough.gap * scale + 1e-10
    residual = y - X @ best.coef - best.intercept
    # A vertex: as many samples are met exactly as there are coefficients in use, the intercept included.
    assert (abs(residual) < 1e-8).sum() == np.count_nonzero(best.coef) + 1


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, np.asfortranarray])
def test_forms_and_dtypes(form):
    X, y = data(3)
    X = np.where(abs(X) > 0.5, X, 0)
    plain, other = solve(X, y, L1(0.3)), solve(form(X), y, L1(0.3))
    np.testing.assert_allclose(other.coef, plain.coef, atol=1e-7)
    single = solve(form(X.astype(np.float32)), y, L1(0.3), tol=1e-5)
    assert single.converged
    assert single.coef.dtype == np.float32


def test_without_an_intercept_and_a_constant_target():
    X, y = data(4)
    fit = solve(X, y, L1(0.05), fit_intercept=False)
    assert fit.converged
    assert fit.intercept == 0
    flat = solve(X, np.full(60, 3.0), L1(0.1))
    assert flat.converged
    assert not flat.coef.any()
    assert flat.intercept == pytest.approx(3)


def test_a_path_is_its_fits():
    X, y = data(5)
    whole = path(X, y, L1(1.0), n_alphas=6, eps=0.02)
    assert whole.converged.all()
    assert not whole.coefs[:, 0].any()
    for i in (2, 5):
        alone = solve(X, y, L1(whole.alphas[i]))
        np.testing.assert_allclose(whole.coefs[:, i], alone.coef, atol=1e-6)
    chosen = path(X, y, L1(1.0), alphas=[0.1, 0.5])
    assert (chosen.alphas == [0.5, 0.1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: solve(X, y, MCP(0.1)), "penalty: got MCP, want L1"),
        (lambda X, y: solve(X, y, L1(0.0)), "alpha: got 0.0, want above 0"),
        (lambda X, y: solve(X, y[1:], L1(0.1)), r"y: got shape \(59,\), want \(60"),
        (lambda X, y: solve(X, y, L1(0.1, weights=np.ones(3))), "weights: got"),
        (lambda X, y: solve(X, y, L1(0.1), sample_weight=np.ones(3)), "weights: got shape"),
        (lambda X, y: solve(X, y, L1(0.1), tol=-1.0), "tol: got -1.0"),
        (lambda X, y: path(X, y, L1(1.0), n_alphas=0), "n_alphas: got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*data())

"""FISTA: the penalties that take coefficients as a whole, against proximal Newton, closed forms and KKT."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import lsq_linear, minimize

from ellzero.errors import InputError
from ellzero.parts.datafits import Absolute, Huber, Logistic, Poisson, Quadratic
from ellzero.parts.datafits_coupled import Multinomial
from ellzero.parts.penalties import L1, MCP, Box, GroupL2, Nuclear, Simplex
from ellzero.solvers import fista, prox_newton


def data(seed=0, n=40, p=6):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + 0.5
    return X, X @ np.array([1.5, -1, 0.5, 0, 0, 0]) + 0.5 * rng.normal(size=n) + 2


@pytest.mark.parametrize("penalty", [L1(0.05), GroupL2(0.05, 2), MCP(0.02, 3.0)])
@pytest.mark.parametrize("datafit", [Quadratic(), Logistic(), Poisson(), Huber(0.5)])
def test_it_agrees_with_proximal_newton(datafit, penalty):
    X, y = data()
    if datafit == Logistic():
        y = np.where((y > y.mean()) ^ (np.arange(40) % 7 == 0), 1.0, -1.0)
    if datafit == Poisson():
        y = np.maximum(np.round(y), 0)
    ours = fista.solve(X, y, datafit, penalty, tol=1e-9, max_iter=200)
    theirs = prox_newton.solve(X, y, datafit, penalty, tol=1e-12)
    assert ours.converged
    np.testing.assert_allclose(ours.coef, theirs.coef, atol=1e-6)
    assert ours.intercept == pytest.approx(theirs.intercept, abs=1e-6)


def test_a_box_is_bounded_least_squares():
    X, y = data(1)
    fit = fista.solve(X, y, Quadratic(), Box(-0.3, 1.0), fit_intercept=False, tol=1e-10)
    best = lsq_linear(X, y, (-0.3, 1.0), tol=1e-14)
    assert fit.converged
    np.testing.assert_allclose(fit.coef, best.x, atol=1e-6)


def test_the_simplex_is_a_mixture():
    X, y = data(2)
    fit = fista.solve(X, y, Quadratic(), Simplex(), tol=1e-9)
    assert fit.converged
    assert fit.coef.sum() == pytest.approx(1)
    assert (fit.coef >= 0).all()

    def cost(w):
        return ((y - X @ w - (y - X @ w).mean()) ** 2).mean() / 2

    total = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(cost, np.full(6, 1 / 6), bounds=[(0, 1)] * 6, constraints=total, method="SLSQP",
                    options={"ftol": 1e-14})  # fmt: skip
    assert cost(fit.coef) == pytest.approx(best.fun, abs=1e-8)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_low_rank_coefficients_are_certified(form):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(60, 8))
    W = rng.normal(size=(8, 1)) @ rng.normal(size=(1, 5))
    Y = X @ W + 0.3 * rng.normal(size=(60, 5)) + 1
    fit = fista.solve(form(X), Y, Quadratic(), Nuclear(0.3), tol=1e-9)
    assert fit.converged
    assert np.linalg.matrix_rank(fit.coef, tol=1e-6) == 1
    u = Quadratic().gradient(Y, X @ fit.coef + fit.intercept)
    np.testing.assert_allclose(u.sum(0), 0, atol=1e-6)
    assert Nuclear(0.3).subdifferential_distance(fit.coef, X.T @ u) <= 1e-4
    whole = fista.path(form(X), Y, Quadratic(), Nuclear(1.0), n_alphas=5, eps=0.05)
    assert whole.converged.all()
    ranks = [np.linalg.matrix_rank(whole.coefs[..., i], tol=1e-8) for i in range(5)]
    assert ranks[0] == 0 < ranks[-1]
    assert whole.coefs.shape == (8, 5, 5)


def test_sample_weights_and_starts():
    X, y = data(4)
    counts = np.arange(40) % 3
    repeated = np.repeat(np.arange(40), counts)
    weighted = fista.solve(X, y, Huber(), Box(-1, 1), sample_weight=counts, tol=1e-10)
    plain = fista.solve(X[repeated], y[repeated], Huber(), Box(-1, 1), tol=1e-10)
    np.testing.assert_allclose(weighted.coef, plain.coef, atol=1e-6)
    again = fista.solve(
        X, y, Huber(), Box(-1, 1), sample_weight=counts, tol=1e-6, start=(weighted.coef, weighted.intercept)
    )
    assert again.n_iter <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, y: fista.solve(X, y, Absolute(), Box(-1, 1)), "FISTA: got Absolute, which is not smooth"),
        (lambda X, y: fista.solve(X, y, Huber(), Huber()), "FISTA: got Huber, which lacks 'prox'"),
        (lambda X, y: fista.solve(X, y, Box(-1, 1), Box(-1, 1)), "FISTA: got Box, which lacks 'gradient'"),
        (lambda X, y: fista.solve(X, y[1:], Huber(), Box(-1, 1)), "y: got shape"),
        (lambda X, y: fista.solve(X, y, Huber(), Box(-1, 1), tol=-1), "tol: got -1"),
        (lambda X, y: fista.solve(X, y, Multinomial(), Nuclear(1.0)), "y: got shape"),
        (lambda X, y: fista.path(X, y, Huber(), Box(-1, 1)), "path: got Box, which lacks 'alpha'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call(*data())

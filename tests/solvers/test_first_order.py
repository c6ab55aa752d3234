"""Accelerated and conjugate gradients: against proximal Newton, general solvers and the definition of stationarity."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.parts.datafits import Absolute, Huber, Logistic, Poisson, Quadratic
from ellzero.parts.datafits_coupled import Multinomial
from ellzero.parts.datafits_heavy import QGaussian
from ellzero.parts.penalties import L0, L1, MCP, SCAD, ElasticNet
from ellzero.solvers import accelerated, conjugate_gradient, prox_newton
from ellzero.solvers.first_order import Composite, State, curvature_bound

BOTH = [accelerated, conjugate_gradient]


def data(seed=0, n=60, p=8):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + 0.5
    return X, X[:, :3] @ [1.5, -1, 0.5] + 0.5 * rng.normal(size=n) + 2


def signs(y):
    return np.where((y > y.mean()) ^ (np.arange(len(y)) % 7 == 0), 1.0, -1.0)


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("penalty", [L1(0.05), ElasticNet(0.05, 0.5), MCP(0.02, 30.0), SCAD(0.02, 30.0)])
@pytest.mark.parametrize("datafit", [Quadratic(), Logistic(), Huber(0.5)])
def test_they_agree_with_proximal_newton(module, datafit, penalty):
    X, y = data()
    y = signs(y) if datafit == Logistic() else y
    ours = module.solve(X, y, datafit, penalty, tol=1e-9, max_iter=500)
    theirs = prox_newton.solve(X, y, datafit, penalty, tol=1e-12)
    assert ours.converged
    assert ours.gap <= 1e-9
    np.testing.assert_allclose(ours.coef, theirs.coef, atol=1e-6)
    np.testing.assert_array_equal(ours.coef == 0, theirs.coef == 0)
    assert ours.intercept == pytest.approx(theirs.intercept, abs=1e-6)


@pytest.mark.parametrize("module", BOTH)
def test_the_answer_is_stationary_where_nothing_is_convex(module):
    X, y = data(1, 50, 80)
    y[::9] += 40
    for datafit, penalty in ((QGaussian(1.8, 0.5), MCP(0.2, 1.5)), (Quadratic(), SCAD(0.3, 2.1))):
        fit = module.solve(X, y, datafit, penalty, tol=1e-7)
        assert fit.converged
        u = datafit.gradient(y, X @ fit.coef + fit.intercept)
        scale = abs(X.T @ datafit.gradient(y, np.full(50, datafit.constant(y)))).max()
        assert penalty.subdifferential_distance(fit.coef, X.T @ u).max() <= 1.01e-7 * scale
        assert abs(u.sum()) <= 1e-6
        assert 0 < (fit.coef == 0).sum() < 80


def test_conjugate_gradients_reach_the_minimum_of_a_general_solver():
    X, y = data(2)
    y[::7] += 15
    fit = conjugate_gradient.solve(X, y, QGaussian(1.5, 1.0), L1(0.0), tol=1e-9)

    def cost(v):
        return QGaussian(1.5, 1.0).value(y, X @ v[:8] + v[8])

    here = np.r_[fit.coef, fit.intercept]
    found = minimize(cost, here + 0.05, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(found.x, here, atol=1e-5)
    assert cost(here) <= found.fun + 1e-12


@pytest.mark.parametrize("module", BOTH)
def test_the_objective_does_not_rise(module):
    X, y = data(3, 40, 60)
    penalty = SCAD(0.1, 2.5)
    values = []
    for rounds in (1, 2, 4, 60):
        fit = module.solve(X, y, Quadratic(), penalty, tol=1e-13, max_iter=rounds)
        r = y - X @ fit.coef - fit.intercept
        values.append((r**2).mean() / 2 + penalty.value(fit.coef))
    assert (np.diff(values) <= 1e-12).all()


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_weights_signs_starts_and_many_outputs(module, form):
    X, y = data(4)
    factors = np.ones(8)
    factors[3], factors[0] = 0, np.inf
    fit = module.solve(form(X), y, Quadratic(), L1(0.5, weights=factors, positive=True), tol=1e-8)
    theirs = prox_newton.solve(X, y, Quadratic(), L1(0.5, weights=factors, positive=True), tol=1e-12)
    np.testing.assert_allclose(fit.coef, theirs.coef, atol=1e-5)
    counts = np.arange(60) % 3
    repeated = np.repeat(np.arange(60), counts)
    weighted = module.solve(form(X), y, Huber(), MCP(0.05, 30.0), sample_weight=counts, tol=1e-9)
    plain = module.solve(X[repeated], y[repeated], Huber(), MCP(0.05, 30.0), tol=1e-9)
    np.testing.assert_allclose(weighted.coef, plain.coef, atol=1e-5)
    again = module.solve(form(X), y, Huber(), MCP(0.05, 30.0), sample_weight=counts, tol=1e-6,
                         start=(weighted.coef, weighted.intercept))  # fmt: skip
    assert again.n_iter == 1
    Y = np.eye(3)[np.arange(60) % 3]
    many = module.solve(form(X), Y, Multinomial(), L1(0.02), tol=1e-7, max_iter=300)
    assert many.coef.shape == (8, 3)
    np.testing.assert_allclose(many.coef, prox_newton.solve(X, Y, Multinomial(), L1(0.02), tol=1e-11).coef, atol=1e-4)


@pytest.mark.parametrize("module", BOTH)
def test_paths_are_their_fits(module):
    X, y = data(5, 40, 30)
    whole = module.path(X, y, Quadratic(), MCP(1.0, 40.0), n_alphas=5, eps=0.1, tol=1e-8)
    theirs = prox_newton.path(X, y, Quadratic(), MCP(1.0, 40.0), n_alphas=5, eps=0.1, tol=1e-11)
    assert whole.converged.all()
    np.testing.assert_allclose(whole.alphas, theirs.alphas, rtol=1e-10)
    np.testing.assert_allclose(whole.coefs, theirs.coefs, atol=1e-5)


def test_a_ridge_is_a_ridge():
    X, y = data(6)
    ridge = np.linspace(0, 1, 8)
    fit = conjugate_gradient.solve(X, y, Quadratic(), L1(0.0), ridge=ridge, fit_intercept=False, tol=1e-10)
    np.testing.assert_allclose(fit.coef, np.linalg.solve(X.T @ X / 60 + np.diag(ridge), X.T @ y / 60), atol=1e-7)


def test_the_bound_is_one_and_the_gradient_a_derivative():
    X, y = data(7)
    state = State("test", X, signs(y), Logistic(), SCAD(0.1), True, None)
    bound = curvature_bound(state)
    exact = np.linalg.norm(np.c_[X, np.full(60, state.unit)], 2) ** 2 * Logistic().lipschitz(signs(y))
    assert exact <= bound <= 1.03 * exact
    problem = Composite(state, SCAD(0.1), bound, np.linspace(0, 1, 8))
    rng = np.random.default_rng(0)
    v, d, h = rng.normal(size=9), rng.normal(size=9), 1e-6
    slope = (problem.smooth_value(v + h * d, problem.image(v + h * d))
             - problem.smooth_value(v - h * d, problem.image(v - h * d))) / (2 * h)  # fmt: skip
    assert problem.smooth(v, problem.image(v)) @ d == pytest.approx(slope, abs=1e-6)
    assert problem.slope(v, problem.image(v), d, problem.image(d)) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, X, y: m.solve(X, y, Absolute(), L1(0.1)), "got Absolute, which lacks 'lipschitz'"),
        (lambda m, X, y: m.solve(X, y, Poisson(), L1(0.1)), "got Poisson, which lacks 'lipschitz'"),
        (lambda m, X, y: m.solve(X, y, Huber(), L0(0.1)), "penalty: got L0, which is no kink"),
        (lambda m, X, y: m.solve(X, y, Huber(), Huber()), "got Huber, which lacks 'prox'"),
        (lambda m, X, y: m.solve(X, y[1:], Huber(), L1(0.1)), "y: got shape"),
        (lambda m, X, y: m.solve(X, y, Huber(), L1(0.1), tol=-1), "tol: got -1"),
        (lambda m, X, y: m.solve(X, y, Huber(), L1(0.1), max_iter=0), "max_iter: got 0"),
        (lambda m, X, y: m.path(X, y, Huber(), L1(0.1), alphas=np.ones((2, 2))), "alphas: got shape"),
        (lambda _, X, y: conjugate_gradient.solve(X, y, Huber(), L1(0.1), ridge=-np.ones(8)), "ridge: got -1.0"),
        (lambda _, X, y: conjugate_gradient.solve(X, y, Huber(), L1(0.1), ridge=np.ones(3)), "ridge: got shape"),
    ],
)
def test_bad_input_is_named(module, call, message):
    with pytest.raises(InputError, match=message):
        call(module, *data())

"""Proximal Newton: optima against general solvers and by hand, certificates that are true, every shape of input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.parts.datafits import (
    Absolute,
    Huber,
    Logistic,
    Poisson,
    Quadratic,
    SquaredHinge,
    SquareRoot,
)
from ellzero.parts.datafits_coupled import Multinomial
from ellzero.parts.datafits_survival import Cox
from ellzero.parts.penalties import L0, L1, L21, MCP, SCAD, ElasticNet, GroupL2, Nuclear, SparseGroup
from ellzero.solvers import coordinate_descent
from ellzero.solvers.group_descent import group_descent
from ellzero.solvers.prox_newton import alpha_max, iterate, path, solve

DATAFITS = {
    "Quadratic": Quadratic(), "Logistic": Logistic(), "Poisson": Poisson(), "Huber": Huber(0.7),
    "SquaredHinge": SquaredHinge(), "SquareRoot": SquareRoot(), "Absolute": Absolute(), "Multinomial": Multinomial(),
    "Cox": Cox(), "Efron": Cox("efron"),
}  # fmt: skip
SMOOTH = [name for name in DATAFITS if name != "Absolute"]
GROUPS = np.array([0, 0, 1, 1, 1, 2, 3, 3])


def data(name, seed=0, n=40, p=8):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p)) + rng.normal(size=p)
    z = X[:, 0] - 0.7 * X[:, 2] + 0.5 * X[:, 3]
    z = z - z.mean()
    if name in ("Logistic", "SquaredHinge"):
        return X, np.where(rng.uniform(size=n) < 1 / (1 + np.exp(-z)), 1.0, -1.0)
    if name == "Poisson":
        return X, rng.poisson(np.exp(0.5 * z)).astype(float)
    if name == "Multinomial":
        scores = np.stack([z, X[:, 5] - X[:, 5].mean(), 0 * z], axis=1) + rng.gumbel(size=(n, 3))
        return X, np.eye(3)[scores.argmax(1)]
    if name in ("Cox", "Efron"):
        times = np.ceil(8 * rng.exponential(size=n) * np.exp(-z))
        return X, np.stack([times, (rng.uniform(size=n) < 0.7) * 1.0], axis=1)
    return X, z + 0.5 * rng.normal(size=n) + 3.0 * (rng.uniform(size=n) < 0.1)


def objective(datafit, penalty, X, y, coef, intercept, v=None):
    return float(datafit.value(y, X @ coef + intercept, v)) + float(penalty.value(coef))


def general_minimum(datafit, X, y, v, alpha, ratio=1.0, free=(), positive=False):
    """L1 or elastic net in split form by a quasi-Newton method with bounds: slow, but shares nothing with ours."""
    p, outputs = X.shape[1], datafit.outputs(y)
    width = 1 if outputs is None else outputs
    price = np.full((p, width), alpha)
    price[list(free)] = 0
    size = p * width

    def cost(u):
        plus, minus = u[:size].reshape(p, width), u[size : 2 * size].reshape(p, width)
        w, b = plus - minus, u[2 * size :]
        z = X @ w + b
        z = z[:, 0] if outputs is None else z
        slope = datafit.gradient(y, z, v).reshape(len(y), -1)
        value = datafit.value(y, z, v) + ratio * (price * (plus + minus)).sum() + (1 - ratio) / 2 * (price * w**2).sum()
        gw = X.T @ slope + (1 - ratio) * price * w
        return value, np.concatenate([(gw + ratio * price).ravel(), (-gw + ratio * price).ravel(), slope.sum(0)])

    bounds = [(0, None)] * size + [(0, 0 if positive else None)] * size + [(None, None)] * width
    start = np.concatenate([np.full(2 * size, 0.0 if positive else 0.01), np.zeros(width)])
    best = np.inf
    for _ in range(3):
        found = minimize(cost, start, jac=True, bounds=bounds, method="L-BFGS-B",
                         options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 20_000, "maxfun": 20_000})  # fmt: skip
        start, best = found.x, min(best, found.fun)
    return best


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_is_that_of_a_general_solver(name, weighted):
    X, y = data(name)
    datafit = DATAFITS[name]
    v = np.random.default_rng(1).uniform(0.2, 2, len(X)) if weighted else None
    top = alpha_max(X, y, datafit, L1(1.0), sample_weight=v)
    for share, ratio in [(0.5, 1.0), (0.05, 1.0), (0.1, 0.4)]:
        penalty = ElasticNet(share * top, ratio) if ratio < 1 else L1(share * top)
        fit = solve(X, y, datafit, penalty, sample_weight=v, tol=1e-10)
        assert fit.converged
        best = general_minimum(datafit, X, y, v, share * top, ratio)
        assert objective(datafit, penalty, X, y, fit.coef, fit.intercept, v) == pytest.approx(best, abs=2e-7)


@pytest.mark.parametrize("name", DATAFITS)
def test_alpha_max_is_where_coefficients_begin(name):
    X, y = data(name)
    top = alpha_max(X, y, DATAFITS[name], L1(1.0))
    assert not solve(X, y, DATAFITS[name], L1(1.01 * top), tol=1e-9).coef.any()
    assert solve(X, y, DATAFITS[name], L1(0.97 * top), tol=1e-9).coef.any()


@pytest.mark.parametrize("name", DATAFITS)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.5, 0.1, 0.01]))
def test_the_certificate_is_true(name, seed, share):
    """However rough the fit, the distance to the best value known is never above the gap."""
    X, y = data(name, seed, n=30)
    datafit = DATAFITS[name]
    penalty = L1(share * alpha_max(X, y, datafit, L1(1.0)))
    fits = [solve(X, y, datafit, penalty, tol=1e-12, max_iter=m) for m in (1, 2, 60)]
    values = [objective(datafit, penalty, X, y, fit.coef, fit.intercept) for fit in fits]
    null = solve(X, y, datafit, L1(1e6), tol=1e-12)
    z = X @ null.coef + null.intercept
    flat = datafit.dual_at(y, z, 0.0) if name in ("Cox", "Efron") else datafit.dual(y, 0 * datafit.gradient(y, z))
    scale = datafit.value(y, z) - flat
    for fit, value in zip(fits, values):
        assert value - min(values) <= fit.gap * scale + 1e-12
    assert fits[-1].gap <= (1e-3 if name == "Absolute" else 1e-7)  # where smoothing ends; linear programs do better


@pytest.mark.parametrize("name", ["Logistic", "Poisson", "Cox", "Multinomial", "Huber"])
def test_stationarity_by_hand(name):
    """|X_j' u| <= alpha at zero, = -alpha sign(w_j) elsewhere, and slopes sum to zero over samples."""
    X, y = data(name, 3)
    datafit, alpha = DATAFITS[name], 0.03
    fit = solve(X, y, datafit, L1(alpha), tol=1e-13)
    u = datafit.gradient(y, X @ fit.coef + fit.intercept)
    pull = X.T @ u
    used = fit.coef != 0
    assert used.any()
    assert not used.all()
    np.testing.assert_allclose(pull[used], -alpha * np.sign(fit.coef[used]), atol=1e-8)
    assert (abs(pull[~used]) <= alpha + 1e-9).all()
    np.testing.assert_allclose(u.sum(0), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["Logistic", "Poisson", "Multinomial", "Cox"])
@pytest.mark.parametrize("form", [np.asfortranarray, sparse.csr_array, sparse.csc_matrix])
def test_every_form_of_design_gives_the_same(name, form):
    X, y = data(name, 5)
    X = np.where(abs(X) > 1, X, 0)
    plain = solve(X, y, DATAFITS[name], L1(0.02), tol=1e-12)
    other = solve(form(X), y, DATAFITS[name], L1(0.02), tol=1e-12)
    np.testing.assert_allclose(other.coef, plain.coef, atol=1e-8)
    np.testing.assert_allclose(other.intercept, plain.intercept, atol=1e-8)
    single = solve(form(X.astype(np.float32)), y, DATAFITS[name], L1(0.02), tol=1e-5)
    assert single.converged
    assert single.coef.dtype == np.float32
    np.testing.assert_allclose(single.coef, plain.coef, atol=5e-3)


def test_sparse_is_never_densified(monkeypatch):
    X, y = data("Logistic", n=200, p=30)
    X = sparse.csc_array(np.where(abs(X) > 1.5, X, 0))

    def refuse(self, *args, **kwargs):
        assert min(self.shape) <= 40, "a design was densified"
        return original(self, *args, **kwargs)

    original = sparse.csc_array.toarray
    monkeypatch.setattr(sparse.csc_array, "toarray", refuse)
    X.toarray = None
    assert solve(X, y, Logistic(), L1(0.001), tol=1e-10).converged


@pytest.mark.parametrize("name", ["Logistic", "Poisson", "Multinomial", "Cox", "Huber", "SquareRoot"])
def test_weights_free_and_exclude_columns(name):
    X, y = data(name, 7)
    datafit, alpha = DATAFITS[name], 0.05
    weights = np.ones(8)
    weights[[1, 4]] = 0
    fit = solve(X, y, datafit, L1(alpha, weights=weights), tol=1e-10)
    assert fit.converged
    best = general_minimum(datafit, X, y, None, alpha, free=(1, 4))
    value = float(datafit.value(y, X @ fit.coef + fit.intercept)) + alpha * abs(np.delete(fit.coef, [1, 4], 0)).sum()
    assert value == pytest.approx(best, abs=2e-7)
    weights[0] = np.inf
    out = solve(X, y, datafit, L1(alpha, weights=weights), tol=1e-10)
    assert out.converged
    assert not out.coef[0].any()
    without = solve(X[:, 1:], y, datafit, L1(alpha, weights=weights[1:]), tol=1e-10)
    np.testing.assert_allclose(out.coef[1:], without.coef, atol=1e-6)


@pytest.mark.parametrize("name", ["Logistic", "Poisson", "Huber", "SquareRoot"])
def test_positive_coefficients(name):
    X, y = data(name, 8)
    datafit = DATAFITS[name]
    fit = solve(X, y, datafit, L1(0.03, positive=True), tol=1e-10)
    assert fit.converged
    assert (fit.coef >= 0).all()
    best = general_minimum(datafit, X, y, None, 0.03, positive=True)
    value = float(datafit.value(y, X @ fit.coef + fit.intercept)) + 0.03 * fit.coef.sum()
    assert value == pytest.approx(best, abs=2e-7)
    weights = np.ones(8)
    weights[0] = 0
    free = solve(X, y, datafit, L1(0.03, weights=weights, positive=True), tol=1e-9)
    assert free.converged
    assert (free.coef >= 0).all()


def split_minimum(value, X, y, datafit, width=1):
    """A group norm's minimum, smoothed ever less: for comparison to about 1e-6."""
    p = X.shape[1]
    start = np.zeros(p * width + width)
    for smooth in (1e-3, 1e-5, 1e-7):

        def cost(u, smooth=smooth):
            w, b = u[: p * width].reshape(p, width), u[p * width :]
            z = X @ w + b
            return datafit.value(y, z if width > 1 else z[:, 0]) + value(w, smooth)

        start = minimize(cost, start, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000}).x
    w, b = start[: p * width].reshape(p, width), start[p * width :]
    z = X @ w + b
    return float(datafit.value(y, z if width > 1 else z[:, 0])) + value(w, 0.0)


@pytest.mark.parametrize("name", ["Quadratic", "Logistic", "Poisson", "Huber"])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_groups_live_and_die_together(name, ratio):
    X, y = data(name, 11)
    datafit, alpha = DATAFITS[name], 0.12 if name != "Poisson" else 0.3
    weights = np.sqrt(np.bincount(GROUPS))
    penalty = SparseGroup(alpha, GROUPS, ratio, weights) if ratio else GroupL2(alpha, GROUPS, weights)
    fit = solve(X, y, datafit, penalty, tol=1e-10)
    assert fit.converged
    norms = np.sqrt(np.bincount(GROUPS, fit.coef**2))
    assert (norms == 0).any()
    assert (norms > 0).any()
    if not ratio:
        assert ((fit.coef != 0) == (norms > 0)[GROUPS]).all()

    def smooth(w, eps):
        sums = np.bincount(GROUPS, w[:, 0] ** 2)
        group = (weights * (np.sqrt(sums + eps**2) - eps)).sum()
        return alpha * ((1 - ratio) * group + ratio * (np.sqrt(w[:, 0] ** 2 + eps**2) - eps).sum())

    best = split_minimum(smooth, X, y, datafit)
    ours = objective(datafit, penalty, X, y, fit.coef, fit.intercept)
    assert ours <= best + 1e-9
    assert best - ours <= 1e-5
    free = solve(X, y, datafit, GroupL2(alpha, GROUPS, [1, 0, 1, np.inf]), tol=1e-9)
    assert free.converged
    assert (free.coef[GROUPS == 3] == 0).all()
    assert free.coef[GROUPS == 1].all()


@pytest.mark.parametrize("name", ["Quadratic", "Multinomial"])
def test_rows_live_and_die_in_all_outputs(name):
    X, y = data(name, 2)
    y = np.stack([y, 0.5 * y**2, -y], axis=1) if name == "Quadratic" else y
    penalty = L21(0.5 if name == "Quadratic" else 0.15)
    fit = solve(X, y, DATAFITS[name], penalty, tol=1e-10)
    assert fit.converged
    assert fit.coef.shape == (8, 3)
    rows = fit.coef.any(axis=1)
    assert 0 < rows.sum() < 8
    assert (fit.coef[rows] != 0).all()

    def smooth(w, eps):
        return penalty.alpha * (np.sqrt((w**2).sum(1) + eps**2) - eps).sum()

    best = split_minimum(smooth, X, y, DATAFITS[name], width=3)
    ours = objective(DATAFITS[name], penalty, X, y, fit.coef, fit.intercept)
    assert best - 1e-5 <= ours <= best + 1e-9


@pytest.mark.parametrize("penalty", [MCP(0.05, 3.0), SCAD(0.05, 3.7)])
@pytest.mark.parametrize("name", ["Logistic", "Poisson", "Huber", "Cox"])
def test_concave_penalties_end_where_they_are_stationary(name, penalty):
    X, y = data(name, 4, n=80)
    fit = solve(X, y, DATAFITS[name], penalty, tol=1e-8)
    assert fit.converged
    gradient = X.T @ DATAFITS[name].gradient(y, X @ fit.coef + fit.intercept)
    assert penalty.subdifferential_distance(fit.coef, gradient).max() <= 1e-8
    zero = objective(DATAFITS[name], penalty, X, y, 0 * fit.coef, DATAFITS[name].constant(y))
    assert objective(DATAFITS[name], penalty, X, y, fit.coef, fit.intercept) < zero


def test_least_squares_agrees_with_coordinate_descent():
    X, y = data("Quadratic")
    for penalty in (L1(0.1), ElasticNet(0.1, 0.3), MCP(0.1, 3.0)):
        ours, theirs = solve(X, y, Quadratic(), penalty, tol=1e-12), coordinate_descent.solve(X, y, penalty, tol=1e-12)
        np.testing.assert_allclose(ours.coef, theirs.coef, atol=1e-7)
        assert ours.intercept == pytest.approx(theirs.intercept, abs=1e-7)


def test_without_an_intercept():
    X, y = data("Logistic")
    fit = solve(X, y, Logistic(), L1(0.02), fit_intercept=False, tol=1e-12)
    u = Logistic().gradient(y, X @ fit.coef)
    assert fit.intercept == 0
    assert (abs(X.T @ u) <= 0.02 + 1e-9).all()
    assert fit.converged


def test_no_penalty_is_maximum_likelihood():
    X, y = data("Poisson")
    fit = solve(X, y, Poisson(), L1(0.0), tol=1e-10)
    assert fit.converged
    np.testing.assert_allclose(X.T @ Poisson().gradient(y, X @ fit.coef + fit.intercept), 0, atol=1e-8)


def test_whole_weights_are_repeats():
    X, y = data("Logistic")
    counts = np.arange(len(X)) % 3
    repeated = np.repeat(np.arange(len(X)), counts)
    weighted = solve(X, y, Logistic(), L1(0.03), sample_weight=counts, tol=1e-12)
    plain = solve(X[repeated], y[repeated], Logistic(), L1(0.03), tol=1e-12)
    np.testing.assert_allclose(weighted.coef, plain.coef, atol=1e-8)


@pytest.mark.parametrize("name", ["Logistic", "Multinomial", "Cox", "SquareRoot"])
def test_a_path_is_its_fits(name):
    X, y = data(name, 6, n=30, p=12)
    datafit = DATAFITS[name]
    whole = path(X, y, datafit, L1(1.0), n_alphas=8, eps=0.05, tol=1e-10)
    assert whole.converged.all()
    assert (np.diff(whole.alphas) < 0).all()
    assert not whole.coefs[..., 0].any()
    assert whole.coefs[..., -1].any()
    alone = solve(X, y, datafit, L1(whole.alphas[5]), tol=1e-10)
    np.testing.assert_allclose(whole.coefs[..., 5], alone.coef, atol=1e-5)
    given_alphas = path(X, y, datafit, L1(1.0), alphas=whole.alphas[[5, 0]], tol=1e-10)
    np.testing.assert_allclose(given_alphas.coefs[..., 1], alone.coef, atol=1e-5)
    first = next(iterate(X, y, datafit, L1(1.0), n_alphas=3))
    assert first[0] == pytest.approx(alpha_max(X, y, datafit, L1(1.0)))


def test_a_start_is_used():
    X, y = data("Logistic", n=60, p=40)
    fit = solve(X, y, Logistic(), L1(0.01), tol=1e-10)
    again = solve(X, y, Logistic(), L1(0.01), tol=1e-8, start=(fit.coef, fit.intercept))
    assert again.n_iter == 0 < fit.n_iter


def test_separable_classes_still_converge():
    X = np.linspace(-1, 1, 40)[:, None]
    y = np.sign(X[:, 0])
    fit = solve(X, y, Logistic(), L1(1e-5), tol=1e-9)
    assert fit.converged
    assert fit.coef[0] > 10


def test_group_descent_is_the_minimum_of_its_quadratic():
    rng = np.random.default_rng(0)
    A, c = rng.normal(size=(30, 8)), rng.normal(size=8)
    gram = A.T @ A / 30
    for penalty in (GroupL2(0.3, GROUPS), SparseGroup(0.4, GROUPS, 0.5), GroupL2(0.2, GROUPS, positive=True)):
        w = np.zeros(8)
        gradient = -c.copy()
        assert group_descent(gram, w, gradient, penalty, tol=1e-12) <= 1e-12
        np.testing.assert_allclose(gradient, gram @ w - c, atol=1e-12)
        step = 0.1
        np.testing.assert_allclose(penalty.prox(w - step * gradient, step), w, atol=1e-10)  # a fixed point
    with pytest.raises(InputError, match="gram: got shape"):
        group_descent(gram[:2], w, gradient, penalty)


X0, Y0 = data("Logistic")
BAD = [
    (lambda: solve(X0, Y0[1:], Logistic(), L1(0.1)), r"y: got shape \(39,\), want 40 rows"),
    (lambda: solve(X0, 2 * Y0, Logistic(), L1(0.1)), "y: got the label"),
    (lambda: solve(X0, Y0, Logistic(), L1(0.1), tol=-1), "tol: got -1"),
    (lambda: solve(X0, Y0, Logistic(), L1(0.1), max_iter=0), "max_iter: got 0"),
    (lambda: solve(X0, Y0, Logistic(), L1(0.1, weights=[1.0, 2.0])), r"weights: got shape \(2,\), want \(8,\)"),
    (lambda: solve(X0, Y0, Logistic(), GroupL2(0.1, [0, 0, 1])), "x: got 8 on the last axis, want 3"),
    (lambda: solve(X0, Y0, Logistic(), GroupL2(0.1, 2, weights=[1.0, 2.0])), r"weights: got shape \(2,\), want \(4,\)"),
    (lambda: solve(X0, Y0, Logistic(), Nuclear(0.1)), "proximal Newton: got Nuclear, which lacks"),
    (lambda: solve(X0, Y0, Logistic(), 3), "proximal Newton: got int, which lacks 'alpha'"),
    (lambda: solve(X0, Y0, L1(1.0), L1(1.0)), "proximal Newton: got L1, which lacks 'gradient'"),
    (lambda: solve(X0, Y0, Logistic(), L1(0.1), sample_weight=[1.0]), "weights: got shape"),
    (lambda: solve(X0, np.eye(8)[np.arange(40) % 8], Multinomial(), GroupL2(0.1, 2)), "penalty: got GroupL2 for 8 out"),
    (lambda: path(X0, Y0, Logistic(), L0(1.0)), "alpha"),
    (lambda: path(X0, Y0, Logistic(), L1(1.0), n_alphas=0), "n_alphas: got 0"),
    (lambda: path(X0, Y0, Logistic(), L1(1.0), eps=2.0), "eps: got 2.0"),
    (lambda: path(X0, Y0, Logistic(), ElasticNet(1.0, 0.0)), "penalty: no alpha makes all"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()

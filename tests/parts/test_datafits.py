"""Laws of the datafits: derivatives, conjugates by brute force, and duality gaps that close at the optimum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from ellzero import registry
from ellzero.errors import InputError
from ellzero.parts import datafits as D

LOSSES = {  # the formula of one sample, in plain numbers
    "Quadratic": (D.Quadratic(), lambda y, z: 0.5 * (y - z) ** 2),
    "Logistic": (D.Logistic(), lambda y, z: np.logaddexp(0, -y * z)),
    "Poisson": (D.Poisson(), lambda y, z: np.exp(z) - y * z),
    "Huber": (D.Huber(0.8), lambda y, z: np.where(abs(y - z) < 0.8, (y - z) ** 2 / 2, 0.8 * (abs(y - z) - 0.4))),
    "SquaredHinge": (D.SquaredHinge(), lambda y, z: np.maximum(1 - y * z, 0) ** 2),
    "Absolute": (D.Absolute(), lambda y, z: abs(y - z)),
}
ALL = {**{name: fit for name, (fit, _) in LOSSES.items()}, "SquareRoot": D.SquareRoot()}
SMOOTH = ["Quadratic", "Logistic", "Poisson", "Huber", "SquaredHinge"]
BOUNDED = ["Quadratic", "Logistic", "Huber", "SquaredHinge"]
seeds = st.integers(0, 10**6)


def draw(name, seed, n=7):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) * 2
    if name in ("Logistic", "SquaredHinge"):
        y = np.where(np.arange(n) % 3 == 0, -1.0, 1.0)
    if name == "Poisson":
        y = rng.poisson(2.0, n).astype(float) + (np.arange(n) == 0)
    return y, rng.normal(size=n) * 1.5, rng.uniform(0.1, 3, n)


def reference(name, y, z, s):
    if name == "SquareRoot":
        return math.sqrt(float((s * (y - z) ** 2).sum()))
    return float((s * LOSSES[name][1](y, z)).sum())


def test_every_registered_datafit_is_tested():
    own = [entry for entry in registry.entries("datafit") if entry.module == D.__name__]  # the rest: .._coupled
    assert {entry.name for entry in own} == set(ALL)
    for entry in own:
        assert entry.example().value(np.ones(3), np.zeros(3)) > 0


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20)
@given(seed=seeds)
def test_the_value_is_the_weighted_mean_loss(name, seed):
    y, z, v = draw(name, seed)
    assert ALL[name].value(y, z) == pytest.approx(reference(name, y, z, 1 / 7), rel=1e-12)
    assert ALL[name].value(y, z, v) == pytest.approx(reference(name, y, z, v / v.sum()), rel=1e-12)
    assert ALL[name].value(y, z, np.full(7, 5.0)) == pytest.approx(ALL[name].value(y, z))
    repeated = np.repeat([1, 2, 3], [3, 2, 2])
    twice = ALL[name].value(np.repeat(y, repeated), np.repeat(z, repeated))
    assert ALL[name].value(y, z, repeated) == pytest.approx(twice)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15)
@given(seed=seeds, weighted=st.booleans())
def test_gradients_and_curvatures(name, seed, weighted):
    y, z, v = draw(name, seed)
    v = v if weighted else None
    fit, h = ALL[name], 1e-6
    gradient = fit.gradient(y, z, v)
    for i in range(7):
        step = h * (np.arange(7) == i)
        s = 1 / 7 if v is None else v / v.sum()
        slope = (reference(name, y, z + step, s) - reference(name, y, z - step, s)) / (2 * h)
        assert gradient[i] == pytest.approx(slope, abs=1e-5)
        if name in SMOOTH and not (name == "Huber" and abs(abs(y[i] - z[i]) - 0.8) < 1e-5):
            bend = (fit.gradient(y, z + step, v)[i] - fit.gradient(y, z - step, v)[i]) / (2 * h)
            assert fit.hessian_diagonal(y, z, v)[i] == pytest.approx(bend, rel=1e-4, abs=1e-5)
    tensor = torch.tensor(z, requires_grad=True)
    fit.value(torch.tensor(y), tensor, v).backward()
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=30)
@given(seed=seeds, weighted=st.booleans())
def test_lipschitz_bounds_the_gradient(name, seed, weighted):
    y, z, v = draw(name, seed)
    v, other = (v if weighted else None), draw(name, seed + 1)[1]
    fit = ALL[name]
    change = np.linalg.norm(fit.gradient(y, z, v) - fit.gradient(y, other, v))
    assert change <= fit.lipschitz(y, v) * np.linalg.norm(z - other) + 1e-12
    assert (fit.hessian_diagonal(y, np.zeros(7), v) <= fit.lipschitz(y, v) + 1e-12).all()


def test_lipschitz_is_tight():
    for name, at in [("Quadratic", 0.0), ("Logistic", 0.0), ("Huber", 0.0), ("SquaredHinge", 0.0)]:
        y = np.array([1.0])
        z = y if name == "Huber" else np.array([at])
        assert ALL[name].hessian_diagonal(y, z)[0] == pytest.approx(ALL[name].lipschitz(y))


def test_what_does_not_exist_is_absent():
    for name, lacking in [("Absolute", "hessian_diagonal"), ("SquareRoot", "lipschitz"), ("Poisson", "lipschitz")]:
        assert not hasattr(ALL[name], lacking)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25)
@given(seed=seeds, share=st.floats(0.02, 0.98))
def test_the_dual_is_the_conjugate(name, seed, share):
    # One sample: dual(y, theta) = -sup_z (-theta z - l(y, z)), here by bounded search.
    y, z, _ = draw(name, seed, 1)
    loss = LOSSES[name][1]
    theta = -ALL[name].gradient(y, z) * share  # a scaled gradient lies in the domain, where the sup is attained
    found = minimize_scalar(
        lambda t: float(loss(y[0], t) + theta[0] * t), bounds=(-60, 60), method="bounded", options={"xatol": 1e-10}
    )
    assert ALL[name].dual(y, theta) == pytest.approx(found.fun, abs=2e-6)


@pytest.mark.parametrize(
    ("name", "y", "theta"),
    [("Logistic", 1, 1.1), ("Logistic", 1, -0.1), ("Poisson", 1, 1.1), ("Huber", 0, 0.81), ("Huber", 0, -0.81),
     ("SquaredHinge", -1, 0.1), ("Absolute", 3, 1.1), ("SquareRoot", 3, -1.1)],
)  # fmt: skip
def test_outside_its_domain_the_dual_is_minus_infinity(name, y, theta):
    assert ALL[name].dual(np.array([float(y)]), np.array([theta])) == -math.inf
    assert ALL[name].dual(torch.tensor([float(y)]), torch.tensor([theta])) == -math.inf


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(seed=seeds, weighted=st.booleans())
def test_fenchel_young(name, seed, weighted):
    """f(z) - dual(theta) >= <-theta, z> for every pair, with equality at theta = -gradient(z)."""
    y, z, v = draw(name, seed)
    v, other = (v if weighted else None), draw(name, seed + 1)[1]
    fit = ALL[name]
    theta = -fit.gradient(y, z, v)
    assert fit.value(y, z, v) - fit.dual(y, theta, v) == pytest.approx(-theta @ z, abs=1e-9)
    assert fit.value(y, other, v) - fit.dual(y, theta, v) >= -theta @ other - 1e-9


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_duality_gap_closes_at_the_optimum(name, weighted):
    # min f(X w) + alpha |w|_1 in split form w = p - q, by a general solver; the certificate is a scaled gradient.
    y, _, v = draw(name, 3, 12)
    v, fit, alpha = (v if weighted else None), ALL[name], 0.05
    X = np.random.default_rng(4).normal(size=(12, 2))
    if name == "Absolute":
        X, alpha = X[:, :1], 0.05

    def primal(w):
        return fit.value(y, X @ w, v) + alpha * np.abs(w).sum()

    def gap(w):
        theta = -fit.gradient(y, X @ w, v)
        scale = max(1.0, np.abs(X.T @ theta).max() / alpha)
        return primal(w) - fit.dual(y, theta / scale, v)

    m = X.shape[1]
    for trial in range(20):
        assert gap(np.random.default_rng(trial).normal(size=m)) >= -1e-12
    if name == "Absolute":  # piecewise linear: its optimum is a kink, where the gradient alone is no certificate
        return
    found = minimize(
        lambda u: fit.value(y, X @ (u[:m] - u[m:]), v) + alpha * u.sum(), np.full(2 * m, 0.1),
        bounds=[(0, None)] * 2 * m, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    w = found.x[:m] - found.x[m:]
    assert -1e-12 <= gap(w) <= 2e-4
    assert gap(w + 0.3) > 1e-3


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15)
@given(seed=seeds, weighted=st.booleans())
def test_the_constant_is_the_best_one(name, seed, weighted):
    y, _, v = draw(name, seed, 9)
    v, fit = (v if weighted else None), ALL[name]
    best = fit.constant(y, v)
    value = fit.value(y, np.full(9, best), v)
    for move in (1e-3, -1e-3, 0.3, -0.3):
        assert value <= fit.value(y, np.full(9, best + move), v) + 1e-12
    assert fit.constant(torch.tensor(y), v) == best


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_and_torch_agree_and_keep_the_dtype(name, dtype):
    y, z, v = draw(name, 11)
    y, z = y.astype(dtype), z.astype(dtype)
    theta = -ALL[name].gradient(y, z, v) * dtype_safe(0.5, dtype)
    for verb, second in [("value", z), ("gradient", z), ("hessian_diagonal", z), ("dual", theta)]:
        if hasattr(ALL[name], verb):
            ours = getattr(ALL[name], verb)(y, second, v)
            theirs = getattr(ALL[name], verb)(torch.from_numpy(y), torch.from_numpy(second), v)
            assert ours.dtype == np.dtype(dtype)
            assert theirs.dtype == getattr(torch, dtype)
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6 if dtype == "float32" else 1e-13, atol=1e-7)


def dtype_safe(value, dtype):
    return np.dtype(dtype).type(value)


@pytest.mark.parametrize("name", ["Logistic", "SquaredHinge", "Huber", "Quadratic"])
def test_large_margins_do_not_overflow(name):
    y, z = np.array([1.0, -1.0, 1.0]), np.array([800.0, 800.0, -800.0])
    with np.errstate(all="raise", under="ignore"):
        for verb in ("value", "gradient", "hessian_diagonal"):
            assert np.isfinite(getattr(ALL[name], verb)(y, z)).all()
    assert ALL["Logistic"].value(np.ones(1), np.array([-800.0])) == 800


def test_samples_of_weight_zero_do_not_count():
    y, z, _ = draw("Quadratic", 2)
    v = np.array([1.0, 1, 1, 0, 0, 1, 2])
    for fit in (D.Quadratic(), D.SquareRoot(), D.Huber(), D.Absolute()):
        kept = v > 0
        assert fit.value(y, z, v) == pytest.approx(fit.value(y[kept], z[kept], v[kept]))
        theta = -fit.gradient(y, z, v)
        assert (theta[~kept] == 0).all()
        assert fit.dual(y, theta, v) == pytest.approx(fit.dual(y[kept], theta[kept], v[kept]))
        assert fit.dual(y, theta + 1.0 * ~kept, v) == -math.inf
        assert fit.constant(y, v) == pytest.approx(fit.constant(y[kept], v[kept]))


def test_several_targets_share_the_sample_weights():
    rng = np.random.default_rng(0)
    Y, Z, v = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.uniform(1, 2, 5)
    by_column = [D.Quadratic().value(Y[:, j], Z[:, j], v) for j in range(3)]
    total = D.Quadratic().value(Y, Z, v)
    assert total == pytest.approx(sum(by_column))
    assert D.Quadratic().value(Y, Z) == pytest.approx(((Y - Z) ** 2).sum() / 10)
    assert D.Quadratic().gradient(Y, Z, v).shape == (5, 3)
    assert D.SquareRoot().value(Y, Z) == pytest.approx(np.linalg.norm(Y - Z) / math.sqrt(5))


def test_a_perfect_square_root_fit():
    y = np.ones(3)
    assert D.SquareRoot().value(y, y) == 0
    assert (D.SquareRoot().gradient(y, y) == 0).all()
    assert D.SquareRoot().dual(y, np.zeros(3)) == 0
    assert D.Huber().constant(np.full(3, 2.0)) == 2


ONES = np.ones(3)
BAD = [
    (lambda: D.Quadratic().value(ONES, np.ones(4)), r"prediction: got shape \(4,\), want \(3,\)"),
    (lambda: D.Quadratic().value([1.0], np.ones(1)), "y: got list"),
    (lambda: D.Quadratic().value(np.array([1, 2]), np.ones(2)), "y: got dtype int64"),
    (lambda: D.Quadratic().value(np.array([1.0, math.nan]), np.ones(2)), "y: 1 entry not finite"),
    (lambda: D.Quadratic().value(ONES, np.ones(3, int)), "prediction: got dtype int64"),
    (lambda: D.Quadratic().value(np.ones(0), np.ones(0)), "y: got shape"),
    (lambda: D.Quadratic().value(ONES, ONES, [1.0, 2.0]), "weights: got shape"),
    (lambda: D.Quadratic().value(ONES, ONES, [1.0, -2.0, 1.0]), "weights: got -2.0"),
    (lambda: D.Quadratic().gradient(ONES, ONES, [0.0, 0.0, 0.0]), "weights: got a sum of 0.0"),
    (lambda: D.Quadratic().lipschitz(ONES, [1.0, math.inf, 0.0]), "weights: got a sum of inf"),
    (lambda: D.Logistic().value(np.array([0.0, 1.0]), np.ones(2)), "y: got the label 0.0, want -1 and"),
    (lambda: D.SquaredHinge().dual(np.array([2.0, 1.0]), np.ones(2)), "y: got the label 2.0"),
    (lambda: D.Logistic().constant(ONES), "y: got only the label 1"),
    (lambda: D.SquaredHinge().constant(-ONES), "y: got only the label -1"),
    (lambda: D.Poisson().value(-ONES, ONES), "y: got -1.0, want counts"),
    (lambda: D.Poisson().constant(np.zeros(3)), "y: got only zeros"),
    (lambda: D.Huber(0.0), "delta: got 0.0"),
    (lambda: D.Huber(math.nan), "delta: got NaN"),
    (lambda: D.Quadratic().constant(np.ones((2, 2))), "y: got shape"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()

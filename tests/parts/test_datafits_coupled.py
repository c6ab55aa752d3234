"""Laws of the datafits that couple samples or outputs: Multinomial, Cox, and the smoothed twins."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from ellzero import registry
from ellzero.errors import InputError
from ellzero.parts.datafits import Absolute, SquareRoot
from ellzero.parts.datafits_coupled import Multinomial
from ellzero.parts.datafits_smoothed import SmoothedAbsolute, SmoothedSquareRoot
from ellzero.parts.datafits_survival import Cox

N, K = 9, 3
ALL = {
    "Multinomial": Multinomial(), "Cox": Cox(), "CoxEfron": Cox("efron"), "SmoothedAbsolute": SmoothedAbsolute(0.7),
    "SmoothedSquareRoot": SmoothedSquareRoot(0.4), "SmoothedSquareRootInside": SmoothedSquareRoot(9.0),
}  # fmt: skip
seeds = st.integers(0, 10**6)


def test_every_registered_datafit_is_tested():
    others = ("ellzero.parts.datafits", "ellzero.parts.datafits_heavy")  # they have tests of their own
    elsewhere = {entry.name for entry in registry.entries("datafit") if entry.module not in others}
    assert elsewhere == {type(fit).__name__ for fit in ALL.values()}


def draw(name, seed):
    rng = np.random.default_rng(seed)
    if name == "Multinomial":
        classes = rng.permutation(np.arange(N) % K)
        return np.eye(K)[classes], rng.normal(size=(N, K)), rng.uniform(0.5, 2, N)
    if name.startswith("Cox"):
        event = (rng.uniform(size=N) < 0.7) * 1.0
        event[0] = 1
        return np.stack([rng.integers(1, 5, N) * 1.0, event], axis=1), rng.normal(size=N), rng.uniform(0.5, 2, N)
    return 2 * rng.normal(size=N), rng.normal(size=N), rng.uniform(0.5, 2, N)


def partial_likelihood(y, z, v, ties):
    """Straight from the definition, one death at a time."""
    total = 0.0
    for time in np.unique(y[y[:, 1] == 1, 0]):
        risk = y[:, 0] >= time
        dead = (y[:, 0] == time) & (y[:, 1] == 1)
        total -= (v[dead] * z[dead]).sum()
        for l in range(dead.sum()):
            late = l / dead.sum() if ties == "efron" else 0.0
            inside = (v * np.exp(z))[risk].sum() - late * (v * np.exp(z))[dead].sum()
            total += v[dead].mean() * math.log(inside)
    return total / v.sum()


@settings(max_examples=30)
@given(seed=seeds, weighted=st.booleans(), ties=st.sampled_from(["breslow", "efron"]))
def test_cox_is_its_definition(seed, weighted, ties):
    y, z, v = draw("Cox", seed)
    v = v if weighted else None
    expected = partial_likelihood(y, z, np.ones(N) if v is None else v, ties)
    assert Cox(ties).value(y, z, v) == pytest.approx(expected, abs=1e-12)
    assert Cox(ties).value(y, z + 700, v) == pytest.approx(expected, abs=1e-9)
    shuffled = np.random.default_rng(seed).permutation(N)
    w = None if v is None else v[shuffled]
    assert Cox(ties).value(y[shuffled], z[shuffled], w) == pytest.approx(expected)


def test_whole_weights_are_repeats_under_breslow():
    y, z, _ = draw("Cox", 1)
    counts = np.arange(N) % 3
    counts[0] = 2
    repeated = np.repeat(np.arange(N), counts)
    for verb in ("value", "dual_at"):
        extra = (0.7,) if verb == "dual_at" else ()
        by_weight = getattr(Cox(), verb)(y, z, *extra, counts.astype(float))
        assert by_weight == pytest.approx(getattr(Cox(), verb)(y[repeated], z[repeated], *extra))


def test_the_multinomial_of_two_classes_is_the_logistic():
    from ellzero.parts.datafits import Logistic

    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=N), np.where(np.arange(N) % 2, 1.0, -1.0)
    y = np.stack([labels < 0, labels > 0], axis=1) * 1.0
    both = np.stack([0 * z, z], axis=1)
    assert Multinomial().value(y, both) == pytest.approx(Logistic().value(labels, z))
    np.testing.assert_allclose(Multinomial().gradient(y, both)[:, 1], Logistic().gradient(labels, z))
    assert np.diff(Multinomial().constant(y))[0] == pytest.approx(Logistic().constant(labels))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10)
@given(seed=seeds, weighted=st.booleans())
def test_gradient_and_curvature_are_derivatives(name, seed, weighted):
    y, z, v = draw(name, seed)
    v, fit, h = (v if weighted else None), ALL[name], 1e-6
    gradient = fit.gradient(y, z, v)
    flat = z.size
    hessian = np.zeros((flat, flat))
    for i in range(flat):
        step = (h * (np.arange(flat) == i)).reshape(z.shape)
        slope = (fit.value(y, z + step, v) - fit.value(y, z - step, v)) / (2 * h)
        assert gradient.ravel()[i] == pytest.approx(slope, abs=1e-6)
        hessian[i] = ((fit.gradient(y, z + step, v) - fit.gradient(y, z - step, v)) / (2 * h)).ravel()
    if name != "SmoothedAbsolute":
        # One design column for each prediction: the Hessian of f(X w) is then the Hessian by z itself.
        outputs = np.tile(np.arange(K), N) if z.ndim == 2 else np.zeros(N, int)
        columns = np.repeat(np.eye(N), K, axis=1) if z.ndim == 2 else np.eye(N)
        d, rest = fit.curvature(y, z, v)
        for form in (np.asarray, sparse.csc_array):
            r = rest(form(columns), outputs)
            r = r.toarray() if sparse.issparse(r) else r
            np.testing.assert_allclose(np.diag(d.ravel()) - r.T @ r, hessian, atol=1e-6)
    elif not (abs(abs(y - z) - 0.7) < 1e-4).any():
        np.testing.assert_allclose(np.diag(fit.hessian_diagonal(y, z, v)), hessian, atol=1e-6)
    if hasattr(fit, "lipschitz"):
        assert np.linalg.eigvalsh(hessian)[-1] <= fit.lipschitz(y, v) + 1e-6
    tensor = torch.tensor(z, requires_grad=True)
    fit.value(torch.tensor(y), tensor, v).backward()
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-12)
    np.testing.assert_allclose(fit.gradient(torch.tensor(y), torch.tensor(z), v).numpy(), gradient, atol=1e-12)


def test_the_square_root_of_several_targets_is_one_norm():
    rng = np.random.default_rng(2)
    y, z, h = rng.normal(size=(N, K)), rng.normal(size=(N, K)), 1e-6
    fit = SmoothedSquareRoot(0.1)
    d, rest = fit.curvature(y, z)
    r = rest(np.repeat(np.eye(N), K, axis=1), np.tile(np.arange(K), N))
    steps = [h * (np.arange(N * K) == i).reshape(N, K) for i in range(N * K)]
    hessian = [((fit.gradient(y, z + e) - fit.gradient(y, z - e)) / (2 * h)).ravel() for e in steps]
    np.testing.assert_allclose(np.diag(d.ravel()) - r.T @ r, hessian, atol=1e-7)


@pytest.mark.parametrize("name", ["Multinomial", "SmoothedAbsolute", "SmoothedSquareRoot", "SmoothedSquareRootInside"])
@settings(max_examples=25)
@given(seed=seeds, weighted=st.booleans(), factor=st.floats(0, 1))
def test_fenchel_young(name, seed, weighted, factor):
    y, z, v = draw(name, seed)
    v, other, fit = (v if weighted else None), draw(name, seed + 1)[1], ALL[name]
    theta = -fit.gradient(y, z, v)
    assert fit.value(y, z, v) - fit.dual(y, theta, v) == pytest.approx(-(theta * z).sum(), abs=1e-9)
    theta = factor * theta
    assert fit.value(y, other, v) - fit.dual(y, theta, v) >= -(theta * other).sum() - 1e-9
    as_torch = fit.dual(torch.tensor(y), torch.tensor(theta), v)
    assert float(as_torch) == pytest.approx(fit.dual(y, theta, v))


@settings(max_examples=25)
@given(seed=seeds, weighted=st.booleans(), factor=st.floats(0, 1), ties=st.sampled_from(["breslow", "efron"]))
def test_the_chord_of_cox_is_below_its_dual(seed, weighted, factor, ties):
    """Weak duality: f(x) + <theta, x> is never below the bound, and meets it at x = z with factor 1."""
    y, z, v = draw("Cox", seed)
    v, other, fit = (v if weighted else None), draw("Cox", seed + 1)[1], Cox(ties)
    theta = -factor * fit.gradient(y, z, v)
    bound = fit.dual_at(y, z, factor, v)
    for x in (other, 5 * other, z):
        assert fit.value(y, x, v) + theta @ x >= bound - 1e-9
    assert fit.value(y, z, v) - fit.gradient(y, z, v) @ z == pytest.approx(fit.dual_at(y, z, 1.0, v))
    assert float(fit.dual_at(torch.tensor(y), torch.tensor(z), factor, v)) == pytest.approx(bound)
    best = minimize(lambda x: fit.value(y, x, v), 0 * z, jac=lambda x: fit.gradient(y, x, v)).fun
    assert fit.dual_at(y, z, 0.0, v) <= best + 1e-9


@pytest.mark.parametrize(("sharp", "mu"), [(Absolute(), 0.3), (SquareRoot(), 0.3), (SquareRoot(), 5.0)])
@settings(max_examples=15)
@given(seed=seeds)
def test_smoothed_is_near_and_feasible_for_the_sharp_one(sharp, mu, seed):
    y, z, v = draw("Absolute", seed)
    soft = sharp.smoothed(mu)
    assert sharp.value(y, z, v) - mu / 2 - 1e-12 <= soft.value(y, z, v) <= sharp.value(y, z, v) + 1e-12
    theta = -soft.gradient(y, z, v)
    gap = sharp.value(y, z, v) - sharp.dual(y, theta, v) + theta @ z
    assert -1e-12 <= gap <= mu / 2 + 1e-12


@pytest.mark.parametrize("name", ["Multinomial"])
def test_the_constant_is_the_best_one(name):
    y, _, v = draw(name, 3)
    best = Multinomial().constant(y, v)
    assert best.sum() == pytest.approx(0)
    at = np.broadcast_to(best, (N, K)).copy()
    np.testing.assert_allclose(Multinomial().gradient(y, at, v).sum(0), 0, atol=1e-14)
    assert Cox().constant(draw("Cox", 0)[0]) == 0


def test_large_predictions_do_not_overflow():
    y, z, _ = draw("Multinomial", 0)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(Multinomial().value(y, 1000 * z))
        assert np.isfinite(Multinomial().gradient(y, 1000 * z)).all()
    y, z, _ = draw("Cox", 0)
    assert np.isfinite(Cox("efron").gradient(y, 100 * z)).all()


TIMES = np.array([[1.0, 1.0], [2.0, 0.0]])
BAD = [
    (lambda: Multinomial().value(np.ones((2, 2)), np.ones((2, 2))), "y: got 2.0"),
    (lambda: Multinomial().value(np.array([[2.0, -1.0]]), np.ones((1, 2))), "y: got -1.0"),
    (lambda: Multinomial().value(np.ones(2), np.ones(2)), "y: got shape"),
    (lambda: Multinomial().constant(np.array([[1.0, 0.0]])), "y: got class 1 without samples"),
    (lambda: Multinomial().gradient(np.eye(2), np.ones((2, 3))), "prediction: got shape"),
    (lambda: Cox("exact"), "ties: got 'exact'"),
    (lambda: Cox().value(np.ones(3), np.ones(3)), "y: got shape"),
    (lambda: Cox().value(2 * TIMES, np.ones(2)), "y: got the event 2.0"),
    (lambda: Cox().value(0 * TIMES, np.ones(2)), "y: got no event"),
    (lambda: Cox().value(TIMES, np.ones(3)), r"prediction: got shape \(3,\), want \(2,\)"),
    (lambda: Cox().value(TIMES, np.ones(2), [0.0, 1.0]), "weights: got no finite weight above 0 on an event"),
    (lambda: Cox().value(TIMES, np.ones(2), [1.0]), "weights: got shape"),
    (lambda: Absolute().smoothed(0.0), "mu: got 0.0"),
    (lambda: SquareRoot().smoothed(math.inf), "mu: got inf"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()

"""The q-Gaussian loss: derivatives, its limits, the bound of its curvature, the best constant."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ellzero.errors import InputError
from ellzero.parts.datafits import Quadratic
from ellzero.parts.datafits_heavy import QGaussian

QS = [1, 1.3, 2.0, 2.8]
seeds = st.integers(0, 10**6)


def draw(seed, n=9):
    rng = np.random.default_rng(seed)
    return rng.standard_t(1.5, n), rng.normal(size=n), rng.uniform(0.1, 3, n)


@pytest.mark.parametrize("q", QS[1:])
def test_it_is_the_likelihood_of_students_t(q):
    y, z, v = draw(0)
    fit, nu = QGaussian(q, 0.7), (3 - q) / (q - 1)
    logs = stats.t(nu, scale=0.7).logpdf(y - z) - stats.t(nu, scale=0.7).logpdf(0)
    assert fit.value(y, z) == pytest.approx(-logs.mean(), rel=1e-12)
    assert fit.value(y, z, v) == pytest.approx(-(v * logs).sum() / v.sum(), rel=1e-12)


def test_its_limit_is_gaussian():
    y, z, v = draw(1)
    assert QGaussian(1, 0.5).value(y, z, v) == pytest.approx(4 * Quadratic().value(y, z, v))
    assert QGaussian(1 + 1e-9, 0.5).value(y, z, v) == pytest.approx(QGaussian(1, 0.5).value(y, z, v), rel=1e-6)
    np.testing.assert_allclose(QGaussian(1, 0.5).gradient(y, z), 4 * Quadratic().gradient(y, z))


@pytest.mark.parametrize("q", QS)
@settings(max_examples=20)
@given(seed=seeds, weighted=st.booleans())
def test_gradients_and_the_bound_of_the_curvature(q, seed, weighted):
    y, z, v = draw(seed)
    v, fit, h = (v if weighted else None), QGaussian(q, 0.8), 1e-6
    gradient = fit.gradient(y, z, v)
    for i in range(len(y)):
        step = h * (np.arange(len(y)) == i)
        slope = (fit.value(y, z + step, v) - fit.value(y, z - step, v)) / (2 * h)
        assert gradient[i] == pytest.approx(slope, abs=1e-6)
    other = draw(seed + 1)[1]
    change = np.linalg.norm(gradient - fit.gradient(y, other, v))
    assert change <= fit.lipschitz(y, v) * np.linalg.norm(z - other) + 1e-12
    at = (fit.gradient(y, y + h, v) - fit.gradient(y, y - h, v)) / (2 * h)
    assert at.max() == pytest.approx(fit.lipschitz(y, v), rel=1e-6)
    tensor = torch.tensor(z, requires_grad=True)
    fit.value(torch.tensor(y), tensor, v).backward()
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, atol=1e-12)


@pytest.mark.parametrize("q", QS)
@settings(max_examples=10)
@given(seed=seeds, weighted=st.booleans())
def test_the_constant_is_the_best_one(q, seed, weighted):
    y, _, v = draw(seed, 40)
    v, fit = (v if weighted else None), QGaussian(q, 0.3)
    best = fit.value(y, np.full(40, fit.constant(y, v)), v)
    grid = [fit.value(y, np.full(40, c), v) for c in np.linspace(y.min(), y.max(), 400)]
    assert best <= min(grid) + 1e-9


def test_wild_targets_and_float32():
    y = np.array([0.0, 1e200, -3.0])
    assert np.isfinite(QGaussian(1.5).gradient(y / 1e60, np.zeros(3))).all()
    single = np.array([0.5, 2.0], dtype=np.float32)
    assert QGaussian(1.5).gradient(single, 0 * single).dtype == np.float32
    assert not hasattr(QGaussian(), "dual")
    assert not hasattr(QGaussian(), "hessian_diagonal")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QGaussian(0.9), "q: got 0.9, want a number at least 1"), (lambda: QGaussian(3.0), "q: got 3.0"),
        (lambda: QGaussian(1.5, 0.0), "scale: got 0.0"), (lambda: QGaussian("x"), "q: got 'x'"),
        (lambda: QGaussian().value(np.ones(3), np.ones(4)), "prediction: got shape"),
        (lambda: QGaussian().value(np.array([np.nan]), np.ones(1)), "y: 1 entry not finite"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()

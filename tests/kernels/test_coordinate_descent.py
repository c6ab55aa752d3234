"""The compiled loop of coordinate descent is its plain reference, and both find the minimum."""

import numpy as np
import pytest
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.kernels import coordinate_descent as module
from ellzero.kernels import live
from ellzero.kernels.coordinate_descent import coordinate_descent, reference
from ellzero.parts import penalties

PENALTIES = [
    penalties.L1(0.2), penalties.L1(0.2, positive=True), penalties.ElasticNet(0.3, 0.6), penalties.MCP(0.3, 2.5),
    penalties.SCAD(0.3, 3.0), penalties.L0(0.1), penalties.Lq(0.2, 0.5), penalties.LogSum(0.2, 0.5),
    penalties.CEL0(0.1, 1.0), penalties.Box(-0.2, 0.5),
]  # fmt: skip


def problem(size=12, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((20, size))
    gram = (a.T @ a / 20).astype(dtype)
    c = generator.standard_normal(size).astype(dtype)
    return gram, c, np.zeros(size, dtype), -c.copy()


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_is_plain(penalty, dtype):
    if not live:
        pytest.skip("no compiled module is live")
    gram, _, w, gradient = problem(dtype=dtype)
    v, slope = w.copy(), gradient.copy()
    weights = np.linspace(0.5, 2, len(w)).astype(dtype) if hasattr(penalty, "alpha") else None
    for sweeps in (1, 3):
        ours = coordinate_descent(gram, w, gradient, penalty, weights=weights, tol=0.0, max_sweeps=sweeps)
        plain = reference(gram, v, slope, penalty, weights, 0.0, sweeps)
        assert ours.sweeps == plain.sweeps
        tol = 1e-12 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(w, v, atol=tol)
        np.testing.assert_allclose(gradient, slope, atol=10 * tol)


@pytest.mark.parametrize("run", ["compiled", "plain"])
def test_it_finds_the_minimum(run, monkeypatch):
    if run == "plain":
        monkeypatch.setattr(module, "CHOICE", module.CHOICE._replace(module=None))
    gram, c, w, gradient = problem(6)
    done = coordinate_descent(gram, w, gradient, penalties.ElasticNet(0.3, 0.5), tol=1e-12)
    smooth = minimize(  # w = u - v with u, v >= 0 makes the penalty smooth
        lambda uv: _objective(gram, c, uv, 0.15, 0.15), np.zeros(12), bounds=[(0, None)] * 12, tol=1e-14
    )
    best = smooth.x[:6] - smooth.x[6:]
    np.testing.assert_allclose(w, best, atol=1e-5)
    np.testing.assert_allclose(gradient, gram @ w - c, atol=1e-10)
    assert done.change <= 1e-12


def _objective(gram, c, uv, a, b):
    w = uv[:6] - uv[6:]
    return w @ gram @ w / 2 - c @ w + a * uv.sum() + b * w @ w / 2


def test_weights_free_and_exclude():
    gram, c, w, gradient = problem(5)
    weights = np.array([0, np.inf, 1, 1, 1.0])
    coordinate_descent(gram, w, gradient, penalties.L1(50.0), weights=weights, tol=1e-12)
    assert w[1] == 0
    assert (w[2:] == 0).all()
    assert w[0] == pytest.approx(c[0] / gram[0, 0])


def test_only_the_upper_left_block_counts_and_zero_columns_stay_zero():
    gram, _, w, gradient = problem(8)
    gram[3], gram[:, 3], gradient[3] = 0, 0, 0
    big = np.full((11, 11), np.nan)
    big[:8, :8] = gram
    v, slope = w.copy(), gradient.copy()
    coordinate_descent(gram, w, gradient, penalties.L1(0.1), tol=1e-12)
    coordinate_descent(big, v, slope, penalties.L1(0.1), tol=1e-12)
    np.testing.assert_array_equal(w, v)
    assert w[3] == 0


def test_bad_input():
    gram, _, w, gradient = problem(4)
    with pytest.raises(InputError, match="gram: got shape"):
        coordinate_descent(gram[:3, :3], w, gradient, penalties.L1(1.0))
    with pytest.raises(InputError, match="dtypes"):
        coordinate_descent(gram.astype(np.float32), w, gradient, penalties.L1(1.0))
    with pytest.raises(InputError, match="weights"):
        coordinate_descent(gram, w, gradient, penalties.L1(1.0), weights=np.ones(3))
    with pytest.raises(InputError, match="tol"):
        coordinate_descent(gram, w, gradient, penalties.L1(1.0), tol=-1)
    if live:
        read_only = gradient.copy()
        read_only.setflags(write=False)
        with pytest.raises(TypeError, match="gradient: got"):
            coordinate_descent(gram, w, read_only, penalties.L1(1.0))
        with pytest.raises(TypeError, match="gram: got"):
            coordinate_descent(np.asfortranarray(gram + np.arange(4)), w, gradient, penalties.L1(1.0))

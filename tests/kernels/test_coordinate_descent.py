"""The compiled loops of coordinate descent are their plain references, and find the minimum."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.kernels import coordinate_descent as module
from ellzero.kernels import live
from ellzero.kernels.coordinate_descent import column_descent, column_reference, coordinate_descent, reference
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


def columns_problem(dtype=np.float64, centre=True, wide=False, seed=0):
    """(CSC matrix, columns that take part, curvature, centring, start, residual, the dense centred columns)."""
    generator = np.random.default_rng(seed)
    x = sparse.random_array((40, 20), density=0.2, rng=generator, format="csc").astype(dtype)
    if wide:
        x.indices, x.indptr = x.indices.astype(np.int64), x.indptr.astype(np.int64)
    index = np.array([3, 0, 7, 12, 19, 5])
    ones = generator.random(40).astype(dtype) + 1
    dense = x[:, index].toarray()
    sums = dense.T @ ones
    means = sums / (ones @ ones)
    if centre:
        dense = dense - np.outer(ones, means)
    y = generator.standard_normal(40).astype(dtype)
    y -= ones * (ones @ y) / (ones @ ones)
    curvature = (dense**2).sum(axis=0) / 40
    return x, index, curvature, (means, sums, ones) if centre else None, np.zeros(6, dtype), y, dense


@pytest.mark.skipif(not live, reason="no compiled module is live")
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(("dtype", "wide"), [(np.float32, False), (np.float64, False), (np.float64, True)])
def test_compiled_columns_are_plain(penalty, centre, dtype, wide):
    x, index, curvature, centring, w, residual, _ = columns_problem(dtype, centre, wide)
    v, rest = w.copy(), residual.copy()
    weights = np.linspace(0.5, 2, 6).astype(dtype) if hasattr(penalty, "alpha") else None
    tol = 1e-10 if dtype == np.float64 else 1e-4
    for sweeps in (1, 40):
        column_descent(x, index, curvature, centring, w, residual, penalty, weights=weights, tol=0.0,
                       max_sweeps=sweeps)  # fmt: skip
        column_reference(x, index, curvature, centring, v, rest, penalty, weights, 0.0, sweeps)
        np.testing.assert_allclose(w, v, atol=tol)
        np.testing.assert_allclose(residual, rest, atol=tol)


@pytest.mark.parametrize("centre", [True, False])
def test_columns_end_where_the_gram_matrix_does(centre):
    x, index, curvature, centring, w, y, dense = columns_problem(centre=centre)
    gram, slow, gradient = dense.T @ dense / 40, np.zeros(6), -dense.T @ y / 40
    penalty, weights = penalties.L1(0.01), np.array([0, 1, 2, 1, np.inf, 1.0])
    coordinate_descent(gram, slow, gradient, penalty, weights=weights, tol=1e-14)
    residual = y.copy()
    column_descent(x, index, curvature, centring, w, residual, penalty, weights=weights, tol=1e-14)
    np.testing.assert_allclose(w, slow, atol=1e-10)
    np.testing.assert_allclose(residual, y - dense @ w, atol=1e-10)


def test_bad_columns():
    x, index, curvature, centring, w, y, _ = columns_problem()
    with pytest.raises(InputError, match="index: got shape"):
        column_descent(x, index[:-1], curvature, centring, w, y, penalties.L1(1.0))
    with pytest.raises(InputError, match="index: got shape"):
        column_descent(x, index, curvature, centring, w, y[:-1], penalties.L1(1.0))
    if live:
        with pytest.raises(ValueError, match="index: want numbers of columns"):
            column_descent(x, index + 20, curvature, centring, w, y, penalties.L1(1.0))
        with pytest.raises(ValueError, match="centring"):
            column_descent(x, index, curvature, (*centring[:2], np.ones(3)), w, y, penalties.L1(1.0))


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

"""Products with columns are NumPy's, in either order, for some columns or all, and bitwise the same on any threads."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.kernels import columns as module
from ellzero.kernels import live, native
from ellzero.kernels.columns import combination, cross_products, moments, products

SHAPES = [(1, 1), (3, 5), (7, 2), (64, 33), (1000, 40), (2100, 30), (515, 70)]


def draw(n, p, dtype, seed=0):
    generator = np.random.default_rng(seed)
    return np.asfortranarray(generator.standard_normal((n, p)).astype(dtype)), generator


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compiled", [True, False])
def test_they_are_numpys(shape, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(module, "CHOICE", module.CHOICE._replace(module=None))
    x, generator = draw(*shape, dtype)
    n, p = shape
    u, w = generator.standard_normal(n).astype(dtype), generator.standard_normal(p).astype(dtype)
    index = generator.integers(0, p, 5)
    tol = {"rtol": 1e-10, "atol": 1e-10} if dtype == np.float64 else {"rtol": 1e-3, "atol": 1e-3}
    for given in (x, np.ascontiguousarray(x), np.repeat(x, 2, axis=0)[::2]):
        for ours, plain in [
            (products(given, u), x.T @ u), (products(given, u, index), x.T[index] @ u),
            (combination(given, index, w[index], u), u + x[:, index] @ w[index]),
            (cross_products(given, x[:, index]), x.T @ x[:, index]), (cross_products(given, given), x.T @ x),
        ]:  # fmt: skip
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, plain, **tol)
        sums, squares = moments(given)
        assert sums.dtype == squares.dtype == np.float64
        np.testing.assert_allclose(sums, x.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(squares, (x.astype(np.float64) ** 2).sum(axis=0), rtol=1e-5)


def test_no_columns_are_no_work():
    x, _ = draw(5, 3, np.float64)
    none = np.empty(0, dtype=np.int64)
    assert products(x, np.ones(5), none).shape == (0,)
    np.testing.assert_array_equal(combination(x, none, np.empty(0), np.ones(5)), np.ones(5))
    assert cross_products(x, x[:, :0]).shape == (3, 0)


def test_what_is_not_finite_shows():
    x, _ = draw(40, 6, np.float64)
    x[3, 2], x[7, 4] = np.nan, np.inf
    assert not np.isfinite(moments(x)[1][[2, 4]]).any()
    assert np.isfinite(moments(x)[1][[0, 1, 3, 5]]).all()


@pytest.mark.skipif(not live, reason="no compiled module is live")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    x, generator = draw(1500, 3000, dtype)
    u, w = generator.standard_normal(1500).astype(dtype), generator.standard_normal(3000).astype(dtype)
    rows, columns = np.ascontiguousarray(x), x.T
    index = np.arange(3000)

    def all_of_them(threads):
        dots, sums, mix = np.empty(3000, dtype), np.empty(3000, dtype), np.empty(1500, dtype)
        first, second, third, fourth = np.empty((4, 3000))
        cross = np.empty((200, 3000), dtype)
        native.column_products(columns, None, u, dots, threads)
        native.row_combination(rows, u, sums, threads)
        native.column_combination(columns, index, w, u, mix, threads)
        native.moments(columns, False, first, second, threads)
        native.moments(rows, True, third, fourth, threads)
        native.cross_products(columns[:200], columns, cross, threads)
        return [array.tobytes() for array in (dots, sums, mix, first, second, third, fourth, cross)]

    assert all_of_them(1) == all_of_them(2) == all_of_them(3)


def test_bad_input():
    x, _ = draw(5, 3, np.float64)
    with pytest.raises(InputError, match=r"u: got shape \(4,\), want \(5,\)"):
        products(x, np.ones(4))
    with pytest.raises(InputError, match="right: got"):
        cross_products(x, x.astype(np.float32))
    if live:
        with pytest.raises(ValueError, match="index: want numbers of columns"):
            products(x, np.ones(5), np.array([3]))
        with pytest.raises(TypeError, match="columns: got"):
            native.column_products(x, None, np.ones(5), np.ones(3), 1)
        with pytest.raises(ValueError, match="out: want one entry per column"):
            native.column_products(x.T, None, np.ones(5), np.ones(2), 1)
        with pytest.raises(ValueError, match="w: want one entry per column"):
            native.column_combination(x.T, np.array([0]), np.ones(2), np.ones(5), np.ones(5), 1)

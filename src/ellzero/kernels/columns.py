"""Products with the columns of a dense matrix: the compiled loops where they are live, else NumPy.

Lives here: X'u (of all columns or some), X w, sums and squares of columns, and blocks of X'X. Does not live here:
operators (``solvers.operators``), which centre, scale and choose. Where the compiled loops are live the results do
not depend on the thread count; a BLAS promises no such thing.
"""

from __future__ import annotations

import numpy as np

from ellzero.errors import InputError
from ellzero.kernels._dispatch import CHOICE

__all__ = ["combination", "cross_products", "moments", "products"]


def products(x: np.ndarray, u: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
    """``X_index' u`` for ``[n, p]`` in Fortran or C order (others are copied) and ``[n]``: ``[len(index)]``.

    In C order all columns are read, whatever the index: they lie side by side.
    """
    native = CHOICE.module
    if native is None:
        return u @ (x if index is None else x[:, index])
    u = _like("u", u, x, 0)
    if x.flags.f_contiguous or not x.flags.c_contiguous:
        out = np.empty(x.shape[1] if index is None else len(index), dtype=x.dtype)
        native.column_products(np.ascontiguousarray(x.T), _places(index), u, out, 0)
        return out
    out = np.empty(x.shape[1], dtype=x.dtype)
    native.row_combination(x, u, out, 0)
    return out if index is None else out[index]


def combination(x: np.ndarray, index: np.ndarray, w: np.ndarray, base: np.ndarray) -> np.ndarray:
    """``base + X_index w`` for ``[n, p]`` and ``[len(index)]``: ``[n]``; in place only for Fortran order."""
    native = CHOICE.module
    if native is None or not x.flags.f_contiguous:
        return base + x[:, index] @ w
    out = np.empty(x.shape[0], dtype=x.dtype)
    native.column_combination(
        x.T, _places(index), np.ascontiguousarray(w, dtype=x.dtype), _like("base", base, x, 0), out, 0
    )
    return out


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and sum of squares of each column, ``[p]`` in float64."""
    native = CHOICE.module
    if native is None or not (x.flags.f_contiguous or x.flags.c_contiguous):
        return x.sum(axis=0, dtype=np.float64), np.einsum("ij,ij->j", x, x, dtype=np.float64)
    sums, squares, by_rows = np.empty(x.shape[1]), np.empty(x.shape[1]), not x.flags.f_contiguous
    native.moments(x if by_rows else x.T, by_rows, sums, squares, 0)
    return sums, squares


def cross_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left' right`` for ``[n, a]`` and ``[n, b]`` in Fortran order (others are copied): ``[a, b]``."""
    if left.shape[0] != right.shape[0] or left.dtype != right.dtype:
        raise InputError(f"right: got {right.dtype} {right.shape} beside {left.dtype} {left.shape}, want as many rows")
    native = CHOICE.module
    if native is None:
        return left.T @ right
    out = np.empty((left.shape[1], right.shape[1]), dtype=left.dtype)
    native.cross_products(np.ascontiguousarray(left.T), np.ascontiguousarray(right.T), out, 0)
    return out


def _places(index: np.ndarray | None) -> np.ndarray | None:
    return None if index is None else np.ascontiguousarray(index, dtype=np.int64)


def _like(name: str, u: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    if u.shape != (x.shape[axis],):
        raise InputError(f"{name}: got shape {u.shape}, want ({x.shape[axis]},)")
    return np.ascontiguousarray(u, dtype=x.dtype)

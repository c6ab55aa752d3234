"""Exact row top-k on NumPy arrays: the compiled kernel where it is live, else the reference.

Lives here: the checks and the shapes. Does not live here: the loop (``csrc/top_k.hpp``), the oracle
(``reference.top_k``), tensors (``torch_ops``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ellzero.errors import InputError, check_integer
from ellzero.kernels import reference
from ellzero.kernels._dispatch import CHOICE

__all__ = ["TopK", "top_k"]


class TopK(NamedTuple):
    """The ``k`` largest entries of each row: values descending, and where they stood (int64)."""

    values: np.ndarray
    indices: np.ndarray


def top_k(x: np.ndarray, k: int, *, n_threads: int | None = None) -> TopK:
    """The ``k`` largest entries of each row of ``x`` (last axis), exactly.

    Solves ``argmax_{|S| = k} sum_{i in S} x_i`` per row; ties keep the lowest index, so the answer is unique. It
    equals a stable descending sort: ``-0.0`` equals ``0.0``, infinities are legal, NaN comes after every number.

    Parameters
    ----------
    x : ``[..., n]`` floating point. float32 and float64 rows that are contiguous are read in place; float16 is
        widened (exactly) and other layouts are copied once.
    k : entries per row, ``0 <= k <= n``.
    n_threads : threads, default all that OpenMP offers; small inputs use one. The result does not depend on it.

    Returns
    -------
    TopK : values ``[..., k]`` in the dtype of ``x``, sorted descending, and their int64 indices.

    Raises
    ------
    InputError : x without axes or not floating point; k outside ``[0, n]``; n_threads below one.
    """
    x = np.asarray(x)
    if x.ndim == 0:
        raise InputError("x: got a scalar, want an array with at least one axis")
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise InputError(f"x: got dtype {x.dtype}, want float32, float64 or float16")
    n = x.shape[-1]
    k = check_integer("k", k, at_least=0, at_most=n)
    threads = 0 if n_threads is None else check_integer("n_threads", n_threads, at_least=1)
    native = CHOICE.module
    if native is None:
        return TopK(*reference.top_k(x, k))
    kind = np.float64 if x.dtype.itemsize == 8 else np.float32
    values = np.empty((*x.shape[:-1], k), dtype=kind)
    indices = np.empty((*x.shape[:-1], k), dtype=np.int64)
    if values.size:
        rows = np.ascontiguousarray(x, dtype=kind).reshape(-1, n)
        native.top_k(rows, values.reshape(-1, k), indices.reshape(-1, k), threads)
    return TopK(values.astype(x.dtype, copy=False), indices)

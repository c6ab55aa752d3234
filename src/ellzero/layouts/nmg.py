"""n:m:g, where every pattern of n among m columns serves g rows: an N:M matrix whose kernel needs no columns.

Lives here: ``NMG``. Does not live here: its products (``kernels.sparse``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ellzero.errors import InputError, check_integer
from ellzero.kernels.nm import nmg_product
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.layouts.grouped import CSR
from ellzero.registry import register

__all__ = ["NMG"]


@register(
    kind="layout", id="S059", source="arXiv:2304.07613", claim="n:m:g keeps more than blocks and nearly as much as n:m",
    example=lambda: NMG.from_dense(np.tile(np.eye(2, dtype=np.float32), (1, 2)), n=1, m=2, g=1),
)  # fmt: skip
class NMG(Layout):
    """Chunks of ``C(m, n) * g`` rows by m columns, in which each of the ``C(m, n)`` patterns holds g rows.

    The patterns stand in a fixed order (lexicographic), so a chunk stores only which row has which place, and the
    values. Ivanov et al. (2023); the columns of m must divide the matrix, and the rows of a chunk its rows.

    ``from_dense`` stores a matrix that has the form, to the bit. ``fit`` keeps as much magnitude of any matrix as the
    form allows: the exact assignment of rows to patterns, chunk by chunk.
    """

    name = "nmg"

    def __init__(self, shape: tuple[int, int], n: int, m: int, g: int, row: np.ndarray, value: np.ndarray):
        self.shape, (self.n, self.m, self.g) = (int(shape[0]), int(shape[1])), _sizes(shape, n, m, g)
        chunk = comb(self.m, self.n) * self.g
        want = (self.shape[0] // chunk, self.shape[1] // self.m, chunk)
        if row.shape != want or value.shape != (*want, self.n):
            raise InputError(f"value: got {value.shape} with rows {row.shape}, want {(*want, self.n)} with {want}")
        if not (np.sort(row, axis=-1) == np.arange(chunk)).all():
            raise InputError(f"row: want each of the {chunk} rows of a chunk once")
        self.row, self.value = row.astype(np.uint8 if chunk <= 256 else np.uint16), np.ascontiguousarray(value)

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, n: int = 2, m: int = 4, g: int = 4) -> NMG:
        matrix = checked_dense(matrix)
        fitted = cls.fit(matrix, n=n, m=m, g=g)
        if not np.array_equal(fitted.to_dense(), matrix, equal_nan=True):
            raise InputError(f"matrix: does not have the form {n}:{m}:{g}; NMG.fit keeps the most that it can")
        return fitted

    @classmethod
    def fit(cls, matrix: np.ndarray, *, n: int = 2, m: int = 4, g: int = 4) -> NMG:
        """The matrix of this form that keeps the most magnitude."""
        matrix = checked_dense(matrix)
        n, m, g = _sizes(matrix.shape, n, m, g)
        patterns = np.array(list(combinations(range(m), n)))
        chunk = len(patterns) * g
        blocks = matrix.reshape(matrix.shape[0] // chunk, chunk, -1, m).transpose(0, 2, 1, 3)
        size = np.where(np.isnan(blocks), np.inf, np.abs(blocks).astype(np.float64))
        size = np.minimum(size, np.finfo(np.float64).max / (4 * m))
        # a tiny bonus per nonzero, so that a small one is never dropped for rounding
        size = np.where(blocks != 0, size + np.finfo(np.float64).tiny, 0)
        kept = size[..., patterns].sum(axis=-1)
        row = np.empty((*blocks.shape[:2], chunk), np.int64)
        for at in np.ndindex(*blocks.shape[:2]):
            which, seat = linear_sum_assignment(np.repeat(kept[at], g, axis=1), maximize=True)
            row[at][seat] = which
        seated = np.take_along_axis(blocks, row[..., None], axis=2)
        value = np.take_along_axis(seated, np.repeat(patterns, g, axis=0)[None, None], axis=3)
        return cls(matrix.shape, n, m, g, row, value)

    @property
    def nnz(self) -> int:
        return self.value.size

    def to_dense(self) -> np.ndarray:
        patterns = np.repeat(np.array(list(combinations(range(self.m), self.n))), self.g, axis=0)
        seated = np.zeros((*self.row.shape, self.m), self.value.dtype)
        np.put_along_axis(seated, np.broadcast_to(patterns, self.value.shape), self.value, axis=3)
        blocks = np.empty_like(seated)
        np.put_along_axis(blocks, self.row.astype(np.int64)[..., None], seated, axis=2)
        return blocks.transpose(0, 2, 1, 3).reshape(self.shape)

    @cached_property
    def _seats(self) -> dict[str, np.ndarray]:
        """The row of each seat and the seat of each row as 16 bits, and each seat's columns among m."""
        place = np.repeat(np.array(list(combinations(range(self.m), self.n)), np.uint8), self.g, axis=0)
        seat = np.argsort(self.row, axis=-1).astype(np.uint16)
        return {"row": self.row.astype(np.uint16), "seat": seat, "place": place}

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[1], self.value.dtype)
        out = nmg_product(**self._seats, value=self.value, x=x, m=self.m, bias=bias, n_threads=n_threads)
        return out[:, 0] if vector else out

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[0], self.value.dtype)
        out = nmg_product(**self._seats, value=self.value, x=x, m=self.m, turned=True, n_threads=n_threads)
        return out[:, 0] if vector else out

    def tensors(self) -> dict[str, np.ndarray]:
        return {"row": self.row, "value": self.value}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **self.settings()}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> NMG:
        return cls(tuple(facts["shape"]), facts["n"], facts["m"], facts["g"], tensors["row"], tensors["value"])

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m, "g": self.g}

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        return CSR.from_dense(self.to_dense()[start:stop:step])


def _sizes(shape: tuple[int, int], n: int, m: int, g: int) -> tuple[int, int, int]:
    m = check_integer("m", m, at_least=1, at_most=16)
    n = check_integer("n", n, at_least=1, at_most=m)
    g = check_integer("g", g, at_least=1)
    chunk = comb(m, n) * g
    if shape[0] % chunk or shape[1] % m:
        raise InputError(f"matrix: got shape {tuple(shape)}, want rows in multiples of {chunk} and columns of {m}")
    return n, m, g

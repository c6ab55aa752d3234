"""N:M: of every m neighbouring columns each row keeps exactly n, and stores for each only its place among the m.

Lives here: ``NM``. Does not live here: the choice of what to keep (``parts.constraints.NM``), the products.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_integer
from ellzero.kernels.nm import nm_product, pack_places, unpack_places
from ellzero.kernels.sparse import Pattern
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.registry import register

__all__ = ["NM"]


@register(
    kind="layout", source="arXiv:2104.08378", example=lambda: NM.from_dense(np.eye(4, dtype=np.float32), n=2, m=4)
)
class NM(Layout):
    """Exactly ``n`` stored in every ``m`` columns, with places of 2, 4 or 8 bits. Mishra et al. (2021) for 2:4.

    Groups with fewer nonzeros store zeros; groups with more are refused. ``m`` may be up to 256 and must divide the
    columns.
    """

    name = "nm"

    def __init__(self, shape: tuple[int, int], n: int, m: int, place: np.ndarray, value: np.ndarray):
        self.n = check_integer("n", n, at_least=1, at_most=m)
        self.m = check_integer("m", m, at_least=1, at_most=256)
        self.shape = (int(shape[0]), int(shape[1]))
        if self.shape[1] % m:
            raise InputError(f"m: got {m}, want one that divides the {self.shape[1]} columns")
        per_row = self.shape[1] // m * n
        packed = (self.shape[0], len(pack_places(np.zeros((1, per_row), np.uint8), m)[0]))
        if value.shape != (self.shape[0], per_row) or place.shape != packed or place.dtype != np.uint8:
            want = f"want {(self.shape[0], per_row)} with {packed}"
            raise InputError(f"value: got {value.shape} with places {place.shape}, {want}")
        self.place, self.value = np.ascontiguousarray(place), np.ascontiguousarray(value)

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, n: int = 2, m: int = 4) -> NM:
        matrix = checked_dense(matrix)
        check_integer("m", m, at_least=1, at_most=256)
        check_integer("n", n, at_least=1, at_most=m)
        if matrix.shape[1] % m:
            raise InputError(f"m: got {m}, want one that divides the {matrix.shape[1]} columns")
        groups = matrix.reshape(len(matrix), matrix.shape[1] // m, m)
        most = int(np.count_nonzero(groups, axis=-1).max(initial=0))
        if most > n:
            raise InputError(f"matrix: has {most} nonzeros within {m} columns, want at most {n}")
        place = np.sort(np.argsort(groups == 0, axis=-1, kind="stable")[..., :n], axis=-1)
        value = np.take_along_axis(groups, place, axis=-1).reshape(len(matrix), matrix.shape[1] // m * n)
        return cls(matrix.shape, n, m, pack_places(place.reshape(value.shape).astype(np.uint8), m), value)

    @property
    def nnz(self) -> int:
        return self.value.size

    def columns(self) -> np.ndarray:
        """The column of each stored value, ``[rows, columns / m * n]``."""
        starts = np.repeat(np.arange(0, self.shape[1], self.m), self.n)
        return unpack_places(self.place, self.value.shape[1], self.m) + starts

    def to_dense(self) -> np.ndarray:
        dense = np.zeros(self.shape, self.value.dtype)
        np.put_along_axis(dense, self.columns(), self.value, axis=1)
        return dense

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[1], self.value.dtype)
        if x.shape[1] >= 4:  # unpacking a row's places costs more than reading its columns
            return self._stored_places.product(self.value.reshape(-1, 1), x, bias=bias, n_threads=n_threads)
        out = nm_product(self.place, self.value, x, n=self.n, m=self.m, bias=bias, n_threads=n_threads)
        return out[:, 0] if vector else out

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[0], self.value.dtype)
        out = self._turned.product(self.value, x, n_threads=n_threads)
        return out[:, 0] if vector else out

    @cached_property
    def _stored_places(self) -> Pattern:
        ptr = np.arange(self.shape[0] + 1) * self.value.shape[1]
        return Pattern(ptr, self.columns().reshape(-1), columns=self.shape[1])

    @cached_property
    def _turned(self) -> Pattern:
        return self._stored_places.turned()

    def tensors(self) -> dict[str, np.ndarray]:
        return {"place": self.place, "value": self.value}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "n": self.n, "m": self.m}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> NM:
        return cls(tuple(facts["shape"]), facts["n"], facts["m"], tensors["place"], tensors["value"])

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m}

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        place, value = self.place[start:stop:step], self.value[start:stop:step]
        return NM((len(value), self.shape[1]), self.n, self.m, place, value)

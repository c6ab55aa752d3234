"""Constant fan-in: every row that is kept has the same number of inputs (the condensed layer of SRigL).

Lives here: ``Condensed``. Does not live here: how rows come to have equal fan-in (recipes), the products.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ellzero.errors import InputError
from ellzero.kernels.sparse import Pattern
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.registry import register

__all__ = ["Condensed"]


@register(
    kind="layout", id="S052", source="arXiv:2305.02299",
    claim="constant fan-in costs six bytes an input, and ablated rows cost nothing",
    example=lambda: Condensed.from_dense(np.eye(4, dtype=np.float32)),
)  # fmt: skip
class Condensed(Layout):
    """Values and columns ``[kept rows, fan-in]``, rows without inputs left out altogether. Lasby et al. (2024).

    Columns take 16 bits where they fit. A row with fewer nonzeros than ``fan_in`` stores zeros in its first free
    columns; one with more is refused.

    Attributes
    ----------
    kept : the rows that have inputs, int64; the others are ablated: their output is the bias alone.
    """

    name = "condensed"

    def __init__(self, shape: tuple[int, int], kept: np.ndarray, index: np.ndarray, value: np.ndarray):
        self.shape = (int(shape[0]), int(shape[1]))
        if value.shape != index.shape or len(kept) != len(value):
            raise InputError(f"value: got shape {value.shape}, want {(len(kept), index.shape[-1])} as index and kept")
        if len(kept) and not (kept[0] >= 0 and kept[-1] < self.shape[0] and (np.diff(kept) > 0).all()):
            raise InputError(f"kept: want rising rows from 0 to {self.shape[0] - 1}")
        fan_in = value.shape[1]
        ptr = np.arange(len(value) + 1) * fan_in
        self._pattern = Pattern(ptr, index.reshape(-1), columns=self.shape[1])
        self.kept, self.value = np.asarray(kept, np.int64), np.ascontiguousarray(value)
        self.index = self._pattern.index.reshape(index.shape)

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, fan_in: int | None = None) -> Condensed:
        matrix = checked_dense(matrix)
        counts = np.count_nonzero(matrix, axis=1)
        kept = np.flatnonzero(counts)
        most = int(counts.max(initial=0)) if fan_in is None else int(fan_in)
        if counts.max(initial=0) > most or most > matrix.shape[1]:
            raise InputError(f"fan_in: got {most}, want at least {counts.max(initial=0)} and at most the columns")
        # a stable sort brings the nonzeros of each row to the front, then its first zeros
        index = np.sort(np.argsort(matrix[kept] == 0, axis=1, kind="stable")[:, :most], axis=1)
        return cls(matrix.shape, kept, index, np.take_along_axis(matrix[kept], index, axis=1))

    @property
    def fan_in(self) -> int:
        """Inputs of each kept row."""
        return self.value.shape[1]

    @property
    def nnz(self) -> int:
        return self.value.size

    def to_dense(self) -> np.ndarray:
        dense = np.zeros(self.shape, self.value.dtype)
        dense[self.kept[:, None], self.index] = self.value
        return dense

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        whole = len(self.kept) == self.shape[0]
        if whole:
            out = self._pattern.quick(self.value.reshape(-1, 1), x, bias=bias, n_threads=n_threads)
            if out is not None:
                return out
        x, vector = columns_first("x", x, self.shape[1], self.value.dtype)
        inner = bias if whole or bias is None else bias[self.kept]
        out = self._pattern.product(self.value.reshape(-1, 1), x, bias=inner, n_threads=n_threads)
        if not whole:
            rest = np.zeros((self.shape[0], x.shape[1]), out.dtype)
            if bias is not None:
                rest += bias[:, None]
            rest[self.kept] = out
            out = rest
        return out[:, 0] if vector else out

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[0], self.value.dtype)
        out = self._turned.product(self.value, x[self.kept], n_threads=n_threads)
        return out[:, 0] if vector else out

    @cached_property
    def _turned(self) -> Pattern:
        return self._pattern.turned()

    def tensors(self) -> dict[str, np.ndarray]:
        return {"kept": self.kept, "index": self.index, "value": self.value}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Condensed:
        return cls(tuple(facts["shape"]), tensors["kept"], tensors["index"], tensors["value"])

    def settings(self) -> dict[str, Any]:
        return {"fan_in": self.fan_in}

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        if step != 1:
            return super()._slice(start, stop, step)
        low, high = np.searchsorted(self.kept, [start, max(stop, start)])
        shape = (max(stop - start, 0), self.shape[1])
        return Condensed(shape, self.kept[low:high] - start, self.index[low:high], self.value[low:high])

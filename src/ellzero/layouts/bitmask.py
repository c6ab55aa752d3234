"""One bit per entry says whether it is stored: the smallest file from a third up to nine tenths of zeros.

Lives here: ``Bitmask``. Does not live here: its products, which are those of its rows' nonzeros (``grouped.CSR``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ellzero.errors import InputError
from ellzero.kernels.sparse import Pattern, widened
from ellzero.layouts.base import Layout, checked_dense
from ellzero.layouts.grouped import CSR
from ellzero.registry import register

__all__ = ["Bitmask"]


@register(kind="layout", source="none", example=lambda: Bitmask.from_dense(np.eye(4, dtype=np.float32)))
class Bitmask(Layout):
    """A bit for every entry, row after row, and the values where it is set: a layout to store and send.

    Products unpack it once into rows (``CSR``), which is kept from then on. ``dtype="bfloat16"`` halves the values.
    """

    name = "bitmask"

    def __init__(self, shape: tuple[int, int], bits: np.ndarray, value: np.ndarray):
        self.shape = (int(shape[0]), int(shape[1]))
        want = (self.shape[0] * self.shape[1] + 7) // 8
        if bits.dtype != np.uint8 or bits.shape != (want,):
            raise InputError(f"bits: got {bits.dtype} {bits.shape}, want uint8 {(want,)}")
        self.bits, self.value = bits, value
        stored = int(np.unpackbits(bits, count=self.shape[0] * self.shape[1]).sum())
        if value.shape != (stored,):
            raise InputError(f"value: got shape {value.shape}, want {(stored,)}, one per set bit")

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, dtype: str | None = None) -> Bitmask:
        matrix = checked_dense(matrix)
        stored = CSR.from_dense(matrix, dtype=dtype).value.reshape(-1)
        return cls(matrix.shape, np.packbits(matrix != 0), stored)

    def _mask(self) -> np.ndarray:
        return np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).astype(bool).reshape(self.shape)

    @property
    def nnz(self) -> int:
        return len(self.value)

    def to_dense(self) -> np.ndarray:
        value = widened(self.value)
        dense = np.zeros(self.shape, value.dtype)
        dense[self._mask()] = value
        return dense

    @cached_property
    def _rows(self) -> CSR:
        at, index = np.nonzero(self._mask())
        ptr = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=self.shape[0]))])
        return CSR(Pattern(ptr, index, columns=self.shape[1]), self.value[:, None])

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        return self._rows.matmul(x, bias=bias, n_threads=n_threads)

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        return self._rows.rmatmul(x, n_threads=n_threads)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"bits": self.bits, "value": self.value}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Bitmask:
        return cls(tuple(facts["shape"]), tensors["bits"], tensors["value"])

    def settings(self) -> dict[str, Any]:
        return {"dtype": "bfloat16"} if self.value.dtype == np.uint16 else {}

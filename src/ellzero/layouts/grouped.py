"""Rows stored by their nonzeros: one by one (``CSR``) or in groups that share a pattern (``RowGroup``).

Lives here: both layouts, in float32, float64, bfloat16 and, for groups, int8 with a scale per row. Does not live
here: the products (``kernels.sparse``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_choice
from ellzero.kernels.sparse import PRODUCT_DTYPES, Pattern, narrowed, widened
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.registry import register

__all__ = ["CSR", "RowGroup"]


class _Stored(Layout):
    """A pattern and its values; ``scale`` per row where the values are int8."""

    def __init__(self, pattern: Pattern, value: np.ndarray, scale: np.ndarray | None = None):
        if value.shape != (len(pattern.index), pattern.group):
            raise InputError(f"value: got shape {value.shape}, want {(len(pattern.index), pattern.group)}")
        if (scale is not None) != (value.dtype == np.int8):
            raise InputError("scale: want one per row for int8 values and none for others")
        self.pattern, self.value, self.scale = pattern, value, scale
        self.shape = (pattern.rows, pattern.columns)

    @property
    def dtype(self) -> np.dtype:
        """Of products and of the dense matrix: float64 where the values are, else float32."""
        return PRODUCT_DTYPES[self.value.dtype]

    @property
    def nnz(self) -> int:
        return self.pattern.nnz

    def to_dense(self) -> np.ndarray:
        group = self.pattern.group
        dense = np.zeros((self.shape[0] // group, group, self.shape[1]), self.dtype)
        dense[self.pattern.row_of(), :, self.pattern.index] = widened(self.value)
        dense = dense.reshape(self.shape)
        return dense if self.scale is None else dense * self.scale[:, None]

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        out = self.pattern.quick(self.value, x, bias=bias, scale=self.scale, n_threads=n_threads)
        if out is not None:
            return out
        x, vector = columns_first("x", x, self.shape[1], self.dtype)
        out = self.pattern.product(self.value, x, bias=bias, scale=self.scale, n_threads=n_threads)
        return out[:, 0] if vector else out

    def layer(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        x = x if x.dtype == self.dtype or x.dtype.kind != "f" else x.astype(self.dtype)
        return self.pattern.layer(self.value, x, bias=bias, scale=self.scale, n_threads=n_threads)

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[0], self.dtype)
        if self.scale is not None:
            x = x * self.scale[:, None]
        out = self._turned.product(self.value, x, n_threads=n_threads)
        return out[:, 0] if vector else out

    @cached_property
    def _turned(self) -> Pattern:
        return self.pattern.turned()

    def tensors(self) -> dict[str, np.ndarray]:
        stored = {"ptr": self.pattern.ptr, "index": self.pattern.index, "value": self.value}
        return stored if self.scale is None else {**stored, "scale": self.scale}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "group": self.pattern.group, "bfloat16": self.value.dtype == np.uint16}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> _Stored:
        pattern = Pattern(tensors["ptr"], tensors["index"], group=facts["group"], columns=facts["shape"][1])
        return cls(pattern, np.ascontiguousarray(tensors["value"]), tensors.get("scale"))

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        group = self.pattern.group
        if step != 1 or start % group or (stop - start) % group:
            return CSR.from_dense(self.to_dense()[start:stop:step])
        low, high = start // group, max(stop, start) // group
        ptr = self.pattern.ptr[low : high + 1]
        entries = slice(int(ptr[0]), int(ptr[-1]))
        pattern = Pattern(ptr - ptr[0], self.pattern.index[entries], group=group, columns=self.shape[1])
        scale = None if self.scale is None else self.scale[start:stop]
        return type(self)(pattern, self.value[entries], scale)


def _grouped(matrix: np.ndarray, group: int) -> tuple[Pattern, np.ndarray]:
    """The places where any row of a group is nonzero, and the values of the whole group there."""
    rows, columns = matrix.shape
    if rows % group:
        raise InputError(f"matrix: got {rows} rows, want a multiple of {group}, the rows of a group")
    blocks = matrix.reshape(rows // group, group, columns)
    at, index = np.nonzero((blocks != 0).any(axis=1))
    ptr = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=rows // group))])
    return Pattern(ptr, index, group=group, columns=columns), np.ascontiguousarray(blocks[at, :, index])


@register(
    kind="layout", source="arXiv:2302.04852", id="S028",
    claim="both gradients at the stored places alone, with no dense matrix of the weight's size",
    example=lambda: CSR.from_dense(np.eye(4, dtype=np.float32)),
)  # fmt: skip
class CSR(_Stored):
    """Each row its own nonzeros; 16-bit columns where they fit. SparseProp's storage (Nikdan et al., 2023).

    ``dtype``: ``"bfloat16"`` halves the values; products then widen them and sum in float32.
    """

    name = "csr"

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, dtype: str | None = None) -> CSR:
        matrix = checked_dense(matrix)
        pattern, value = _grouped(matrix, 1)
        return cls(pattern, _narrow(value, dtype))

    def settings(self) -> dict[str, Any]:
        return {"dtype": "bfloat16"} if self.value.dtype == np.uint16 else {}


@register(
    kind="layout", source="arXiv:2310.19509", id="S156",
    example=lambda: RowGroup.from_dense(np.ones((4, 3), np.float32)),
)  # fmt: skip
class RowGroup(_Stored):
    """``group`` neighbouring rows (4 or 8) share one pattern, so that each activation is read once for all of them.

    Entries that are zero within a shared place are stored as zeros. ``dtype``: ``"bfloat16"``, or ``"int8"``: values
    are rounded to ``scale * integer`` with one scale per row, the largest magnitude being 127.
    """

    name = "row-group"

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, group: int = 4, dtype: str | None = None) -> RowGroup:
        matrix = checked_dense(matrix)
        check_choice("group", group, (4, 8))
        pattern, value = _grouped(matrix, group)
        if dtype != "int8":
            return cls(pattern, _narrow(value, dtype))
        scale = (np.abs(matrix).max(axis=1, initial=0) / 127).astype(np.float32)
        if not np.isfinite(scale).all():
            raise InputError("matrix: has an infinite or missing entry, which int8 cannot hold")
        each = scale.reshape(-1, group)[pattern.row_of()]
        return cls(pattern, np.rint(value / np.where(each > 0, each, 1)).astype(np.int8), scale)

    def settings(self) -> dict[str, Any]:
        dtypes = {"uint16": "bfloat16", "int8": "int8"}
        return {"group": self.pattern.group, "dtype": dtypes.get(self.value.dtype.name)}


def _narrow(value: np.ndarray, dtype: str | None) -> np.ndarray:
    check_choice("dtype", dtype, (None, "float32", "float64", "bfloat16"))
    if dtype == "bfloat16":
        return narrowed(value)
    return value if dtype is None else value.astype(dtype)

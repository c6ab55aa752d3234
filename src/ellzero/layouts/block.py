"""Rectangular blocks, each stored whole: the layout that dense BLAS likes.

Lives here: ``Block``. Does not live here: which blocks are kept (``parts.constraints.Block``, ``butterfly``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_integer
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.registry import register

__all__ = ["Block"]


@register(
    kind="layout", source="none", example=lambda: Block.from_dense(np.eye(4, dtype=np.float32), height=2, width=2)
)
class Block(Layout):
    """Blocks of ``height x width`` with any nonzero, stored whole, block row after block row.

    A product is one dense product per block row, over the rows of ``x`` that its blocks need. NaN and infinity in
    ``x`` reach the rows whose blocks read them.

    Attributes
    ----------
    ptr, index : block row i has the blocks ``ptr[i] .. ptr[i + 1]``, in the block columns ``index``.
    value : ``[blocks, height, width]``.
    """

    name = "block"

    def __init__(self, shape: tuple[int, int], ptr: np.ndarray, index: np.ndarray, value: np.ndarray):
        self.shape = (int(shape[0]), int(shape[1]))
        blocks, height, width = value.shape
        if height == 0 or width == 0 or self.shape[0] % height or self.shape[1] % width:
            raise InputError(f"value: got blocks of {height} x {width}, want ones that divide {self.shape}")
        rows, columns = self.shape[0] // height, self.shape[1] // width
        rising = len(ptr) == rows + 1 and ptr[0] == 0 and ptr[-1] == blocks and (np.diff(ptr) >= 0).all()
        if not rising or len(index) != blocks:
            raise InputError(f"ptr: want {rows + 1} numbers that rise from 0 to the {blocks} blocks of value and index")
        if blocks and not (index.min() >= 0 and index.max() < columns):
            raise InputError(f"index: got {index.min()} to {index.max()}, want block columns from 0 to {columns - 1}")
        self.ptr, self.index = np.asarray(ptr, np.int64), np.asarray(index, np.int32)
        self.value = np.ascontiguousarray(value)

    @classmethod
    def from_dense(cls, matrix: np.ndarray, *, height: int = 16, width: int = 16) -> Block:
        matrix = checked_dense(matrix)
        check_integer("height", height, at_least=1)
        check_integer("width", width, at_least=1)
        rows, columns = matrix.shape
        if rows % height or columns % width:
            raise InputError(f"matrix: got shape {matrix.shape}, want multiples of {height} and {width}")
        blocks = matrix.reshape(rows // height, height, columns // width, width).transpose(0, 2, 1, 3)
        at, index = np.nonzero((blocks != 0).any(axis=(2, 3)))
        ptr = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=rows // height))])
        return cls(matrix.shape, ptr, index, blocks[at, index])

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of a block."""
        return self.value.shape[1], self.value.shape[2]

    @property
    def nnz(self) -> int:
        return self.value.size

    def _row_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))

    def to_dense(self) -> np.ndarray:
        height, width = self.block
        dense = np.zeros((self.shape[0] // height, self.shape[1] // width, height, width), self.value.dtype)
        dense[self._row_of(), self.index] = self.value
        return dense.transpose(0, 2, 1, 3).reshape(self.shape)

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        height, width = self.block
        x, vector = columns_first("x", x, self.shape[1], self.value.dtype)
        slabs = x.reshape(self.shape[1] // width, width, x.shape[1])
        out = np.zeros((self.shape[0] // height, height, x.shape[1]), x.dtype)
        for i, (low, high) in enumerate(zip(self.ptr[:-1], self.ptr[1:])):
            if high > low:
                row = self.value[low:high].transpose(1, 0, 2).reshape(height, -1)
                np.matmul(row, slabs[self.index[low:high]].reshape((high - low) * width, x.shape[1]), out=out[i])
        out = out.reshape(self.shape[0], x.shape[1])
        if bias is not None:
            out += bias[:, None]
        return out[:, 0] if vector else out

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        rows = self._row_of()
        order = np.argsort(self.index, kind="stable")
        columns = self.shape[1] // self.block[1]
        ptr = np.concatenate([[0], np.cumsum(np.bincount(self.index, minlength=columns))])
        turned = Block(self.shape[::-1], ptr, rows[order], self.value[order].transpose(0, 2, 1))
        return turned.matmul(x, n_threads=n_threads)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"ptr": self.ptr, "index": self.index, "value": self.value}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Block:
        return cls(tuple(facts["shape"]), tensors["ptr"], tensors["index"], tensors["value"])

    def settings(self) -> dict[str, Any]:
        return {"height": self.block[0], "width": self.block[1]}

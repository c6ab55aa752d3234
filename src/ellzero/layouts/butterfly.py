"""A fixed mask of blocks that links every input to every output in few strides, plus a low rank (Pixelfly).

Lives here: ``butterfly_mask``, ``plan`` (how a budget of parameters is shared) and ``BlockButterflyLowRank``.
Does not live here: the block products (``block``), layers of torch (``nn``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.layouts.base import Layout, checked_dense, columns_first
from ellzero.layouts.block import Block
from ellzero.registry import register

__all__ = ["BlockButterflyLowRank", "butterfly_mask", "plan"]


def butterfly_mask(rows: int, columns: int, max_stride: int) -> np.ndarray:
    """Which blocks a flat block butterfly keeps, bool ``[rows, columns]`` (in blocks).

    On the square of side n, block (i, j) is kept where ``i = j`` or ``i xor j`` is a power of two below
    ``max_stride``: ``1 + log2 max_stride`` blocks in every row. A rectangle stretches the square of its shorter side
    over the longer one. Dao et al. (2022), arXiv:2112.00029.

    Parameters
    ----------
    max_stride : a power of two, at most the shorter side; it counts blocks, not entries. 1 keeps the diagonal.
    """
    rows, columns = check_integer("rows", rows, at_least=1), check_integer("columns", columns, at_least=1)
    side = min(rows, columns)
    check_integer("max_stride", max_stride, at_least=1)
    if max_stride & (max_stride - 1) or max_stride > side:
        raise InputError(f"max_stride: got {max_stride}, want a power of two up to {side} blocks")
    apart = (np.arange(rows) * side // rows)[:, None] ^ (np.arange(columns) * side // columns)[None, :]
    return (apart < max_stride) & ((apart & (apart - 1)) == 0)


def plan(
    shape: tuple[int, int], density: float, *, block: int = 32, low_rank_share: float = 0.25
) -> tuple[int, int]:  # fmt: skip
    """``max_stride`` and ``rank`` within a budget of ``density * rows * columns`` parameters.

    ``low_rank_share`` of it (the paper: a quarter to a third) goes to the low rank, the rest decides the largest
    stride; what the strides leave over goes to the rank too.
    """
    check("density", density, above=0, at_most=1)
    check("low_rank_share", low_rank_share, at_least=0, at_most=1)
    rows, columns = _blocks(shape, block)
    budget = density * shape[0] * shape[1]
    stride = 1
    while 2 * stride <= min(rows, columns):
        if butterfly_mask(rows, columns, 2 * stride).sum() * block**2 > budget * (1 - low_rank_share):
            break
        stride *= 2
    left = budget - butterfly_mask(rows, columns, stride).sum() * block**2
    if left < 0:
        least = max(rows, columns) * block**2 / (shape[0] * shape[1])
        raise InputError(f"density: got {density}, want at least {least:.4g}, that of the diagonal blocks alone")
    return stride, int(left // (shape[0] + shape[1]))


@register(
    kind="layout", id="S063", source="arXiv:2112.00029", claim="a fixed mask and a low rank train as well as dense",
    example=lambda: BlockButterflyLowRank.from_dense(np.ones((8, 8), np.float32), block=2, max_stride=2, rank=1),
)  # fmt: skip
class BlockButterflyLowRank(Layout):
    """``W = gamma * B + (1 - gamma) * U V'`` with B on the flat block butterfly.

    ``from_dense`` finds the nearest such matrix that alternating exact steps reach (B is what U V' leaves on its
    blocks, U V' the best of its rank for the rest); a matrix that lies on the blocks comes back to the bit with
    ``rank=0``. ``to_dense`` is what products apply.
    """

    name = "butterfly"

    def __init__(self, blocks: Block, left: np.ndarray, right: np.ndarray, gamma: float = 0.5):
        self.shape, self.gamma = blocks.shape, check("gamma", gamma, above=0, at_most=1)
        if left.shape[0] != self.shape[0] or right.shape != (self.shape[1], left.shape[1]):
            raise InputError(f"left, right: got {left.shape} and {right.shape}, want {self.shape} with one rank")
        self.blocks, self.left, self.right = blocks, left, right

    @classmethod
    def from_dense(
        cls, matrix: np.ndarray, *, block: int = 32, max_stride: int = 4, rank: int = 0, steps: int = 20
    ) -> BlockButterflyLowRank:
        matrix = checked_dense(matrix)
        rows, columns = _blocks(matrix.shape, block)
        check_integer("rank", rank, at_least=0, at_most=min(matrix.shape))
        keep = np.kron(butterfly_mask(rows, columns, max_stride), np.ones((block, block), bool))
        left, right = np.zeros((matrix.shape[0], rank), matrix.dtype), np.zeros((matrix.shape[1], rank), matrix.dtype)
        if rank == 0:
            return cls(Block.from_dense(np.where(keep, matrix, 0), height=block, width=block), left, right, 1.0)
        on = np.where(keep, matrix, 0)
        for _ in range(steps):
            u, s, vt = np.linalg.svd(matrix - on, full_matrices=False)
            left, right = u[:, :rank] * np.sqrt(s[:rank]), vt[:rank].T * np.sqrt(s[:rank])
            on = np.where(keep, matrix - left @ right.T, 0)
        half = np.sqrt(2).astype(matrix.dtype)
        return cls(Block.from_dense(2 * on, height=block, width=block), left * half, right * half, 0.5)

    @property
    def nnz(self) -> int:
        return self.blocks.nnz + self.left.size + self.right.size

    def to_dense(self) -> np.ndarray:
        dense = self.blocks.to_dense()
        if self.left.shape[1] == 0 and self.gamma == 1:
            return dense
        return self.gamma * dense + (1 - self.gamma) * (self.left @ self.right.T)

    def _both(self, on_blocks: np.ndarray, on_rank: np.ndarray) -> np.ndarray:
        return self.gamma * on_blocks + (1 - self.gamma) * on_rank

    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[1], self.left.dtype)
        out = self._both(self.blocks.matmul(x), self.left @ (self.right.T @ x))
        out = out if bias is None else out + bias[:, None]
        return out[:, 0] if vector else out

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        x, vector = columns_first("x", x, self.shape[0], self.left.dtype)
        out = self._both(self.blocks.rmatmul(x), self.right @ (self.left.T @ x))
        return out[:, 0] if vector else out

    def tensors(self) -> dict[str, np.ndarray]:
        return {**self.blocks.tensors(), "left": self.left, "right": self.right}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "gamma": self.gamma}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> BlockButterflyLowRank:
        return cls(Block.from_parts(tensors, facts), tensors["left"], tensors["right"], facts["gamma"])

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        height = self.blocks.block[0]
        if step != 1 or start % height or stop % height:
            raise InputError(f"rows: got {start}:{stop}:{step}, want whole blocks of {height} rows")
        return BlockButterflyLowRank(self.blocks[start:stop], self.left[start:stop], self.right, self.gamma)


def _blocks(shape: tuple[int, int], block: int) -> tuple[int, int]:
    check_integer("block", block, at_least=1)
    if shape[0] % block or shape[1] % block or 0 in shape:
        raise InputError(f"matrix: got shape {tuple(shape)}, want multiples of the block of {block}")
    return shape[0] // block, shape[1] // block

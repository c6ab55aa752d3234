"""A linear layer that trains on a fixed block butterfly plus a low rank, with their share learned (Pixelfly).

Lives here: ``ButterflyLinear``. Does not live here: the mask and the budget (``butterfly``), recipes that learn a mask.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ellzero.errors import InputError, check_integer
from ellzero.layouts.block import Block
from ellzero.layouts.butterfly import BlockButterflyLowRank, butterfly_mask, plan
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["ButterflyLinear"]


@register(
    kind="model", wing="network", id="S063", source="arXiv:2112.00029", extra="torch",
    claim="a fixed mask and a low rank train as well as dense at under a third of the weights",
    example=lambda: ButterflyLinear(64, 64, block=16, max_stride=2, rank=2),
)  # fmt: skip
class ButterflyLinear(nn.Module):
    """``y = x (gamma B + (1 - gamma) U V')' + b`` with B on the flat block butterfly, gamma learned. Dao et al. (2022).

    Parameters
    ----------
    in_features, out_features : multiples of ``block``.
    block : side of a block; the kernels want 16 or more.
    max_stride : largest stride of the butterfly in blocks, a power of two.
    rank : columns of U and V. U starts at zero.
    seed : of the first values; B starts as a dense layer of the same fan-in does.

    Raises
    ------
    InputError : sizes that are no multiples of the block, a stride that is no power of two.
    """

    def __init__(
        self, in_features: int, out_features: int, *, block: int = 32, max_stride: int = 4, rank: int = 8,
        bias: bool = True, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        check_integer("block", block, at_least=1)
        if in_features % block or out_features % block:
            raise InputError(
                f"in_features, out_features: got {in_features} and {out_features}, want multiples of {block}"
            )
        check_integer("rank", rank, at_least=0, at_most=min(in_features, out_features))
        mask = butterfly_mask(out_features // block, in_features // block, max_stride)
        rows, columns = np.nonzero(mask)
        self.in_features, self.out_features, self.block = in_features, out_features, block
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns))
        draw = rng(seed, "ButterflyLinear")
        limit = 2 / math.sqrt(mask.sum(1).mean() * block)  # gamma starts at a half
        blocks = draw.uniform(-limit, limit, (len(rows), block, block)).astype(np.float32)
        right = draw.standard_normal((in_features, rank)).astype(np.float32) / math.sqrt(in_features)
        self.blocks, self.right = nn.Parameter(torch.from_numpy(blocks)), nn.Parameter(torch.from_numpy(right))
        self.left = nn.Parameter(torch.zeros(out_features, rank))
        self.logit = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    def of_density(
        cls, in_features: int, out_features: int, density: float, *, block: int = 32, low_rank_share: float = 0.25,
        **options: object,
    ) -> ButterflyLinear:  # fmt: skip
        """The largest stride and rank that keep within ``density`` of a dense layer's weights (``butterfly.plan``)."""
        stride, rank = plan((out_features, in_features), density, block=block, low_rank_share=low_rank_share)
        return cls(in_features, out_features, block=block, max_stride=stride, rank=rank, **options)

    @property
    def gamma(self) -> Tensor:
        """The butterfly's share, within 0 and 1."""
        return torch.sigmoid(self.logit)

    @property
    def weights(self) -> int:
        """Numbers that stand for the weight matrix."""
        return self.blocks.numel() + self.left.numel() + self.right.numel()

    def forward(self, x: Float[Tensor, "*n in_features"]) -> Float[Tensor, "*n out_features"]:
        if x.shape[-1] != self.in_features:
            raise InputError(f"x: got shape {tuple(x.shape)}, want {self.in_features} along the last axis")
        flat = x.reshape(-1, self.in_features)
        slabs = flat.reshape(len(flat), -1, self.block)[:, self.columns].transpose(0, 1)
        each = torch.bmm(slabs, self.blocks.transpose(1, 2))
        out = each.new_zeros(self.out_features // self.block, len(flat), self.block).index_add(0, self.rows, each)
        out = out.transpose(0, 1).reshape(len(flat), self.out_features)
        out = self.gamma * out + (1 - self.gamma) * (flat @ self.right) @ self.left.t()
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)

    def to_layout(self) -> BlockButterflyLowRank:
        """The weight as it is now, in the layout that is saved and finalised."""
        rows = self.out_features // self.block
        ptr = np.searchsorted(self.rows.numpy(), np.arange(rows + 1))
        blocks = Block(
            (self.out_features, self.in_features), ptr, self.columns.numpy(), self.blocks.detach().numpy().copy()
        )
        left, right = self.left.detach().numpy().copy(), self.right.detach().numpy().copy()
        return BlockButterflyLowRank(blocks, left, right, self.gamma.item())

    def extra_repr(self) -> str:
        share = self.weights / (self.in_features * self.out_features)
        return f"{self.in_features}, {self.out_features}, block={self.block}, weights={share:.3f} of dense"

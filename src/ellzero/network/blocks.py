"""Pruning by whole blocks of a matrix, which a layout stores and multiplies without any index per number.

Lives here: ``Blocks`` (the move) and ``block_gmp`` (the recipe). Does not live here: the constraint
(``parts.constraints.Block``), layouts that profit (``layouts.RowGroup``, ``layouts.Block``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError, check_integer
from ellzero.network.moves import Update
from ellzero.network.recipes import Recipe, checked_density, named_allocation
from ellzero.parts.constraints import Block
from ellzero.parts.schedules import Cubic
from ellzero.registry import register

__all__ = ["Blocks", "block_gmp"]


@dataclass(frozen=True)
class Blocks:
    """Rectangles of ``height x width`` are kept or dropped whole, by the mean of their scores; none returns.

    A weight ``[out, in, ...]`` is read as ``[out, rest]``. Its count is rounded up to whole blocks.
    """

    height: int = 16
    width: int = 1

    def __post_init__(self):
        for name in ("height", "width"):
            check_integer(name, getattr(self, name), at_least=1)

    def __call__(self, update: Update) -> dict[str, Tensor]:
        return {name: self._cut(name, update) for name in update.masks}

    first = __call__

    def _cut(self, name: str, update: Update) -> Tensor:
        mask = update.masks[name]
        rows = mask.reshape(mask.shape[0], -1)
        if rows.shape[0] % self.height or rows.shape[1] % self.width:
            raise InputError(
                f"{name}: has shape {tuple(rows.shape)}, want multiples of {self.height} and {self.width}, the sides "
                "of a block; exclude it"
            )
        tiles = rows.reshape(rows.shape[0] // self.height, self.height, -1, self.width)
        whole = tiles.all(3).all(1)  # a block with a closed entry is closed
        k = min(-(-update.counts[name] // (self.height * self.width)), int(whole.sum()))
        if k == whole.numel():
            return mask.clone()
        scores = update.keep(name).reshape(rows.shape).masked_fill(~rows, -torch.inf)
        return Block(k, (self.height, self.width)).support(scores).reshape(mask.shape)


@register(
    kind="recipe", wing="network", id="S148", source="arXiv:1802.08435", extra="torch", example=lambda: block_gmp(),
    claim="whole blocks of 16 x 1 cost little against single weights",
)  # fmt: skip
def block_gmp(
    density: float = 0.1, block: tuple[int, int] = (16, 1), *, begin: float = 0.0, end: float = 0.7, every: int = 20,
    allocation: Any = "uniform",
) -> Recipe:  # fmt: skip
    """Gradual pruning of whole blocks of each matrix, by mean magnitude. Kalchbrenner et al. (2018), section 3.

    ``block`` is height and width: 16 outputs by 1 input, or 4 by 4; it divides each weight's shape (exclude others).
    In a small ``WaveRNN`` at density 0.1 blocks of 16 x 1 were as good as single weights.
    """
    schedule = Cubic(1.0, checked_density(density), begin, end)
    if not (isinstance(block, tuple | list) and len(block) == 2):
        raise InputError(f"block: got {block!r}, want height and width such as (16, 1)")
    return Recipe(
        density=schedule, allocation=named_allocation(allocation), every=every, until=end, move=Blocks(*block)
    )

"""A multilayer perceptron.

Lives here: ``MLPConfig`` and ``MLP``. Does not live here: its training (``ellzero.training``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_integer
from ellzero.models.initial import empty, fill
from ellzero.registry import register

__all__ = ["MLP", "MLPConfig"]


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an ``MLP``; ``build`` makes one."""

    inputs: int
    """Entries of one example, all axes together."""
    outputs: int
    """Classes, or targets of a regression."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the layers between, each followed by a ReLU; empty for a linear model."""

    def __post_init__(self) -> None:
        check_integer("inputs", self.inputs, at_least=1)
        check_integer("outputs", self.outputs, at_least=1)
        object.__setattr__(self, "hidden", check_sizes("hidden", self.hidden))

    def build(self, seed: int = 0) -> MLP:
        """An ``MLP`` with fresh weights drawn from ``seed``."""
        return fill(empty(lambda: MLP(self)), seed)


def check_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """A tuple of whole numbers from 1."""
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise InputError(f"{name}: got {sizes!r}, want a tuple of whole numbers such as (128, 64)")
    return tuple(check_integer(f"{name}[{i}]", size, at_least=1) for i, size in enumerate(sizes))


@register(
    kind="model", source="He et al. (2015)", extra="torch", example=lambda: MLPConfig(6, 3, (8,)).build()
)  # fmt: skip
class MLP(nn.Module):
    """Linear layers with ReLUs between; axes after the first are flattened. ``MLPConfig(...).build(seed)``."""

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        sizes = (config.inputs, *config.hidden, config.outputs)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        x = x.flatten(1)
        if x.shape[1] != self.config.inputs:
            raise InputError(f"x: got {x.shape[1]} entries per example, want inputs = {self.config.inputs}")
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)

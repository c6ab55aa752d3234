"""The small residual networks of the CIFAR experiments: 6 n + 2 layers.

Lives here: ``ResidualConfig`` and ``Residual``. Does not live here: its training, data.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_integer
from ellzero.models.cnn import check_image
from ellzero.models.initial import empty, fill
from ellzero.models.mlp import check_sizes
from ellzero.registry import register

__all__ = ["Residual", "ResidualConfig"]


@dataclass(frozen=True)
class ResidualConfig:
    """Sizes of a ``Residual`` network; ``build`` makes one. The defaults are ResNet-8."""

    channels: int = 3
    """Channels of the image."""
    classes: int = 10
    """Number of classes."""
    blocks: int = 1
    """Blocks per stage, ``n``: the depth is 6 n + 2 with three stages."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage; from stage to stage the image is halved."""

    def __post_init__(self) -> None:
        for name in ("channels", "classes", "blocks"):
            check_integer(name, getattr(self, name), at_least=1)
        object.__setattr__(self, "widths", check_sizes("widths", self.widths))
        if not self.widths:
            raise InputError("widths: got none, want at least one")

    def build(self, seed: int = 0) -> Residual:
        """A ``Residual`` network with fresh weights drawn from ``seed``."""
        return fill(empty(lambda: Residual(self)), seed)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; a 1 x 1 convolution on it where the shape changes."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        changes = stride != 1 or before != width
        self.shortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Float[Tensor, "batch before height width"]) -> Float[Tensor, "batch after rows columns"]:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


@register(
    kind="model", source="arXiv:1512.03385", extra="torch",
    example=lambda: ResidualConfig(channels=1, widths=(4, 8)).build(),
)  # fmt: skip
class Residual(nn.Module):
    """A residual network for small images. He et al. (2016), section 4.2. ``ResidualConfig(...).build(seed)``."""

    def __init__(self, config: ResidualConfig):
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(config.channels, config.widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(config.widths[0])
        blocks, before = [], config.widths[0]
        for stage, width in enumerate(config.widths):
            for block in range(config.blocks):
                blocks.append(ResidualBlock(before, width, stride=2 if stage and not block else 1))
                before = width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(before, config.classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        check_image(x, self.config.channels, 1)
        x = F.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

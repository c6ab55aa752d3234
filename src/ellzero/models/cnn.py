"""A small convolutional classifier.

Lives here: ``CNNConfig``, ``CNN``, and the check of an image batch. Does not live here: its training, data.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_integer
from ellzero.models.initial import empty, fill
from ellzero.models.mlp import check_sizes
from ellzero.registry import register

__all__ = ["CNN", "CNNConfig"]


@dataclass(frozen=True)
class CNNConfig:
    """Sizes of a ``CNN``; ``build`` makes one."""

    channels: int = 1
    """Channels of the image."""
    classes: int = 10
    """Number of classes."""
    widths: tuple[int, ...] = (16, 32)
    """Channels after each 3 x 3 convolution; between two of them the image is halved."""

    def __post_init__(self) -> None:
        check_integer("channels", self.channels, at_least=1)
        check_integer("classes", self.classes, at_least=1)
        object.__setattr__(self, "widths", check_sizes("widths", self.widths))
        if not self.widths:
            raise InputError("widths: got none, want at least one")

    def build(self, seed: int = 0) -> CNN:
        """A ``CNN`` with fresh weights drawn from ``seed``."""
        return fill(empty(lambda: CNN(self)), seed)


def check_image(x: Tensor, channels: int, smallest: int) -> None:
    """Refuse what is no batch of images of at least ``smallest`` pixels a side."""
    if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < smallest:
        raise InputError(
            f"x: got shape {tuple(x.shape)}, want (batch, {channels}, height, width) of {smallest} pixels or more"
        )


@register(kind="model", source="LeCun et al. (1998)", extra="torch", example=lambda: CNNConfig(widths=(4, 8)).build())
class CNN(nn.Module):
    """Convolutions with batch norm, ReLU and max pooling, the mean over places, one linear layer.

    Any image size that survives the halvings will do. ``CNNConfig(...).build(seed)`` makes one.
    """

    def __init__(self, config: CNNConfig):
        super().__init__()
        self.config = config
        sizes = (config.channels, *config.widths)
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in config.widths])
        self.head = nn.Linear(config.widths[-1], config.classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        check_image(x, self.config.channels, 2 ** (len(self.config.widths) - 1))
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            x = F.relu(norm(convolution(x)))
            if i + 1 < len(self.convolutions):
                x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))

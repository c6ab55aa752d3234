"""Models without torch's global generator: built empty, then filled from a seeded stream.

Lives here: ``empty`` and ``fill``. Does not live here: any model.
The numbers are drawn by NumPy on the CPU, so a seed gives the same model on every machine and rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ellzero.rng import rng

__all__ = ["empty", "fill"]


def empty(make: Callable[[], nn.Module]) -> nn.Module:
    """``make()`` with storage but without values: no random number is drawn. ``fill`` must follow."""
    with torch.device("meta"):
        model = make()
    return model.to_empty(device="cpu")


@torch.no_grad()
def fill(model: nn.Module, seed: int, std: Callable[[str, torch.Tensor], float] | None = None) -> nn.Module:
    """Give every parameter and buffer its first value and return the model.

    Matrices and filters are normal with ``std(name, weight)``, by default ``sqrt(2 / fan_in)`` (He et al. (2015),
    eq. 10); vectors named ``bias`` and running means are 0, other vectors (the scales of norms) and running
    variances 1. Each parameter has its own stream ``rng(seed, "weights", name)``.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        last = name.rsplit(".", 1)[-1]
        if value.ndim >= 2:
            scale = std(name, value) if std else math.sqrt(2 / value[0].numel())
            drawn = rng(seed, "weights", name).standard_normal(tuple(value.shape), dtype="float32")
            value.copy_(torch.from_numpy(drawn * scale))
        elif last in ("bias", "running_mean", "num_batches_tracked"):
            value.zero_()
        else:
            value.fill_(1)
    return model

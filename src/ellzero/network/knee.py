"""Essential sparsity: how much of a trained network can be cut at once, without training, at no cost.

Lives here: ``essential_sparsity`` and ``abrupt_sparsification``. Does not live here: cuts with training (``cycles``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_array
from ellzero.network.cycles import cut
from ellzero.network.prunable import prunable
from ellzero.parts.allocations import Global
from ellzero.registry import register

__all__ = ["EssentialSparsity", "abrupt_sparsification", "essential_sparsity", "knee_of"]

_GRID = tuple(i / 20 for i in range(20))


@dataclass(frozen=True)
class EssentialSparsity:
    """Quality against sparsity without training, the last sparsity within the tolerance, and the knee of the curve."""

    sparsities: np.ndarray
    quality: np.ndarray
    essential: float
    knee: float

    @property
    def slopes(self) -> tuple[float, float]:
        """Mean fall of quality per unit of sparsity before the knee and after it."""
        place = int(np.searchsorted(self.sparsities, self.knee))
        return tuple(
            float((q[0] - q[-1]) / max(s[-1] - s[0], 1e-12))
            for s, q in (
                (self.sparsities[: place + 1], self.quality[: place + 1]),
                (self.sparsities[place:], self.quality[place:]),
            )
        )


def knee_of(x: Any, y: Any) -> float:
    """The ``x`` whose point lies farthest above the chord from the first point to the last."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    chord = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return float(x[int(np.argmax(y - chord))])


@register(
    kind="metric", wing="network", id="S091", source="arXiv:2306.03805", extra="torch", name="essential_sparsity",
    claim="trained networks have a knee: flat under one-shot cuts up to it, steep after",
)  # fmt: skip
@torch.no_grad()
def essential_sparsity(
    model: nn.Module, judge: Callable[[nn.Module], float], sparsities: Sequence[float] = _GRID, *,
    tolerance: float = 0.01, allocation: Any = None, pattern: Any = None, include: Any = None, exclude: Any = None,
) -> EssentialSparsity:  # fmt: skip
    """Cut the smallest weights at once, at several sparsities, and judge without training. Jaiswal et al. (2023).

    Parameters
    ----------
    model : trained; its weights are as before afterwards, to the bit.
    judge : quality, higher being better, as accuracy in [0, 1].
    sparsities : dropped fractions of the prunable weights, rising from 0.
    tolerance : in the units of the quality; ``essential`` is the largest sparsity up to which no point falls below
        ``quality(0) - tolerance``.
    allocation : over layers; None for one threshold for the whole network.
    pattern : ``pattern(sparsity)`` giving a constraint (as ``NM``) in place of counts.

    Raises
    ------
    InputError : sparsities that do not rise from 0 below 1, fewer than three, or a quality that is no finite number.
    """
    grid = np.asarray(sparsities, dtype=np.float64)
    check_array("sparsities", grid, ndim=1)
    if len(grid) < 3 or grid[0] != 0 or (np.diff(grid) <= 0).any() or grid[-1] >= 1:
        raise InputError(f"sparsities: got {list(sparsities)}, want at least three, rising from 0 and below 1")
    check("tolerance", tolerance, at_least=0)
    weights = prunable(model, include, exclude)[0]
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    quality = []
    try:
        for sparsity in grid:
            masks = _masks(model, before, sparsity, allocation, pattern, include, exclude)
            for name, weight in weights.items():
                weight.copy_(before[name].masked_fill(~masks[name], 0))
            quality.append(check("judge", float(judge(model)), above=-np.inf, below=np.inf))
            for name, weight in weights.items():
                weight.copy_(before[name])
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
    found = np.array(quality)
    within = found >= found[0] - tolerance
    last = int(np.argmin(within)) - 1 if not within.all() else len(grid) - 1
    return EssentialSparsity(grid, found, float(grid[last]), knee_of(grid, found))


def _masks(model, weights, sparsity, allocation, pattern, include, exclude) -> Mapping[str, Tensor]:
    if pattern is not None:
        constraint = pattern(float(sparsity))
        return {name: constraint.support(weight.abs()) for name, weight in weights.items()}
    return cut(model, 1 - float(sparsity), allocation=allocation or Global(), include=include, exclude=exclude)


@torch.no_grad()
def abrupt_sparsification(
    states: Sequence[Mapping[str, Tensor]], thresholds: Sequence[float] = (1e-5, 1e-4, 1e-3)
) -> np.ndarray:
    """The share of near-zero weights along checkpoints: ``[checkpoints, thresholds]``.

    Counted are the entries of tensors with two and more axes below ``threshold`` standard deviations of their own
    tensor; a jump along training is what Jaiswal et al. (2023) call abrupt sparsification.
    """
    if not states:
        raise InputError("states: got none, want at least one state dict")
    rows = []
    for state in states:
        weights = [value for value in state.values() if value.ndim > 1 and value.is_floating_point()]
        total = sum(weight.numel() for weight in weights)
        rows.append([sum(int((w.abs() < t * w.std()).sum()) for w in weights) / max(total, 1) for t in thresholds])
    return np.array(rows)

"""Essential sparsity: how much of a trained network can be cut at once, without training, at no cost.

Lives here: ``essential_sparsity``, ``knee_of`` and ``abrupt_sparsification``. Does not live here: cuts with training
(``cycles``, ``recipes``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_array
from ellzero.network.initial import masks_of
from ellzero.network.moves import along_inputs
from ellzero.network.prunable import prunable
from ellzero.network.recipes import named_allocation
from ellzero.registry import register

__all__ = ["EssentialSparsity", "abrupt_sparsification", "essential_sparsity", "knee_of"]

_GRID = tuple(i / 20 for i in range(20))


@dataclass(frozen=True)
class EssentialSparsity:
    """Quality against sparsity without training, the last sparsity within the tolerance, and the knee of the curve.

    ``sparsities`` are the dropped fractions, counted.
    """

    sparsities: Float[np.ndarray, " cuts"]
    quality: Float[np.ndarray, " cuts"]
    essential: float
    knee: float

    @property
    def slopes(self) -> tuple[float, float]:
        """Mean fall of quality per unit of sparsity before the knee and after it; 0 for a side of one point."""
        place = int(np.searchsorted(self.sparsities, self.knee))
        return self._slope(slice(0, place + 1)), self._slope(slice(place, None))

    def _slope(self, part: slice) -> float:
        s, q = self.sparsities[part], self.quality[part]
        return float((q[0] - q[-1]) / (s[-1] - s[0])) if len(s) > 1 else 0.0


def knee_of(x: Any, y: Any) -> float:
    """The ``x`` whose point lies farthest above the chord from the first point to the last; the first such.

    Raises
    ------
    InputError : fewer than three points, or ``x`` that does not rise.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    check_array("x", x, ndim=1)
    check_array("y", y, shape=x.shape)
    if len(x) < 3 or (np.diff(x) <= 0).any():
        raise InputError(f"x: got {x.tolist()}, want at least three rising numbers")
    chord = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return float(x[int(np.argmax(y - chord))])


@register(
    kind="metric", wing="network", id="S091", source="arXiv:2306.03805", extra="torch", name="essential_sparsity",
    claim="trained networks have a knee: flat under one-shot cuts up to it, steep after",
)  # fmt: skip
@torch.no_grad()
def essential_sparsity(
    model: nn.Module, judge: Callable[[nn.Module], float], sparsities: Sequence[float] = _GRID, *,
    tolerance: float = 0.01, allocation: Any = "global", pattern: Callable[[float], Any] | None = None,
    include: Any = None, exclude: Any = None,
) -> EssentialSparsity:  # fmt: skip
    """Cut the smallest weights at once, at several sparsities, and judge without training. Jaiswal et al. (2023).

    Parameters
    ----------
    model : trained; its weights are as before afterwards, to the bit, also where ``judge`` fails.
    judge : quality, higher being better, as accuracy in [0, 1].
    sparsities : dropped fractions of the prunable weights, rising from 0.
    tolerance : in the units of the quality; ``essential`` is the largest sparsity up to which no point falls below
        ``quality(0) - tolerance``.
    allocation : over layers, as one threshold for the whole network or ``"uniform"``.
    pattern : ``pattern(sparsity)`` giving a constraint along the inputs, as ``NM``, in place of counts; 0 is dense.

    Raises
    ------
    InputError : sparsities that do not rise from 0 below 1, fewer than three, a pattern whose cuts do not rise with
        them, or a quality that is no finite number.
    """
    grid = np.asarray(sparsities, dtype=np.float64)
    check_array("sparsities", grid, ndim=1)
    if len(grid) < 3 or grid[0] != 0 or (np.diff(grid) <= 0).any() or grid[-1] >= 1:
        raise InputError(f"sparsities: got {grid.tolist()}, want at least three, rising from 0 and below 1")
    check("tolerance", tolerance, at_least=0)
    weights = prunable(model, include, exclude)[0]
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    dropped, quality = [], []
    try:
        for sparsity in grid:
            masks = _masks(before, float(sparsity), named_allocation(allocation), pattern)
            dropped.append(sum(int((~m).sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()))
            if len(dropped) > 1 and dropped[-1] <= dropped[-2]:
                raise InputError(f"sparsities: cuts drop {dropped}, want shares that rise; take fewer sparsities")
            for name, weight in weights.items():
                weight.copy_(before[name].masked_fill(~masks[name], 0))
            quality.append(check("judge", float(judge(model)), above=-np.inf, below=np.inf))
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
    at, found = np.array(dropped), np.array(quality)
    within = found >= found[0] - tolerance
    last = len(grid) - 1 if within.all() else int(np.argmin(within)) - 1
    return EssentialSparsity(at, found, float(at[last]), knee_of(at, found))


def _masks(weights: Mapping[str, Tensor], sparsity: float, allocation: Any, pattern: Any) -> Mapping[str, Tensor]:
    sizes = {name: weight.abs() for name, weight in weights.items()}
    if pattern is None or sparsity == 0:
        return masks_of(sizes, 1 - sparsity, allocation=allocation)
    constraint = pattern(sparsity)
    return {name: along_inputs(constraint, size, name) for name, size in sizes.items()}


@torch.no_grad()
def abrupt_sparsification(
    states: Sequence[Mapping[str, Tensor]], thresholds: Sequence[float] = (1e-5, 1e-4, 1e-3)
) -> Float[np.ndarray, "checkpoints thresholds"]:
    """The share of near-zero weights along checkpoints: ``[checkpoints, thresholds]``.

    Counted are the entries of floating-point tensors with two and more axes whose size is below ``threshold`` standard
    deviations of their own tensor; a jump along training is the abrupt sparsification of Jaiswal et al. (2023).

    Raises
    ------
    InputError : no states, one without a weight, or a threshold that is not positive.
    """
    if not len(states):
        raise InputError("states: got none, want at least one state dict")
    for threshold in thresholds:
        check("thresholds", threshold, above=0)
    rows = []
    for state in states:
        weights = [value.double() for value in state.values() if value.ndim > 1 and value.is_floating_point()]
        if not weights:
            raise InputError("states: got one without a tensor of two and more axes, want state dicts of a network")
        total = sum(weight.numel() for weight in weights)
        rows.append([sum(int((w.abs() < t * w.std()).sum()) for w in weights) / total for t in thresholds])
    return np.array(rows)

"""One loss for every nested autoencoder: the reconstruction error at several prefixes of the code, together.

Lives here: ``NestedReconstruction``. Does not live here: which levels a variant has (``presets``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.autoencoder.codes import SparseCode
from ellzero.autoencoder.objective import Step
from ellzero.errors import InputError, check, check_choice, check_integer

__all__ = ["NestedReconstruction"]


@dataclass(frozen=True)
class NestedReconstruction:
    """``sum_j w_j mean ||x - x_hat_j||^2`` over the variance, where ``x_hat_j`` uses the first part of the code only.

    Levels are built up one on another, so all of them together cost one decoding. Each level's derivative is exact.

    Parameters
    ----------
    levels : increasing. ``axis="prefix"``: numbers of latents, ``x_hat_j`` uses latents below ``levels[j]``
    (Matryoshka,
        Bussmann et al., 2025). ``axis="rank"``: numbers of active latents, ``x_hat_j`` uses the ``levels[j]`` largest
        of each row (MSAE, HierarchicalTopK, and the Multi-TopK of Gao et al.); they may exceed the ``k`` of the codes.
    weights : one for each level; their mean by default.
    bias : counts ``b_dec`` alone as one more level.
    error : ``"squared"``, or ``"normalised"``: each row's error over its own ``||x - mean||^2``.
    """

    levels: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    axis: str = "prefix"
    bias: bool = False
    error: str = "squared"

    def __post_init__(self):
        check_choice("axis", self.axis, ("prefix", "rank"))
        check_choice("error", self.error, ("squared", "normalised"))
        if not isinstance(self.levels, Sequence) or not len(self.levels):
            raise InputError(f"levels: got {self.levels!r}, want increasing whole numbers")
        levels = tuple(check_integer("levels", level, at_least=1) for level in self.levels)
        if any(b <= a for a, b in itertools.pairwise(levels)):
            raise InputError(f"levels: got {levels}, want increasing whole numbers")
        object.__setattr__(self, "levels", levels)
        if self.weights is not None:
            weights = tuple(check("weights", weight, at_least=0) for weight in self.weights)
            if len(weights) != len(levels):
                raise InputError(f"weights: got {len(weights)}, want {len(levels)}, one for each level")
            object.__setattr__(self, "weights", weights)

    @property
    def rank(self) -> int:
        """The number of active latents that the deepest level needs; 0 for prefixes."""
        return self.levels[-1] if self.axis == "rank" else 0

    def __call__(self, step: Step) -> Tensor:
        sae = step.sae
        rest = step.x - sae.b_dec
        scale = self._scale(step)
        losses = [self._error(rest, scale, step)] if self.bias else []
        code = step.ranked(self.rank) if self.axis == "rank" else step.z
        first = 0
        for last in self.levels:
            rest = rest - self._part(sae, code, first, last)
            losses.append(self._error(rest, scale, step))
            first = last
        if self.weights is None:
            return torch.stack(losses).mean()
        weights = ([1.0] if self.bias else []) + list(self.weights)
        return sum(weight * loss for weight, loss in zip(weights, losses))

    def _part(self, sae, code: Tensor | SparseCode, first: int, last: int) -> Tensor:
        """What the level adds to the reconstruction of the one before."""
        if self.axis == "rank":
            return sae.combine(SparseCode(code.values[:, first:last], code.indices[:, first:last]))
        if isinstance(code, SparseCode):
            return sae.combine(code.between(first, last))
        return code[:, first:last] @ sae.W_dec[first:last]

    def _scale(self, step: Step) -> Tensor | None:
        if self.error == "squared":
            return None
        return (step.x - step.x.mean(0)).square().sum(1).clamp_min(1e-12)

    def _error(self, rest: Tensor, scale: Tensor | None, step: Step) -> Tensor:
        squared = rest.square().sum(1)
        return squared.mean() / step.spread if scale is None else (squared / scale).mean()

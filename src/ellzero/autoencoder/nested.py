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
from ellzero.kernels import torch_latents

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
        sae, z = step.sae, step.z
        target = step.x - sae.b_dec
        if self.axis == "rank":
            code = step.ranked(self.rank)
            ends = torch.tensor(self.levels, device=target.device)
            errors = torch_latents.nested_rows(code.values, code.indices, sae.W_dec, target, ends).errors
        elif isinstance(z, SparseCode):
            values, indices, ends = torch_latents.by_latent(*z, torch.tensor(self.levels, device=target.device))
            errors = torch_latents.nested_rows(values, indices, sae.W_dec, target, ends).errors
        else:
            errors = self._densely(sae.W_dec, z, target)
        if self.bias:
            errors = torch.cat([target.square().sum(1, keepdim=True), errors], 1)
        if self.error == "normalised":
            spread = (step.x - step.x.mean(0)).square().sum(1, keepdim=True).clamp_min(1e-12)
            losses = (errors / spread).mean(0)
        else:
            losses = errors.mean(0) / step.spread
        if self.weights is None:
            return losses.mean()
        return losses @ losses.new_tensor([1.0] * self.bias + list(self.weights))

    def _densely(self, W_dec: Tensor, z: Tensor, rest: Tensor) -> Tensor:
        """The errors ``[rows, levels]`` of dense codes, each level added to the one before."""
        first, errors = 0, []
        for last in self.levels:
            rest = rest - z[:, first:last] @ W_dec[first:last]
            errors.append(rest.square().sum(1))
            first = last
        return torch.stack(errors, 1)

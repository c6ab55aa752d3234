"""Loss terms of sparse autoencoders, each a value called with one training step.

Lives here: ``Step``, ``SquaredError``, ``L1`` and ``AuxK``. Does not live here: which terms a variant has
(``presets``), the loop or the count of dead latents (``trainer``). Errors are relative to the variance of the data,
so that weights mean the same for activations of any scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.errors import check, check_integer
from ellzero.kernels import torch_ops

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["L1", "AuxK", "SquaredError", "Step"]


@dataclass(frozen=True)
class Step:
    """One batch on its way: input, pre-activations, codes, reconstruction, and which latents are dead.

    ``spread`` is the variance of the activations, summed over features; ``steer`` the factor on a steered price.
    """

    sae: SparseAutoencoder
    x: Float[Tensor, "rows d_in"]
    pre: Float[Tensor, "rows d_sae"]
    z: Float[Tensor, "rows d_sae"]
    x_hat: Float[Tensor, "rows d_in"]
    dead: Bool[Tensor, " d_sae"]
    spread: float
    steer: float = 1.0


@dataclass(frozen=True)
class SquaredError:
    """The mean over rows of ``||x - x_hat||^2``, over the variance of the data: 1 for predicting the mean."""

    def __call__(self, step: Step) -> Tensor:
        return (step.x - step.x_hat).square().sum(1).mean() / step.spread


@dataclass(frozen=True)
class L1:
    """``alpha`` times the mean over rows of ``sum_i z_i ||W_dec_i||``, over the square root of the variance.

    With ``target`` the trainer steers alpha until that many latents are active on average.
    """

    alpha: float = 0.01
    target: float | None = None

    def __post_init__(self):
        check("alpha", self.alpha, at_least=0)
        if self.target is not None:
            check("target", self.target, above=0)
            check("alpha", self.alpha, above=0)

    def __call__(self, step: Step) -> Tensor:
        size = (step.z @ step.sae.W_dec.norm(dim=1)).mean()
        return self.alpha * step.steer * size / math.sqrt(step.spread)


@dataclass(frozen=True)
class AuxK:
    """Latents that died learn from the error: the ``k`` largest of them reconstruct it. Gao et al. (2024), section A.2.

    ``||e - e_hat||^2 / ||e - mean(e)||^2`` over the batch, with ``e = x - x_hat`` held constant and ``e_hat`` without
    ``b_dec``; zero where ``e`` does not vary. A latent is dead when it has not fired for more than ``dead_after`` rows.
    Only the columns of dead latents are touched.
    """

    weight: float = 1 / 32
    k: int = 512
    dead_after: int = 10_000_000

    def __post_init__(self):
        check("weight", self.weight, at_least=0)
        check_integer("k", self.k, at_least=1)
        check_integer("dead_after", self.dead_after, at_least=1)

    def __call__(self, step: Step) -> Tensor:
        columns = step.dead.nonzero().squeeze(1)
        if self.weight == 0 or not len(columns):
            return step.x.new_zeros(())
        error = (step.x - step.x_hat).detach()
        spread = (error - error.mean(0)).square().sum()
        if not spread > 0:
            return step.x.new_zeros(())
        best = torch_ops.top_k(step.pre[:, columns], min(self.k, len(columns)))
        rows = step.sae.W_dec[columns]
        guess = torch.nn.functional.embedding_bag(best.indices, rows, per_sample_weights=best.values.relu(), mode="sum")
        return self.weight * (error - guess).square().sum() / spread

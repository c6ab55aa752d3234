"""Loss terms of sparse autoencoders, each a value called with one training step.

Lives here: ``Step`` and the terms ``SquaredError``, ``L1``, ``L0``, ``AuxK``, ``GateReconstruction`` and ``NormMatch``.
Does not live here: nested reconstructions (``nested``), which terms a variant has (``presets``), the loop or the count
of dead latents (``trainer``). Errors are relative to the variance of the data, so that weights mean the same for
activations of any scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.autoencoder.codes import SparseCode, ranked, size_by_latent
from ellzero.errors import check, check_integer
from ellzero.kernels import torch_latents, torch_ops

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["L0", "L1", "AuxK", "GateReconstruction", "NormMatch", "SquaredError", "Step"]


@dataclass(frozen=True)
class Step:
    """One batch on its way: input, pre-activations, codes, reconstruction, and which latents are dead.

    ``pre`` is None where the sparse engine never forms it, and ``z`` a ``SparseCode`` then. ``spread`` is the variance
    of the activations, summed over features; ``steer`` the factor on a steered price; ``progress`` the fraction of the
    run that is done; ``rate`` the running share of rows on which each latent fires; ``beside`` what came with each row;
    ``scale`` what the rows were multiplied by; ``across`` the other processes, where each has some rows of the batch.
    """

    sae: SparseAutoencoder
    x: Float[Tensor, "rows d_in"]
    pre: Float[Tensor, "rows d_sae"] | None
    z: Float[Tensor, "rows d_sae"] | SparseCode
    x_hat: Float[Tensor, "rows d_in"]
    dead: Bool[Tensor, " d_sae"]
    spread: float
    steer: float = 1.0
    progress: float = 1.0
    rate: Float[Tensor, " d_sae"] | None = None
    beside: Any = None
    wide: SparseCode | None = field(default=None)
    scale: float = 1.0
    across: Any = None

    def spread_of(self, error: Float[Tensor, "rows d_in"]) -> Tensor:
        """``sum ||e - mean(e)||^2`` over the batch, times this process's share of its rows."""
        if self.across is not None:
            return self.across.spread(error)
        return (error - error.mean(0)).square().sum()

    def ranked(self, k: int) -> SparseCode:
        """The ``k`` largest activations of each row, more than the codes keep if need be."""
        known = self.wide if self.wide is not None else self.z if isinstance(self.z, SparseCode) else None
        if known is not None and known.values.shape[1] >= k:
            return known.first(k)
        pre = self.pre if self.pre is not None else self.sae.pre(self.x)
        return ranked(pre.relu() if self.sae.encoder.rule == "relu" else pre, k)


def _warmed(weight: float, warm: float, progress: float) -> float:
    """A weight that grows linearly from 0 during the first part of the run."""
    return weight * min(progress / warm, 1.0) if warm > 0 else weight


@dataclass(frozen=True)
class SquaredError:
    """The mean over rows of ``||x - x_hat||^2``, over the variance of the data: 1 for predicting the mean."""

    def __call__(self, step: Step) -> Tensor:
        return (step.x - step.x_hat).square().sum(1).mean() / step.spread


@dataclass(frozen=True)
class L1:
    """``alpha`` times the mean over rows of ``sum_i z_i ||W_dec_i||``, over the square root of the variance.

    With ``target`` the trainer steers alpha until that many latents are active on average. ``of="gate"`` prices the
    gate's rectified pre-activations in place of the codes. ``warm`` is the part of the run during which the price grows
    from 0.
    """

    alpha: float = 0.01
    target: float | None = None
    of: str = "code"
    warm: float = 0.0

    def __post_init__(self):
        _check_price(self)

    def __call__(self, step: Step) -> Tensor:
        z = step.pre.relu() if self.of == "gate" else step.z
        size = size_by_latent(z, step.sae.W_dec.norm(dim=1)).mean()
        return _warmed(self.alpha, self.warm, step.progress) * step.steer * size / math.sqrt(step.spread)


@dataclass(frozen=True)
class L0:
    """``alpha`` times the mean number of active latents, the derivative reaching the thresholds by the selection's
    kernel.

    ``alpha * mean sum_i H(pre_i - threshold_i)`` (Rajamanoharan et al., 2024, equation 9). With ``target`` the trainer
    steers alpha.
    """

    alpha: float = 0.001
    target: float | None = None
    warm: float = 0.0

    def __post_init__(self):
        _check_price(self)

    def __call__(self, step: Step) -> Tensor:
        on = step.sae.gradient.step(step.pre, step.sae.thresholds()).sum(1).mean()
        return _warmed(self.alpha, self.warm, step.progress) * step.steer * on


def _check_price(term: Any) -> None:
    check("alpha", term.alpha, at_least=0)
    check("warm", term.warm, at_least=0, at_most=1)
    if term.target is not None:
        check("target", term.target, above=0)
        check("alpha", term.alpha, above=0)


@dataclass(frozen=True)
class GateReconstruction:
    """The rectified gate alone must reconstruct, through a decoder that it cannot move. Rajamanoharan et al. (2024).

    ``||x - (relu(pre) W_dec + b_dec)||^2`` over the variance, with ``W_dec`` and ``b_dec`` held constant.
    """

    def __call__(self, step: Step) -> Tensor:
        guess = step.pre.relu() @ step.sae.W_dec.detach() + step.sae.b_dec.detach()
        return (step.x - guess).square().sum(1).mean() / step.spread


@dataclass(frozen=True)
class NormMatch:
    """``weight`` times the mean of ``(||z|| - ||x - b_dec||)^2`` over the variance, with rows of unit norm."""

    weight: float = 0.1

    def __post_init__(self):
        check("weight", self.weight, at_least=0)

    def __call__(self, step: Step) -> Tensor:
        norms = step.sae.W_dec.norm(dim=1)
        z = step.z
        scaled = z.values * norms[z.indices] if isinstance(z, SparseCode) else z * norms
        gap = scaled.norm(dim=1) - (step.x - step.sae.b_dec).norm(dim=1)
        return self.weight * gap.square().mean() / step.spread


@dataclass(frozen=True)
class AuxK:
    """Latents that died learn from the error: the ``k`` largest of them reconstruct it. Gao et al. (2024), section A.2.

    ``||e - e_hat||^2 / ||e - mean(e)||^2`` over the batch, with ``e = x - x_hat`` held constant and ``e_hat`` without
    ``b_dec``; zero where ``e`` does not vary. A latent is dead when it has not fired for more than ``dead_after`` rows.
    Only the columns of dead latents are touched. Signed codes go by magnitude.
    """

    weight: float = 1 / 32
    k: int = 512
    dead_after: int = 10_000_000

    def __post_init__(self):
        check("weight", self.weight, at_least=0)
        check_integer("k", self.k, at_least=1)
        check_integer("dead_after", self.dead_after, at_least=1)

    def chosen(self, step: Step) -> Bool[Tensor, " d_sae"]:
        """The latents that reconstruct the error."""
        return step.dead

    def __call__(self, step: Step) -> Tensor:
        columns = self.chosen(step).nonzero().squeeze(1)
        if self.weight == 0 or not len(columns):
            return step.x.new_zeros(())
        error = (step.x - step.x_hat).detach()
        spread = step.spread_of(error)
        if not spread > 0:
            return step.x.new_zeros(())
        sae = step.sae
        pre = step.pre[:, columns] if step.pre is not None else sae.encoder.some(sae, step.x, columns)
        k = min(self.k, len(columns))
        if sae.encoder.rule == "absolute":
            values, indices = ranked(pre, k)
        else:
            values, indices = torch_ops.top_k(pre, k)
            values = values.relu()
        guess = torch_latents.decode_rows(values, indices, sae.W_dec[columns])
        return self.weight * (error - guess).square().sum() / spread

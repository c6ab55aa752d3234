"""Selections that only autoencoders have: thresholds learnt or calibrated, and budgets that move during training.

Lives here: ``Jump``, ``ScheduledTopK``, ``CalibratedThreshold`` and ``LatentThresholds``. Does not live here: the
selections that every wing shares (``ellzero.parts.constraints``), which serve as they are.

A selection has ``support(scores)``. One that depends on the rows has ``for_rows(sae, x, beside)``, which gives the
selection for these rows; one that moves during training has ``at(progress)``; one that learns has ``extra(d_in,
d_sae)``, tensors of the autoencoder by name, and ``rescale(sae, factor)``, which fits them to ``factor * x``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.errors import check, check_integer
from ellzero.parts.constraints import BatchTopK, TopK

__all__ = ["CalibratedThreshold", "Jump", "LatentThresholds", "ScheduledTopK"]


@dataclass(frozen=True)
class Jump:
    """A latent is on above its own threshold, which is learnt. Rajamanoharan et al. (2024), equation 3.

    Parameters
    ----------
    initial : of all thresholds, in units of inputs whose mean square is 1 per feature.
    log : the logarithm is learnt, as in the paper. Adam then moves a threshold by a factor, and a short run never gets
        sparse; the threshold itself, kept at zero or above, is the default.
    """

    initial: float = 0.001
    log: bool = False

    def __post_init__(self):
        check("initial", self.initial, above=0)

    def support(self, scores: Float[Tensor, "rows d_sae"], threshold: Tensor) -> Bool[Tensor, "rows d_sae"]:
        """Where the score is above the threshold."""
        return scores > threshold


@dataclass(frozen=True)
class ScheduledTopK:
    """``TopK`` whose ``k`` follows a schedule of the progress; k-sparse autoencoders start with many and end with few.

    ``schedule(progress)`` is rounded to the nearest whole number, at least 1.
    """

    schedule: Any
    k: int

    def __post_init__(self):
        check_integer("k", self.k, at_least=1)

    def at(self, progress: float) -> TopK:
        """The selection when that fraction of the run is done."""
        return TopK(max(round(self.schedule(progress)), 1))

    def support(self, scores: Float[Tensor, "rows d_sae"]) -> Bool[Tensor, "rows d_sae"]:
        """That of ``TopK(k)``, where no run is on."""
        return TopK(self.k).support(scores)


@dataclass(frozen=True)
class CalibratedThreshold:
    """At inference a latent is active above a threshold, set so that ``k`` are active on average over a sample.

    What a selection over the batch needs, since one activation must not depend on the others beside it.
    """

    k: int

    def find(self, scores: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " d_sae"]:
        """Halfway between the last activation that ``BatchTopK(k)`` keeps and the next one below it; at least zero."""
        kept = BatchTopK(self.k).support(scores)
        last = scores[kept].min() if bool(kept.any()) else scores.max()
        below = scores[~kept].max() if not bool(kept.all()) else torch.zeros(()).to(scores)
        return ((last + below) / 2).clamp_min(0).expand(scores.shape[1]).clone()


@dataclass(frozen=True)
class LatentThresholds:
    """A threshold for each latent: halfway between the last score that ``select`` keeps for it and the next below.

    What Feature Choice needs. A latent that the sample never keeps gets its largest score, so it stays off there.
    """

    select: Any

    def for_rows(self, sae: Any, x: Float[Tensor, "rows d_in"], beside: Any = None) -> LatentThresholds:
        """With the selection for these rows, where it depends on them."""
        select = self.select
        return LatentThresholds(select.for_rows(sae, x, beside)) if hasattr(select, "for_rows") else self

    def find(self, scores: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " d_sae"]:
        """The thresholds ``[d_sae]``, at least zero."""
        kept = self.select.support(scores)
        infinity = torch.full((), torch.inf).to(scores)
        last = scores.where(kept, infinity).amin(0)
        below = scores.where(~kept, -infinity).amax(0)
        middle = (last + below.clamp_min(0)) / 2
        return middle.where(kept.any(0), below).where(~kept.all(0), last.nextafter(-infinity)).clamp_min(0)

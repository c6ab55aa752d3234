"""Sparsity as a matching of rows and latents: each latent chooses its rows, as many as its share of the budget.

Lives here: ``FeatureChoice``, ``Zipf`` (how often latents are expected to fire) and the loss term ``AuxZipf``. Does not
live here: the choice over the whole batch, which is ``BatchTopK``, or of each row, ``TopK``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ellzero.autoencoder.objective import AuxK, Step
from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.constraints import BatchTopK, FeatureTopK

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["AuxZipf", "FeatureChoice", "Zipf", "feature_counts"]


@dataclass(frozen=True)
class Zipf:
    """The latent of rank r, from 1, fires in proportion to ``(r + beta) ** -gamma``. Zipf and Mandelbrot (1953)."""

    gamma: float = 1.0
    beta: float = 0.0

    def __post_init__(self):
        check("gamma", self.gamma, at_least=0, below=math.inf)
        check("beta", self.beta, above=-1, below=math.inf)

    @classmethod
    def fit(cls, rate: np.ndarray) -> Zipf:
        """The least squares fit to the logarithms of the rates above zero, sorted; beta from 0, 1, 2, 4, ..., n / 2."""
        rate = np.sort(np.asarray(rate, dtype=np.float64))[::-1]
        rate = rate[rate > 0]
        if len(rate) < 3:
            return cls(0.0)
        y, rank = np.log(rate), np.arange(1, len(rate) + 1)
        best = (math.inf, 0.0, 0.0)
        for beta in (0, *(2**j for j in range(max(len(rate).bit_length() - 1, 1)))):
            x = np.log(rank + beta)
            centred = x - x.mean()
            slope = centred @ y / (centred @ centred)
            error = np.square(y - y.mean() - slope * centred).sum()
            best = min(best, (error, -slope, float(beta)))
        return cls(max(best[1], 0.0), best[2])

    def weights(self, n: int) -> np.ndarray:
        """Of ranks 1 to n, summing to 1."""
        found = (np.arange(1, n + 1) + self.beta) ** -self.gamma
        return found / found.sum()


def feature_counts(weights: np.ndarray, total: int, most: int) -> np.ndarray:
    """Whole numbers in proportion to the weights that sum to ``total``, none above ``most`` nor 0 where that can be.

    Largest remainders get what rounding down leaves; a draw goes to the first.
    """
    n = len(weights)
    check_integer("total", total, at_least=0, at_most=n * most)
    least = 1 if total >= n else 0
    low, high = 0.0, 2.0 * max(total, 1) / max(float(weights.min()), 1e-300)
    for _ in range(200):  # the multiple of the weights that, held within the bounds, sums to the total
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * weights, least, most).sum() < total else (low, middle)
        if high - low <= 1e-12 * high:
            break
    exact = np.clip(high * weights, least, most)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    short = total - int(counts.sum())
    room = counts < most if short > 0 else counts > least
    order = np.argsort(np.where(room, -(exact - counts) if short > 0 else exact - counts, math.inf), kind="stable")
    counts[order[: abs(short)]] += 1 if short > 0 else -1
    return counts


@dataclass(frozen=True)
class FeatureChoice:
    """Each latent keeps the ``m_i`` rows of the batch with its largest scores; the ``m_i`` sum to ``k`` per row.

    Ayonrinde (2024). No latent can die, as each has a row or more in every batch of ``d_sae / k`` rows. Which latent is
    allowed how many goes by the order of how often they fired so far. Needs the whole batch: at inference
    ``LatentThresholds``.

    Parameters
    ----------
    k : latents per row on average.
    allocation : ``"zipf"``, or ``"uniform"`` for the same ``m_i`` for all.
    gamma, beta : of the ``Zipf``; without ``gamma`` both are fitted to how often latents fired when the choice begins,
        and kept in the buffer ``zipf`` ``[2]`` of the autoencoder.
    after : the part of the run before it begins, with ``BatchTopK(k)`` in its place (mutual choice).
    """

    k: int
    allocation: str = "zipf"
    gamma: float | None = None
    beta: float = 0.0
    after: float = 0.0

    def __post_init__(self):
        check_integer("k", self.k, at_least=1)
        check_choice("allocation", self.allocation, ("zipf", "uniform"))
        check("after", self.after, at_least=0, at_most=1)
        if self.gamma is not None:
            Zipf(self.gamma, self.beta)

    def extra(self, d_in: int, d_sae: int) -> Mapping[str, Tensor]:
        """``gamma`` and ``beta``, not fitted yet unless given."""
        known = (math.nan, math.nan) if self.gamma is None else (self.gamma, self.beta)
        return {"zipf": nn.Buffer(torch.tensor(known if self.allocation == "zipf" else (0.0, 0.0)))}

    def at(self, progress: float) -> BatchTopK | FeatureChoice:
        """Mutual choice first."""
        return BatchTopK(self.k) if progress < self.after else self

    @torch.no_grad()
    def for_rows(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], beside: Any = None) -> FeatureTopK:
        """The selection of a batch of so many rows. Before any training all latents are allowed equally many."""
        if x is None:
            raise InputError("x: got None, want rows: FeatureChoice counts them")
        rate = _rate(sae)
        if rate is not None and not bool(sae.zipf.isfinite().all()):
            fitted = Zipf.fit(rate)
            sae.zipf.copy_(torch.tensor([fitted.gamma, fitted.beta]))
        curve = Zipf(*sae.zipf.tolist()) if bool(sae.zipf.isfinite().all()) else Zipf(0.0)
        counts = np.empty(sae.d_sae, dtype=np.int64)
        order = np.arange(sae.d_sae) if rate is None else np.argsort(-rate, kind="stable")
        counts[order] = feature_counts(curve.weights(sae.d_sae), self.k * len(x), len(x))
        return FeatureTopK(tuple(counts.tolist()))


def _rate(sae: SparseAutoencoder) -> np.ndarray | None:
    """The share of rows on which each latent fired lately, float64; None before training."""
    rate = getattr(sae, "rate", None)
    return rate.double().cpu().numpy() if rate is not None and bool((rate > 0).any()) else None


@dataclass(frozen=True)
class AuxZipf(AuxK):
    """As ``AuxK``, of latents that are dead or fire less often than ``share`` of what their rank lets expect.

    The expectation is the ``Zipf`` of the autoencoder's buffer, or else fitted to the running rates; it sums to the
    rates' sum. Ayonrinde (2024), where ``share`` is 1; with half of all latents then in use by this term, it takes from
    what they mean to the code, so the default is lower.
    """

    share: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check("share", self.share, at_least=0, at_most=1)

    def chosen(self, step: Step) -> Bool[Tensor, " d_sae"]:
        """The latents that reconstruct the error."""
        rate = step.rate.double().cpu().numpy()
        order = np.argsort(-rate, kind="stable")
        known = getattr(step.sae, "zipf", None)
        curve = Zipf(*known.tolist()) if known is not None and bool(known.isfinite().all()) else Zipf.fit(rate)
        expected = np.empty(len(rate))
        expected[order] = np.minimum(curve.weights(len(rate)) * rate.sum(), 1.0)
        return step.dead | torch.from_numpy(rate < self.share * expected).to(step.dead.device)

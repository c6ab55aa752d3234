"""As many latents as a row is complex: ``k`` for each row from a linear probe on the row itself.

Lives here: ``AdaptiveTopK``, ``fit_probe``, the terms ``RelativeL1`` and ``ProbeLoss``, and ``unigram_surprisal``, a
complexity that needs no judge. Does not live here: the selection by a count for each row (``parts.constraints``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ellzero.autoencoder.codes import size_by_latent
from ellzero.autoencoder.objective import Step
from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.constraints import FeatureTopK
from ellzero.rng import rng

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["AdaptiveTopK", "FittedProbe", "ProbeLoss", "RelativeL1", "fit_probe", "unigram_surprisal"]

_MOST = 10.0  # complexities go from 0 to here
_STEEP = 6.0
_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_FOLDS = 5


@dataclass(frozen=True)
class AdaptiveTopK:
    """``k(x) = round(k_min + (k_max - k_min) sigmoid(6 (s - c)))`` largest scores of each row. AdaptiveK (2025).

    ``s`` is the probe's complexity ``clamp(x . probe_weight + probe_bias, 0, 10) / 10``, and ``c`` is
    ``probe_centre``. The three are tensors of the autoencoder that ``fit_probe`` sets: parameters the former two, the
    centre a buffer, 0.5 in the paper. ``probe_start`` ``[d_in + 1]`` keeps what was fitted, weight and bias.

    Parameters
    ----------
    k_min, k_max : the fewest and the most latents of a row.
    mean : the average that ``fit_probe`` sets the centre for; None leaves it at 0.5.
    """

    k_min: int
    k_max: int
    mean: float | None = None

    def __post_init__(self):
        check_integer("k_min", self.k_min, at_least=1)
        check_integer("k_max", self.k_max, at_least=self.k_min)
        if self.mean is not None:
            check("mean", self.mean, at_least=self.k_min, at_most=self.k_max)

    def extra(self, d_in: int, d_sae: int) -> Mapping[str, Tensor]:
        """The probe, not fitted yet."""
        if self.k_max > d_sae:
            raise InputError(f"k_max: got {self.k_max}, want at most {d_sae}, the number of latents")
        return {
            "probe_weight": torch.zeros(d_in), "probe_bias": torch.zeros(1),
            "probe_start": nn.Buffer(torch.full((d_in + 1,), torch.nan)),
            "probe_centre": nn.Buffer(torch.full((1,), 0.5)),
        }  # fmt: skip

    def rescale(self, sae: SparseAutoencoder, factor: float) -> None:
        """The same complexities for ``factor * x``."""
        sae.probe_weight.div_(factor)
        sae.probe_start[:-1].div_(factor)

    def complexity(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
        """From 0 to 10."""
        return (x @ sae.probe_weight + sae.probe_bias).clamp(0, _MOST)

    @torch.no_grad()
    def counts(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Int64[Tensor, " rows"]:
        """``k(x)`` of each row."""
        return self._counts(self.complexity(sae, x), sae.probe_centre)

    def _counts(self, complexity: Tensor, centre: Tensor | float) -> Tensor:
        share = torch.sigmoid(_STEEP * (complexity / _MOST - centre))
        return (self.k_min + (self.k_max - self.k_min) * share).round().long().clamp(self.k_min, self.k_max)

    def for_rows(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], beside: Any = None) -> FeatureTopK:
        """The selection of these rows: one sort, and a count for each."""
        if x is None:
            raise InputError("x: got None, want rows: AdaptiveTopK counts by them")
        if not bool(sae.probe_start.isfinite().all()):
            raise InputError("probe: not fitted yet, want fit_probe(sae, x, complexity) first")
        return FeatureTopK(tuple(self.counts(sae, x).tolist()), axis=0)


class FittedProbe(NamedTuple):
    """What ``fit_probe`` found: the penalty, R^2 on rows left out, the centre, and the mean of ``k(x)``."""

    penalty: float
    r2: float
    centre: float
    mean: float


@torch.no_grad()
def fit_probe(sae: SparseAutoencoder, x: Any, complexity: Any, *, seed: int = 0) -> FittedProbe:
    """Fit the probe of an autoencoder with ``AdaptiveTopK`` by ridge regression, and set its centre.

    The penalty is the one of 0.01, 0.1, ..., 1000 with the least squared error over 5 folds, on rows scaled to a mean
    square of 1 per feature and with a free intercept. With ``mean`` the centre is then such that ``k(x)`` averages to
    it over these rows.

    Parameters
    ----------
    x, complexity : rows ``[n, d_in]`` and how hard each is, from 0 to 10.

    Raises
    ------
    InputError : another selection, complexities outside [0, 10] or all equal, fewer rows than folds.
    """
    select = sae.select
    if not isinstance(select, AdaptiveTopK):
        raise InputError(f"sae: selects by {type(select).__name__}, want AdaptiveTopK")
    check_array("x", x, ndim=2, shape=(None, sae.d_in), dtypes="f")
    check_array("complexity", complexity, ndim=1, shape=(len(x),), dtypes="fiu")
    x = sae.normalized(torch.as_tensor(x).to(sae.W_dec))
    x, y = x.double().cpu(), torch.as_tensor(complexity).double().cpu()
    for extreme in (float(y.min()), float(y.max())):
        check("complexity", extreme, at_least=0, at_most=_MOST)
    if len(x) < 2 * _FOLDS or not bool((y != y[0]).any()):
        raise InputError(f"complexity: got {len(y)} values that do not vary, want at least {2 * _FOLDS} that do")
    scale = float(x.square().mean().sqrt()) or 1.0
    x = x / scale
    fold = torch.from_numpy(rng(seed, "probe folds").permutation(len(x)) % _FOLDS)
    errors = torch.zeros(len(_PENALTIES), dtype=torch.float64)
    for one in range(_FOLDS):
        weights, biases = _ridge(x[fold != one], y[fold != one])
        told = (x[fold == one] @ weights.T + biases).clamp(0, _MOST)
        errors += (told - y[fold == one, None]).square().sum(0)
    best = int(errors.argmin())
    weights, biases = _ridge(x, y)
    sae.probe_weight.copy_(weights[best] / scale)
    sae.probe_bias.copy_(biases[best : best + 1])
    sae.probe_start.copy_(torch.cat([sae.probe_weight, sae.probe_bias]))
    told = (x @ weights[best] + biases[best]).clamp(0, _MOST)
    if select.mean is not None:
        sae.probe_centre.fill_(_centre(select, told))
    found = float(select._counts(told, float(sae.probe_centre)).double().mean())
    r2 = 1 - float(errors[best] / (y - y.mean()).square().sum())
    return FittedProbe(_PENALTIES[best], r2, float(sae.probe_centre), found)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights ``[penalties, d]`` and intercepts of ``||y - x w - b||^2 + penalty ||w||^2``, by one eigenproblem."""
    mean, middle = x.mean(0), y.mean()
    centred = x - mean
    size, turn = torch.linalg.eigh(centred.T @ centred)
    target = turn.T @ (centred.T @ (y - middle))
    penalties = torch.tensor(_PENALTIES, dtype=x.dtype)
    weights = (target / (size.clamp_min(0) + penalties[:, None])) @ turn.T
    return weights, middle - weights @ mean


def _centre(select: AdaptiveTopK, complexity: Tensor) -> float:
    """By bisection: the mean count falls as the centre rises."""
    low, high = -2.0, 3.0
    for _ in range(50):
        middle = (low + high) / 2
        if float(select._counts(complexity, middle).double().mean()) > select.mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True)
class RelativeL1:
    """``alpha`` times the mean of ``sum_i |z_i| ||W_dec_i||`` over that of ``||x||``. AdaptiveK (2025)."""

    alpha: float = 0.005

    def __post_init__(self):
        check("alpha", self.alpha, at_least=0)

    def __call__(self, step: Step) -> Tensor:
        size = size_by_latent(step.z, step.sae.W_dec.norm(dim=1)).mean()
        return self.alpha * size / step.x.norm(dim=1).mean().clamp_min(1e-12)


@dataclass(frozen=True)
class ProbeLoss:
    """In the last part of the run the probe learns on: ``weight * mean (complexity(x) - beside)^2 / 100``.

    To it comes ``anchor`` times the mean squared distance of the probe from what was fitted. ``beside`` is each row's
    complexity; without it only the anchor holds. Before ``after`` of the run the probe stays as it is.
    """

    weight: float = 0.05
    anchor: float = 0.05
    after: float = 0.9

    def __post_init__(self):
        check("weight", self.weight, at_least=0)
        check("anchor", self.anchor, at_least=0)
        check("after", self.after, at_least=0, at_most=1)

    def __call__(self, step: Step) -> Tensor:
        if step.progress < self.after:
            return step.x.new_zeros(())
        sae = step.sae
        probe = torch.cat([sae.probe_weight, sae.probe_bias])
        loss = self.anchor * (probe - sae.probe_start).square().mean()
        if step.beside is not None:
            gap = sae.select.complexity(sae, step.x) - step.beside.to(step.x)
            loss = loss + self.weight * (gap / _MOST).square().mean()
        return loss


def unigram_surprisal(tokens: Any) -> np.ndarray:
    """How rare each token is, from 0 for the most frequent to 10 for the least: ``-log`` of its share, scaled.

    ``tokens`` are whole numbers ``[n]``; a complexity of the rows at the same places.
    """
    tokens = check_array("tokens", np.asarray(tokens), ndim=1, dtypes="iu")
    _, place, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    surprisal = -np.log(counts / len(tokens))
    spread = np.ptp(surprisal)
    if spread == 0:
        raise InputError("tokens: all are equally frequent, want some rarer than others")
    return (_MOST * (surprisal - surprisal.min()) / spread)[place].astype(np.float32)

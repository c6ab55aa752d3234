"""Penalties of a batch of activations: how busy the columns are, as one number.

Lives here: ``value(x)`` of rows ``[batch, columns]`` (of ``[..., columns]``, all leading axes together), in NumPy or
torch. Does not live here: when a penalty sets in (``schedules``), nor what the columns are (terms, latents, units).
They act on means over the batch: of two half batches, the mean of the values is not the value of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array
from ellzero.parts.namespace import is_torch, like, namespace
from ellzero.registry import register

__all__ = ["Flops", "L0Mask", "L1Activity"]


def _rows(x: Any) -> Any:
    """``x`` as ``[rows, columns]``, without a scan for numbers that are not finite (it runs in every step)."""
    check_array("x", x, dtypes="f", finite=False)
    if x.ndim < 2:
        raise InputError(f"x: got shape {tuple(x.shape)}, want [batch, columns]")
    return x.reshape(-1, x.shape[-1])


def _busy(x: Any, weights: Any) -> Any:
    """Mean magnitude of each column over the batch, times its weight."""
    rows = _rows(x)
    mean = abs(rows).mean(0)
    if weights is None:
        return mean
    if len(weights) != rows.shape[1]:
        raise InputError(f"weights: got {len(weights)}, want one for each of the {rows.shape[1]} columns")
    return mean * like(x, weights)


def _check_weights(weights: Any) -> None:
    if weights is None:
        return
    plain = np.asarray(weights.detach().cpu() if is_torch(weights) else weights, np.float64)
    check_array("weights", plain, ndim=1)
    if (plain < 0).any():
        raise InputError(f"weights: got {plain.min()}, want numbers of at least 0")


@register(kind="activity", id="S056", source="arXiv:2004.05665", example=lambda: Flops(),
          claim="at a recall within a point the surrogate of FLOPs needs fewer multiply-adds than L1")  # fmt: skip
@dataclass(frozen=True, eq=False)
class Flops:
    """The expected multiply-adds of two sparse rows, relaxed: ``sum_j (u_j mean_i |x_ij|)^2``. Paria et al. (2020).

    With ``p_j`` the probability that column j is active, two rows of the same kind meet in ``sum_j p_j^2`` columns
    (section 3.1); the relaxation puts the mean magnitude in place of ``p_j`` (equation 4). An entry's derivative is
    ``2 u_j^2 a_j sign(x_ij) / n``: busy columns are pushed down harder, so activity spreads evenly. The mean stands
    inside the square; on very small batches the value is biased upwards and acts like an L1 norm.

    Parameters
    ----------
    weights : ``u``, one number of at least 0 for each column; None for 1. An inverse document frequency's inverse
        spares rare terms.
    """

    weights: Any = None

    def __post_init__(self):
        _check_weights(self.weights)

    def value(self, x: Any) -> Any:
        """A scalar of the array's own kind, dtype and device."""
        return (_busy(x, self.weights) ** 2).sum()


@register(kind="activity", source="arXiv:2107.05720", example=lambda: L1Activity())
@dataclass(frozen=True, eq=False)
class L1Activity:
    """The mean L1 norm of the rows, ``sum_j u_j mean_i |x_ij|``: it pushes all columns down alike."""

    weights: Any = None

    def __post_init__(self):
        _check_weights(self.weights)

    def value(self, x: Any) -> Any:
        """A scalar of the array's own kind, dtype and device."""
        return _busy(x, self.weights).sum()


@register(kind="activity", id="S098", source="arXiv:2504.14839", example=lambda: L0Mask(threshold=2),
          claim="documents that are sparse already are spared; that lengths spread less was not seen")  # fmt: skip
@dataclass(frozen=True, eq=False)
class L0Mask:
    """Another penalty, of the rows with more than ``threshold`` active entries only. Geng et al. (2025).

    ``penalty(M(x) x)`` with ``M(x_i) = 1`` where ``||x_i||_0 > threshold``, else 0. The mask is a constant for the
    derivative, and the batch keeps its size: a row that is masked counts as a row of zeros. Rows then stay near the
    threshold, so it belongs slightly below the budget. That lengths spread less at the same mean, as reported for whole
    models, was not seen with heads on a frozen body and texts of 48 tokens: quartiles 13 apart, 14 without the mask.
    """

    penalty: Any = field(default_factory=Flops)
    threshold: float = 128

    def __post_init__(self):
        if not hasattr(self.penalty, "value"):
            raise InputError(f"penalty: got {type(self.penalty).__name__}, want one of activity, such as Flops()")
        check("threshold", self.threshold, at_least=0, below=math.inf)

    def value(self, x: Any) -> Any:
        """A scalar of the array's own kind, dtype and device."""
        rows = _rows(x)
        long = (rows != 0).sum(-1) > self.threshold
        return self.penalty.value(namespace(x).where(long[:, None], rows, like(x, 0.0)))

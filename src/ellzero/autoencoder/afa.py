"""Latents until their norm is the input's: a selection without ``k``, and how orthogonal a dictionary acts.

Lives here: ``PrefixNorm``, and the diagnostics ``zf_plot`` and ``coherence``. Does not live here: the loss term that
matches norms (``objective``). With nearly orthogonal unit atoms ``||sum_i z_i w_i||`` is about ``||z||``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.autoencoder.metrics import batches
from ellzero.errors import InputError
from ellzero.kernels import torch_ops
from ellzero.registry import register

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["PrefixNorm", "ZFPlot", "coherence", "zf_plot"]

_FIRST = 64  # latents ranked before it is known how many a row needs


@dataclass(frozen=True)
class PrefixNorm:
    """The largest latents of a row, as many as bring ``||z||`` nearest to ``||x - b_dec||``. top-AFA (2025).

    With ``a_i = (relu(pre_i) ||W_dec_i||)^2`` in descending order and ``c_j`` their running sum, row x keeps the first
    ``1 + argmin_j |sqrt(c_j) - ||x - b_dec|||`` of them, j = 0, ..., d_sae - 1: one at least, all at most.
    """

    def for_rows(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], beside: Any = None) -> _UpToNorm:
        """The selection of these rows."""
        if x is None:
            raise InputError("x: got None, want rows: PrefixNorm goes by their norms")
        return _UpToNorm((x - sae.b_dec).detach().norm(dim=1), sae.W_dec.detach().norm(dim=1))


@dataclass(frozen=True, eq=False)
class _UpToNorm:
    """``PrefixNorm`` of given rows: their norms, and those of the atoms."""

    target: Float[Tensor, " rows"]
    norms: Float[Tensor, " d_sae"]

    def support(self, scores: Float[Tensor, "rows d_sae"]) -> Bool[Tensor, "rows d_sae"]:
        """Ranks no more than rows need: twice as many until all have passed their norm."""
        size = scores.detach().clamp_min(0) * self.norms
        width = min(_FIRST, size.shape[1])
        while True:
            found = torch_ops.top_k(size, width)
            reached = found.values.square().cumsum(1).sqrt()
            # past its norm a row only gets further from it, so what was not ranked cannot be nearer
            if width == size.shape[1] or bool((reached[:, -1] >= self.target).all()):
                break
            width = min(2 * width, size.shape[1])
        count = (reached - self.target[:, None]).abs().argmin(1) + 1
        kept = torch.arange(width, device=size.device) < count[:, None]
        return torch.zeros_like(size, dtype=torch.bool).scatter(1, found.indices, kept)


@dataclass(frozen=True, eq=False)
class ZFPlot:
    """One entry per row: what a plot of ``||z||`` against ``||x - b_dec||`` shows. Norms of z count atoms' norms."""

    inputs: np.ndarray
    """``||x - b_dec||``."""
    codes: np.ndarray
    """``||z||``."""
    reconstructions: np.ndarray
    """``||z W_dec||``."""
    active: np.ndarray
    """How many latents."""
    bounds: np.ndarray
    """``| ||z W_dec||^2 - ||z||^2 | / (||z||_1^2 - ||z||^2)``: no dictionary of a coherence below it gives these norms.

    0 where at most one latent is active.
    """

    @property
    def slope(self) -> float:
        """Of the line through the origin that fits ``codes`` on ``inputs`` best."""
        return float(self.codes @ self.inputs / (self.inputs @ self.inputs))

    @property
    def bound(self) -> float:
        """The largest lower bound of the coherence."""
        return float(self.bounds.max())


@register(kind="metric", wing="autoencoder", id="S107", source="arXiv:2503.24277", extra="torch")
@torch.no_grad()
def zf_plot(sae: Any, x: Any) -> ZFPlot:
    """Norms of codes against norms of inputs, and what they say of the dictionary's coherence.

    Since ``||z W||^2 - ||z||^2 = sum_{i != j} z_i z_j <w_i, w_j>`` for unit atoms, the coherence is at least the left
    side's magnitude over ``||z||_1^2 - ||z||^2``. It is taken of the reconstruction, where it holds exactly.

    Parameters
    ----------
    sae : anything with ``encode``, ``W_dec`` and ``b_dec``.
    x : rows ``[n, d_in]``, an array or batches.
    """
    norms = sae.W_dec.norm(dim=1)
    parts = []
    for rows in batches(sae, x):
        z = sae.encode(rows) * norms
        told = z @ (sae.W_dec / norms.clamp_min(1e-12)[:, None])
        size, squared = z.norm(dim=1), told.norm(dim=1)
        room = z.double().abs().sum(1).square() - z.double().square().sum(1)
        gap = (told.double().square().sum(1) - z.double().square().sum(1)).abs()
        active = (z != 0).sum(1)
        bound = torch.where(active > 1, gap / room.clamp_min(1e-300), torch.zeros_like(gap))
        seen = sae.normalized(rows) if hasattr(sae, "normalized") else rows
        parts.append([(seen - sae.b_dec).norm(dim=1), size, squared, active, bound])
    if not parts:
        raise InputError("x: got no rows, want some")
    return ZFPlot(*(torch.cat(part).cpu().numpy() for part in zip(*parts)))


@register(kind="metric", wing="autoencoder", source="Donoho and Huo (2001)", extra="torch")
@torch.no_grad()
def coherence(W_dec: Float[Tensor, "d_sae d_in"]) -> float:
    """The largest absolute cosine of two different rows; 0 for a single one."""
    rows = torch.nn.functional.normalize(torch.as_tensor(W_dec).detach(), dim=1)
    best = 0.0
    for low in range(0, len(rows), 2048):
        cosines = (rows[low : low + 2048] @ rows.T).abs()
        own = torch.arange(len(cosines), device=rows.device)
        cosines[own, own + low] = 0
        best = max(best, float(cosines.max()))
    return best

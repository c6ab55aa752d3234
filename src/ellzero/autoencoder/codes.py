"""Codes of sparse autoencoders as they are stored: per row the active latents and how strongly each is on.

Lives here: ``SparseCode`` and what can be said of a code whether it is dense or sparse. Does not live here: how a code
is found (``encoders``, ``selectors``) or what it means (``model``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ellzero.kernels import torch_ops

__all__ = ["SparseCode", "active", "fired", "ranked", "share", "size_by_latent"]


class SparseCode(NamedTuple):
    """Per row the active latents, largest magnitude first, padded with zeros of latent 0."""

    values: Float[Tensor, "rows k"]
    indices: Int64[Tensor, "rows k"]

    def dense(self, d_sae: int) -> Float[Tensor, "rows d_sae"]:
        """The codes with their zeros."""
        out = self.values.new_zeros(len(self.values), d_sae)
        return out.scatter_add(1, self.indices, self.values)

    def first(self, k: int) -> SparseCode:
        """The ``k`` largest of each row."""
        return SparseCode(self.values[:, :k], self.indices[:, :k])

    def between(self, first: int, last: int) -> SparseCode:
        """Only the latents from ``first`` up to and without ``last``; the others' values are zero."""
        inside = (self.indices >= first) & (self.indices < last)
        return SparseCode(self.values.where(inside, torch.zeros_like(self.values)), self.indices)


def active(z: Tensor | SparseCode) -> float:
    """The mean number of active latents of a row."""
    values = z.values if isinstance(z, SparseCode) else z
    return int((values != 0).sum()) / max(len(values), 1)


def fired(z: Tensor | SparseCode, d_sae: int) -> Bool[Tensor, " d_sae"]:
    """Which latents are active on some row."""
    if not isinstance(z, SparseCode):
        return (z != 0).any(0)
    on = torch.zeros(d_sae, dtype=torch.bool, device=z.values.device)
    on[z.indices[z.values != 0]] = True
    return on


def share(z: Tensor | SparseCode, d_sae: int) -> Float[Tensor, " d_sae"]:
    """The share of rows on which each latent is active."""
    if not isinstance(z, SparseCode):
        return (z != 0).float().mean(0)
    counts = torch.bincount(z.indices[z.values != 0], minlength=d_sae)
    return counts.float() / max(len(z.values), 1)


def ranked(z: Float[Tensor, "rows d_sae"], k: int) -> SparseCode:
    """The ``k`` entries of largest magnitude of dense codes, with their signs; autograd reaches the values."""
    found = torch_ops.top_k(z.detach().abs(), k)
    values = z.gather(1, found.indices)
    return SparseCode(values, found.indices.where(values != 0, torch.zeros_like(found.indices)))


def size_by_latent(z: Tensor | SparseCode, weight: Float[Tensor, " d_sae"]) -> Float[Tensor, " rows"]:
    """``sum_i |z_i| weight_i`` of each row."""
    if isinstance(z, SparseCode):
        return (z.values.abs() * weight[z.indices]).sum(1)
    return z.abs() @ weight

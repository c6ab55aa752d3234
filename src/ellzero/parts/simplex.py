"""The maps onto the probability simplex that give exact zeros: sparsemax and entmax, with their Jacobian.

Lives here: ``Simplex`` (the Euclidean projection) and ``Entmax`` (any alpha), for NumPy and torch.
Does not live here: selection by count (``constraints``); the autograd function that calls the Jacobian (``gradients``).
Both are ``argmax_p <p, x> + H(p)`` over the simplex along ``axis``; thresholds are found in float64 and the result
has the dtype of ``x``. ``-inf`` gets exactly zero; a row of ``-inf`` alone has nothing to share out and is all zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero import kernels
from ellzero.errors import InputError, check, check_integer
from ellzero.parts.namespace import is_torch, like, namespace, sort_descending
from ellzero.parts.selection import check_axis, check_scores
from ellzero.registry import register

__all__ = ["Entmax", "Simplex"]

# Halvings of an interval of length at most 1: beyond the last bit of a float64 near it.
_HALVINGS = 60


class _Map:
    """What the two share: checks, axis, Jacobian, the way through autograd. They give ``_rows`` and ``_slope``."""

    def project(self, x: Any) -> Any:
        """The point of the simplex along ``axis``; for tensors differentiable, through ``jacobian_vector``."""
        self._check(x)
        if is_torch(x):
            from ellzero.parts.gradients import through_jacobian

            return through_jacobian(self, x)
        return self.solve(x)

    def support(self, scores: Any) -> Any:
        """Where the projection is above zero."""
        return self.solve(self._check(scores)) > 0

    def solve(self, x: Any) -> Any:
        """``project`` without checks and autograd."""
        xp, place = namespace(x), check_axis(self.axis, x.ndim)
        rows = xp.moveaxis(x.detach() if is_torch(x) else x, place, -1)
        if not math.prod(rows.shape):
            return xp.zeros_like(x)
        wide = rows.double() if is_torch(x) else rows.astype(np.float64)
        top = wide.max(-1)[0][..., None] if is_torch(x) else wide.max(-1, keepdims=True)
        dead = top == -math.inf
        shifted = xp.where(dead, like(wide, 0.0), wide - xp.where(dead, like(top, 0.0), top))
        found = xp.where(dead, like(wide, 0.0), self._rows(shifted))
        return like(x, xp.moveaxis(found, -1, place))

    def jacobian_vector(self, p: Any, v: Any) -> Any:
        """``J v`` at the projection ``p``: ``J = diag(s) - s s^T / sum(s)``, ``s = p^(2 - alpha)`` on the support.

        ``J`` is symmetric, so this is the backward pass too. ``p`` and ``v`` have the shape of the input.
        """
        if tuple(v.shape) != tuple(p.shape):
            raise InputError(f"v: got shape {tuple(v.shape)}, want that of p, {tuple(p.shape)}")
        check_axis(self.axis, p.ndim)
        slope = self._slope(p)
        total = slope.sum(self.axis)
        total = namespace(p).where(total > 0, total, like(total, 1.0))  # zero only where a row has no support
        shared = ((slope * v).sum(self.axis) / total)[(..., *_inserted(self.axis, p.ndim))]
        return slope * (v - shared)

    def _check(self, x: Any) -> Any:
        check_scores("x", x)
        size = x.shape[check_axis(self.axis, x.ndim)]
        top = (x.detach().max() if is_torch(x) else x.max()) if size and math.prod(x.shape) else 0.0
        if top == math.inf:
            raise InputError("x: got infinity, want numbers below it (-inf is legal and gets zero)")
        return x


def _inserted(axis: int, ndim: int) -> tuple:
    """The index that puts the axis back which a sum took away."""
    behind = ndim - 1 - axis % ndim
    return (None, *[slice(None)] * behind)


@register(kind="constraint", source="arXiv:1602.02068", example=lambda: Simplex())
@dataclass(frozen=True)
class Simplex(_Map):
    """Sparsemax: ``argmin_p ||p - x||^2`` over ``p >= 0, sum(p) = total`` along ``axis``. Martins, Astudillo (2016).

    ``p = max(x - tau, 0)``, with tau from the sorted entries (equation 3 there). With ``partial`` only that many are
    sorted at first, and twice as many as long as a row's support may be larger; the result is the same.
    """

    total: float = 1.0
    axis: int = -1
    partial: int | None = None

    def __post_init__(self):
        check("total", self.total, above=0, below=math.inf)
        _check_common(self)

    def _rows(self, x: Any) -> Any:
        return _project(x, self.total, self.partial)

    def _slope(self, p: Any) -> Any:
        return like(p, p > 0)


@register(kind="constraint", source="arXiv:1905.05702", example=lambda: Entmax(1.5))
@dataclass(frozen=True)
class Entmax(_Map):
    """``argmax_p <p, x> + H_alpha(p)`` over the simplex along ``axis``, with Tsallis' entropy. Peters et al. (2019).

    ``p = max((alpha - 1) x - tau, 0)^(1 / (alpha - 1))`` (equation 11). alpha = 1 is softmax (no zeros), 2 is
    sparsemax; 1.5 and 2 are exact by sorting (``partial`` as in ``Simplex``), others by bisection of tau;
    with ``exact=False`` those two as well.
    """

    alpha: float = 1.5
    axis: int = -1
    partial: int | None = None
    exact: bool = True

    def __post_init__(self):
        check("alpha", self.alpha, at_least=1, below=math.inf)
        _check_common(self)

    def _rows(self, x: Any) -> Any:
        xp = namespace(x)
        if self.alpha == 1:
            weight = xp.exp(x)
            return weight / weight.sum(-1)[..., None]
        if self.exact and self.alpha == 2:
            return _project(x, 1.0, self.partial)
        if self.exact and self.alpha == 1.5:
            half = xp.clip(x / 2, -2, None)  # as in _project
            return xp.clip(half - _by_sort(half, self.partial, _entmax15), 0, None) ** 2
        return _bisect((self.alpha - 1) * x, self.alpha)

    def _slope(self, p: Any) -> Any:
        xp, on = namespace(p), p > 0
        return xp.where(on, xp.where(on, p, like(p, 1.0)) ** (2 - self.alpha), like(p, 0.0))


def _check_common(self: Any) -> None:
    check_integer("axis", self.axis)
    if self.partial is not None:
        check_integer("partial", self.partial, at_least=1)


def _project(x: Any, total: float, partial: int | None) -> Any:
    """Sparsemax of rows with maximum 0. There tau >= -total, so what lies below may be raised, ``-inf`` above all."""
    x = namespace(x).clip(x, -2 * total, None)
    return namespace(x).clip(x - _by_sort(x, partial, lambda z: _sparsemax(z, total)), 0, None)


def _by_sort(x: Any, partial: int | None, threshold: Any) -> Any:
    """tau ``[..., 1]`` from the sorted rows, sorting only as many entries as the largest support needs."""
    n = x.shape[-1]
    k = n if partial is None else min(partial, n)
    while True:
        tau, size = threshold(_head(x, k))
        if k == n or int(size.max()) < k:
            return tau
        k = min(2 * k, n)


def _head(x: Any, k: int) -> Any:
    if k == x.shape[-1]:
        return sort_descending(x)
    if is_torch(x):
        from ellzero.kernels import torch_ops

        return torch_ops.top_k(x, k).values
    return kernels.top_k(x, k).values


def _counts(z: Any) -> Any:
    return like(z, np.arange(1, z.shape[-1] + 1))


def _chosen(tau: Any, size: Any) -> Any:
    """tau at each row's support size."""
    if is_torch(tau):
        return tau.gather(-1, size[..., None] - 1)
    return np.take_along_axis(tau, size[..., None] - 1, axis=-1)


def _sparsemax(z: Any, total: float) -> tuple[Any, Any]:
    """Rows sorted downwards -> tau and the support's size: the last j with ``z_j > (sum_{i<=j} z_i - total) / j``."""
    xp = namespace(z)
    tau = (xp.cumsum(z, -1) - total) / _counts(z)
    size = (z > tau).sum(-1)
    return _chosen(tau, size), size


def _entmax15(z: Any) -> tuple[Any, Any]:
    """Rows of ``x / 2`` sorted downwards -> tau and the support's size.

    tau is the smaller root of ``sum_{i<=j} (z_i - tau)^2 = 1``, at the last j where it lies below ``z_j``.
    """
    xp, count = namespace(z), _counts(z)
    mean = xp.cumsum(z, -1) / count
    spread = xp.cumsum(z**2, -1) / count - mean**2
    tau = mean - xp.sqrt(xp.clip(1 / count - spread, 0, None))
    size = (z > tau).sum(-1)
    return _chosen(tau, size), size


def _bisect(x: Any, alpha: float) -> Any:
    """Rows ``(alpha - 1) x`` with maximum 0: halve tau's bracket ``[-1, -n^(1 - alpha)]``, then normalise."""
    xp, power = namespace(x), 1 / (alpha - 1)
    low = xp.zeros_like(x[..., :1]) - 1
    high = low * 0 - float(x.shape[-1]) ** (1 - alpha)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = (xp.clip(x - middle, 0, None) ** power).sum(-1)[..., None] >= 1
        low, high = xp.where(over, middle, low), xp.where(over, high, middle)
    p = xp.clip(x - low, 0, None) ** power
    return p / p.sum(-1)[..., None]

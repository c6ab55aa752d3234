"""Penalties of a whole array: nuclear norm, the simplex, and the FLOPs of sparse representations.

Lives here: penalties whose prox couples many coordinates without named groups. Does not live here: separable and
group penalties. None has a compiled twin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.namespace import floating, like, namespace, sort_descending
from ellzero.parts.penalty_shapes import Value, check_penalty, check_step, frozen_weights, scaled
from ellzero.parts.simplex import Simplex as SimplexMap
from ellzero.registry import register

__all__ = ["FLOPs", "Nuclear", "Simplex", "idf", "idf_flops"]


@register(kind="matrix_penalty", source="Cai, Candes and Shen (2010)", example=lambda: Nuclear(1.0))
@dataclass(frozen=True, eq=False)
class Nuclear(Value):
    """``alpha`` times the sum of the singular values of the last two axes; the prox soft-thresholds them.

    Cai, Candes and Shen (2010). A step may be an array, one for each matrix of a batch.
    """

    alpha: float
    compiled = None
    weights = None
    positive = False

    def __post_init__(self):
        check_penalty(self)

    def value(self, x: Any) -> Any:
        """The penalty of all matrices together."""
        x = _matrix("x", x)
        return self.alpha * _svd(x)[1].sum()

    def prox(self, x: Any, step: Any) -> Any:
        """The minimiser over W of ``0.5 |W - X|_F^2 + step * alpha |W|_*``."""
        x = _matrix("x", x)
        step = like(x, check_step(step))
        u, s, vt = _svd(x)
        s = namespace(x).clip(s - self.alpha * step[..., None], 0, None)
        return (u * s[..., None, :]) @ vt

    def subdifferential_distance(self, w: Any, gradient: Any) -> Any:
        """How far ``-gradient`` is from ``alpha {U V^T + Z : U^T Z = 0, Z V = 0, |Z|_2 <= 1}``, for one matrix.

        Singular values below ``max(shape) * eps`` times the largest count as zero.
        """
        w, pull = _matrix("w", w), -_matrix("gradient", gradient)
        if w.ndim != 2:
            raise InputError(f"w: got shape {tuple(w.shape)}, want one matrix")
        xp = namespace(w)
        u, s, vt = _svd(w)
        rank = int((s > s.max() * max(w.shape) * float(xp.finfo(w.dtype).eps)).sum())
        u, vt = u[:, :rank], vt[:rank]
        free = pull - u @ (u.T @ pull)
        free = free - (free @ vt.T) @ vt
        tangent = pull - free - self.alpha * u @ vt
        excess = xp.clip(_svd(free)[1] - self.alpha, 0, None)
        return ((tangent**2).sum() + (excess**2).sum()) ** 0.5

    def alpha_max(self, gradient: Any) -> float:
        """The smallest ``alpha`` at which W = 0 is stationary: the largest singular value of the gradient."""
        return float(_svd(_matrix("gradient", gradient))[1].max())

    def support(self, w: Any) -> Any:
        """Which singular values are above ``max(shape) * eps`` times the largest: as many as the rank."""
        w = _matrix("w", w)
        s = _svd(w)[1]
        return s > s[..., :1] * (max(w.shape[-2:]) * float(namespace(w).finfo(w.dtype).eps))


@register(kind="matrix_penalty", source="Held, Wolfe and Crowder (1974)", example=lambda: Simplex())
@dataclass(frozen=True, eq=False)
class Simplex(Value):
    """The indicator of ``w >= 0, sum(w) = radius`` along ``axis``; the prox is the Euclidean projection.

    Held, Wolfe and Crowder (1974); the projection is sparsemax, ``parts.simplex.Simplex``. A sum counts as equal to
    the radius within ``4 n eps`` of it.
    """

    radius: float = 1.0
    axis: int = -1
    compiled = None
    weights = None
    positive = True

    def __post_init__(self):
        check("radius", self.radius, above=0, below=math.inf)
        check_integer("axis", self.axis)

    def value(self, x: Any) -> Any:
        """0 if every slice is on the simplex, else infinity."""
        x = _axis("x", x, self.axis)
        xp = namespace(x)
        slack = 4 * x.shape[self.axis] * float(xp.finfo(x.dtype).eps) * self.radius
        inside = bool((x >= 0).all()) and bool((abs(x.sum(self.axis) - self.radius) <= slack).all())
        return like(x, 0.0 if inside else math.inf)[()]

    def prox(self, x: Any, step: Any = 1.0) -> Any:
        """The nearest point of the simplex; a step scales the penalty, which leaves an indicator as it is."""
        check_step(step)
        return SimplexMap(self.radius, self.axis).project(_axis("x", x, self.axis))

    def subdifferential_distance(self, w: Any, gradient: Any) -> Any:
        """How far ``-gradient`` is from the normal cone at ``w`` (on the simplex), per slice.

        The cone is ``{t - m : m >= 0, m w = 0}``: the best t is the mean pull of the entries in use and of those zeros
        that pull harder still.
        """
        w, pull = _axis("w", w, self.axis), -floating("gradient", gradient)
        xp = namespace(w)
        used = w > 0
        count = like(w, used.sum(self.axis)[..., None])
        total = xp.where(used, pull, xp.zeros_like(pull)).sum(self.axis)[..., None]
        zeros = xp.moveaxis(xp.where(used, xp.full_like(pull, -math.inf), pull), self.axis, -1)
        ordered = sort_descending(zeros)
        real = xp.isfinite(ordered)
        sums = total + xp.cumsum(xp.where(real, ordered, xp.zeros_like(ordered)), -1)
        mean = sums / (count + xp.cumsum(like(w, real), -1))
        harder = (real & (ordered > mean)).sum(-1)[..., None]  # a prefix: each such zero raises the mean
        chosen = xp.where(
            like(w, harder) > 0, _take(mean, harder - 1), total / xp.where(count > 0, count, xp.ones_like(count))
        )
        pull, used = xp.moveaxis(pull, self.axis, -1), xp.moveaxis(used, self.axis, -1)
        far = xp.where(used, pull - chosen, xp.clip(pull - chosen, 0, None))
        return (far**2).sum(-1) ** 0.5

    def support(self, w: Any) -> Any:
        """Where ``w`` is not zero."""
        return w != 0


@register(kind="matrix_penalty", source="Paria et al. (2020), arXiv:2004.05665", example=lambda: FLOPs(1.0))
@dataclass(frozen=True, eq=False)
class FLOPs(Value):
    """``alpha sum_j v_j (mean_i |x_ij|)^2``: the expected multiply-adds of scoring one row against another.

    Rows ``i`` are texts (all axes but the last), columns ``j`` terms. A column in common use costs more per unit than
    a rare one, so the load evens out. ``weights`` v weigh columns: 0 leaves one free, infinity excludes it. The prox is
    the soft threshold of each column at ``tau = rho |w|_1``, ``rho = 2 s alpha v / n^2``, from its sorted entries: a
    squared L1 norm. Paria et al. (2020), equation 4; used by SPLADE, arXiv:2107.05720.
    """

    alpha: float
    weights: Any = None
    positive: bool = False
    compiled = None

    def __post_init__(self):
        check_penalty(self)

    def value(self, x: Any, weights: Any = None) -> Any:
        """The penalty; under torch it has a gradient."""
        x = floating("x", x)
        xp = namespace(x)
        rows = x.reshape(-1, x.shape[-1])
        cost = (abs(rows).sum(0) / max(rows.shape[0], 1)) ** 2
        weights = self._weights(weights)
        if weights is not None:
            scale, excluded = scaled(cost, 1.0, weights)
            cost = xp.where(excluded & (cost > 0), xp.full_like(cost, math.inf), scale * cost)
        total = self.alpha * cost.sum()
        if self.positive:
            total = total + xp.where(x < 0, xp.full_like(x, math.inf), xp.zeros_like(x)).sum()
        return total

    def prox(self, x: Any, step: Any, weights: Any = None) -> Any:
        """The minimiser over W of ``0.5 |W - X|_F^2 + step * penalty(W)``; a step is a number or one per column."""
        x = floating("x", x)
        xp = namespace(x)
        rows = x.reshape(-1, x.shape[-1])
        size = xp.clip(rows, 0, None) if self.positive else abs(rows)
        if not rows.shape[0]:
            return x
        scale, excluded = scaled(rows[0], step, self._weights(weights))
        rho = 2 * self.alpha * scale / rows.shape[0] ** 2
        ordered = sort_descending(size, 0)
        counts = like(x, np.arange(1, rows.shape[0] + 1))[:, None]
        tau = rho * xp.cumsum(ordered, 0) / (1 + rho * counts)  # were the first k entries the ones that stay
        kept = (ordered > tau).sum(0)[None]
        tau = xp.where(kept > 0, _take(tau.T, kept.T - 1).T, ordered[:1])
        w = xp.sign(rows) * xp.clip(size - tau, 0, None)
        if excluded is not None:
            w = xp.where(excluded, xp.zeros_like(w), w)
        return w.reshape(x.shape)

    def subdifferential_distance(self, w: Any, gradient: Any, weights: Any = None) -> Any:
        """How far ``-gradient`` is from the subdifferential at ``w``, for each entry."""
        w, gradient = floating("w", w), floating("gradient", gradient)
        xp = namespace(w)
        rows = w.reshape(-1, w.shape[-1])
        scale, excluded = scaled(rows[0], 1.0, self._weights(weights))
        slope = 2 * self.alpha * scale * abs(rows).sum(0) / rows.shape[0] ** 2
        outward = -gradient if self.positive else abs(gradient)
        far = xp.where(w == 0, xp.clip(outward - slope, 0, None), abs(gradient + xp.sign(w) * slope))
        if self.positive:
            far = xp.where(w < 0, xp.full_like(w, math.inf), far)
        if excluded is not None:
            barred = xp.where(w == 0, xp.zeros_like(w), xp.full_like(w, math.inf))
            far = xp.where(excluded, barred, far)
        return far

    def support(self, w: Any) -> Any:
        """Where ``w`` is not zero."""
        return w != 0

    def _weights(self, given: Any) -> Any:
        return self.weights if given is None else frozen_weights("weights", given)


def idf(document_frequency: Any, n_documents: int) -> np.ndarray:
    """Inverse document frequency ``log(1 + (N - df + 0.5) / (df + 0.5))`` of each term, in float64."""
    n_documents = check_integer("n_documents", n_documents, at_least=1)
    frequency = check_array("document_frequency", np.asarray(document_frequency), dtypes="iuf").astype(np.float64)
    check("document_frequency", float(frequency.min()), at_least=0)
    check("document_frequency", float(frequency.max()), at_most=n_documents)
    return np.log1p((n_documents - frequency + 0.5) / (frequency + 0.5))


@register(
    kind="matrix_penalty", name="IDFFLOPs", source="Geng et al. (2024), arXiv:2411.04403",
    example=lambda: idf_flops([1, 3, 0, 9], 10),
)  # fmt: skip
def idf_flops(document_frequency: Any, n_documents: int, alpha: float = 1.0) -> FLOPs:
    """``FLOPs`` with weights ``1 / idf_j``: frequent terms are pushed down, rare ones survive. Geng et al. (2024)."""
    return FLOPs(alpha, weights=1 / idf(document_frequency, n_documents))


def _take(x: Any, index: Any) -> Any:
    """Entries along the last axis; an index of -1 counts as 0."""
    xp = namespace(x)
    index = xp.clip(index, 0, None)
    return x.gather(-1, index) if xp is not np else np.take_along_axis(x, index, -1)


def _svd(x: Any) -> Any:
    return namespace(x).linalg.svd(x, full_matrices=False)


def _matrix(name: str, x: Any) -> Any:
    x = check_array(name, x, dtypes="f")
    if x.ndim < 2:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, want at least two axes")
    return x


def _axis(name: str, x: Any, axis: int) -> Any:
    x = check_array(name, x, dtypes="f", finite=False)
    if not -x.ndim <= axis < x.ndim:
        raise InputError(f"axis: got {axis} for {name} of shape {tuple(x.shape)}, want one of its axes")
    return x

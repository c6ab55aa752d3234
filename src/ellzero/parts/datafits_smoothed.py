"""Smoothed twins of the datafits with a kink: the envelope that is quadratic within ``mu`` of it.

Lives here: what ``Absolute.smoothed`` and ``SquareRoot.smoothed`` return. Does not live here: the datafits themselves
(``datafits``), nor the rule by which ``mu`` falls (``solvers.prox_newton``).
The conjugate of ``f_mu`` is that of f plus ``mu / 2`` times a square of at most 1 on the same domain. Hence
``f - mu / 2 <= f_mu <= f``, and minus the gradient of ``f_mu`` may be given to ``dual`` of f itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import check
from ellzero.parts.datafits import Mean, SquareRoot, _largest, _length, _slack
from ellzero.parts.namespace import like, namespace
from ellzero.registry import register

__all__ = ["SmoothedAbsolute", "SmoothedSquareRoot"]


@register(kind="datafit", source="Nesterov (2005)", example=lambda: SmoothedAbsolute(0.5))
@dataclass(frozen=True)
class SmoothedAbsolute(Mean):
    """``l = r^2 / (2 mu)`` for ``|r| <= mu`` and ``|r| - mu / 2`` beyond, r = y - z: a Huber loss of slope 1."""

    mu: float

    def __post_init__(self):
        check("mu", self.mu, above=0, below=math.inf)

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """s_i / mu inside the quadratic zone, 0 outside."""
        y, z, s = self._inputs(y, z, weights)
        return s * like(z, abs(y - z) <= self.mu) / self.mu

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights) / self.mu

    def constant(self, y: Any, weights: Any = None) -> float:
        """The (lower) weighted median of y: best for the loss that this one smooths, near it for this one."""
        from ellzero.parts.datafits import Absolute

        return Absolute().constant(y, weights)

    def _each(self, y, z):
        size = abs(y - z)
        return namespace(z).where(size <= self.mu, size**2 / (2 * self.mu), size - self.mu / 2)

    def _slope(self, y, z):
        return namespace(z).clip((z - y) / self.mu, -1, 1)

    def _conjugate(self, y, a):
        return namespace(a).where(abs(a) <= _slack(a), a * y + self.mu * a**2 / 2, math.inf)


@register(
    kind="datafit", source="Belloni, Chernozhukov and Wang (2011); Ndiaye et al. (2017)",
    example=lambda: SmoothedSquareRoot(0.1),
)  # fmt: skip
@dataclass(frozen=True)
class SmoothedSquareRoot(SquareRoot):
    """``f = |r|_s`` where the root mean square ``|r|_s`` exceeds mu, ``|r|_s^2 / (2 mu) + mu / 2`` below, less mu / 2.

    That is ``min over sigma >= mu of |r|_s^2 / (2 sigma) + sigma / 2``, less mu / 2: the smoothed concomitant loss of
    Ndiaye et al. (2017). Its Hessian is ``(S - q q') / sigma`` with q = S r / |r|_s outside, ``S / mu`` inside.
    """

    mu: float

    def __post_init__(self):
        check("mu", self.mu, above=0, below=math.inf)

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The smoothed root of the mean squared error."""
        y, z, s = self._inputs(self.check_targets(y), z, weights)
        length = _length(s**0.5 * (y - z))
        return namespace(z).where(length > self.mu, length - self.mu / 2, length**2 / (2 * self.mu))

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s * (z - y) / namespace(z).clip(_length(s**0.5 * (y - z)), self.mu, None)

    def curvature(self, y: Any, z: Any, weights: Any = None) -> tuple[np.ndarray, Any]:
        """``d`` and a function that gives ``R' A`` for the columns A, of the Hessian ``diag(d) - R R'``."""
        y, z, s = self._inputs(y, z, weights)
        residual = y - z
        length = float(_length(s**0.5 * residual))
        scale = max(length, self.mu)
        along = s * residual / scale**1.5 if length > self.mu else 0 * residual

        def rest(columns: Any, outputs: np.ndarray) -> np.ndarray:
            product = np.asarray(columns.T @ along)
            return (product if along.ndim == 1 else product[np.arange(len(outputs)), outputs])[None, :]

        return s / scale, rest

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights) / self.mu

    def dual(self, y: Any, theta: Any, weights: Any = None) -> Any:
        """That of ``SquareRoot``, less ``mu / 2 sum_i theta_i^2 / s_i``."""
        y, theta, s = self._inputs(self.check_targets(y), theta, weights)
        xp = namespace(theta)
        size = (theta**2 / xp.where(s > 0, s, xp.ones_like(s))).sum()
        return super().dual(y, theta, weights) - self.mu / 2 * size

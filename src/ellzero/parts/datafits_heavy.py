"""Datafits of heavy-tailed errors, whose slope falls off again: far targets lose their say.

Lives here: ``QGaussian``. Does not live here: convex losses (``datafits``), the estimation of a scale and of groups
(``linear.q_gaussian``). Such a loss is not convex: it has no dual, and its second derivative takes both signs, so none
is offered where solvers expect a curvature of at least 0; ``lipschitz`` says that it is smooth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import check
from ellzero.parts.datafits import Datafit, _largest
from ellzero.parts.namespace import namespace
from ellzero.registry import register

__all__ = ["QGaussian"]

_STARTS = 256  # quantiles of y among which the best constant begins
_ENTRIES = 1 << 18  # losses held at once


@register(
    kind="datafit", id="S104", source="Contributions to high-dimensional data analysis (2025)",
    example=lambda: QGaussian(1.5),
)  # fmt: skip
@dataclass(frozen=True)
class QGaussian(Datafit):
    """Minus the log-likelihood of q-Gaussian errors, ``l = log(1 + (q - 1) r^2 / ((3 - q) s^2)) / (q - 1)``, r = y - z.

    q = 1 is the limit ``r^2 / (2 s^2)``, a Gaussian of standard deviation s = ``scale``; 1 < q < 3 has the tails of
    Student's t with ``nu = (3 - q) / (q - 1)`` degrees of freedom and scale s (q = 2: Cauchy), the distribution of
    largest Tsallis entropy. Up to constants of q and s alone. The slope ``2 r / ((3 - q) s^2 + (q - 1) r^2)`` rises to
    ``|r| = s sqrt(nu)`` and falls towards 0 beyond.
    """

    q: float = 1.5
    scale: float = 1.0

    def __post_init__(self):
        check("q", self.q, at_least=1, below=3)
        check("scale", self.scale, above=0, below=math.inf)

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The mean loss."""
        y, z, s = self._inputs(self.check_targets(y), z, weights)
        return (s * self._each(y, z)).sum()

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s * (z - y) * self.precision(y - z)

    def precision(self, residual: Any) -> Any:
        """``l'(r) / r = 2 / ((3 - q) s^2 + (q - 1) r^2)``: what a Gaussian scale mixture expects of 1 / variance."""
        return 2 / ((3 - self.q) * self.scale**2 + (self.q - 1) * residual**2)

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative's size: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights) * 2 / ((3 - self.q) * self.scale**2)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The constant prediction of least value: the minimum next to the best of 256 quantiles of y."""
        y, s = self._column(y, weights)
        used = y[s > 0]
        starts = np.unique(np.quantile(used, np.linspace(0, 1, _STARTS))) if len(used) > _STARTS else used
        parts = np.array_split(starts, -(-len(starts) * len(y) // _ENTRIES))
        z = starts[np.argmin(np.concatenate([self._each(y, part[:, None]) @ s for part in parts]))]
        for _ in range(10_000):  # means under the present precisions, each no worse than the one before
            weight = s * self.precision(y - z)
            before, z = z, float((weight * y).sum() / weight.sum())
            if abs(z - before) <= 1e-14 * (abs(z) + self.scale):
                break
        return float(z)

    def _each(self, y, z):
        square = (y - z) ** 2 / ((3 - self.q) * self.scale**2)
        if self.q == 1:
            return square
        return namespace(square).log1p((self.q - 1) * square) / (self.q - 1)

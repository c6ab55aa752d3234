"""Datafits with several predictions per sample that hang together: the multinomial loss.

Lives here: ``Multinomial``. Does not live here: losses of one prediction (``datafits``; they also take ``[n, tasks]``,
as a sum over tasks), survival times (``datafits_survival``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.parts.datafits import Datafit, _largest, _shares, _xlogx
from ellzero.parts.namespace import floating, is_torch, namespace
from ellzero.registry import register

__all__ = ["Multinomial"]


@register(kind="datafit", source="Friedman, Hastie and Tibshirani (2010)", example=lambda: Multinomial())
@dataclass(frozen=True)
class Multinomial(Datafit):
    """Minus the mean log-likelihood of classes, ``l = log sum_k exp(z_k) - sum_k y_k z_k``; z is ``[n, classes]``.

    ``y`` is ``[n, classes]`` too: one 1 in each row, or shares that sum to 1. All classes have their own
    coefficients (no reference class). The Hessian of a sample is ``s (diag(p) - p p')`` with p = softmax(z).
    Friedman, Hastie and Tibshirani (2010), equation 18.
    """

    invariant = True

    def check_targets(self, y: Any) -> Any:
        """Return ``y`` if every row is a distribution over classes."""
        y = check_array("y", floating("y", y), ndim=2)
        totals = y.sum(1)
        if bool((y < 0).any()) or bool((abs(totals - 1) > 1e-6).any()):
            wrong = float(y.min()) if bool((y < 0).any()) else float(totals[abs(totals - 1) > 1e-6][0])
            raise InputError(f"y: got {wrong} (least entry or row sum), want rows at least 0 that sum to 1")
        return y

    def mean(self, z: Any) -> Any:
        """The probabilities of the classes, softmax(z)."""
        xp = namespace(z)
        powers = xp.exp(z - _row_max(z))
        return powers / powers.sum(1)[:, None]

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The mean loss."""
        y, z, s = self._inputs(self.check_targets(y), z, weights)
        xp, top = namespace(z), _row_max(z)
        each = xp.log(xp.exp(z - top).sum(1)) + top[:, 0] - (y * z).sum(1)
        return (s[:, 0] * each).sum()

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, ``[n, classes]``; its rows sum to 0."""
        y, z, s = self._inputs(y, z, weights)
        return s * (self.mean(z) - y)

    def curvature(self, y: Any, z: Any, weights: Any = None) -> tuple[np.ndarray, Any]:
        """``d`` and a function that gives ``R' A`` for the columns A, of the Hessian ``diag(d) - R R'``.

        Column a of A acts on class ``outputs[a]`` alone: then row i of ``R' A`` is ``sqrt(s_i) p_i,outputs[a] A_ia``.
        """
        y, z, s = self._inputs(y, z, weights)
        p = self.mean(z)
        root = np.sqrt(s) * p

        def rest(columns: Any, outputs: np.ndarray) -> Any:
            if not hasattr(columns, "indptr"):
                return columns * root[:, outputs]
            scaled = columns.tocsc(copy=True)
            scaled.data = scaled.data * root[scaled.indices, np.repeat(outputs, np.diff(scaled.indptr))]
            return scaled

        return s * p, rest

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X W)."""
        return _largest(y, weights) / 2

    def dual(self, y: Any, theta: Any, weights: Any = None) -> Any:
        """``-sum_i s_i sum_k q log q`` with q = y - theta_i / s_i a distribution; -infinity elsewhere."""
        y, theta, s = self._inputs(self.check_targets(y), theta, weights)
        xp = namespace(theta)
        used = s > 0
        q = y - theta / xp.where(used, s, xp.ones_like(s))
        slack = 64 * float(xp.finfo(q.dtype).eps)
        inside = ((q >= -slack) & (abs(q.sum(1) - 1) <= slack)[:, None]) | (~used & (theta == 0))
        cost = xp.where(used, s * _xlogx(xp.clip(q, 0, None)), xp.zeros_like(s))
        return -xp.where(inside, cost, math.inf).sum()

    def constant(self, y: Any, weights: Any = None) -> np.ndarray:
        """The logarithms of the classes' weighted shares, less their mean: ``[classes]``."""
        y = self.check_targets(y)
        y = (y.detach().cpu().numpy() if is_torch(y) else np.asarray(y)).astype(np.float64)
        shares = (_shares(y, weights) * y).sum(0)
        if not (shares > 0).all():
            raise InputError(f"y: got class {int(shares.argmin())} without samples, want each class at least once")
        logs = np.log(shares)
        return logs - logs.mean()

    constants = constant


def _row_max(z: Any) -> Any:
    return z.max(1).values[:, None] if is_torch(z) else z.max(1)[:, None]

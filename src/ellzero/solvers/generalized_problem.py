"""The state of ``f(X w + b) + penalty(w)`` for a smooth datafit: predictions, gradients, curvature and certificate.

Lives here: ``Problem`` (all coordinates) and ``Local`` (the columns of a working set with their curvature).
Does not live here: the loop (``prox_newton``), blocks of a penalty (``blocks``), formulas of datafits (``parts``).
Coefficients are flat, ``[p * outputs]`` in row order; the intercept and the free coordinates are solved for, never
penalised. Columns keep the dtype of X, everything of the length n or p is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError
from ellzero.solvers.blocks import Blocks
from ellzero.solvers.certificates import l1_l2, stationarity
from ellzero.solvers.operators import aslinear, need

__all__ = ["Local", "Problem"]

_SMALL = 1 << 14  # entries of sparse columns up to which products are faster dense


class Problem:
    """What is known of a fit. ``target`` is the datafit asked for, ``datafit`` a smooth one in its place."""

    def __init__(self, x: Any, y: Any, datafit: Any, fit_intercept: bool, sample_weight: Any = None):
        self.operator = aslinear(x)
        need("proximal Newton", self.operator, "shape", "dtype", "rmatmat", "take")
        need("proximal Newton", datafit, "value", "gradient", "outputs", "constants")
        if not any(hasattr(datafit, name) for name in ("hessian_diagonal", "curvature", "smoothed")):
            raise InputError(
                f"proximal Newton: got {type(datafit).__name__}, which lacks 'hessian_diagonal', 'curvature' and "
                "'smoothed'; want one of them"
            )
        n, p = self.operator.shape
        self.y = np.ascontiguousarray(y, dtype=np.float64)
        if self.y.shape[:1] != (n,):
            raise InputError(f"y: got shape {self.y.shape}, want {n} rows as X has")
        self.target = self.datafit = datafit
        self.target.check_targets(self.y)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        self.outputs = datafit.outputs(self.y)
        self.width = 1 if self.outputs is None else self.outputs
        self.fit_intercept = fit_intercept and datafit.takes_intercept
        self.coef = np.zeros(p * self.width)
        self.intercept = np.zeros(self.width)
        self.damping, self.mu = 1e-4, None

    def start(self, blocks: Blocks) -> None:
        """Begin at the best constant, with what is free of the penalty fitted alone."""
        if self.fit_intercept:
            self.intercept[:] = self.target.constants(self.y, self.sample_weight)
        if hasattr(self.target, "smoothed"):
            cost = float(self.target.value(self.y, self._predicted(), self.sample_weight))
            self.soften(0.1 * cost if cost > 0 else 1.0)
        self.free = Local(self, blocks.free)
        self.refresh()

    def measure(self) -> None:
        """Take the present point, where all penalised coefficients are 0, as the scale of gaps and gradients."""
        value = float(self.target.value(self.y, self.z, self.sample_weight))
        floor = value - self._dual(0.0)
        self.gap_scale = floor if floor > 0 else 1.0
        self.scale = float(abs(self.gradient).max())

    def soften(self, mu: float) -> None:
        """Work on the target's smoothed twin from here on."""
        self.mu, self.datafit = mu, self.target.smoothed(mu)

    def smooth_value(self, z: np.ndarray) -> float:
        """The smooth datafit at predictions."""
        return float(self.datafit.value(self.y, z, self.sample_weight))

    def largest_curvature(self) -> np.ndarray | None:
        """A bound of each sample's second derivative, in the shape of predictions (broadcast)."""
        if not hasattr(self.datafit, "lipschitz"):
            return None
        weights = np.ones(len(self.y)) if self.sample_weight is None else self.sample_weight
        most = weights * (self.datafit.lipschitz(self.y, self.sample_weight) / weights.max())
        return most if self.outputs is None else most[:, None]

    def slopes(self, z: np.ndarray) -> np.ndarray:
        """The datafit's gradient by the predictions."""
        return self.datafit.gradient(self.y, z, self.sample_weight)

    def refresh(self) -> None:
        """Predictions and gradient from the coefficients, without accumulated rounding; what is free at its best."""
        if self.target.invariant:
            self.intercept -= self.intercept.mean()
        self.z = self._predicted()
        self.free.settle()
        self.u = self.slopes(self.z)
        down = self.u.astype(self.operator.dtype).reshape(len(self.u), -1)
        self.gradient = self.operator.rmatmat(down).astype(np.float64).reshape(-1)

    def _predicted(self) -> np.ndarray:
        w = self.coef.reshape(-1, self.width)
        rows = np.flatnonzero(w.any(axis=1))
        z = np.zeros((self.operator.shape[0], self.width)) + self.intercept
        if len(rows):
            z += self.operator.take(rows) @ w[rows].astype(self.operator.dtype)
        return z[:, 0] if self.outputs is None else z

    def certificate(self, blocks: Blocks, datafit: Any = None) -> float:
        """The relative duality gap of a convex penalty with a known conjugate, else the relative stationarity."""
        penalty = blocks.penalty
        convex = penalty.alpha > 0 and (l1_l2(penalty) is not None or hasattr(penalty, "norms"))
        able = hasattr(self.target, "dual") or hasattr(self.target, "dual_at")
        return self._gap(blocks, datafit) if convex and able else stationarity(self, penalty)

    def _gap(self, blocks: Blocks, datafit: Any) -> float:
        """``(P(w) - D(theta)) / scale`` with theta = -factor * gradient of the datafit, at the best of few factors.

        What free columns leave of the gradient (rounding) is charged at twice their coefficients.
        """
        datafit = datafit or self.target
        primal = float(datafit.value(self.y, self.z, self.sample_weight)) + float(blocks.penalty.value(self.coef))
        dual = max(self._dual(factor, datafit) - cost for factor, cost in self._conjugates(blocks))
        held = blocks.half_free[self.coef[blocks.half_free] > 0]
        left = self.free.left() + 2 * float(abs(self.gradient[held]) @ self.coef[held])
        return max(primal - dual + left, 0.0) / self.gap_scale

    def _conjugates(self, blocks: Blocks) -> list[tuple[float, float]]:
        """Factors of the gradient, and the penalty's conjugate there.

        A norm's is 0 up to its dual norm, which ``alpha_max`` gives; that of ``a |w| + b w^2 / 2`` is
        ``max(|v| - a, 0)^2 / (2 b)``.
        """
        penalty, half = blocks.penalty, blocks.half_free
        if len(half) and (self.gradient[half] < 0).any():
            return [(0.0, 0.0)]
        a, b = l1_l2(penalty) or (0.0, 0.0)
        if b == 0:
            largest = penalty.alpha_max(self.gradient)
            return [(min(1.0, penalty.alpha / largest) if largest > 0 else 1.0, 0.0)]
        weights = blocks.spread_weights()
        priced = np.isfinite(weights) & (weights > 0)
        pull = np.maximum(-self.gradient, 0) if penalty.positive else abs(self.gradient)
        pull, weights = pull[priced], weights[priced]
        top = float((pull / weights).max(initial=0.0))
        over = np.maximum(pull - a * weights, 0)
        return [(min(1.0, a / top) if top > 0 else 1.0, 0.0), (1.0, float((over**2 / (2 * b * weights)).sum()))]

    def _dual(self, factor: float, datafit: Any = None) -> float:
        datafit = datafit or self.target
        if hasattr(datafit, "dual_at"):
            return float(datafit.dual_at(self.y, self.z, factor, self.sample_weight))
        return float(datafit.dual(self.y, -factor * self.u, self.sample_weight))


class Local:
    """Some columns, those of what is free first: ``[1, X_free, X_index]``, each acting on one output."""

    def __init__(self, problem: Problem, free: np.ndarray, index: np.ndarray | None = None):
        self.problem = problem
        self.coords = free if index is None else np.concatenate([free, index])
        features, outputs = np.divmod(self.coords, problem.width)
        ones = problem.width if problem.fit_intercept else 0
        self.ones, self.free = ones, ones + len(free)
        self.outputs = np.concatenate([np.arange(ones), outputs])
        above = np.ones((len(problem.y), ones), dtype=problem.operator.dtype)
        columns = problem.operator.take(features) if len(features) else above
        if ones and len(features):
            both = (above, columns)
            columns = sparse.hstack(both, format="csc") if sparse.issparse(columns) else np.concatenate(both, axis=1)
        small = sparse.issparse(columns) and np.prod(columns.shape) <= _SMALL
        self.columns = columns.toarray() if small else columns

    def values(self) -> np.ndarray:
        """The coefficients in the order of the columns."""
        return np.concatenate([self.problem.intercept[: self.ones], self.problem.coef[self.coords]])

    def gradient(self, u: np.ndarray) -> np.ndarray:
        """The gradient by these coefficients, of slopes ``[n]`` or ``[n, outputs]``."""
        gradient = np.asarray(self.columns.T @ u.astype(self.columns.dtype), dtype=np.float64)
        return gradient if u.ndim == 1 else gradient[np.arange(len(self.outputs)), self.outputs]

    def image(self, move: np.ndarray) -> np.ndarray:
        """How the predictions change when the coefficients move."""
        move = move.astype(self.columns.dtype)
        if self.problem.outputs is None:
            return np.asarray(self.columns @ move, dtype=np.float64)
        spread = np.zeros((len(move), self.problem.width), dtype=move.dtype)
        spread[np.arange(len(move)), self.outputs] = move
        return np.asarray(self.columns @ spread, dtype=np.float64)

    def move(self, step: np.ndarray, z: np.ndarray) -> None:
        """Add ``step`` to the coefficients; ``z`` are the predictions that follow."""
        problem = self.problem
        problem.intercept[: self.ones] += step[: self.ones]
        problem.coef[self.coords] += step[self.ones :]
        problem.z = z

    def hessian(self, z: np.ndarray, damping: float = 0.0) -> np.ndarray:
        """``[m, m]`` second derivatives of the datafit by these coefficients, with more curvature where damped.

        ``damping`` times the largest curvature of each sample is added to its own; times its own, where none is known.
        """
        problem = self.problem
        datafit, y, weights = problem.datafit, problem.y, problem.sample_weight
        if hasattr(datafit, "hessian_diagonal"):
            diagonal, rest = datafit.hessian_diagonal(y, z, weights), None
        else:
            diagonal, rest = datafit.curvature(y, z, weights)
        if damping:
            most = problem.largest_curvature()
            diagonal = diagonal + damping * (diagonal if most is None else most)
        if rest is None:
            return self._weighted(diagonal)
        below = rest(self.columns, self.outputs)
        return self._weighted(diagonal) - _dense(below.T @ below)

    def inverse(self, matrix: np.ndarray) -> np.ndarray:
        """The pseudo-inverse of a Hessian, with eigenvalues that are rounding taken for 0."""
        if len(matrix) == 1:
            return np.where(matrix > 0, 1 / np.where(matrix > 0, matrix, 1), 0.0)
        return np.linalg.pinv(matrix, rcond=100 * np.finfo(self.columns.dtype).eps, hermitian=True)

    def settle(self) -> None:
        """Newton steps on what is free until its gradient is rounding; keeps only steps that lower the gradient."""
        problem = self.problem
        if not self.free:
            return
        slopes = problem.slopes(problem.z)
        gradient = self.gradient(slopes)
        for _ in range(20):
            size = abs(gradient).max()
            if size <= 1e-13 * abs(slopes).sum():
                return
            step = -self.inverse(self.hessian(problem.z)) @ gradient
            z = problem.z + self.image(step)
            gradient = self.gradient(problem.slopes(z))
            if not abs(gradient).max() < size:
                return
            self.move(step, z)

    def left(self) -> float:
        """What the rest of the gradient by the free coefficients may hide, at twice their size."""
        if not self.free:
            return 0.0
        return 2 * float(abs(self.gradient(self.problem.u)) @ abs(self.values()))

    def _weighted(self, h: np.ndarray) -> np.ndarray:
        if h.ndim == 1:
            return _square(self.columns, h)
        gram = np.zeros((len(self.outputs),) * 2)
        for output in np.unique(self.outputs):
            chosen = np.flatnonzero(self.outputs == output)
            gram[np.ix_(chosen, chosen)] = _square(self.columns[:, chosen], h[:, output])
        return gram


def _square(columns: Any, h: np.ndarray) -> np.ndarray:
    """``A' diag(h) A`` for h at least 0, in float64."""
    root = np.sqrt(h).astype(columns.dtype)
    if sparse.issparse(columns):
        columns = columns.copy()
        columns.data *= root[columns.indices]
    else:
        columns = root[:, None] * columns
    return _dense(columns.T @ columns)


def _dense(gram: Any) -> np.ndarray:
    return (gram.toarray() if sparse.issparse(gram) else np.asarray(gram)).astype(np.float64, copy=False)

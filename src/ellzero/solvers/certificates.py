"""How good a fit is, certified: duality gaps, stationarity, and the exact step that makes a gap vanish.

Lives here: the relative duality gap of the Lasso and elastic net, the distance to stationarity of other penalties,
and ``crossover``. Does not live here: the loop that asks for them (``coordinate_descent``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

__all__ = ["crossover", "duality_gap", "l1_l2", "stationarity"]


def l1_l2(penalty: Any) -> tuple[float, float] | None:
    """``(a, b)`` where the penalty is ``a |w| + b w^2 / 2`` with a > 0, else ``None``; read off its compiled form."""
    name, params = getattr(penalty, "compiled", None) or ("", ())
    if name == "L1" and params[0] > 0:
        return params[0], 0.0
    if name == "ElasticNet" and params[0] * params[1] > 0:
        return params[0] * params[1], params[0] * (1 - params[1])
    return None


def stationarity(problem: Any, penalty: Any) -> float:
    """The largest distance of ``-gradient`` to the subdifferential, relative to the gradient at w = 0."""
    far = float(np.max(penalty.subdifferential_distance(problem.coef, problem.gradient)))
    return far / problem.scale if problem.scale > 0 else far


def duality_gap(problem: Any, penalty: Any) -> float:
    """``(P(w) - D(theta)) / P(0)`` for L1 and elastic net: an upper bound of the relative suboptimality.

    The elastic net is a Lasso with the rows ``sqrt(n b_j) e_j`` below X. The dual point is the residual, made
    orthogonal to the free columns and scaled by the best feasible factor s:
    ``D = (2 s <y, r> - s^2 |r|^2) / (2 n)`` subject to ``s |X_j' r| / n <= a_j`` (one-sided for w >= 0, where a free
    column that rests at 0 must not pull upwards).
    """
    a, b = l1_l2(penalty)
    n, coef, y = len(problem.y), problem.coef.astype(np.float64), problem.y.astype(np.float64)
    weights = np.ones(1) if problem.weights is None else problem.weights
    used = coef != 0
    scale = np.broadcast_to(weights, coef.shape)[used]
    residual = problem.residual.astype(np.float64)
    squares = n * b * float(scale @ coef[used] ** 2)
    primal = (residual @ residual + squares) / (2 * n) + a * float(scale @ abs(coef[used]))
    pull = -problem.gradient.astype(np.float64)
    basis = problem.dual_basis(penalty.positive)
    if basis is not None:
        residual = residual - basis @ (basis.T @ residual)
        pull = problem.operator.rmatvec(residual.astype(problem.operator.dtype)).astype(np.float64) / n
    if b:
        pull[used] -= b * scale * coef[used]
    pull = pulls = np.maximum(pull, 0) if penalty.positive else abs(pull)
    if problem.weights is not None:
        bound = np.isfinite(weights) & (weights > 0)
        pull = pull[bound] / weights[bound]
    largest = float(pull.max()) if len(pull) else 0.0
    cap = a / largest if largest > 0 else np.inf
    if penalty.positive and len(problem.free):
        resting = problem.free[problem.coef[problem.free] == 0]
        cap = 0.0 if (pulls[resting] > 0).any() else cap
    product, norm = float(y @ residual), float(residual @ residual) + squares
    s = min(max(product / norm, 0.0), cap) if norm > 0 else 0.0
    gap = primal - (2 * s * product - s * s * norm) / (2 * n)
    at_zero = float(y @ y) / (2 * n)
    return max(gap, 0.0) / at_zero if at_zero > 0 else max(gap, 0.0)


def crossover(
    gram: np.ndarray,
    w: np.ndarray,
    gradient: np.ndarray,
    strengths: tuple[float, float],
    weights: np.ndarray | None,
    positive: bool,
    rounds: int = 8,
) -> None:
    """Move to the exact minimum on the support with its signs fixed, in place; a coordinate that meets 0 stays there.

    Every round is a Newton step on a convex quadratic, cut where the first sign would change, so the objective
    never rises. ``gradient`` is that of the fit, ``G w - c``, and is kept up to date.
    """
    a, b = strengths
    size = len(w)
    scale = np.ones(size, dtype=w.dtype) if weights is None else weights.astype(w.dtype)
    for _ in range(rounds):
        support = np.flatnonzero(w if positive else (w != 0) | (scale == 0))
        if not len(support):
            return
        held = scale[support]
        curvature = gram[np.ix_(support, support)].astype(np.float64)
        curvature[np.diag_indices(len(support))] += b * held
        sign = np.sign(w[support])
        slope = gradient[support] + b * held * w[support] + a * held * sign
        try:
            step = -cho_solve(cho_factor(curvature, check_finite=False), slope, check_finite=False)
        except LinAlgError:
            return
        if not np.isfinite(step).all() or step @ slope > 0:
            return
        bound = (held > 0) | positive
        turning = bound & (np.sign(w[support] + step) != sign)
        share, stop = 1.0, None
        if turning.any():
            reach = np.where(turning, -w[support] / np.where(step == 0, 1, step), np.inf)
            stop = int(np.argmin(reach))
            share = min(float(reach[stop]), 1.0)
        target = w[support] + share * step.astype(w.dtype)
        if stop is not None:
            target[stop] = 0
        move = target - w[support]
        w[support] = target
        gradient += move @ gram[support, :size]
        if stop is None:
            return

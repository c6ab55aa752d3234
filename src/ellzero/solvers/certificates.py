"""How good a fit is, certified: the duality gap of the Lasso and elastic net, and stationarity for other penalties.

Lives here: both numbers, relative to their scale, and ``crossover``, the exact step that makes a gap vanish. Does not
live here: the loop that asks for them (``coordinate_descent``), the compiled search (``kernels.active_set``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels.active_set import ActiveSet

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
    column that rests at 0 must not pull upwards). Columns whose gradient is not fresh are known to lie below a_j;
    then s is at most 1.
    """
    a, b = l1_l2(penalty)
    n = problem.operator.shape[0]
    used = np.flatnonzero(problem.coef)
    coef = problem.coef[used].astype(np.float64)
    weights = problem.weights
    scale = np.ones(len(used)) if weights is None else weights[used]
    squares = n * b * float(scale @ coef**2)
    product, norm = problem.products_with_residual()
    primal = (norm + squares) / (2 * n) + a * float(scale @ abs(coef))
    pull = -problem.gradient.astype(np.float64)
    basis = problem.dual_basis(penalty.positive)
    if basis is not None:
        residual = problem.residual.astype(np.float64)
        residual = residual - basis @ (basis.T @ residual)
        product, norm = float(problem.y @ residual), float(residual @ residual)
        pull = problem.operator.rmatvec(residual.astype(problem.operator.dtype)).astype(np.float64) / n
    if b:
        pull[used] -= b * scale * coef
    pull = pulls = np.maximum(pull, 0) if penalty.positive else abs(pull)
    if weights is not None:
        bound = np.isfinite(weights) & (weights > 0)
        pull = pull[bound] / weights[bound]
    largest = float(pull.max()) if len(pull) else 0.0
    cap = a / largest if largest > 0 else np.inf
    if not problem.fresh:
        cap = min(cap, 1.0)
    if penalty.positive and len(problem.free):
        resting = problem.free[problem.coef[problem.free] == 0]
        cap = 0.0 if (pulls[resting] > 0).any() else cap
    norm += squares
    s = min(max(product / norm, 0.0), cap) if norm > 0 else 0.0
    gap = primal - (2 * s * product - s * s * norm) / (2 * n)
    return max(gap, 0.0) / problem.at_zero if problem.at_zero > 0 else max(gap, 0.0)


def crossover(
    gram: np.ndarray,
    w: np.ndarray,
    gradient: np.ndarray,
    strengths: tuple[float, float],
    weights: np.ndarray | None,
    positive: bool,
    active: ActiveSet | None = None,
) -> bool:
    """Move to the exact minimum of ``w' G w / 2 - c' w`` plus the penalty, in place; whether rounding alone is left.

    ``strengths`` are those of ``l1_l2``, ``gradient`` is ``G w - c`` and is kept up to date. ``active`` keeps the
    factor for the next call with the same (or a larger) Gram matrix.
    """
    a, b = strengths
    held = np.ones(len(w)) if weights is None else weights
    bounds, ridge = a * held, np.where(np.isfinite(held), b * held, 0)
    active = ActiveSet() if active is None else active
    if b:
        active.forget()  # what was factored may have had another ridge on its diagonal
    scale = max(float(abs(gradient).max(initial=0)), float(bounds[np.isfinite(bounds)].max(initial=0)))
    floor = 64 * float(np.finfo(w.dtype).eps) * scale
    return active.solve(gram, w, gradient, bounds, ridge, positive=positive, tol=floor)

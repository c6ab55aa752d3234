"""Iterative hard thresholding: gradient steps, each cut back to the k largest coefficients.

Lives here: the normalised step, which never raises the residual, and the fixed step.
Does not live here: centring and scaling (give a centred operator), estimators, the exact top-k (``kernels``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.kernels import top_k
from ellzero.registry import register
from ellzero.solvers.operators import Operator, aslinear, need

__all__ = ["Thresholded", "iht"]

_MARGIN = 0.01  # c of the step rule: how far below the largest safe step a new support must stay
_SHRINK = 2.0  # kappa


class Thresholded(NamedTuple):
    """``coef`` ``[p]`` with at most k nonzeros; ``history`` the residual norms, which never rise (normalised step)."""

    coef: np.ndarray
    history: np.ndarray
    n_iter: int
    converged: bool


@register(kind="solver", source="Blumensath and Davies (2010)")
def iht(
    x: Any,
    y: np.ndarray,
    k: int,
    *,
    step: float | None = None,
    start: np.ndarray | None = None,
    polish: bool = True,
    tol: float = 1e-8,
    max_iter: int = 1000,
) -> Thresholded:
    """Minimise ``|y - X w|^2`` over w with at most k nonzeros, by ``w <- H_k(w + step X'(y - X w))``.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator. Columns of like norm are assumed: scale them first.
    y : ``[n]``.
    k : nonzeros kept, ``1 <= k <= p``; equal magnitudes keep the lowest index.
    step : ``None`` for the normalised step, exact along the gradient on the current support and halved until the
        residual falls where the support changes; a number for a fixed one (safe below ``1 / |X|_2^2``).
    start : ``[p]``, default zero.
    polish : end with least squares on the support that was found.
    tol : ends when the coefficients change by less than this share of their norm, or after ``max_iter``.

    Source: Blumensath and Davies (2010), normalised iterative hard thresholding, equations 13 to 15.
    """
    operator = aslinear(x)
    need("iht", operator, "shape", "dtype", "rmatvec", "restricted", "columns")
    n, p = operator.shape
    y = check_array("y", np.asarray(y, dtype=operator.dtype), shape=(n,))
    k = check_integer("k", k, at_least=1, at_most=p)
    check("tol", tol, at_least=0)
    max_iter = check_integer("max_iter", max_iter, at_least=1)
    if step is not None:
        check("step", step, above=0)
    w = np.zeros(p, dtype=operator.dtype)
    if start is not None:
        w = _largest(check_array("start", np.asarray(start, dtype=operator.dtype), shape=(p,)), k)
    residual = y - _fitted(operator, w)
    history, converged, iteration = [float(np.linalg.norm(residual))], False, 0
    for iteration in range(1, max_iter + 1):  # noqa: B007 (its last value is reported)
        gradient = operator.rmatvec(residual)
        before = w
        w, residual = _move(operator, y, w, residual, gradient, k, step)
        history.append(float(np.linalg.norm(residual)))
        if not np.isfinite(history[-1]):
            raise InputError(f"step: got {step}, for which the residual grows without bound; want a smaller one")
        if np.linalg.norm(w - before) <= tol * np.linalg.norm(w):
            converged = True
            break
    if polish:
        w, residual = _polished(operator, y, w, residual)
        history.append(float(np.linalg.norm(residual)))
    return Thresholded(w, np.array(history), iteration, converged)


def _move(operator: Operator, y, w, residual, gradient, k: int, step: float | None):
    if step is not None:
        moved = _largest(w + w.dtype.type(step) * gradient, k)
        return moved, y - _fitted(operator, moved)
    support = w != 0
    if not support.any():
        support = _largest(gradient, k) != 0
    inside = np.where(support, gradient, 0)
    along = _fitted(operator, inside)
    length = float(along @ along)
    if length == 0:
        return w, residual
    mu = float(inside @ inside) / length
    for _ in range(60):
        moved = _largest(w + w.dtype.type(mu) * gradient, k)
        change = moved - w
        image = _fitted(operator, change)
        limit = float(change @ change)
        # On the same support the step is the exact line search; on a new one it must stay below the curvature.
        if np.array_equal(moved != 0, w != 0) or mu * float(image @ image) <= (1 - _MARGIN) * limit:
            fresh = y - _fitted(operator, moved)
            if fresh @ fresh <= residual @ residual:
                return moved, fresh
        mu /= _SHRINK * (1 - _MARGIN)
    return w, residual


def _polished(operator: Operator, y, w, residual):
    support = np.flatnonzero(w)
    if not len(support):
        return w, residual
    solution = np.linalg.lstsq(operator.columns(support), y, rcond=None)[0]
    best = np.zeros_like(w)
    best[support] = solution
    fresh = y - _fitted(operator, best)
    slack = 1 + 64 * np.finfo(y.dtype).eps  # near the minimum rounding may make the better fit look the worse
    return (best, fresh) if fresh @ fresh <= slack * (residual @ residual) else (w, residual)


def _largest(w: np.ndarray, k: int) -> np.ndarray:
    kept = top_k(abs(w), k).indices
    out = np.zeros_like(w)
    out[kept] = w[kept]
    return out


def _fitted(operator: Operator, w: np.ndarray) -> np.ndarray:
    support = np.flatnonzero(w)
    if not len(support):
        return np.zeros(operator.shape[0], dtype=w.dtype)
    return operator.restricted(support, w[support])

"""Proximal nonlinear conjugate gradients: for smooth datafits, convex or not, with penalties of a kink at zero.

Lives here: the direction, the line search along it and its safeguard, for one problem or a path. Does not live here:
accelerated gradients (``accelerated``), second derivatives (``prox_newton``), the split (``parts.penalty_split``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.registry import register
from ellzero.solvers.first_order import Composite, along, begin
from ellzero.solvers.prox_newton import Path, Solution

__all__ = ["path", "solve"]

_ENOUGH = 1e-4  # share of a proximal step's sure decrease that a step must bring
_HALVINGS = 20
_FRESH = 100  # gradients between two products that clear predictions of accumulated rounding


def solve(
    x: Any,
    y: Any,
    datafit: Any,
    penalty: Any,
    *,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 100,
    start: tuple[np.ndarray, Any] | None = None,
    ridge: np.ndarray | None = None,
) -> Solution:
    """Minimise ``f(X w + b) + penalty(w) + sum_j ridge_j w_j^2 / 2`` over w and b, to a stationary point.

    With F the smooth part (the datafit, the penalty less its kink, the ridge), t = 1 / L and the gradient mapping
    ``G = (v - soft(v - t grad F(v), t)) / t``, the direction is

    ``d = -G + beta d_before``, ``beta = max(0, <G, G - G_before> / |G_before|^2)`` (Polak and Ribiere),

    and ``d = -G`` where that does not descend. Coordinates that the proximal step puts to zero are put there, the rest
    moves along d without a change of the sign that the proximal step gives it, so zeros are exact. The step length
    comes from two values of the slope along d (predictions are linear in it), then is halved until the objective
    falls by ``1e-4 t |G|^2``; a plain proximal step does so always and is taken if none of the lengths does. So the
    objective falls at every step and G goes to zero, whether F is convex or not.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator.
    datafit : has ``value``, ``gradient`` and ``lipschitz``.
    penalty : L1, elastic net, MCP, SCAD, log-sum or CEL0, with weights.
    tol : the largest entry of the smallest subgradient at the answer, relative to the largest entry of the datafit's
        gradient at w = 0. ``gap`` of the answer is that number.
    max_iter : rounds of 100 gradients at most; ``n_iter`` counts gradients.
    start : coefficients and intercept to begin at.
    ridge : ``[p]`` at least 0, for columns that are random effects.

    Raises
    ------
    InputError : bad shapes or values, or a datafit or penalty that lacks what is needed, by name.
    """
    state, bound, tol, most = begin(
        "conjugate gradient", x, y, datafit, penalty, fit_intercept, sample_weight, tol, max_iter
    )
    state.begin(start)
    if ridge is not None:
        ridge = check_array("ridge", np.asarray(ridge, dtype=np.float64), shape=(state.w.size,))
        if ridge.min() < 0:
            raise InputError(f"ridge: got {ridge.min()}, want numbers at least 0")
    return _descend(Composite(state, penalty, bound, ridge), tol, most)


@register(
    kind="solver", id="S104", name="conjugate_gradient",
    source="Polak and Ribiere (1969); Contributions to high-dimensional data analysis (2025)",
)  # fmt: skip
def path(x: Any, y: Any, datafit: Any, penalty: Any, *, alphas: Any = None, n_alphas: int = 100,
         eps: float | None = None, fit_intercept: bool = True, sample_weight: Any = None, tol: float = 1e-6,
         max_iter: int = 100) -> Path:  # fmt: skip
    """All fits by proximal conjugate gradients along falling alphas, each from the one before; options of ``solve``."""
    state, bound, tol, most = begin(
        "conjugate gradient", x, y, datafit, penalty, fit_intercept, sample_weight, tol, max_iter
    )
    return along(state, penalty, lambda at: _descend(Composite(state, at, bound), tol, most), alphas, n_alphas, eps)


def _descend(problem: Composite, tol: float, limit: int) -> Solution:
    v = problem.prox(problem.vector(), 0.0)
    z = problem.image(v)
    value, t = problem.value(v, z), 1 / problem.bound
    mapping = direction = None
    while True:
        gradient = problem.smooth(v, z)
        rest = problem.stationarity(v, gradient)
        if rest <= tol or problem.gradients >= limit:
            break
        goal = problem.prox(v - t * gradient, t)
        before, mapping = mapping, (v - goal) / t
        line = _Line(problem, v, z, goal)
        steepest = -mapping * line.moving
        if before is None:
            direction = steepest
        else:
            beta = max(0.0, float(mapping @ (mapping - before)) / float(before @ before))
            direction = steepest + beta * direction * line.moving
            if gradient @ direction + line.kinks @ direction >= 0:
                direction = steepest
        most = value - _ENOUGH * t * float(mapping @ mapping) + 1e-15 * abs(value)
        found = line.search(direction, t, most)
        if found is None:
            mapping, z = None, problem.image(goal)
            found = goal, z, problem.value(goal, z)
        v, z, value = found
        z = problem.image(v) if problem.gradients % _FRESH == 0 else z
    problem.keep(v)
    return problem.state.solution(rest, problem.gradients, rest <= tol)


class _Line:
    """Points ``v + s d`` where coordinates that ``goal`` has at zero are zero, and no other leaves the sign of goal.

    ``moving`` are the rest, ``kinks`` the slopes of the kinks there: the objective is smooth along the line.
    """

    def __init__(self, problem: Composite, v: np.ndarray, z: np.ndarray, goal: np.ndarray):
        self.problem = problem
        weights = 1.0 if problem.kink.weights is None else np.asarray(problem.kink.weights)
        price = np.zeros(len(v))
        price[: problem.size] = np.broadcast_to(problem.kink.alpha * weights, problem.state.w.shape).reshape(-1)
        self.moving = (price == 0) | (goal != 0)
        self.signs = np.where(price > 0, np.sign(goal), 0)
        self.kinks = np.where(self.moving, price, 0) * self.signs
        self.base = np.where(self.moving, v, 0)
        self.z = z if self.moving[v != 0].all() else problem.image(self.base)

    def search(self, direction: np.ndarray, t: float, most: float) -> tuple[np.ndarray, np.ndarray, float] | None:
        """A point whose objective is at most ``most``, its predictions and objective; ``None`` if none was found."""
        problem = self.problem
        change = problem.image(direction)
        length = self._length(direction, change, t)
        for _ in range(_HALVINGS if length > 0 else 0):
            v = self.base + length * direction
            crossed = (self.signs != 0) & (np.sign(v) != self.signs)
            v = np.where(crossed, 0, v)
            z = problem.image(v) if crossed.any() else self.z + length * change
            value = problem.value(v, z)
            if value <= most:
                return v, z, value
            length /= 2
        return None

    def _length(self, direction: np.ndarray, change: np.ndarray, t: float) -> float:
        """Where the slope along the line is zero, by a secant from 0 to t and one more from 0 to what that gives."""
        at_base = self._slope(0.0, direction, change)
        if at_base >= 0:
            return 0.0
        length = t
        for _ in range(2):
            bend = (self._slope(length, direction, change) - at_base) / length
            length = -at_base / bend if bend > 0 else 10 * length
        return length

    def _slope(self, s: float, direction: np.ndarray, change: np.ndarray) -> float:
        return self.problem.slope(self.base + s * direction, self.z + s * change, direction, change) + float(
            self.kinks @ direction
        )

"""Accelerated proximal gradients for ``f(X w + b) + penalty(w)``: any smooth datafit, any penalty with a prox.

Lives here: the steps with backtracking and restarts, for penalties that take coefficients as a whole (nuclear norm,
boxes, the simplex). Does not live here: what second derivatives allow (``prox_newton``), least squares
(``coordinate_descent``), concave penalties split in two (``accelerated``), penalties and datafits (``parts``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.parts.penalties_matrix import Nuclear
from ellzero.registry import register
from ellzero.solvers.first_order import State, along
from ellzero.solvers.prox_newton import Path, Solution

__all__ = ["path", "solve"]

_ROUND = 100  # steps between two looks at the certificate


@register(kind="solver", source="Beck and Teboulle (2009); O'Donoghue and Candes (2015)", name="fista")
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
) -> Solution:
    """Minimise ``f(X w + b) + penalty(w)`` over w ``[p]`` or ``[p, outputs]`` and b.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator.
    datafit : smooth: has ``value``, ``gradient`` and ``hessian_diagonal`` or ``curvature`` (never called).
    penalty : has ``value`` and ``prox(w, step)``, where w has the shape of the coefficients.
    tol : for the nuclear norm the relative duality gap; for others the largest entry of a subgradient at the answer,
        relative to the largest entry of the gradient at w = 0.
    max_iter : rounds of 100 steps at most.
    start : coefficients and intercept to begin at.

    Raises
    ------
    InputError : bad shapes or values, or a datafit or penalty that lacks what is needed, by name.
    """
    state = _State(x, y, datafit, penalty, fit_intercept, sample_weight)
    check("tol", tol, at_least=0)
    max_iter = check_integer("max_iter", max_iter, at_least=1)
    state.begin(start)
    return state.descend(penalty, tol, max_iter)


def path(x: Any, y: Any, datafit: Any, penalty: Any, *, alphas: Any = None, n_alphas: int = 100,
         eps: float | None = None, fit_intercept: bool = True, sample_weight: Any = None, tol: float = 1e-6,
         max_iter: int = 100) -> Path:  # fmt: skip
    """All fits along falling alphas, each started from the one before; the options of ``solve``."""
    state = _State(x, y, datafit, penalty, fit_intercept, sample_weight)
    return along(state, penalty, lambda at: state.descend(at, tol, max_iter), alphas, n_alphas, eps)


class _State(State):
    """The state, the scale of a duality gap, and the length of the last step."""

    def __init__(self, x, y, datafit, penalty, fit_intercept, sample_weight):
        super().__init__("FISTA", x, y, datafit, penalty, fit_intercept, sample_weight)
        if not (hasattr(datafit, "hessian_diagonal") or hasattr(datafit, "curvature")):
            raise InputError(f"FISTA: got {type(datafit).__name__}, which is not smooth (it lacks 'hessian_diagonal')")
        _, _, value, u = self.at_zero
        able = hasattr(datafit, "dual")
        self.gap_scale = value - float(datafit.dual(self.y, 0 * u, sample_weight)) if able else 0.0
        self.length = 1.0

    def descend(self, penalty, tol, max_iter) -> Solution:
        rest = np.inf
        for rounds in range(max_iter + 1):
            rest = min(rest, self.certificate(penalty)) if self._norm(penalty) else rest
            if rest <= tol or rounds == max_iter:
                break
            stationary = self.steps(penalty, tol)
            rest = rest if self._norm(penalty) else stationary
        return self.solution(rest, rounds, rest <= tol)

    def _norm(self, penalty):
        return isinstance(penalty, Nuclear) and penalty.alpha > 0 and self.gap_scale > 0

    def certificate(self, penalty) -> float:
        pull, offset, value, u = self.gradient(self.w, self.b)
        largest = float(penalty.alpha_max(pull))
        factor = min(1.0, penalty.alpha / largest) if largest > 0 else 1.0
        dual = float(self.datafit.dual(self.y, -factor * u, self.sample_weight))
        left = 2 * float((abs(offset / self.unit) * abs(self.b)).sum())
        return max(value + float(penalty.value(self.w)) - dual + left, 0.0) / self.gap_scale

    def steps(self, penalty, tol) -> float:
        """A round of steps; returns the largest entry of a subgradient, relative to that of the gradient at w = 0."""
        w, b = self.w, self.b
        ahead_w, ahead_b, momentum, residual = w, b, 1.0, np.inf
        for _ in range(_ROUND):
            pull, offset, value, _ = self.gradient(ahead_w, ahead_b)
            self.length *= 1.1
            while True:
                new_w = penalty.prox(ahead_w - self.length * pull, self.length)
                new_b = ahead_b - self.length * self.unit * offset
                after = self.gradient(new_w, new_b)
                dw, db = new_w - ahead_w, (new_b - ahead_b) / self.unit
                model = (pull * dw).sum() + (offset * db).sum() + ((dw**2).sum() + (db**2).sum()) / (2 * self.length)
                if after[2] <= value + model + 1e-14 * abs(value):
                    break
                self.length /= 2
            residual = max(abs(after[0] - pull - dw / self.length).max(), abs(after[1]).max()) / self.scale
            uphill = (dw * (new_w - w)).sum() + (db * (new_b - b) / self.unit).sum() < 0
            grown = 1.0 if uphill else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            push = 0.0 if uphill else (momentum - 1) / grown
            ahead_w, ahead_b = new_w + push * (new_w - w), new_b + push * (new_b - b)
            w, b, momentum = new_w, new_b, grown
            if residual <= tol and not self._norm(penalty):
                break
        self.w, self.b = w, b
        return residual

"""The accelerated gradient for concave penalties: the concave part joins the datafit, soft thresholding does the rest.

Lives here: the steps of Ghadimi and Lan with restarts, for one problem or a path. Does not live here: penalties that
take coefficients as a whole (``fista``), second derivatives (``prox_newton``), the split (``parts.penalty_split``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.registry import register
from ellzero.solvers.first_order import Composite, along, begin
from ellzero.solvers.prox_newton import Path, Solution

__all__ = ["path", "solve"]


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
    """Minimise ``f(X w + b) + penalty(w)`` over w ``[p]`` or ``[p, outputs]`` and b, to a stationary point.

    With ``p(w) = p'(0+) |w| + rest(w)`` and F = f + rest, whose gradient has the Lipschitz constant L, step k is

    - ``middle = (1 - a) ahead + a x`` with ``a = 2 / (k + 1)``;
    - ``x = soft(x - l g, l)`` and ``ahead = soft(middle - b g, b)`` with ``g = grad F(middle)``, ``b = 1 / L``,
      ``l = k b / 2``.

    Ghadimi and Lan (2016), algorithm 2, with the sequences of their corollary for composite problems (there
    ``b = 1 / (2 L)``; every b below 2 / L descends). Two things are ours. F(ahead) is at most
    ``F(middle) + <g, d> + L |d|^2 / 2``, d = ahead - middle, so a bound of the objective is known at each step at no
    cost: where it rises, or where the step turns back, k begins again at 1 from the better of the two points. The
    bound falls from step to step, hence every start of a round is no worse than the one before.

    Measured on SCAD and MCP logistic paths with gamma = 40, AR(0.8) columns, n = 200, p = 400: 5.5 to 6.6 times fewer
    gradients than ISTA to the objective of coordinate descent (1e-6). On easy designs (AR(0.6), n >= p) the factor is
    1.5 to 2.5 only; at the usual gamma = 3.7 the solvers end in different stationary points.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator.
    datafit : has ``value``, ``gradient`` and ``lipschitz``; convex or not.
    penalty : L1, elastic net, MCP, SCAD, log-sum or CEL0, with weights.
    tol : the largest entry of the smallest subgradient at the answer, relative to the largest entry of the datafit's
        gradient at w = 0. ``gap`` of the answer is that number.
    max_iter : rounds of 100 gradients at most; ``n_iter`` counts gradients.
    start : coefficients and intercept to begin at.

    Raises
    ------
    InputError : bad shapes or values, or a datafit or penalty that lacks what is needed, by name.
    """
    state, bound, tol, most = begin(
        "accelerated gradient", x, y, datafit, penalty, fit_intercept, sample_weight, tol, max_iter
    )
    state.begin(start)
    return _descend(Composite(state, penalty, bound), tol, most)


@register(
    kind="solver", id="S104", source="Ghadimi and Lan (2016); Contributions to high-dimensional data analysis (2025)",
    name="accelerated", claim="a third of the gradients of ISTA, or fewer, on SCAD and MCP",
)  # fmt: skip
def path(x: Any, y: Any, datafit: Any, penalty: Any, *, alphas: Any = None, n_alphas: int = 100,
         eps: float | None = None, fit_intercept: bool = True, sample_weight: Any = None, tol: float = 1e-6,
         max_iter: int = 100) -> Path:  # fmt: skip
    """All fits by accelerated gradients along falling alphas, each from the one before; the options of ``solve``."""
    state, bound, tol, most = begin(
        "accelerated gradient", x, y, datafit, penalty, fit_intercept, sample_weight, tol, max_iter
    )
    return along(state, penalty, lambda at: _descend(Composite(state, at, bound), tol, most), alphas, n_alphas, eps)


def _descend(problem: Composite, tol: float, limit: int) -> Solution:
    ahead = x = problem.prox(problem.vector(), 0.0)
    b, k, ceiling, rest = 1 / problem.bound, 1, np.inf, np.inf
    enough = tol * problem.state.scale
    while problem.gradients < limit:
        a = 2 / (k + 1)
        middle = (1 - a) * ahead + a * x
        z = problem.image(middle)
        gradient = problem.smooth(middle, z)
        if k == 1:
            rest = problem.stationarity(middle, gradient)
            if rest <= tol:
                break
        new = problem.prox(middle - b * gradient, b)
        d = new - middle
        most = problem.smooth_value(middle, z) + gradient @ d + problem.bound * (d @ d) / 2
        most += float(problem.kink.value(problem.coef(new)))
        if k > 1 and most > ceiling:  # back to the last point that is known to be good
            x, k = ahead, 1
            continue
        ceiling = most
        turned = k > 1 and d @ (new - ahead) < 0
        near = 2 * abs(d).max() / b <= enough  # the answer may be here: look at its own gradient
        x = problem.prox(x - k * b / 2 * gradient, k * b / 2)
        ahead, k = new, k + 1
        if turned or near:
            x, k = ahead, 1
    problem.keep(ahead)
    return problem.state.solution(rest, max(problem.gradients, 1), rest <= tol)

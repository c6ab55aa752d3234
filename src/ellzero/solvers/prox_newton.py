"""Proximal Newton with working sets for ``f(X w + b) + penalty(w)``: one problem, or a path of alphas.

Lives here: the choice of coordinates, the Newton step with free coefficients eliminated, its damping, smoothing of
datafits with a kink, the loop over alphas. Does not live here: the state and its certificate (``generalized_problem``),
descent in Gram space (``blocks``), penalties and datafits (``parts``), least squares (``coordinate_descent``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import check, check_array, check_integer
from ellzero.registry import register
from ellzero.solvers.blocks import Blocks, blocks
from ellzero.solvers.coordinate_descent import grid
from ellzero.solvers.generalized_problem import Local, Problem
from ellzero.solvers.operators import need

__all__ = ["Path", "Solution", "alpha_max", "iterate", "path", "solve"]

_STEPS = 20  # Newton steps on one working set
_ROOM = 10  # blocks that may join at least
_SOFT = 0.01  # smoothing of a kink at the start, relative to the value at w = 0


class Solution(NamedTuple):
    """One fit: ``coef`` ``[p]`` or ``[p, outputs]``, ``intercept`` a number or ``[outputs]``.

    ``gap`` is the certificate relative to its scale (see ``solve``); ``n_iter`` counts working sets.
    """

    coef: np.ndarray
    intercept: Any
    gap: float
    n_iter: int
    converged: bool


class Path(NamedTuple):
    """Fits over falling alphas: ``coefs`` is ``[p, n_alphas]`` or ``[p, outputs, n_alphas]``, the last axis for all."""

    alphas: np.ndarray
    coefs: np.ndarray
    intercepts: np.ndarray
    gaps: np.ndarray
    n_iters: np.ndarray
    converged: np.ndarray


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
    """Minimise ``f(X w + b) + penalty(w)`` over w and b, f the (weighted) mean loss of the datafit.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator; float32 and float64 are kept.
    y : what the datafit takes: ``[n]``, ``[n, outputs]``, or ``[n, 2]`` for Cox.
    datafit : has ``value``, ``gradient`` and ``hessian_diagonal`` or ``curvature``, or ``smoothed`` in their place;
        ``dual`` (or ``dual_at``) makes the certificate a duality gap.
    penalty : separable, or of groups; its weights are per column or group (0: free, infinite: out).
    sample_weight : ``[n]``; only ratios matter.
    tol : for a convex penalty the duality gap relative to that at w = 0 with theta = 0 (the null deviance, half of
        it); for others the largest distance of the negative gradient to the subdifferential relative to the largest
        gradient entry at w = 0.
    max_iter : working sets at most.
    start : coefficients and intercept to begin at.

    Raises
    ------
    InputError : bad shapes or values, or a datafit or penalty that lacks what is needed, by name.
    """
    tol, max_iter = _settings(tol, max_iter)
    problem, faced = _begin(x, y, datafit, penalty, fit_intercept, sample_weight)
    if start is not None:
        problem.coef[:] = check_array("start", np.asarray(start[0], dtype=float)).reshape(problem.coef.shape)
        problem.coef[faced.excluded] = 0
        if problem.fit_intercept:
            problem.intercept[:] = start[1]
        problem.refresh()
    return _minimise(problem, faced, tol, max_iter)


@register(
    kind="solver", source="Lee, Sun and Saunders (2014); Friedman, Hastie and Tibshirani (2010)", name="prox_newton"
)
def path(x: Any, y: Any, datafit: Any, penalty: Any, **options: Any) -> Path:
    """All fits along falling alphas, each started from the one before; the options of ``iterate``."""
    alphas, fits = zip(*iterate(x, y, datafit, penalty, **options))
    coefs, intercepts, gaps, n_iters, converged = zip(*fits)
    return Path(
        np.array(alphas), np.stack(coefs, axis=-1), np.stack(intercepts, axis=-1), np.array(gaps), np.array(n_iters),
        np.array(converged),
    )  # fmt: skip


def iterate(
    x: Any,
    y: Any,
    datafit: Any,
    penalty: Any,
    *,
    alphas: Sequence[float] | None = None,
    n_alphas: int = 100,
    eps: float | None = None,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 100,
) -> Iterator[tuple[float, Solution]]:
    """Yield ``(alpha, solution)`` along a path, so that a caller may stop when it is dense enough.

    Parameters
    ----------
    penalty : its own alpha is not used.
    alphas : sorted from large to small here; default ``n_alphas`` of them, geometric, from ``alpha_max`` down to
        ``eps`` times it.
    eps : default 1e-2 where n < p, else 1e-4.

    Raises
    ------
    InputError : as ``solve``; or a penalty without ``alpha_max``.
    """
    tol, max_iter = _settings(tol, max_iter)
    need("path", penalty, "alpha_max", "alpha")
    problem, faced = _begin(x, y, datafit, penalty, fit_intercept, sample_weight)
    if alphas is None:
        alphas = grid(faced.penalty.alpha_max(problem.gradient), problem.operator.shape, n_alphas, eps)
    else:
        alphas = np.sort(check_array("alphas", np.asarray(alphas, dtype=np.float64), ndim=1))[::-1]
    for alpha in alphas:
        yield float(alpha), _minimise(problem, faced.at(float(alpha)), tol, max_iter)


def alpha_max(
    x: Any, y: Any, datafit: Any, penalty: Any, *, fit_intercept: bool = True, sample_weight: Any = None
) -> float:
    """The smallest alpha at which all penalised coefficients are zero, intercept and free columns fitted."""
    need("alpha_max", penalty, "alpha_max")
    problem, faced = _begin(x, y, datafit, penalty, fit_intercept, sample_weight)
    return faced.penalty.alpha_max(problem.gradient)


def _begin(x, y, datafit, penalty, fit_intercept, sample_weight) -> tuple[Problem, Blocks]:
    """The problem at w = 0, with everything that costs nothing at its best."""
    problem = Problem(x, y, datafit, fit_intercept, sample_weight)
    faced = blocks(penalty, problem.operator.shape[1], problem.outputs)
    problem.start(faced)
    if len(faced.half_free):
        for _ in range(20):
            _refine(problem, faced, faced.half_free, 0.0)
            problem.refresh()
    if problem.mu is not None:  # the gradient at the kink itself, as near as rounding allows
        for _ in range(5):
            problem.soften(0.1 * problem.mu)
            problem.refresh()
    problem.measure()
    return problem, faced


def _minimise(problem: Problem, faced: Blocks, tol: float, max_iter: int) -> Solution:
    if problem.mu is not None:
        problem.soften(_SOFT * problem.gap_scale)
        problem.refresh()
    best, stalled, iteration = _Best(problem), 0, 0
    while True:
        gap = problem.certificate(faced)
        stalled = 0 if gap < 0.9 * best.gap else stalled + 1
        best.keep(gap)
        if gap <= tol or iteration == max_iter or stalled > 4:
            break
        if problem.mu is not None and problem.certificate(faced, problem.datafit) <= 0.2 * gap:
            problem.soften(0.1 * problem.mu)
            problem.refresh()
            stalled = 0
        far = faced.penalty.subdifferential_distance(problem.coef, problem.gradient)
        index = _working_set(problem, faced, far)
        _refine(problem, faced, index, 0.1 ** (2 + stalled) * float(np.max(far)))
        problem.refresh()
        iteration += 1
    return best.solution(iteration, tol)


class _Best:
    """The fit of the smallest gap so far: a step at the edge of rounding, or less smoothing, may lose a little."""

    def __init__(self, problem: Problem):
        self.problem, self.gap = problem, np.inf

    def keep(self, gap: float) -> None:
        if gap < self.gap:
            self.gap, self.coef, self.intercept = gap, self.problem.coef.copy(), self.problem.intercept.copy()

    def solution(self, n_iter: int, tol: float) -> Solution:
        outputs, dtype = self.problem.outputs, self.problem.operator.dtype
        coef = self.coef.reshape((-1,) if outputs is None else (-1, outputs)).astype(dtype)
        intercept = float(self.intercept[0]) if outputs is None else self.intercept.astype(dtype)
        return Solution(coef, intercept, float(self.gap), n_iter, bool(self.gap <= tol))


def _working_set(problem: Problem, faced: Blocks, far: np.ndarray) -> np.ndarray:
    """The blocks in use and those farthest from optimal: as many again, and at least 10."""
    used = faced.used(problem.coef)
    outside = far.copy()
    outside[used] = 0
    chosen = np.flatnonzero(outside > 0)
    room = max(_ROOM, len(used))
    if len(chosen) > room:
        chosen = chosen[np.argpartition(outside[chosen], -room)[-room:]]
    index = faced.members(np.union1d(used, chosen))
    return np.union1d(np.setdiff1d(index, faced.free, assume_unique=True), faced.half_free)


def _refine(problem: Problem, faced: Blocks, index: np.ndarray, target: float) -> None:
    """Damped proximal Newton steps on some coordinates, until their distance to optimality is below ``target``."""
    if not len(index):
        return
    local, penalty = Local(problem, problem.free.coords, index), faced.local(index)
    gradient = local.gradient(problem.slopes(problem.z))
    for _ in range(_STEPS):
        w = problem.coef[index]
        distance = _distance(penalty, w, gradient[local.free :])
        if distance <= target or not _step(problem, faced, local, penalty, w, gradient, distance):
            return
        gradient = local.gradient(problem.slopes(problem.z))


def _distance(penalty: Any, w: np.ndarray, gradient: np.ndarray) -> float:
    return float(np.max(penalty.subdifferential_distance(w, gradient)))


def _step(problem, faced, local, penalty, w, gradient, distance) -> bool:
    """One step, damped until it gains what its model promises; false where nothing is left to gain."""
    smooth, cost = problem.smooth_value(problem.z), float(penalty.value(w))
    for _ in range(25):
        hessian = local.hessian(problem.z, problem.damping)
        step = _model_step(faced, local, penalty, w, gradient, hessian, 1e-3 * distance)
        rise = float(penalty.value(w + step[local.free :])) - cost
        promised = -(step @ (gradient + hessian @ step / 2) + rise)
        z = problem.z + local.image(step)
        gained = smooth - problem.smooth_value(z) - rise
        if promised <= 1e-12 * (abs(smooth) + abs(cost)):  # too little for the objective to tell: the gradient does
            nearer = _distance(penalty, w + step[local.free :], local.gradient(problem.slopes(z))[local.free :])
            if nearer < 0.9 * distance:
                local.move(step, z)
            return nearer < 0.9 * distance
        if np.isfinite(gained) and gained >= 0.1 * promised:
            local.move(step, z)
            if gained >= 0.5 * promised:
                problem.damping = max(problem.damping / 10, 1e-10)
            return True
        problem.damping = max(10 * problem.damping, 1e-6)
    return False


def _model_step(faced, local, penalty, w, gradient, hessian, tol) -> np.ndarray:
    """The minimiser of ``g'd + d'Hd / 2 + penalty(w + d)``, with the free coefficients eliminated exactly."""
    f = local.free
    inner, slope = hessian[f:, f:], gradient[f:].copy()
    if f:
        back = local.inverse(hessian[:f, :f])
        reach = back @ hessian[:f, f:]
        inner = inner - hessian[f:, :f] @ reach
        inner = (inner + inner.T) / 2
        slope -= gradient[:f] @ reach
    moved = w.copy()
    faced.descend(np.ascontiguousarray(inner), moved, slope, penalty, tol)
    step = moved - w
    return step if not f else np.concatenate([-(back @ gradient[:f] + reach @ step), step])


def _settings(tol: float, max_iter: int) -> tuple[float, int]:
    return check("tol", tol, at_least=0), check_integer("max_iter", max_iter, at_least=1)

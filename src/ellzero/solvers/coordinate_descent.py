"""Working-set coordinate descent for ``|y - X w - b|^2 / (2 n) + penalty(w)``: one problem, or a path of alphas.

Lives here: the choice of coordinates, the Gram cache, which gradients need a look, and when coordinate descent gives
way to an exact solution. Does not live here: the inner loops (``kernels``), penalties (``parts.penalties``),
estimators. The intercept is free: it is solved out by centring, which never densifies a sparse design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.kernels.coordinate_descent import coordinate_descent
from ellzero.registry import register
from ellzero.solvers.certificates import crossover, l1_l2
from ellzero.solvers.operators import need
from ellzero.solvers.working_set import Problem

__all__ = ["Path", "Solution", "alpha_max", "grid", "iterate", "path", "solve"]

_SEEN_LIMIT = 6000  # columns whose Gram matrix is kept: 288 MB in float64
_MAX_SWEEPS, _FEW_SWEEPS = 2000, 4
_FEW = 10  # columns that a working set begins with


class Solution(NamedTuple):
    """One fit. ``gap`` is the certificate relative to its scale (see ``solve``); ``n_iter`` counts working sets."""

    coef: np.ndarray
    intercept: float
    gap: float
    n_iter: int
    converged: bool


class Path(NamedTuple):
    """Fits over falling alphas: ``coefs`` is ``[p, n_alphas]``, the rest ``[n_alphas]``."""

    alphas: np.ndarray
    coefs: np.ndarray
    intercepts: np.ndarray
    gaps: np.ndarray
    n_iters: np.ndarray
    converged: np.ndarray


def solve(
    x: Any,
    y: np.ndarray,
    penalty: Any,
    *,
    fit_intercept: bool = True,
    sample_weight: np.ndarray | None = None,
    tol: float = 1e-6,
    max_iter: int = 100,
    start: np.ndarray | None = None,
) -> Solution:
    """Minimise ``|y - X w - b|^2 / (2 n) + penalty(w)`` over w and b.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator; float32 and float64 are kept.
    y : ``[n]`` targets.
    penalty : a separable penalty of ``ellzero.parts.penalties``; its weights are per column (0: free, infinite: out).
    sample_weight : ``[n]`` weights of the squared errors, scaled to sum to n; 0 leaves a row out.
    tol : for L1 and elastic net the duality gap relative to the objective at w = 0; for other penalties the largest
        distance of the negative gradient to the subdifferential relative to the largest gradient entry at w = 0.
    max_iter : working sets at most.
    start : ``[p]`` where to begin.

    Raises
    ------
    InputError : bad shapes or values, or an operator or penalty that lacks what is needed, by name.
    """
    tol, max_iter = _settings(tol, max_iter)
    problem = Problem(x, y, penalty, fit_intercept, sample_weight)
    if start is not None:
        problem.coef[:] = check_array("start", np.asarray(start), shape=problem.coef.shape)
        if problem.weights is not None:
            problem.coef[np.isinf(problem.weights)] = 0
        problem.refresh()
    return _descend(problem, penalty, tol, max_iter)


@register(kind="solver", source="Johnson and Guestrin (2015); Massias, Gramfort and Salmon (2018)")
def path(x: Any, y: np.ndarray, penalty: Any, **options: Any) -> Path:
    """All fits along falling alphas, each started from the one before; the options of ``iterate``."""
    alphas, fits = [], []
    for alpha, fit in iterate(x, y, penalty, **options):
        alphas.append(alpha)
        fits.append(fit)
    coefs, intercepts, gaps, n_iters, converged = zip(*fits)
    return Path(
        np.array(alphas), np.stack(coefs, axis=1), np.array(intercepts), np.array(gaps), np.array(n_iters),
        np.array(converged),
    )  # fmt: skip


def iterate(
    x: Any,
    y: np.ndarray,
    penalty: Any,
    *,
    alphas: Sequence[float] | None = None,
    n_alphas: int = 100,
    eps: float | None = None,
    fit_intercept: bool = True,
    sample_weight: np.ndarray | None = None,
    tol: float = 1e-6,
    max_iter: int = 100,
) -> Iterator[tuple[float, Solution]]:
    """Yield ``(alpha, solution)`` along a path, so that a caller may stop when it is dense enough.

    Parameters
    ----------
    penalty : its own alpha is not used.
    alphas : sorted from large to small here; default ``n_alphas`` of them, geometric, from ``alpha_max`` (where the
        penalised coefficients are all zero) down to ``eps`` times it.
    eps : default 1e-2 where n < p, else 1e-4.

    Raises
    ------
    InputError : as ``solve``; or a penalty without ``alpha_max``.
    """
    tol, max_iter = _settings(tol, max_iter)
    need("path", penalty, "alpha_max", "alpha")
    problem = Problem(x, y, penalty, fit_intercept, sample_weight)
    if alphas is None:
        alphas = grid(_alpha_max(problem, penalty), problem.operator.shape, n_alphas, eps)
    else:
        alphas = np.sort(check_array("alphas", np.asarray(alphas, dtype=np.float64), ndim=1))[::-1]
        check("alphas", alphas[-1], at_least=0)
    problem.cover(len(alphas))
    for i, alpha in enumerate(alphas):
        yield float(alpha), _descend(problem, _with(penalty, alpha=float(alpha)), tol, max_iter, nearby=i > 0)


def grid(largest: float, shape: tuple[int, int], n_alphas: int = 100, eps: float | None = None) -> np.ndarray:
    """``n_alphas`` from ``largest`` down to ``eps`` times it, geometric; see ``iterate``."""
    n_alphas = check_integer("n_alphas", n_alphas, at_least=1)
    eps = (1e-2 if shape[0] < shape[1] else 1e-4) if eps is None else check("eps", eps, above=0, below=1)
    if not np.isfinite(largest):
        raise InputError("penalty: no alpha makes all coefficients zero (l1_ratio = 0?); want alphas given")
    return max(largest, np.finfo(float).tiny) * np.geomspace(1, eps, n_alphas)


def alpha_max(
    x: Any, y: np.ndarray, penalty: Any, *, fit_intercept: bool = True, sample_weight: np.ndarray | None = None
) -> float:
    """The smallest alpha at which all penalised coefficients are zero, intercept and free columns fitted."""
    need("alpha_max", penalty, "alpha_max")
    return _alpha_max(Problem(x, y, penalty, fit_intercept, sample_weight), penalty)


def _alpha_max(problem: Problem, penalty: Any) -> float:
    residual = problem.y
    if problem.basis is not None and penalty.positive:
        columns = problem.operator.columns(problem.free).astype(np.float64)
        residual = residual - (columns @ nnls(columns, residual.astype(np.float64))[0]).astype(residual.dtype)
    elif problem.basis is not None:
        residual = residual - (problem.basis @ (problem.basis.T @ residual)).astype(residual.dtype)
    return penalty.alpha_max(problem.operator.rmatvec(residual) / -len(residual))


def _descend(problem: Problem, penalty: Any, tol: float, max_iter: int, nearby: bool = False) -> Solution:
    """Working sets until certified; ``nearby``: the state solves a neighbouring penalty, so do not look before."""
    best, stalled, iteration, gap = np.inf, 0, 0, np.inf
    while True:
        if iteration or not nearby:
            gap = problem.certificate(penalty)
            stalled = 0 if gap < 0.9 * best else stalled + 1
            best = min(best, gap)
            if gap <= tol or iteration == max_iter or stalled > 4:
                break
        grown, limited = _enlarge(problem, penalty)
        stalled = 0 if grown else stalled
        _inner(problem, penalty, tol, stalled, limited)
        problem.refresh()
        iteration += 1
    coef = problem.coef.copy()
    return Solution(coef, float(problem.centring.intercept(coef)), float(gap), iteration, bool(gap <= tol))


def _enlarge(problem: Problem, penalty: Any) -> tuple[bool, bool]:
    """Let the columns that violate optimality most into the working set, at most as many as are in use (or a few).

    Returns whether it grew, and whether some had to wait.
    """
    gram = problem.gram
    if gram.complete and l1_l2(penalty) is not None:  # descent on all columns needs no distances
        problem.distance = np.inf
        return False, False
    far = penalty.subdifferential_distance(problem.coef, problem.gradient)
    problem.distance = float(far.max())
    forced = problem.coef != 0
    room = max(_FEW, np.count_nonzero(forced))
    forced[problem.free] = True
    far[gram.known] = 0
    chosen = np.flatnonzero(far > 0)
    limited = len(chosen) > room
    if limited:
        chosen = chosen[np.argpartition(far[chosen], -room)[-room:]]
    joining = forced & ~gram.known
    joining[chosen] = True
    new = np.flatnonzero(joining)
    if len(gram.seen) + len(new) > max(_SEEN_LIMIT, 2 * room):
        gram.keep(np.flatnonzero(forced | joining))
        problem.active.forget()
    elif len(new):
        gram.add(new)
    if not problem.fresh:
        problem.update(new[problem.travel[new] > 0])
    return len(new) > 0, limited


def _inner(problem: Problem, penalty: Any, tol: float, stalled: int, limited: bool) -> None:
    """Descend on the working set; where that is slow and the signs are all that matters, solve it exactly.

    Descent may take as long as an exact solution would; if the neighbouring problem needed that, only a few sweeps.
    """
    seen, strengths = problem.gram.seen, l1_l2(penalty)
    w = problem.coef[seen]
    weights = None if problem.weights is None else problem.weights[seen]
    plain = _with(penalty, weights=None) if weights is not None else penalty
    far, sweeps = 0.1 ** (1 + stalled) * problem.distance, _MAX_SWEEPS
    if strengths is not None and not limited:  # the gap is about |w| times the largest violation
        size = float(abs(w).sum())
        far = min(far, 0.1**stalled * tol * (problem.at_zero / size if size > 0 else problem.scale))
    by_columns = problem.by_columns()
    if strengths is not None and (limited or problem.exact):
        sweeps = _FEW_SWEEPS
    elif strengths is not None:
        sweep = problem.column_sweep() if by_columns else max(np.count_nonzero(w) * len(w), 1)
        sweeps = int(np.clip(problem.active.work(w) / sweep, 10, _MAX_SWEEPS))
    if by_columns:
        done = problem.descend_columns(w, plain, weights, far, sweeps)
    else:
        gradient = problem.gradient[seen]
        done = coordinate_descent(problem.gram.matrix, w, gradient, plain, weights=weights, tol=far, max_sweeps=sweeps)
    slow = strengths is not None and not limited and done.change > far
    problem.coef[seen] = w
    if slow and by_columns:
        problem.refresh()
        problem.update(seen)
        gradient = problem.gradient[seen]
    if slow:
        crossover(problem.gram.matrix, w, gradient, strengths, weights, bool(penalty.positive), problem.active)
        problem.coef[seen] = w
    problem.exact = slow and not strengths[1]


def _with(penalty: Any, **changes: Any) -> Any:
    """The penalty with some fields changed and not checked again: a path has many alphas."""
    other = object.__new__(type(penalty))
    other.__dict__.update(vars(penalty), **changes)
    return other


def _settings(tol: float, max_iter: int) -> tuple[float, int]:
    return check("tol", tol, at_least=0), check_integer("max_iter", max_iter, at_least=1)

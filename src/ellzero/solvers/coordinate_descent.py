"""Working-set coordinate descent for ``|y - X w - b|^2 / (2 n) + penalty(w)``: one problem, or a path of alphas.

Lives here: the choice of coordinates, the Gram cache, the exact step on a support of known signs, the certificates.
Does not live here: the inner loop (``kernels.coordinate_descent``), penalties (``parts.penalties``), estimators.
The intercept is free: it is solved out by centring, which never densifies a sparse design.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.kernels.coordinate_descent import coordinate_descent
from ellzero.registry import register
from ellzero.solvers.certificates import crossover, duality_gap, l1_l2, stationarity
from ellzero.solvers.operators import Operator, centred, need

__all__ = ["Path", "Solution", "alpha_max", "iterate", "path", "solve"]

_SEEN_LIMIT = 6000  # columns whose Gram matrix is kept: 288 MB in float64
_MAX_SWEEPS = 2000


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


class _Gram:
    """``X_S' X_S / n`` of the columns S seen so far, grown in place."""

    def __init__(self, operator: Operator):
        self.operator = operator
        self.seen = np.empty(0, dtype=np.int64)
        self.known = np.zeros(operator.shape[1], dtype=bool)
        self.matrix = np.zeros((0, 0), dtype=operator.dtype)

    def add(self, new: np.ndarray) -> None:
        """See more columns; ``new`` are not known yet."""
        old, size = len(self.seen), len(self.seen) + len(new)
        self.seen = np.concatenate([self.seen, new])
        self.known[new] = True
        if size > len(self.matrix):
            grown = np.zeros((max(2 * old, size),) * 2, dtype=self.operator.dtype)
            grown[:old, :old] = self.matrix[:old, :old]
            self.matrix = grown
        block = self.operator.gram(new, self.seen) / self.operator.shape[0]
        self.matrix[old:size, :size] = block
        self.matrix[:old, old:size] = block[:, :old].T

    def keep(self, columns: np.ndarray) -> None:
        """Forget all columns but these."""
        self.__init__(self.operator)
        self.add(columns)


class _Problem:
    """The state of a path: coefficients, their residual and gradient, and what is known of the design."""

    def __init__(self, x: Any, y: np.ndarray, penalty: Any, fit_intercept: bool):
        self.operator, self.y, self.centring = centred(x, y, fit_intercept)
        need("coordinate descent", self.operator, "shape", "dtype", "rmatvec", "restricted", "columns", "gram")
        need("coordinate descent", penalty, "prox", "subdifferential_distance", "value")
        n, p = self.operator.shape
        check_array("y", self.y, shape=(n,))
        if not any(self.operator.dtype == dtype for dtype in (np.float32, np.float64)):
            raise InputError(f"X: got dtype {self.operator.dtype}, want float32 or float64")
        self.weights = _weights(penalty, p)
        self.free = np.empty(0, int) if self.weights is None else np.flatnonzero(self.weights == 0)
        self.basis = _basis(self.operator, self.free)
        self.gram = _Gram(self.operator)
        self.coef = np.zeros(p, dtype=self.operator.dtype)
        self.refresh()
        self.scale = float(abs(self.gradient).max())

    def refresh(self) -> None:
        """Residual and gradient of the fit from the coefficients, without accumulated rounding."""
        support = np.flatnonzero(self.coef)
        fitted = self.operator.restricted(support, self.coef[support]) if len(support) else 0
        self.residual = self.y - fitted
        self.gradient = self.operator.rmatvec(self.residual) / -self.operator.shape[0]

    def dual_basis(self, positive: bool) -> np.ndarray | None:
        """What the dual point must be orthogonal to: the free columns, of those that must be >= 0 the ones in use."""
        return _basis(self.operator, self.free[self.coef[self.free] != 0]) if positive else self.basis

    def certificate(self, penalty: Any) -> float:
        """The relative gap where the problem is a Lasso or elastic net, else the relative stationarity."""
        if l1_l2(penalty) is not None:
            return duality_gap(self, penalty)
        return stationarity(self, penalty)


def solve(
    x: Any,
    y: np.ndarray,
    penalty: Any,
    *,
    fit_intercept: bool = True,
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
    tol : for L1 and elastic net the duality gap relative to the objective at w = 0; for other penalties the largest
        distance of the negative gradient to the subdifferential relative to the largest gradient entry at w = 0.
    max_iter : working sets at most.
    start : ``[p]`` where to begin.

    Raises
    ------
    InputError : bad shapes or values, or an operator or penalty that lacks what is needed, by name.
    """
    tol, max_iter = _settings(tol, max_iter)
    problem = _Problem(x, y, penalty, fit_intercept)
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
    problem = _Problem(x, y, penalty, fit_intercept)
    if alphas is None:
        n_alphas = check_integer("n_alphas", n_alphas, at_least=1)
        n, p = problem.operator.shape
        eps = (1e-2 if n < p else 1e-4) if eps is None else check("eps", eps, above=0, below=1)
        largest = _alpha_max(problem, penalty)
        if not np.isfinite(largest):
            raise InputError("penalty: no alpha makes all coefficients zero (l1_ratio = 0?); want alphas given")
        alphas = max(largest, np.finfo(float).tiny) * np.geomspace(1, eps, n_alphas)
    else:
        alphas = np.sort(check_array("alphas", np.asarray(alphas, dtype=np.float64), ndim=1))[::-1]
    for alpha in alphas:
        yield float(alpha), _descend(problem, replace(penalty, alpha=float(alpha)), tol, max_iter)


def alpha_max(x: Any, y: np.ndarray, penalty: Any, *, fit_intercept: bool = True) -> float:
    """The smallest alpha at which all penalised coefficients are zero, intercept and free columns fitted."""
    need("alpha_max", penalty, "alpha_max")
    return _alpha_max(_Problem(x, y, penalty, fit_intercept), penalty)


def _alpha_max(problem: _Problem, penalty: Any) -> float:
    residual = problem.y
    if problem.basis is not None and penalty.positive:
        columns = problem.operator.columns(problem.free).astype(np.float64)
        residual = residual - (columns @ nnls(columns, residual.astype(np.float64))[0]).astype(residual.dtype)
    elif problem.basis is not None:
        residual = residual - (problem.basis @ (problem.basis.T @ residual)).astype(residual.dtype)
    return penalty.alpha_max(problem.operator.rmatvec(residual) / -len(residual))


def _descend(problem: _Problem, penalty: Any, tol: float, max_iter: int) -> Solution:
    best, stalled, iteration = np.inf, 0, 0
    while True:
        gap = problem.certificate(penalty)
        stalled = 0 if gap < 0.9 * best else stalled + 1
        best = min(best, gap)
        if gap <= tol or iteration == max_iter or stalled > 4:
            break
        stalled = 0 if _enlarge(problem, penalty) else stalled
        _inner(problem, penalty, stalled)
        problem.refresh()
        iteration += 1
    coef = problem.coef.copy()
    return Solution(coef, float(problem.centring.intercept(coef)), float(gap), iteration, bool(gap <= tol))


def _enlarge(problem: _Problem, penalty: Any) -> bool:
    """Let the columns that violate optimality most into the working set; at most as many as are in use, and 10."""
    gram = problem.gram
    far = penalty.subdifferential_distance(problem.coef, problem.gradient)
    problem.distance = float(np.max(far))
    used = np.flatnonzero(problem.coef)
    forced = np.union1d(used, problem.free)
    far[gram.known] = 0
    room = max(10, len(used))
    chosen = np.flatnonzero(far > 0)
    if len(chosen) > room:
        chosen = np.sort(chosen[np.argpartition(far[chosen], -room)[-room:]])
    new = np.union1d(chosen, forced[~gram.known[forced]])
    if len(gram.seen) + len(new) > max(_SEEN_LIMIT, len(used)):
        gram.keep(np.union1d(forced, new))
    elif len(new):
        gram.add(new)
    return len(new) > 0


def _inner(problem: _Problem, penalty: Any, stalled: int) -> None:
    """Descend on the working set, then, where the signs are all that matters, solve its support exactly."""
    seen = problem.gram.seen
    w, gradient = problem.coef[seen], problem.gradient[seen]
    weights = None if problem.weights is None else problem.weights[seen]
    inner_tol = 0.1 ** (1 + stalled) * problem.distance
    plain = replace(penalty, weights=None) if weights is not None else penalty
    coordinate_descent(problem.gram.matrix, w, gradient, plain, weights=weights, tol=inner_tol, max_sweeps=_MAX_SWEEPS)
    strengths = l1_l2(penalty)
    if strengths is not None:
        crossover(problem.gram.matrix, w, gradient, strengths, weights, bool(penalty.positive))
    problem.coef[seen] = w


def _weights(penalty: Any, p: int) -> np.ndarray | None:
    weights = getattr(penalty, "weights", None)
    if weights is None:
        return None
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape not in ((), (1,), (p,)):
        raise InputError(f"weights: got shape {weights.shape}, want ({p},), one per column of X")
    return np.broadcast_to(weights, (p,))


def _basis(operator: Operator, free: np.ndarray) -> np.ndarray | None:
    """An orthonormal basis of the free columns, which the dual point must be orthogonal to."""
    if not len(free):
        return None
    left, singular, _ = np.linalg.svd(operator.columns(free).astype(np.float64), full_matrices=False)
    rank = int((singular > singular[0] * max(operator.shape) * np.finfo(float).eps).sum()) if singular[0] > 0 else 0
    return left[:, :rank]


def _settings(tol: float, max_iter: int) -> tuple[float, int]:
    return check("tol", tol, at_least=0), check_integer("max_iter", max_iter, at_least=1)

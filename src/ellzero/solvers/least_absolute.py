"""Least absolute deviations with an L1 penalty, exactly: linear programs on a growing set of columns.

Lives here: ``mean |y - X w - b| + alpha sum_j weight_j |w_j|`` through its dual, and its path. Does not live here: the
simplex method (SciPy's HiGHS), smooth or other penalties of absolute errors (``prox_newton`` smooths them).
The dual has one bounded variable for each sample and one row for each column in use:
``max <y, theta>`` with ``|theta_i| <= s_i``, ``|X_j' theta| <= alpha_j`` and, for what is free, ``X_j' theta = 0``. The
coefficients are the prices of the rows: those of rows that do not bind are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from ellzero.errors import InputError, check_array
from ellzero.parts.datafits import Absolute
from ellzero.parts.penalties import L1
from ellzero.registry import register
from ellzero.solvers.coordinate_descent import grid
from ellzero.solvers.operators import aslinear, need
from ellzero.solvers.prox_newton import Path, Solution, _settings

__all__ = ["alpha_max", "iterate", "path", "solve"]

_ROOM = 10
_ACCURACY = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def solve(
    x: Any,
    y: Any,
    penalty: L1,
    *,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 100,
    start: np.ndarray | None = None,
) -> Solution:
    """Minimise the (weighted) mean of ``|y - X w - b|`` plus the penalty.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator.
    y : ``[n]``.
    penalty : ``L1``, with its weights (0: free, infinite: out) and sign.
    tol : duality gap relative to the objective at w = 0. Simplex solutions are exact to about 1e-9.
    max_iter : linear programs at most, each with more columns than the one before.
    start : ``[p]`` coefficients: the columns with nonzeros are in the first program.

    Raises
    ------
    InputError : bad shapes or values, another penalty, alpha = 0.
    """
    tol, max_iter = _settings(tol, max_iter)
    program = _Program(x, y, penalty, fit_intercept, sample_weight)
    if start is not None:
        start = check_array("start", np.asarray(start, dtype=np.float64), shape=program.weights.shape)
        usable = np.isfinite(program.weights) & (program.weights > 0) & (start > 0 if program.positive else start != 0)
        program.take(np.flatnonzero(usable), np.sign(start[usable]))
    return program.descend(penalty.alpha, tol, max_iter)


@register(kind="solver", source="Wang, Li and Jiang (2007); Koenker (2005)", name="least_absolute")
def path(x: Any, y: Any, penalty: L1, **options: Any) -> Path:
    """All fits along falling alphas, each with the columns that the one before needed; the options of ``iterate``."""
    alphas, fits = zip(*iterate(x, y, penalty, **options))
    coefs, intercepts, gaps, n_iters, converged = zip(*fits)
    return Path(
        np.array(alphas), np.stack(coefs, axis=-1), np.array(intercepts), np.array(gaps), np.array(n_iters),
        np.array(converged),
    )  # fmt: skip


def iterate(x: Any, y: Any, penalty: L1, *, alphas: Any = None, n_alphas: int = 100, eps: float | None = None,
            fit_intercept: bool = True, sample_weight: Any = None, tol: float = 1e-6,
            max_iter: int = 100) -> Iterator[tuple[float, Solution]]:  # fmt: skip
    """Yield ``(alpha, solution)`` along a path; the alphas are as in ``prox_newton.iterate``."""
    tol, max_iter = _settings(tol, max_iter)
    program = _Program(x, y, penalty, fit_intercept, sample_weight)
    if alphas is None:
        alphas = grid(program.alpha_max(), program.operator.shape, n_alphas, eps)
    else:
        alphas = np.sort(check_array("alphas", np.asarray(alphas, dtype=np.float64), ndim=1))[::-1]
    for alpha in alphas:
        yield float(alpha), program.descend(float(alpha), tol, max_iter)


def alpha_max(x: Any, y: Any, penalty: L1, *, fit_intercept: bool = True, sample_weight: Any = None) -> float:
    """An alpha at which all penalised coefficients are zero: the least one, save where the fit of 0 has ties."""
    return _Program(x, y, penalty, fit_intercept, sample_weight).alpha_max()


class _Program:
    """The dual program: its rows so far (a column and a sign each), and scales that bring all numbers near 1."""

    def __init__(self, x, y, penalty, fit_intercept, sample_weight):
        if not isinstance(penalty, L1):
            raise InputError(f"penalty: got {type(penalty).__name__}, want L1: linear programs have no other")
        self.operator = aslinear(x)
        need("least absolute deviations", self.operator, "shape", "dtype", "rmatvec", "take")
        n, p = self.operator.shape
        self.y = check_array("y", np.ascontiguousarray(y, dtype=np.float64), shape=(n,))
        self.datafit, self.sample_weight = Absolute(), sample_weight
        self.shares = abs(self.datafit.gradient(np.ones(n), np.zeros(n), sample_weight))
        weights = np.ones(p) if penalty.weights is None else np.asarray(penalty.weights, dtype=np.float64)
        if weights.shape not in ((), (1,), (p,)):
            raise InputError(f"weights: got shape {weights.shape}, want ({p},), one per column of X")
        self.weights, self.positive = np.broadcast_to(weights, (p,)), bool(penalty.positive)
        self.fit_intercept = bool(fit_intercept)
        self.free = np.empty(0, int) if self.positive else np.flatnonzero(self.weights == 0)
        self.used = np.flatnonzero(self.shares)
        equal = self._rows(self.free)
        if self.fit_intercept:
            equal = sparse.vstack([sparse.csr_array(self.shares[None, self.used]), equal], format="csr")
        self.equal_size = np.maximum(abs(equal).sum(axis=1), 1e-300)
        self.equal = sparse.diags_array(1 / self.equal_size) @ equal if equal.shape[0] else None
        self.columns, self.signs = np.empty(0, int), np.empty(0)
        self.rows = sparse.csr_array((0, len(self.used)))
        self.sizes = np.empty(0)
        self.scale = 1.0
        theta, _, b, free = self._linear_program(1.0)
        coef = np.zeros(p)
        coef[self.free] = free
        z = self._predicted(coef, b)
        cost = float(self.datafit.value(self.y, z, sample_weight))
        self.theta, self.scale = theta, cost if cost > 0 else 1.0

    def _rows(self, columns):
        taken = sparse.csr_array(self.operator.take(columns).T.astype(np.float64))
        return taken[:, self.used] * self.shares[self.used]

    def alpha_max(self) -> float:
        """From the dual solution without penalised columns."""
        return float(self._excess(self.theta)[0].max(initial=0.0))

    def _excess(self, theta):
        """``|X_j' theta| / weight_j`` of the priced columns (one-sided for w >= 0), 0 for others, and the sign."""
        pull = self.operator.rmatvec(theta.astype(self.operator.dtype)).astype(np.float64)
        size = np.maximum(pull, 0) if self.positive else abs(pull)
        priced = np.isfinite(self.weights) & (self.weights > 0)
        half = self.positive & (self.weights == 0) & (pull > 1e-12)
        ratio = np.where(priced, size / np.where(priced, self.weights, 1), np.where(half, np.inf, 0.0))
        return ratio, np.sign(pull)

    def descend(self, alpha: float, tol: float, max_iter: int) -> Solution:
        """Programs with ever more rows, until the gap over all columns is small."""
        if alpha <= 0:
            raise InputError(f"alpha: got {alpha}, want above 0: without a penalty there may be no unique fit")
        best = None
        for iteration in range(1, max_iter + 1):
            theta, prices, b, free = self._linear_program(alpha)
            coef = np.zeros(self.operator.shape[1])
            np.add.at(coef, self.columns, self.signs * prices)
            coef[self.free] = free
            ratio, signs = self._excess(theta)
            gap = self._gap(alpha, coef, b, theta, ratio)
            fresh = Solution(coef.astype(self.operator.dtype), float(b), gap, iteration, bool(gap <= tol))
            best = fresh if best is None or gap < best.gap else best
            if gap <= tol or not self._grow(alpha, ratio, signs):
                break
        return best._replace(n_iter=iteration)

    def _grow(self, alpha, ratio, signs) -> bool:
        """Take the columns whose rows are violated most; false where all of them are in already."""
        known = np.zeros((2, len(ratio)), dtype=bool)
        known[(self.signs < 0).astype(int), self.columns] = True
        over = np.where(known[(signs < 0).astype(int), np.arange(len(ratio))], 0.0, ratio - alpha)
        chosen = np.flatnonzero(over > 1e-10 * alpha)
        room = max(_ROOM, len(self.columns) // 2)
        if len(chosen) > room:
            chosen = chosen[np.argpartition(over[chosen], -room)[-room:]]
        if not len(chosen):
            return False
        self.take(chosen, signs[chosen])
        return True

    def take(self, chosen: np.ndarray, signs: np.ndarray) -> None:
        """Add the rows of some columns, each on the side of its sign; empty columns are passed over."""
        rows = sparse.diags_array(signs) @ self._rows(chosen)
        sizes = abs(rows).sum(axis=1)
        full = np.flatnonzero(sizes)
        rows, sizes, chosen, signs = rows[full], sizes[full], chosen[full], signs[full]
        self.rows = sparse.vstack([self.rows, sparse.diags_array(1 / sizes) @ rows], format="csr")
        self.sizes = np.concatenate([self.sizes, sizes])
        self.columns = np.concatenate([self.columns, chosen])
        self.signs = np.concatenate([self.signs, signs])

    def _linear_program(self, alpha):
        """theta ``[n]``, the prices of the rows, the intercept and the free coefficients."""
        limits = alpha * self.weights[self.columns] / self.sizes
        found = linprog(
            -(self.shares * self.y)[self.used] / self.scale,
            A_ub=self.rows if len(self.columns) else None, b_ub=limits if len(self.columns) else None,
            A_eq=self.equal, b_eq=None if self.equal is None else np.zeros(self.equal.shape[0]),
            bounds=(-1, 1), method="highs", options=_ACCURACY,
        )  # fmt: skip
        if found.x is None:
            raise InputError(f"X: the linear program of the fit failed ({found.message}); want finite, scaled columns")
        theta = np.zeros(len(self.y))
        theta[self.used] = np.clip(found.x, -1, 1) * self.shares[self.used]
        prices = -np.asarray(found.ineqlin.marginals) / self.sizes * self.scale if len(self.columns) else np.empty(0)
        equal = np.empty(0) if self.equal is None else -found.eqlin.marginals / self.equal_size * self.scale
        b, free = (equal[0], equal[1:]) if self.fit_intercept else (0.0, equal)
        return theta, prices, b, free

    def _predicted(self, coef, b):
        support = np.flatnonzero(coef)
        if not len(support):
            return np.full(len(self.y), float(b))
        return np.asarray(self.operator.take(support) @ coef[support].astype(self.operator.dtype), np.float64) + b

    def _gap(self, alpha, coef, b, theta, ratio) -> float:
        primal = float(self.datafit.value(self.y, self._predicted(coef, b), self.sample_weight))
        priced = (coef != 0) & (self.weights > 0)
        primal += alpha * float(self.weights[priced] @ abs(coef[priced]))
        largest = float(ratio.max(initial=0.0))
        factor = min(1.0, alpha / largest) if largest > 0 else 1.0
        left = 2 * abs(b * theta.sum()) if self.fit_intercept else 0.0
        if len(self.free):
            pull = self.operator.take(self.free).T @ theta.astype(self.operator.dtype)
            left += 2 * float(abs(pull) @ abs(coef[self.free]))
        return max(primal - factor * float(self.y @ theta) + left, 0.0) / self.scale

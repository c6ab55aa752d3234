"""Orthogonal matching pursuit: for one target or many, every support size up to k from one run.

Lives here: the greedy choice with its tie rule, and the incremental QR and Cholesky factorisations.
Does not live here: intercepts and scaling (centre the operator), estimators. Source: Pati, Rezaiifar and
Krishnaprasad (1993); many targets on one Gram matrix: Rubinstein, Zibulevsky and Elad (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from ellzero.errors import InputError, check_array, check_integer
from ellzero.registry import register
from ellzero.solvers.operators import Operator, aslinear, need

__all__ = ["Pursuit", "omp"]


@dataclass(frozen=True)
class Pursuit:
    """The nested supports of one target, with the least-squares fit on each.

    ``support`` ``[steps]`` in order of choice (fewer than k where the residual or the rank ran out); ``factor`` and
    ``rotated`` solve ``factor[:m, :m] w = rotated[:m]`` for the first m; ``residual_norms`` ``[steps + 1]``.
    """

    support: np.ndarray
    factor: np.ndarray
    rotated: np.ndarray
    residual_norms: np.ndarray
    size: int

    def coef(self, k: int | None = None) -> np.ndarray:
        """``[p]`` coefficients on the first ``k`` chosen columns; all of them where fewer were found."""
        steps = len(self.support)
        k = steps if k is None else min(check_integer("k", k, at_least=0), steps)
        coef = np.zeros(self.size, dtype=self.rotated.dtype)
        if k:
            coef[self.support[:k]] = solve_triangular(self.factor[:k, :k], self.rotated[:k])
        return coef


@register(kind="solver", source="Pati, Rezaiifar and Krishnaprasad (1993)")
def omp(x: Any, y: np.ndarray, k: int, *, gram: bool = False) -> Pursuit | list[Pursuit]:
    """Add the column most correlated with the residual (by its normalised self), refit, k times.

    Scores that agree within rounding count as tied, and the lowest index wins. A column in the span of those chosen,
    or a column of zeros, is never chosen.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator.
    y : ``[n]``, or ``[n, targets]``: all targets move together, one product of matrices per step.
    k : largest support, ``1 <= k <= min(n, p)``.
    gram : compute ``X' X`` once and work in Gram space: faster for many targets and few columns, but it squares the
        condition number.

    Returns
    -------
    Pursuit, or a list with one per target.
    """
    operator = aslinear(x)
    need("omp", operator, "shape", "dtype", "rmatmat", "columns", "gram", "column_norms")
    n, p = operator.shape
    y = check_array("y", np.asarray(y, dtype=operator.dtype), ndim=(1, 2))
    if len(y) != n:
        raise InputError(f"y: got {len(y)} rows beside X with {n}, want equal")
    k = check_integer("k", k, at_least=1, at_most=min(n, p))
    targets = y.reshape(n, -1)
    runs = _by_gram(operator, targets, k) if gram else _by_columns(operator, targets, k)
    return runs[0] if y.ndim == 1 else runs


class _Chooser:
    """The greedy rule: which column next, for one target."""

    def __init__(self, norms: np.ndarray, sizes: np.ndarray):
        self.norms = np.where(norms > 0, norms, 1)
        self.open = np.repeat((norms > 0)[None], len(sizes), axis=0)
        self.slack = 128 * np.finfo(norms.dtype).eps * sizes  # what rounding makes of a product with the residual

    def __call__(self, target: int, correlation: np.ndarray) -> int:
        score = np.where(self.open[target], abs(correlation) / self.norms, -1)
        return int(np.argmax(score >= max(score.max() - self.slack[target], 0)))


def _by_columns(operator: Operator, y: np.ndarray, k: int) -> list[Pursuit]:
    """QR of the chosen columns, orthogonalised twice; one ``X' R`` per step for all targets."""
    n, count = y.shape
    dtype, eps = operator.dtype, np.finfo(operator.dtype).eps
    norms = operator.column_norms()
    choose = _Chooser(norms, np.linalg.norm(y, axis=0))
    basis = np.zeros((count, k, n), dtype=dtype)
    factor = np.zeros((count, k, k), dtype=dtype)
    rotated = np.zeros((count, k), dtype=dtype)
    residual = np.array(y.T, order="C")
    start = np.linalg.norm(residual, axis=1)
    history = [[float(norm)] for norm in start]
    support: list[list[int]] = [[] for _ in range(count)]
    running = [t for t in range(count) if start[t] > 0]
    while running:
        correlation = operator.rmatmat(residual[running].T).T
        ended = set()
        for row, t in zip(correlation, running):
            m = len(support[t])
            column, found = _next_column(operator, choose, t, row, basis[t, :m], norms, start[t] * eps * 8)
            if found is None:
                ended.add(t)
                continue
            unit, above, length = found
            basis[t, m], factor[t, :m, m], factor[t, m, m] = unit, above, length
            rotated[t, m] = unit @ residual[t]
            residual[t] -= rotated[t, m] * unit
            support[t].append(column)
            choose.open[t, column] = False
            history[t].append(float(np.linalg.norm(residual[t])))
            if m + 1 == k or history[t][-1] <= 8 * eps * start[t]:
                ended.add(t)
        running = [t for t in running if t not in ended]
    return [_pursuit(support[t], factor[t], rotated[t], history[t], operator.shape[1]) for t in range(count)]


def _next_column(operator, choose, target, correlation, basis, norms, floor):
    """The best column that is not in the span of ``basis``: its index, and its new direction or ``None``."""
    while choose.open[target].any():
        column = choose(target, correlation)
        if abs(correlation[column]) <= floor * norms[column]:
            return column, None  # what is left cannot be told from rounding
        x = operator.columns(np.array([column]))[:, 0]
        above = basis @ x
        unit = x - above @ basis
        again = basis @ unit  # once more: the first pass loses digits where x is nearly in the span
        unit -= again @ basis
        length = np.linalg.norm(unit)
        if length > 64 * np.finfo(unit.dtype).eps * norms[column]:
            return column, (unit / length, above + again, length)
        choose.open[target, column] = False
    return -1, None


def _by_gram(operator: Operator, y: np.ndarray, k: int) -> list[Pursuit]:
    """Cholesky of the chosen block of ``X' X``, which all targets share."""
    p, eps = operator.shape[1], np.finfo(operator.dtype).eps
    gram = operator.gram(np.arange(p))
    product = operator.rmatmat(y).T
    norms = np.sqrt(gram.diagonal())
    choose = _Chooser(norms, np.linalg.norm(y, axis=0))
    runs = []
    for t, wanted in enumerate(product):
        lower = np.zeros((k, k), dtype=gram.dtype)
        rotated = np.zeros(k, dtype=gram.dtype)
        square = total = float(y[:, t] @ y[:, t])
        support, history, correlation = [], [float(np.sqrt(total))], wanted.copy()
        while len(support) < k and square > 64 * eps * total and choose.open[t].any():
            m, column = len(support), choose(t, correlation)
            if correlation[column] ** 2 <= 64 * eps * total * gram[column, column]:
                break
            choose.open[t, column] = False
            row = solve_triangular(lower[:m, :m], gram[support, column], lower=True) if m else np.zeros(0)
            pivot = gram[column, column] - row @ row
            if pivot <= 64 * eps * gram[column, column]:
                continue
            lower[m, :m], lower[m, m] = row, np.sqrt(pivot)
            support.append(column)
            rotated[m] = (wanted[column] - row @ rotated[:m]) / lower[m, m]
            coef = solve_triangular(lower[: m + 1, : m + 1].T, rotated[: m + 1])
            correlation = wanted - coef @ gram[support]
            square = max(square - float(rotated[m]) ** 2, 0.0)
            history.append(float(np.sqrt(square)))
        runs.append(_pursuit(support, lower.T, rotated, history, p))
    return runs


def _pursuit(support, factor, rotated, history, size) -> Pursuit:
    m = len(support)
    chosen = np.array(support, dtype=np.int64)
    return Pursuit(chosen, factor[:m, :m].copy(), rotated[:m].copy(), np.array(history), size)

"""Orthogonal matching pursuit: for one target or many, every support size up to k from one run.

Lives here: plain OMP on a matrix or on its Gram matrix, all targets moving together. Does not live here: the choice
of the next column (``greedy_choice``), other losses and penalties (``loss_pursuit``), intercepts and scaling (centre
the operator), estimators. Source: Pati, Rezaiifar and Krishnaprasad (1993); many targets on one Gram matrix:
Rubinstein, Zibulevsky and Elad (2008).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.registry import register
from ellzero.solvers.greedy_choice import Exact, Screened, largest, rounding, screening_pays
from ellzero.solvers.operators import Operator, aslinear, need

__all__ = ["Bases", "Pursuit", "omp", "omp_gram"]

_BASES, _PRODUCTS = 1 << 25, 1 << 22  # numbers held for a chunk of targets: few chunks by columns, small ones by Gram


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
            coef[self.support[:k]] = solve_triangular(self.factor[:k, :k], self.rotated[:k], check_finite=False)
        return coef


@register(
    kind="solver",
    source="Pati, Rezaiifar and Krishnaprasad (1993)",
    wing="linear",
    example=lambda: omp(np.eye(4), np.array([0.0, 2.0, 0.0, 1.0]), 2),
)
def omp(x: Any, y: np.ndarray, k: int, *, gram: bool = False, tol: float = 0.0) -> Pursuit | list[Pursuit]:
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
    tol : a target ends when its residual is at most ``tol |y|``.

    Returns
    -------
    Pursuit, or a list with one per target.

    Raises
    ------
    InputError : shapes that do not match, entries that are not finite, numbers out of range.
    """
    operator = aslinear(x)
    need("omp", operator, "shape", "dtype", "rmatmat", "columns", "gram", "column_norms")
    n, p = operator.shape
    y = check_array("y", np.asarray(y, dtype=operator.dtype), ndim=(1, 2))
    if len(y) != n:
        raise InputError(f"y: got {len(y)} rows beside X with {n}, want equal")
    k = check_integer("k", k, at_least=1, at_most=min(n, p))
    check("tol", tol, at_least=0)
    targets = y.reshape(n, -1)
    if gram:
        squares = np.einsum("ij,ij->j", targets, targets)
        runs = _by_gram(operator.gram(np.arange(p)), operator.rmatmat(targets).T, squares, k, tol)
    else:
        runs = _by_columns(operator, targets.T, k, tol)
    found = list(runs)
    return found[0] if y.ndim == 1 else found


def omp_gram(
    gram: np.ndarray, product: np.ndarray, squares: Any, k: int, *, tol: float = 0.0
) -> Pursuit | list[Pursuit]:
    """OMP from ``X' X`` ``[p, p]``, ``X' y`` ``[p]`` or ``[p, targets]`` and ``|y|^2``, one per target; see ``omp``."""
    gram = check_array("gram", np.asarray(gram), ndim=2, dtypes="f")
    p = len(gram)
    check_array("gram", gram, shape=(p, p))
    product = check_array("product", np.asarray(product, dtype=gram.dtype), ndim=(1, 2))
    check_array("product", product, shape=(p, *product.shape[1:]))
    squares = check_array("squares", np.atleast_1d(np.asarray(squares, dtype=gram.dtype)))
    check_array("squares", squares, shape=(product.size // p,))
    k = check_integer("k", k, at_least=1, at_most=p)
    check("tol", tol, at_least=0)
    found = list(_by_gram(gram, product.reshape(p, -1).T, squares, k, tol))
    return found[0] if product.ndim == 1 else found


class Bases:
    """The chosen columns of many targets as orthonormal rows, grown by one column each at a time.

    ``units [targets, k, n]``, ``factor [targets, k, k]`` upper triangular with ``X_S = units' factor``, ``rotated
    [targets, k]`` the coefficients of y in the basis, ``residual [targets, n]``, ``support [targets, k]``.
    """

    def __init__(self, targets: np.ndarray, k: int):
        count, n = targets.shape
        self.residual = np.array(targets, order="C")
        self.start = np.linalg.norm(targets, axis=1)
        self.units = np.zeros((count, k, n), dtype=targets.dtype)
        self.factor = np.zeros((count, k, k), dtype=targets.dtype)
        self.rotated = np.zeros((count, k), dtype=targets.dtype)
        self.norms = np.zeros((count, k + 1), dtype=targets.dtype)
        self.norms[:, 0] = self.start
        self.support = np.full((count, k), -1)
        self.steps = np.zeros(count, dtype=int)

    def add(self, which: np.ndarray, chosen: np.ndarray, columns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Add one column to each of ``which`` (all with as many before); False where it lies in the span already.

        ``columns [len(which), n]`` are overwritten; ``lengths`` are their norms.
        """
        m = self.steps[which[0]]
        above = np.zeros((len(which), m), dtype=columns.dtype)
        if m:
            units = self.units[:, :m] if len(which) == len(self.units) else self.units[which, :m]
            above = _project_out(columns, units)
            left = np.linalg.norm(columns, axis=1)
            again = np.flatnonzero(left < 0.7 * lengths)  # digits were lost where x is nearly in the span
            if again.size:
                part = columns[again]
                above[again] += _project_out(part, units[again])
                columns[again] = part
        left = np.linalg.norm(columns, axis=1)
        fresh = left > 64 * np.finfo(columns.dtype).eps * lengths
        rows = which[fresh]
        units = columns[fresh] / left[fresh, None]
        self.units[rows, m], self.factor[rows, :m, m], self.factor[rows, m, m] = units, above[fresh], left[fresh]
        self.rotated[rows, m] = np.einsum("ij,ij->i", units, self.residual[rows])
        self.residual[rows] -= self.rotated[rows, m, None] * units
        self.support[rows, m] = chosen[fresh]
        self.norms[rows, m + 1] = np.linalg.norm(self.residual[rows], axis=1)
        self.steps[rows] += 1
        return fresh


def _project_out(columns: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Take from each row of ``columns [b, n]`` its part in the span of ``units [b, m, n]``; returns ``[b, m]``."""
    above = units @ columns[:, :, None]
    columns -= (above.transpose(0, 2, 1) @ units)[:, 0]
    return above[:, :, 0]


def in_chunks(y: np.ndarray, k: int) -> list[np.ndarray]:
    """``[targets, n]`` in parts whose bases fit into memory."""
    return np.array_split(y, -(-y.size * k // _BASES))


def _by_columns(operator: Operator, y: np.ndarray, k: int, tol: float) -> Iterator[Pursuit]:
    """QR of the chosen columns; one ``X' R`` per step for all targets of a chunk."""
    norms = operator.column_norms()
    chooser = Screened(operator, norms) if screening_pays(operator, k * len(y)) else Exact(operator, norms)
    for part in in_chunks(y, k):
        bases = Bases(part, k)
        closed = np.repeat((norms == 0)[None], len(part), axis=0)
        floor = 8 * np.finfo(y.dtype).eps * bases.start  # what is weaker cannot be told from rounding
        running = np.flatnonzero(bases.start > 0)
        for m in range(k):
            if not running.size:
                break
            chooser.score(bases.residual[running], bases.start[running])
            waiting = np.arange(len(running))
            while waiting.size:
                rows = running[waiting]
                chosen, strength = chooser.pick(waiting, closed[rows])
                held = strength > floor[rows]
                waiting, rows, chosen = waiting[held], rows[held], chosen[held]
                if not rows.size:
                    break
                closed[rows, chosen] = True
                columns = np.ascontiguousarray(operator.columns(chosen).T)
                waiting = waiting[~bases.add(rows, chosen, columns, norms[chosen])]
            going = (bases.steps == m + 1) & (bases.norms[:, m + 1] > np.maximum(floor, tol * bases.start))
            running = np.flatnonzero(going)
        yield from _pursuits(bases.support, bases.factor, bases.rotated, bases.norms, operator.shape[1])


def _by_gram(gram: np.ndarray, product: np.ndarray, squares: np.ndarray, k: int, tol: float) -> Iterator[Pursuit]:
    """The same from ``X' X``: the products of all columns with each new basis vector follow from a row of it."""
    count, p = product.shape
    for part in np.array_split(np.arange(count), -(-count * k * p // _PRODUCTS)):
        yield from _gram_chunk(gram, product[part], squares[part], k, tol)


def _gram_chunk(gram, product, squares, k, tol) -> Iterator[Pursuit]:
    (count, p), floor, norms = product.shape, 64 * np.finfo(gram.dtype).eps, np.sqrt(np.maximum(gram.diagonal(), 0))
    scale, slack = np.where(norms > 0, norms, 1), rounding(np.sqrt(squares))
    closed, correlation = np.repeat((norms == 0)[None], count, axis=0), product.copy()
    images = np.zeros((count, k, p), dtype=gram.dtype)  # X' of each basis vector
    factor, rotated = np.zeros((count, k, k), dtype=gram.dtype), np.zeros((count, k), dtype=gram.dtype)
    support, left = np.full((count, k), -1), np.repeat(squares[:, None], k + 1, axis=1)
    running = np.flatnonzero(squares > 0)
    for m in range(k):
        waiting, added = running, np.zeros(count, dtype=bool)
        while waiting.size:
            scores = np.where(closed[waiting], -1, abs(correlation[waiting]) / scale)
            chosen, strength = largest(scores, slack[waiting])
            held = (strength > 0) & (strength**2 > floor * squares[waiting])
            waiting, chosen = waiting[held], chosen[held]
            closed[waiting, chosen] = True
            above = images[waiting[:, None], np.arange(m), chosen[:, None]]
            pivot = gram[chosen, chosen] - np.einsum("ij,ij->i", above, above)
            fresh = pivot > floor * gram[chosen, chosen]
            rows, columns, above, length = waiting[fresh], chosen[fresh], above[fresh], np.sqrt(pivot[fresh])
            before = images[:, :m] if len(rows) == count else images[rows, :m]
            images[rows, m] = (gram[columns] - (above[:, None] @ before)[:, 0]) / length[:, None]
            factor[rows, :m, m], factor[rows, m, m], support[rows, m] = above, length, columns
            rotated[rows, m] = correlation[rows, columns] / length
            correlation[rows] -= rotated[rows, m, None] * images[rows, m]
            left[rows, m + 1] = np.maximum(left[rows, m] - rotated[rows, m] ** 2, 0)
            added[rows], waiting = True, waiting[~fresh]
        running = np.flatnonzero(added & (left[:, m + 1] > np.maximum(floor, tol**2) * squares))
    return _pursuits(support, factor, rotated, np.sqrt(left), p)


def _pursuits(support, factor, rotated, norms, size) -> Iterator[Pursuit]:
    """The targets one by one; unused places of ``support`` are -1."""
    for t, m in enumerate((support >= 0).sum(axis=1)):
        yield Pursuit(support[t, :m], factor[t, :m, :m].copy(), rotated[t, :m], norms[t, : m + 1], size)

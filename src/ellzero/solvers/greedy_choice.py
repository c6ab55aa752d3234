"""Which column next: the largest correlation with the residual, for many residuals at once.

Lives here: the exact rule, and the same rule screened in single precision. Does not live here: pursuit itself
(``pursuit``), gains of other losses (``greedy_gains``).
"""

from __future__ import annotations

import numpy as np

from ellzero.solvers.operators import Dense, Operator

__all__ = ["Exact", "Screened", "largest", "rounding", "screening_pays"]

_FEW = 64  # candidates of one residual that are looked at one by one


def largest(scores: np.ndarray, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row of ``[b, p]`` the first entry within ``slack [b]`` of the largest, and the largest itself."""
    best = scores.max(axis=1)
    return (scores >= np.maximum(best - slack, 0)[:, None]).argmax(axis=1), best


def rounding(sizes: np.ndarray) -> np.ndarray:
    """What rounding makes of a product of a unit column with a residual, where the target had this norm."""
    return 128 * np.finfo(sizes.dtype).eps * sizes


class Exact:
    """The column of largest ``|x_j' r| / |x_j|``; values that agree within rounding are tied, the lowest wins."""

    def __init__(self, operator: Operator, norms: np.ndarray):
        self.operator, self.norms = operator, np.where(norms > 0, norms, 1)

    def score(self, residuals: np.ndarray, sizes: np.ndarray) -> None:
        """Take up ``[b, n]`` residuals of targets that had the norms ``sizes [b]``."""
        self.values = abs(self.operator.rmatmat(residuals.T).T)
        self.values /= self.norms
        self.slack = rounding(sizes)

    def pick(self, rows: np.ndarray, closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For some of the residuals the column and its score; a score of -1 where all are ``closed [len(rows), p]``."""
        values = self.values[rows]
        np.copyto(values, -1, where=closed)
        return largest(values, self.slack[rows])


class Screened:
    """``Exact``, in less time: single precision leaves few candidates, and those are compared in double.

    With unit columns and residuals a product in single precision is off by less than ``error``, so that whatever
    trails by more than twice that cannot be the largest. What is picked is what ``Exact`` picks.
    """

    def __init__(self, operator: Dense, norms: np.ndarray):
        self.exact, self.operator = Exact(operator, norms), operator
        self.units = np.empty_like(operator.x, dtype=np.float32)
        np.multiply(operator.x, np.where(norms > 0, 1 / self.exact.norms, 0), out=self.units, casting="same_kind")
        self.error = 1.01 * (operator.shape[0] + 8) * 2.0**-24

    def score(self, residuals: np.ndarray, sizes: np.ndarray) -> None:
        """As ``Exact.score``."""
        self.residuals, self.slack = residuals, rounding(sizes)
        self.lengths = np.linalg.norm(residuals, axis=1)
        self.values = (residuals / self.lengths[:, None]).astype(np.float32) @ self.units
        np.abs(self.values, out=self.values)

    def pick(self, rows: np.ndarray, closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As ``Exact.pick``."""
        values = self.values if len(rows) == len(self.values) else self.values[rows]
        np.copyto(values, -1, where=closed)
        best = values.max(axis=1).astype(np.float64)
        cut = np.maximum(best - 2 * self.error - self.slack[rows] / self.lengths[rows], 0)
        # Flat, for that is many times faster than by two axes.
        owner, column = np.divmod(np.flatnonzero(values >= cut[:, None].astype(np.float32)), values.shape[1])
        count = np.bincount(owner, minlength=len(rows))
        first = np.concatenate([[0], np.cumsum(count)[:-1]])
        chosen, strength = np.zeros(len(rows), dtype=np.intp), np.where(best < 0, -1, best * self.lengths[rows])
        one = count == 1
        chosen[one] = column[first[one]]
        for i in np.flatnonzero((count > 1) & (best >= 0)):
            candidates = column[first[i] : first[i] + count[i]]
            chosen[i], strength[i] = self._compare(rows[i], candidates)
        return chosen, strength

    def _compare(self, row: int, candidates: np.ndarray) -> tuple[int, float]:
        if len(candidates) > _FEW:
            products = self.operator.rmatvec(self.residuals[row])[candidates]
        else:
            products = self.residuals[row] @ self.operator.columns(candidates)
        values = abs(products) / self.exact.norms[candidates]
        place, best = largest(values[None], self.slack[row : row + 1])
        return int(candidates[place[0]]), float(best[0])


def screening_pays(operator: Operator, products: int) -> bool:
    """Whether the copy in single precision is worth it: a dense matrix in double, large, and used often."""
    n, p = operator.shape
    return isinstance(operator, Dense) and operator.dtype == np.float64 and n * p >= 1 << 16 > n and products >= 16

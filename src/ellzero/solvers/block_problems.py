"""Smooth functions that blocks of coordinates descend: their gradient is kept up to date as blocks move.

Lives here: quadratic forms, losses of linear predictions, and labels spread over a graph as a quadratic form.
Does not live here: which block and which step (``block_rules``, ``block_descent``).

Each has ``x [p]``, ``gradient [p]`` at x, ``curvature [p]`` (bounds of the second derivatives), ``bound(b)`` (a matrix
above the Hessian of a block, everywhere), ``hessian(b)`` (the Hessian of a block at x), ``change(b, d)`` (what moving
the block by d would add to the value), ``move(b, d)`` (does it, and returns that) and ``value()``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check, check_array
from ellzero.solvers.operators import Dense, Sparse, aslinear, need

__all__ = ["LinearLoss", "QuadraticForm", "spread_labels"]


class QuadraticForm:
    """``x' A x / 2 - c' x``.

    Parameters
    ----------
    A : ``[p, p]`` symmetric and positive semidefinite, dense or scipy sparse. Where it is sparse a block's move
        touches its neighbours only.
    c : ``[p]``.
    start : ``[p]``, default zero.

    Raises
    ------
    InputError : shapes that do not match, entries that are not finite, a negative diagonal, A that is not symmetric.
    """

    def __init__(self, A: Any, c: Any, start: Any = None):
        A = sparse.csr_array(A, dtype=np.float64) if sparse.issparse(A) else np.asarray(A, dtype=np.float64)
        check_array("A", A.data if sparse.issparse(A) else A, allow_empty=sparse.issparse(A))
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise InputError(f"A: got shape {A.shape}, want a square matrix")
        if abs(A - A.T).max() > 1e-9 * abs(A).max():
            raise InputError(f"A: got a matrix that differs from its transpose by {abs(A - A.T).max():.3g}, want none")
        self.A = A
        self.curvature = A.diagonal().copy()
        if self.curvature.min() < 0:
            raise InputError(f"A: got {self.curvature.min():g} on the diagonal, want numbers at least 0")
        self.c = check_array("c", np.asarray(c, dtype=np.float64), shape=(len(self.curvature),))
        self.x = _start(start, len(self.c))
        self.gradient = A @ self.x - self.c

    def bound(self, block: np.ndarray) -> np.ndarray:
        """``A[block, block]``."""
        if sparse.issparse(self.A):
            return self.A[block][:, block].toarray()
        return self.A[np.ix_(block, block)]

    hessian = bound

    def change(self, block: np.ndarray, d: np.ndarray) -> float:
        """``g_b' d + d' A_bb d / 2``."""
        return float(self.gradient[block] @ d + (self.A[block].T @ d)[block] @ d / 2)

    def move(self, block: np.ndarray, d: np.ndarray) -> float:
        """``x_b += d``; returns the change of the value."""
        image = self.A[block].T @ d
        change = float(self.gradient[block] @ d + image[block] @ d / 2)
        self.x[block] += d
        self.gradient += image
        return change

    def value(self) -> float:
        """At x."""
        return float(self.x @ (self.gradient - self.c) / 2)


class LinearLoss:
    """``datafit(y, X w) + l2 |w|^2 / 2``; here x is w.

    Parameters
    ----------
    X : ``[n, p]`` array or scipy sparse matrix. Where it is sparse a move touches the rows of its block only.
    y : ``[n]``.
    datafit : of ``ellzero.parts.datafits``, with ``hessian_diagonal`` and ``lipschitz``.
    l2 : at least 0.
    start : ``[p]``, default zero.
    """

    def __init__(self, X: Any, y: Any, datafit: Any, *, l2: float = 0.0, start: Any = None):
        self.operator = aslinear(X)
        if not isinstance(self.operator, Dense | Sparse):
            raise InputError(f"X: got {type(self.operator).__name__}, want an array or a scipy sparse matrix")
        need("block descent", datafit, "value", "gradient", "hessian_diagonal", "lipschitz")
        n, p = self.operator.shape
        self.y = check_array("y", np.asarray(y, dtype=np.float64), shape=(n,))
        datafit.check_targets(self.y)
        self.datafit, self.l2 = datafit, check("l2", l2, at_least=0)
        self.top = float(datafit.lipschitz(self.y))
        self.curvature = self.top * self.operator.column_norms().astype(np.float64) ** 2 + self.l2
        self.x = _start(start, p)
        self.prediction = self.operator.matvec(self.x)
        self.slope = datafit.gradient(self.y, self.prediction)
        self.gradient = self.operator.rmatvec(self.slope) + self.l2 * self.x
        self.rows = self.operator.x.tocsr() if isinstance(self.operator, Sparse) else None

    def bound(self, block: np.ndarray) -> np.ndarray:
        """The Lipschitz constant of the slope times ``X_b' X_b``."""
        return self.top * self.operator.gram(block) + self.l2 * np.eye(len(block))

    def hessian(self, block: np.ndarray) -> np.ndarray:
        """``X_b' diag(h) X_b`` at x."""
        columns = self.operator.columns(block)
        weights = self.datafit.hessian_diagonal(self.y, self.prediction)
        return (columns.T * weights) @ columns + self.l2 * np.eye(len(block))

    def change(self, block: np.ndarray, d: np.ndarray) -> float:
        """By the values before and after."""
        moved = self.prediction + self.operator.restricted(block, d)
        fit = self.datafit.value(self.y, moved) - self.datafit.value(self.y, self.prediction)
        return float(fit + self.l2 * (self.x[block] @ d + d @ d / 2))

    def move(self, block: np.ndarray, d: np.ndarray) -> float:
        """``x_b += d``; returns the change of the value."""
        change = self.change(block, d)
        self.x[block] += d
        self.prediction += self.operator.restricted(block, d)
        slope = self.datafit.gradient(self.y, self.prediction)
        if self.rows is None:
            self.gradient = self.operator.rmatvec(slope)
            self.gradient += self.l2 * self.x
        else:
            touched = np.flatnonzero(slope != self.slope)
            self.gradient += self.rows[touched].T @ (slope[touched] - self.slope[touched])
            self.gradient[block] += self.l2 * d
        self.slope = slope
        return change

    def value(self) -> float:
        """At x."""
        return float(self.datafit.value(self.y, self.prediction) + self.l2 * (self.x @ self.x) / 2)


def spread_labels(weights: Any, labels: Any) -> tuple[QuadraticForm, np.ndarray]:
    """Labels of few nodes spread over a graph: ``min sum_{i<j} w_ij (x_i - x_j)^2 / 2`` with the labelled x fixed.

    Parameters
    ----------
    weights : ``[nodes, nodes]`` symmetric, at least 0, dense or sparse; the diagonal is not used.
    labels : ``[nodes]``, NaN where unknown.

    Returns
    -------
    QuadraticForm : over the unknown nodes. Its minimum is the harmonic function of Zhu, Ghahramani and Lafferty (2003).
    array : the numbers of those nodes.
    """
    weights = sparse.csr_array(weights, dtype=np.float64)
    check_array("weights", weights.data, allow_empty=True)
    if weights.nnz and weights.data.min() < 0:
        raise InputError(f"weights: got {weights.data.min():g}, want numbers at least 0")
    labels = check_array("labels", np.asarray(labels, dtype=np.float64), shape=(weights.shape[0],), finite=False)
    unknown, known = np.flatnonzero(np.isnan(labels)), np.flatnonzero(~np.isnan(labels))
    if not len(known) or not len(unknown):
        raise InputError(f"labels: got {len(known)} known of {len(labels)}, want some known and some not")
    check_array("labels", labels[known])
    weights = weights - sparse.dia_array((weights.diagonal()[None], [0]), shape=weights.shape)
    rows = weights.tocsr()[unknown]
    degrees = np.asarray(rows.sum(axis=1)).ravel()
    if (degrees == 0).any():
        raise InputError(f"weights: node {unknown[np.argmin(degrees)]} has no neighbour, so that no label reaches it")
    laplacian = sparse.dia_array((degrees[None], [0]), shape=(len(unknown),) * 2) - rows[:, unknown]
    return QuadraticForm(laplacian.tocsr(), rows[:, known] @ labels[known]), unknown


def _start(start: Any, p: int) -> np.ndarray:
    return np.zeros(p) if start is None else check_array("start", np.array(start, dtype=np.float64), shape=(p,))

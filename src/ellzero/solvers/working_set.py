"""What a working-set solver keeps: the Gram matrix of the columns it works on, and gradients as fresh as needed.

Lives here: ``Gram`` and ``Problem``, the state of one problem or of a path. Does not live here: which columns are
worked on and how (``coordinate_descent``), certificates (``certificates``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.kernels import columns as kernels
from ellzero.kernels.active_set import ActiveSet
from ellzero.kernels.coordinate_descent import Descent, column_descent
from ellzero.solvers.certificates import duality_gap, l1_l2, stationarity
from ellzero.solvers.operators import Centred, Operator, Sparse, design, need

__all__ = ["Gram", "Problem"]

_HELD_LIMIT = 1 << 27  # numbers in copies of columns: 1 GB in float64


class Gram:
    """``X_S' X_S / n`` of the columns S seen so far, grown when asked for, with copies of dense columns."""

    def __init__(self, operator: Operator):
        self.operator = operator
        self.dense = _sparse(operator) is None
        self.seen = np.empty(0, dtype=np.int64)
        self.known = np.zeros(operator.shape[1], dtype=bool)
        self.built = 0
        self._matrix = np.zeros((0, 0), dtype=operator.dtype)
        self._held = np.zeros((0, operator.shape[0]), dtype=operator.dtype)

    def add(self, new: np.ndarray) -> None:
        """See more columns; ``new`` are not known yet."""
        self.seen = np.concatenate([self.seen, new])
        self.known[new] = True

    @property
    def complete(self) -> bool:
        """Whether every column has been seen."""
        return len(self.seen) == len(self.known)

    def keep(self, columns: np.ndarray) -> None:
        """Forget all columns but these."""
        self.__init__(self.operator)
        self.add(columns)

    @property
    def matrix(self) -> np.ndarray:
        """``[m, m]`` with the Gram matrix in its upper left block."""
        old, size, n = self.built, len(self.seen), self.operator.shape[0]
        if size == old:
            return self._matrix
        if size > len(self._matrix):
            grown = np.zeros((max(2 * old, size),) * 2, dtype=self.operator.dtype)
            grown[:old, :old] = self._matrix[:old, :old]
            self._matrix = grown
        if self.dense and size * n <= _HELD_LIMIT:
            block = self._products(old, size)
        else:
            self.dense = False
            block = self.operator.gram(self.seen[old:], self.seen)
        block /= n
        self._matrix[old:size, :size] = block
        self._matrix[:old, old:size] = block[:, :old].T
        self.built = size
        return self._matrix

    def _products(self, old: int, size: int) -> np.ndarray:
        if size > len(self._held):
            held = np.empty((max(2 * old, size), self.operator.shape[0]), dtype=self.operator.dtype)
            held[:old] = self._held[:old]
            self._held = held
        self._held[old:size] = self.operator.columns(self.seen[old:]).T
        return kernels.cross_products(self._held[old:size].T, self._held[:size].T)

    def subtract(self, y: np.ndarray, coef: np.ndarray) -> np.ndarray:
        """``y - X w`` for ``[p]`` coefficients."""
        places = np.flatnonzero(coef[self.seen[: self.built]]) if self.dense else ()
        support = np.flatnonzero(coef)
        if len(support) and len(places) == len(support):
            return kernels.combination(self._held.T, places, -coef[self.seen[places]], y)
        return y - self.operator.restricted(support, coef[support]) if len(support) else y.copy()


class Problem:
    """The state of a path: coefficients, their residual and gradient, and what is known of the design.

    ``gradient`` of a column may be that of an earlier residual: since then the residual has travelled ``travel``, so
    that the gradient lies within ``norm travel / n`` of what is stored. Only columns that may matter are looked at.
    """

    def __init__(self, x: Any, y: np.ndarray, penalty: Any, fit_intercept: bool, sample_weight: Any = None):
        self.operator, self.y, self.centring = design(x, y, fit_intercept, sample_weight)
        need("coordinate descent", self.operator, "shape", "dtype", "rmatvec", "restricted", "columns", "gram")
        need("coordinate descent", penalty, "prox", "subdifferential_distance", "value")
        n, p = self.operator.shape
        check_array("y", self.y, shape=(n,))
        if not any(self.operator.dtype == dtype for dtype in (np.float32, np.float64)):
            raise InputError(f"X: got dtype {self.operator.dtype}, want float32 or float64")
        self.weights = _weights(penalty, p)
        self.free = np.empty(0, int) if self.weights is None else np.flatnonzero(self.weights == 0)
        self.basis = _basis(self.operator, self.free)
        self.gram, self.active = Gram(self.operator), ActiveSet()
        self.coef = np.zeros(p, dtype=self.operator.dtype)
        self.residual = self.y
        self.start = self.operator.rmatvec(self.y) / -n
        self.gradient = self.start.copy()
        self.at_zero = _dot(self.y, self.y) / (2 * n)
        self.scale = float(abs(self.gradient).max())
        self.norms = self.operator.column_norms() / n if getattr(self.operator, "selective", False) else None
        self.travel, self.fresh = np.zeros(p, dtype=self.operator.dtype), True
        self.covered = False  # whether the Gram matrix holds all columns, so that X need not be looked at
        self.exact = False  # whether the last working set had to be solved exactly
        self.sparse = _sparse(self.operator)
        if self.sparse is not None:
            self.stored = np.diff(self.sparse.indptr)
            self.curvature = self.operator.column_norms() ** 2 / n

    def cover(self, fits: int) -> None:
        """Work on all columns at once where their Gram matrix costs less than looking at X in each of so many fits."""
        n, p = self.operator.shape
        if self.basis is None and self.operator.dtype == np.float64 and p <= min(n, 4 * fits):
            self.gram.add(np.flatnonzero(~self.gram.known))
            self.covered = self.gram.matrix is not None

    def refresh(self) -> None:
        """The residual (or, with all columns covered, the gradient) of the coefficients, without piled-up rounding."""
        if self.covered:
            seen, matrix = self.gram.seen, self.gram.matrix
            support = np.flatnonzero(self.coef[seen])
            start = np.zeros(len(matrix))
            start[: len(seen)] = self.start[seen]
            self.gradient[seen] = kernels.combination(matrix.T, support, self.coef[seen[support]], start)[: len(seen)]
            return
        before, self.residual = self.residual, self.gram.subtract(self.y, self.coef)
        move = self.residual - before
        self.travel += 1.001 * np.sqrt(_dot(move, move))
        self.fresh = False

    def look(self, penalty: Any) -> None:
        """Bring the gradient up to date wherever it may violate optimality, and on the working set."""
        if self.fresh:
            return
        if self.norms is None:
            self.gradient = self.operator.rmatvec(self.residual) / -self.operator.shape[0]
            self.travel[:], self.fresh = 0, True
            return
        reach = abs(self.gradient) + self.norms * self.travel
        risky = penalty.subdifferential_distance(np.zeros_like(reach), -reach) > 0
        risky[self.gram.seen] = True
        self.update(np.flatnonzero(risky & (self.travel > 0)))
        self.fresh = not self.travel.any()

    def update(self, columns: np.ndarray) -> None:
        """The gradient of some columns at the present residual."""
        if len(columns):
            self.gradient[columns] = self.operator.products(columns, self.residual) / -self.operator.shape[0]
            self.travel[columns] = 0

    def column_sweep(self) -> float:
        """What a sweep over sparse columns costs, in multiplications of a sweep over the Gram matrix."""
        return 5.0 * int(self.stored[self.gram.seen].sum()) + 20.0 * len(self.gram.seen)

    def by_columns(self) -> bool:
        """Whether descent on the sparse columns is cheaper than on their Gram matrix."""
        idle = self.sparse is None or self.exact or self.covered
        return not idle and self.column_sweep() < len(self.gram.seen) ** 2.0

    def descend_columns(self, w: np.ndarray, penalty: Any, weights: Any, tol: float, max_sweeps: int) -> Descent:
        """Coordinate descent over the working set on a sparse design itself; its own residual is then out of date."""
        seen, centring = self.gram.seen, None
        if isinstance(self.operator, Centred):
            centring = (self.operator.means[seen], self.operator.sums[seen], self.operator.ones)
        return column_descent(
            self.sparse, seen, self.curvature[seen], centring, w, self.residual.copy(), penalty, weights=weights,
            tol=tol, max_sweeps=max_sweeps,
        )  # fmt: skip

    def products_with_residual(self) -> tuple[float, float]:
        """``<y, r>`` and ``|r|^2``."""
        if self.covered:
            n, squares = len(self.y), 2 * len(self.y) * self.at_zero
            product = squares + n * float(self.start @ self.coef)
            return product, max(product + n * float(self.gradient @ self.coef), 0.0)
        return _dot(self.y, self.residual), _dot(self.residual, self.residual)

    def dual_basis(self, positive: bool) -> np.ndarray | None:
        """What the dual point must be orthogonal to: the free columns, of those that must be >= 0 the ones in use."""
        return _basis(self.operator, self.free[self.coef[self.free] != 0]) if positive else self.basis

    def certificate(self, penalty: Any) -> float:
        """The relative gap where the problem is a Lasso or elastic net, else the relative stationarity."""
        self.look(penalty)
        return duality_gap(self, penalty) if l1_l2(penalty) is not None else stationarity(self, penalty)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product in double precision, by a sum that no thread count changes."""
    return float((a.astype(np.float64) * b).sum())


def _sparse(operator: Any) -> Any:
    """The CSC matrix behind an operator, centred or not; ``None`` where there is none."""
    base = operator.base if isinstance(operator, Centred) else operator
    return base.x if isinstance(base, Sparse) else None


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

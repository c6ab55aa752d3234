"""Design matrices as operators: products, columns and Gram blocks, without densifying what is sparse.

Lives here: dense and sparse matrices, centring and scaling of columns (carried through the algebra), Kronecker
products, and views of rows (folds) and of weighted rows. Does not live here: any solver.
Views wrap an operator and are operators; each agrees with the matrix that it stands for, which is never formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_array
from ellzero.kernels import columns as kernels
from ellzero.registry import register

__all__ = [
    "Centred", "Dense", "Kronecker", "Operator", "RowWeighted", "Rows", "Scaled", "Sparse", "aslinear", "need",
]  # fmt: skip

_BLOCK = 1 << 24  # numbers that a Gram block copies at a time


def need(solver: str, thing: Any, *capabilities: str) -> None:
    """Raise ``InputError`` naming the first of ``capabilities`` that ``thing`` lacks, and the thing."""
    for capability in capabilities:
        if not hasattr(thing, capability):
            raise InputError(f"{solver}: got {type(thing).__name__}, which lacks {capability!r}; want it there")


class Operator(ABC):
    """A real ``[n, p]`` matrix X known by what it does. ``dtype`` is float32 or float64 and products follow it."""

    shape: tuple[int, int]
    dtype: np.dtype
    selective = False  # whether products with few columns cost less than with all

    @abstractmethod
    def matmat(self, w: np.ndarray) -> np.ndarray:
        """``X W`` for ``[p, b]``."""

    @abstractmethod
    def rmatmat(self, u: np.ndarray) -> np.ndarray:
        """``X' U`` for ``[n, b]``."""

    @abstractmethod
    def columns(self, index: np.ndarray) -> np.ndarray:
        """The chosen columns as a dense ``[n, len(index)]`` array in Fortran order."""

    def take(self, index: np.ndarray) -> Any:
        """The chosen columns as ``columns`` gives them, but a scipy sparse matrix where X is one."""
        return self.columns(index)

    def matvec(self, w: np.ndarray) -> np.ndarray:
        """``X w`` for ``[p]``."""
        return self.matmat(w[:, None])[:, 0]

    def rmatvec(self, u: np.ndarray) -> np.ndarray:
        """``X' u`` for ``[n]``."""
        return self.rmatmat(u[:, None])[:, 0]

    def products(self, index: np.ndarray, u: np.ndarray) -> np.ndarray:
        """``X_index' u`` for ``[n]``: ``[len(index)]``."""
        return self.rmatvec(u)[index]

    def restricted(self, index: np.ndarray, w: np.ndarray) -> np.ndarray:
        """``X_index w`` for ``[len(index)]``: a product with few nonzero coefficients."""
        spread = np.zeros(self.shape[1], dtype=w.dtype)
        spread[index] = w
        return self.matvec(spread)

    def gram(self, index: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """``X_index' X_other``, dense; ``other`` defaults to ``index``."""
        left = self.columns(index)
        if other is None or np.array_equal(index, other):
            return kernels.cross_products(left, left)
        width = max(1, _BLOCK // self.shape[0])
        parts = [other[start : start + width] for start in range(0, len(other), width)]
        return np.hstack([kernels.cross_products(left, self.columns(part)) for part in parts])

    @abstractmethod
    def column_norms(self) -> np.ndarray:
        """The Euclidean norm of each column."""


@register(kind="operator", source="none", example=lambda: Dense(np.eye(3)))
class Dense(Operator):
    """A NumPy matrix in either order, used in place; Fortran order makes ``columns`` of neighbours cheap."""

    def __init__(self, x: np.ndarray):
        x = _floating(check_array("X", np.asarray(x), ndim=2, dtypes="fiub", finite=False))
        self.x = x if x.flags.c_contiguous or x.flags.f_contiguous else np.asfortranarray(x)
        self.shape, self.dtype, self.selective = x.shape, x.dtype, self.x.flags.f_contiguous
        self.sums, self.squares = kernels.moments(self.x)
        if not np.isfinite(self.squares).all():
            check_array("X", x)

    def matmat(self, w):
        return self.x @ w

    def rmatmat(self, u):
        return self.x.T @ u

    matvec = matmat

    def rmatvec(self, u):
        return kernels.products(self.x, u)

    def products(self, index, u):
        return kernels.products(self.x, u, index)

    def columns(self, index):
        return np.ascontiguousarray(self.x.T[index]).T  # whole columns at a time

    def restricted(self, index, w):
        return kernels.combination(self.x, index, w, np.zeros(self.shape[0], self.dtype))

    def column_norms(self):
        return np.sqrt(self.squares).astype(self.dtype)


@register(kind="operator", source="none", example=lambda: Sparse(sparse.eye_array(3, format="csc")))
class Sparse(Operator):
    """A scipy sparse matrix, kept by columns (CSC); other formats are converted once, none is densified."""

    def __init__(self, x: Any):
        if not sparse.issparse(x):
            raise InputError(f"X: got {type(x).__name__}, want a scipy sparse matrix")
        x = sparse.csc_array(x)
        if x.data.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        check_array("X", x.data, finite=True, allow_empty=True)
        if 0 in x.shape:
            raise InputError(f"X: got shape {x.shape}, which has no entries")
        if not x.has_canonical_format:  # entries given twice are one
            x = x.copy()
            x.sum_duplicates()
        self.x, self.rows = x, x.T
        self.shape, self.dtype = x.shape, x.dtype

    def matmat(self, w):
        return self.x @ w

    def rmatmat(self, u):
        return self.rows @ u

    matvec, rmatvec = matmat, rmatmat

    def columns(self, index):
        return self.x[:, index].toarray(order="F")

    def take(self, index):
        return self.x[:, index]

    def restricted(self, index, w):
        return self.x[:, index] @ w if 4 * len(index) < self.shape[1] else super().restricted(index, w)

    def gram(self, index, other=None):
        left = self.x[:, index]
        return (left.T @ (left if other is None else self.x[:, other])).toarray()

    def column_norms(self):
        squares = np.add.reduceat(np.append(self.x.data**2, 0), np.minimum(self.x.indptr[:-1], self.x.nnz))
        return np.sqrt(np.where(np.diff(self.x.indptr) > 0, squares, 0)).astype(self.dtype)


@register(kind="operator", source="none", example=lambda: Centred(Dense(np.eye(3))))
class Centred(Operator):
    """``X - 1 mu'``: the columns of a base operator less ``means`` (its column means unless given), never formed.

    With the column means this is the regression with a free intercept. ``ones`` stands in for 1: for rows times r it
    is r, and the means are weighted by r^2. ``constant`` columns are zero, exactly. Where a mean is far larger than
    its column's spread products lose digits: a dense matrix is better centred in a copy (``design`` does so).
    """

    def __init__(
        self, base: Operator, means: np.ndarray | None = None, ones: np.ndarray | None = None, constant: Any = ()
    ):
        n, p = base.shape
        self.plain = ones is None
        ones = np.ones(n, base.dtype) if ones is None else _vector("ones", ones, n, base.dtype)
        self.base, self.ones, self.selective = base, ones, base.selective
        self.sums = base.rmatvec(ones)
        self.length = (ones * ones).sum()
        self.means = self.sums / self.length if means is None else _vector("means", means, p, base.dtype)
        self.shape, self.dtype = base.shape, base.dtype
        self.constant = np.zeros(p, dtype=bool)
        self.constant[np.asarray(constant, dtype=np.int64)] = True

    def total(self, u: np.ndarray) -> Any:
        """``ones . u``, by a sum that no thread count changes."""
        return u.sum() if self.plain else (self.ones * u).sum()

    def matmat(self, w):
        return self.base.matmat(w) - np.outer(self.ones, self.means @ w)

    def rmatmat(self, u):
        out = self.base.rmatmat(u) - np.outer(self.means, self.ones @ u)
        out[self.constant] = 0
        return out

    def matvec(self, w):
        return self.base.matvec(w) - self.ones * (self.means @ w)

    def rmatvec(self, u):
        out = self.base.rmatvec(u) - self.means * self.total(u)
        out[self.constant] = 0
        return out

    def products(self, index, u):
        out = self.base.products(index, u) - self.means[index] * self.total(u)
        out[self.constant[index]] = 0
        return out

    def restricted(self, index, w):
        return self.base.restricted(index, w) - self.ones * (self.means[index] @ w)

    def columns(self, index):
        """A column that is constant up to rounding is zero."""
        means = self.means[index]
        columns = self.base.columns(index)
        columns.T[:] -= means[:, None] if self.plain else np.multiply.outer(means, self.ones)
        noise = (2 * np.finfo(self.dtype).eps * means.astype(np.float64)) ** 2 * float(self.length)
        columns[:, kernels.moments(columns)[1] <= noise] = 0
        return columns

    def gram(self, index, other=None):
        if not isinstance(self.base, Sparse):
            return super().gram(index, other)
        other = index if other is None else other
        left, right = self.means[index], self.means[other]
        gram = self.base.gram(index, other)
        rest = self.sums[index] - self.length * left
        gram -= np.outer(left, self.sums[other]) + np.outer(rest, right)
        return gram

    def column_norms(self):
        squares = self.base.column_norms() ** 2 - self.means * (2 * self.sums - self.length * self.means)
        return np.sqrt(np.maximum(squares, 0))


@register(kind="operator", source="none", example=lambda: Scaled(Dense(np.eye(3)), np.ones(3)))
class Scaled(Operator):
    """``X diag(scale)``: the columns of a base operator times ``scale``."""

    def __init__(self, base: Operator, scale: np.ndarray):
        self.base, self.scale = base, _vector("scale", scale, base.shape[1], base.dtype)
        self.shape, self.dtype = base.shape, base.dtype

    def matmat(self, w):
        return self.base.matmat(self.scale[:, None] * w)

    def rmatmat(self, u):
        return self.scale[:, None] * self.base.rmatmat(u)

    def matvec(self, w):
        return self.base.matvec(self.scale * w)

    def rmatvec(self, u):
        return self.scale * self.base.rmatvec(u)

    def products(self, index, u):
        return self.scale[index] * self.base.products(index, u)

    def columns(self, index):
        return self.base.columns(index) * self.scale[index]

    def gram(self, index, other=None):
        right = index if other is None else other
        return self.scale[index][:, None] * self.base.gram(index, other) * self.scale[right]

    def column_norms(self):
        return abs(self.scale) * self.base.column_norms()


@register(kind="operator", source="Van Loan (2000)", example=lambda: Kronecker(Dense(np.eye(2)), Dense(np.eye(3))))
class Kronecker(Operator):
    """``A kron B`` from its factors: ``(A kron B) vec(W) = vec(A W B')`` with W ``[p_A, p_B]`` in row order."""

    def __init__(self, left: Operator, right: Operator):
        self.left, self.right = left, right
        self.shape = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
        self.dtype = np.result_type(left.dtype, right.dtype)

    def matmat(self, w):
        return self._apply(w, self.left.matmat, self.right.matmat, self.left.shape[1], self.right.shape[1])

    def rmatmat(self, u):
        return self._apply(u, self.left.rmatmat, self.right.rmatmat, self.left.shape[0], self.right.shape[0])

    @staticmethod
    def _apply(w, left, right, rows, columns):
        batch = w.shape[1]
        half = left(w.reshape(rows, columns * batch))
        half = half.reshape(-1, columns, batch).transpose(1, 0, 2)
        full = right(half.reshape(columns, -1))
        return full.reshape(full.shape[0], -1, batch).transpose(1, 0, 2).reshape(-1, batch)

    def columns(self, index):
        i, j = np.divmod(np.asarray(index), self.right.shape[1])
        left, right = self.left.columns(i), self.right.columns(j)
        return np.asfortranarray((left[:, None, :] * right[None, :, :]).reshape(self.shape[0], -1))

    def gram(self, index, other=None):
        i, j = np.divmod(np.asarray(index), self.right.shape[1])
        k, l = (i, j) if other is None else np.divmod(np.asarray(other), self.right.shape[1])
        return self.left.gram(i, k) * self.right.gram(j, l)

    def column_norms(self):
        return np.kron(self.left.column_norms(), self.right.column_norms())


@register(kind="operator", source="none", example=lambda: Rows(Dense(np.eye(3)), np.arange(2)))
class Rows(Operator):
    """Some rows of a base operator (a fold), by number and without a copy; a row may come twice."""

    def __init__(self, base: Operator, rows: np.ndarray):
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" or rows.ndim != 1 or not rows.size:
            raise InputError(f"rows: got {rows.dtype} of shape {rows.shape}, want row numbers")
        if rows.min() < 0 or rows.max() >= base.shape[0]:
            raise InputError(f"rows: got {rows.min()} to {rows.max()}, want numbers from 0 to {base.shape[0] - 1}")
        self.base, self.rows = base, rows
        self.shape, self.dtype = (len(rows), base.shape[1]), base.dtype

    def matmat(self, w):
        return self.base.matmat(w)[self.rows]

    def rmatmat(self, u):
        spread = np.zeros((self.base.shape[0], u.shape[1]), dtype=u.dtype)
        np.add.at(spread, self.rows, u)
        return self.base.rmatmat(spread)

    def columns(self, index):
        return np.asfortranarray(self.base.columns(index)[self.rows])

    def column_norms(self):
        return _norms_by_blocks(self)


@register(kind="operator", source="none", example=lambda: RowWeighted(Dense(np.eye(3)), np.ones(3)))
class RowWeighted(Operator):
    """``diag(weights) X``. For observations with weights r take ``sqrt(r)`` here, outside the centring by r."""

    def __init__(self, base: Operator, weights: np.ndarray):
        self.base, self.weights = base, _vector("weights", weights, base.shape[0], base.dtype)
        self.shape, self.dtype = base.shape, base.dtype

    def matmat(self, w):
        return self.weights[:, None] * self.base.matmat(w)

    def rmatmat(self, u):
        return self.base.rmatmat(self.weights[:, None] * u)

    def products(self, index, u):
        return self.base.products(index, self.weights * u)

    def columns(self, index):
        return self.base.columns(index) * self.weights[:, None]

    def column_norms(self):
        return _norms_by_blocks(self)


@dataclass(frozen=True)
class Centring:
    """What centring took away: put back by ``intercept``."""

    x_mean: np.ndarray
    y_mean: Any

    def intercept(self, coef: np.ndarray) -> Any:
        """The intercept that belongs to ``[p]`` coefficients."""
        return self.y_mean - self.x_mean @ coef


def aslinear(x: Any) -> Operator:
    """An array, scipy sparse matrix or operator as an operator; no copy of floating-point data."""
    if hasattr(x, "matvec") and hasattr(x, "rmatvec") and not isinstance(x, np.ndarray) and not sparse.issparse(x):
        return x
    return Sparse(x) if sparse.issparse(x) else Dense(x)


def centred(x: Any, y: np.ndarray, fit_intercept: bool) -> tuple[Operator, np.ndarray, Centring]:
    """Design and target with the intercept solved out: dense data in a centred copy, the rest by algebra.

    Without an intercept nothing is changed. ``y`` is ``[n]`` or ``[n, targets]``.
    """
    base = aslinear(x)
    y = np.asarray(y, dtype=base.dtype)
    if not fit_intercept:
        return base, y, Centring(np.zeros(base.shape[1], base.dtype), np.zeros(y.shape[1:], base.dtype)[()])
    y_mean = y.mean(axis=0, dtype=np.float64).astype(base.dtype)
    if isinstance(base, Dense):
        means = base.x.mean(axis=0, dtype=np.float64).astype(base.dtype)
        return Dense(np.subtract(base.x, means, order="F")), y - y_mean, Centring(means, y_mean)
    operator = Centred(base)
    return operator, y - y_mean, Centring(operator.means, y_mean)


def design(
    x: Any, y: np.ndarray, fit_intercept: bool, sample_weight: np.ndarray | None = None
) -> tuple[Operator, np.ndarray, Centring]:
    """As ``centred``, without the copy where the digits allow, and with weights of the rows.

    Rows and targets come out times ``r = sqrt(n weight / sum(weight))``, less their weighted means times r, so that
    ``|target - operator w|^2 / (2 n)`` is the weighted loss at the best intercept.
    """
    base = aslinear(x)
    n = base.shape[0]
    y = check_array("y", np.asarray(y, dtype=base.dtype), shape=(n,))
    roots = _roots(sample_weight, n)
    squared = np.ones(n) if roots is None else roots**2
    if not fit_intercept:
        centring = Centring(np.zeros(base.shape[1], base.dtype), y.dtype.type(0))
        return (base, y, centring) if roots is None else (_by_rows(base, roots), (roots * y).astype(y.dtype), centring)
    y_mean = y.dtype.type((squared * y).sum() / n)
    if roots is None and isinstance(base, Dense):
        means = (base.sums / n).astype(base.dtype)
    else:
        means = (base.rmatvec(squared.astype(base.dtype)) / n).astype(base.dtype)
    centring = Centring(means, y_mean)
    target = y - y_mean
    constant: Any = ()
    if isinstance(base, Dense):
        far = _far_from_centred(base, means)
        varying = np.ptp(base.columns(far), axis=0) > 0
        if varying.any():
            base = Dense(Centred(base, means).columns(np.arange(base.shape[1])))
            return (base if roots is None else _by_rows(base, roots)), _times(roots, target), centring
        constant = far
    if roots is None:
        return Centred(base, means, constant=constant), target, centring
    return Centred(_by_rows(base, roots), means, roots, constant), _times(roots, target), centring


def _roots(sample_weight: Any, n: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weight = check_array("sample_weight", np.asarray(sample_weight, dtype=np.float64), shape=(n,))
    if weight.min() < 0 or not weight.sum() > 0:
        got = "only zeros" if not weight.any() else f"{weight.min():g} to {weight.max():g}"
        raise InputError(f"sample_weight: got {got}, want none below zero and at least one above")
    return np.sqrt(weight * (n / weight.sum()))


def _times(roots: np.ndarray | None, target: np.ndarray) -> np.ndarray:
    return target if roots is None else (roots * target).astype(target.dtype)


def _by_rows(base: Operator, roots: np.ndarray) -> Operator:
    """Rows times ``roots``: a view, of a sparse matrix a copy, so that its Gram blocks stay sparse products."""
    if isinstance(base, Sparse):
        return Sparse(sparse.diags_array(roots.astype(base.dtype)) @ base.x)
    return RowWeighted(base, roots)


def _far_from_centred(base: Dense, means: np.ndarray) -> np.ndarray:
    """The columns whose mean is so much larger than their spread that products with them lose too many digits."""
    spread = base.squares / base.shape[0] - means.astype(np.float64) ** 2
    limit = 1e-8 if base.dtype == np.float64 else 1e-3
    return np.flatnonzero(spread < limit * base.squares / base.shape[0])


def _norms_by_blocks(operator: Operator, width: int = 1024) -> np.ndarray:
    p = operator.shape[1]
    parts = []
    for start in range(0, p, width):
        block = operator.columns(np.arange(start, min(start + width, p)))
        parts.append(np.sqrt(np.einsum("ij,ij->j", block, block)))
    return np.concatenate(parts)


def _floating(x: np.ndarray) -> np.ndarray:
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def _vector(name: str, x: Any, size: int, dtype: np.dtype) -> np.ndarray:
    return check_array(name, np.asarray(x, dtype=dtype), shape=(size,))

"""What problems of a bundle share: the columns in use, as one dense block, and their weighted Gram matrices.

Lives here: ``Pool`` (columns), ``Curvature`` (a Gram matrix in float32 with the intercept solved out, its inverse).
Does not live here: which columns are wanted and when a Gram matrix is too old (``bundle``).
Gram matrices only shape the steps, which start from exact gradients; so single precision costs no accuracy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import lapack

from ellzero.kernels.bundle import Metric
from ellzero.solvers.operators import Operator

__all__ = ["Curvature", "Pool"]

_RIDGE = 1e-5  # of the mean diagonal: what single precision needs to invert


class Pool:
    """The union of the columns that problems use: ``ids``, where each one ``place`` is, and ``block [W, n]``."""

    def __init__(self, operator: Operator):
        self.operator = operator
        self.ids = np.empty(0, dtype=np.int64)
        self.place = np.full(operator.shape[1], -1, dtype=np.int64)
        self._block = np.empty((0, operator.shape[0]))
        self._single = np.empty((0, operator.shape[0]), dtype=np.float32)

    @property
    def block(self) -> np.ndarray:
        """The columns, one a row, float64."""
        return self._block[: len(self.ids)]

    @property
    def single(self) -> np.ndarray:
        """The columns in float32."""
        return self._single[: len(self.ids)]

    def add(self, new: np.ndarray) -> None:
        """Take in columns that are not there yet."""
        old, size = len(self.ids), len(self.ids) + len(new)
        if size > len(self._block):
            shape = (max(2 * old, size), self.operator.shape[0])
            grown, single = np.empty(shape), np.empty(shape, dtype=np.float32)
            grown[:old], single[:old] = self.block, self.single
            self._block, self._single = grown, single
        self._block[old:size] = self._single[old:size] = self.operator.columns(new).T
        self.place[new] = np.arange(old, size)
        self.ids = np.concatenate([self.ids, new])

    def keep(self, mask: np.ndarray) -> None:
        """Forget the columns outside ``mask`` ``[W]``."""
        self.place[self.ids] = -1
        self._block, self._single = self.block[mask], self.single[mask]
        self.ids = self.ids[mask]
        self.place[self.ids] = np.arange(len(self.ids))


class Curvature:
    """``X_J' diag(h) X_J`` for growing J, less what the intercept takes; ``l2`` is that of its inverse.

    Where ``h`` is the same number in most rows and 0 in the rest (folds), the block of all rows (``whole``, shared by
    all problems) is taken, less what the held-out rows add to it.
    """

    def __init__(self, pool: Pool, h: np.ndarray, l2: float, fit_intercept: bool, whole: Curvature | None = None,
                 dtype: Any = np.float32):  # fmt: skip
        self.pool, self.h, self.l2, self.fit_intercept, self.dtype = pool, h, l2, fit_intercept, np.dtype(dtype)
        self.root = np.sqrt(h).astype(dtype)
        self.ids = np.empty(0, dtype=np.int64)
        self.spot = np.full(len(pool.place), -1)  # where a column of X is in the Gram matrix
        self.gram = np.empty((0, 0), dtype=dtype)
        self.inverse: np.ndarray | None = None
        self.tilt = np.empty(0)
        self.total = float(h.sum())
        self.mass = self.total if fit_intercept else 0.0
        self.invertible = True
        self.age = 0
        self._inside, self._inside_count = np.zeros(0, dtype=bool), 0
        self.held_out = np.flatnonzero(h == 0)
        self.rank = int(0.9 * (len(h) - len(self.held_out)))  # beyond it the Gram matrix is as good as singular
        level = float(h.max())
        flat = whole is not None and 3 * len(self.held_out) < len(h) and bool(((h == 0) | (h == level)).all())
        self.whole, self.level = (whole, level) if flat else (None, level)

    def grow(self, new: np.ndarray) -> None:
        """Take in more columns of the pool; ``new`` are not known yet."""
        old, size = len(self.ids), len(self.ids) + len(new)
        self.ids = np.concatenate([self.ids, new])
        self.spot[new] = np.arange(old, size)
        if size > len(self.gram):
            self.gram = _enlarged(self.gram, old, size + size // 8 + 16)
            self.inverse = None if self.inverse is None else _enlarged(self.inverse, old, len(self.gram))
        places = self.pool.place[self.ids]
        fresh = self._columns()[places[old:]]
        tilt = self.pool.block[places[old:]] @ self.h if self.fit_intercept else np.zeros(len(new))
        self.tilt = np.concatenate([self.tilt, tilt])
        block = self._products(fresh, places, old)
        if self.mass > 0:
            block -= np.multiply.outer(self.tilt[old:].astype(self.dtype), (self.tilt / self.mass).astype(self.dtype))
        self.gram[old:size, :size] = block
        self.gram[:old, old:size] = block[:, :old].T
        if size > self.rank:
            self.inverse = None
        elif self.inverse is not None:
            self._border(old, size)

    def _columns(self) -> np.ndarray:
        return self.pool.single if self.dtype == np.float32 else self.pool.block

    def _products(self, fresh: np.ndarray, places: np.ndarray, old: int) -> np.ndarray:
        """``X_new' diag(h) X_J``."""
        if self.whole is not None:
            block = self.whole.at(self.ids[old:], self.ids)
            if len(self.held_out):
                block -= fresh[:, self.held_out] @ self._columns()[places][:, self.held_out].T
            return block * self.dtype.type(self.level)
        fresh *= self.root
        if not old:
            return fresh @ fresh.T
        known = self._columns()[places[:old]]
        known *= self.root
        return np.concatenate([fresh @ known.T, fresh @ fresh.T], axis=1)

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The block of these columns of X, taken in first where they are not known."""
        wanted = np.concatenate([columns, rows])
        unknown = np.unique(wanted[self.spot[wanted] < 0])
        if len(unknown):
            self.grow(unknown)
        return self.gram[self.spot[rows][:, None], self.spot[columns]]

    def invert(self) -> None:
        """Have the inverse of ``gram + l2 I`` at hand, unless single precision cannot find it."""
        size = len(self.ids)
        if self.inverse is not None or not self.invertible or not 0 < size <= self.rank:
            return
        factor = np.array(self.gram[:size, :size].T, order="F")
        factor[np.diag_indices(size)] += np.float32(self.l2 + _RIDGE * factor.diagonal().mean())
        factor, failed = lapack.spotrf(factor, lower=1, overwrite_a=1, clean=1)
        if not failed:
            factor, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
        if failed or not np.isfinite(factor.diagonal()).all():
            self.invertible = False
            return
        self.inverse = np.empty_like(self.gram)
        np.add(factor, factor.T, out=self.inverse[:size, :size])
        self.inverse[np.diag_indices(size)] = factor.diagonal()

    def _border(self, old: int, size: int) -> None:
        """The inverse with the new columns, from the old one: O(size^2) a column."""
        beside = self.gram[:old, old:size]
        whole, self.inverse = self.inverse, None
        reach = whole[:old, :old] @ beside
        corner = self.gram[old:size, old:size] - beside.T @ reach
        corner[np.diag_indices(size - old)] += np.float32(self.l2 + _RIDGE * self.gram.diagonal()[:size].mean())
        try:
            corner = np.linalg.inv(corner)
        except np.linalg.LinAlgError:
            return
        if not (corner.diagonal() > 0).all():
            return
        cross = -reach @ corner
        whole[:old, :old] -= cross @ reach.T
        whole[:old, old:size], whole[old:size, :old], whole[old:size, old:size] = cross, cross.T, corner
        self.inverse = whole

    def inside(self) -> np.ndarray:
        """Which of the pool's columns it knows."""
        if self._inside.shape != self.pool.ids.shape or self._inside_count != len(self.ids):
            self._inside, self._inside_count = np.zeros(len(self.pool.ids), dtype=bool), len(self.ids)
            self._inside[self.pool.place[self.ids]] = True
        return self._inside

    def view(self) -> Any:
        """What the kernel takes."""
        return Metric(self.gram, self.inverse, self.pool.place[self.ids], self.tilt, self.mass)


def _enlarged(matrix: np.ndarray, old: int, size: int) -> np.ndarray:
    grown = np.empty((size, size), dtype=matrix.dtype)
    grown[:old, :old] = matrix[:old, :old]
    return grown

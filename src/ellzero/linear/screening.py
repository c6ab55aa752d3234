"""Screening by mutual information: keep the columns that tell most about the target, linearly or not.

Lives here: I(x_j; y) of every column of the user's table, and the selector with its permutation baseline.
Does not live here: the estimates (``information``), linear scores (``neurons``), nor any model of the kept columns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import InputError, check_array, check_integer
from ellzero.linear.information import KernelDensity, NearestNeighbours, PlugIn
from ellzero.registry import register
from ellzero.rng import rng

__all__ = [
    "KernelDensity",
    "MutualInformationScreening",
    "NearestNeighbours",
    "PlugIn",
    "mutual_information",
    "target_of",
]

_BLOCK = 32  # columns whose grids are transformed together: 32 grids of 64 x 64 stay in cache


def mutual_information(X: Any, y: Any, *, estimate: Any = None, discrete: bool | None = None) -> np.ndarray:
    """How much each column tells about the target, in nats: I(x_j; y) for every j.

    Parameters
    ----------
    X : ``[n, p]`` numbers, dense or scipy sparse (taken a block of columns at a time).
    y : ``[n]`` numbers, or labels of any kind.
    estimate : ``KernelDensity()`` (default), ``PlugIn()`` or ``NearestNeighbours()``.
    discrete : whether y holds classes; by default labels do, and whole numbers of at most n / 5
        different values.

    Returns
    -------
    ``[p]`` float64.

    Raises
    ------
    InputError : shapes that do not fit, entries that are not finite, fewer than three rows, an unknown estimate.

    Source: core 1 of "Contributions to robust and efficient methods for analysis of high dimensional data" (2025).
    """
    estimate = KernelDensity() if estimate is None else estimate
    if not isinstance(estimate, KernelDensity | PlugIn | NearestNeighbours):
        raise InputError(f"estimate: got {estimate!r}, want KernelDensity(), PlugIn() or NearestNeighbours()")
    X = sparse.csc_array(X) if sparse.issparse(X) else np.asarray(X)
    check_array("X", X if isinstance(X, np.ndarray) else X.data, dtypes="fiub", allow_empty=sparse.issparse(X))
    if len(X.shape) != 2 or X.shape[0] < 3 or X.shape[1] < 1:
        raise InputError(f"X: got shape {X.shape}, want two axes, at least three rows and one column")
    y = np.asarray(y)
    if y.shape != (X.shape[0],):
        raise InputError(f"y: got shape {y.shape}, want ({X.shape[0]},), the rows of X")
    if y.dtype.kind in "fiu":
        check_array("y", y)
    target, classes = target_of(y, discrete)
    return _columnwise(X, target, classes, estimate)


def target_of(y: np.ndarray, discrete: bool | None = None) -> tuple[np.ndarray, int | None]:
    """The target as float64 numbers and None, or as codes and how many classes there are.

    ``discrete`` ``None``: labels are classes, and so are whole numbers of at most n / 5 different values.
    """
    numeric = y.dtype.kind in "fiub"
    if discrete is None:
        try:
            labels = type_of_target(y, input_name="y", raise_unknown=True) in ("binary", "multiclass")
        except ValueError as error:
            raise InputError(str(error)) from error
        # A density of fewer than five samples per class means nothing: whole numbers of many values are a count.
        discrete = labels and (not numeric or 5 * len(np.unique(y)) <= max(len(y), 10))
    if not discrete:
        if not numeric:
            raise InputError(f"y: got dtype {y.dtype}, want numbers, or discrete=True for classes")
        return y.astype(np.float64), None
    labels, codes = np.unique(y, return_inverse=True)
    return codes, len(labels)


def _columnwise(X: Any, y: np.ndarray, classes: int | None, estimate: Any) -> np.ndarray:
    parts = []
    for start in range(0, X.shape[1], _BLOCK):
        block = X[:, start : start + _BLOCK]
        block = block.toarray() if sparse.issparse(block) else block
        parts.append(estimate(block.astype(np.float64), y, classes))
    return np.concatenate(parts)


@register(id="S104", source="Contributions to high-dimensional data analysis (2025)", kind="estimator", wing="linear",
          claim="finds features whose effect is not linear, which correlation misses",
          example=lambda: MutualInformationScreening(k=2))  # fmt: skip
class MutualInformationScreening(SelectorMixin, BaseEstimator):
    """Keep the ``k`` columns that share most information with the target, whatever the form of the dependence.

    Finds features whose effect is not linear, which a correlation cannot see. Planted check, ``n = 500``,
    ``p = 2000``, ``y = x_1^2 + |x_2| + noise``: both features are in the top ten in 10 of 10 draws; by absolute
    correlation in none.

    Parameters
    ----------
    k : columns kept, ties by the lowest index; ``None`` is ``n / log(n)`` (Fan and Lv, 2008), at most all.
    estimate : ``KernelDensity()`` (``None``), ``PlugIn()`` or ``NearestNeighbours()``.
    discrete : whether y holds classes; ``None`` decides by its values.
    permutations : shuffles of y that make the baseline; 0 for none. With B of them ``p_values_`` are the shares of
        ``{observed, B shuffles}`` whose best column reaches a column's score: an error over the whole table.
    seed : of the shuffles.

    Attributes
    ----------
    scores_ : ``[p]`` nats.
    p_values_ : ``[p]``, with permutations only.
    support_ : ``[p]`` bool.
    """

    def __init__(self, k=None, *, estimate=None, discrete=None, permutations=0, seed=0):
        self.k = k
        self.estimate = estimate
        self.discrete = discrete
        self.permutations = permutations
        self.seed = seed

    def fit(self, X, y):
        """Score every column of ``X [n, p]`` against ``y [n]``."""
        X, y = validate_data(self, X, y, accept_sparse="csc", ensure_min_samples=3)
        n, p = X.shape
        k = min(p, max(1, int(n / math.log(n)))) if self.k is None else check_integer("k", self.k, at_least=1)
        if k > p:
            raise InputError(f"k: got {k}, want at most {p}, the columns of X")
        check_integer("permutations", self.permutations, at_least=0)
        self.scores_ = mutual_information(X, y, estimate=self.estimate, discrete=self.discrete)
        if self.permutations:
            best = [self._shuffled(X, y, i) for i in range(self.permutations)]
            reached = (np.array(best)[:, None] >= self.scores_).sum(0)
            self.p_values_ = (1 + reached) / (1 + self.permutations)
        self.support_ = np.zeros(p, dtype=bool)
        self.support_[np.argsort(-self.scores_, kind="stable")[:k]] = True
        return self

    def _shuffled(self, X, y, i: int) -> float:
        order = rng(self.seed, "permutation", i).permutation(len(y))
        return mutual_information(X, y[order], estimate=self.estimate, discrete=self.discrete).max()

    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags

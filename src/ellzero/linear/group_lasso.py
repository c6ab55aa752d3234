"""The group Lasso with ``fit``, ``path`` and ``predict``: columns that live or die together.

Lives here: ``GroupLasso``, thin: labels of any kind become groups, their weights, the penalty. Does not live here: the
penalties (``parts.penalties_group``), the solver (``solvers.prox_newton``), rows that live or die in all outputs
(``GeneralizedLinearEstimator`` with ``L21``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from ellzero.errors import InputError, check, check_integer
from ellzero.linear.generalized import Generalized
from ellzero.parts.datafits import Quadratic
from ellzero.parts.penalties_group import GroupL2, SparseGroup
from ellzero.registry import register

__all__ = ["GroupLasso"]


@register(
    kind="estimator", wing="linear", source="Yuan and Lin (2006); Simon et al. (2013)",
    example=lambda: GroupLasso(2, 0.1),
)  # fmt: skip
class GroupLasso(RegressorMixin, Generalized):
    """``|y - X w - b|^2 / (2 n) + alpha (r |w|_1 + (1 - r) sum_g weight_g |w_g|_2)``, r = ``l1_ratio``.

    For columns that belong together: the levels of a category, the powers of a number, the lags of a series. Yuan and
    Lin (2006), equation 2; with r above 0 the sparse group Lasso of Simon et al. (2013), sparse inside a group too.

    Parameters
    ----------
    groups : ``[p]`` one label of any kind per column, or a number: the size of adjacent groups.
    alpha : strength of the penalty, at least 0. Scale the columns alike: the penalty is blind to their units.
    l1_ratio : share of the penalty on single columns, from 0 to 1.
    fit_intercept : whether b is fitted (never penalised).
    tol : duality gap, relative to that of the null model, that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : one factor per group, in the order of ``groups_``; 0 leaves a group unpenalised, infinity excludes it.
        Default the root of its size, so that large groups are not favoured.
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    coef_ : ``[p]``. intercept_. dual_gap_ : the certified relative gap. n_iter_ : working sets used. converged_ :
    whether the gap came down to ``tol``. groups_ : the labels in order. group_norms_ : ``|w_g|_2`` of each.

    Raises
    ------
    InputError : labels or weights that do not fit the columns, a setting out of range, a column with text or missing
        values, by name.
    """

    def __init__(
        self, groups=1, alpha=0.1, *, l1_ratio=0.0, fit_intercept=True, tol=1e-6, max_iter=100, positive=False,
        weights=None, warm_start=False,
    ):  # fmt: skip
        self.groups = groups
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _labels(self, p: int) -> tuple[np.ndarray, np.ndarray]:
        """The labels in order, and the place of each column's among them."""
        if np.ndim(self.groups) == 0:
            size = check_integer("groups", self.groups, at_least=1)
            if p % size:
                raise InputError(f"groups: got the size {size}, want a divisor of the {p} columns, or {p} labels")
            return np.arange(p // size), np.arange(p) // size
        if np.shape(self.groups) != (p,):
            raise InputError(f"groups: got shape {np.shape(self.groups)}, want ({p},), one label per column of X")
        return np.unique(np.asarray(self.groups), return_inverse=True)

    def _parts(self) -> tuple[Any, Any]:
        ratio = check("l1_ratio", self.l1_ratio, at_least=0, at_most=1)
        p = getattr(self, "_width", None)
        if p is None:  # before the data are seen: the settings alone
            return Quadratic(), GroupL2(self.alpha, 1, positive=self.positive)
        self.groups_, places = self._labels(p)
        weights = np.sqrt(np.bincount(places)) if self.weights is None else np.asarray(self.weights, dtype=np.float64)
        if weights.shape != self.groups_.shape:
            raise InputError(f"weights: got shape {weights.shape}, want {self.groups_.shape}, one per group")
        if ratio == 0:
            return Quadratic(), GroupL2(self.alpha, places, weights=weights, positive=self.positive)
        return Quadratic(), SparseGroup(self.alpha, places, ratio, weights=weights, positive=self.positive)

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = super()._validated(X, y)
        self._width = X.shape[1]
        return X, y

    def _targets(self, y: Any) -> np.ndarray:
        return np.asarray(column_or_1d(y, warn=True), dtype=np.float64)

    def _store(self, fitted: Any) -> None:
        super()._store(fitted)
        places = self._labels(self._width)[1]
        self.group_norms_ = np.sqrt(np.bincount(places, self.coef_.astype(np.float64) ** 2))

    def predict(self, X: Any) -> np.ndarray:
        """``X w + b`` for ``[n, p]``: ``[n]``."""
        return self._linear(X)

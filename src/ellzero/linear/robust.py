"""The Lasso with other losses than the square: its root, which needs no noise level, and the absolute deviation.

Lives here: ``SquareRootLasso`` and ``LADLasso``, thin. Does not live here: the solvers (``solvers.prox_newton``,
``solvers.least_absolute``), Huber's loss (``GeneralizedLinearEstimator`` with ``Huber``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtri
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from ellzero.errors import check
from ellzero.linear.generalized import Generalized, checked_weights
from ellzero.parts.datafits import Absolute, SquareRoot
from ellzero.parts.penalties import L1
from ellzero.registry import register

__all__ = ["LADLasso", "SquareRootLasso"]

_SAFETY, _RISK = 1.1, 0.05  # by how much alpha exceeds the noise, and how often noise may exceed it


class _OneTarget(RegressorMixin, Generalized):
    """Numbers in and out."""

    def _targets(self, y: Any) -> np.ndarray:
        return np.asarray(column_or_1d(y, warn=True), dtype=np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """``X w + b`` for ``[n, p]``: ``[n]``."""
        return self._linear(X)


@register(
    kind="estimator", wing="linear", source="Belloni, Chernozhukov and Wang (2011)",
    example=lambda: SquareRootLasso(0.1),
)  # fmt: skip
class SquareRootLasso(_OneTarget):
    """Minimise ``|y - X w - b|_2 / sqrt(n) + alpha sum_j weight_j |w_j|``: one alpha for every noise level.

    Belloni, Chernozhukov and Wang (2011). The best alpha of the Lasso grows with the noise, which nobody knows; here it
    depends on the shape of X alone, and need not be tuned.

    Parameters
    ----------
    alpha : at least 0; default ``1.1 Phi^-1(1 - 0.05 / (2 p)) / sqrt(n)``, the paper's choice for columns of mean
        square 1, with p the penalised columns and n the rows (the sum of their weights, where given). Scale first.
    fit_intercept : whether b is fitted (never penalised).
    tol : duality gap, relative to the null model's objective, that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    coef_ : ``[p]``. intercept_. alpha_ : the one used. noise_level_ : root mean square of the residual, an estimate of
    the noise from above. dual_gap_ : the certified relative gap. n_iter_. converged_ : whether it came to ``tol``.

    Raises
    ------
    InputError : a setting out of range, or a column with text or missing values, by name.
    """

    def __init__(
        self, alpha=None, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None, warm_start=False
    ):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _parts(self) -> tuple[Any, Any]:
        self.alpha_ = getattr(self, "_pivotal", 1.0) if self.alpha is None else self.alpha
        return SquareRoot(), L1(self.alpha_, weights=self.weights, positive=self.positive)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SquareRootLasso:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and ``[n]``; ``sample_weight`` ``[n]`` counts rows."""
        counts = np.asarray(1.0 if sample_weight is None else sample_weight, dtype=np.float64)
        self._rows = float(counts.sum()) if counts.ndim else None
        super().fit(X, y, sample_weight)
        squares = (np.asarray(y, dtype=np.float64).ravel() - self._linear(X)) ** 2
        self.noise_level_ = float(np.sqrt(np.average(squares, weights=checked_weights(sample_weight, squares))))
        return self

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = super()._validated(X, y)
        weights = np.ones(X.shape[1]) if self.weights is None else np.asarray(self.weights, dtype=np.float64)
        columns = max(1, int((np.isfinite(weights) & (weights > 0)).sum()))
        rows = getattr(self, "_rows", None) or len(y)
        self._pivotal = _SAFETY * float(ndtri(1 - _RISK / (2 * columns))) / math.sqrt(rows)
        return X, y


@register(
    kind="estimator", wing="linear", source="Wang, Li and Jiang (2007)", example=lambda: LADLasso(0.1),
)  # fmt: skip
class LADLasso(_OneTarget):
    """Minimise ``|y - X w - b|_1 / n + alpha sum_j weight_j |w_j|``: a median that few wild targets cannot move.

    Wang, Li and Jiang (2007), solved exactly by linear programs (``ellzero.solvers.least_absolute``). A wild row of X
    can still do harm.

    Parameters
    ----------
    alpha : strength of the penalty, above 0. Scale the columns alike: the penalty is blind to their units.
    fit_intercept : whether b is fitted (never penalised).
    tol : duality gap, relative to the objective without penalised columns, that ends the fit.
    max_iter : linear programs at most, each with more columns than the one before.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.
    warm_start : whether a second ``fit`` starts with the columns that the first one used.

    Attributes
    ----------
    coef_ : ``[p]``. intercept_. dual_gap_ : the certified relative gap. n_iter_ : linear programs solved. converged_.

    Raises
    ------
    InputError : a setting out of range, or a column with text or missing values, by name.
    """

    def __init__(
        self, alpha=0.1, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None, warm_start=False
    ):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _parts(self) -> tuple[Any, Any]:
        check("alpha", self.alpha, above=0)
        return Absolute(), L1(self.alpha, weights=self.weights, positive=self.positive)

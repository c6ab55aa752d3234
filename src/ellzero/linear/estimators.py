"""Sparse linear regression with ``fit`` and ``predict``, for scikit-learn's pipelines and searches.

Lives here: the estimators, thin: a penalty or a count, a solver, and the learned attributes.
Does not live here: the algorithms (``solvers``), penalties (``parts.penalties``), matching pursuit (``pursuit``),
recovery (``recovery``), methods for ``compare`` (``frontier``). The objective is scikit-learn's,
``|y - X w - b|^2 / (2 n) + alpha * penalty``; the intercept is free.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check_integer
from ellzero.parts import penalties
from ellzero.registry import register
from ellzero.solvers import coordinate_descent, thresholding
from ellzero.solvers.operators import Scaled, centred

__all__ = ["ElasticNet", "IterativeHardThresholding", "Lasso", "MCPRegression"]


class _Linear(RegressorMixin, BaseEstimator):
    """What all share: validation of input, prediction, and the tag for sparse input."""

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = validate_data(self, X, y, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), y_numeric=True)
        return X, np.asarray(y, dtype=X.dtype)

    def predict(self, X: Any) -> np.ndarray:
        """``X w + b`` for ``[n, p]``: ``[n]``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), reset=False)
        return X @ self.coef_ + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _Penalised(_Linear):
    """Coordinate descent with the penalty that a subclass names."""

    def fit(self, X: Any, y: Any) -> _Penalised:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and ``[n]``."""
        penalty = self._penalty()
        X, y = self._validated(X, y)
        options = {"fit_intercept": self.fit_intercept, "tol": self.tol, "max_iter": self.max_iter}
        fitted = coordinate_descent.solve(X, y, penalty, **options)
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self.dual_gap_, self.n_iter_, self.converged_ = fitted.gap, max(fitted.n_iter, 1), fitted.converged
        if not fitted.converged:
            warnings.warn(
                f"{type(self).__name__}: certificate {fitted.gap:.2g} above tol {self.tol:g} after {fitted.n_iter} "
                "working sets; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def path(self, X: Any, y: Any, alphas: Any = None, n_alphas: int = 100, eps: float | None = None):
        """Fits along falling alphas (this estimator's own ``alpha`` is not used).

        Returns
        -------
        ellzero.solvers.coordinate_descent.Path : alphas, coefs ``[p, n_alphas]``, intercepts, gaps, ...
        """
        penalty = self._penalty()
        X, y = self._validated(X, y)
        return coordinate_descent.path(
            X, y, penalty, alphas=alphas, n_alphas=n_alphas, eps=eps,
            fit_intercept=self.fit_intercept, tol=self.tol, max_iter=self.max_iter,
        )  # fmt: skip


@register(kind="estimator", wing="linear", source="Tibshirani (1996)")
class Lasso(_Penalised):
    """Minimise ``|y - X w - b|^2 / (2 n) + alpha sum_j weight_j |w_j|``. Tibshirani (1996).

    Parameters
    ----------
    alpha : strength of the penalty, at least 0.
    fit_intercept : whether b is fitted (never penalised).
    tol : duality gap relative to the objective at w = 0 that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.

    Attributes
    ----------
    coef_ : ``[p]``. intercept_ : number. dual_gap_ : the certified relative gap. n_iter_, converged_.
    """

    def __init__(self, alpha=1.0, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def _penalty(self):
        return penalties.L1(self.alpha, weights=self.weights, positive=self.positive)


@register(kind="estimator", wing="linear", source="Zou and Hastie (2005)")
class ElasticNet(_Penalised):
    """``|y - X w - b|^2 / (2 n) + alpha sum_j weight_j (r |w_j| + (1 - r) w_j^2 / 2)``, r = ``l1_ratio``.

    Zou and Hastie (2005). The other parameters and attributes are those of ``Lasso``; with ``l1_ratio`` 0 there is
    no gap, and ``dual_gap_`` is the relative distance to stationarity.
    """

    def __init__(
        self, alpha=1.0, l1_ratio=0.5, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None
    ):
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def _penalty(self):
        return penalties.ElasticNet(self.alpha, self.l1_ratio, weights=self.weights, positive=self.positive)


@register(kind="estimator", wing="linear", source="Zhang (2010)")
class MCPRegression(_Penalised):
    """Least squares with the minimax concave penalty: sparse, and large coefficients are not shrunk. Zhang (2010).

    ``dual_gap_`` is the distance to stationarity relative to the gradient at w = 0: the problem is not convex, so a
    stationary point is what is certified. Scale the columns alike. The other parameters are those of ``Lasso``.
    """

    def __init__(
        self, alpha=1.0, gamma=3.0, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None
    ):
        self.alpha = alpha
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def _penalty(self):
        return penalties.MCP(self.alpha, self.gamma, weights=self.weights, positive=self.positive)


@register(kind="estimator", wing="linear", source="Blumensath and Davies (2010)")
class IterativeHardThresholding(_Linear):
    """Least squares with at most k nonzeros, by normalised gradient steps cut to the k largest.

    Blumensath and Davies (2010). Columns are brought to equal norm inside; ``coef_`` is for the columns as given.

    Parameters
    ----------
    k : nonzeros, from 1 to the number of columns; default a tenth of them, at least 1.
    fit_intercept : whether an intercept is fitted.
    tol, max_iter : end when the coefficients change by less than this share of their norm, or after so many steps.
    """

    def __init__(self, k=None, *, fit_intercept=True, tol=1e-8, max_iter=1000):
        self.k = k
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> IterativeHardThresholding:
        """Fit to ``[n, p]`` (dense or sparse) and ``[n]``."""
        X, y = self._validated(X, y)
        k = _count(self.k, X.shape[1])
        operator, target, centring = centred(X, y, self.fit_intercept)
        scale = 1 / np.where((norms := operator.column_norms()) > 0, norms, 1)
        found = thresholding.iht(Scaled(operator, scale), target, k, tol=self.tol, max_iter=self.max_iter)
        self.coef_ = found.coef * scale
        self.intercept_ = float(centring.intercept(self.coef_))
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        return self


def _count(k: Any, columns: int) -> int:
    return max(1, columns // 10) if k is None else check_integer("k", k, at_least=1, at_most=columns)

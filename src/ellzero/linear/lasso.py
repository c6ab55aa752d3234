"""The Lasso and its relatives with ``fit``, ``path`` and ``predict``: one solver, one penalty each.

Lives here: ``Lasso``, ``ElasticNet``, ``MCPRegression`` and ``SCADRegression``, thin: a penalty, the solver, and the
learned attributes. Does not live here: the choice of alpha (``lasso_cv``), the algorithm
(``solvers.coordinate_descent``), penalties (``parts.penalties``). The objective is scikit-learn's,
``|y - X w - b|^2 / (2 n) + alpha * penalty``; the intercept is free.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ellzero.linear.estimators import Linear
from ellzero.parts import penalties
from ellzero.registry import register
from ellzero.solvers import coordinate_descent

__all__ = ["ElasticNet", "Lasso", "MCPRegression", "SCADRegression"]


class Penalised(Linear):
    """Least squares with the penalty that a subclass names."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Penalised:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and ``[n]``.

        ``sample_weight`` ``[n]`` weighs the squared errors; only ratios matter, and a row of weight 0 is as if absent.
        """
        penalty = self._penalty()
        X, y = self._validated(X, y)
        start = getattr(self, "coef_", None) if self.warm_start else None
        if start is not None and start.shape != (X.shape[1],):
            start = None
        fitted = coordinate_descent.solve(X, y, penalty, start=start, sample_weight=sample_weight, **self._settings())
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self.dual_gap_, self.n_iter_, self.converged_ = fitted.gap, max(fitted.n_iter, 1), fitted.converged
        warn_unless_converged(self, fitted.gap, fitted.n_iter)
        return self

    def path(
        self,
        X: Any,
        y: Any,
        *,
        alphas: Any = None,
        n_alphas: int = 100,
        eps: float | None = None,
        sample_weight: Any = None,
    ) -> coordinate_descent.Path:
        """Fits along falling alphas, each started from the one before; this estimator's own ``alpha`` is not used.

        Parameters
        ----------
        alphas : default ``n_alphas`` of them, geometric, from where all penalised coefficients are 0 down to ``eps``
            times that (default 1e-2 for fewer rows than columns, else 1e-4).

        Returns
        -------
        Path : ``alphas`` ``[n_alphas]``, ``coefs`` ``[p, n_alphas]``, ``intercepts``, ``gaps``, ``n_iters``,
            ``converged``.
        """
        penalty = self._penalty()
        X, y = self._validated(X, y)
        return coordinate_descent.path(
            X, y, penalty, alphas=alphas, n_alphas=n_alphas, eps=eps, sample_weight=sample_weight, **self._settings()
        )

    def _settings(self) -> dict[str, Any]:
        return {"fit_intercept": self.fit_intercept, "tol": self.tol, "max_iter": self.max_iter}


def warn_unless_converged(estimator: Any, gap: float, n_iter: int) -> None:
    """The warning of a fit whose certificate stayed above ``tol``."""
    if not estimator.converged_:
        warnings.warn(
            f"{type(estimator).__name__}: certificate {gap:.2g} above tol {estimator.tol:g} after {n_iter} working "
            "sets; raise max_iter or tol",
            ConvergenceWarning,
            stacklevel=3,
        )


@register(kind="estimator", wing="linear", source="Tibshirani (1996)", example=lambda: Lasso(0.1))
class Lasso(Penalised):
    """Minimise ``|y - X w - b|^2 / (2 n) + alpha sum_j weight_j |w_j|``. Tibshirani (1996).

    Parameters
    ----------
    alpha : strength of the penalty, at least 0. Scale the columns alike: the penalty is blind to their units.
    fit_intercept : whether b is fitted (never penalised).
    tol : duality gap, relative to the objective at w = 0, that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    coef_ : ``[p]`` in the dtype of X. intercept_ : number. dual_gap_ : the certified relative gap. n_iter_ : working
        sets used. converged_ : whether the gap came down to ``tol``.

    Raises
    ------
    InputError : a setting out of range, or a column with text or missing values, by name.
    """

    def __init__(
        self, alpha=1.0, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None, warm_start=False
    ):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _penalty(self):
        return penalties.L1(self.alpha, weights=_given(self.weights), positive=self.positive)


@register(kind="estimator", wing="linear", source="Zou and Hastie (2005)", example=lambda: ElasticNet(0.1))
class ElasticNet(Penalised):
    """``|y - X w - b|^2 / (2 n) + alpha sum_j weight_j (r |w_j| + (1 - r) w_j^2 / 2)``, r = ``l1_ratio``.

    Zou and Hastie (2005). The other parameters and attributes are those of ``Lasso``; with ``l1_ratio`` 0 there is
    no gap, and ``dual_gap_`` is the relative distance to stationarity.
    """

    def __init__(
        self, alpha=1.0, l1_ratio=0.5, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None,
        warm_start=False,
    ):  # fmt: skip
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _penalty(self):
        return penalties.ElasticNet(self.alpha, self.l1_ratio, weights=_given(self.weights), positive=self.positive)


@register(kind="estimator", wing="linear", source="Zhang (2010)", example=lambda: MCPRegression(0.1))
class MCPRegression(Penalised):
    """Least squares with the minimax concave penalty: sparse, and large coefficients are not shrunk. Zhang (2010).

    ``dual_gap_`` is the distance to stationarity relative to the gradient at w = 0: the problem is not convex, so a
    stationary point is what is certified, and which one may depend on the start; ``path`` starts each fit from its
    sparser neighbour. Scale the columns alike. The other parameters are those of ``Lasso``.

    Parameters
    ----------
    gamma : above 1; the penalty is flat beyond ``alpha * gamma``, and close to the Lasso's for large values.
    """

    def __init__(
        self, alpha=1.0, gamma=3.0, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None,
        warm_start=False,
    ):  # fmt: skip
        self.alpha = alpha
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _penalty(self):
        return penalties.MCP(self.alpha, self.gamma, weights=_given(self.weights), positive=self.positive)


@register(kind="estimator", wing="linear", source="Fan and Li (2001)", example=lambda: SCADRegression(0.1))
class SCADRegression(Penalised):
    """Least squares with the smoothly clipped absolute deviation penalty: as ``MCPRegression``. Fan and Li (2001).

    Parameters
    ----------
    gamma : above 2; the penalty is the Lasso's up to ``alpha`` and flat beyond ``alpha * gamma``.
    """

    def __init__(
        self, alpha=1.0, gamma=3.7, *, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None,
        warm_start=False,
    ):  # fmt: skip
        self.alpha = alpha
        self.gamma = gamma
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

    def _penalty(self):
        return penalties.SCAD(self.alpha, self.gamma, weights=_given(self.weights), positive=self.positive)


def _given(weights: Any) -> np.ndarray | None:
    return None if weights is None else np.asarray(weights, dtype=np.float64)

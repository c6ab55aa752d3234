"""Sparse recovery with ``fit`` and ``predict``: few coefficients that explain the measurements.

Lives here: estimators on the thresholding solvers, thin: checks, the intercept, learned attributes.
Does not live here: the algorithms (``solvers.null_space``, ``solvers.hard_thresholding``), greedy growth by
correlation and thresholded gradients (``estimators``). No intercept is fitted unless asked for: measurements have
none. Designs are dense here, for the solvers factor them.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check_integer
from ellzero.registry import register
from ellzero.solvers.hard_thresholding import hard_thresholding_pursuit
from ellzero.solvers.null_space import null_space_tuning
from ellzero.solvers.operators import centred

__all__ = ["HardThresholdingPursuit", "NullSpaceTuning"]


class _Recovering(RegressorMixin, BaseEstimator):
    """Checks, the intercept solved out, what is reported, prediction; a subclass says how it solves."""

    def fit(self, X: Any, y: Any) -> _Recovering:
        """Fit to ``[n, p]`` and ``[n]`` or ``[n, targets]``."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), y_numeric=True, multi_output=True)
        operator, target, centring = centred(X, y, self.fit_intercept)
        found = self._solve(operator.x, target)
        self.coef_ = found.coef.T
        self.intercept_ = centring.intercept(found.coef)
        self.residual_, self.n_nonzero_ = found.residual, found.count
        self.n_iter_, self.reached_, self.converged_ = np.max(found.n_iter), found.reached, found.converged
        if not np.all(found.reached):
            warnings.warn(
                f"{type(self).__name__}: the residual ({np.max(found.residual):.3g}) stayed above its bound; the "
                "support may be wrong: raise k or max_iter, or state noise_level",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """``X w + b`` for ``[n, p]``: ``[n]`` or ``[n, targets]``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


@register(
    id="S101",
    kind="estimator",
    wing="linear",
    source="arXiv:1204.3700",
    claim="ends after finitely many steps, often fewer than 10; finds more than plain OMP or basis pursuit",
)
class NullSpaceTuning(_Recovering):
    """The sparsest vector that explains the measurements, by null-space tuning, hard thresholding and feedback.

    Keep the largest entries of a solution of ``X w = y``, fit them to y, and return to the solutions by the shortest
    step, until the support comes back or the residual is explained (``ellzero.solvers.null_space``). Li, Liu and Mi
    (2014), arXiv:1204.3700.

    Parameters
    ----------
    k : number of coefficients; ``None`` to grow it from ``growth`` by ``growth`` until the residual is explained.
    growth : coefficients added per step while k is unknown.
    feedback : ``"fit"`` (least squares on the support) or ``"step"`` (a gradient step, no small solves; more steps).
    restart : with k, leave a fixed point that does not explain y by a step with more entries.
    ridge : relative ridge on ``X X'``; above 0 where y is noisy.
    noise_level : root mean square of the noise in y; the residual to explain is ``noise_level sqrt(n)``.
    tol : the same bound relative to ``|y|``; the larger counts.
    max_count : most coefficients, ``None`` for min(n - 1, p).
    max_iter : most steps.
    fit_intercept : whether an intercept is fitted.

    Attributes
    ----------
    coef_ : ``[p]`` or ``[targets, p]``. intercept_. residual_ : ``|y - X w - b|_2``. n_nonzero_ : the cardinality,
    an estimate of it where k is ``None``. n_iter_ : most steps of a target. reached_ : whether the residual is within
    its bound. converged_ : whether the iteration ended by itself, which alone does not make the support right.
    """

    def __init__(
        self, k=None, *, growth=1, feedback="fit", restart=True, ridge=0.0, noise_level=0.0, tol=1e-6, max_count=None,
        max_iter=200, fit_intercept=False,
    ):  # fmt: skip
        self.k = k
        self.growth = growth
        self.feedback = feedback
        self.restart = restart
        self.ridge = ridge
        self.noise_level = noise_level
        self.tol = tol
        self.max_count = max_count
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept

    def _solve(self, X, y):
        return null_space_tuning(
            X, y, self.k, growth=self.growth, feedback=self.feedback, restart=self.restart, ridge=self.ridge,
            noise_level=self.noise_level, tol=self.tol, max_count=self.max_count, max_iter=self.max_iter,
        )  # fmt: skip


@register(kind="estimator", wing="linear", source="Foucart (2011)")
class HardThresholdingPursuit(_Recovering):
    """Least squares with k nonzeros: a gradient step cut to the k largest, then a fit on them. Foucart (2011).

    Parameters
    ----------
    k : nonzeros, from 1 to the number of columns; default a tenth of them, at least 1.
    step : of the gradient; ``None`` for the exact line search. Columns of like norm are assumed.
    noise_level : root mean square of the noise in y; the residual to explain is ``noise_level sqrt(n)``.
    tol : the same bound relative to ``|y|``; the larger counts.
    max_iter : most steps.
    fit_intercept : whether an intercept is fitted.

    Attributes
    ----------
    Those of ``NullSpaceTuning``.
    """

    def __init__(self, k=None, *, step=None, noise_level=0.0, tol=1e-6, max_iter=100, fit_intercept=False):
        self.k = k
        self.step = step
        self.noise_level = noise_level
        self.tol = tol
        self.max_iter = max_iter
        self.fit_intercept = fit_intercept

    def _solve(self, X, y):
        columns = X.shape[1]
        k = max(1, columns // 10) if self.k is None else check_integer("k", self.k, at_least=1, at_most=columns)
        return hard_thresholding_pursuit(
            X, y, k, step=self.step, tol=self.tol, noise_level=self.noise_level, max_iter=self.max_iter
        )

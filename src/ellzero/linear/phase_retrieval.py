"""Sparse phase retrieval with ``fit`` and ``predict``: few coefficients from the sizes of measurements.

Lives here: the estimator, thin. Does not live here: the algorithms (``solvers.phase_retrieval``), recovery from
measurements with their signs (``recovery``).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check, check_integer
from ellzero.registry import register
from ellzero.solvers.phase_retrieval import newton_hard_thresholding

__all__ = ["SparsePhaseRetrieval"]


@register(
    id="S055",
    kind="estimator",
    wing="linear",
    source="arXiv:2309.02046",
    claim="quadratic convergence: about 7 steps to 1e-10, a third of those of tuned gradients",
)
class SparsePhaseRetrieval(RegressorMixin, BaseEstimator):
    """The k-sparse w with ``|X w|`` nearest to y that Newton hard thresholding finds; w and -w explain y alike.

    ``ellzero.solvers.phase_retrieval.newton_hard_thresholding``. Cai, Long, Wen and Ying (2024).

    Parameters
    ----------
    k : nonzeros, from 1 to the number of columns; default a tenth of them, at least 1.
    step : of the gradient that chooses the support.
    enough : relative residual ``| |X w| - y | / |y|`` above which a warning says that the answer may be wrong. Set it
        to the share of noise in y.
    tol, max_iter : end when w moves by at most this share of its length, or after so many steps.

    Attributes
    ----------
    coef_ : ``[p]``, its largest entry positive. residual_ : the relative residual. n_iter_. converged_ : whether w
    came to rest, which alone does not make it right.
    """

    def __init__(self, k=None, *, step=0.95, enough=1e-3, tol=1e-8, max_iter=100):
        self.k = k
        self.step = step
        self.enough = enough
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> SparsePhaseRetrieval:
        """Fit to ``[n, p]`` and ``[n]``, the sizes, at least 0."""
        check("enough", self.enough, at_least=0)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), y_numeric=True)
        columns = X.shape[1]
        k = max(1, columns // 10) if self.k is None else check_integer("k", self.k, at_least=1, at_most=columns)
        found = newton_hard_thresholding(X, y, k, step=self.step, tol=self.tol, max_iter=self.max_iter)
        self.coef_, self.residual_ = found.coef, found.residual
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        if found.residual > self.enough:
            warnings.warn(
                f"SparsePhaseRetrieval: the relative residual ({found.residual:.3g}) is above {self.enough:g}; the "
                "support may be wrong: take more measurements or another k",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """``|X w|`` for ``[n, p]``: ``[n]``."""
        check_is_fitted(self)
        return abs(validate_data(self, X, dtype=(np.float64, np.float32), reset=False) @ self.coef_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        tags.regressor_tags.poor_score = True  # a table whose target is no size of a linear form is not explained
        return tags

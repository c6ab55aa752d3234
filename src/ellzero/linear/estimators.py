"""What linear estimators share, in scikit-learn's form, and iterative hard thresholding.

Lives here: ``Linear``, which checks input, names the column that is at fault and predicts, and
``IterativeHardThresholding``. Does not live here: the Lasso family (``lasso``, ``lasso_cv``), matching pursuit
(``pursuit``), recovery (``recovery``), the algorithms (``solvers``), methods for ``compare`` (``frontier``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check_integer
from ellzero.io import frames
from ellzero.registry import register
from ellzero.solvers import thresholding
from ellzero.solvers.operators import Scaled, centred

__all__ = ["IterativeHardThresholding", "Linear"]


class Linear(RegressorMixin, BaseEstimator):
    """What all share: validation of input, prediction, and the tag for sparse input."""

    def _validated(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        with _naming_columns(X):
            X, y = validate_data(
                self, X, y, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), y_numeric=True
            )
        return X, np.asarray(y, dtype=X.dtype)

    def predict(self, X: Any) -> np.ndarray:
        """``X w + b`` for ``[n, p]``: ``[n]``."""
        check_is_fitted(self)
        with _naming_columns(X):
            X = validate_data(self, X, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), reset=False)
        return X @ self.coef_ + self.intercept_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _naming_columns:
    """Turns a refusal of text or of missing values into one that names the column and the remedy."""

    def __init__(self, X: Any):
        self.X = X

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, ValueError | TypeError) or sparse.issparse(self.X) or np.ndim(self.X) != 2:
            return
        names = getattr(self.X, "columns", range(np.shape(self.X)[1]))
        for place, name in enumerate(names):
            column = self.X.iloc[:, place].to_numpy() if hasattr(self.X, "iloc") else np.asarray(self.X)[:, place]
            refusal = _refusal(str(name), column)
            if refusal is not None:
                raise refusal from error


def _refusal(name: str, column: np.ndarray) -> Exception | None:
    if column.dtype.kind not in "fiub":
        for value in column:
            if isinstance(value, str):
                return frames.text("X", name, value)
        try:
            column = column.astype(np.float64)
        except (TypeError, ValueError):
            return None
    gone = np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), dtype=bool)
    if gone.any():
        return frames.missing("X", name, int(gone.sum()), f"NaN, the first in row {int(gone.argmax())}")
    return None


@register(kind="estimator", wing="linear", source="Blumensath and Davies (2010)")
class IterativeHardThresholding(Linear):
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
        p = X.shape[1]
        k = max(1, p // 10) if self.k is None else check_integer("k", self.k, at_least=1, at_most=p)
        operator, target, centring = centred(X, y, self.fit_intercept)
        scale = 1 / np.where((norms := operator.column_norms()) > 0, norms, 1)
        found = thresholding.iht(Scaled(operator, scale), target, k, tol=self.tol, max_iter=self.max_iter)
        self.coef_ = found.coef * scale
        self.intercept_ = float(centring.intercept(self.coef_))
        self.n_iter_, self.converged_ = found.n_iter, found.converged
        return self

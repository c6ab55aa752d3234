"""Sparse logistic regression, binary and multinomial, with ``fit``, ``path`` and probabilities.

Lives here: ``SparseLogisticRegression``. Does not live here: the choice of alpha (``logistic_cv``), the solver
(``solvers.prox_newton``), the losses (``parts``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin

from ellzero.errors import InputError, check_choice
from ellzero.linear.generalized import Generalized, encoded
from ellzero.parts.datafits import Logistic
from ellzero.parts.datafits_coupled import Multinomial
from ellzero.parts.penalties import L1, L21, ElasticNet
from ellzero.registry import register

__all__ = ["SparseLogisticRegression"]


class LogisticModel(ClassifierMixin, Generalized):
    """Classes in and out, for estimators with ``alpha``, ``l1_ratio``, ``grouped``, ``positive`` and ``weights``."""

    def _parts(self) -> tuple[Any, Any]:
        check_choice("grouped", self.grouped, (False, True))
        alpha = getattr(self, "alpha", 1.0)
        if self.grouped:
            if self.l1_ratio != 1:
                raise InputError(f"l1_ratio: got {self.l1_ratio} with grouped=True, want 1")
            penalty = L21(alpha, weights=self.weights, positive=self.positive)
        elif self.l1_ratio == 1:
            penalty = L1(alpha, weights=self.weights, positive=self.positive)
        else:
            penalty = ElasticNet(alpha, self.l1_ratio, weights=self.weights, positive=self.positive)
        return Logistic() if getattr(self, "_two", True) else Multinomial(), penalty

    def _targets(self, y: Any) -> np.ndarray:
        self.classes_, numbers = encoded(y)
        self._two = len(self.classes_) == 2
        return 2.0 * numbers - 1 if self._two else np.eye(len(self.classes_))[numbers]

    def _store(self, fitted: Any) -> None:
        super()._store(fitted)
        self.coef_, self.intercept_ = np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_)

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds of the second class ``[n]``, or ``[n, classes]`` for three and more."""
        z = self._linear(X)
        return z[:, 0] if len(self.classes_) == 2 else z

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, ``[n]``."""
        z = self.decision_function(X)
        return self.classes_[(z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities ``[n, classes]``, in the order of ``classes_``."""
        z = self.decision_function(X)
        z = np.stack([np.zeros_like(z), z], axis=1) if z.ndim == 1 else z
        return Multinomial().mean(z)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, ``[n, classes]``."""
        return np.log(self.predict_proba(X))


@register(
    kind="estimator", wing="linear", source="Koh, Kim and Boyd (2007); Friedman, Hastie and Tibshirani (2010)",
    example=lambda: SparseLogisticRegression(0.01),
)  # fmt: skip
class SparseLogisticRegression(LogisticModel):
    """Minimise the mean log-loss plus ``alpha sum_j weight_j (r |w_j| + (1 - r) w_j^2 / 2)``, r = ``l1_ratio``.

    Two classes have one vector of coefficients; more have one each (softmax, no reference class). In terms of
    scikit-learn's ``C``, with its penalty ``l1``: ``alpha = 1 / (C n)``.

    Parameters
    ----------
    alpha : strength of the penalty, at least 0. Scale the columns alike: the penalty is blind to their units.
    l1_ratio : 1 for the L1 penalty, less for the elastic net.
    grouped : a column lives or dies in all classes together: the penalty is ``alpha sum_j weight_j |W_j|_2``.
    fit_intercept : whether intercepts are fitted (never penalised).
    tol : duality gap, relative to the log-loss of the null model, that ends the fit.
    max_iter : working sets at most.
    positive : demand w >= 0.
    weights : ``[p]`` factors of the penalty; 0 leaves a column unpenalised, infinity excludes it.
    warm_start : whether a second ``fit`` starts from the coefficients of the first.

    Attributes
    ----------
    classes_. coef_ : ``[1, p]``, or ``[classes, p]`` for three and more. intercept_ : ``[1]`` or ``[classes]``.
    dual_gap_ : the certified relative gap. n_iter_ : working sets used. converged_ : whether the gap came to ``tol``.

    Raises
    ------
    InputError : a setting out of range, one class only, or a column with text or missing values, by name.
    """

    def __init__(
        self, alpha=0.01, *, l1_ratio=1.0, grouped=False, fit_intercept=True, tol=1e-6, max_iter=100, positive=False,
        weights=None, warm_start=False,
    ):  # fmt: skip
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.grouped = grouped
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights
        self.warm_start = warm_start

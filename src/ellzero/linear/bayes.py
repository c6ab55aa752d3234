"""Sparse Bayesian regression with ``fit`` and ``predict``: coefficients, their spread, and the noise, from the data.

Lives here: the estimator, thin: checks, the intercept solved out, learned attributes, the spread of predictions.
Does not live here: the algorithms (``solvers.sparse_bayes``), Gaussian processes (``gaussian_process``).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check_choice
from ellzero.registry import register
from ellzero.solvers.message_passing import ggamp_sbl
from ellzero.solvers.operators import centred
from ellzero.solvers.sparse_bayes import UPDATES, covariance, sparse_bayes

__all__ = ["SparseBayesianRegression"]


@register(kind="estimator", wing="linear", source="Tipping (2001)")
class SparseBayesianRegression(RegressorMixin, BaseEstimator):
    """Sparse linear regression whose amount of sparsity and noise are learned, with the spread of every coefficient.

    One prior variance per coefficient is chosen to make y most probable; most are then 0.
    ``ellzero.solvers.sparse_bayes``. Tipping (2001).

    Parameters
    ----------
    update : ``"fixed_point"`` (fast), ``"majorise"`` or ``"em"`` (never lower the probability of y; slower). Messages
        go with EM, whatever is said here.
    posterior : ``"exact"``, by a Cholesky factor per step, or ``"messages"``, by products with X alone
        (``ellzero.solvers.message_passing``), for thousands of rows and columns.
    noise : variance of the noise; ``None`` to learn it, which is right with more rows than columns. Otherwise search
        it like any setting (a share of the variance of y), for too little is learned then.
    fit_intercept : whether an intercept is fitted, under a flat prior.
    prune : a column that brings at most this share of what the largest brings is out for good.
    tol, max_iter : end when the coefficients move by at most this share of their length, or after so many steps.

    Attributes
    ----------
    coef_ : ``[p]``, the posterior mean. coef_std_ : ``[p]``, its standard deviation, 0 where a column is out.
    intercept_. support_ : the columns that are in, and covariance_ their posterior covariance; with messages only its
    diagonal is known, ``[a]``. gamma_ : ``[p]``, the prior variances. noise_ : variance of the noise.
    history_ : ``-2 log p(y)`` up to a constant, per step (NaN with messages). n_iter_. converged_.

    Raises
    ------
    InputError : an unknown update or posterior, or numbers out of range.
    """

    def __init__(
        self, update="fixed_point", *, posterior="exact", noise=None, fit_intercept=True, prune=1e-8, tol=1e-5,
        max_iter=1000,
    ):  # fmt: skip
        self.update = update
        self.posterior = posterior
        self.noise = noise
        self.fit_intercept = fit_intercept
        self.prune = prune
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> SparseBayesianRegression:
        """Fit to ``[n, p]`` (dense or sparse; the columns that are in are made dense) and ``[n]``."""
        X, y = validate_data(self, X, y, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), y_numeric=True)
        operator, target, centring = centred(X, np.asarray(y, dtype=np.float64), self.fit_intercept)
        # A single row has no freedom left after its intercept.
        degrees = max(1, len(target) - bool(self.fit_intercept))
        options = {
            "noise": self.noise, "prune": self.prune, "tol": self.tol, "max_iter": self.max_iter, "degrees": degrees
        }  # fmt: skip
        check_choice("update", self.update, UPDATES)
        if check_choice("posterior", self.posterior, ("exact", "messages")) == "exact":
            found = sparse_bayes(operator, target, update=self.update, **options)
            self.covariance_ = covariance(operator, found)
        else:
            found = ggamp_sbl(operator, target, **options)
            self.covariance_ = found.variance[found.support]
        self.coef_, self.coef_std_, self.gamma_ = found.mean, np.sqrt(found.variance), found.gamma
        self.support_, self.noise_ = found.support, found.noise
        self.intercept_ = float(centring.intercept(self.coef_))
        self._centre = centring.x_mean[self.support_].astype(np.float64)
        self._intercept_variance = found.noise / len(target) if self.fit_intercept else 0.0
        self.history_, self.n_iter_, self.converged_ = found.history, found.n_iter, found.converged
        if not found.converged:
            warnings.warn(
                f"SparseBayesianRegression: the coefficients still move after {found.n_iter} steps; raise max_iter or "
                "tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """``X w + b`` for ``[n, p]``: ``[n]``; with ``return_std`` also the standard deviation of a new y there.

        It holds the noise, the spread of the coefficients that are in, and that of the intercept.
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=("csc", "csr"), dtype=(np.float64, np.float32), reset=False)
        mean = X @ self.coef_ + self.intercept_
        if not return_std:
            return mean
        chosen = X[:, self.support_]
        chosen = (chosen.toarray() if sparse.issparse(chosen) else chosen) - self._centre
        diagonal = self.covariance_.ndim == 1
        spread = np.einsum("ij,ij->i", chosen * self.covariance_ if diagonal else chosen @ self.covariance_, chosen)
        return mean, np.sqrt(self.noise_ + self._intercept_variance + spread)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

"""The Lasso and elastic net with alpha chosen by cross-validation: the minimum, and the one-standard-error rule.

Lives here: ``LassoCV`` and ``ElasticNetCV``: folds, their errors, the two choices of alpha and the refit. Does not
live here: the fits (``solvers.coordinate_descent``), one alpha (``lasso``). Alphas come from all rows, every fold
walks the same path, and a fold is centred by its own training rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import check_cv

from ellzero.errors import InputError, check_choice
from ellzero.linear.lasso import Penalised, warn_unless_converged
from ellzero.parts import penalties
from ellzero.registry import register
from ellzero.solvers import coordinate_descent

__all__ = ["ElasticNetCV", "LassoCV"]


class CrossValidated(Penalised):
    """``fit`` for estimators whose ``_candidates`` are penalties that differ in more than alpha."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> CrossValidated:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and ``[n]``.

        Parameters
        ----------
        sample_weight : ``[n]`` weighs the squared errors, in the fits and in the errors of the folds.
        groups : ``[n]`` passed to the splitter ``cv``, such as ``GroupKFold``.
        """
        check_choice("one_standard_error", self.one_standard_error, (False, True))
        candidates = self._candidates()
        X, y = self._validated(X, y)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weight.shape != (len(y),):
            raise InputError(f"sample_weight: got shape {weight.shape}, want ({len(y)},), one weight per row")
        folds = list(check_cv(self.cv).split(X, y, groups))
        grids, errors = [], []
        for penalty in candidates:
            grids.append(self._grid(X, y, penalty, sample_weight))
            errors.append(self._errors(X, y, weight, penalty, grids[-1], folds))
        shares = np.array([weight[held].sum() for _, held in folds])
        self.alphas_, self.mse_path_ = np.array(grids), np.array(errors)
        self._choose(shares / shares.sum())
        chosen = self.alpha_1se_ if self.one_standard_error else self.alpha_
        self._refit(X, y, sample_weight, candidates[self._best], grids[self._best], chosen)
        return self

    def _grid(self, X: Any, y: np.ndarray, penalty: Any, sample_weight: Any) -> np.ndarray:
        if self.alphas is not None:
            return np.sort(np.asarray(self.alphas, dtype=np.float64))[::-1]
        options = {"fit_intercept": self.fit_intercept, "sample_weight": sample_weight}
        top = coordinate_descent.alpha_max(X, y, penalty, **options)
        return coordinate_descent.grid(top, X.shape, self.n_alphas, self.eps)

    def _errors(self, X: Any, y: np.ndarray, weight: np.ndarray, penalty: Any, alphas: np.ndarray, folds) -> np.ndarray:
        """``[n_alphas, folds]`` weighted mean squared errors on the held-out rows."""
        errors = np.empty((len(alphas), len(folds)))
        for fold, (train, held) in enumerate(folds):
            if not (weight[train].any() and weight[held].any()):
                raise InputError(f"sample_weight: got only zeros in a part of fold {fold}, want weight in each")
            walk = coordinate_descent.iterate(
                X[train], y[train], penalty, alphas=alphas, sample_weight=weight[train], **self._settings()
            )
            fits = [fit for _, fit in walk]
            coefs = np.stack([fit.coef for fit in fits], axis=1)
            used = np.flatnonzero(coefs.any(axis=1))
            predicted = X[held][:, used] @ coefs[used] + np.array([fit.intercept for fit in fits], dtype=X.dtype)
            share = weight[held] / weight[held].sum()
            errors[:, fold] = share @ (y[held][:, None] - predicted).astype(np.float64) ** 2
        return errors

    def _choose(self, shares: np.ndarray) -> None:
        """The minimum over all candidates, and on its path the largest alpha within one standard error of it."""
        means, deviations = over_folds(self.mse_path_, shares)
        self._best, place = (int(i) for i in np.unravel_index(means.argmin(), means.shape))
        within = means[self._best] <= means[self._best, place] + deviations[self._best, place]
        self.alpha_, self.alpha_1se_ = (float(self.alphas_[self._best, i]) for i in (place, int(within.argmax())))
        self.mse_mean_, self.mse_se_ = means, deviations

    def _refit(
        self, X: Any, y: np.ndarray, sample_weight: Any, penalty: Any, alphas: np.ndarray, chosen: float
    ) -> None:
        walk = coordinate_descent.iterate(
            X, y, penalty, alphas=alphas[alphas >= chosen], sample_weight=sample_weight, **self._settings()
        )
        *_, (_, fitted) = walk
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self.dual_gap_, self.n_iter_, self.converged_ = fitted.gap, max(fitted.n_iter, 1), fitted.converged
        warn_unless_converged(self, fitted.gap, fitted.n_iter)


def over_folds(errors: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of ``[..., folds]`` errors, with folds weighted by ``shares`` that sum to 1."""
    means = errors @ shares
    spread = ((errors - means[..., None]) ** 2) @ shares
    return means, np.sqrt(spread / max(len(shares) - 1, 1))


@register(kind="estimator", wing="linear", source="Hastie, Tibshirani and Wainwright (2015)", example=lambda: LassoCV())
class LassoCV(CrossValidated):
    """The Lasso with alpha by cross-validation, and beside the minimum the one-standard-error rule.

    ``alpha_`` has the smallest mean error; ``alpha_1se_`` is the largest alpha whose mean error is within one standard
    error of that: sparser, and as good as the data can tell. Hastie, Tibshirani and Wainwright (2015), section 2.3.

    Parameters
    ----------
    one_standard_error : fit the coefficients at ``alpha_1se_`` rather than ``alpha_``.
    n_alphas, eps, alphas : the path, as in ``Lasso.path``.
    cv : number of folds, or a splitter of scikit-learn, or ``(train, held out)`` pairs of row numbers.
    fit_intercept, tol, max_iter, positive, weights : as in ``Lasso``.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, converged_ : of the fit to all rows. alpha_, alpha_1se_ : numbers.
    alphas_ : ``[n_alphas]``. mse_path_ : ``[n_alphas, folds]``. mse_mean_, mse_se_ : ``[n_alphas]``, over folds
        weighted by their held-out rows.
    """

    def __init__(
        self, *, one_standard_error=False, n_alphas=100, eps=None, alphas=None, cv=5, fit_intercept=True, tol=1e-6,
        max_iter=100, positive=False, weights=None,
    ):  # fmt: skip
        self.one_standard_error = one_standard_error
        self.n_alphas = n_alphas
        self.eps = eps
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def _candidates(self):
        return [penalties.L1(1.0, weights=self.weights, positive=self.positive)]

    def _penalty(self):
        return self._candidates()[0]

    def _choose(self, shares):
        super()._choose(shares)
        for name in ("alphas_", "mse_path_", "mse_mean_", "mse_se_"):
            setattr(self, name, getattr(self, name)[0])


@register(kind="estimator", wing="linear", source="Zou and Hastie (2005)", example=lambda: ElasticNetCV())
class ElasticNetCV(CrossValidated):
    """The elastic net with alpha, and the mix of penalties if several are given, by cross-validation; see ``LassoCV``.

    Parameters
    ----------
    l1_ratio : a number above 0 and at most 1, or several to choose from.

    Attributes
    ----------
    l1_ratio_ : the one chosen; ``alpha_1se_`` is on its path. alphas_, mse_path_, mse_mean_, mse_se_ : as in
        ``LassoCV``, with a first axis for the mixes.
    """

    def __init__(
        self, l1_ratio=0.5, *, one_standard_error=False, n_alphas=100, eps=None, alphas=None, cv=5, fit_intercept=True,
        tol=1e-6, max_iter=100, positive=False, weights=None,
    ):  # fmt: skip
        self.l1_ratio = l1_ratio
        self.one_standard_error = one_standard_error
        self.n_alphas = n_alphas
        self.eps = eps
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def _candidates(self):
        ratios = np.atleast_1d(np.asarray(self.l1_ratio, dtype=object)).tolist()
        if not ratios:
            raise InputError("l1_ratio: got none, want a number above 0 or several")
        return [penalties.ElasticNet(1.0, r, weights=self.weights, positive=self.positive) for r in ratios]

    def _penalty(self):
        return self._candidates()[0]

    def _choose(self, shares):
        super()._choose(shares)
        self.l1_ratio_ = float(np.atleast_1d(np.asarray(self.l1_ratio, dtype=object))[self._best])

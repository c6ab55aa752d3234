"""The Lasso and elastic net with alpha chosen by cross-validation: the minimum, and the one-standard-error rule.

Lives here: ``LassoCV`` and ``ElasticNetCV``: folds, their errors, the two choices of alpha and the refit. Does not
live here: the fits (``solvers.bundle``, ``solvers.coordinate_descent``), one alpha (``lasso``). Alphas come from all
rows, every fold walks the same path, and a fold is centred by its own training rows. All folds and alphas are one
bundle where that pays; else, and where columns have weights or signs, every fold walks by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.model_selection import check_cv

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.linear.lasso import Penalised, warn_unless_converged
from ellzero.parts import penalties
from ellzero.registry import register
from ellzero.solvers import coordinate_descent
from ellzero.solvers.bundle import Bundle
from ellzero.solvers.bundle_path import iterate
from ellzero.solvers.prox_newton import Solution

__all__ = ["ElasticNetCV", "LassoCV"]

_TALL = 10  # rows per column from which one Gram matrix per fold is all there is to share


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
        for fold, parts in enumerate(folds):
            if not all(weight[part].any() for part in parts):
                raise InputError(f"sample_weight: got only zeros in a part of fold {fold}, want weight in each")
        grids = [self._grid(X, y, penalty, sample_weight) for penalty in candidates]
        found = [self._errors(X, y, weight, *each, folds) for each in zip(candidates, grids)]
        errors, gaps, fits = zip(*found)
        shares = np.array([weight[held].sum() for _, held in folds])
        self.alphas_, self.mse_path_, self.gaps_ = np.array(grids), np.array(errors), np.array(gaps)
        self._choose(shares / shares.sum())
        chosen = self.alpha_1se_ if self.one_standard_error else self.alpha_
        grid, fits = grids[self._best], fits[self._best]
        fitted = fits[int((grid == chosen).argmax())] if fits else None
        self._store(fitted or self._refit(X, y, sample_weight, candidates[self._best], grid[grid >= chosen]))
        return self

    def _grid(self, X: Any, y: np.ndarray, penalty: Any, sample_weight: Any) -> np.ndarray:
        if self.alphas is not None:
            return np.sort(np.asarray(self.alphas, dtype=np.float64))[::-1]
        options = {"fit_intercept": self.fit_intercept, "sample_weight": sample_weight}
        top = coordinate_descent.alpha_max(X, y, penalty, **options)
        return coordinate_descent.grid(top, X.shape, self.n_alphas, self.eps)

    def _errors(self, X, y, weight, penalty, alphas, folds) -> tuple[np.ndarray, np.ndarray, list[Solution]]:
        """``[n_alphas, folds]`` weighted mean squared errors on the held-out rows, the gaps of the fits, and fits to
        all rows, where these come with the folds.
        """  # fmt: skip
        ratio = getattr(penalty, "l1_ratio", 1.0)
        plain = self.weights is None and not self.positive and ratio > 0 and alphas.size and (alphas > 0).all()
        if plain and not sparse.issparse(X) and len(y) < _TALL * X.shape[1]:
            settings = {**self._settings(), "loss": "quadratic", "l1_ratio": ratio}
            z, gaps, fits = zip(*walk_together(X, y, weight, folds, alphas, **settings))
            held = held_shares(weight, folds)
            errors = np.stack([((predicted - y) ** 2 * held).sum(1) for predicted in z])
            return errors, np.stack(gaps), list(fits)
        errors, gaps = zip(*(self._fold(X, y, weight, penalty, alphas, *fold) for fold in folds))
        return np.stack(errors, axis=1), np.stack(gaps, axis=1), []

    def _fold(self, X, y, weight, penalty, alphas, train, held) -> tuple[np.ndarray, np.ndarray]:
        """Errors on held-out rows and gaps of one fold, ``[n_alphas]`` each."""
        walk = coordinate_descent.iterate(
            X[train], y[train], penalty, alphas=alphas, sample_weight=weight[train], **self._settings()
        )
        fits = [fit for _, fit in walk]
        coefs = np.stack([fit.coef for fit in fits], axis=1)
        used = np.flatnonzero(coefs.any(axis=1))
        predicted = X[held][:, used] @ coefs[used] + np.array([fit.intercept for fit in fits], dtype=X.dtype)
        share = weight[held] / weight[held].sum()
        return share @ (y[held][:, None] - predicted).astype(np.float64) ** 2, np.array([fit.gap for fit in fits])

    def _choose(self, shares: np.ndarray) -> None:
        """The minimum over all candidates, and on its path the largest alpha within one standard error of it."""
        means, deviations = over_folds(self.mse_path_, shares)
        self._best, place = (int(i) for i in np.unravel_index(means.argmin(), means.shape))
        within = means[self._best] <= means[self._best, place] + deviations[self._best, place]
        self.alpha_, self.alpha_1se_ = (float(self.alphas_[self._best, i]) for i in (place, int(within.argmax())))
        self.mse_mean_, self.mse_se_ = means, deviations

    def _refit(self, X, y, sample_weight, penalty, alphas) -> Solution:
        walk = coordinate_descent.iterate(X, y, penalty, alphas=alphas, sample_weight=sample_weight, **self._settings())
        *_, (_, fitted) = walk
        return fitted

    def _store(self, fitted: Any) -> None:
        self.coef_, self.intercept_ = fitted.coef, fitted.intercept
        self.dual_gap_, self.n_iter_, self.converged_ = fitted.gap, max(fitted.n_iter, 1), fitted.converged
        warn_unless_converged(self, fitted.gap, fitted.n_iter)


def walk_together(
    X: Any, y: np.ndarray, weight: np.ndarray, folds: list, alphas: np.ndarray, *, loss: str, fit_intercept: bool,
    **settings: Any,
) -> Iterator[tuple[np.ndarray, np.ndarray, Solution]]:  # fmt: skip
    """For each alpha: predictions of all folds on all rows ``[folds, n]``, their gaps, and the fit to all rows."""
    check("tol", settings["tol"], at_least=0)
    check_integer("max_iter", settings["max_iter"], at_least=1)
    train = np.zeros((len(y), len(folds) + 1))
    train[:, -1] = weight
    for number, (rows, _) in enumerate(folds):
        train[rows, number] = weight[rows]
    bundle, count = Bundle(X, y, train, loss=loss, fit_intercept=fit_intercept), len(folds)
    for _, fits in iterate(bundle, alphas, **settings):
        last = fits.rows(slice(count, None))
        coef, gap = bundle.coefficients(last)[:, 0], float(last.gap[0])
        intercept, steps = float(bundle.intercepts(last)[0]), int(last.n_iter[0])
        solution = Solution(coef, intercept, gap, steps, gap <= settings["tol"])
        yield bundle.decision(fits.rows(slice(0, count))), fits.gap[:count], solution


def held_shares(weight: np.ndarray, folds: list) -> np.ndarray:
    """The weights of held-out rows ``[folds, n]``, each fold's with the sum 1."""
    held = np.zeros((len(folds), len(weight)))
    for number, (_, out) in enumerate(folds):
        held[number, out] = weight[out]
    return held / held.sum(1, keepdims=True)


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
        weighted by their held-out rows. gaps_ : ``[n_alphas, folds]``, the certified gaps of the fits.
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
        for name in ("alphas_", "mse_path_", "mse_mean_", "mse_se_", "gaps_"):
            setattr(self, name, getattr(self, name)[0])


@register(kind="estimator", wing="linear", source="Zou and Hastie (2005)", example=lambda: ElasticNetCV())
class ElasticNetCV(CrossValidated):
    """The elastic net with alpha, and the mix of penalties if several are given, by cross-validation; see ``LassoCV``.

    Parameters
    ----------
    l1_ratio : a number above 0 and at most 1, or several to choose from.

    Attributes
    ----------
    l1_ratio_ : the one chosen; ``alpha_1se_`` is on its path. alphas_, mse_path_, mse_mean_, mse_se_, gaps_ : as in
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

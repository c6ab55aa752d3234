"""Sparse logistic regression with alpha chosen by cross-validation, for two classes and more.

Lives here: ``SparseLogisticRegressionCV``: folds, their losses, the two choices of alpha and the refit. Does not live
here: the fits (``solvers.bundle``, ``solvers.prox_newton``), one alpha (``logistic``). Alphas come from all rows. Two
classes with a plain penalty are one bundle of all folds and alphas; for the rest every fold walks the path by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import check_cv

from ellzero.errors import InputError, check_choice
from ellzero.linear.generalized import checked_weights
from ellzero.linear.lasso import warn_unless_converged
from ellzero.linear.lasso_cv import held_shares, over_folds, walk_together
from ellzero.linear.logistic import LogisticModel
from ellzero.registry import register
from ellzero.solvers import prox_newton
from ellzero.solvers.bundle_losses import LogisticRows
from ellzero.solvers.coordinate_descent import grid

__all__ = ["SparseLogisticRegressionCV"]


@register(
    kind="estimator", wing="linear", source="Friedman, Hastie and Tibshirani (2010)",
    example=lambda: SparseLogisticRegressionCV(n_alphas=20, cv=3),
)  # fmt: skip
class SparseLogisticRegressionCV(LogisticModel):
    """``SparseLogisticRegression`` with alpha by cross-validation, and beside the minimum the one-standard-error rule.

    ``alpha_`` has the smallest mean of the criterion; ``alpha_1se_`` is the largest alpha whose mean is within one
    standard error of that: sparser, and as good as the data can tell.

    Parameters
    ----------
    one_standard_error : fit the coefficients at ``alpha_1se_`` rather than ``alpha_``.
    criterion : ``"log_loss"``, or ``"error"`` for the share of wrong classes.
    n_alphas, eps, alphas : the path, as in ``SparseLogisticRegression.path``.
    cv : number of (stratified) folds, a splitter of scikit-learn, or ``(train, held out)`` pairs of row numbers.
    l1_ratio, grouped, fit_intercept, tol, max_iter, positive, weights : as in ``SparseLogisticRegression``.

    Attributes
    ----------
    classes_, coef_, intercept_, dual_gap_, n_iter_, converged_ : of the fit to all rows. alpha_, alpha_1se_ : numbers.
    alphas_ : ``[n_alphas]``. loss_path_, error_path_ : ``[n_alphas, folds]``, log-loss and share of errors on held-out
        rows. mean_, se_ : ``[n_alphas]``, of the criterion over folds, weighted by their held-out rows.
    gaps_ : ``[n_alphas, folds]``, the certified gaps of the fits.

    Raises
    ------
    InputError : as ``SparseLogisticRegression``; or a fold that trains without one of the classes.
    """

    def __init__(
        self, *, one_standard_error=False, criterion="log_loss", n_alphas=100, eps=None, alphas=None, cv=5,
        l1_ratio=1.0, grouped=False, fit_intercept=True, tol=1e-6, max_iter=100, positive=False, weights=None,
    ):  # fmt: skip
        self.one_standard_error = one_standard_error
        self.criterion = criterion
        self.n_alphas = n_alphas
        self.eps = eps
        self.alphas = alphas
        self.cv = cv
        self.l1_ratio = l1_ratio
        self.grouped = grouped
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.positive = positive
        self.weights = weights

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> SparseLogisticRegressionCV:
        """Fit to ``[n, p]`` (dense or sparse, never densified) and ``[n]`` labels.

        Parameters
        ----------
        sample_weight : ``[n]`` weighs the losses, in the fits and on held-out rows.
        groups : ``[n]`` passed to the splitter ``cv``, such as ``GroupKFold``.
        """
        check_choice("one_standard_error", self.one_standard_error, (False, True))
        check_choice("criterion", self.criterion, ("log_loss", "error"))
        X, y, _, _ = self._problem(X, y)
        weight = checked_weights(sample_weight, X)
        self.alphas_ = self._grid(X, y, weight)
        labels = y > 0 if self._two else y.argmax(axis=1)
        folds = list(check_cv(self.cv, labels, classifier=True).split(X, labels, groups))
        mass = np.ones(len(y)) if weight is None else weight
        for number, fold in enumerate(folds):
            self._check_fold(y, mass, number, *fold)
        plain = not (self.grouped or self.positive) and self.weights is None and self.l1_ratio > 0
        if self._two and plain and self.alphas_[-1] > 0:
            found, fits = self._together(X, y, mass, folds)
        else:
            found, fits = [self._fold(X, y, weight, *fold) for fold in folds], None
        self.loss_path_, self.error_path_, self.gaps_ = (np.stack(part, axis=1) for part in zip(*found))
        shares = np.array([mass[held].sum() for _, held in folds])
        self._choose(self.loss_path_ if self.criterion == "log_loss" else self.error_path_, shares / shares.sum())
        chosen = self.alpha_1se_ if self.one_standard_error else self.alpha_
        if fits is None:
            *_, (_, fitted) = self._walk(X, y, weight, self.alphas_[self.alphas_ >= chosen])
        else:
            fitted = fits[int((self.alphas_ == chosen).argmax())]
        self._store(fitted)
        warn_unless_converged(self, self.dual_gap_, self.n_iter_)
        return self

    def _grid(self, X, y, weight) -> np.ndarray:
        if self.alphas is not None:
            alphas = np.sort(np.asarray(self.alphas, dtype=np.float64))[::-1]
            if alphas.ndim != 1 or not len(alphas) or not alphas[-1] >= 0:
                raise InputError(f"alphas: got {self.alphas!r}, want numbers at least 0")
            return alphas
        datafit, penalty = self._parts()
        top = prox_newton.alpha_max(X, y, datafit, penalty, fit_intercept=self.fit_intercept, sample_weight=weight)
        return grid(top, X.shape, self.n_alphas, self.eps)

    def _walk(self, X, y, weight, alphas):
        return prox_newton.iterate(X, y, *self._parts(), alphas=alphas, sample_weight=weight, **self._settings())

    def _check_fold(self, y, mass, number, train, held) -> None:
        seen = y[train][mass[train] > 0]
        present = [(seen < 0).any(), (seen > 0).any()] if self._two else (seen > 0).any(axis=0)
        if not np.all(present):
            missing = self.classes_[int(np.argmin(present))]
            raise InputError(f"y: fold {number} trains without class {missing}, want each class there; use fewer folds")
        if not mass[held].any():
            raise InputError(f"sample_weight: got only zeros in the held-out part of fold {number}, want weight there")

    def _together(self, X, y, mass, folds) -> tuple[list[tuple], list[prox_newton.Solution]]:
        """What ``_fold`` finds, of all folds at once, and the fits to all rows."""
        settings = {"l1_ratio": self.l1_ratio, "loss": "logistic", **self._settings()}
        z, gaps, fits = zip(*walk_together(X, y, mass, folds, self.alphas_, **settings))
        held, rows = held_shares(mass, folds), LogisticRows()
        losses = np.stack([rows.evaluate(y, held, each)[0] for each in z], axis=1)
        errors = np.stack([(held * ((each > 0) != (y > 0))).sum(1) for each in z], axis=1)
        return list(zip(losses, errors, np.stack(gaps, axis=1))), list(fits)

    def _fold(self, X, y, weight, train, held) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-loss and share of errors on held-out rows, and the gap of the fit, for each alpha."""
        inside, outside = (None, None) if weight is None else (weight[train], weight[held])
        datafit, part, target = self._parts()[0], X[held], y[held]
        losses, errors, gaps = [], [], []
        for _, fit in self._walk(X[train], y[train], inside, self.alphas_):
            rows = fit.coef.reshape(len(fit.coef), -1)
            used = np.flatnonzero(rows.any(axis=1))
            z = np.asarray(part[:, used] @ rows[used] + fit.intercept, dtype=np.float64)
            wrong = (z[:, 0] > 0) != (target > 0) if self._two else z.argmax(axis=1) != target.argmax(axis=1)
            losses.append(float(datafit.value(target, z[:, 0] if self._two else z, outside)))
            errors.append(float(np.average(wrong, weights=outside)))
            gaps.append(fit.gap)
        return np.array(losses), np.array(errors), np.array(gaps)

    def _choose(self, scores: np.ndarray, shares: np.ndarray) -> None:
        self.mean_, self.se_ = over_folds(scores, shares)
        best = int(self.mean_.argmin())
        within = int((self.mean_ <= self.mean_[best] + self.se_[best]).argmax())
        self.alpha_, self.alpha_1se_ = float(self.alphas_[best]), float(self.alphas_[within])

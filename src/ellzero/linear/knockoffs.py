"""Model-X knockoffs: columns that imitate the others but tell nothing, and the false discovery rate that they hold.

Lives here: Gaussian second-order knockoffs, the coefficient-difference statistic, the knockoff filter, the selector.
Does not live here: the Lasso fits (``bundles``), stability selection (``stability``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, cholesky, eigvalsh
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.linear.bundles import cross_validate_path
from ellzero.linear.stability import two_classes
from ellzero.registry import register
from ellzero.rng import rng

__all__ = [
    "KnockoffSelection",
    "estimated_covariance",
    "gaussian_knockoffs",
    "knockoff_diagonal",
    "knockoff_threshold",
]


def knockoff_diagonal(correlation: np.ndarray, method: str = "mvr", sweeps: int = 50) -> np.ndarray:
    """How far knockoffs may be from the columns: s with ``0 <= diag(s) <= 2 correlation``, for unit variances.

    ``"equicorrelated"`` (Barber and Candes, 2015) is one number for all columns, ``min(1, 2 lambda_min)``. ``"mvr"``
    (Spector and Janson, 2022) minimises the trace of the inverse joint correlation,
    ``sum_j 1 / s_j + trace((2 correlation - diag(s))^{-1})``: the columns are hardest to tell from all others, and
    power does not collapse where columns are close. Each coordinate has a closed-form step.
    """
    check_choice("method", method, ("equicorrelated", "mvr"))
    correlation = np.asarray(correlation, dtype=np.float64)
    p = len(check_array("correlation", correlation, ndim=2, shape=(len(correlation),) * 2))
    if abs(correlation - correlation.T).max() > 1e-8:
        raise InputError("covariance: is not symmetric, want a covariance matrix")
    least = float(eigvalsh(correlation, subset_by_index=[0, 0])[0])
    if not least > 0:
        raise InputError(f"covariance: its least eigenvalue is {least:.2g} at unit variances, want above 0")
    equal = min(1.0, 2 * least)
    if method == "equicorrelated":
        return np.full(p, (1 - 1e-8) * equal)
    s = np.full(p, 0.9 * equal)
    for _ in range(sweeps):
        inverse = np.linalg.inv(2 * correlation - np.diag(s))  # afresh: rounding of the updates does not add up
        before = s.copy()
        for j in range(p):
            column = inverse[:, j]
            c, root = column[j], np.linalg.norm(column)
            step = (1 - root * s[j]) / (c + root)  # 1/(s+d) and d |column|^2 / (1 - d c) balance
            s[j] += step
            inverse += np.multiply.outer(column, column * (step / (1 - step * c)))
        if abs(s - before).max() <= 1e-5:
            break
    return s


def gaussian_knockoffs(
    X: np.ndarray, mean: np.ndarray, covariance: np.ndarray, *, method: str = "mvr", seed: int = 0
) -> np.ndarray:
    """Knockoffs ``[n, p]`` of the rows of ``X [n, p]``, given their mean and covariance; no target is looked at.

    ``X_k = X - (X - mean) S^{-1} D + Z`` with S the covariance, D the diagonal of ``knockoff_diagonal`` in its units
    and Z Gaussian of covariance ``2 D - D S^{-1} D`` (Candes, Fan, Janson and Lv, 2018, section 3.1.1): swapping any
    columns with their knockoffs changes no first or second moment, and no law if the rows are Gaussian.

    Raises
    ------
    InputError : shapes that do not fit, a covariance that is not symmetric and positive definite.
    """
    X = check_array("X", np.asarray(X, dtype=np.float64), ndim=2)
    p = X.shape[1]
    mean = check_array("mean", np.asarray(mean, dtype=np.float64), shape=(p,))
    covariance = check_array("covariance", np.asarray(covariance, dtype=np.float64), shape=(p, p))
    variance = np.diag(covariance)
    if not (variance > 0).all():
        raise InputError(f"covariance: got a variance of {variance.min():.2g}, want numbers above 0")
    deviation = np.sqrt(variance)
    correlation = covariance / np.outer(deviation, deviation)
    s = knockoff_diagonal(correlation, method)
    solved = cho_solve(cho_factor(correlation), np.diag(s))  # S^{-1} D
    spread = 2 * np.diag(s) - s[:, None] * solved
    spread = (spread + spread.T) / 2
    try:
        root = cholesky(spread + 1e-10 * np.eye(p), lower=True)
    except LinAlgError as error:
        raise InputError("covariance: too close to singular for knockoffs; want a shrunk estimate") from error
    z = (X - mean) / deviation
    noise = rng(seed, "knockoffs").standard_normal(X.shape)
    return mean + deviation * (z - z @ solved + noise @ root.T)


def estimated_covariance(X: np.ndarray) -> np.ndarray:
    """The shrunk covariance ``[p, p]`` of Ledoit and Wolf (2004) in the columns' own scales; constant columns get 0."""
    deviation = X.std(0)
    varies = deviation > 1e-10 * abs(X).max(0)
    covariance = np.zeros((X.shape[1], X.shape[1]))
    if varies.any():
        scale = deviation[varies]
        shrunk, _ = ledoit_wolf((X[:, varies] - X[:, varies].mean(0)) / scale)
        covariance[np.ix_(varies, varies)] = shrunk * np.outer(scale, scale)
    return covariance


def knockoff_threshold(statistics: np.ndarray, fdr: float, plus: bool = True) -> float:
    """The least t with ``(plus + #{W <= -t}) / #{W >= t} <= fdr``, or infinity. Barber and Candes (2015)."""
    statistics = check_array("statistics", np.asarray(statistics, dtype=np.float64), ndim=1)
    check("fdr", fdr, above=0, below=1)
    for t in np.unique(abs(statistics[statistics != 0])):
        if (plus + (statistics <= -t).sum()) / max(1, (statistics >= t).sum()) <= fdr:
            return float(t)
    return np.inf


@register(kind="estimator", wing="linear", source="arXiv:1610.02351",
          claim="the share of false discoveries stays at the level asked for",
          example=lambda: KnockoffSelection())  # fmt: skip
class KnockoffSelection(SelectorMixin, BaseEstimator):
    """Keep columns that matter given all others, with the false discovery rate at most ``fdr``.

    Every column gets a knockoff. A cross-validated Lasso sees both; ``W_j = |w_j| - |w_knockoff_j|`` is as likely
    negative as positive for a column that says nothing about y given the rest, so large negative W count the false
    ones among large positive W. Candes, Fan, Janson and Lv (2018). The guarantee is exact for rows that are Gaussian
    with the covariance used; estimated covariances make it approximate.

    Parameters
    ----------
    fdr : the level.
    method : ``"mvr"`` or ``"equicorrelated"``, see ``knockoff_diagonal``.
    covariance : ``[p, p]`` if known; ``None`` estimates it (Ledoit and Wolf), with the mean.
    plus : the knockoff+ threshold, whose rate is controlled; without it a slightly modified rate is, with more power.
    loss : ``"quadratic"`` or ``"logistic"`` (two classes).
    cv, n_alphas, one_standard_error : of the cross-validated path on ``[X, knockoffs]``.
    seed, n_threads : of knockoffs and folds; of the kernel and BLAS.

    Attributes
    ----------
    statistics_ : ``[p]`` W. threshold_ : number, infinite if nothing can be claimed. support_ : ``[p]`` bool.
    alpha_ : of the Lasso.

    Raises
    ------
    InputError : settings out of range, by name; a covariance of another shape or not positive definite.
    """

    def __init__(self, *, fdr=0.1, method="mvr", covariance=None, plus=True, loss="quadratic", cv=5, n_alphas=50,
                 one_standard_error=False, seed=0, n_threads=None):  # fmt: skip
        self.fdr = fdr
        self.method = method
        self.covariance = covariance
        self.plus = plus
        self.loss = loss
        self.cv = cv
        self.n_alphas = n_alphas
        self.one_standard_error = one_standard_error
        self.seed = seed
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any) -> KnockoffSelection:
        """Choose among the columns of ``X [n, p]``, dense."""
        check("fdr", self.fdr, above=0, below=1)
        check_choice("method", self.method, ("equicorrelated", "mvr"))
        check_choice("loss", self.loss, ("quadratic", "logistic"))
        check_choice("plus", self.plus, (False, True))
        cv = check_integer("cv", self.cv, at_least=2)
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_min_samples=2 * cv, y_numeric=self.loss == "quadratic"
        )
        y = two_classes(y) if self.loss == "logistic" else y
        p = X.shape[1]
        mean, covariance = X.mean(0), self._covariance(X)
        used = np.diag(covariance) > 0  # a constant column is never chosen
        self.statistics_ = np.zeros(p)
        if used.any():
            kept = covariance[np.ix_(used, used)]
            copies = gaussian_knockoffs(X[:, used], mean[used], kept, method=self.method, seed=self.seed)
            both = np.concatenate([X[:, used], copies], axis=1) / np.tile(np.sqrt(np.diag(kept)), 2)
            path = cross_validate_path(
                both, y, loss=self.loss, cv=cv, n_alphas=self.n_alphas, eps=0.01, seed=self.seed,
                n_threads=self.n_threads, tol=1e-5,
            )  # fmt: skip
            place = path.one_standard_error if self.one_standard_error else path.best
            size = abs(path.coefs[:, place])
            self.alpha_ = float(path.alphas[place])
            self.statistics_[used] = size[: used.sum()] - size[used.sum() :]
        self.threshold_ = knockoff_threshold(self.statistics_, self.fdr, self.plus)
        self.support_ = self.statistics_ >= self.threshold_
        return self

    def _covariance(self, X: np.ndarray) -> np.ndarray:
        if self.covariance is None:
            return estimated_covariance(X)
        p = X.shape[1]
        return check_array("covariance", np.asarray(self.covariance, dtype=np.float64), shape=(p, p))

    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

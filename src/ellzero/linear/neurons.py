"""Which neurons tell a concept: rankings of all columns for many concepts together, and adaptive thresholding.

Lives here: the rankings, and the choice of k columns by any of them. Does not live here: the fits (``restricted``), the
exact search (``best_subset``), mutual information (``information``), scores on held-out rows (``probing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice
from ellzero.linear.best_subset import best_subset
from ellzero.linear.information import KernelDensity
from ellzero.linear.restricted import RestrictedFits, fit_restricted

__all__ = ["RANKINGS", "balanced_weights", "rank_neurons", "select_neurons"]

RANKINGS = ("adaptive", "mean_difference", "anova", "mutual_information", "coefficient", "exact")
_POOL = 256  # columns that adaptive thresholding begins with
_SHARED = 20_000_000  # numbers in the Gram matrices that fits share


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """Shares that give both classes of each row of ``labels [L, n]`` one half."""
    positive = labels > 0
    share = positive.mean(1, keepdims=True)
    return np.where(positive, 0.5 / share, 0.5 / (1 - share)) / labels.shape[1]


def _moments(X: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts of both classes ``[L, 1]`` and the means of every column in each ``[L, d]``: one product for all."""
    positive = (labels > 0).astype(X.dtype)
    up = positive.sum(1, keepdims=True)
    down = len(X) - up
    sums = positive @ X
    return up, down, sums / up, (X.sum(0) - sums) / down


def _mean_difference(X, labels, weights, alpha):
    _, _, above, below = _moments(X, labels)
    return abs(above - below)


def _anova(X, labels, weights, alpha):
    """F of two groups: between over within, from the same sums."""
    up, down, above, below = _moments(X, labels)
    mean = X.mean(0)
    between = up * (above - mean) ** 2 + down * (below - mean) ** 2
    within = np.maximum((X**2).sum(0) - up * above**2 - down * below**2, 1e-12 * len(X))
    return between / (within / max(len(X) - 2, 1))


def _mutual_information(X, labels, weights, alpha):
    estimate = KernelDensity()
    return np.stack([estimate(X, (row > 0).astype(np.intp), 2) for row in labels])


def _coefficient(X, labels, weights, alpha):
    every = np.tile(np.arange(X.shape[1]), (len(labels), 1))
    return abs(fit_restricted(X, labels, weights, every, np.arange(len(labels)), alpha, tol=1e-8).coef)


_SCORES = {
    "mean_difference": _mean_difference,
    "anova": _anova,
    "mutual_information": _mutual_information,
    "coefficient": _coefficient,
}


def rank_neurons(X: Any, labels: Any, ranking: str = "mean_difference", *, alpha: float = 1e-2) -> np.ndarray:
    """How well each column tells each concept: ``[L, d]``, larger is better.

    ``mean_difference`` is the distance of the class means; ``anova`` the F statistic; ``mutual_information`` that of
    ``screening``; ``coefficient`` the size of the coefficients of a ridge-logistic fit on all columns, with both
    classes weighed alike.

    Parameters
    ----------
    X : ``[n, d]``, standardised where columns differ in scale.
    labels : ``[L, n]`` of -1 and 1. ``alpha`` : the ridge weight of ``coefficient``.

    Raises
    ------
    InputError : labels other than -1 and 1 or of one class only, an unknown ranking.
    """
    check_choice("ranking", ranking, _SCORES)
    check("alpha", alpha, above=0)
    X = check_array("X", np.asarray(X), ndim=2, dtypes="fiub").astype(np.float64)
    labels = check_array("labels", np.asarray(labels), dtypes="fi", shape=(None, len(X))).astype(np.float64)
    if not np.isin(labels, (-1, 1)).all() or (labels.max(1) == labels.min(1)).any():
        raise InputError("labels: want -1 and 1, both in every row")
    return _SCORES[ranking](X, labels, balanced_weights(labels), alpha)


def select_neurons(
    X: np.ndarray, labels: np.ndarray, weights: np.ndarray, ks: Sequence[int], ranking: str, alpha: float
) -> dict[int, tuple[np.ndarray, RestrictedFits]]:
    """For each k the columns of every concept ``[L, k]`` and the fits on them; fits of one size are one bundle.

    ``X [n, d]`` standardised; ``labels, weights [L, n]`` as ``fit_restricted`` takes them.
    """
    rows = np.arange(len(labels))
    if ranking == "adaptive":
        found = _adaptive(X, labels, weights, ks, alpha)
    elif ranking == "exact":
        start = _adaptive(X, labels, weights, ks, alpha)
        found = {k: np.stack([best_subset(X, labels[i], k, alpha=alpha, weights=weights[i], start=start[k][i]).support
                              for i in rows]) for k in ks}  # fmt: skip
    else:
        order = np.argsort(-_SCORES[ranking](X, labels, weights, alpha), axis=1, kind="stable")
        found = {k: order[:, :k] for k in ks}
    return {k: (S, fit_restricted(X, labels, weights, S, rows, alpha)) for k, S in found.items()}


def _adaptive(X, labels, weights, ks, alpha) -> dict[int, np.ndarray]:
    """Halve the columns again and again, keeping the largest weights of a fit on those that are left.

    The chain of sizes does not depend on ``ks`` up to half the pool, so a probe is the same alone and in a table.
    """
    rows, pool = np.arange(len(labels)), max(_POOL, 2 * max(ks))
    left = np.argsort(-_mean_difference(X, labels, weights, alpha), axis=1, kind="stable")[:, :pool]
    found = {k: left[:, :k] for k in ks if k >= left.shape[1]}
    gram = _grams(X, weights) if len(weights) * X.shape[1] ** 2 <= _SHARED else None
    while len(found) < len(ks):
        size = left.shape[1]
        fits = fit_restricted(X, labels, weights, left, rows, alpha, gram=gram, tol=1e-8)
        left = np.take_along_axis(left, np.argsort(-abs(fits.coef), axis=1, kind="stable"), 1)
        found |= {k: left[:, :k] for k in ks if size // 2 <= k < size}
        left = left[:, : size // 2]
    return found


def _grams(X: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``X' diag(s) X`` of every row of balanced weights: a mix of the whole Gram matrix and that of one class."""
    whole, grams = X.T @ X, []
    for s in weights:
        low, high = s.min(), s.max()
        own = X[s > low]
        grams.append(low * whole + (high - low) * (own.T @ own))
    return np.stack(grams)

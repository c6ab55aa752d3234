"""Stability selection: keep the columns that most half-samples choose, with a bound on the expected false ones.

Lives here: the selector, its two bounds, and the threshold that a bound asks for. Does not live here: the fits
(``solvers.bundle``), knockoffs (``knockoffs``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.linear.resampling import common_grid
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers.bundle import Bundle
from ellzero.solvers.bundle_path import iterate

__all__ = [
    "StabilitySelection",
    "bound_factor",
    "complementary_pairs",
    "expected_false",
    "first_to_enter",
    "selection_counts",
]

_CHUNK = 64  # half-samples at once


def bound_factor(threshold: float, pairs: int | None, theta: float) -> float:
    """C with ``E[false selections] <= C theta q``, for columns chosen by a half-sample with chance at most theta = q/p.

    ``pairs = None`` is the bound of Meinshausen and Buehlmann (2010), theorem 1, ``1 / (2 threshold - 1)``, which asks
    for exchangeable noise columns and a base no worse than guessing. With B complementary pairs it needs neither; the
    sharper bound of Shah and Samworth (2013), theorem 2, assumes that the share of pairs whose both halves choose a
    noise column has a unimodal law. It is used where it holds and is the smaller one.
    """
    if threshold <= 0.5:
        return np.inf
    worst = 1 / (2 * threshold - 1)
    if pairs is None:
        return worst
    low = 0.5 + min(theta**2, 1 / (2 * pairs) + 0.75 * theta**2)
    if theta > 1 / np.sqrt(3) or threshold <= low:
        return worst
    if threshold > 0.75:
        return min(worst, 4 * (1 - threshold + 1 / (2 * pairs)) / (1 + 1 / pairs))
    room = 2 * threshold - 1 - 1 / (2 * pairs)
    return min(worst, 1 / (2 * room)) if room > 0 else worst


def expected_false(threshold: float, q: float, columns: int, pairs: int | None) -> float:
    """The bound on expected false selections when half-samples choose q of ``columns`` columns."""
    return bound_factor(threshold, pairs, q / columns) * q**2 / columns


def first_to_enter(bundle: Bundle, alphas: np.ndarray, q: int, **options: Any) -> np.ndarray:
    """Which columns each data set chooses, ``[K, p]``: the first ``q`` that enter its path, none twice.

    Columns that enter at the same alpha come by the size of their coefficients, then by index.
    """
    chosen = np.zeros((bundle.count, bundle.p), dtype=bool)
    for _, fits in iterate(bundle, alphas, **options):
        ids = bundle.pool.ids[: fits.w.shape[1]]
        size = np.where(chosen[:, ids], 0, abs(fits.w))
        open_places = q - chosen.sum(1)
        for k in np.flatnonzero((open_places > 0) & size.any(1)):
            order = np.lexsort((ids, -size[k]))[: min(open_places[k], np.count_nonzero(size[k]))]
            chosen[k, ids[order]] = True
        if (chosen.sum(1) >= q).all():
            break
    return chosen


def selection_counts(
    X: Any, y: np.ndarray, halves: np.ndarray, q: int, *, loss: str = "quadratic", l1_ratio: float, eps: float,
    n_alphas: int, n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """How many of the half-samples choose each column, ``[p]``, with one grid of alphas for all."""
    common = {"loss": loss, "n_threads": n_threads}
    alphas = common_grid(X, y, halves, None, n_alphas=n_alphas, eps=eps, l1_ratio=l1_ratio, **common)
    pieces = (halves[:, i : i + _CHUNK] for i in range(0, halves.shape[1], _CHUNK))
    options = {"l1_ratio": l1_ratio, "tol": 1e-5, "stride": 1}
    return sum(first_to_enter(Bundle(X, y, piece, **common), alphas, q, **options).sum(0) for piece in pieces)


@register(kind="estimator", wing="linear", source="Meinshausen and Buehlmann (2010); Shah and Samworth (2013)",
          claim="the number of false selections stays within its bound",
          example=lambda: StabilitySelection())  # fmt: skip
class StabilitySelection(SelectorMixin, BaseEstimator):
    """Keep columns that a large share of half-samples choose; the expected number of false ones is bounded.

    Each half-sample walks its Lasso path and chooses the first ``q`` columns that enter. The share of half-samples
    that choose a column is its score; columns at or above the threshold are kept. All paths are one bundle.

    Parameters
    ----------
    expected_false : the bound wanted on the expected number of false selections.
    threshold : a share above 0.5 instead, from which ``expected_false_`` follows; ``None`` takes the smallest one that
        keeps the bound.
    q : columns that a half-sample chooses; ``None`` is ``sqrt(0.8 expected_false p)``, for which the bound of
        Meinshausen and Buehlmann asks for a threshold of 0.9.
    sampling : ``"pairs"``, complementary half-samples (Shah and Samworth), or ``"halves"``, independent ones.
    n_pairs : B; there are 2 B half-samples either way.
    loss : ``"quadratic"`` or ``"logistic"`` (two classes; half-samples keep their balance).
    standardise : scale columns to unit variance first.
    l1_ratio, eps, n_alphas : of the paths; 1 is the Lasso. A path ends once q columns have entered.
    seed, n_threads : of the half-samples; of the kernel and BLAS.

    Attributes
    ----------
    scores_ : ``[p]`` shares. support_ : ``[p]`` bool. threshold_, q_ : as used. expected_false_ : the bound on the
    expected number of selected columns among those that a half-sample chooses with chance at most q/p.

    Raises
    ------
    InputError : settings out of range, by name; a q for which no threshold keeps the bound.
    """

    def __init__(self, *, expected_false=1.0, threshold=None, q=None, sampling="pairs", n_pairs=50, loss="quadratic",
                 standardise=True, l1_ratio=1.0, eps=0.01, n_alphas=50, seed=0, n_threads=None):  # fmt: skip
        self.expected_false = expected_false
        self.threshold = threshold
        self.q = q
        self.sampling = sampling
        self.n_pairs = n_pairs
        self.loss = loss
        self.standardise = standardise
        self.l1_ratio = l1_ratio
        self.eps = eps
        self.n_alphas = n_alphas
        self.seed = seed
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any) -> StabilitySelection:
        """Score every column of ``X [n, p]`` (dense or sparse) by the half-samples that choose it."""
        check_choice("sampling", self.sampling, ("pairs", "halves"))
        check_choice("loss", self.loss, ("quadratic", "logistic"))
        pairs = check_integer("n_pairs", self.n_pairs, at_least=2)
        check("l1_ratio", self.l1_ratio, above=0, at_most=1)
        X, y = validate_data(
            self, X, y, accept_sparse="csc", dtype=np.float64, ensure_min_samples=4, y_numeric=self.loss == "quadratic"
        )
        y = two_classes(y) if self.loss == "logistic" else y
        p = X.shape[1]
        self.q_, self.threshold_ = self._settings(p, pairs)
        self.expected_false_ = expected_false(self.threshold_, self.q_, p, self._bound_pairs(pairs))
        X = scaled(X) if self.standardise else X
        halves = complementary_pairs(
            y, self.loss, pairs, rng(self.seed, "half-samples"), independent=self.sampling == "halves"
        )
        counts = selection_counts(
            X, y, halves, self.q_, loss=self.loss, l1_ratio=self.l1_ratio, eps=self.eps, n_alphas=self.n_alphas,
            n_threads=self.n_threads,
        )  # fmt: skip
        self.scores_ = counts / (2 * pairs)
        self.support_ = self.scores_ >= self.threshold_ - 1e-12
        return self

    def _bound_pairs(self, pairs: int) -> int | None:
        return pairs if self.sampling == "pairs" else None

    def _settings(self, p: int, pairs: int) -> tuple[int, float]:
        wanted = check("expected_false", self.expected_false, above=0)
        q = self.q
        q = (
            min(p, max(1, int(np.sqrt(0.8 * wanted * p))))
            if q is None
            else check_integer("q", q, at_least=1, at_most=p)
        )
        if self.threshold is not None:
            return q, check("threshold", self.threshold, above=0.5, at_most=1)
        for threshold in (pairs + np.arange(1, pairs + 1)) / (2 * pairs):
            if expected_false(threshold, q, p, self._bound_pairs(pairs)) <= wanted:
                return q, float(threshold)
        if self.q is None:  # tables of a few columns: no threshold is enough, the strictest one is used
            return q, 1.0
        raise InputError(f"q: got {q}, for which no threshold bounds {wanted} false selections; want a smaller q")

    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = True
        return tags


def two_classes(y: np.ndarray) -> np.ndarray:
    """Labels as 0 and 1."""
    check_classification_targets(y)
    classes, y = np.unique(y, return_inverse=True)
    if len(classes) != 2:
        raise InputError(f"y: got {len(classes)} different labels, want two for the logistic loss")
    return y


def scaled(X: Any) -> Any:
    """The columns of a dense or CSC matrix over their standard deviations; constant ones stay."""
    mean = np.asarray(X.mean(axis=0)).ravel()
    square = np.asarray((X.multiply(X) if hasattr(X, "multiply") else X * X).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    scale = 1 / np.where(deviation > 1e-10 * np.sqrt(square), np.where(deviation > 0, deviation, 1), 1)
    return (X.multiply(scale)).tocsc() if hasattr(X, "multiply") else X * scale


def complementary_pairs(
    y: np.ndarray, loss: str, pairs: int, generator: np.random.Generator, *, independent: bool = False
) -> np.ndarray:
    """Membership ``[n, 2 pairs]`` in half-samples of floor(n / 2) rows, the two of a pair side by side and disjoint.

    For the logistic loss each class is halved. ``independent``: the second of a pair is drawn without regard to the
    first.
    """
    halves = np.zeros((len(y), 2 * pairs))
    for b in range(pairs):
        first, second = _half(y, loss, generator)
        if independent:
            second = _half(y, loss, generator)[0]
        halves[first, 2 * b], halves[second, 2 * b + 1] = 1, 1
    return halves


def _half(y: np.ndarray, loss: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves of floor(n / 2) rows; each class is halved for the logistic loss."""
    order = generator.permutation(len(y))
    half = len(y) // 2
    if loss == "logistic":
        order = order[np.argsort(y[order], kind="stable")]
        return order[0 : 2 * half : 2], order[1 : 2 * half : 2]
    return order[:half], order[half : 2 * half]

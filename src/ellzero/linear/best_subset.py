"""The best k columns for a logistic model, exactly: cutting planes with a certificate.

Lives here: the search over all supports of size k. Does not live here: the fits on given supports (``restricted``),
rankings that guess a support (``neurons``), the probe that uses both (``probing``).
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.special import xlogy

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.linear.restricted import fit_restricted
from ellzero.registry import register

__all__ = ["BestSubset", "best_subset"]

_FEASIBLE = 1e-6  # how far HiGHS lets a constraint be violated
_FAN = np.array([1.0, 0.93, 0.85, 0.75, 0.62, 0.48, 0.3])  # each dual point gives a cut at every scale


@dataclass(frozen=True)
class BestSubset:
    """The best support found, its fit, and a certificate: no support of that size has an objective below ``bound``.

    ``optimal`` says that ``bound`` reaches ``value`` (to 1e-9; to 1e-6 where a mixed-integer program was solved);
    ``n_fits`` counts the supports that were fitted.
    """

    support: np.ndarray
    coef: np.ndarray
    intercept: float
    value: float
    bound: float
    optimal: bool
    n_fits: int


class _Search:
    """The incumbent, the count of fits, and the data of one search."""

    def __init__(self, X, y, weights, k, alpha):
        self.X, self.labels, self.weights, self.k, self.alpha = X, y[None], weights[None], k, alpha
        self.value, self.support, self.coef, self.intercept, self.n_fits = math.inf, None, None, 0.0, 0

    def fit(self, supports: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fit supports of any one size; the dual points ``[B, n]`` and what each column earns, ``[B, d]``."""
        supports = np.atleast_2d(supports)
        which = np.zeros(len(supports), dtype=int)
        fits = fit_restricted(self.X, self.labels, self.weights, supports, which, self.alpha)
        self.n_fits += len(supports)
        if supports.shape[1] == self.k and fits.value.min() < self.value:
            i = int(fits.value.argmin())
            self.value, self.support = float(fits.value[i]), np.sort(supports[i])
            self.coef, self.intercept = fits.coef[i][np.argsort(supports[i])], float(fits.intercept[i])
        return self.cuts(fits.dual)

    def cuts(self, dual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each dual point heights ``[B, fan]`` and gains ``[B, d]``: ``c(z) >= height_t - t^2 gains . z``."""
        # A fit that ended early leaves sum a a little off 0, where no plane holds: the heavier class is scaled down.
        up, down = np.maximum(dual, 0).sum(1, keepdims=True), np.maximum(-dual, 0).sum(1, keepdims=True)
        dual = np.where(dual > 0, dual * np.minimum(1, down / up), dual * np.minimum(1, up / down))
        share = self.weights * (abs(dual) > 0) + 1e-300
        q = np.clip(abs(dual) / share, 0, 1)[:, None, :] * _FAN[:, None]
        heights = -(self.weights * (xlogy(q, q) + xlogy(1 - q, 1 - q))).sum(2)
        return heights, (dual @ self.X) ** 2 / (2 * self.alpha)

    def polish(self, pool: np.ndarray) -> None:
        """Swap one column of the incumbent against the pool while that helps."""
        while True:
            before, kept = self.value, self.support
            others = np.setdiff1d(pool, kept)
            if not len(others):
                return
            swaps = [np.append(np.delete(kept, i), j) for i in range(self.k) for j in others]
            self.fit(np.array(swaps))
            if self.value >= before - 1e-13:
                return


@register(id="S031", source="arXiv:2305.01610", kind="solver", wing="linear",
          claim="the best k neurons of a probe are found exactly, with a certificate")  # fmt: skip
def best_subset(
    X: Any,
    y: Any,
    k: int,
    *,
    alpha: float = 1e-2,
    weights: Any = None,
    start: Any = None,
    enumerate_up_to: int = 1_000_000,
    time_limit: float = 60.0,
) -> BestSubset:
    """The k columns on which a ridge-logistic model fits best: exact best-subset selection by cutting planes.

    Solves ``min_{|S| = k} c(S)``, ``c(S) = min_{w, b} sum_i s_i log(1 + exp(-y_i (x_i[S]' w + b))) + alpha/2 |w|^2``.
    By duality, for any a with ``a_i = s_i y_i q_i``, q in [0, 1] and ``sum a = 0``,
    ``c(S) >= sum_i s_i h(q_i) - sum_{j in S} (x_j' a)^2 / (2 alpha)``, h the binary entropy: a plane in the indicator
    of S, and for every scale t in (0, 1] the point t a gives another. Rounds fit the supports whose bound is
    lowest, and their dual points cut the rest; the search ends when no support is bounded below the best one seen.
    With at most ``enumerate_up_to`` supports the bounds of all are kept in an array, else each round solves a
    mixed-integer program (HiGHS).

    Parameters
    ----------
    X : ``[n, d]``; columns should be standardised, since the penalty sees their scale.
    y : ``[n]`` of -1 and 1. ``weights`` : ``[n]``, at least 0; default equal.
    alpha : weight of the ridge penalty, above 0. The larger, the fewer fits are needed.
    start : a support of size k to begin with, such as that of adaptive thresholding.
    time_limit : seconds; what is returned then has ``optimal=False`` and the bound reached so far.

    Raises
    ------
    InputError : labels other than -1 and 1, a single class, k outside [1, d], alpha not above 0, a bad start.

    Source: Gurnee et al. (2023), appendix on optimal sparse prediction; Bertsimas, Pauphilet and Van Parys (2021).
    """
    X, y, weights, start = _checked(X, y, k, alpha, weights, start)
    check_integer("enumerate_up_to", enumerate_up_to, at_least=0)
    deadline = time.monotonic() + check("time_limit", time_limit, above=0)
    search, d = _Search(X, y, weights, k, alpha), X.shape[1]
    heights, gains = search.cuts((weights * y * _balance(y, weights))[None])
    first = np.argsort(-gains[0], kind="stable")
    if d <= 256:  # the bound of the model of all columns holds for every support
        heights, gains = (np.concatenate(pair) for pair in zip((heights, gains), search.fit(np.arange(d))))
    search.fit(first[:k] if start is None else start)
    search.polish(np.union1d(first[:64], search.support))
    if math.comb(d, k) <= enumerate_up_to:
        bound, slack = _by_table(search, heights, gains, d, deadline), 1e-9
    else:
        bound, slack = _by_program(search, heights, gains, d, deadline), _FEASIBLE
    optimal = bound >= search.value - slack
    bound = search.value if optimal else bound
    return BestSubset(search.support, search.coef, search.intercept, search.value, bound, optimal, search.n_fits)


def _balance(y, weights):
    """q of the model without columns: each class carries half of what is in play."""
    positive = weights[y > 0].sum()
    return np.where(y > 0, 1 - positive, positive)


def _checked(X, y, k, alpha, weights, start):
    X = check_array("X", np.asarray(X), ndim=2, dtypes="fiub").astype(np.float64)
    n, d = X.shape
    y = check_array("y", np.asarray(y), dtypes="fi", shape=(n,)).astype(np.float64)
    if not np.isin(y, (-1, 1)).all() or len(np.unique(y)) < 2:
        raise InputError(f"y: got the labels {np.unique(y)[:5].tolist()}, want both -1 and 1")
    check_integer("k", k, at_least=1, at_most=d)
    check("alpha", alpha, above=0)
    weights = np.ones(n) if weights is None else check_array("weights", np.asarray(weights, float), shape=(n,))
    if weights.min() < 0 or not weights[y > 0].sum() or not weights[y < 0].sum():
        raise InputError("weights: want numbers at least 0, with some weight on each class")
    if start is not None:
        start = check_array("start", np.asarray(start), dtypes="iu", shape=(k,))
        if len(np.unique(start)) < k or start.min() < 0 or start.max() >= d:
            raise InputError(f"start: got {start.tolist()}, want {k} different columns from 0 to {d - 1}")
    return X, y, weights / weights.sum(), start


def _by_table(search, heights, gains, d, deadline) -> float:
    """Bounds of all supports in one array; returns the lowest bound that is left."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(d), search.k))
    subsets = np.fromiter(flat, dtype=np.int32, count=math.comb(d, search.k) * search.k).reshape(-1, search.k)
    bounds = np.full(len(subsets), -math.inf)
    while True:
        for height, gain in zip(heights, gains):
            total = gain[subsets].sum(1)
            for t, h in zip(_FAN, height):
                np.maximum(bounds, h - t * t * total, out=bounds)
        left = bounds < search.value - 1e-12
        subsets, bounds = subsets[left], bounds[left]
        if not len(subsets):
            return search.value
        if time.monotonic() > deadline:
            return float(bounds.min())
        batch = min(128, len(subsets))
        chosen = np.argpartition(bounds, batch - 1)[:batch]
        heights, gains = search.fit(subsets[chosen])
        cutting = np.argsort(bounds[chosen], kind="stable")[:8]  # a cut costs a pass over the table: only the deepest
        heights, gains = heights[cutting], gains[cutting]
        keep = np.ones(len(subsets), dtype=bool)
        keep[chosen] = False
        subsets, bounds = subsets[keep], bounds[keep]


def _by_program(search, heights, gains, d, deadline) -> float:
    """Each round minimises the largest cut over the indicators of k columns; returns the last such minimum."""
    rows, sides, bound = [], [], 0.0
    objective = np.append(np.zeros(d), 1.0)
    box = Bounds(np.zeros(d + 1), np.append(np.ones(d), np.inf))
    count = LinearConstraint(np.append(np.ones(d), 0.0), search.k, search.k)
    while bound < search.value - _FEASIBLE:
        for height, gain in zip(heights, gains):
            rows.extend(np.append(t * t * gain, 1.0) for t in _FAN)
            sides.extend(height)
        left = deadline - time.monotonic()
        if left <= 0:
            return bound
        found = milp(objective, bounds=box, integrality=np.append(np.ones(d), 0),
                     options={"time_limit": left, "mip_rel_gap": 0},
                     constraints=[count, LinearConstraint(np.array(rows), sides, np.inf)])  # fmt: skip
        if found.x is None:
            return bound
        bound = max(bound, found.mip_dual_bound if found.mip_dual_bound is not None else found.fun)
        heights, gains = search.fit(np.argsort(-found.x[:d], kind="stable")[: search.k])
    return bound

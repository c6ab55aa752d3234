"""The best of many actions where rewards are nearly a sparse linear function of features: three ways and a planner.

Lives here: elimination over all supports, the Lasso on few random actions, least squares without sparsity, and what a
budget of queries can buy. Does not live here: the fits (``solvers``), bandits with known truth (``data.bandits``).
A query is the reward of one action: exact, or the mean of as many noisy pulls as bring it near.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.penalties import L1
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers.coordinate_descent import solve
from ellzero.solvers.minimax import minimax_fit

__all__ = ["Found", "Guarantee", "LassoBandit", "LeastSquaresBandit", "SparseElimination", "cover", "plan"]

_MOST_SUPPORTS = 200_000


class Found(NamedTuple):
    """``action`` is the index of the chosen one and ``reward`` what was seen of it.

    ``queries`` counts distinct actions asked for and ``pulls`` all rewards drawn. ``theta [d]`` is the parameter whose
    best action was played last, ``rounds`` how often one was.
    """

    action: int
    reward: float
    queries: int
    pulls: int
    theta: np.ndarray
    rounds: int


def cover(points: Any, radius: float, chosen: Any = ()) -> np.ndarray:
    """Indices of representatives: every point is within ``radius`` of one, and new ones lie further apart than that.

    The farthest point joins until none is too far. Gonzalez (1985).

    Parameters
    ----------
    points : ``[N, s]``. chosen : indices of points that represent already; they are not among those returned.
    """
    points = check_array("points", np.asarray(points, dtype=np.float64), ndim=2)
    check("radius", radius, above=0)
    distance = np.full(len(points), np.inf)
    for i in np.asarray(chosen, dtype=int):
        distance = np.minimum(distance, ((points - points[i]) ** 2).sum(1))
    found = []
    while (farthest := int(distance.argmax())) >= 0 and distance[farthest] > radius**2:
        found.append(farthest)
        distance = np.minimum(distance, ((points - points[farthest]) ** 2).sum(1))
    return np.array(found, dtype=int)


class _Oracle:
    """Asks for each action once, exactly or often enough that all are within ``accuracy`` at once."""

    def __init__(self, pull, N, noise, accuracy, delta, most):
        self.pull, self.most, self.order = pull, most, []
        self.rewards = np.full(N, np.nan)
        self.times = 1 if noise is None else max(1, math.ceil(2 * noise**2 * math.log(2 * N / delta) / accuracy**2))

    def ask(self, actions) -> None:
        new = [int(a) for a in dict.fromkeys(np.asarray(actions, dtype=int).tolist()) if np.isnan(self.rewards[a])]
        if self.most is not None and len(self.order) + len(new) > self.most:
            raise InputError(f"max_queries: got {self.most}, want at least {len(self.order) + len(new)}")
        if new:
            given = np.asarray(self.pull(np.array(new), self.times), dtype=np.float64)
            self.rewards[new] = check_array("pull", given, shape=(len(new),))
            self.order += new

    def result(self, theta, rounds) -> Found:
        best = min(self.order, key=lambda a: (-self.rewards[a], a))
        queries = len(self.order)
        return Found(best, float(self.rewards[best]), queries, queries * self.times, theta, rounds)


@dataclass(frozen=True)
class _Bandit:
    """What the ways share: the sparsity, the misspecification, and how rewards are asked for."""

    s: int
    epsilon: float
    noise: float | None = None
    delta: float = 0.05

    def __post_init__(self):
        check_integer("s", self.s, at_least=1)
        check("epsilon", self.epsilon, above=0)
        if self.noise is not None:
            check("noise", self.noise, above=0)
        check("delta", self.delta, above=0, below=1)

    def _start(self, actions, pull, most=None):
        actions = check_array("actions", np.asarray(actions, dtype=np.float64), ndim=2)
        check_integer("s", self.s, at_least=1, at_most=actions.shape[1])
        return actions, _Oracle(pull, len(actions), self.noise, self.epsilon / 2, self.delta, most)


@register(id="S159", source="arXiv:2303.16998", kind="model", wing="linear",
          claim="an O(epsilon)-optimal action from a number of queries that grows as d^s and not as exp(d)",
          example=lambda: SparseElimination(2, 0.1))  # fmt: skip
@dataclass(frozen=True)
class SparseElimination(_Bandit):
    """Find an O(epsilon)-optimal action by querying covers of all s-dimensional projections. Dong and Yang (2023).

    For every set M of s coordinates, actions that represent all others within ``radius`` on M are queried. Each M then
    has the parameter with the least largest error over all queries (a linear program); it is eliminated when that
    error exceeds ``consistent * epsilon``. Of those left the one that promises most is played: if the reward is within
    ``agree * epsilon`` of the promise the search ends, else the action joins the queries. The best action seen is
    returned.

    With exact rewards, actions and parameters (fitted ones too) up to length 1 and ``radius = epsilon``, the true
    support's errs by at most ``5 epsilon`` on any action (1 of its fit, 1 of the misspecification at the representative
    and 1 at the action, 1 each of the two parameters on the way between them), so it is never refuted with the default
    ``agree`` of 5, and the gap is at most ``10 epsilon``. Constants are ours, measured gaps are far smaller.

    Parameters
    ----------
    s : sparsity of the parameter. epsilon : largest misspecification.
    noise : ``None`` where rewards are exact; else the standard deviation (sub-Gaussian) of a pull. Every query is then
        the mean of enough pulls to be within ``epsilon / 2`` with probability ``1 - delta`` for all actions together,
        and this half is added to the two thresholds.
    radius : of the covers; ``None`` for epsilon.
    share : let actions queried for one support represent also for the next. ``False`` covers each support afresh, as
        the count of queries in the paper does.
    max_queries : refuse to ask for more.

    Raises
    ------
    InputError : bad settings, s above d, more than 200,000 supports, more queries than allowed, and rewards that no
        s-sparse parameter comes within the misspecification of, so that every support is eliminated.
    """

    radius: float | None = None
    consistent: float = 2.0
    agree: float = 5.0
    share: bool = True
    max_queries: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.radius is not None:
            check("radius", self.radius, above=0)
        check("consistent", self.consistent, at_least=1)
        check("agree", self.agree, at_least=self.consistent)
        if self.max_queries is not None:
            check_integer("max_queries", self.max_queries, at_least=1)

    def representatives(self, actions: Any) -> np.ndarray:
        """The actions that are queried before any reward is known, in order."""
        actions = check_array("actions", np.asarray(actions, dtype=np.float64), ndim=2)
        chosen: dict[int, None] = {}
        for M in self._supports(actions.shape[1]):
            start = list(chosen) if self.share else ()
            chosen |= dict.fromkeys(cover(actions[:, M], self.radius or self.epsilon, start).tolist())
        return np.array(list(chosen), dtype=int)

    def _supports(self, d):
        if math.comb(d, self.s) > _MOST_SUPPORTS:
            raise InputError(f"s: {self.s} of {d} coordinates make {math.comb(d, self.s)} supports, "
                             f"want at most {_MOST_SUPPORTS}; LassoBandit needs none of them")  # fmt: skip
        return [list(M) for M in itertools.combinations(range(d), self.s)]

    def run(self, actions: Any, pull: Callable) -> Found:
        """Choose among ``actions [N, d]``; ``pull(indices, times)`` gives the mean of so many rewards of each."""
        actions, oracle = self._start(actions, pull, self.max_queries)
        slack = 0.0 if self.noise is None else 0.5
        supports = self._supports(actions.shape[1])
        oracle.ask(self.representatives(actions))
        fits = [minimax_fit(actions[np.ix_(oracle.order, M)], oracle.rewards[oracle.order]) for M in supports]
        for rounds in itertools.count(1):
            left = [i for i, (_, error) in enumerate(fits) if error <= (self.consistent + slack) * self.epsilon + 1e-9]
            if not left:
                raise InputError(f"epsilon: got {self.epsilon}, but no {self.s}-sparse parameter is so near to rewards")
            promises = [actions[:, supports[i]] @ fits[i][0] for i in left]
            best = max(range(len(left)), key=lambda j: promises[j].max())
            played = int(promises[best].argmax())
            known = not np.isnan(oracle.rewards[played])
            oracle.ask([played])
            off = abs(oracle.rewards[played] - promises[best][played])
            if known or off <= (self.agree + slack) * self.epsilon:
                theta = np.zeros(actions.shape[1])
                theta[supports[left[best]]] = fits[left[best]][0]
                return oracle.result(theta, rounds)
            self._refit(actions, oracle, supports, fits, left, played)

    def _refit(self, actions, oracle, supports, fits, left, played):
        """A fit stays the best one when the new action is within its largest error."""
        for i in left:
            coef, error = fits[i]
            if abs(oracle.rewards[played] - actions[played, supports[i]] @ coef) > error:
                rows = np.ix_(oracle.order, supports[i])
                fits[i] = minimax_fit(actions[rows], oracle.rewards[oracle.order])


@register(id="S159", source="arXiv:2303.16998", kind="model", wing="linear", name="LassoBandit",
          claim="poly(s) queries suffice for an error of order s epsilon where features are well conditioned",
          example=lambda: LassoBandit(2, 0.1))  # fmt: skip
@dataclass(frozen=True)
class LassoBandit(_Bandit):
    """Few actions by chance, the Lasso on their rewards, and its best action. Dong and Yang (2023), good features.

    At ``alpha = 2 epsilon max_j mean_i |a_ij|``, at least twice what misspecification can correlate with a column, the
    Lasso errs by at most ``24 b^2 s epsilon / kappa`` in any prediction, for features within ``+-b`` and restricted
    eigenvalue kappa of the queried actions: Bickel, Ritov and Tsybakov (2009). Where it then keeps fewer than s
    columns, alpha is halved until it keeps s, but not below a 64th. The s largest are fitted anew, with the least
    largest error.

    Parameters
    ----------
    s, epsilon, noise, delta : see ``SparseElimination``.
    queries : actions asked for; ``None`` for ``8 s log(e d / s)``, rounded up, or all if there are fewer.
    seed : of the choice.
    """

    queries: int | None = None
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.queries is not None:
            check_integer("queries", self.queries, at_least=1)
        check_integer("seed", self.seed, at_least=0)

    def run(self, actions: Any, pull: Callable) -> Found:
        """As ``SparseElimination.run``; the last query is the best action of the fit."""
        actions, oracle = self._start(actions, pull)
        N, d = actions.shape
        oracle.ask(rng(self.seed, "lasso bandit").permutation(N)[: self._count(d)])
        X, y = actions[oracle.order], oracle.rewards[oracle.order]
        error = self.epsilon * (1.0 if self.noise is None else 1.5)
        theta = self._fit(X, y, error)
        oracle.ask([int((actions @ theta).argmax())])
        return oracle.result(theta, 1)

    def _count(self, d):
        return self.queries or math.ceil(8 * self.s * math.log(math.e * d / self.s))

    def _fit(self, X, y, error):
        theta, alpha = np.zeros(X.shape[1]), 2 * error * abs(X).mean(0).max()
        if alpha == 0 or not y.any():
            return theta
        for halvings in range(7):
            coef = solve(X, y, L1(alpha / 2**halvings), fit_intercept=False, tol=1e-10).coef
            if np.count_nonzero(coef) >= self.s:
                break
        kept = np.sort(np.argsort(-abs(coef), kind="stable")[: min(self.s, np.count_nonzero(coef))])
        if len(kept):
            theta[kept] = minimax_fit(X[:, kept], y)[0]
        return theta


@register(source="arXiv:1911.07676", kind="model", wing="linear", name="LeastSquaresBandit",
          example=lambda: LeastSquaresBandit(2, 0.1, queries=20))  # fmt: skip
@dataclass(frozen=True)
class LeastSquaresBandit(LassoBandit):
    """Actions by chance, least squares, and its best action: an error of order ``epsilon sqrt(d)``, whatever s is.

    Lattimore, Szepesvari and Weisz (2020). ``queries`` is by default ``4 d``; the rest as ``LassoBandit``.
    """

    def _count(self, d):
        return self.queries or 4 * d

    def _fit(self, X, y, error):
        return np.linalg.lstsq(X, y, rcond=None)[0]


class Guarantee(NamedTuple):
    """``method`` has a gap of at most ``gap`` after at most ``pulls`` rewards, which the budget pays for or not."""

    method: str
    pulls: float
    gap: float
    affordable: bool


def plan(
    d: int, s: int, epsilon: float, budget: float, *, conditioning: float = 1.0, noise: float | None = None,
    delta: float = 0.05, n_actions: int | None = None,
) -> list[Guarantee]:  # fmt: skip
    """What a budget of pulls can promise for actions and parameters of length at most 1, best promise first.

    ``SparseElimination``: ``C(d, s) (1 + 2 / epsilon)^s`` queries, or all actions, for ``10 epsilon``. ``LassoBandit``:
    ``8 s log(e d / s)`` queries for ``2 epsilon (1 + 24 conditioning s)``. ``LeastSquaresBandit`` on an optimal design:
    ``4 d log log d + 16`` queries for ``2 epsilon (1 + sqrt(2 d))``. Promises hold for the worst case, and with
    constants that are not the best; those with noise are half as much again. Less than ``10 epsilon`` takes ``exp(s)``
    queries for any method in the worst case, however large d is (``data.bandits.hidden_codeword_bandit``).

    Parameters
    ----------
    conditioning : ``b^2 / kappa`` of the features, see ``LassoBandit``; infinite where it is not known.
    n_actions : how many there are; none is queried twice.

    Raises
    ------
    InputError : counts below 1, s above d, sizes that are not above 0.
    """
    check_integer("d", d, at_least=1)
    check_integer("s", s, at_least=1, at_most=d)
    check("epsilon", epsilon, above=0)
    check("budget", budget, above=0)
    check("conditioning", conditioning, above=0)
    check("delta", delta, above=0, below=1)
    if noise is not None:
        check("noise", noise, above=0)
    most = math.inf if n_actions is None else check_integer("n_actions", n_actions, at_least=1)
    covers = math.comb(d, s) * (1 + 2 / epsilon) ** s
    ways = [
        ("SparseElimination", covers, 10 * epsilon),
        ("LassoBandit", math.ceil(8 * s * math.log(math.e * d / s)) + 1, 2 * epsilon * (1 + 24 * conditioning * s)),
        ("LeastSquaresBandit", math.ceil(4 * d * math.log(max(math.log(d), 1)) + 16) + 1,
         2 * epsilon * (1 + math.sqrt(2 * d))),
    ]  # fmt: skip
    found = []
    for name, queries, gap in ways:
        queries, times = min(queries, most), 1.0
        if noise is not None:
            times = math.ceil(8 * noise**2 * math.log(2 * min(most, max(queries, 2)) / delta) / epsilon**2)
            gap *= 1.5
        found.append(Guarantee(name, queries * times, gap, queries * times <= budget))
    return sorted(found, key=lambda g: (not g.affordable, g.gap))

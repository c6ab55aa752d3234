"""How many samples to buy from which source task, for one target task that has few: relevance by the Lasso.

Lives here: the relevance of sources, the split of a budget, the shared representation, and the rounds that join them.
Does not live here: the Lasso (``solvers.coordinate_descent``), pools of tasks (``data.multitask``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.linalg import solve
from scipy.optimize import linprog

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.parts.penalties import L1
from ellzero.registry import register
from ellzero.solvers import coordinate_descent

__all__ = ["ActiveSources", "relevance", "sample_sizes", "shared_representation"]


def relevance(heads: Any, target: Any, *, norm: str = "l1", alpha: float = 0.0, costs: Any = None) -> np.ndarray:
    """Weights ``nu [M]`` of the sources that make up the target: ``heads @ nu = target`` with the least norm.

    ``"l1"`` : ``min sum_m cost_m |nu_m|`` by a linear program, or with ``alpha`` above 0 the Lasso
    ``|heads nu - target|^2 / 2 + alpha sum_m cost_m |nu_m|``, for heads that are only estimated. ``"l2"`` : the least
    Euclidean norm, which spreads over all sources; ``alpha`` is then that of a ridge.

    Why the L1 norm: at N samples split as n, the error of a shared representation in the target's direction is about
    ``d target' (sum_m n_m w_m w_m')^-1 target``; its least value over n is ``d |nu|_1^2 / N``, reached where n_m is
    proportional to ``|nu_m|`` (Elfving, 1952).

    Parameters
    ----------
    heads : ``[k, M]``. target : ``[k]``. costs : ``[M]`` above 0, what a sample of each source costs; for ``"l1"``.

    Raises
    ------
    InputError : shapes that do not fit, a cost that is not above 0, a target that the heads do not span (alpha 0).

    Source: Wang, Chen, Jamieson and Du (2023), equation 2.
    """
    heads = check_array("heads", np.asarray(heads, dtype=np.float64), ndim=2)
    k, M = heads.shape
    target = check_array("target", np.asarray(target, dtype=np.float64), shape=(k,))
    check_choice("norm", norm, ("l1", "l2"))
    check("alpha", alpha, at_least=0)
    costs = np.ones(M) if costs is None else check_array("costs", np.asarray(costs, dtype=np.float64), shape=(M,))
    check("costs", float(costs.min()), above=0)
    if norm == "l2":
        return heads.T @ np.linalg.lstsq(heads @ heads.T + alpha * np.eye(k), target)[0]
    if alpha > 0:  # the solver's loss is a mean over the k rows
        return coordinate_descent.solve(
            heads, target, L1(alpha / k, weights=costs), fit_intercept=False, tol=1e-10
        ).coef
    found = linprog(np.tile(costs, 2), A_eq=np.hstack([heads, -heads]), b_eq=target)
    if found.x is None:
        raise InputError("target: is no combination of the heads, want alpha above 0")
    return found.x[:M] - found.x[M:]


def sample_sizes(nu: Any, budget: int, minimum: int = 0, *, power: float = 1.0, costs: Any = None) -> np.ndarray:
    """Whole numbers ``n_m``, at least ``minimum``, in proportion to ``|nu_m| ** power``, that use the budget up.

    The sum is the budget exactly (with costs: at most, and less than the dearest sample is left). What is left over
    by rounding goes to the largest remainders, ties to the lowest index; where nu is 0 everywhere all count alike.

    Parameters
    ----------
    nu : ``[M]``. budget : samples to buy, or cost to spend. minimum : of each source.
    power : 1 for the L1 norm; 2 is the rule of its predecessor with the L2 norm.
    costs : ``[M]`` above 0, of one sample each.

    Raises
    ------
    InputError : shapes that do not fit, costs that are not above 0, a budget that does not pay for the minimum.

    Source: Wang, Chen, Jamieson and Du (2023), algorithm 1: ``n_m = max(c N |nu_m| / |nu|_1, minimum)``, here
    with c such that the budget holds.
    """
    size = abs(check_array("nu", np.asarray(nu, dtype=np.float64), ndim=1)) ** check("power", power, above=0)
    costs = np.ones(len(size)) if costs is None else np.asarray(costs, dtype=np.float64)
    check_array("costs", costs, shape=size.shape)
    check("costs", float(costs.min()), above=0)
    check_integer("minimum", minimum, at_least=0)
    check("budget", budget, at_least=minimum * costs.sum())
    if not size.sum():
        size = np.ones_like(size)
    raised = np.zeros(len(size), dtype=bool)  # the minimum takes from the others until none of these is below it
    while True:
        rest = budget - minimum * costs[raised].sum()
        share = np.where(raised, minimum, size * rest / max((size * costs)[~raised].sum(), 1e-300))
        below = ~raised & (share < minimum)
        if not below.any():
            break
        raised |= below
    counts = np.floor(share + 1e-9).astype(np.int64)
    for m in np.argsort(-np.where(raised, -1, share - counts), kind="stable"):
        if size[m] > 0 and (raised.all() or not raised[m]) and (counts @ costs) + costs[m] <= budget + 1e-9:
            counts[m] += 1
    return counts


def shared_representation(
    tasks: Sequence[tuple[np.ndarray, np.ndarray]], k: int, *, ridge: float = 1e-6, steps: int = 100, tol: float = 1e-8
) -> tuple[np.ndarray, np.ndarray]:
    """``B [d, k]`` with orthonormal columns and heads ``[k, M]`` that minimise ``sum_m |y_m - X_m B w_m|^2``.

    Starts at the k largest directions of the tasks' own ridge fits, weighted by their samples, and alternates exact
    least squares in heads and in B until the loss falls by less than ``tol`` of itself.

    Parameters
    ----------
    tasks : per task ``X [n_m, d]`` and ``y [n_m]``, at least one row. ridge : on heads and B, relative to the samples.
    steps, tol : at most so many alternations; the fall of the loss, relative to that of zeros, that ends them.

    Raises
    ------
    InputError : no tasks, shapes that do not fit, a width k beyond d or the number of tasks.

    Source: Wang, Chen, Jamieson and Du (2023), the empirical risk minimiser of algorithm 1; the alternation is ours.
    """
    if not len(tasks):
        raise InputError("tasks: got none, want at least one (X, y)")
    d = np.asarray(tasks[0][0]).shape[-1]
    for m, (X, y) in enumerate(tasks):
        check_array(f"tasks[{m}]: X", np.asarray(X), shape=(None, d))
        check_array(f"tasks[{m}]: y", np.asarray(y), shape=(len(X),))
    check_integer("k", k, at_least=1, at_most=min(d, len(tasks)))
    grams = np.stack([X.T @ X for X, _ in tasks])
    moments = np.stack([X.T @ y for X, y in tasks])
    sizes = np.array([len(y) for _, y in tasks], dtype=float)
    total = sum(float(y @ y) for _, y in tasks)
    own = np.linalg.solve(grams + (d * np.eye(d)), moments[:, :, None])[:, :, 0]  # a unit ridge per direction
    B, before = np.linalg.svd((own * np.sqrt(sizes)[:, None]).T, full_matrices=False)[0][:, :k], np.inf
    for _ in range(steps):
        inner = B.T @ grams @ B + ridge * sizes[:, None, None] * np.eye(k)
        heads = np.linalg.solve(inner, (moments @ B)[:, :, None])[:, :, 0]
        outer = (heads[:, :, None] * heads[:, None, :]).reshape(len(tasks), -1)
        normal = (
            (grams.reshape(len(tasks), -1).T @ outer).reshape(d, d, k, k).transpose(0, 2, 1, 3).reshape(d * k, d * k)
        )
        normal[np.diag_indices(d * k)] += ridge * sizes.sum()
        B = solve(normal, (moments.T @ heads).ravel(), assume_a="pos").reshape(d, k)
        B, turn = np.linalg.qr(B)
        heads = heads @ turn.T
        coefs = heads @ B.T
        loss = total - 2 * (moments * coefs).sum() + ((grams @ coefs[:, :, None])[:, :, 0] * coefs).sum()
        if before - loss <= tol * max(total, 1e-300):
            break
        before = loss
    return B, heads.T


@register(id="S145", source="arXiv:2306.02556", kind="model", wing="linear",
          claim="buying samples by the L1 relevance of sources lowers the target's risk at equal cost",
          example=lambda: ActiveSources(2, 40))  # fmt: skip
class ActiveSources:
    """Learn a shared representation from the sources that matter to one target task, in rounds of growing budget.

    A first round buys alike from all. Each further round estimates heads and the target's relevance ``nu`` from all
    samples so far, and buys so that every source's total is in proportion to ``|nu|`` (``"l1"``), to ``nu^2``
    (``"l2"``, the predecessor) or alike (``"uniform"``). At last B is refitted on all, and the target's head on its
    few samples.

    Parameters
    ----------
    k : width of the representation. budget : samples over all rounds and sources (with costs: what they cost).
    rule : ``"l1"``, ``"l2"`` or ``"uniform"``.
    explore : share of the budget for the first round. rounds : after it, each twice as large as the one before.
    alpha : of the relevance, above 0 since heads are noisy: for ``"l1"`` the weight of the Lasso as a share of the
        least one that leaves no source in use, for ``"l2"`` the ridge as a share of the heads' mean square.
    ridge : of the target's head, relative to its samples.
    costs : ``[M]`` above 0 of one sample from each source; the Lasso weighs sources by them. ``None``: 1 each.

    Attributes
    ----------
    counts_ : ``[M]`` samples bought. explored_ : samples bought alike in the first round.
    relevance_ : ``[M]``, the last. basis_ : ``[d, k]``. head_ : ``[k]``. coef_ : ``[d]``, their product.

    Source: Wang, Chen, Jamieson and Du (2023), algorithms 1 and 2.
    """

    def __init__(
        self, k: int, budget: int, *, rule: str = "l1", explore: float = 0.3, rounds: int = 2, alpha: float = 0.1,
        ridge: float = 1e-3, costs: Any = None,
    ):  # fmt: skip
        self.k = check_integer("k", k, at_least=1)
        self.budget = check("budget", budget, at_least=1)
        self.rule = check_choice("rule", rule, ("l1", "l2", "uniform"))
        self.explore = check("explore", explore, above=0, at_most=1)
        self.rounds = check_integer("rounds", rounds, at_least=1)
        self.alpha = check("alpha", alpha, above=0, below=1)
        self.ridge = check("ridge", ridge, at_least=0)
        self.costs = costs

    def fit(self, sources: Sequence[Callable], X: Any, y: Any) -> ActiveSources:
        """Buy and learn.

        Parameters
        ----------
        sources : per task ``draw(n, round)`` giving ``X [n, d]`` and ``y [n]``; called at most once in a round.
        X, y : the target's samples, ``[n, d]`` and ``[n]``.

        Raises
        ------
        InputError : shapes that do not fit, also those that a source gives; a budget below one sample each.
        """
        X = check_array("X", np.asarray(X, dtype=np.float64), ndim=2)
        y = check_array("y", np.asarray(y, dtype=np.float64), shape=(len(X),))
        M = len(sources)
        costs = np.ones(M) if self.costs is None else np.asarray(self.costs, dtype=np.float64)
        check_array("costs", costs, shape=(M,))
        check("costs", float(costs.min()), above=0)
        alike = int(self.explore * self.budget / costs.sum())
        if alike < 1:
            raise InputError(f"budget: got {self.budget}, want at least {int(np.ceil(costs.sum() / self.explore))}, "
                             f"one sample of each of {M} sources in the first round")  # fmt: skip
        counts = np.full(M, alike)
        held = [draw(alike, 0) for draw in sources]
        if np.shape(held[0][0])[1:] != X.shape[1:]:
            raise InputError(f"sources: the first gives {np.shape(held[0][0])[-1]} columns, want {X.shape[1]}, as in X")
        self.explored_, left = alike * M, self.budget - alike * costs.sum()
        for r in range(1, self.rounds + 1):
            spent = self.budget - left * (2**self.rounds - 2**r) / (2**self.rounds - 1)
            self.relevance_ = self._relevance(held, X, y, costs)
            power = 2.0 if self.rule == "l2" else 1.0
            wanted = sample_sizes(self.relevance_, spent, 0, power=power, costs=costs)
            more = np.maximum(wanted - counts, 0)
            room = spent - counts @ costs
            if more @ costs > room:  # some sources have more than their share already
                more = sample_sizes(more, room, 0, costs=costs)
            for m in np.flatnonzero(more):
                new = sources[m](int(more[m]), r)
                held[m] = tuple(np.concatenate(pair) for pair in zip(held[m], new))
            counts = counts + more
        self.counts_ = counts
        self.basis_, _ = shared_representation(held, self.k)
        self.head_ = self._head(X, y, self.basis_)
        self.coef_ = self.basis_ @ self.head_
        return self

    def _relevance(self, held, X, y, costs) -> np.ndarray:
        if self.rule == "uniform":
            return np.ones(len(held))
        B, heads = shared_representation(held, self.k)
        target = self._head(X, y, B)
        if self.rule == "l2":
            return relevance(heads, target, norm="l2", alpha=self.alpha * (heads**2).sum() / self.k)
        largest = (abs(heads.T @ target) / costs).max()
        return relevance(heads, target, alpha=self.alpha * largest, costs=costs)

    def _head(self, X, y, B) -> np.ndarray:
        Z = X @ B
        return np.linalg.solve(Z.T @ Z + self.ridge * len(y) * np.eye(self.k), Z.T @ y)

    def predict(self, X: Any) -> np.ndarray:
        """The target for ``X [n, d]``: ``[n]``."""
        return check_array("X", np.asarray(X, dtype=np.float64), shape=(None, len(self.coef_))) @ self.coef_

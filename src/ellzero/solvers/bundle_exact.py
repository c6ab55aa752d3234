"""Exact steps of least-squares fits: the Gram matrix never changes, so one step on known columns is the last one.

Lives here: ``exact_steps``, an active-set solution of each fit in Gram space, in double precision, with the Cholesky
factor of each data set kept along its path. Does not live here: the active-set search (``kernels.active_set``), which
columns a fit uses (``bundle_descent``), elastic nets, whose factor would change with alpha (``kernels.bundle``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels.active_set import ActiveSet
from ellzero.solvers.bundle_metric import Curvature

__all__ = ["exact_steps"]

_KEPT = 1 << 26  # numbers in factors and own Gram matrices that are kept between steps
_FLOOR = 1e-10  # of l1: slopes and violations below it are none


class _Search:
    """An active-set search of one data set, on the columns ``ids`` of X that it uses.

    Where others with the same rows use many more columns it has a Gram matrix of its own, copied from theirs.
    """

    def __init__(self, metric: Curvature):
        self.metric, self.solver = metric, ActiveSet()
        self.own: np.ndarray | None = None
        self.known = np.zeros(len(metric.spot), dtype=bool)
        self.spots = np.empty(0, dtype=np.int64)

    @property
    def size(self) -> int:
        return self.solver.factor.size + (0 if self.own is None else self.own.size)

    def admit(self, wanted: np.ndarray) -> None:
        """Take in columns of X, all of which the shared Gram matrix knows."""
        metric = self.metric
        if self.own is None and 2 * len(wanted) > len(metric.ids):
            self.gram, self.spots = metric.gram, np.arange(len(metric.ids))
            return
        new = wanted[~self.known[wanted]]
        old, size = len(self.spots), len(self.spots) + len(new)
        self.known[new] = True
        if self.own is None and old:  # it used the shared one before
            self.solver.forget()
            new, old, size = wanted, 0, len(wanted)
        spots = np.concatenate([self.spots[:old], metric.spot[new]])
        if self.own is None or size > len(self.own):
            grown = np.empty((size + size // 4 + 16,) * 2)
            if old:
                grown[:old, :old] = self.own[:old, :old]
            self.own = grown
        if len(new):
            block = metric.gram[spots[old:, None], spots]
            self.own[old:size, :size] = block
            self.own[:old, old:size] = block[:, :old].T
        self.gram, self.spots = self.own, spots

    def step(self, bundle: Any, fits: Any, b: int, gradient: np.ndarray, gradient0: float) -> None:
        metric = self.metric
        place, tilt = bundle.pool.place[metric.ids[self.spots]], metric.tilt[self.spots]
        start = fits.w[b, place]
        w, slope = start.copy(), gradient[place]
        if metric.mass > 0:
            slope -= tilt * (gradient0 / metric.mass)
        bounds = np.full(len(w), fits.l1[b])
        self.solver.solve(self.gram, w, slope, bounds, np.zeros(len(w)), tol=_FLOOR * float(fits.l1[b]))
        fits.w[b, place] = w
        if metric.mass > 0:
            fits.b[b] -= (gradient0 + tilt @ (w - start)) / metric.mass


def exact_steps(
    bundle: Any, fits: Any, active: np.ndarray, wanted: np.ndarray, metrics: list[Curvature], which: np.ndarray,
    gradient: np.ndarray, gradient0: np.ndarray,
) -> None:  # fmt: skip
    """Move the fits ``active`` to their minima over the columns ``wanted`` ``[B, W]``, in place.

    ``gradient`` ``[B, W]`` and ``gradient0`` ``[B]`` are those of the losses at the fits. Fits of one data set take
    turns, from the largest alpha on: neighbours have nearly the same factor.
    """
    order = np.lexsort((-fits.l1[active], fits.task[active]))
    tasks, first = np.unique(fits.task[active][order], return_index=True)
    turns = np.split(order, first[1:])

    def run(part: slice) -> None:
        for task, turn in zip(tasks[part].tolist(), turns[part]):
            search = bundle.searches.get(task)
            if search is None or search.metric is not metrics[which[turn[0]]]:
                search = bundle.searches[task] = _Search(metrics[which[turn[0]]])
            search.admit(bundle.pool.ids[wanted[turn].any(0)])
            for i in turn:
                search.step(bundle, fits, active[i], gradient[i], gradient0[i])

    bundle.in_parts(run, len(tasks), 10 * int(wanted.sum(1).mean()) ** 2, rows=1)
    if sum(search.size for search in bundle.searches.values()) > _KEPT:
        bundle.searches.clear()

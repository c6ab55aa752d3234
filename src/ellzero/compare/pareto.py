"""From points to a frontier: one setting per method and budget, means and errors over seeds, the Pareto set.

Lives here: ``summarise``, ``pareto`` and ``nearest``. Does not live here: fitting, files or drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ellzero.errors import InputError, check
from ellzero.protocol import Point

__all__ = ["FrontierPoint", "choose_trial", "nearest", "pareto", "summarise"]


@dataclass(frozen=True)
class FrontierPoint:
    """One method at one budget: means over seeds at the settings with the best mean fidelity on validation data.

    ``realised_se`` and ``fidelity_se`` are standard errors over seeds (None for one seed). Seconds are means over
    seeds, ``nbytes`` too. ``trial`` is the candidate that was chosen and ``tuned`` its settings that differ from the
    defaults. ``pareto``: nothing else in the run keeps less and is at least as good, or is better and keeps no more.
    """

    method: str
    dense: bool
    target: float | None
    realised: float
    realised_se: float | None
    fidelity: float
    fidelity_se: float | None
    seeds: tuple[int, ...]
    fidelities: tuple[float, ...]
    fit_seconds: float
    run_seconds: float | None
    nbytes: float | None
    trial: int
    tuned: Mapping[str, Any]
    pareto: bool = False

    def row(self) -> dict[str, Any]:
        """The point as JSON."""
        return asdict(self)


def pareto(budgets: Sequence[float], fidelities: Sequence[float], better: Literal["higher", "lower"]) -> list[bool]:
    """Which points no other point dominates: none has at most their budget and at least their fidelity, one strictly.

    Equal points stay together. O(n log n).
    """
    x = np.asarray(budgets, dtype=np.float64)
    y = np.asarray(fidelities, dtype=np.float64) * (1.0 if better == "higher" else -1.0)
    inside = np.zeros(len(x), dtype=bool)
    best, best_at = -math.inf, math.nan
    for i in np.lexsort((-y, x)):
        if y[i] > best:
            best, best_at = y[i], x[i]
        inside[i] = y[i] == best and x[i] == best_at
    return inside.tolist()


def choose_trial(points: Iterable[Point], better: Literal["higher", "lower"]) -> list[Point]:
    """The points, one per seed, of the trial with the best mean fidelity; a trial that failed on fewer seeds wins.

    The first trial wins a draw. Empty if nothing was fitted.
    """
    sign = 1.0 if better == "higher" else -1.0
    trials: dict[int, list[Point]] = {}
    for point in points:
        if point.error is None:
            trials.setdefault(point.trial, []).append(point)
    if not trials:
        return []
    chosen = max(sorted(trials), key=lambda t: (len(trials[t]), sign * float(np.mean([p.fidelity for p in trials[t]]))))
    return sorted(trials[chosen], key=lambda point: point.seed)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _summary(points: Sequence[Point], dense: bool) -> FrontierPoint:
    realised, fidelities = [p.realised for p in points], [p.fidelity for p in points]
    return FrontierPoint(
        method=points[0].method,
        dense=dense,
        target=None if dense else points[0].target,
        realised=float(np.mean(realised)),
        realised_se=_error(realised),
        fidelity=float(np.mean(fidelities)),
        fidelity_se=_error(fidelities),
        seeds=tuple(p.seed for p in points),
        fidelities=tuple(fidelities),
        fit_seconds=_mean(p.fit_seconds for p in points),
        run_seconds=_mean(p.run_seconds for p in points),
        nbytes=_mean(p.nbytes for p in points),
        trial=points[0].trial,
        tuned=dict(points[0].tuned),
    )


def summarise(
    points: Iterable[Point], dense: Mapping[str, bool], better: Literal["higher", "lower"]
) -> list[FrontierPoint]:
    """The frontier of a run, by method and budget. Points that failed are left out here and shown elsewhere.

    Parameters
    ----------
    dense : for each method, whether it is a reference without a budget; those are never in the Pareto set.
    """
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.method, 0.0 if dense[point.method] else point.target), []).append(point)
    order = list(dense)
    chosen = [
        _summary(best, dense[method])
        for (method, _), group in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
        if (best := choose_trial(group, better))
    ]
    sparse = [i for i, point in enumerate(chosen) if not point.dense]
    inside = pareto([chosen[i].realised for i in sparse], [chosen[i].fidelity for i in sparse], better)
    for i, member in zip(sparse, inside):
        chosen[i] = FrontierPoint(**{**chosen[i].__dict__, "pareto": member})
    return chosen


def nearest(frontier: Sequence[FrontierPoint], method: str, budget: float | None) -> FrontierPoint:
    """The point of ``method`` that was asked for: same target, else the nearest realised budget by ratio.

    Raises
    ------
    InputError : the method has no fitted point, or it needs a budget and none came.
    """
    own = [point for point in frontier if point.method == method]
    if not own:
        raise InputError(f"method: {method!r} has no fitted point in this run")
    if own[0].dense:
        return own[0]
    known = ", ".join(f"{point.target:g}" for point in own)
    if budget is None:
        raise InputError(f"budget: got none, want one near {known}")
    check("budget", budget, above=0)
    exact = [point for point in own if point.target == budget]
    if exact:
        return exact[0]
    return min(own, key=lambda point: (abs(math.log(max(point.realised, 1e-300) / budget)), point.target))

"""The comparison itself: every method, the same number of trials, every budget, every seed.

Lives here: ``compare``. Does not live here: the frontier's arithmetic (``pareto``), files (``folder``), drawing
(``report``). Methods see the training and validation parts only; the test part is never asked for. Fits run one at a
time, so that seconds can be compared.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

import ellzero
from ellzero.compare.environment import environment
from ellzero.compare.folder import FORMAT, VERSION, RunFolder
from ellzero.compare.runs import Run
from ellzero.compare.specs import Contender, changed, contenders, digest, encode, task_record
from ellzero.errors import InputError, check, check_integer
from ellzero.protocol import Data, Fitted, Method, Point, Task

__all__ = ["compare", "distinct_candidates"]


@dataclass(frozen=True)
class _Job:
    """One candidate of one method on one seed, and the budgets still to fit."""

    contender: Contender
    candidate: Method
    trial: int
    seed: int
    targets: tuple[float, ...]
    keys: tuple[str, ...]


def compare(
    task: Task,
    methods: Any = None,
    budgets: Sequence[float] | None = None,
    *,
    seeds: int | Iterable[int] = 1,
    trials: int = 1,
    out: str | os.PathLike | None = None,
    progress: bool = False,
) -> Run:
    """Fit every method at every budget with equal tuning effort, and keep all of it.

    Parameters
    ----------
    task : the question: data, fidelity and budget unit.
    methods : names, ``module:object`` strings or Method objects; the task's ``default_methods`` (all, if it has
        none) where None.
    budgets : in the task's unit; the task's own where None.
    seeds : how many repetitions, or which seeds.
    trials : settings that each method may try; the same number for all. The first is the method as given.
    out : run folder; a run that was interrupted there goes on, more seeds, budgets or methods are added. In memory
        only where None.
    progress : show bars on stderr.

    Returns
    -------
    Run : per method and budget, means and standard errors over seeds of the settings that did best on validation data.

    Raises
    ------
    InputError : before anything is fitted or written. A fit that fails is a point with ``error``, not an exception.
    """
    chosen = contenders(task, methods)
    trials = check_integer("trials", trials, at_least=1)
    seeds = _seeds(seeds)
    parts = _Parts(task)
    wanted = _budgets(task, budgets, parts, seeds[0])
    candidates = {c.name: distinct_candidates(c.method, trials) for c in chosen}
    question = _question(task, chosen, candidates, wanted, seeds, trials)
    with RunFolder(out, question) as store:
        jobs = list(_jobs(question, chosen, candidates, store))
        with _bars(jobs, progress) as tick:
            for job in jobs:
                _run(job, parts.seed(job.seed), store, tick)
        here = environment()
        store.question["environments"] = [e for e in store.question["environments"] if e != here] + [here]
        store.save_question()
        run = Run(store.question, tuple(_ordered(question, chosen, candidates, store)), store.path)
        if store.path is not None:
            run.write()
    return run


class _Parts:
    """The data of one seed at a time: split once, not once per method."""

    def __init__(self, task: Task):
        self._task, self._seed, self._data = task, None, None

    def seed(self, seed: int) -> Data:
        if self._seed != seed:
            self._data = None  # let go of the old parts before the new ones are made
            self._data, self._seed = self._task.data(seed), seed
        return self._data


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if isinstance(seeds, Iterable) and not isinstance(seeds, str):
        chosen = [check_integer("seeds", seed, at_least=0) for seed in seeds]
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"seeds: got {chosen}, want one or more different seeds")
        return chosen
    return list(range(check_integer("seeds", seeds, at_least=1)))


def _budgets(task: Task, budgets: Sequence[float] | None, parts: _Parts, seed: int) -> list[float]:
    if budgets is None:
        budgets = list(task.budgets(parts.seed(seed)))
    elif isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError(f"budgets: got {budgets!r}, want a list of numbers")
    budgets = list(budgets)
    if not budgets:
        raise InputError("budgets: got none, want one or more")
    for value in budgets:
        check("budgets", value, above=0, below=math.inf, at_most=1 if task.unit == "density" else None)
    if hasattr(task, "check_budgets"):
        task.check_budgets(budgets)
    plain = {value.item() if isinstance(value, np.generic) else value for value in budgets}
    return sorted(int(value) if float(value).is_integer() else float(value) for value in plain)


def distinct_candidates(method: Method, trials: int) -> list[Method]:
    """The settings a method may try, without repetition: the same for every seed, so that seeds repeat a setting.

    A method without a tuning space gives one. The count is shown beside the trials that were asked for.
    """
    offered = list(method.candidates(trials, 0))
    if not offered or len(offered) > trials:
        raise InputError(f"method {method.name!r}: offers {len(offered)} candidates for {trials} trials")
    distinct = {digest(encode(candidate)): candidate for candidate in reversed(offered)}
    return [c for c in offered if distinct[digest(encode(c))] is c]


def _question(task, chosen, candidates, budgets, seeds, trials) -> dict[str, Any]:
    methods = {
        c.name: {
            "origin": c.origin,
            "spec": encode(c.method),
            "dense": bool(c.method.dense),
            "distinct": len(candidates[c.name]),
        }
        for c in chosen
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "ellzero": ellzero.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task_record(task),
        "methods": methods,
        "order": list(methods),
        "budgets": budgets,
        "seeds": seeds,
        "trials": trials,
        "environments": [environment()],
    }


def _key(question: dict[str, Any], candidate: Method, budget: float | None, seed: int, trial: int) -> str:
    """The hash that names a point: the question, the settings, the budget, the seed, the trial and the version."""
    describe = question["task"]["describe"]
    name = question["task"]["name"]
    return digest([name, describe, encode(candidate), budget, seed, trial, question["ellzero"]])


def _grid(question, chosen, candidates) -> Iterator[_Job]:
    """All jobs, seed by seed, with every target."""
    for seed in question["seeds"]:
        for contender in chosen:
            for trial, candidate in enumerate(candidates[contender.name]):
                targets = (0.0,) if contender.method.dense else tuple(question["budgets"])
                keys = tuple(
                    _key(question, candidate, None if contender.method.dense else t, seed, trial) for t in targets
                )
                yield _Job(contender, candidate, trial, seed, targets, keys)


def _jobs(question, chosen, candidates, store: RunFolder) -> Iterator[_Job]:
    """What is left to do: the budgets without a fitted point. A fit that failed before is tried again."""
    for job in _grid(question, chosen, candidates):
        left = [i for i, key in enumerate(job.keys) if key not in store.points or store.points[key].error]
        if left:
            targets, keys = tuple(job.targets[i] for i in left), tuple(job.keys[i] for i in left)
            yield _Job(job.contender, job.candidate, job.trial, job.seed, targets, keys)


def _ordered(question, chosen, candidates, store: RunFolder) -> Iterator[Point]:
    for job in _grid(question, chosen, candidates):
        yield from (store.points[key] for key in job.keys)


def _run(job: _Job, data: Data, store: RunFolder, tick: Callable[[str], None]) -> None:
    """Fit one candidate at its budgets; a failure takes one budget and the fit starts again behind it."""
    done = 0
    while done < len(job.targets):
        budgets = () if job.contender.method.dense else job.targets[done:]
        started = time.perf_counter()
        fits = None
        try:
            fits = iter(job.candidate.frontier(data, budgets, job.seed))
            while done < len(job.targets):
                fitted = _next(fits, done, len(job.targets))
                seconds = time.perf_counter() - started
                _measure(job, done, fitted, data, seconds, store)
                done += 1
                tick(job.contender.name)
                started = time.perf_counter()
        except Exception as error:
            store.append(_failed(job, done, time.perf_counter() - started, error, store))
            done += 1
            tick(job.contender.name)
        finally:
            if hasattr(fits, "close"):
                fits.close()


def _next(fits: Iterator[Fitted], done: int, wanted: int) -> Fitted:
    try:
        return next(fits)
    except StopIteration:
        raise RuntimeError(f"frontier ended after {done} of {wanted} budgets") from None


def _measure(job: _Job, i: int, fitted: Fitted, data: Data, seconds: float, store: RunFolder) -> None:
    """Score and time a fit on validation data; one that cannot be measured has failed, those behind it have not."""
    try:
        fidelity, realised = float(fitted.score(data.validation)), float(fitted.realised)
        if not (math.isfinite(fidelity) and math.isfinite(realised)):
            raise ValueError(f"fidelity {fidelity} at realised budget {realised}: not finite")
        run_seconds, nbytes = float(fitted.time(data.validation)), int(fitted.nbytes)
    except Exception as error:
        store.append(_failed(job, i, seconds, error, store))
        return
    target = realised if job.contender.method.dense else job.targets[i]
    store.append(_point(job, i, seconds, target, realised, fidelity, run_seconds, nbytes))


def _point(job, i, seconds, target, realised=None, fidelity=None, run_seconds=None, nbytes=None, error=None) -> Point:
    return Point(
        method=job.contender.name,
        target=target,
        realised=realised,
        fidelity=fidelity,
        fit_seconds=seconds,
        run_seconds=run_seconds,
        nbytes=nbytes,
        seed=job.seed,
        trial=job.trial,
        tuned=changed(job.candidate, job.contender.method),
        error=error,
        key=job.keys[i],
    )


def _failed(job: _Job, i: int, seconds: float, error: Exception, store: RunFolder) -> Point:
    store.log(
        f"{job.contender.name} at {job.targets[i]:g}, seed {job.seed}, trial {job.trial}\n"
        + "".join(traceback.format_exception(error))
    )
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return _point(job, i, seconds, job.targets[i], error=words[:500])


@contextlib.contextmanager
def _bars(jobs: Sequence[_Job], progress: bool) -> Iterator[Callable[[str], None]]:
    """A bar per method on stderr, counting fits; a function that counts one."""
    if not progress:
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        totals: dict[str, int] = {}
        for job in jobs:
            totals[job.contender.name] = totals.get(job.contender.name, 0) + len(job.targets)
        rows = {name: bars.add_task(name, total=total) for name, total in totals.items()}
        yield lambda name: bars.advance(rows[name])

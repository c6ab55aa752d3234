"""Bring one point home: refit it, read the test part once, write the wing's own artefact.

Lives here: ``take``. Does not live here: the artefact's format (the wing's ``save``) or running it (``applying``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import ellzero
from ellzero.compare.applying import CARD, FORMAT, VERSION, file_digest
from ellzero.compare.environment import environment
from ellzero.compare.pareto import FrontierPoint, nearest
from ellzero.compare.runner import distinct_candidates
from ellzero.compare.runs import Run
from ellzero.compare.specs import encode, rebuild_method, rebuild_task, task_record
from ellzero.errors import InputError, check_choice
from ellzero.io import atomic
from ellzero.protocol import Fitted, Method, Task

__all__ = ["Taken", "take"]

LEDGER = "taken.jsonl"
"""In the run folder: one line for each time the test part was read."""


@dataclass(frozen=True)
class Taken:
    """A model that was taken home; ``card`` is the content of its ``ellzero.json``."""

    folder: Path
    card: Mapping[str, Any]

    @property
    def fidelity(self) -> float:
        """Fidelity of the refitted model on the test part."""
        return self.card["test"]["fidelity"]


def take(
    run_dir: str | os.PathLike,
    method: str,
    budget: float | None = None,
    out: str | os.PathLike | None = None,
    refit: Literal["train", "all"] = "train",
) -> Taken:
    """Refit one point of a comparison, measure it on the untouched test part and write it to ``out``.

    The settings are those of the point: the candidate with the best mean validation fidelity over seeds. The seed is
    the one with the median validation fidelity.

    Parameters
    ----------
    run_dir : what ``compare`` wrote.
    method : a method of the run.
    budget : takes the point with this target, else the one whose realised budget is nearest by ratio. Not needed for
        a dense reference.
    out : a new or empty folder.
    refit : ``"train"``: on the training part, as compared; ``"all"``: on the training and validation parts.

    Raises
    ------
    InputError : no such run, method or budget; ``out`` is not empty; the task's data is not what was compared.
    """
    check_choice("refit", refit, ("train", "all"))
    target = _new_folder(out)
    run = Run.load(run_dir)
    check_choice("method", method, list(run.question["methods"]))
    point = nearest(run.frontier, method, budget)
    record = run.question["task"]
    task = rebuild_task(record, Path(run_dir))
    if task_record(task)["describe"] != record["describe"]:
        raise InputError(f"{run_dir}: the data or settings of the task changed since; compare again")
    chosen = _chosen_settings(task, run, point)
    seed = _median_seed(point)
    data = task.refit_data(seed, refit)
    fitted = next(iter(chosen.frontier(data, () if point.dense else (point.target,), seed)))
    with atomic.writing_folder("out", target) as folder:
        fitted.save(folder)
        test = _measure(task, fitted, refit, run, point)
        card = _card(task, record, point, chosen, fitted, seed, refit, test, folder)
        atomic.write_json(folder / CARD, card)
    return Taken(target, card)


def _new_folder(out: str | os.PathLike | None) -> Path:
    if out is None:
        raise InputError("out: got none, want a new folder")
    target = Path(out)
    if target.is_file():
        raise InputError(f"out: {target} is a file, want a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"out: {target} is not empty; want a new or empty folder")
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise InputError(f"out: {target} cannot be written, {parent} is not a writable folder")
    return target


def _existing_parent(path: Path) -> Path:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


def _chosen_settings(task: Task, run: Run, point: FrontierPoint) -> Method:
    base = rebuild_method(task, point.method, run.question["methods"][point.method])
    return distinct_candidates(base, run.question["trials"])[point.trial]


def _median_seed(point: FrontierPoint) -> int:
    ranked = sorted(zip(point.fidelities, point.seeds))
    return ranked[(len(ranked) - 1) // 2][1]


def _rows(part: Any) -> int | None:
    """How many rows a part of the data has, where that can be seen."""
    first = part[0] if isinstance(part, tuple | list) and len(part) else part
    shape = getattr(first, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else None


def _measure(task: Task, fitted: Fitted, refit: str, run: Run, point: FrontierPoint) -> dict[str, Any]:
    """Read the test part once, and say what the figure is of and how often this run's test part was read before."""
    ledger = run.folder / LEDGER
    earlier = len(ledger.read_text(encoding="utf-8").splitlines()) if ledger.exists() else 0
    line = {"method": point.method, "target": point.target, "refit": refit, "when": _now()}
    recorded = True
    try:
        with ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
    except OSError:
        recorded = False  # a run folder that may only be read
    part = task.test()
    fidelity, rows = float(fitted.score(part)), _rows(part)
    fitted_on = "the training part" if refit == "train" else "the training and validation parts"
    note = f"{task.fidelity} of this model, refitted on {fitted_on}, on the untouched test part"
    note += f" ({rows} rows)" if rows is not None else ""
    if earlier:
        note += f"; the test part of this run was read {earlier} times before, so do not choose by this figure"
    if not recorded:
        note += "; the run folder may only be read, so this reading is not counted there"
    return {"fidelity": fidelity, "name": task.fidelity, "rows": rows, "read_before": earlier, "note": note}


def _card(task, record, point, chosen, fitted, seed, refit, test, folder: Path) -> dict[str, Any]:
    files = {
        path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    if not files:
        raise InputError(f"method {point.method!r}: saved no file")
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": {key: record[key] for key in ("name", "class", "spec", "fidelity", "better", "unit", "of")},
        "method": point.method,
        "settings": encode(chosen),
        "tuned": dict(point.tuned),
        "budget": point.target,
        "realised": float(fitted.realised),
        "nbytes": int(fitted.nbytes),
        "validation": {"fidelity": point.fidelity, "se": point.fidelity_se, "seeds": list(point.seeds)},
        "test": test,
        "refit": refit,
        "seed": seed,
        "environment": environment(),
        "ellzero": ellzero.__version__,
        "taken": _now(),
        "files": files,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

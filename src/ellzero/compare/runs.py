"""A finished (or interrupted) comparison: its points, its frontier, and its files for other programs.

Lives here: ``Run``, read from a folder or handed out by ``compare``. Does not live here: fitting (``runner``) or
drawing (``report``).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ellzero.compare.folder import read_points, read_question
from ellzero.compare.pareto import FrontierPoint, summarise
from ellzero.errors import InputError
from ellzero.io import atomic
from ellzero.protocol import Point

__all__ = ["Effort", "Run"]


@dataclass(frozen=True)
class Effort:
    """What tuning a method cost: ``trials`` asked for, ``distinct`` settings among them, fits, failures, seconds."""

    method: str
    trials: int
    distinct: int
    fits: int
    failed: int
    fit_seconds: float


@dataclass(frozen=True)
class Run:
    """The result of a comparison.

    Attributes
    ----------
    question : what was asked: task, methods, budgets, seeds, trials, and where it ran.
    points : every fit, all trials and seeds, failed ones included.
    folder : where it is kept, or None.
    """

    question: Mapping[str, Any]
    points: Sequence[Point]
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Run:
        """Read a run folder, finished or not.

        Raises
        ------
        InputError : it is no run folder, or it is torn or newer.
        """
        path = Path(folder)
        question = read_question(path)
        points, _ = read_points(path / "points.jsonl")
        methods = question["methods"]
        return cls(question, tuple(p for p in points.values() if p.method in methods), path)

    @cached_property
    def frontier(self) -> list[FrontierPoint]:
        """One point per method and budget, with means and standard errors over seeds."""
        dense = {name: record["dense"] for name, record in self.question["methods"].items()}
        return summarise(self.points, dense, self.question["task"]["better"])

    @property
    def failures(self) -> list[Point]:
        """The fits that failed."""
        return [point for point in self.points if point.error is not None]

    @property
    def complete(self) -> bool:
        """Whether every fit that was asked for was tried."""
        return len(self.points) >= self.fits_wanted

    @property
    def fits_wanted(self) -> int:
        """How many fits were asked for."""
        budgets, seeds = len(self.question["budgets"]), len(self.question["seeds"])
        methods = self.question["methods"].values()
        return sum((1 if record["dense"] else budgets) * record["distinct"] * seeds for record in methods)

    @property
    def effort(self) -> list[Effort]:
        """Tuning effort by method."""
        rows = []
        for name, record in self.question["methods"].items():
            own = [point for point in self.points if point.method == name]
            failed = sum(point.error is not None for point in own)
            seconds = float(sum(point.fit_seconds for point in own))
            rows.append(Effort(name, self.question["trials"], record["distinct"], len(own) - failed, failed, seconds))
        return rows

    def as_json(self) -> dict[str, Any]:
        """What ``frontier.json`` holds."""
        task = {key: value for key, value in self.question["task"].items() if key not in ("spec", "class")}
        return {
            "format": "ellzero frontier",
            "version": 1,
            "task": task,
            "budgets": self.question["budgets"],
            "seeds": self.question["seeds"],
            "trials": self.question["trials"],
            "complete": self.complete,
            "frontier": [point.row() for point in self.frontier],
            "effort": [effort.__dict__ for effort in self.effort],
            "failures": [json.loads(point.to_json()) for point in self.failures],
            "environments": self.question["environments"],
        }

    def as_csv(self) -> str:
        """What ``frontier.csv`` holds: one row per point of the frontier."""
        names = [name for name in FrontierPoint.__dataclass_fields__ if name != "fidelities"]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "fidelity_name", "budget_unit", *names])
        task = self.question["task"]
        for point in self.frontier:
            row = point.row()
            row["seeds"] = " ".join(str(seed) for seed in row["seeds"])
            row["tuned"] = json.dumps(row["tuned"], sort_keys=True)
            writer.writerow([task["name"], task["fidelity"], task["unit"], *(_cell(row[name]) for name in names)])
        return file.getvalue()

    def write(self) -> None:
        """Write ``frontier.json`` and ``frontier.csv`` into the run folder."""
        if self.folder is None:
            raise InputError("out: this run was not given a folder")
        atomic.write_json(self.folder / "frontier.json", self.as_json())
        atomic.write_text(self.folder / "frontier.csv", self.as_csv())

    def report(self, path: str | os.PathLike | None = None) -> Path:
        """Write the HTML report, by default ``report.html`` in the run folder; where it is.

        Raises
        ------
        MissingExtraError : plotly is not installed (extra ``report``).
        """
        from ellzero.compare.report import render

        if path is None and self.folder is None:
            raise InputError("path: got none, and this run has no folder; want the name of an HTML file")
        target = Path(path) if path is not None else self.folder / "report.html"
        atomic.write_text(target, render(self))
        return target

    def __repr__(self) -> str:
        name, folder = self.question["task"]["name"], f" in {self.folder}" if self.folder else ""
        return f"<Run of {name!r}: {len(self.points)} of {self.fits_wanted} fits, {len(self.failures)} failed{folder}>"


def _cell(value: Any) -> Any:
    return "" if value is None else repr(value) if isinstance(value, float) else value

"""What the commands print: tables for people, JSON for programs.

Lives here: printing to stdout. Does not live here: options (``app``) or files (``outputs``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ellzero.protocol import Output

__all__ = ["as_json", "entries", "facts", "frontier", "output", "taken"]

ROWS = 10
"""Rows of an output that are printed where no file was asked for."""


def _console() -> Console:
    """To a terminal as wide as it is; to a file or pipe wide enough that nothing is cut."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def as_json(value: Any) -> None:
    """Print JSON, NumPy values included."""
    print(json.dumps(value, indent=2, sort_keys=True, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def frontier(run: Any) -> None:
    """The table of a comparison, and what failed."""
    from ellzero.compare.figures import entry_sizes, number, seconds, size

    task, each = run.question["task"], entry_sizes(run)
    table = Table(
        title=f"{task['name']}: {task['fidelity']} against {task['unit']} (validation part)", title_justify="left"
    )
    columns = (
        "method",
        "budget",
        "realised",
        task["fidelity"],
        "± error",
        "fit",
        "run",
        "size",
        *(each or ())[:1],
        "Pareto",
    )
    for name in columns:
        table.add_column(escape(name), justify="left" if name == "method" else "right")
    for place, p in enumerate(run.frontier):
        table.add_row(
            escape(p.method),
            "dense" if p.dense else number(p.target),
            number(p.realised),
            number(p.fidelity),
            number(p.fidelity_se),
            seconds(p.fit_seconds),
            seconds(p.run_seconds),
            size(p.nbytes),
            *([each[1][place]] if each else ()),
            "*" if p.pareto else "",
        )
    console = _console()
    console.print(table)
    for point in run.failures:
        text = f"failed: {point.method} at {number(point.target)}, seed {point.seed}: {point.error}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def taken(model: Any) -> None:
    """What a taken model is and how good it is."""
    from ellzero.compare.figures import number, size

    card = model.card
    budget = "dense" if card["budget"] is None else f"asked {number(card['budget'])}"
    print(f"{card['method']}: {number(card['realised'])} {card['task']['unit']} ({budget}), {size(card['nbytes'])}")
    print(f"test {card['test']['name']} {number(card['test']['fidelity'])}: {card['test']['note']}")
    print(f"model: {model.folder}")


def output(result: Output, path: Path | None, json_wanted: bool) -> None:
    """An output: where it went, or its JSON, or its first rows."""
    columns = {name: np.asarray(values) for name, values in result.columns.items()}
    rows = len(next(iter(columns.values()))) if columns else 0
    if json_wanted:
        as_json({"rows": rows, "note": result.note, "out": path and str(path), "columns": None if path else columns})
        return
    if path is None:
        table = Table(*[escape(name) for name in columns])
        for i in range(min(rows, ROWS)):
            table.add_row(*[escape(_cell(values[i])) for values in columns.values()])
        _console().print(table)
        if rows > ROWS:
            print(f"... {rows - ROWS} more rows; --out FILE.csv writes them all")
    if result.note:
        print(result.note)
    print(f"{rows} rows" + (f": {path}" if path is not None else ""))


def _cell(value: Any) -> str:
    if isinstance(value, np.floating | float):
        return f"{value:.6g}"
    if isinstance(value, np.ndarray):
        shown = ", ".join(f"{item:.4g}" if value.dtype.kind == "f" else str(item) for item in value.ravel()[:6])
        return f"[{shown}{', ...' if value.size > 6 else ''}]"
    return str(value)


def entries(rows: Sequence[Mapping[str, Any]]) -> None:
    """The registry's rows."""
    table = Table("kind", "name", "wing", "paper", "source", "what it is")
    for row in rows:
        cells = (row[key] or "" for key in ("kind", "name", "wing", "paper", "source", "summary"))
        table.add_row(*[escape(cell) for cell in cells])
    _console().print(table)
    print(f"{len(rows)} entries")


def facts(values: Mapping[str, Any]) -> None:
    """Names and values, one per line."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        print(f"{name:<{width}}  {_fact(value)}")


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)

"""The report's plots as plain values: traces, bands and axes. Colours are chosen by the page, per reader's scheme.

Lives here: ``figures``. Does not live here: HTML, scripts, or anything that imports a plotting library.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from ellzero.compare.pareto import FrontierPoint
from ellzero.compare.runs import Run

__all__ = ["entry_sizes", "figures", "number", "seconds", "size"]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon")


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def seconds(value: float | None) -> str:
    """Seconds with a unit that suits them."""
    if value is None:
        return "–"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def entry_sizes(run: Run) -> tuple[str, list[str]] | None:
    """``("bytes a posting", one per point)`` where the task says whose entries its unit counts, else None."""
    said = run.question["task"]["describe"]
    if "entries_of" not in said:
        return None
    each = [None if p.nbytes is None or not p.realised else p.nbytes / (p.realised * said["entries_of"])
            for p in run.frontier]  # fmt: skip
    return f"bytes a {said['entry']}", ["" if value is None else f"{value:.2f}" for value in each]


def size(value: float | None) -> str:
    """Bytes with a unit that suits them."""
    if value is None:
        return "–"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def _axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """Logarithmic where all are positive and they span more than one decade."""
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > 10
    axis: dict[str, Any] = {"title": title, "type": "log" if wide else "linear"}
    if wide:
        axis["tickformat"] = "~g"
        axis["dtick"] = "D2" if max(values) / min(values) < 300 else 1
    return axis


def _hover(point: FrontierPoint, run: Run) -> str:
    task = run.question["task"]
    spread = f" ± {number(point.fidelity_se)}" if point.fidelity_se is not None else ""
    asked = "dense reference" if point.dense else f"asked {number(point.target)}"
    lines = (
        f"<b>{html.escape(point.method)}</b>",
        f"{html.escape(task['fidelity'])} {number(point.fidelity)}{spread}",
        f"{number(point.realised)} {html.escape(task['unit'])} ({asked})",
        f"run {seconds(point.run_seconds)}, {size(point.nbytes)}",
    )
    return "<br>".join(lines)


def _trace(points: Sequence[FrontierPoint], x: Callable, run: Run, index: int, errors: bool) -> dict[str, Any]:
    again = index >= len(SYMBOLS)  # colours begin anew: hollow, on a dotted line
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if not points[0].dense else "markers",
        "name": html.escape(points[0].method),
        "x": [x(p) for p in points],
        "y": [p.fidelity for p in points],
        "text": [_hover(p, run) for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "colour": index,
        "line": {"width": 2, "dash": "dot" if again else "solid"},
        "marker": {"size": 9, "symbol": SYMBOLS[index % len(SYMBOLS)] + ("-open" if again else "")},
    }
    for axis, name in (("error_y", "fidelity_se"), ("error_x", "realised_se")):
        if errors and any(getattr(p, name) for p in points):
            trace[axis] = {"type": "data", "array": [getattr(p, name) or 0.0 for p in points], "visible": True}
    return trace


def _frontier(run: Run) -> dict[str, Any]:
    task, names = run.question["task"], list(run.question["methods"])
    sparse = [p for p in run.frontier if not p.dense]
    dense = [p for p in run.frontier if p.dense]
    traces = [
        _trace(own, lambda p: p.realised, run, names.index(name), errors=True)
        for name in names
        if (own := sorted((p for p in sparse if p.method == name), key=lambda p: p.realised))
    ]
    values = [p.realised for p in sparse] or [p.realised for p in dense]
    ends = [min(values), max(values)] if values else []
    for point in dense:
        traces.append(
            {
                **_trace([point], lambda p: p.realised, run, names.index(point.method), errors=False),
                "mode": "lines",
                "name": html.escape(point.method) + ("" if point.method == "dense" else " (dense)"),
                "x": ends,
                "y": [point.fidelity] * len(ends),
                "text": [_hover(point, run)] * len(ends),
                "line": {"width": 2, "dash": "dash"},
            }
        )
    best = sorted((p for p in sparse if p.pareto), key=lambda p: p.realised)
    if best:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "Pareto set",
                "x": [p.realised for p in best],
                "y": [p.fidelity for p in best],
                "hoverinfo": "skip",
                "colour": None,
                "marker": {"size": 17, "symbol": "circle-open"},
            }
        )
    bands = [
        {"low": p.fidelity - p.fidelity_se, "high": p.fidelity + p.fidelity_se, "colour": names.index(p.method)}
        for p in dense
        if p.fidelity_se
    ]
    kept = f"{task['unit']} ({task['of']})"
    return _figure("frontier", traces, bands, _axis(kept, values), task["fidelity"])


def _against(run: Run, identity: str, title: str, x: Callable[[FrontierPoint], float | None]) -> dict[str, Any]:
    names = list(run.question["methods"])
    shown = [p for p in run.frontier if x(p) is not None]
    traces = [
        _trace(own, x, run, names.index(name), errors=False)
        for name in names
        if (own := sorted((p for p in shown if p.method == name), key=x))
    ]
    for trace in traces:
        trace["mode"] = "markers"
    return _figure(identity, traces, [], _axis(title, [x(p) for p in shown]), run.question["task"]["fidelity"])


def _figure(identity: str, traces: list, bands: list, x: dict[str, Any], fidelity: str) -> dict[str, Any]:
    return {"id": identity, "traces": traces, "bands": bands, "x": x, "y": {"title": fidelity, "type": "linear"}}


def figures(run: Run) -> list[dict[str, Any]]:
    """Three plots: fidelity against realised budget, against run time, and against stored size."""
    milliseconds = lambda p: None if p.run_seconds is None else p.run_seconds * 1e3  # noqa: E731
    kibibytes = lambda p: None if p.nbytes is None else p.nbytes / 1024  # noqa: E731
    drawn = [
        _frontier(run),
        _against(run, "time", "run time (ms)", milliseconds),
        _against(run, "size", "stored size (KiB)", kibibytes),
    ]
    for figure in drawn:
        for trace in figure["traces"]:
            if any(not math.isfinite(value) for value in (*trace["x"], *trace["y"])):
                raise AssertionError(f"{trace['name']}: a point that is not finite got past the run")
    return drawn

"""The report: one HTML file that holds everything it needs and asks no host for anything.

Lives here: ``render``. Does not live here: the plots' content (``figures``), style and drawing (``page/``), numbers
(``pareto``). plotly (extra ``report``) gives only its script, which is put into the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ellzero.compare.figures import entry_sizes, figures, number, seconds, size
from ellzero.compare.pareto import FrontierPoint
from ellzero.compare.runs import Run
from ellzero.errors import require
from ellzero.io.pages import document

__all__ = ["render"]

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M3 2v11h11' fill='none' stroke='%230072b2' stroke-width='2'/%3E"
    "%3Ccircle cx='7' cy='9' r='1.6' fill='%23c8501e'/%3E"
    "%3Ccircle cx='12' cy='5' r='1.6' fill='%23c8501e'/%3E%3C/svg%3E"
)


def render(run: Run) -> str:
    """The report of a run as HTML.

    Raises
    ------
    MissingExtraError : plotly is not installed.
    """
    plotly = require("plotly.offline", "report", "it draws the report").get_plotlyjs()
    page = files("ellzero.compare") / "page"
    task = run.question["task"]
    sections = (_head, _plots, _points, _effort, _failures, _where)
    body = "\n".join(section(run) for section in sections)
    return document(
        f"{task['name']}: {task['fidelity']} against {task['unit']}",
        icon=ICON,
        css=(page / "page.css").read_text(encoding="utf-8"),
        body=f"<main>\n{body}\n</main>",
        data=("figures", figures(run)),
        scripts=[plotly, (page / "page.js").read_text(encoding="utf-8")],
    )


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, classes: Sequence[str]) -> str:
    """A table that scrolls sideways by itself. ``rows`` are cells of text; a row may start with its own class."""
    top = "".join(f'<th scope="col" class="{c}">{escape(name)}</th>' for name, c in zip(head, classes))
    lines = []
    for mark, first, *rest in rows:
        cells = f'<th scope="row" class="text">{escape(first)}</th>'
        cells += "".join(f'<td class="{c}">{escape(str(cell))}</td>' for cell, c in zip(rest, classes[1:]))
        lines.append(f'<tr class="{mark}">{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def _head(run: Run) -> str:
    question, task = run.question, run.question["task"]
    words = [
        f"{_count(len(question['methods']), 'method')}, {_count(len(question['seeds']), 'seed')}, "
        f"{_count(question['trials'], 'trial')} of settings for each method. Fidelity is {task['fidelity']} on the "
        f"validation part ({task['better']} is better"
        + (f", the best possible is {number(task['bound'])}" if task["bound"] is not None else "")
        + f"); the budget is {task['unit']} {task['of']}. The test part was not used."
    ]
    best = [p for p in run.frontier if p.pareto]
    lines = [f"<h1>{escape(task['name'])}: {escape(task['fidelity'])} against {escape(task['unit'])}</h1>"]
    lines += [f"<p>{escape(text)}</p>" for text in words]
    if not run.complete:
        lines.append(
            f'<p class="notice">Interrupted: {len(run.points)} of {run.fits_wanted} fits are here. '
            "The same command goes on from there.</p>"
        )
    if run.failures:
        lines.append(f'<p class="notice"><a href="#failures">{_count(len(run.failures), "fit")} failed.</a></p>')
    if best and run.folder is not None:
        point = best[len(best) // 2]
        command = ["ellzero", "take", str(run.folder), "--method", point.method, "--budget", f"{point.target:g}"]
        lines.append(f"<p>To take a point home: <code>{escape(shlex.join([*command, '--out', 'model']))}</code></p>")
    return "\n".join(lines)


def _plots(run: Run) -> str:
    task = run.question["task"]
    fidelity, unit = escape(task["fidelity"]), escape(task["unit"])
    errors = "Bars and bands are one standard error over seeds. " if len(run.question["seeds"]) > 1 else ""
    label = f"{fidelity} against realised {unit}, one line per method; the figures are in the table below"
    return f"""<h2>Fidelity against budget</h2>
<figure><div id="frontier" class="plot" role="img" aria-label="{label}"></div>
<figcaption>{errors}Rings mark the Pareto set: nothing else here keeps less and does as well. Budgets are the realised
ones. Dashed: the dense reference.</figcaption></figure>
<div class="pair">
<section><h2>Fidelity against run time</h2>
<figure><div id="time" class="plot" role="img" aria-label="{fidelity} against run time"></div>
<figcaption>One run: {escape(task["batch"])}; {escape(_threads(run))}.</figcaption></figure></section>
<section><h2>Fidelity against stored size</h2>
<figure><div id="size" class="plot" role="img" aria-label="{fidelity} against stored size"></div>
<figcaption>Size of the written artefact.</figcaption></figure></section>
</div>"""


def _threads(run: Run) -> str:
    threads = run.question["environments"][-1]["threads"]
    told = threads["torch"] if "torch" in threads else threads["OMP_NUM_THREADS"] or threads["cores"]
    return _count(int(told), "thread")


def settings(point: FrontierPoint) -> str:
    """The settings that were chosen, as far as they differ from the defaults."""
    return ", ".join(f"{name} = {_setting(value)}" for name, value in point.tuned.items()) or "defaults"


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict) and "class" in value:
        inner = ", ".join(f"{name}={_setting(item)}" for name, item in value["fields"].items())
        return f"{value['class'].rpartition('.')[2].rpartition(':')[2]}({inner})"
    return str(value) if not isinstance(value, dict) else json.dumps(value)


def _points(run: Run) -> str:
    task = run.question["task"]
    head = ["method", "asked", f"realised {task['unit']}", task["fidelity"], "± error", "seeds"]
    each = entry_sizes(run)
    head += ["fit", "run", "size", *(each or ())[:1], "Pareto", "settings chosen"]
    rows = [
        [
            "pareto" if p.pareto else "",
            p.method,
            "dense" if p.dense else number(p.target),
            number(p.realised),
            number(p.fidelity),
            number(p.fidelity_se),
            len(p.seeds),
            seconds(p.fit_seconds),
            seconds(p.run_seconds),
            size(p.nbytes),
            *([each[1][place]] if each else ()),
            "yes" if p.pareto else "",
            settings(p),
        ]
        for place, p in enumerate(run.frontier)
    ]
    caption = "Means over seeds, at the settings with the best mean fidelity on the validation part"
    return "<h2>Points</h2>\n" + _table(caption, head, rows, classes=["text", *[""] * (len(head) - 2), "long"])


def _effort(run: Run) -> str:
    rows = [["", e.method, e.trials, e.distinct, e.fits, e.failed, seconds(e.fit_seconds)] for e in run.effort]
    caption = "Every method was offered the same number of trials; one without settings to tune has a single one"
    head = ["method", "trials", "different settings", "fits", "failed", "time in fits"]
    return "<h2>Tuning effort</h2>\n" + _table(caption, head, rows, classes=["text", *[""] * 5])


def _failures(run: Run) -> str:
    title = '<h2 id="failures">Failures</h2>\n'
    if not run.failures:
        return title + "<p>None: every fit that was tried gave a point.</p>"
    rows = [["", p.method, number(p.target), p.seed, p.trial, p.error] for p in run.failures]
    head = ["method", "budget", "seed", "trial", "what happened"]
    caption = "Fits that gave no point; running the same command again tries them once more"
    return title + _table(caption, head, rows, classes=["text", "", "", "", "long"])


def _where(run: Run) -> str:
    blocks = []
    for here in run.question["environments"]:
        kernels, threads = here["kernels"], here["threads"]
        facts = {
            "processor": here["cpu"],
            "system": here["platform"],
            "threads": ", ".join(f"{name} {value}" for name, value in threads.items() if value is not None),
            "kernels": f"{kernels.get('isa')} ({'compiled' if kernels.get('live') else 'plain references'})",
            **here["versions"],
        }
        items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
        blocks.append(f"<dl>{items}</dl>")
    described = escape(json.dumps(run.question["task"]["describe"], sort_keys=True))
    seeds = ", ".join(str(seed) for seed in run.question["seeds"])
    return (
        "<h2>Where and what</h2>\n"
        f"<p>Started {escape(run.question['started'])}; seeds {seeds}. Fits ran one at a time.</p>\n"
        f"{''.join(blocks)}\n<p class='soft'>Task: <code>{described}</code></p>"
    )

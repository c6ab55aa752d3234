"""The report's content: self-contained, text as text, numbers with units, and said plainly when plotly is missing."""

import json
import re
import sys
from dataclasses import replace

import pytest
from small_task import Diabetes, Largest

from ellzero.compare import Run, compare
from ellzero.compare.figures import figures, number, seconds, size
from ellzero.compare.report import render
from ellzero.errors import MissingExtraError


@pytest.fixture(autouse=True)
def small_script(monkeypatch):
    """A stand-in for plotly's own script of several megabytes; the browser test uses the real one."""
    import plotly.offline

    monkeypatch.setattr(plotly.offline, "get_plotlyjs", lambda: "window.Plotly = {react() {}};")


def test_the_page_names_no_other_host(run):
    page = run.report().read_text()
    for attribute in ("src", "href"):
        for link in re.findall(rf'\b{attribute}="([^"]*)"', page):
            assert link.startswith(("data:", "#")), link
    assert "@import" not in page
    assert "url(" not in page
    assert 'name="viewport"' in page


def test_the_page_tells_effort_settings_versions_and_the_next_step(run):
    page = render(run)
    chosen = next(p for p in run.frontier if p.tuned)
    for words in (
        f"alpha = {number(chosen.tuned['alpha'])}", "Tuning effort", "None: every fit that was tried gave a point.",
        "3 trials of settings for each method", "ellzero take", "numpy", "The test part was not used",
    ):  # fmt: skip
        assert words in page


def test_failures_and_interruptions_are_shown(task, run):
    failed = replace(run.points[0], fidelity=None, realised=None, error="ValueError: <b>x</b>")
    page = render(Run(run.question, [failed, *run.points[2:]], run.folder))
    assert "1 fit failed." in page
    assert "ValueError: &lt;b&gt;x&lt;/b&gt;" in page
    assert "Interrupted: 37 of 38 fits are here." in page


def test_a_run_where_everything_failed_still_has_a_page(run):
    failed = [replace(p, fidelity=None, realised=None, error="no") for p in run.points]
    page = render(Run(run.question, failed))
    assert "38 fits failed." in page
    assert all(not figure["traces"] for figure in figures(Run(run.question, failed)))


def test_plots_hold_the_frontier(run):
    frontier, time, stored = figures(run)
    for name in ("largest", "at_random"):
        (trace,) = [t for t in frontier["traces"] if t["name"] == name]
        own = [p for p in run.frontier if p.method == name]
        assert trace["x"] == [p.realised for p in own]
        assert trace["y"] == [p.fidelity for p in own]
        assert trace["error_y"]["array"] == [p.fidelity_se for p in own]
    (rings,) = [t for t in frontier["traces"] if t["name"] == "Pareto set"]
    assert sorted(rings["y"]) == sorted(p.fidelity for p in run.frontier if p.pareto)
    dense = run.frontier[0]
    (band,) = frontier["bands"]
    assert (band["low"] + band["high"]) / 2 == pytest.approx(dense.fidelity)
    assert sum(len(t["x"]) for t in time["traces"]) == sum(len(t["x"]) for t in stored["traces"]) == len(run.frontier)
    json.dumps([frontier, time, stored], allow_nan=False)


@pytest.mark.parametrize(("budgets", "kind"), [([2, 10], "linear"), ([1, 10], "linear")])
def test_the_axis_is_linear_within_a_decade(task, budgets, kind):
    assert figures(compare(task, ["largest"], budgets))[0]["x"]["type"] == kind


def test_the_axis_is_logarithmic_beyond_a_decade(run):
    points = [replace(p, realised=p.realised * (100 if p.target > 5 else 1)) for p in run.points]
    assert figures(Run(run.question, points))[0]["x"]["type"] == "log"


def test_settings_that_are_objects_are_readable(task):
    from ellzero.compare.report import settings

    run = compare(task, ["largest"], [1])
    nested = {"a": {"class": "x.y:Cubic", "fields": {"power": 3.0}}, "b": {"float": "inf"}, "c": [1, 2], "d": True}
    point = replace(run.frontier[0], tuned=nested)
    assert settings(point) == 'a = Cubic(power=3), b = {"float": "inf"}, c = [1, 2], d = True'


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(None), "–"), (number(0.123456), "0.1235"), (seconds(None), "–"), (seconds(2.5), "2.5 s"),
        (seconds(0.0025), "2.5 ms"), (seconds(2.5e-6), "2.5 µs"), (seconds(2.5e-8), "25 ns"), (size(None), "–"),
        (size(12), "12 B"), (size(2048), "2 KiB"), (size(3 * 2**20), "3 MiB"), (size(2**30), "1 GiB"),
    ],
)  # fmt: skip
def test_numbers_have_units(shown, text):
    assert shown == text


def test_without_plotly_the_extra_is_named_and_the_numbers_are_there(tmp_path, monkeypatch):
    run = compare(Diabetes(), [Largest()], [1, 3], out=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ellzero\[report\]'"):
        run.report()
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "frontier.csv", "frontier.json", "points.jsonl", "run.json",
    ]  # fmt: skip

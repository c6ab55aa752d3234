"""A comparison: equal effort, no look at the test part, failures shown, interrupted runs go on without a second fit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from small_task import AtRandom, Diabetes, Largest, LeastSquares

import ellzero
from ellzero.compare import Run, compare
from ellzero.compare.runner import distinct_candidates
from ellzero.errors import InputError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fails(Largest):
    """Fails at one budget."""

    name: str = "fails"
    at: int = 3

    def frontier(self, data, budgets, seed):
        for k in budgets:
            if k == self.at:
                raise ArithmeticError("no\nconvergence")
            yield from super().frontier(data, [k], seed)


@dataclass(frozen=True)
class Counts(Largest):
    """Writes down each fit."""

    name: str = "counts"
    log: str = ""
    sleep: float = 0.0

    def candidates(self, trials, seed):
        return [self]

    def frontier(self, data, budgets, seed):
        for k in budgets:
            time.sleep(self.sleep)
            for fitted in super().frontier(data, [k], seed):
                with open(self.log, "a") as file:
                    file.write(f"{seed} {k:g}\n")
                yield fitted


def fits(log):
    return sorted(log.read_text().splitlines()) if log.exists() else []


def test_the_test_part_is_never_read(tmp_path):
    sealed = Diabetes(sealed=True)
    with pytest.raises(AssertionError):
        sealed.test()
    run = compare(sealed, seeds=2, trials=2, out=tmp_path / "run")
    run.report()
    assert run.complete
    assert not run.failures


def test_every_method_gets_the_same_trials(run):
    assert [(e.method, e.trials, e.distinct) for e in run.effort] == [
        ("least_squares", 3, 1), ("largest", 3, 3), ("at_random", 3, 3),
    ]  # fmt: skip
    assert len(run.points) == 2 * (1 + 3 * 3 + 3 * 3)
    assert {p.trial for p in run.points if p.method == "largest"} == {0, 1, 2}


def test_the_frontier_is_what_numpy_says(task, run):
    data = [task.data(seed) for seed in (0, 1)]
    scores = []
    for part in data:
        X, y = part.train
        A = np.column_stack([X, np.ones(len(X))])
        w = np.linalg.lstsq(A, y, rcond=None)[0]
        Z, t = part.validation
        scores.append(1 - np.mean((t - Z @ w[:-1] - w[-1]) ** 2) / np.var(t))
    dense = run.frontier[0]
    assert dense.fidelity == pytest.approx(np.mean(scores))
    assert dense.fidelity_se == pytest.approx(np.std(scores, ddof=1) / np.sqrt(2))
    assert dense.dense
    assert not dense.pareto


def test_choosing_beats_chance(run):
    by = {(p.method, p.target): p.fidelity for p in run.frontier}
    assert by["largest", 3] > by["at_random", 3]


def test_points_record_the_settings_that_were_tried(task, run):
    tried = distinct_candidates(Largest(), 3)
    for point in (p for p in run.points if p.method == "largest"):
        assert point.tuned == ({} if point.trial == 0 else {"alpha": tried[point.trial].alpha})


def test_a_method_without_settings_is_fitted_once():
    assert len(distinct_candidates(LeastSquares(), 9)) == 1
    with pytest.raises(InputError, match="offers 2 candidates for 1 trials"):
        distinct_candidates(type("Greedy", (), {"name": "g", "candidates": lambda s, t, seed: [s, s]})(), 1)


def test_the_same_question_in_memory_gives_the_same_points(task, run):
    again = compare(task, seeds=2, trials=3)

    def strip(p):
        return (p.key, p.method, p.realised, p.fidelity, p.trial, p.seed, p.tuned)

    assert [strip(p) for p in again.points] == [strip(p) for p in run.points]
    assert again.folder is None
    with pytest.raises(InputError, match="no folder"):
        again.report()
    with pytest.raises(InputError, match="not given a folder"):
        again.write()


def test_a_run_reads_back(run):
    back = Run.load(run.folder)
    assert back.frontier == run.frontier
    assert sorted(p.key for p in back.points) == sorted(p.key for p in run.points)
    assert "38 of 38" in repr(back)
    content = json.loads((run.folder / "frontier.json").read_text())
    assert [row["fidelity"] for row in content["frontier"]] == [p.fidelity for p in run.frontier]
    lines = (run.folder / "frontier.csv").read_text().splitlines()
    assert len(lines) == 1 + len(run.frontier)
    assert lines[0].startswith("task,fidelity_name,budget_unit,method,dense,target,realised")


def test_a_failure_is_a_point_and_the_rest_goes_on(task, tmp_path):
    run = compare(task, [Fails(), "largest"], [1, 3, 5], out=tmp_path / "run")
    (failure,) = run.failures
    assert (failure.method, failure.target, failure.fidelity) == ("fails", 3, None)
    assert failure.error == "ArithmeticError: no convergence"
    assert [p.target for p in run.frontier if p.method == "fails"] == [1, 5]
    assert "ArithmeticError" in (tmp_path / "run" / "failures.log").read_text()
    assert run.effort[0].failed == 1
    assert run.complete


@pytest.mark.parametrize("wrong", ["ends", "score", "nan"])
def test_a_fit_that_cannot_be_measured_has_failed(task, wrong):
    class Odd(Largest):
        def frontier(self, data, budgets, seed):
            for fitted in super().frontier(data, budgets, seed):
                if fitted.realised == 3:
                    if wrong == "ends":
                        return
                    answer = {"score": lambda s, part: 1 / 0, "nan": lambda s, part: float("nan")}[wrong]
                    fitted = type("Bad", (type(fitted),), {"score": answer})(fitted.coef, fitted.intercept)
                yield fitted

    run = compare(task, [Odd(name="odd")], [1, 3, 5])
    words = {"ends": "frontier ended after 1 of 3", "score": "ZeroDivisionError", "nan": "not finite"}
    assert words[wrong] in run.failures[0].error
    assert [p.target for p in run.frontier] == [1, 5]


def test_a_failed_fit_is_tried_again_and_no_other(task, tmp_path):
    log = tmp_path / "log"
    compare(task, [Fails(), Counts(log=str(log))], [1, 3], out=tmp_path / "run")
    before = (tmp_path / "run" / "points.jsonl").read_text().splitlines()
    run = compare(task, [Fails(), Counts(log=str(log))], [1, 3], out=tmp_path / "run")
    after = (tmp_path / "run" / "points.jsonl").read_text().splitlines()
    assert len(after) == len(before) + 1
    assert len(run.failures) == 1
    assert fits(log) == ["0 1", "0 3"]


def test_more_seeds_and_budgets_are_added_to_a_run(task, tmp_path):
    log = tmp_path / "log"
    compare(task, [Counts(log=str(log))], [1, 3], out=tmp_path / "run")
    run = compare(task, [Counts(log=str(log)), "largest"], [1, 3, 5], seeds=2, out=tmp_path / "run")
    assert fits(log) == ["0 1", "0 3", "0 5", "1 1", "1 3", "1 5"]
    assert run.complete
    assert len(run.points) == 12


def test_a_torn_last_line_is_dropped_and_redone(task, tmp_path):
    log = tmp_path / "log"
    out = tmp_path / "run"
    whole = compare(task, [Counts(log=str(log))], [1, 3], out=out)
    lines = (out / "points.jsonl").read_bytes()
    for torn in (lines[:-9], lines[:-9] + b"\n"):
        (out / "points.jsonl").write_bytes(torn)
        log.unlink()
        again = compare(task, [Counts(log=str(log))], [1, 3], out=out)
        assert fits(log) == ["0 3"]
        assert [p.fidelity for p in again.points] == [p.fidelity for p in whole.points]
        assert len((out / "points.jsonl").read_text().splitlines()) == 2


def test_a_damaged_line_in_the_middle_is_refused(task, tmp_path):
    out = tmp_path / "run"
    compare(task, ["largest"], [1, 3], out=out)
    lines = (out / "points.jsonl").read_text().splitlines()
    (out / "points.jsonl").write_text("{broken\n" + lines[1] + "\n")
    with pytest.raises(InputError, match="line 1 is damaged"):
        compare(task, ["largest"], [1, 3], out=out)
    assert (out / "points.jsonl").read_text().startswith("{broken")


def test_ctrl_c_leaves_a_run_that_goes_on(task, tmp_path):
    log = tmp_path / "log"

    class Stops(Counts):
        def frontier(self, data, budgets, seed):
            for i, fitted in enumerate(super().frontier(data, budgets, seed)):
                yield fitted
                if i == 1 and not (tmp_path / "second").exists():
                    raise KeyboardInterrupt

    method = Stops(log=str(log))
    with pytest.raises(KeyboardInterrupt):
        compare(task, [method], [1, 3, 5], out=tmp_path / "run")
    partial = Run.load(tmp_path / "run")
    assert not partial.complete
    assert [p.target for p in partial.points] == [1, 3]
    (tmp_path / "second").touch()
    assert compare(task, [method], [1, 3, 5], out=tmp_path / "run").complete
    assert fits(log) == ["0 1", "0 3", "0 5"]


KILLED = """
import sys
sys.path.insert(0, {here!r})
from small_task import Diabetes
from test_runner import Counts
from ellzero.compare import compare
compare(Diabetes(), [Counts(log={log!r}, sleep=0.15)], [1, 2, 3, 4, 5, 6, 7, 8], seeds=2, out={out!r})
"""


def test_a_killed_run_goes_on_and_fits_nothing_twice(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    code = KILLED.format(here=str(HERE), log=str(log), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    points = out / "points.jsonl"
    deadline = time.monotonic() + 300
    while not (points.exists() and points.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = points.read_text().splitlines()
    assert 5 <= len(kept) < 16
    subprocess.run([sys.executable, "-c", code], check=True)
    assert points.read_text().splitlines()[: len(kept)] == kept
    everything = [f"{seed} {k}" for seed in (0, 1) for k in range(1, 9)]
    # the kill may fall between a fit and its line: that fit alone may be there twice
    assert set(fits(log)) == set(everything)
    assert len(fits(log)) <= len(everything) + 1
    fresh = compare(Diabetes(), [Counts(log=str(tmp_path / "other"))], list(range(1, 9)), seeds=2)
    resumed = Run.load(out)
    assert resumed.complete

    def strip(run):
        return sorted((p.seed, p.target, p.realised, p.fidelity) for p in run.points)

    assert strip(resumed) == strip(fresh)


def test_two_processes_do_not_write_one_folder(task, tmp_path):
    from ellzero.compare.folder import RunFolder

    run = compare(task, ["largest"], [1], out=tmp_path / "run")
    with RunFolder(tmp_path / "run", run.question), pytest.raises(InputError, match="another process is writing"):
        compare(task, ["largest"], [1], out=tmp_path / "run")


def test_a_folder_with_something_else_is_refused_and_stays(task, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is no run folder"):
        compare(task, ["largest"], [1], out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="is a file, want a folder"):
        compare(task, ["largest"], [1], out=tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": Diabetes(shuffle=1)}, "its task has shuffle = 0, not 1"),
        ({"trials": 2}, "it gave each method 1 trials, not 2"),
        ({"budgets": [1, 5]}, "its budgets are"),
        ({"seeds": [1]}, "its seeds are"),
        ({"methods": ["at_random"]}, "it also compares 'largest'"),
        ({"methods": [Largest(alpha=2.0)]}, "its 'largest' has other settings"),
    ],
)
def test_another_question_is_refused_and_results_stay(task, tmp_path, change, words):
    out = tmp_path / "run"
    asked = {"task": task, "methods": ["largest"], "budgets": [1, 3], "seeds": 1, "trials": 1}
    compare(**asked, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=words):
        compare(**{**asked, **change}, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "torn or foreign"),
        ('{"format": "other"}', "is not an ellzero run"),
        ('{"format": "ellzero run", "version": 99}', "has format version 99"),
    ],
)
def test_a_torn_foreign_or_newer_run_is_refused(task, tmp_path, content, words):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=words):
        compare(task, ["largest"], [1], out=tmp_path)
    with pytest.raises(InputError, match=words):
        Run.load(tmp_path)
    assert (tmp_path / "run.json").read_text() == content


def test_another_version_of_ellzero_is_refused(task, tmp_path, monkeypatch):
    compare(task, ["largest"], [1], out=tmp_path / "run")
    monkeypatch.setattr(ellzero, "__version__", "9.0")
    with pytest.raises(InputError, match="it was made by ellzero"):
        compare(task, ["largest"], [1], out=tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_folder_is_refused(task, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    for out in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(InputError, match="cannot be written"):
            compare(task, ["largest"], [1], out=out)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": []}, "methods: got none"),
        ({"methods": ["larges"]}, "did you mean 'largest'"),
        ({"methods": ["largest", Largest()]}, "got 'largest' twice"),
        ({"methods": [3]}, "is no method, it lacks name"),
        ({"budgets": []}, "budgets: got none"),
        ({"budgets": [0]}, "budgets: got 0, want a number above 0"),
        ({"budgets": [-1]}, "above 0"),
        ({"budgets": [float("nan")]}, "NaN"),
        ({"budgets": [float("inf")]}, "below inf"),
        ({"budgets": [11]}, "from 1 to 10"),
        ({"budgets": "5"}, "want a list of numbers"),
        ({"budgets": 5}, "want a list of numbers"),
        ({"budgets": ["5"]}, "want a number"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"seeds": []}, "one or more different seeds"),
        ({"seeds": [1, 1]}, "one or more different seeds"),
        ({"seeds": "3"}, "whole number"),
        ({"trials": 0}, "trials: got 0"),
        ({"trials": 1.5}, "whole number"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(task, tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        compare(task, **given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_density_is_at_most_one():
    class Density(Diabetes):
        unit: ClassVar[str] = "density"

    with pytest.raises(InputError, match="at most 1"):
        compare(Density(), budgets=[1.5])


def test_budgets_are_sorted_and_unique(task):
    run = compare(task, {"mine": Largest(name="mine")}, np.array([5.0, 1.0, 5.0]))
    assert run.question["budgets"] == [1, 5]
    assert [p.method for p in run.points] == ["mine", "mine"]


def test_the_package_can_be_called(task):
    assert ellzero.compare(task, [AtRandom()], [1]).complete
    assert set(dir(ellzero.compare)) >= {"Run", "apply", "compare", "take"}
    with pytest.raises(AttributeError):
        ellzero.compare.nothing  # noqa: B018


def test_bars_are_drawn_on_stderr(task, capsys):
    compare(task, ["largest"], [1], progress=True)
    assert capsys.readouterr().out == ""

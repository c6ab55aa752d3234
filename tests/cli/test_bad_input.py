"""Every bad input: one line on stderr that names it, exit code 2, no traceback, existing results untouched."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

TASK = "small_task:Diabetes"
BAD = [
    (["compare", "regresion"], "did you mean 'regression'"),
    (["compare", "no_module_here:Task"], "no module 'no_module_here'"),
    (["compare", "json:dumps"], "is no task"),
    (["compare"], "missing argument 'TASK'"),
    (["compare", TASK, "--methods", "larges"], "did you mean 'largest'"),
    (["compare", TASK, "--methods", ""], "methods: got none"),
    (["compare", TASK, "--methods", "no_module_here:M"], "no module 'no_module_here'"),
    (["compare", TASK, "--budgets", "0"], "above 0"),
    (["compare", TASK, "--budgets", "-3"], "above 0"),
    (["compare", TASK, "--budgets", "11"], "from 1 to 10"),
    (["compare", TASK, "--budgets", "2,many"], "--budgets: got 'many'"),
    (["compare", TASK, "--budgets", ""], "--budgets: got ''"),
    (["compare", TASK, "--budgets", "nan"], "NaN"),
    (["compare", TASK, "--budgets", "inf"], "below inf"),
    (["compare", TASK, "--seeds", "0"], "seeds: got 0"),
    (["compare", TASK, "--seeds", "x"], "'--seeds'"),
    (["compare", TASK, "--trials", "0"], "trials: got 0"),
    (["compare", TASK, "--bugets", "3"], "no such option --bugets; did you mean '--budgets'"),
    (["compare", TASK, "--option", "shufle=3"], "did you mean 'shuffle'"),
    (["compare", TASK, "--option", "shuffle"], "want key=value"),
    (["compare", TASK, "--option", "shuffle=1", "--option", "shuffle=2"], "'shuffle' twice"),
    (["compare", TASK, "--data", "x.csv"], "this task has its own"),
    (["compare", TASK, "--out", "file"], "is a file"),
    (["compare", TASK, "--out", "."], "is not empty and is no run folder"),
    (["compare", TASK, "--out", "/proc/none"], "cannot be written"),
    (["compar", TASK], "no such command 'compar'; did you mean 'compare'"),
    (["take", "nowhere", "--method", "x", "--budget", "3", "--out", "m"], "no such folder"),
    (["take", "run", "--method", "larges", "--budget", "3", "--out", "m"], "did you mean 'largest'"),
    (["take", "run", "--method", "largest", "--budget", "0", "--out", "m"], "above 0"),
    (["take", "run", "--method", "largest", "--out", "m"], "want one near"),
    (["take", "run", "--method", "largest", "--budget", "3"], "missing option '--out'"),
    (["take", "run", "--method", "largest", "--budget", "3", "--out", "m", "--refit", "al"], "did you mean 'all'"),
    (["take", "run", "--method", "largest", "--budget", "3", "--out", "run"], "is not empty"),
    (["apply", "run", "x.npy"], "is no taken model"),
    (["apply", "model", "absent.npy"], "no such file"),
    (["apply", "model", "x.npy", "--out", "y.xls"], "want one of .csv, .npz, .jsonl"),
    (["apply", "model", "x.npy", "--out", "absent/y.csv"], "not a writable folder"),
    (["apply", "model", "x.npy", "--out", "folder.csv"], "is a folder"),
    (["methods", "--kind", "penalti"], "did you mean 'penalty'"),
    (["config", "--jsn"], "did you mean '--json'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a model, a file and rows."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
    from small_task import Diabetes

    from ellzero.compare import compare, take

    folder = tmp_path_factory.mktemp("place")
    compare(Diabetes(), ["largest"], [1, 3], out=folder / "run")
    take(folder / "run", "largest", 3, folder / "model")
    (folder / "file").write_text("mine")
    (folder / "folder.csv").mkdir()
    np.save(folder / "x.npy", np.ones((2, 10)))
    return folder


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("arguments", "words"), BAD, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_one_line_and_code_2(ellzero, place, monkeypatch, arguments, words):
    monkeypatch.chdir(place)
    before = snapshot(place)
    code, _, err = ellzero(*arguments)
    assert code == 2, err
    assert words in err
    assert err.startswith("ellzero: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert snapshot(place) == before


def test_a_torn_model_is_refused(ellzero, place, monkeypatch):
    monkeypatch.chdir(place)
    whole = (place / "model" / "coef.npy").read_bytes()
    try:
        (place / "model" / "coef.npy").write_bytes(whole[:-8])
        code, _, err = ellzero("apply", "model", "x.npy")
    finally:
        (place / "model" / "coef.npy").write_bytes(whole)
    assert (code, err.count("\n")) == (2, 1)
    assert "coef.npy: is not the file that was taken" in err


def test_another_question_in_the_same_folder(ellzero, place, monkeypatch):
    monkeypatch.chdir(place)
    before = snapshot(place)
    code, _, err = ellzero("compare", TASK, "--option", "shuffle=5", "--out", "run")
    assert code == 2
    assert "run holds another comparison: its task has shuffle = 0, not 5" in err
    assert snapshot(place) == before


def test_a_missing_extra_names_its_remedy(ellzero, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, out, err = ellzero("compare", TASK, "--methods", "largest", "--budgets", "3", "--out", "run")
    assert code == 2
    assert "pip install 'ellzero[report]'" in err
    assert out.splitlines()[-1] == "frontier: run/frontier.json"


def test_an_error_of_ours_is_one_line_too(ellzero, monkeypatch):
    from small_task import Diabetes

    def broken(self, seed):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Diabetes, "data", broken)
    code, _, err = ellzero("compare", TASK, "--budgets", "3")
    assert (code, err) == (1, "ellzero: RuntimeError: two lines (ellzero --debug ... shows the traceback)\n")
    with pytest.raises(RuntimeError, match="two"):
        ellzero("--debug", "compare", TASK, "--budgets", "3")


SLOW = """
import os, time
from dataclasses import dataclass
from small_task import Largest

@dataclass(frozen=True)
class Slow(Largest):
    name: str = "slow"
    def frontier(self, data, budgets, seed):
        for k in budgets:
            if k > 1:
                time.sleep(float(os.environ["PAUSE"]))
            yield from super().frontier(data, [k], seed)
"""


def listening():
    """A shell starts what runs in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_says_how_to_go_on(tmp_path):
    (tmp_path / "slow_here.py").write_text(SLOW)
    path = str(Path(__file__).parents[1] / "compare")
    command = [sys.executable, "-m", "ellzero.cli", "compare", TASK, "--methods", "slow_here:Slow"]
    command += ["--budgets", "1,2,3,4,5,6,7,8,9,10", "--out", "run", "--quiet"]
    run = {"cwd": tmp_path, "env": {"PYTHONPATH": path, "PATH": "/usr/bin", "PAUSE": "120"}, "text": True}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=listening, **run)
    points = tmp_path / "run" / "points.jsonl"
    deadline = time.monotonic() + 300
    while not (points.exists() and points.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "ellzero: interrupted; the same command with --out run goes on from there\n"
    done = subprocess.run(command, capture_output=True, **{**run, "env": {**run["env"], "PAUSE": "0"}})
    assert done.returncode == 0, done.stderr
    assert len(points.read_text().splitlines()) == 10

"""The commands do what the functions do, and print it for people or as JSON."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from small_task import Diabetes

import ellzero as library
from ellzero import registry
from ellzero.compare import Run, apply

TASK = "small_task:Diabetes"


def test_from_a_comparison_to_predictions(ellzero, tmp_path):
    code, out, err = ellzero("compare", TASK, "--seeds", 2, "--trials", 2, "--budgets", "3,10", "--out", "run")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "report: run/report.html"
    run = Run.load("run")
    assert run.complete
    for point in run.frontier:
        assert f"{point.fidelity:.4g}" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Plotly" in page

    code, out, err = ellzero("take", "run", "--method", "largest", "--budget", 3, "--out", "model", "--refit", "all")
    assert (code, err) == (0, "")
    card = json.loads((tmp_path / "model" / "ellzero.json").read_text())
    assert f"test R2 {card['test']['fidelity']:.4g}" in out
    assert "untouched test part (102 rows)" in out

    X = Diabetes().test()[0]
    np.save("rows.npy", X)
    wanted = apply("model", "rows.npy").columns["prediction"]
    code, out, err = ellzero("apply", "model", "rows.npy", "--out", "y.csv")
    assert (code, err) == (0, "")
    assert "102 rows: y.csv" in out
    with open("y.csv") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([float(row["prediction"]) for row in rows], wanted)
    ellzero("apply", "model", "rows.npy", "--out", "y.npz")
    np.testing.assert_array_equal(np.load("y.npz", allow_pickle=False)["prediction"], wanted)
    ellzero("apply", "model", "rows.npy", "--out", "y.jsonl")
    with open("y.jsonl") as file:
        np.testing.assert_array_equal([json.loads(line)["prediction"] for line in file], wanted)
    code, out, err = ellzero("apply", "model", "rows.npy", "--json")
    np.testing.assert_array_equal(json.loads(out)["columns"]["prediction"], wanted)
    code, out, err = ellzero("apply", "model", "rows.npy")
    assert f"{wanted[0]:.6g}" in out
    assert "... 92 more rows" in out


def test_json_goes_to_stdout_alone(ellzero):
    code, out, err = ellzero("compare", TASK, "--methods", "largest", "--budgets", "3", "--out", "run", "--json")
    assert code == 0
    assert [row["method"] for row in json.loads(out)["frontier"]] == ["largest"]
    assert err == "report: run/report.html\n"
    code, out, err = ellzero("take", "run", "--method", "largest", "--budget", 3, "--out", "model", "--json")
    assert json.loads(out)["method"] == "largest"


def test_quiet_names_the_report_alone(ellzero):
    code, out, err = ellzero("compare", TASK, "--methods", "largest", "--budgets", "3", "--out", "run", "--quiet")
    assert (code, out, err) == (0, "report: run/report.html\n", "")


def test_without_out_the_same_question_finds_its_folder(ellzero, tmp_path):
    for seeds in (1, 2):
        assert ellzero("compare", TASK, "--methods", "largest", "--budgets", "3", "--seeds", seeds)[0] == 0
    assert ellzero("compare", TASK, "--methods", "largest", "--budgets", "3", "--option", "shuffle=4")[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_method_of_ones_own(ellzero, tmp_path):
    (tmp_path / "mine_here.py").write_text(
        "from dataclasses import dataclass\nfrom small_task import Largest\n\n"
        "@dataclass(frozen=True)\nclass Mine(Largest):\n    name: str = 'mine'\n"
    )
    code, _, err = ellzero("compare", TASK, "--methods", "largest,mine_here:Mine", "--budgets", "3", "--out", "run")
    assert code == 0, err
    assert ellzero("take", "run", "--method", "mine", "--budget", 3, "--out", "model")[0] == 0


def test_a_failed_fit_is_shown(ellzero, tmp_path):
    (tmp_path / "half_here.py").write_text(
        "from dataclasses import dataclass\nfrom small_task import Largest\n\n"
        "@dataclass(frozen=True)\nclass Half(Largest):\n    name: str = 'half'\n"
        "    def frontier(self, data, budgets, seed):\n"
        "        for k in budgets:\n"
        "            if k > 3: raise ValueError('[bold]too many')\n"
        "            yield from super().frontier(data, [k], seed)\n"
    )
    code, out, err = ellzero("compare", TASK, "--methods", "half_here:Half", "--budgets", "3,5", "--out", "run")
    assert code == 0
    assert "failed: half at 5, seed 0: ValueError: [bold]too many" in out
    code, out, err = ellzero("compare", TASK, "--methods", "half_here:Half", "--budgets", "5", "--out", "run2")
    assert code == 1
    assert "every fit failed, the first with ValueError: [bold]too many" in err
    assert "report: run2/report.html" in out


def test_methods_reads_the_index(ellzero):
    rows = registry.index()
    code, out, _ = ellzero("methods", "--json")
    assert (code, json.loads(out)) == (0, rows)
    kind = rows[0]["kind"]
    _, out, _ = ellzero("methods", "--kind", kind, "--json")
    assert {row["kind"] for row in json.loads(out)} == {kind}
    _, out, _ = ellzero("methods", "--search", rows[0]["name"].upper(), "--json")
    assert rows[0] in json.loads(out)
    code, out, _ = ellzero("methods", "--search", "no such thing at all")
    assert (code, out.splitlines()[-1]) == (0, "0 entries")


def test_config_version_and_help(ellzero):
    code, out, _ = ellzero("config", "--json")
    assert json.loads(out)["live"] in (True, False)
    code, out, _ = ellzero("config")
    assert code == 0
    assert "n_threads" in out
    assert ellzero("--version") == (0, f"ellzero {library.__version__}\n", "")
    code, out, _ = ellzero()
    assert code == 0
    assert all(name in out for name in ("compare", "take", "apply", "methods", "config"))


def test_the_command_line_is_light():
    code = (
        "import sys\nfrom ellzero.cli.app import run\nrun(['methods'])\nrun(['config'])\n"
        "loaded = {'torch', 'sklearn', 'plotly', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ellzero.cli", "--version"], capture_output=True, text=True)
    assert done.stdout == f"ellzero {library.__version__}\n"


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
def test_columns_of_any_shape_become_a_table(shape, tmp_path):
    from ellzero.cli.outputs import write
    from ellzero.protocol import Output

    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 3
    write(Output({"x": values, "name": np.array(["a", "b,", "ü"])}), tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    np.testing.assert_array_equal(
        np.array([row[:-1] for row in rows], dtype=np.float64), values.reshape(3, -1).astype(np.float64)
    )
    assert [row[-1] for row in rows] == ["a", "b,", "ü"]

"""The task ``regression``: splits by chance, groups and time, models that load elsewhere, no leak of the labels."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ellzero.compare import apply, compare, take
from ellzero.compare.tasks.regression import Regression
from ellzero.errors import InputError
from ellzero.protocol import Fitted, Method, Task

SMALL = Regression()


def write(path, X, y, names=None):
    names = names or [f"x{j}" for j in range(X.shape[1])]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "y"])
        writer.writerows([*map(repr, row.tolist()), repr(float(target))] for row, target in zip(X, y))
    return str(path)


@pytest.fixture
def table(tmp_path):
    """60 rows of 4 columns, visits of 20 patients at falling times."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((60, 4))
    X[:, 2] = draw.permutation(np.repeat(np.arange(20), 3))
    X[:, 3] = np.arange(60)[::-1] // 2
    return write(tmp_path / "visits.csv", X, X[:, 0] - X[:, 1], ["a", "b", "patient", "day"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regression") / "run"
    return compare(SMALL, budgets=[1, 4, 16], seeds=2, trials=2, out=folder)


def test_it_keeps_the_contract():
    assert isinstance(SMALL, Task)
    data = SMALL.data(0)
    for name, method in SMALL.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
        found = next(iter(method.frontier(data, () if method.dense else (3,), 0)))
        assert isinstance(found, Fitted)
        assert 0.2 < found.score(data.validation) < 0.7
    assert Regression.from_spec(json.loads(json.dumps(SMALL.to_spec()))) == SMALL
    assert json.loads(json.dumps(SMALL.describe())) == SMALL.describe()
    SMALL.check_budgets(SMALL.budgets(data))


def test_the_parts_are_disjoint_and_the_test_rows_stay():
    parts = {seed: SMALL._split(seed) for seed in (0, 1)}
    for train, validation, test in parts.values():
        assert sorted(np.concatenate([train, validation, test]).tolist()) == list(range(442))
        assert len(validation) == len(test) == 442 // 5
    assert set(parts[0][2]) == set(parts[1][2])
    assert set(parts[0][1]) != set(parts[1][1])
    assert len(SMALL.refit_data(0, "all").train[1]) == 442 - 442 // 5
    assert len(SMALL.test()[1]) == 442 // 5


def test_groups_stay_together(table):
    task = Regression(table, groups="patient")
    patients = np.loadtxt(table, delimiter=",", skiprows=1, usecols=2)
    for seed in range(3):
        owners = [set(patients[part]) for part in task._split(seed)]
        assert [len(owner) for owner in owners] == [12, 4, 4]
        assert len(set.union(*owners)) == 20
    assert task.data(0).info["columns"] == ("a", "b", "day")


def test_time_runs_forward(table):
    task = Regression(table, time="day")
    days = np.loadtxt(table, delimiter=",", skiprows=1, usecols=3)
    train, validation, test = task._split(0)
    assert days[train].max() < days[validation].min() <= days[validation].max() < days[test].min()
    assert [len(train), len(validation), len(test)] == [36, 12, 12]
    for other, same in zip(task._split(1), (train, validation, test)):
        np.testing.assert_array_equal(other, same)
    assert "day" not in task.data(0).info["columns"]


def test_squares_and_products_are_named_and_made():
    X, _ = SMALL.data(0).train
    names = SMALL.data(0).info["columns"]
    assert len(names) == X.shape[1] == 64
    assert "sex^2" not in names
    place = {name: j for j, name in enumerate(names)}
    np.testing.assert_array_equal(X[:, place["bmi^2"]], X[:, place["bmi"]] ** 2)
    np.testing.assert_array_equal(X[:, place["age*sex"]], X[:, place["age"]] * X[:, place["sex"]])
    assert len(Regression(interactions=False).data(0).info["columns"]) == 10


def test_the_frontier_rises_and_every_method_had_the_same_trials(run):
    for name in ("lasso", "omp", "iht"):
        found = [p for p in run.frontier if p.method == name]
        assert [p.target for p in found] == [1, 4, 16]
        assert found[1].fidelity > found[0].fidelity > 0.1
        assert len({p.trial for p in run.points if p.method == name}) == 2
    assert not [p for p in run.points if p.error]


@pytest.mark.parametrize("method", ["lasso", "ridge"])
def test_a_taken_model_answers_alike_in_a_fresh_process(run, tmp_path, method):
    """It needs only the columns it kept, under their names, in any order; products are made from their factors."""
    out, rows, answers = tmp_path / "model", tmp_path / "rows.csv", tmp_path / "answers.npy"
    taken = take(run.folder, method, None if method == "ridge" else 16, out)
    X, y = SMALL.test()
    names = list(SMALL.data(0).info["columns"])[:10]
    write(rows, X[:, :10][:, ::-1], y, names[::-1])
    code = textwrap.dedent(
        """
        import sys, numpy as np
        from ellzero.compare import apply
        np.save(sys.argv[3], apply(sys.argv[1], sys.argv[2]).columns["prediction"])
        """
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(rows), str(answers)], check=True, capture_output=True)
    prediction = np.load(answers)
    np.testing.assert_array_equal(prediction, apply(out, rows).columns["prediction"])
    r2 = 1 - ((y - prediction) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert r2 == pytest.approx(taken.fidelity, abs=1e-12)
    assert taken.card["test"]["rows"] == len(y)
    assert taken.fidelity > 0.3


def test_a_column_that_the_model_needs_and_the_file_lacks_is_named(run, tmp_path):
    take(run.folder, "lasso", 1, tmp_path / "model")
    write(tmp_path / "rows.csv", np.ones((2, 2)), np.ones(2), ["age", "bmj"])
    with pytest.raises(InputError, match=r"lacks the column 'bmi'.*did you mean 'bmj'"):
        apply(tmp_path / "model", tmp_path / "rows.csv")
    np.save(tmp_path / "rows.npy", np.ones((2, 3)))
    with pytest.raises(InputError, match="3 columns without names, want 64"):
        apply(tmp_path / "model", tmp_path / "rows.npy")


def test_noise_on_twenty_thousand_columns_scores_as_chance(tmp_path):
    """Scaling, selection and tuning saw no test row: the best of many fits to noise is worth nothing there."""
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", X=draw.standard_normal((250, 20_000)), y=draw.standard_normal(250))
    task = Regression(str(tmp_path / "noise.npz"))
    names = ("ridge", "lasso", "omp", "iht", "mcp")
    run = compare(task, names, budgets=[1, 8, 32], seeds=1, trials=4, out=tmp_path / "run")
    assert not [p for p in run.points if p.error]
    for name in names:
        best = max((p for p in run.frontier if p.method == name), key=lambda p: p.fidelity)
        taken = take(tmp_path / "run", name, None if name == "ridge" else best.target, tmp_path / name)
        print(f"{name}: validation {best.fidelity:.3f}, test {taken.fidelity:.3f}")
        assert taken.fidelity < 0.1
    X, y = task.data(0).train
    fitted = next(iter(task.methods()["omp"].frontier(task.data(0), [32], 0)))
    assert fitted.score((X, y)) > 0.9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "x"}, "model"), ({"hook": "x"}, "hook"), ({"texts": "x"}, "texts"), ({"eval": "x"}, "eval"),
        ({"extra": {"group": "a"}}, "did you mean 'groups'"), ({"extra": {"interactions": "maybe"}}, "interactions"),
        ({"extra": {"groups": "sxe"}}, "did you mean 'sex'"), ({"extra": {"time": "year"}}, "time: got 'year'"),
        ({"extra": {"time": "age", "groups": "sex"}}, "time"), ({"target": "bmi"}, "target"),
        ({"data": "absent.csv"}, "absent.csv"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        Regression.from_options(**options)


def test_bad_tables_are_refused_by_name(tmp_path, table):
    draw = np.random.default_rng(0)
    X = draw.standard_normal((20, 2))
    with pytest.raises(InputError, match="has 5 rows, want at least 10"):
        Regression(write(tmp_path / "a.csv", X[:5], X[:5, 0])).data(0)
    with pytest.raises(InputError, match="is 1 in every row"):
        Regression(write(tmp_path / "b.csv", X, np.ones(20))).data(0)
    X[3, 1] = np.nan
    with pytest.raises(InputError, match=r"'x1' has 1 missing value.*SimpleImputer"):
        Regression(write(tmp_path / "c.csv", X, X[:, 0])).data(0)
    X[:, 1] = 1
    with pytest.raises(InputError, match="1 different values, want at least 3"):
        Regression(write(tmp_path / "d.csv", X, X[:, 0]), groups="x1").data(0)
    with pytest.raises(InputError, match="leaves 0 rows"):
        Regression(write(tmp_path / "e.csv", X, X[:, 0]), time="x1").data(0)
    with pytest.raises(InputError, match="interactions: 200 columns give"):
        Regression(write(tmp_path / "f.csv", draw.standard_normal((10, 200)), X[:10, 0]), interactions=True).data(0)
    for budget in (0, 2.5, 4):
        with pytest.raises(InputError, match="budgets"):
            compare(Regression(table, groups="patient"), budgets=[budget])

"""The task ``selection``: the split, choices that load elsewhere, no leak of the labels, refusals."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ellzero.compare import apply, compare, take
from ellzero.compare.tasks.selection import Selection
from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.protocol import Task

SMALL = Selection("breast_cancer")
QUICK = ["random", "anova", "forward", "all columns"]


def write(path, X, y, names):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "kind"])
        writer.writerows([*map(repr, row.tolist()), int(label)] for row, label in zip(X, y))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection") / "run"
    return compare(SMALL, QUICK, budgets=[1, 4], seeds=1, trials=2, out=folder)


def test_it_keeps_the_contract():
    assert isinstance(SMALL, Task)
    assert Selection.from_spec(json.loads(json.dumps(SMALL.to_spec()))) == SMALL
    assert json.loads(json.dumps(SMALL.describe())) == SMALL.describe()
    SMALL.check_budgets(SMALL.budgets(SMALL.data(0)))
    parts = {seed: SMALL._split(seed) for seed in (0, 1)}
    for split in parts.values():
        assert sorted(np.concatenate(split).tolist()) == list(range(569))
    assert set(parts[0][2]) == set(parts[1][2])
    assert set(parts[0][1]) != set(parts[1][1])
    assert len(SMALL.refit_data(0, "all").train[1]) == 569 - 569 // 5
    assert len(SMALL.test()[1]) == 569 // 5


def test_groups_stay_together_and_are_no_column(tmp_path):
    g = np.random.default_rng(0)
    X = np.column_stack([g.standard_normal((60, 2)), np.repeat(np.arange(20), 3)])
    task = Selection(write(tmp_path / "a.csv", X, X[:, 0] > 0, ["a", "b", "patient"]), groups="patient")
    owners = [set(X[part, 2]) for part in task._split(0)]
    assert [len(owner) for owner in owners] == [12, 4, 4]
    assert len(set.union(*owners)) == 20
    assert task.data(0).info["columns"] == ("a", "b")


def test_more_columns_tell_more(run):
    assert not [p for p in run.points if p.error]
    found = {p.method: [q.fidelity for q in run.frontier if q.method == p.method] for p in run.frontier}
    assert found["forward"][1] >= found["forward"][0] > 0.8
    assert found["forward"][1] > found["random"][1]
    assert found["all columns"][0] > 0.93


def test_a_taken_choice_answers_alike_in_a_fresh_process(run, tmp_path):
    out, rows, answers = tmp_path / "model", tmp_path / "rows.csv", tmp_path / "answers.npy"
    taken = take(run.folder, "forward", 4, out)
    X, y = SMALL.test()
    names = list(sets.breast_cancer().columns)
    write(rows, X[:, ::-1], y, names[::-1])
    code = textwrap.dedent(
        """
        import sys, numpy as np
        from ellzero.compare import apply
        np.save(sys.argv[3], apply(sys.argv[1], sys.argv[2]).columns["class"])
        """
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(rows), str(answers)], check=True, capture_output=True)
    found = np.load(answers)
    np.testing.assert_array_equal(found, apply(out, rows).columns["class"])
    labels = np.asarray(sets.breast_cancer().labels)
    assert (found == labels[y]).mean() == pytest.approx(taken.fidelity)
    assert taken.fidelity > 0.85
    write(rows, X[:, :3], y, names[:3])
    with pytest.raises(InputError, match="lacks the column"):
        apply(out, rows)


def test_noise_on_many_columns_scores_as_chance(tmp_path):
    g = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", X=g.standard_normal((300, 500)), y=g.integers(0, 2, 300))
    task = Selection(str(tmp_path / "noise.npz"))
    run = compare(task, ["anova", "forward", "information"], budgets=[4, 16], seeds=1, trials=2, out=tmp_path / "run")
    assert not [p for p in run.points if p.error]
    for name in ("anova", "forward", "information"):
        best = max((p for p in run.frontier if p.method == name), key=lambda p: p.fidelity)
        taken = take(tmp_path / "run", name, best.target, tmp_path / name)
        print(f"{name}: validation {best.fidelity:.3f}, test {taken.fidelity:.3f}")
        assert abs(taken.fidelity - 0.5) < 0.17  # 60 test rows: two and a half standard errors


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "x"}, "model"), ({"hook": "x"}, "hook"), ({"texts": "x"}, "texts"), ({"eval": "x"}, "eval"),
        ({"extra": {"group": "a"}}, "did you mean 'groups'"), ({"extra": {"groups": "pixel"}}, "groups: got 'pixel'"),
        ({"target": "digits"}, "target: got 'digits'"), ({"data": "absent.csv"}, "absent.csv"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        Selection.from_options(**options)


def test_bad_tables_are_refused_by_name(tmp_path):
    X = np.random.default_rng(0).standard_normal((40, 2))
    with pytest.raises(InputError, match="has 10 rows, want at least 20"):
        Selection(write(tmp_path / "a.csv", X[:10], X[:10, 0] > 0, "ab")).data(0)
    with pytest.raises(InputError, match="'kind' has 1 different values"):
        Selection(write(tmp_path / "b.csv", X, np.ones(40), "ab")).data(0)
    with pytest.raises(InputError, match="'kind' has 40 different values"):
        Selection(write(tmp_path / "c.csv", X, np.arange(40), "ab")).data(0)
    for budget in (0, 2.5, 31):
        with pytest.raises(InputError, match="budgets"):
            compare(SMALL, ["anova"], budgets=[budget])

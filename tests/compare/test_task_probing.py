"""The task ``probing``: documents stay whole, probes load elsewhere, noise scores as chance, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ellzero.compare import apply, compare, take
from ellzero.compare.tasks.probing import Probing
from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.linear.probes import FittedProbes, Probes
from ellzero.linear.probing import SparseProbe, concept_scores
from ellzero.protocol import Data, Fitted, Method, Task

torch = pytest.importorskip("torch")
SMALL = Probing(rows=1500)


@pytest.fixture
def digits(tmp_path):
    table = sets.digits()
    np.savez(tmp_path / "digits.npz", X=table.X[:700], y=table.y[:700])
    return str(tmp_path / "digits.npz")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probing") / "run"
    return compare(SMALL, ["adaptive", "mean difference", "all neurons"], budgets=[1, 16], trials=2, out=folder)


def test_it_keeps_the_contract():
    assert isinstance(SMALL, Task)
    data = SMALL.data(0)
    for name, method in SMALL.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
        assert len({candidate.alpha for candidate in method.candidates(4, 0)}) == 4
    assert isinstance(next(iter(Probes().frontier(data, (2,), 0))), Fitted)
    assert Probing.from_spec(json.loads(json.dumps(SMALL.to_spec()))) == SMALL
    assert json.loads(json.dumps(SMALL.describe())) == SMALL.describe()
    SMALL.check_budgets(SMALL.budgets(data))
    assert data.train[0].shape[1] == 352
    assert data.train[1].shape == (len(data.train[0]), len(data.info["concepts"]))


def test_documents_stay_in_one_part():
    rows = SMALL._rows()
    for seed in range(2):
        parts = [set(rows.units[part]) for part in SMALL._split(seed)]
        assert sum(map(len, parts)) == len(set(rows.units))
    assert set(SMALL._split(0)[2]) == set(SMALL._split(1)[2])


def test_more_neurons_tell_more_and_all_tell_most(run):
    assert not [p for p in run.points if p.error]
    found = {name: [p.fidelity for p in run.frontier if p.method == name] for name in run.question["methods"]}
    print(found)
    assert found["adaptive"][1] > found["adaptive"][0] + 0.05
    assert max(found["all neurons"]) > found["adaptive"][1]
    assert [p.realised for p in run.frontier if p.method == "adaptive"] == [1, 16]


def test_taken_probes_answer_alike_in_a_fresh_process(run, tmp_path):
    out, texts, answers = tmp_path / "model", tmp_path / "texts.txt", tmp_path / "answers.npy"
    taken = take(run.folder, "adaptive", 16, out)
    assert taken.fidelity > 0.2
    texts.write_text('HAMLET:\nTo be, or not to be\n\nThe year 1999 was "good" .\n')
    code = textwrap.dedent(
        """
        import sys, numpy as np
        from ellzero.compare import apply
        np.save(sys.argv[3], np.stack(list(apply(sys.argv[1], sys.argv[2]).columns.values()), axis=1))
        """
    )
    subprocess.run([sys.executable, "-c", code, str(out), str(texts), str(answers)], check=True, capture_output=True)
    columns = apply(out, str(texts)).columns
    np.testing.assert_allclose(np.load(answers), np.stack(list(columns.values()), axis=1), atol=1e-6)
    assert list(columns)[:2] == ["text", "token"]
    assert set(columns["text"]) == {0, 1}
    assert "speaker" in columns
    np.save(tmp_path / "rows.npy", SMALL.data(0).validation[0])
    by_file = apply(out, str(tmp_path / "rows.npy")).columns
    fitted = FittedProbes.load(out)
    X, y = SMALL.data(0).validation
    said = np.stack([by_file[name] > 0.5 for name in fitted.concepts])
    assert concept_scores(y.T > 0, said)[0].mean() == pytest.approx(fitted.score((X, y)))
    np.save(tmp_path / "rows.npy", X[:, :9])
    with pytest.raises(InputError, match="has 9 columns, want 352"):
        apply(out, str(tmp_path / "rows.npy"))


def test_a_file_of_activations_and_its_classes(digits):
    task = Probing(digits)
    data = task.data(0)
    assert data.info["concepts"][3] == "y = 3"
    found = next(iter(Probes().frontier(data, (8,), 0)))
    assert found.score(data.validation) > 0.7
    X, y = data.train
    single = SparseProbe(8).fit(X, y[:, 3])
    assert set(single.support_[0]) == set(found.columns[3])
    np.testing.assert_allclose(single.decision_function(X), found.log_odds(X)[:, 3], atol=1e-6)


def test_noise_scores_as_chance(tmp_path):
    g = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", X=g.standard_normal((400, 1000)), y=g.integers(0, 2, 400))
    task = Probing(str(tmp_path / "noise.npz"))
    run = compare(task, ["adaptive", "mean difference"], budgets=[4, 32], trials=3, out=tmp_path / "run")
    for name in ("adaptive", "mean difference"):
        best = max((p for p in run.frontier if p.method == name), key=lambda p: p.fidelity)
        taken = take(tmp_path / "run", name, best.target, tmp_path / name.replace(" ", "-"))
        assert abs(taken.fidelity - 0.5) < 0.17


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eval": "x"}, "eval"), ({"extra": {"row": "9"}}, "did you mean 'rows'"),
        ({"extra": {"rows": "many"}}, "rows: got 'many'"),
        ({"extra": {"rows": "9"}}, "rows: got 9"), ({"extra": {"where": "inside"}}, "where: got 'inside'"),
        ({"data": "a.npz", "hook": "x"}, "hook: got 'x' beside data"), ({"model": "gpt2"}, "hook: got none"),
        ({"model": "gpt2", "hook": "h"}, "texts: got none"), ({"hook": "layers.9"}, "hook: no module"),
        ({"data": "absent.csv"}, "absent.csv"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        Probing.from_options(**options)


def test_bad_tables_and_budgets_are_refused_by_name(tmp_path, digits):
    np.savez(tmp_path / "a.npz", X=np.ones((40, 2)), y=np.arange(40))
    with pytest.raises(InputError, match="'y' has 40 different values"):
        Probing(str(tmp_path / "a.npz")).data(0)
    for budget in (0, 2.5, 65):
        with pytest.raises(InputError, match="budgets"):
            compare(Probing(digits), ["adaptive"], budgets=[budget])
    rows = np.random.default_rng(0).standard_normal((10, 3))
    data = Data((rows, np.column_stack([np.arange(10) % 2, np.ones(10)])), None, {"concepts": ("a", "b")})
    with pytest.raises(InputError, match="'b' is the same in every training row"):
        next(iter(Probes().frontier(data, (1,), 0)))
    with pytest.raises(InputError, match="ranking: got 'adaptve'"):
        Probes("adaptve")

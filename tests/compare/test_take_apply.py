"""From a point to a model that runs elsewhere: one look at the test part, checked files, whole or not at all."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_task import Diabetes, Largest, Linear, Noise

from ellzero.compare import Run, apply, compare, take
from ellzero.compare.runner import distinct_candidates
from ellzero.errors import InputError


def model(out):
    return Linear(np.load(out / "coef.npy"), json.loads((out / "model.json").read_text())["intercept"])


@pytest.mark.parametrize("refit", ["train", "all"])
def test_the_figure_is_the_refitted_model_on_the_test_part(task, run, tmp_path, refit):
    taken = take(run.folder, "largest", 10, tmp_path / "model", refit)
    point = next(p for p in run.frontier if p.method == "largest" and p.target == 10)
    settings = distinct_candidates(Largest(), 3)[point.trial]
    seed = point.seeds[int(np.argmin(point.fidelities))]  # of two seeds the lower is the median
    (fitted,) = settings.frontier(task.refit_data(seed, refit), [10], seed)
    np.testing.assert_array_equal(model(tmp_path / "model").coef, fitted.coef)
    assert taken.fidelity == fitted.score(task.test())
    card = json.loads((tmp_path / "model" / "ellzero.json").read_text())
    assert card == json.loads(json.dumps(taken.card))
    assert card["test"]["rows"] == 102
    assert card["refit"] == refit
    assert ("training and validation parts" in card["test"]["note"]) == (refit == "all")
    assert card["settings"]["fields"]["alpha"] == settings.alpha
    assert sorted(card["files"]) == ["coef.npy", "model.json"]


def test_the_test_part_is_read_once(task, run, tmp_path, monkeypatch):
    reads = []
    original = Diabetes.test
    monkeypatch.setattr(Diabetes, "test", lambda self: reads.append(1) or original(self))
    first = take(run.folder, "largest", 3, tmp_path / "a")
    assert reads == [1]
    assert "before" not in first.card["test"]["note"]
    second = take(run.folder, "largest", 10, tmp_path / "b")
    assert second.card["test"]["read_before"] == 1
    assert "do not choose by this figure" in second.card["test"]["note"]


def test_a_dense_reference_needs_no_budget(run, tmp_path):
    assert take(run.folder, "least_squares", out=tmp_path / "model").card["budget"] is None


def test_a_fresh_process_gives_identical_outputs(task, run, tmp_path):
    out, rows = tmp_path / "model", tmp_path / "rows.npy"
    take(run.folder, "largest", 3, out)
    X = task.test()[0]
    np.save(rows, X)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from ellzero.compare import apply\nimport numpy as np\n"
        f"np.save({str(tmp_path / 'fresh.npy')!r}, apply({str(out)!r}, {str(rows)!r}).columns['prediction'])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    here = apply(out, rows).columns["prediction"]
    np.testing.assert_array_equal(np.load(tmp_path / "fresh.npy"), here)
    np.testing.assert_array_equal(here, model(out).predict(X))


def test_a_method_given_as_an_object_is_rebuilt_from_its_settings(task, tmp_path):
    run = compare(task, [Largest(name="mine", alpha=0.5)], [3], out=tmp_path / "run")
    assert run.question["methods"]["mine"]["origin"] == "python"
    card = take(tmp_path / "run", "mine", 3, tmp_path / "model").card
    assert card["settings"]["fields"] == {"alpha": 0.5, "name": "mine"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "larges"}, "did you mean 'largest'"),
        ({"budget": None}, "want one near 1, 3, 10"),
        ({"budget": 0}, "above 0"),
        ({"budget": float("nan")}, "NaN"),
        ({"refit": "both"}, "refit: got 'both'"),
        ({"run_dir": "nowhere"}, "no such folder"),
        ({"out": None}, "out: got none"),
    ],
)
def test_bad_input_writes_nothing(run, tmp_path, given, words):
    asked = {"run_dir": run.folder, "method": "largest", "budget": 3, "out": tmp_path / "model", "refit": "train"}
    with pytest.raises(InputError, match=words):
        take(**{**asked, **given})
    assert not (tmp_path / "model").exists()


def test_what_stands_in_the_way_stays(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        take(run.folder, "largest", 3, tmp_path / "full")
    assert (tmp_path / "full" / "mine").read_text() == "x"
    with pytest.raises(InputError, match="is a file"):
        take(run.folder, "largest", 3, tmp_path / "full" / "mine")
    (tmp_path / "empty").mkdir()
    assert take(run.folder, "largest", 3, tmp_path / "empty").folder == tmp_path / "empty"
    with pytest.raises(InputError, match=r"cannot be written"):
        take(run.folder, "largest", 3, "/proc/model")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no run\.json"):
        take(tmp_path, "largest", 3, tmp_path / "model")


def test_a_model_that_cannot_be_saved_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Linear, "save", lambda self, directory: None)
    with pytest.raises(InputError, match="saved no file"):
        take(run.folder, "largest", 3, tmp_path / "deep" / "model")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_task_that_changed_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Diabetes, "describe", lambda self: {"name": "diabetes", "shuffle": 7})
    with pytest.raises(InputError, match="changed since"):
        take(run.folder, "largest", 3, tmp_path / "model")


def test_a_method_that_changed_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Diabetes, "methods", lambda self: {"largest": Largest(alpha=9.0)})
    with pytest.raises(InputError, match="no longer those of the run"):
        take(run.folder, "largest", 3, tmp_path / "model")


def test_pure_noise_scores_as_chance_on_the_test_part(tmp_path):
    """Chosen among many, a point looks good on validation data; the untouched test part says that it is nothing."""
    run = compare(Noise(), budgets=[1, 2, 4, 8], seeds=3, trials=8, out=tmp_path / "run")
    best = max((p for p in run.frontier if not p.dense), key=lambda p: p.fidelity)
    taken = take(tmp_path / "run", best.method, best.target, tmp_path / "model")
    assert taken.fidelity < 0.03
    assert taken.card["test"]["rows"] == 400


@pytest.fixture
def taken(run, tmp_path):
    take(run.folder, "largest", 3, tmp_path / "model")
    np.save(tmp_path / "rows.npy", np.ones((2, 10)))
    return tmp_path / "model"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_that_was_tampered_with_is_refused(taken, tmp_path):
    rows = tmp_path / "rows.npy"
    card = taken / "ellzero.json"
    text = card.read_text()
    for content, words in (
        (text[:40], "torn or foreign"), ("[]", "not the card"), ('{"format": "x"}', "not the card"),
    ):  # fmt: skip
        card.write_text(content)
        with pytest.raises(InputError, match=words):
            apply(taken, rows)
    card.write_text(text)
    edit(card, version=2)
    with pytest.raises(InputError, match="format version 2, this ellzero reads up to 1"):
        apply(taken, rows)
    card.write_text(text)
    whole = (taken / "coef.npy").read_bytes()
    (taken / "coef.npy").write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"coef\.npy: is not the file that was taken"):
        apply(taken, rows)
    (taken / "coef.npy").unlink()
    with pytest.raises(InputError, match=r"coef\.npy: is missing"):
        apply(taken, rows)
    card.unlink()
    with pytest.raises(InputError, match="is no taken model"):
        apply(taken, rows)
    with pytest.raises(InputError, match="no such folder"):
        apply(tmp_path / "nowhere", rows)


def test_data_that_does_not_fit_is_refused(taken, tmp_path):
    np.save(tmp_path / "narrow.npy", np.ones((2, 3)))
    with pytest.raises(InputError, match=r"want \[rows, 10\]"):
        apply(taken, tmp_path / "narrow.npy")
    with pytest.raises(InputError, match="no such file"):
        apply(taken, tmp_path / "absent.npy")


def test_every_fit_failed_leaves_nothing_to_take(run, tmp_path):
    failed = [replace(p, fidelity=None, realised=None, error="no") for p in run.points]
    (run.folder / "points.jsonl").write_text("".join(p.to_json() + "\n" for p in failed))
    assert Run.load(run.folder).frontier == []
    with pytest.raises(InputError, match="no fitted point"):
        take(run.folder, "largest", 3, tmp_path / "model")

"""The task ``unlearning``: one sparse network for all methods, rows that are set aside, and the gap to retraining."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ellzero.cli.app import run as command
from ellzero.compare.runner import compare
from ellzero.compare.tasks.unlearning import Unlearning
from ellzero.errors import InputError
from ellzero.network.unlearning_frontier import UnlearningMethod
from ellzero.protocol import Fitted, Method, Task

SHORT = Unlearning(steps=20)


def test_it_keeps_the_contract():
    assert isinstance(SHORT, Task)
    for name, method in SHORT.methods().items():
        assert isinstance(method, Method)
        assert method.name == name
        assert len(method.candidates(4, 0)) == 4
    assert Unlearning.from_spec(json.loads(json.dumps(SHORT.to_spec()))) == SHORT
    assert SHORT.describe() != Unlearning(steps=20, forget="0.2").describe()
    assert Unlearning.from_options(extra={"forget": "class=3"}).forget == "class=3"


def test_rows_to_forget_are_a_share_of_the_training_rows_or_a_class():
    data = SHORT.data(0)
    assert int(data.info["forget"].sum()) == round(0.1 * len(data.train[1]))
    assert (data.info["forget"] == SHORT.data(0).info["forget"]).all()
    assert (data.info["forget"] != SHORT.data(1).info["forget"]).any()
    whole = Unlearning(steps=20, forget="class=3").data(0)
    np.testing.assert_array_equal(whole.info["forget"], whole.train[1] == 3)


def test_methods_share_one_network_at_each_density_and_keep_its_masks():
    data, methods = SHORT.data(0), SHORT.methods()
    found = {name: next(iter(methods[name].frontier(data, [0.1], 0))) for name in methods if name != "influence"}
    assert len(data.info["originals"]) == 1
    for fitted in found.values():
        assert isinstance(fitted, Fitted)
        assert fitted.original is found["fisher"].original
        assert abs(fitted.realised - 0.1) < 0.005
        for name, mask in fitted.original.masks.items():
            assert (fitted.model.get_parameter(name)[~mask] == 0).all()
        own, other = fitted.reports(data.validation)
        assert fitted.score(data.validation) == own.gap(other)
        assert fitted.seconds > 0
    one, two = (found[name].model.state_dict() for name in ("fine-tune", "l1-sparse"))
    assert not torch.equal(one["layers.0.weight"], two["layers.0.weight"])


def test_synflow_masks_join_and_a_forgotten_class_is_gone_after_retraining():
    task = Unlearning(steps=60, forget="class=0", by="synflow")
    data = task.data(0)
    fitted = next(iter(task.methods()["retrain"].frontier(data, [0.3], 0)))
    own, other = fitted.reports(data.validation)
    assert own.unlearning == other.unlearning == 1.0
    assert own.remaining > 0.7
    assert fitted.score(data.validation) < 0.2


def test_it_runs_from_the_command_line_to_a_report(tmp_path):
    command(["compare", "unlearning", "--methods", "fine-tune,gradient-ascent", "--budgets", "0.2", "--option",
             "steps=10", "--out", str(tmp_path / "run")])  # fmt: skip
    rows = (tmp_path / "run" / "points.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert all(json.loads(row)["fidelity"] >= 0 for row in rows)
    assert "gap to retraining" in (tmp_path / "run" / "report.html").read_text()


def test_an_interrupted_comparison_fits_only_what_is_missing(tmp_path):
    compare(SHORT, ["fine-tune"], [0.2], out=tmp_path / "run")
    before = (tmp_path / "run" / "points.jsonl").read_text()
    run = compare(SHORT, ["fine-tune", "fisher"], [0.2], out=tmp_path / "run")
    assert (tmp_path / "run" / "points.jsonl").read_text().startswith(before)
    assert len(run.points) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"forget": "much"}, "forget.*class=NAME"), ({"forget": "0"}, "forget"), ({"forget": "1"}, "forget"),
        ({"by": "size"}, "by"), ({"net": "transformer"}, "net"), ({"include": ("a",)}, "include"),
        ({"evaluate": "a:b"}, "eval"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        Unlearning(**options)


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"forget.*want one of"):
        Unlearning(forget="class=eleven").data(0)
    with pytest.raises(InputError, match="method"):
        UnlearningMethod("mine", "fish")

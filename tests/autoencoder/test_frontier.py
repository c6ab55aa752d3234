"""The methods of the comparison: budgets met, equal effort, repeatable, and refusals by name."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ellzero.autoencoder import frontier
from ellzero.autoencoder.metrics import evaluate
from ellzero.errors import InputError
from ellzero.protocol import Data, Fitted, Method

METHODS = frontier.methods()
INFO = {"d_sae": 24, "steps": 60, "batch_size": 64}


def data(**info):
    draw = np.random.default_rng(0)
    codes = draw.exponential(size=(1200, 20)) * (draw.random((1200, 20)) < 0.15)
    X = (codes @ draw.standard_normal((20, 10)) + 2).astype(np.float32)
    return Data(X[:900], X[900:], {**INFO, **info})


@pytest.mark.parametrize("name", list(METHODS))
def test_one_fit_for_each_budget_in_their_order(name, tmp_path):
    method, parts = METHODS[name], data()
    assert isinstance(method, Method)
    assert not method.dense
    found = list(method.frontier(parts, [6, 2, 4], 0))
    for budget, fitted in zip([6, 2, 4], found, strict=True):
        assert isinstance(fitted, Fitted)
        assert fitted.realised == evaluate(fitted.model, parts.validation)["l0"]
        if name in ("pca", "topk"):
            assert fitted.realised <= budget
        if name == "batchtopk":
            assert fitted.realised == pytest.approx(budget, abs=0.01)
        assert fitted.score(parts.validation) == evaluate(fitted.model, parts.validation)["explained_variance"]
        assert fitted.time(parts.validation[:3]) > 0
    assert found[0].score(parts.validation) > found[1].score(parts.validation)
    found[0].save(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == ({"pca.safetensors"} if name == "pca" else {"cfg.json", "sae_weights.safetensors"})
    tensors = next(path for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    assert found[0].nbytes <= tensors.stat().st_size < found[0].nbytes + 2000


@pytest.mark.parametrize("name", list(METHODS))
def test_a_seed_repeats_a_fit(name):
    fits = [next(iter(METHODS[name].frontier(data(), [3], seed))) for seed in (0, 0, 1)]
    scores = [fitted.score(data().validation) for fitted in fits]
    assert scores[0] == scores[1]
    assert (scores[0] != scores[2]) == (name != "pca")


def test_every_autoencoder_gets_the_width_steps_and_batches_of_the_task(monkeypatch):
    seen = []
    plain = frontier.SAETrainer.fit

    def watched(self, rows, **options):
        seen.append((self.sae.d_sae, self.steps, self.batch_size, self.seed, rows.shape))
        return plain(self, rows, **options)

    monkeypatch.setattr(frontier.SAETrainer, "fit", watched)
    for method in METHODS.values():
        list(method.frontier(data(steps=5), [3], 7))
    assert seen == [(24, 5, 64, 7, (900, 10))] * (len(METHODS) - 1)


@pytest.mark.parametrize("name", list(METHODS))
def test_candidates_begin_with_the_method_and_repeat_by_seed(name):
    method = METHODS[name]
    found = method.candidates(5, 1)
    assert found[0] == method
    assert found == method.candidates(5, 1)
    if name == "pca":
        assert len(found) == 1
        return
    assert len(found) == 5
    assert found[1:] != method.candidates(5, 2)[1:]
    assert all(0.003 <= candidate.lr <= 0.03 for candidate in found)
    with pytest.raises(InputError, match="lr"):
        dataclasses.replace(method, lr=0.0)
    with pytest.raises(InputError, match="trials"):
        method.candidates(0, 1)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("budget", [0, 2.5, 25])
def test_budgets_that_cannot_be_are_refused(name, budget):
    with pytest.raises(InputError, match="budget: got"):
        list(METHODS[name].frontier(data(), [budget], 0))


def test_a_score_reads_every_row_and_any_number_of_them():
    fitted = next(iter(METHODS["topk"].frontier(data(), [3], 0)))
    X = data().validation
    assert fitted.score(torch.from_numpy(X)) == fitted.score(X)
    assert np.isfinite(fitted.score(X[:2]))

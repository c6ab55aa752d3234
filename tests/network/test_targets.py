"""From a folder and a target to a fast network: the choice, its laws, and the whole road in clean processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.recipes import gmp
from ellzero.network.targets import Target, load_pruned, prune_to_target
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches

ROWS = rng(0, "rows").standard_normal((240, 16)).astype(np.float32)
LABELS = (ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2] > 0).astype(np.int64)
X, Y = torch.from_numpy(ROWS), torch.from_numpy(LABELS)


def network():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(0.3 * rng(0, name).standard_normal(tuple(parameter.shape))))
    return model


def accuracy(model):
    return float((model(X[160:]).argmax(1) == Y[160:]).float().mean())


def sought(**options):
    settings = {
        "loss": losses.classification, "densities": (0.5, 0.1), "steps": 60, "lr": 1e-2, "repeats": 1,
        "recipe": lambda density: gmp(density, every=10, allocation="uniform"), "layout": "csr",
    }  # fmt: skip
    stream = lambda: Batches(X[:160], Y[:160], batch_size=20)  # noqa: E731
    return prune_to_target(network(), stream, accuracy, X[160:168], **{**settings, **options})


def test_a_granted_loss_is_met_by_the_fastest_point_and_the_folder_gives_it_back(tmp_path):
    found = sought(max_loss=1.0)
    assert found.met
    assert found.batch == 8
    assert [p.name for p in found.beside][:2] == ["dense float32", "dense bfloat16"]
    assert found.taken.seconds == min(p.seconds for p in found.tried)
    assert [p.density for p in found.tried] == pytest.approx([0.5, 0.1], abs=0.01)
    sizes = {p.name: p.nbytes for p in (*found.beside, *found.tried)}
    assert sizes["dense bfloat16"] * 2 == sizes["dense float32"] == sum(4 * p.numel() for p in network().parameters())
    assert sizes["density 0.1"] < sizes["density 0.5"]
    assert all(p.loss == pytest.approx(found.reference - p.fidelity) for p in (*found.beside, *found.tried))
    assert max(p.fidelity for p in found.beside[:1]) <= found.reference
    found.save(tmp_path / "out")
    done, card = load_pruned(tmp_path / "out", X[160:168], network())
    assert torch.equal(done.model(X), found.model(X))
    assert card == json.loads(json.dumps(found.card))
    assert accuracy(done.model) == found.taken.fidelity
    assert found.taken.name in str(found)


def test_a_target_out_of_reach_names_the_nearest_point():
    found = sought(max_seconds=1e-9)
    assert not found.met
    assert "is not met; the nearest is density" in found.note
    assert found.taken.seconds == min(p.seconds for p in found.tried)
    untouched = sought(max_seconds=100.0)
    assert untouched.met
    assert untouched.taken.loss == min(p.loss for p in untouched.tried)


def test_targets_rank_points_by_what_they_ask():
    assert Target(max_loss=0.1).rank(0.05, 2.0) < Target(max_loss=0.1).rank(0.0, 3.0)  # both meet it: the faster
    assert Target(max_loss=0.1).rank(0.3, 1.0) > Target(max_loss=0.1).rank(0.2, 9.0)  # neither: the nearer
    assert Target(max_seconds=1.0).rank(0.0, 0.9) < Target(max_seconds=1.0).rank(0.1, 0.1)  # both: the better
    both = Target(0.1, 1.0)
    assert both.excess(0.1, 1.0) == 0
    assert both.excess(0.2, 1.5) == pytest.approx(0.6)
    assert str(both) == "a loss of at most 0.1 and at most 1000 ms"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, "max_loss, max_seconds: got neither"), ({"max_loss": -1}, "max_loss"), ({"max_seconds": 0}, "max_seconds"),
        ({"max_loss": 0.1, "densities": ()}, "densities: got none"),
        ({"max_loss": 0.1, "densities": (1.0,)}, "densities"),
        ({"max_loss": 0.1, "steps": 0}, "steps"), ({"max_loss": 0.1, "lr": 0}, "lr"),
        ({"max_loss": 0.1, "loss": None}, "loss: got None"), ({"max_loss": 0.1, "repeats": 0}, "repeats"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    with pytest.raises(InputError, match=named):
        sought(**changed)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"folder: .* has no card\.json"):
        load_pruned(tmp_path, X)
    sought(max_loss=1.0, steps=2).save(tmp_path / "out")
    with pytest.raises(InputError, match="model: got None"):
        load_pruned(tmp_path / "out", X)


DATA = textwrap.dedent(
    """
    import sys, json, torch
    folder = sys.argv[1]
    torch.set_num_threads(1)
    start = torch.arange(256)[:, None] * 7
    tokens = (start + 3 * torch.arange(8)) % 31 + 1   # each row counts on in threes: the next token is known
    held_out, example = tokens[224:], tokens[:4]

    def evaluate(model):
        logits = model(input_ids=held_out).logits
        return float((logits[:, :-1].argmax(-1) == held_out[:, 1:]).float().mean())
    """
)

FIRST = DATA + textwrap.dedent(
    """
    from ellzero.network.recipes import gmp
    from ellzero.network.targets import prune_to_target
    from ellzero.training.loop import Batches

    class Rows:
        def __init__(self): self.inner = Batches(tokens[:224], batch_size=32, seed=1)
        def __iter__(self): return self
        def __next__(self):
            rows = next(self.inner)
            return {"input_ids": rows, "labels": rows}

    found = prune_to_target(folder + "/hf", Rows, evaluate, {"input_ids": example}, max_loss=0.05, densities=(0.3, 0.1),
                            recipe=lambda density: gmp(density, every=5, allocation="uniform"), steps=80, lr=1e-2,
                            layout="csr", exclude="lm_head", repeats=3)
    found.save(folder + "/out")
    print(found, file=sys.stderr)
    print(json.dumps({**found.card, "names": [p.name for p in found.beside]}))
    """
)

SECOND = DATA + textwrap.dedent(
    """
    from ellzero.network.targets import load_pruned
    done, card = load_pruned(folder + "/out", {"input_ids": example}, repeats=1)
    with torch.no_grad():
        fidelity = evaluate(done.model)
    print(json.dumps({"fidelity": fidelity, "packed": sum(row.chosen == "csr" for row in done.report()),
                      "card": card, "tied": done.model.lm_head.weight is done.model.model.embed_tokens.weight}))
    """
)


def clean(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_road_from_a_hugging_face_folder_to_a_met_target_in_clean_processes(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, max_position_embeddings=8, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    first = clean(FIRST, tmp_path)
    assert first["names"] == ["dense float32", "dense bfloat16", "dense int8"]
    assert first["reference"] > 0.9
    assert first["met"]
    assert first["taken"]["loss"] <= 0.05
    assert first["taken"]["density"] < 0.31
    second = clean(SECOND, tmp_path)
    assert second["fidelity"] == pytest.approx(first["taken"]["fidelity"], abs=1e-6)
    assert second["fidelity"] >= first["reference"] - 0.05
    assert second["packed"] == 7
    assert second["tied"]
    assert second["card"]["note"] == first["note"]

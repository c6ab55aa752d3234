"""Ensembles: the formulas, the same function as one autoencoder, files, and training on what is left."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ellzero.autoencoder.ensemble import FILE, Bagging, Boosting
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError

X = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32) * 3 + 1
T = torch.from_numpy(X)
OPTIONS = {"lr": 0.01, "batch_size": 64, "steps": 30}
KINDS = {
    "topk": {}, "abs_topk": {}, "batchtopk": {}, "relu_l1": {}, "jumprelu": {}, "k_sparse": {},
    "topk scaled": {"inputs": ExpectedNorm()}, "batchtopk scaled": {"inputs": ExpectedNorm()},
}  # fmt: skip


def build(kind="topk", d_sae=16, k=2, **options):
    return lambda seed: SparseAutoencoder.from_preset(
        kind.split()[0], d_in=8, d_sae=d_sae + seed, k=k, seed=seed, **{**KINDS[kind], **options}
    )  # fmt: skip


@pytest.mark.parametrize("way", [Bagging, Boosting])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_single_one_is_the_same_function(kind, way, tmp_path):
    with torch.enable_grad():
        both = way.train(build(kind), X, 3, **OPTIONS)
    rest, want = T, torch.zeros_like(T)
    for one in both.members:
        told = one(rest if way is Boosting else T)
        want, rest = want + told * (1 if way is Boosting else 1 / 3), rest - told
    torch.testing.assert_close(both(T), want)
    single = both.to_single()
    torch.testing.assert_close(single(T), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.encode(T), both.encode(T), rtol=1e-5, atol=1e-5)
    assert single.d_sae == both.d_sae == 16 + 17 + 18
    if way is Bagging and kind.split()[0] in ("batchtopk", "relu_l1", "jumprelu"):
        assert single.architecture == "jumprelu"
    single.save(tmp_path / "single")
    torch.testing.assert_close(SparseAutoencoder.load(tmp_path / "single")(T), single(T))
    both.save(tmp_path / "both")
    again = type(both).load(tmp_path / "both")
    assert type(again) is way
    torch.testing.assert_close(again(T), both(T), rtol=1e-5, atol=1e-5)
    found = evaluate(both, X)
    assert found["fvu"] == pytest.approx(evaluate(single, X)["fvu"], rel=1e-4)
    scaled = both.to_single()
    scaled.rescale(2.0)
    torch.testing.assert_close(scaled(2 * T), 2 * single(T), rtol=1e-4, atol=1e-4)


def test_members_are_those_trained_one_by_one():
    bag = Bagging.train(build(), X, 2, **OPTIONS)
    boost = Boosting.train(build(), X, 2, **OPTIONS)
    first, second, third = (build()(seed) for seed in (0, 1, 1))
    SAETrainer(first, **OPTIONS).fit(X)
    SAETrainer(second, **OPTIONS).fit(X)
    with torch.no_grad():
        left = T - first(T)
    SAETrainer(third, **OPTIONS).fit(left)
    for made, want in ((bag, (first, second)), (boost, (first, third))):
        for one, other in zip(made.members, want):
            torch.testing.assert_close(one.W_dec, other.W_dec)
            torch.testing.assert_close(one.b_dec, other.b_dec)
    assert len(boost.first(1)) == 1
    assert evaluate(boost, X)["fvu"] < evaluate(boost.first(1), X)["fvu"]


def test_batches_give_the_rest_too():
    parts = [X[:200], T[200:]]
    made = Boosting.train(build(), parts, 2, **OPTIONS)
    assert evaluate(made, X)["fvu"] < evaluate(made.first(1), X)["fvu"]

    class Epochs:
        def batches(self, epoch):
            return ((part, None) for part in parts[:: 1 if epoch % 2 else -1])

        def __iter__(self):
            return (part for part, _ in self.batches(0))

    made = Boosting.train(build(), Epochs(), 2, **OPTIONS)
    assert evaluate(made, X)["fvu"] < evaluate(made.first(1), X)["fvu"]
    with pytest.raises(InputError, match="acts: got an iterator"):
        Boosting.train(build(), iter(parts), 2, **OPTIONS)


def test_what_makes_no_ensemble_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="members: got none"):
        Bagging([])
    with pytest.raises(InputError, match=r"members: take \[8, 4\] features"):
        Bagging([build()(0), SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2)])
    with pytest.raises(InputError, match=r"inputs LayerNorm"):
        Bagging([build(inputs=LayerNorm())(0)])
    with pytest.raises(InputError, match="encoder Gated"):
        Bagging([SparseAutoencoder.from_preset("gated", d_in=8, d_sae=8, k=2)]).to_single()
    with pytest.raises(InputError, match="selects by PrefixNorm"):
        Bagging([SparseAutoencoder.from_preset("top_afa", d_in=8, d_sae=8, k=2)]).to_single()
    with pytest.raises(InputError, match="z: got shape"):
        Bagging([build()(0)]).decode(T)
    with pytest.raises(InputError, match="cannot be read"):
        Bagging.load(tmp_path)
    Bagging([build()(0)]).save(tmp_path)
    held = json.loads((tmp_path / FILE).read_text())
    for key, value, named in (
        ("version", 9, "version 9"),
        ("kind", "Sum", "kind: got 'Sum'"),
        ("format", "x", "no ensemble"),
    ):
        (tmp_path / FILE).write_text(json.dumps({**held, key: value}))
        with pytest.raises(InputError, match=named):
            Bagging.load(tmp_path)

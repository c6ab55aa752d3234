"""Several autoencoders in one pass end as each does alone, to the bit, also after a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.autoencoder.many import train_many
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError
from ellzero.models.activations import ActivationStream
from ellzero.models.joint_stream import JointStream
from ellzero.models.transformer import TransformerConfig

X = np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32) + 1
Y = np.random.default_rng(1).standard_normal((900, 6)).astype(np.float32)
# preset, latents, learning rate, engine
KINDS = {
    "topk": ("topk", 24, 0.01, "dense"), "wide": ("topk", 600, 0.003, "auto"), "batch": ("batchtopk", 24, 0.01, "auto"),
    "price": ("relu_l1", 16, 0.02, "auto"), "jump": ("jumprelu", 24, 0.01, "auto"),
}  # fmt: skip


def make(kind, d_in=8, **options):
    preset, d_sae, lr, engine = KINDS[kind]
    sae = SparseAutoencoder.from_preset(preset, d_in=d_in, d_sae=d_sae, k=2)
    return SAETrainer(sae, **{"lr": lr, "engine": engine, "batch_size": 64, "steps": 30, "seed": 3, **options})


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("source", ["array", "list"])
def test_each_ends_with_the_same_bits_as_alone(source):
    acts = X if source == "array" else [X[:150], X[150:]]
    many = {kind: make(kind, average=0.9 if kind == "topk" else None) for kind in KINDS}
    found = train_many(many, acts)
    for kind, trainer in many.items():
        alone = make(kind, average=0.9 if kind == "topk" else None)
        want = alone.fit(acts)
        assert found[kind].losses == want.losses
        assert same(alone.sae, trainer.sae), kind
        assert not trainer.sae.training


def test_arrays_of_several_widths_share_the_order_of_rows():
    many = {"x": make("topk"), "again": make("price"), "y": make("topk", 6)}
    train_many(many, {"x": X, "again": X, "y": Y})
    for key, (acts, kind) in {"x": (X, "topk"), "again": (X, "price"), "y": (Y, "topk")}.items():
        alone = make(kind, acts.shape[1])
        alone.fit(acts)
        assert same(alone.sae, many[key].sae), key


def test_what_is_beside_the_rows_reaches_each():
    slopes = np.random.default_rng(2).standard_normal(X.shape).astype(np.float32)
    pair = [SAETrainer(SparseAutoencoder.from_preset("g_sae", d_in=8, d_sae=16, k=2), steps=9, lr=0.01, batch_size=64)
            for _ in range(2)]  # fmt: skip
    train_many({"a": pair[0]}, X, beside=slopes)
    pair[1].fit(X, beside=slopes)
    assert same(pair[0].sae, pair[1].sae)


class Killed(Exception):
    pass


@pytest.mark.parametrize("source", ["array", "list"])
def test_a_killed_pass_goes_on_and_ends_with_the_same_bits(source, tmp_path):
    acts = X if source == "array" else [X[:150], X[150:]]
    kinds = ("topk", "price")
    whole = {kind: make(kind) for kind in kinds}
    train_many(whole, acts)
    cut, count = {kind: make(kind) for kind in kinds}, []
    plain = cut["price"].loss

    def dies(sae, batch):
        count.append(1)
        if len(count) == 17:
            raise Killed
        return plain(sae, batch)

    cut["price"].loss = dies
    with pytest.raises(Killed):
        train_many(cut, acts, checkpoint=tmp_path, every=5)
    again = {kind: make(kind) for kind in kinds}
    found = train_many(again, acts, checkpoint=tmp_path, every=5)
    for kind in kinds:
        assert min(found[kind].losses) == 16
        assert same(whole[kind].sae, again[kind].sae)
    with pytest.raises(InputError, match=r"trainers: got \['topk'\], want \['price', 'topk'\]"):
        train_many({"topk": make("topk")}, acts, checkpoint=tmp_path)


def model():
    return TransformerConfig(vocabulary=40, width=8, depth=3, heads=2, key_heads=1, hidden=16, context=16).build()


TOKENS = [list(np.random.default_rng(i).integers(0, 40, 30 + 3 * i)) for i in range(12)]


def stream(net, hook, **options):
    settings = {"tokens": TOKENS, "context": 16, "batch_size": 50, "buffer": 120, "sequences": 4, "seed": 1, **options}
    return ActivationStream(net, hook=hook, **settings)


def test_layers_share_one_forward_pass_and_each_comes_as_alone():
    net, calls = model(), []
    net.layers[0].register_forward_hook(lambda *_: calls.append(1))
    streams = [stream(net, hook) for hook in ("layers.0", "layers.2.attention")]
    joint = list(JointStream(streams).batches(epoch=2))
    passes = len(calls)
    for number, one in enumerate(streams):
        alone = list(one.batches(epoch=2))
        assert len(calls) == (number + 2) * passes
        assert len(alone) == len(joint)
        for (rows, origin), (both, both_origin) in zip(alone, joint):
            assert torch.equal(both[:, 8 * number : 8 * number + 8], rows)
            assert (origin == both_origin).all()
    many = {name: make("topk", batch_size=40, steps=20) for name in ("layers.0", "layers.1")}
    train_many(many, {name: stream(net, name) for name in many})
    for name, trainer in many.items():
        alone = make("topk", batch_size=40, steps=20)
        alone.fit(stream(net, name))
        assert same(alone.sae, trainer.sae)


def test_streams_that_do_not_go_together_are_refused_by_name(tmp_path):
    net = model()
    one = stream(net, "layers.0")
    for other, named in (
        (stream(net, "layers.0"), "each module once"), (stream(net, "layers.1", seed=2), "differ in seed"),
        (stream(net, "layers.1", tokens=TOKENS[:5]), "different texts"), (stream(model(), "layers.1"), "one model"),
        (stream(net, "layers.1", cache=tmp_path), "no cache"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            JointStream([one, other])


@pytest.mark.parametrize(
    ("trainers", "acts", "named"),
    [
        ({}, X, "trainers: got none"), ({"a": 3}, X, r"trainers\['a'\]: got int"),
        ({"a": ("topk", {}), "b": ("topk", {"steps": 4})}, X, "steps: got {'a': 30, 'b': 4}"),
        ({"a": ("topk", {})}, {"b": X}, "acts: got"),
        ({"a": ("topk", {}), "b": ("topk", {})}, {"a": X, "b": X[:9]}, "acts: got"),
        ({"a": ("topk", {}), "b": ("topk", {"d_in": 5})}, X, r"trainers\['b'\]: takes 5 features"),
        ({"a": ("topk", {}), "b": ("topk", {})}, {"a": X, "b": [X]}, "a stream beside an array"),
        ({"a": ("topk", {}), "b": ("topk", {})}, {"a": [X], "b": [X + 1]}, "not ActivationStreams"),
    ],
)  # fmt: skip
def test_what_cannot_share_a_pass_is_refused_by_name(trainers, acts, named):
    made = {key: make(one[0], **one[1]) if isinstance(one, tuple) else one for key, one in trainers.items()}
    with pytest.raises(InputError, match=named):
        train_many(made, acts)
    one = make("topk")
    with pytest.raises(InputError, match="twice"):
        train_many({"a": one, "b": one}, X)

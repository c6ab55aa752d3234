"""Probes and prompts: convex optima, frames that stay frames, label maps by hand, sources that never move."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import InputError
from ellzero.models.cnn import CNNConfig
from ellzero.models.mlp import MLPConfig
from ellzero.network.reprogramming import (
    Reprogrammed,
    VisualPrompt,
    iterative_label_map,
    linear_probe,
    n_shot,
    reprogram,
    temperature,
    transfer_report,
)
from ellzero.rng import rng


def images(n=30, side=4, channels=1):
    X = torch.from_numpy(rng(0, "images").standard_normal((n, channels, side, side))).float()
    return X, X.flatten(1)[:, :3].argmax(1)


def source():
    return MLPConfig(36, 5, (12,)).build()


def prompt():
    return VisualPrompt((1, 6, 6), (4, 4), flatten=True)


# -- probes


def test_a_probe_is_at_the_optimum_of_its_objective_and_does_not_touch_the_source():
    model = CNNConfig(1, 5, (4, 6)).build().train()
    before = copy.deepcopy(model.state_dict())
    X, y = images(60, 8)
    probe = linear_probe(model, (X, y), alpha=0.01, tol=1e-8)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training
    assert "source" not in probe.state_dict()
    assert not list(model.head._forward_pre_hooks)
    features = probe.features(X).double()
    assert features.shape == (60, 6)
    size = features.square().mean().sqrt()
    weight = (probe.head.weight * size).clone().requires_grad_()
    bias = probe.head.bias.clone().requires_grad_()
    value = nn.functional.cross_entropy(features / size @ weight.T + bias, y) + 0.005 * weight.square().sum()
    value.backward()
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-6
    torch.testing.assert_close(probe(X), probe.head(features))


def test_a_probe_reads_the_layer_named():
    probe = linear_probe(source(), (torch.randn(20, 36, generator=torch.Generator().manual_seed(0)),
                                    torch.arange(20) % 4), layer="layers.0")  # fmt: skip
    assert probe.head.weight.shape == (4, 36)


# -- prompts


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.data())
def test_the_image_is_in_the_middle_and_the_rest_is_the_frame(channels, height, width, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    if (h, w) == (height, width):
        return
    made = VisualPrompt((channels, height, width), (h, w))
    with torch.no_grad():
        made.delta.fill_(7)
    x = torch.ones(2, channels, h, w)
    out = made(x)
    assert out.shape == (2, channels, height, width)
    assert int((out == 1).sum()) == 2 * channels * h * w
    assert int((out == 7).sum()) == 2 * channels * (height * width - h * w)
    top, left = (height - h) // 2, (width - w) // 2
    assert (out[:, :, top : top + h, left : left + w] == 1).all()
    out.sum().backward()
    assert (made.delta.grad == 2 * made.frame).all()


def test_one_channel_goes_to_all_and_other_sizes_are_resized():
    made = VisualPrompt((3, 8, 8), (6, 6))
    out = made(torch.full((2, 1, 3, 5), 0.25))
    torch.testing.assert_close(out[:, :, 1:7, 1:7], torch.full((2, 3, 6, 6), 0.25))
    assert (out[:, :, 0] == 0).all()


# -- label maps


def test_the_map_is_greedy_one_to_one_and_by_hand():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.1, 0.5, 0.4], [0.55, 0.25, 0.2]])
    y = torch.tensor([0, 0, 1, 1])
    # means: class 0: .7 .2 .1; class 1: .325 .375 .3 -> 0 takes 0, then 1 takes 1
    assert iterative_label_map(p.log(), y).tolist() == [0, 1]
    q = torch.tensor([[0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.7, 0.2, 0.1]]).clamp_min(1e-9)
    # both prefer 0: class 1 (.8 over .6) takes it, class 0 gets 1
    assert iterative_label_map(q.log(), torch.tensor([0, 1, 1])).tolist() == [1, 0]
    # by frequency: class 0 says 0, 0; class 1 says 0, 0, 1 -> 0 takes 0, 1 takes 1
    r = torch.eye(3)[[0, 0, 0, 0, 1]]
    assert iterative_label_map(10 * r, torch.tensor([0, 0, 1, 1, 1]), by="frequency").tolist() == [0, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 4))
def test_no_source_class_stands_for_two_and_the_first_pair_is_the_best(seed, targets, more):
    draw = rng(seed, "map")
    y = torch.from_numpy(np.concatenate([np.arange(targets), draw.integers(0, targets, 20)]))
    logits = torch.from_numpy(draw.standard_normal((len(y), targets + more)))
    found = iterative_label_map(logits, y)
    assert len(set(found.tolist())) == targets
    p = logits.softmax(1)
    mean = torch.stack([p[y == c].mean(0) for c in range(targets)])
    assert float(mean.max()) == pytest.approx(max(float(mean[c, s]) for c, s in enumerate(found.tolist())))


# -- reprogramming


def test_only_the_frame_learns_and_the_map_is_of_training_rows():
    model = source().train()
    before, wanted = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    X, y = images()
    made = prompt()
    program = reprogram(model, (X, y), made, epochs=15, lr=0.05, batch_size=10)
    first = Reprogrammed(model, prompt(), iterative_label_map(model(prompt()(X)).detach(), y))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert program.prompt is made
    assert (made.delta[made.frame == 0] == 0).all()
    losses = [float(nn.functional.cross_entropy(one(X).detach(), y)) for one in (first, program)]
    assert losses[1] < losses[0] - 0.02
    assert torch.equal(program.labels, iterative_label_map(model(made(X)).detach(), y))  # the last epoch's
    assert set(program.state_dict()) == {"labels", "prompt.delta", "prompt.frame"}


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    whole = reprogram(source(), images(), prompt(), epochs=6, batch_size=10)

    class Stops(VisualPrompt):
        calls = itertools.count()

        def forward(self, x):
            if self.training and x.shape[0] == 10 and next(self.calls) == 11:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        reprogram(source(), images(), Stops((1, 6, 6), (4, 4), flatten=True), epochs=6, batch_size=10,
                  checkpoint=tmp_path, every=3)  # fmt: skip
    again = reprogram(source(), images(), prompt(), epochs=6, batch_size=10, checkpoint=tmp_path, every=3)
    assert torch.equal(whole.prompt.delta, again.prompt.delta)
    assert torch.equal(whole.labels, again.labels)


def test_shots_are_of_each_class():
    y = rng(0, "y").permutation(np.repeat(np.arange(4), 9))
    rows = n_shot(y, 3, seed=1)
    assert np.bincount(y[rows]).tolist() == [3] * 4
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, n_shot(y, 3, seed=1))
    with pytest.raises(InputError, match="n: got 10"):
        n_shot(y, 10)


# -- how good it is


def test_the_temperature_undoes_a_scale_of_true_logits():
    draw = rng(0, "temperature")
    logits = torch.from_numpy(2 * draw.standard_normal((20_000, 4)))
    y = (logits + torch.from_numpy(draw.gumbel(size=(20_000, 4)))).argmax(1)
    assert temperature(3 * logits, y) == pytest.approx(3, rel=0.05)
    assert temperature(0.5 * logits, y) == pytest.approx(0.5, rel=0.05)

    class Loud(nn.Module):
        def forward(self, x):
            return 3 * x

    found = transfer_report(Loud(), (logits[:10_000], y[:10_000]), (logits[10_000:], y[10_000:]))
    assert found.accuracy == pytest.approx(float((logits[:10_000].argmax(1) == y[:10_000]).double().mean()))
    assert found.calibration > 0.1
    assert found.scaled < 0.02


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: VisualPrompt((1, 6, 6), (6, 6)), "inner"), (lambda: VisualPrompt((1, 6), (4, 4)), "source"),
        (lambda: VisualPrompt((1, 6, 6), (7, 4)), "inner"), (lambda: VisualPrompt((1, 6, 6), (0, 4)), "inner"),
        (lambda: prompt()(torch.zeros(2, 3, 4, 4)), "x: got shape"), (lambda: prompt()(torch.zeros(2, 16)), "x"),
        (lambda: iterative_label_map(torch.zeros(3, 2), torch.arange(3)), "y: has 3 classes"),
        (lambda: iterative_label_map(torch.zeros(2, 3), torch.tensor([0, 2])), "class 1 has no row"),
        (lambda: iterative_label_map(torch.zeros(2, 3), torch.tensor([0, 1]), by="mean"), "by"),
        (lambda: iterative_label_map(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), "y"),
        (lambda: reprogram(source(), images(), nn.Identity()), "prompt"),
        (lambda: reprogram(source(), images()[0], prompt()), "train_part"),
        (lambda: reprogram(source(), images(), prompt(), epochs=0), "epochs"),
        (lambda: reprogram(source(), images(), prompt(), lr=0.0), "lr"),
        (lambda: linear_probe(nn.ReLU(), images()), "model"),
        (lambda: linear_probe(source(), images(side=6), layer="layer.0"), "layer.*did you mean"),
        (lambda: linear_probe(source(), images(side=6), alpha=0.0), "alpha"),
        (lambda: temperature(torch.zeros(3), torch.arange(3)), "logits"),
        (lambda: n_shot([0, 1], 0), "n"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(call, named):
    with pytest.raises(InputError, match=named):
        call()

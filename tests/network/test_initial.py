"""Masks before training: derivatives against differences, conserved flow, sampling and sketching against simulation."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.initial import (
    Fixed,
    magnitudes,
    masks_of,
    random_search,
    ratios_of,
    required_width,
    sketch_bound,
    sketch_error,
    snip,
    synaptic_flow,
    synflow,
)
from ellzero.network.prunable import prunable
from ellzero.network.recipes import rigl, static
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.allocations import Uniform, kept_count
from ellzero.rng import rng
from tests.network.test_sparsifier import OPTIMIZERS, STEPS, Small, advance, batch, set_up


def loss(model, rows):
    x, y = rows
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(x.to(dtype)), y)


def chain(sizes, seed=0, bias=False):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(rng(seed, name).standard_normal(tuple(p.shape)) / p.shape[-1] ** 0.5))
    return model


# -- scores


def test_snip_is_the_derivative_by_differences():
    model, rows = Small().double(), [batch(1), batch(2)]
    found = snip(model, loss, rows)
    total = lambda: sum(float(loss(model, one).detach()) for one in rows)  # noqa: E731
    for name, weight in prunable(model)[0].items():
        for at in rng(0, name).choice(weight.numel(), 8, replace=False):
            flat = weight.data.view(-1)
            was, h = float(flat[at]), 1e-5
            flat[at] = was + h
            above = total()
            flat[at] = was - h
            below = total()
            flat[at] = was
            want = abs(was * (above - below) / (2 * h))
            assert float(found[name].flatten()[at]) == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_flow_is_conserved_through_units_and_layers():
    model = chain((7, 9, 5, 4))
    flow = list(synaptic_flow(model, torch.ones(1, 7)).values())
    totals = [float(f.sum()) for f in flow]
    assert totals == pytest.approx([totals[0]] * 3)
    for into, out in itertools.pairwise(flow):
        assert torch.allclose(into.sum(1), out.sum(0))
    paths = np.ones((1, 7))  # the sum over all paths of products of sizes
    for layer in model[::2]:
        paths = paths @ layer.weight.detach().double().abs().numpy().T
    assert totals[0] == pytest.approx(paths.sum())


@pytest.mark.parametrize("density", [0.5, 0.05, 0.01])
def test_synflow_keeps_the_count_and_a_path_through_every_layer(density):
    model = chain((30, 40, 40, 40, 10))
    before = copy.deepcopy(model.state_dict())
    masks = synflow(model, torch.ones(3, 30), density)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, density)
    assert all(mask.any() for mask in masks.values())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    held = copy.deepcopy(model)
    for name, mask in masks.items():
        held.get_parameter(name).data.mul_(mask)
    assert all(f.sum() > 0 for f in synaptic_flow(held, torch.ones(1, 30)).values())


def test_one_round_of_synflow_cuts_by_the_first_flow():
    model = chain((6, 8, 3))
    flow = synaptic_flow(model, torch.ones(1, 6))
    assert all(torch.equal(mask, masks_of(flow, 0.3)[n]) for n, mask in synflow(model, torch.ones(1, 6), 0.3,
                                                                                 rounds=1).items())  # fmt: skip


# -- masks from scores


def test_the_largest_of_the_whole_network_are_kept():
    scores = magnitudes(Small())
    masks = masks_of(scores, 0.2)
    every = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.cat([m.flatten() for m in masks.values()])
    assert kept.sum() == math.ceil(0.2 * len(every))
    assert every[kept].min() >= every[~kept].max()
    uniform = masks_of(scores, 0.2, allocation=Uniform())
    assert all(int(m.sum()) == math.ceil(0.2 * m.numel() - 1e-9) for m in uniform.values())


def test_a_sample_of_one_prefers_scores_in_proportion():
    scores = {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([3.0, 4.0])}
    times = np.zeros(5)
    for seed in range(2000):
        masks = masks_of(scores, 0.2, sample=seed)
        times += np.concatenate([masks["a"].numpy(), masks["b"].numpy()])
    assert times.sum() == 2000
    assert np.abs(times / 2000 - np.array([1, 2, 0, 3, 4]) / 10).max() < 0.04
    again = masks_of(scores, 0.6, sample=3)
    assert all(torch.equal(m, masks_of(scores, 0.6, sample=3)[n]) for n, m in again.items())


def test_ratios_place_the_same_counts_at_random():
    model = Small()
    masks = masks_of(snip(model, loss, [batch(1)]), 0.2)
    recipe = static(0.2, allocation=ratios_of(masks), seed=4)
    sparsifier = Sparsifier(model, recipe, optimizer=OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    for name, mask in sparsifier.masks.items():
        assert mask.sum() == masks[name].sum()
    assert any(not torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_a_recipe_stays_inside_a_random_source():
    *_, source = set_up(static(0.5, seed=1))
    within = {name: mask.clone() for name, mask in source.masks.items()}
    model, made, sparsifier = set_up(rigl(0.2, every=2, drop=0.5), within=within)
    total = sparsifier.report().kept
    for step in range(1, STEPS + 1):
        advance(model, made, sparsifier, step)
        assert not any((mask & ~within[name]).any() for name, mask in sparsifier.masks.items())
        assert sparsifier.report().kept == total


# -- what a random start allows


@pytest.mark.parametrize(("density", "edges", "delta"), [(0.3, 50, 0.1), (0.5, 10, 0.3), (0.1, 200, 0.5)])
def test_the_required_width_holds_all_edges_as_often_as_said(density, edges, delta):
    k = required_width(density, edges, delta)
    draw, trials = rng(0, "width", edges), 4000
    held = np.mean([(draw.random((edges, k)) < density).any(1).all() for _ in range(trials)])
    assert held == pytest.approx((1 - (1 - density) ** k) ** edges, abs=0.02)
    assert held > 1 - delta - 0.02
    assert edges * (1 - density) ** (k - 1) > delta  # one less does not meet the bound
    assert required_width(1.0, edges) == 1


def test_the_sketch_bound_is_the_simulated_error():
    draw = rng(0, "sketch")
    X, w = draw.standard_normal((20, 12)) * np.geomspace(0.2, 5, 12), draw.standard_normal(12)
    w[3] = 0
    norms = np.linalg.norm(X, axis=0)
    bounds = {}
    for name, p in {"uniform": np.ones(12), "size": abs(w), "best": norms * abs(w)}.items():
        bounds[name] = sketch_bound(X, w, p, 5)
        assert sketch_error(X, w, p, 5, draws=40_000) == pytest.approx(bounds[name], rel=0.03)
        assert sketch_bound(X, w, 7 * p, 10) == pytest.approx(bounds[name] / 2)
    assert bounds["best"] < min(bounds["size"], bounds["uniform"])
    for seed in range(50):  # the least of all
        other = norms * abs(w) * np.exp(rng(seed, "p").standard_normal(12) * 0.3)
        assert sketch_bound(X, w, other, 5) >= bounds["best"]


# -- random search


def test_random_search_gives_the_best_of_its_candidates():
    model, rows = chain((4, 9, 16, 3), bias=True), (torch.randn(32, 4, generator=torch.Generator().manual_seed(0)),
                                                   torch.arange(32) % 3)  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    found = random_search(model, loss, rows, 0.25, candidates=40, seed=2)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(found.losses) == 40
    assert found.loss == found.losses.min() < found.losses.max()
    held = copy.deepcopy(model)
    for name, mask in found.masks.items():
        held.get_parameter(name).data.mul_(mask)
    assert float(loss(held, rows).detach()) == pytest.approx(found.loss)
    one, two, last = found.masks.values()
    assert one.any(1).sum() == 5 and two.any(1).sum() == 8  # half of 9 and of 16, rounded up  # noqa: PT018
    assert torch.equal(one, one.any(1)[:, None].expand(9, 4))
    assert torch.equal(two, two.any(1)[:, None] & one.any(1)[None])
    assert torch.equal(last, two.any(1)[None].expand(3, 16))
    again = random_search(model, loss, rows, 0.25, candidates=40, seed=2)
    assert np.array_equal(again.losses, found.losses)


X, W = np.ones((3, 2)), np.ones(2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: snip(Small(), loss, []), lambda: snip(nn.LayerNorm(3), loss, [batch(1)]),
        lambda: synflow(chain((3, 3)), torch.ones(1, 3), 0), lambda: synflow(chain((3, 3)), torch.ones(1, 3), 0.5,
                                                                              rounds=0),
        lambda: synflow(chain((3, 3)), torch.ones(1, 3, dtype=torch.int64), 0.5),
        lambda: masks_of({"a": -torch.ones(3)}, 0.5), lambda: masks_of({"a": torch.ones(3) * torch.nan}, 0.5),
        lambda: masks_of({"a": torch.ones(3)}, 1.5), lambda: Fixed((("a", 4),)).counts({"a": (3,)}, 0.5),
        lambda: Fixed(()).counts({"a": (3,)}, 0.5), lambda: required_width(0, 3), lambda: required_width(0.5, 0),
        lambda: required_width(0.5, 3, 1), lambda: sketch_bound(X, W, np.array([1.0, 0.0]), 3),
        lambda: sketch_bound(X, W, np.array([1.0, -1.0]), 3), lambda: sketch_bound(X, W, np.zeros(2), 3),
        lambda: sketch_bound(X, np.ones(3), W, 3), lambda: sketch_bound(X, W, W, 0),
        lambda: sketch_error(X, W, W, 3, draws=0), lambda: random_search(Small(), loss, batch(1), 0.5),
        lambda: random_search(chain((3, 3)), loss, batch(1), 0.5),
        lambda: random_search(chain((3, 3, 3)), loss, batch(1), 0), lambda: random_search(
            chain((3, 3, 3)), loss, batch(1), 0.5, candidates=0),
    ],
)  # fmt: skip
def test_bad_input_is_refused(build):
    with pytest.raises(InputError, match=r"want|not finite|no chain|no weight"):
        build()

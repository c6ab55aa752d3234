"""Weights that stay dense underneath, patterns in place of counts, penalties and dense momentum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.network.moves import ByPattern
from ellzero.network.recipes import Recipe
from ellzero.network.sparsifier import Sparsifier
from ellzero.network.views import Through
from ellzero.parts.allocations import Uniform
from ellzero.parts.constraints import NM
from ellzero.parts.gradients import Masked, StraightThrough
from ellzero.parts.schedules import Constant, Linear
from ellzero.parts.scores import Magnitude, Momentum, Random
from ellzero.rng import rng

STEPS = 20


class Pair(nn.Module):
    """A convolution whose 5 input channels no group of 4 divides, and a tied pair."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(5, 8, 2), nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(rng(0, name).standard_normal(tuple(parameter.shape)) * 0.4))

    def forward(self, x):
        return self.two(self.one(self.conv(x).flatten(1).relu()).relu())


def built(recipe, lr=0.1, **options):
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options)
    return model, optimizer, Sparsifier(model, recipe, optimizer=optimizer, steps=STEPS)


def advance(model, optimizer, sparsifier, step):
    x = torch.from_numpy(rng(step, "x").standard_normal((6, 5, 2, 2)).astype(np.float32))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    sparsifier.step()
    return x


def two_of_four(through):
    return Recipe(Constant(1.0), Uniform(), move=ByPattern(lambda progress: NM(2, 4)), through=through, every=1)


@pytest.mark.parametrize("through", [None, Through(), Through(decay=0.1), Through(Masked(), Linear(1.0, 0.0))])
def test_every_group_of_inputs_keeps_two_of_four(through):
    model, optimizer, sparsifier = built(two_of_four(through))
    for step in range(1, STEPS + 1):
        advance(model, optimizer, sparsifier, step)
        conv, linear = sparsifier.masks["conv.weight"], sparsifier.masks["one.weight"]
        assert (linear.reshape(8, 2, 4).sum(-1) == 2).all()
        assert (conv[:, :4].sum(1) == 2).all()  # the fifth channel is alone in its group
        assert conv[:, 4].all()
    weights = dict(sparsifier.weights)
    x = advance(model, optimizer, sparsifier, STEPS + 1)
    sparsifier._apply()
    seen = model(x)
    sparsifier.remove()
    assert model.two.weight is model.one.weight is weights["one.weight"]
    assert (model.one.weight.reshape(8, 2, 4).count_nonzero(-1) == 2).all()
    torch.testing.assert_close(model(x), seen)
    assert set(model.state_dict()) == set(Pair().state_dict())


def test_the_gradient_rule_decides_what_dropped_entries_receive():
    for through, dropped in ((Through(), True), (Through(Masked()), False)):
        model, optimizer, sparsifier = built(two_of_four(through), lr=0.0)
        advance(model, optimizer, sparsifier, 1)
        closed = ~sparsifier.masks["one.weight"]
        assert bool((sparsifier.weights["one.weight"].grad[closed] != 0).any()) == dropped


def test_the_share_that_shows_scales_value_and_derivative():
    model, *_ = built(two_of_four(Through(Masked(), Constant(0.25))))
    view = model.one.parametrizations.weight[0]
    weight = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    seen = view(weight)
    torch.testing.assert_close(seen, weight.where(view.mask, 0.25 * weight))
    assert torch.autograd.gradcheck(view, weight)


def test_a_decay_pulls_only_what_is_dropped_and_once_per_step():
    plain, decayed = built(two_of_four(Through())), built(two_of_four(Through(decay=0.5)))
    before = plain[2].weights["one.weight"].detach().clone()
    mask = plain[2].masks["one.weight"].clone()
    for model, optimizer, _ in (plain, decayed):
        x = torch.ones(6, 5, 2, 2)
        for _ in range(2):  # two passes, one step
            (model(x).square().mean() / 2).backward()
        optimizer.step()
    change = plain[2].weights["one.weight"].detach() - decayed[2].weights["one.weight"].detach()
    torch.testing.assert_close(change, (0.1 * 0.5 * before).masked_fill(mask, 0), atol=1e-6, rtol=0)


def test_a_penalty_sees_weights_gradients_and_progress():
    seen = []

    def penalty(weights, gradients, progress):
        seen.append(progress)
        return {name: torch.ones_like(weight) for name, weight in weights.items()}

    model, optimizer, sparsifier = built(Recipe(Constant(1.0), Uniform(), penalty=penalty), lr=1.0)
    before = model.one.weight.detach().clone()
    model.one.weight.grad = torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(model.one.weight.detach(), before - 1)
    sparsifier.step()
    sparsifier.remove()
    optimizer.step()
    assert seen == [0.0]


def test_dense_momentum_remembers_what_is_dropped():
    recipe = Recipe(
        Constant(0.3), Uniform(), Magnitude(), Random(0), grow=Momentum(), turnover=Constant(0.5), every=2,
        dense_momentum=True,
    )  # fmt: skip
    model, optimizer, sparsifier = built(recipe, momentum=0.9)
    for step in range(1, 6):
        advance(model, optimizer, sparsifier, step)
        closed = ~sparsifier.masks["one.weight"]
        assert (model.one.weight[closed] == 0).all()
        assert (optimizer.state[model.one.weight]["momentum_buffer"][closed] != 0).any()
        assert sparsifier.report().kept == sum(int(m.sum()) for m in sparsifier.masks.values()) > 0


def test_the_cost_counts_sparse_and_dense_products():
    sparse = built(Recipe(Constant(0.25), Uniform(), start=Random(0), until=0.0))
    grown = built(Recipe(Constant(0.25), Uniform(), start=Random(0), grow=lambda w, g, s: g.abs(), every=2,
                         turnover=Constant(0.5)))  # fmt: skip
    for model, optimizer, sparsifier in (sparse, grown):
        for step in range(1, 3):
            advance(model, optimizer, sparsifier, step)
    assert sparse[2].report().cost.training == pytest.approx(0.25)
    assert grown[2].report().cost.training == pytest.approx((0.25 + (2 * 0.25 + 1) / 3) / 2)
    assert "training 0.250" in str(sparse[2].report())


def test_a_rule_sees_the_dense_straight_through_copy():
    model, optimizer, sparsifier = built(two_of_four(Through(StraightThrough())))
    weight = sparsifier.weights["one.weight"]
    for step in range(1, 4):
        advance(model, optimizer, sparsifier, step)
    assert (weight != 0).all()
    assert torch.equal(model.one.weight != 0, sparsifier.masks["one.weight"])

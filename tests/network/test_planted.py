"""Planted tickets: targets that are what they say, found again under the masks of a network that hides them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.planted import (
    BOUNDARIES,
    Target,
    circle_data,
    circle_target,
    helix,
    helix_data,
    helix_target,
    plant,
    relu_data,
    relu_target,
    source,
)
from ellzero.network.prunable import prunable

TARGETS = {
    "relu": (relu_target(6, depth=4), relu_data(200, 6, noise=0)[0], (6, 20, 15, 20, 1)),
    "circle": (circle_target(10, depth=5), circle_data(200, noise=0)[0], (2, 100, 50, 40, 30, 4)),
    "circle, no room to spare": (circle_target(4), circle_data(200, noise=0)[0], (2, 8, 1, 4)),
    "helix": (helix_target(30, depth=3), helix_data(200, noise=0)[0], (1, 80, 60, 3)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_ticket_alone_is_the_target(name):
    target, X, sizes = TARGETS[name]
    model = source(sizes, seed=3).double()
    before = copy.deepcopy(model)
    planted = plant(model, target)
    whole = model(torch.from_numpy(X)).detach().numpy()
    assert set(planted.masks) == set(prunable(model)[0])
    assert sum(int(mask.sum()) for mask in planted.masks.values()) == target.size
    for key, mask in planted.masks.items():
        weight = model.get_parameter(key).data
        assert torch.equal(weight[~mask], before.get_parameter(key).data[~mask])
        weight.mul_(mask)
    assert np.abs(model(torch.from_numpy(X)).detach().numpy() - target(X)).max() < 1e-9
    assert name.endswith("spare") or np.abs(whole - target(X)).max() > 0.01  # the rest hides it
    for units, scales in zip(planted.units, planted.scales):
        assert len(set(units.tolist())) == len(units)
        assert (scales > 0).all()


def test_each_unit_takes_the_nearest_of_the_free():
    model, target = source((2, 30, 1)).double(), Target((np.eye(2), np.ones((1, 2))), (np.array([0.5, 0]), np.zeros(1)))
    rows = np.column_stack([model[0].bias.detach(), model[0].weight.detach()])
    planted = plant(model, target)

    def gap(row, want):
        on = want != 0
        scale = row[on] @ want[on] / (want[on] @ want[on])
        return abs(row[on] - scale * want[on]).sum() / (scale * abs(want).sum()) if scale > 0 else np.inf

    first = min(range(30), key=lambda unit: gap(rows[unit], np.array([0.5, 1, 0])))
    assert planted.units[0][0] == first
    assert planted.units[0][1] != first
    assert rows[planted.units[0][1], 2] > 0


def test_targets_are_near_what_they_stand_for():
    X, y = relu_data(500, 7, noise=0)
    assert np.abs(relu_target(7)(X) - y).max() < 1e-12
    t, curve = helix_data(500, noise=0)
    assert np.abs(helix_target(30)(t) - curve).max() < 1.1 * (3 * np.pi / 30) ** 2 / 8  # of a radius of at most 1
    knots = np.arange(31) / 30
    assert np.abs(helix_target(30)(knots[:, None]) - helix(knots)).max() < 1e-9
    X, y = circle_data(4000, noise=0)
    radius = (X**2).sum(1)
    far = np.min([abs(radius - bound) for bound in BOUNDARIES], axis=0) > 2 / 10**2
    assert far.mean() > 0.8
    assert (circle_target(10)(X).argmax(1) == y)[far].all()
    for bound in BOUNDARIES:  # the scores of neighbours cross there
        scores = circle_target(1000)(np.array([[np.sqrt(bound), 0.0]]))[0]
        assert np.sort(scores)[-1] == pytest.approx(np.sort(scores)[-2], abs=1e-3)


def test_noise_touches_the_share_it_says():
    clean, noisy = circle_data(20_000, noise=0, seed=1)[1], circle_data(20_000, noise=0.2, seed=1)[1]
    assert np.mean(clean != noisy) == pytest.approx(0.2 * 0.75, abs=0.02)
    assert np.std(relu_data(5000, noise=0.1)[1] - relu_data(5000, noise=0)[1]) == pytest.approx(0.1, rel=0.05)


def test_the_source_keeps_the_size_of_its_values():
    model = source((50, 400, 400, 3), seed=1)
    assert float(model[0].weight.detach().std()) == pytest.approx((2 / 50) ** 0.5, rel=0.05)
    assert float(model[2].bias.detach().std()) == pytest.approx((2 / 50) ** 0.5 * (2 / 400) ** 0.5, rel=0.15)


@pytest.mark.parametrize(
    "build",
    [
        lambda: relu_target(0), lambda: relu_target(3, depth=1), lambda: circle_target(3), lambda: helix_target(0),
        lambda: circle_data(0), lambda: circle_data(5, noise=2), lambda: helix_data(5, noise=-1), lambda: source((3,)),
        lambda: source((3, 0)), lambda: plant(source((2, 5, 4)), circle_target(10)),
        lambda: plant(source((2, 10, 1, 4)), circle_target(10)), lambda: plant(nn.Linear(3, 1), relu_target(3)),
        lambda: plant(nn.ReLU(), relu_target(3)), lambda: relu_target(3)(np.ones((2, 4))),
    ],
)  # fmt: skip
def test_bad_input_is_refused(build):
    with pytest.raises(InputError, match="want"):
        build()

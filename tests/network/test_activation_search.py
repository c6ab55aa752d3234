"""Late acceptance, activations with a shape, and the two stages on small networks."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.models.mlp import MLPConfig
from ellzero.network.activation_search import (
    POOL,
    Activation,
    activation_sites,
    late_acceptance,
    search_activations,
    shape_and_tune,
    with_activations,
)
from ellzero.network.cycles import cut, fitter
from ellzero.training import losses
from ellzero.training.loop import Batches
from ellzero.training.threads import threads_for


@pytest.fixture(autouse=True)
def _one_thread():
    with threads_for(0):
        yield


x = torch.linspace(-4, 4, 81, dtype=torch.float64)


def model(seed=0):
    first, middle, last = MLPConfig(8, 3, (12, 10)).build(seed).layers
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)


def rows(n=120, seed=0):
    X = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return X, (X[:, 0] * X[:, 1] > 0).long() + (X[:, 2] > 1).long()


@pytest.mark.parametrize("name", POOL)
def test_each_function_is_finite_and_has_its_derivative(name):
    act = Activation(name, a=1.3, b=0.7, learned=True).double()
    torch.testing.assert_close(act(x), 1.3 * POOL[name](0.7 * x), rtol=1e-6, atol=1e-7)
    points = torch.tensor([-2.1, -0.4, 0.3, 1.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, a, b: a * POOL[name](b * p), (points, act.a, act.b))


def test_activations_are_exchanged_in_a_copy():
    net = model()
    assert activation_sites(net) == ("1", "3")
    other = with_activations(net, ("tanh", "symlog"))
    inside = net[0](rows()[0])
    expected = net[4](POOL["symlog"](net[2](inside.tanh())))
    torch.testing.assert_close(other(rows()[0]), expected)
    assert isinstance(net[1], nn.ReLU)
    assert [p.requires_grad for p in other[1].parameters()] == [False, False]
    assert activation_sites(other) == ("1", "3")


def test_plain_climbing_never_accepts_worse_and_late_acceptance_can_leave_a_hill():
    heights = [0, 3, 1, 1, 2, 9, 0]  # a hill at 1, the mountain at 5

    def climb(history, evaluations=200):
        draw = np.random.default_rng(0)
        step = lambda place: int(np.clip(place + draw.choice([-1, 1]), 0, 6))  # noqa: E731
        return late_acceptance(0, lambda place: float(heights[place]), step, history=history, evaluations=evaluations)

    assert climb(1).best == 1
    late = climb(20, 2000)
    assert (late.best, late.score) == (5, 9.0)
    assert len(late.scores) == 2000
    assert late_acceptance(2, float, lambda place: place, evaluations=1).scores == (2.0,)


def test_the_same_candidate_is_scored_once():
    calls = []
    late_acceptance(0, lambda v: calls.append(v) or 0.0, lambda v: 1 - v, evaluations=20)
    assert sorted(calls) == [0, 1]


def fits(**settings):
    X, y = rows()
    return fitter(losses.classification, lambda seed: Batches(X, y, batch_size=32, seed=seed),
                  **{"steps": 15, "lr": 0.1, "clip": 5.0, **settings})  # fmt: skip


def judge(net):
    X, y = rows(200, 1)
    with torch.no_grad():
        return float((net(X).argmax(1) == y).double().mean())


def test_the_search_scores_each_choice_as_a_fit_of_its_own_does():
    net = model()
    masks = cut(net, 0.5)
    pool = ("relu", "tanh")
    found = search_activations(net, masks, fits(), judge, pool=pool, evaluations=14, history=3)
    every = {}
    for names in itertools.product(pool, repeat=2):
        candidate = with_activations(net, names)
        fits()(candidate, masks, 0)
        every[names] = judge(candidate)
    assert set(found.climb.scores) <= set(every.values())
    assert every[found.names] == found.score == max(found.climb.scores)
    again = search_activations(net, masks, fits(), judge, pool=pool, evaluations=14, history=3)
    assert again.climb.scores == found.climb.scores
    assert found.climb.scores[0] == every["relu", "relu"]


def test_the_second_stage_learns_the_shape_within_the_masks():
    net = model()
    masks = cut(net, 0.3)
    space = {"lr": (0.1, 0.02), "weight_decay": (1e-4, 0.0)}
    best, settings, score = shape_and_tune(net, ("tanh", "swish"), masks, fits, judge, space, trials=3)
    assert settings in [{"lr": lr, "weight_decay": decay} for lr in space["lr"] for decay in space["weight_decay"]]
    assert score == judge(best)
    assert {float(p.detach()) for p in best[1].parameters()} != {1.0}
    for name, mask in masks.items():
        assert not best.get_parameter(name)[~mask].any()
    fixed = shape_and_tune(net, ("relu", "relu"), masks, fits, judge, space, trials=1, learned=False)[0]
    assert [float(p) for p in fixed[1].parameters()] == [1.0, 1.0]


def test_bad_input_is_named():
    net = model()
    masks, search = cut(net, 0.5), partial(search_activations, model(), fit=fits(), judge=judge)
    for call, name in (
        (lambda: search(masks, pool=("relu", "tan")), "pool"), (lambda: search(masks, pool=("relu",)), "pool"),
        (lambda: search(masks, evaluations=0), "evaluations"), (lambda: search(masks, history=0), "history"),
        (lambda: with_activations(net, ("relu",)), "names"), (lambda: Activation("rely"), "name"),
        (lambda: activation_sites(MLPConfig(4, 2).build()), "model"),
        (lambda: late_acceptance(0, lambda v: float("nan"), lambda v: v), "score"),
        (lambda: shape_and_tune(net, ("relu", "relu"), masks, fits, judge, {"lr": ()}), "space"),
        (lambda: shape_and_tune(net, ("relu", "relu"), masks, fits, judge, {"lr": (0.1,)}, trials=0), "trials"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}"):
            call()

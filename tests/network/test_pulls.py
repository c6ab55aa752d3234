"""Pulls against autograd and by hand, and their recipes against the laws of all recipes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.adaptive import adaptive_training, epochs_of
from ellzero.network.cycles import cut, fitter
from ellzero.network.pulls import HyperSparse, Irrelevance, hyper_sparse, irrelevance
from ellzero.rng import rng
from ellzero.training.loop import Batches
from tests.network import test_sparsifier as laws

RECIPES = {
    "hyper_sparse": hyper_sparse(0.2, strength=1e-3, begin=0.1, end=0.5),
    "hyper_sparse uniform": hyper_sparse(0.2, strength=1e-3, begin=0.0, end=1.0, allocation="uniform"),
    "irrelevance": irrelevance(0.2, strength=1e-2),
    "irrelevance erk": irrelevance(0.2, strength=1e-2, end=0.3, allocation="erk"),
}


def draw(*shape, name="w"):
    return torch.from_numpy(rng(0, "pulls", name).standard_normal(shape))


@pytest.mark.parametrize("density", [0.02, 0.3, 0.7])
def test_the_pull_of_hyper_sparse_is_the_derivative_of_its_term(density):
    weights = {"a": draw(9, 7).requires_grad_(), "b": (0.1 * draw(31, name="b")).requires_grad_()}
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    going = math.floor((1 - density) * len(flat))
    s = 0.6585 / sorted(flat.abs().tolist())[going - 1]
    t = torch.tanh(s * flat.abs())
    term = (flat.abs() * (t.sum() / t.sum().detach())).sum() - flat.abs().sum()
    # the sum over j stands beside each |w_i|: sum_i |w_i| * ratio, with the ratio's value 1
    assert term.item() == pytest.approx(0, abs=1e-12)
    term.backward()
    found = HyperSparse(density).derivative(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-10, atol=1e-12)


def test_the_largest_that_is_to_go_feels_two_thirds_and_far_larger_ones_nothing():
    weight = torch.cat([torch.linspace(1e-9, 1, 95), torch.linspace(5, 9, 5)]).double() * torch.tensor([1, -1]).repeat(
        50
    )
    pull = HyperSparse(0.05).derivative({"w": weight})["w"]
    assert (pull.sign() == weight.sign()).all()
    assert pull[94].abs() / pull[0].abs() == pytest.approx(2 / 3, abs=1e-4)
    assert pull[95:].abs().max() < 0.01 * pull[0].abs()


def test_its_strength_grows_by_the_epoch_within_its_window():
    pull = HyperSparse(0.1, strength=0.5, growth=2.0, epochs=10, begin=0.2, end=0.6)
    weights = {"w": draw(50)}
    one = pull.derivative(weights)["w"]
    assert pull(weights, {}, 0.19) == pull(weights, {}, 0.6) == {}
    for progress, factor in ((0.2, 0.5), (0.3, 1.0), (0.5, 4.0)):
        torch.testing.assert_close(pull(weights, {}, progress)["w"], factor * one)


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_nothing_pulls_where_nothing_is_to_go(density):
    weight = torch.tensor([0.0, 0.0, 0.0, 2.0, -1.0]) if density < 1 else draw(5)
    assert not HyperSparse(density).derivative({"w": weight})["w"].any()


def test_irrelevance_by_hand():
    weight = torch.tensor([1.0, -2.0, 0.0, 4.0])
    gradient = torch.tensor([0.0, 1.0, 30.0, -2.0])
    found = Irrelevance(strength=0.1, scale=2.0)({"w": weight}, {"w": gradient}, 0.5)["w"]  # mean |g| where w: 1
    want = [0.1, -0.2 * math.exp(-1 / 2), 0.0, 0.4 * math.exp(-2 / 2)]
    assert found.tolist() == pytest.approx(want, rel=1e-6)
    assert not Irrelevance()({"w": weight}, {"w": None}, 0.5)["w"].any()
    assert Irrelevance(end=0.5)({"w": weight}, {"w": gradient}, 0.5) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_layer_that_feels_nothing_decays_whole(dtype):
    weight = torch.tensor([1.0, -2.0, 0.0], dtype=dtype)
    found = Irrelevance(0.5)({"w": weight}, {"w": torch.zeros(3, dtype=dtype)}, 0.0)["w"]
    assert found.dtype == dtype
    assert found.tolist() == [0.5, -1.0, 0.0]


def test_small_derivatives_do_not_change_what_is_irrelevant():
    weight, gradient = draw(40), draw(40, name="g")
    pulls = [Irrelevance()({"w": weight}, {"w": scale * gradient}, 0.0)["w"] for scale in (1.0, 1e-6)]
    torch.testing.assert_close(*pulls)


@pytest.mark.parametrize("name", RECIPES)
def test_a_pull_reaches_the_weights(name):
    recipe = RECIPES[name]
    model, made, sparsifier = laws.set_up(recipe)
    still, still_made, other = laws.set_up(laws.dense())
    for step in range(1, 6):
        laws.advance(model, made, sparsifier, step)
        laws.advance(still, still_made, other, step)
    pulled, free = (sum(w.detach().abs().sum() for w in s.weights.values()) for s in (sparsifier, other))
    assert pulled < free


@pytest.mark.parametrize("optimizer", laws.OPTIMIZERS)
@pytest.mark.parametrize("name", RECIPES)
def test_counts_are_exact_and_nothing_drifts(monkeypatch, name, optimizer):
    monkeypatch.setitem(laws.SHORT, name, RECIPES[name])
    laws.test_counts_are_exact_at_every_step_and_nothing_drifts(name, optimizer, "float32")


@pytest.mark.parametrize("name", RECIPES)
def test_a_reloaded_run_goes_on_identically(monkeypatch, name):
    monkeypatch.setitem(laws.SHORT, name, RECIPES[name])
    laws.test_a_saved_and_reloaded_run_goes_on_identically(name)


@pytest.mark.parametrize(
    "build",
    [
        lambda: hyper_sparse(0), lambda: hyper_sparse(1.5), lambda: hyper_sparse(0.1, strength=-1),
        lambda: hyper_sparse(0.1, growth=0.9), lambda: hyper_sparse(0.1, epochs=0), lambda: hyper_sparse(0.1, begin=1),
        lambda: hyper_sparse(0.1, begin=0.6, end=0.5), lambda: hyper_sparse(0.1, end=1.1),
        lambda: hyper_sparse(0.1, allocation="globl"), lambda: irrelevance(float("nan")),
        lambda: irrelevance(0.1, strength=-1e-9), lambda: irrelevance(0.1, scale=0), lambda: irrelevance(0.1, end=0),
        lambda: irrelevance(0.1, allocation="er"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(build):
    with pytest.raises(InputError, match="want"):
        build()


# -- the stop rule


class Scripted:
    """Epochs that shift the weights by one, and a judge that reads its answers from lists."""

    def __init__(self, whole, pruned):
        self.whole, self.pruned = iter(whole), iter(pruned)
        self.pulls, self.fits = [], []
        self.model = nn.Linear(5, 4, bias=False)
        with torch.no_grad():
            self.model.weight.copy_(torch.arange(20).reshape(4, 5))

    def epoch(self, model, pull, number):
        assert number == len(self.pulls)
        self.pulls.append(pull)
        with torch.no_grad():
            model.weight += 1

    def fit(self, model, masks, seed):
        self.fits.append((copy.deepcopy(model.state_dict()), masks, seed))

    def judge(self, model):
        return next(self.whole if (model.weight != 0).all() else self.pruned)

    def run(self, **options):
        return adaptive_training(self.model, self.epoch, self.fit, self.judge, 0.25, **options)


def test_the_pull_ends_when_the_cut_costs_nothing_on_average_and_the_middle_epoch_is_kept():
    # means of three cut copies 0.60, 0.72, 0.81, 0.91 against those of the models 0.9, 0.9, 0.9, 0.9
    script = Scripted([0.9] * 9, [0.5, 0.6, 0.7, 0.86, 0.87, 1.0, 1.0, 1.0, 1.0])
    found = script.run(warm=2, limit=9, strength=0.25, growth=2.0, seed=5)
    assert found.stopped
    assert found.epochs == 6
    assert found.pruned == (0.5, 0.6, 0.7, 0.86, 0.87, 1.0)
    assert script.pulls[:2] == [None, None]
    assert [pull.strength for pull in script.pulls[2:]] == [0.25 * 2**e for e in range(6)]
    assert all(pull({"w": draw(9)}, {}, 0.0) and pull.density == 0.25 for pull in script.pulls[2:])
    ((state, masks, seed),) = script.fits
    middle = torch.arange(20.0).reshape(4, 5) + 2 + 5  # two warm epochs, and the fifth of six pulled ones
    assert torch.equal(masks["weight"], middle >= middle.flatten()[-5])
    assert torch.equal(state["weight"], middle * masks["weight"])
    assert seed == 5
    assert found.ticket.density == 0.25


def test_without_a_stop_the_limit_ends_it():
    found = Scripted([0.9] * 4, [0.5] * 4).run(warm=0, limit=4, radius=0)
    assert not found.stopped
    assert found.epochs == 4


def test_its_epochs_are_those_of_the_training_loop():
    X, y = draw(60, 6).float(), torch.from_numpy(rng(0, "y").integers(0, 3, 60))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    epoch = epochs_of(loss, Batches(X, y, batch_size=20), optimizer=optimizer, steps=3)
    fit = fitter(loss, lambda seed: Batches(X, y, batch_size=20, seed=seed), steps=6)
    judge = lambda net: float((net(X).argmax(1) == y).double().mean())  # noqa: E731
    found = adaptive_training(model, epoch, fit, judge, 0.2, warm=3, limit=30, strength=1e-2, growth=1.3)
    assert found.stopped
    weights = {"0.weight": model[0].weight, "2.weight": model[2].weight}
    assert sum(int(w.count_nonzero()) for w in weights.values()) <= math.ceil(0.2 * 144)
    assert all((weights[name][~mask] == 0).all() for name, mask in found.ticket.masks.items())
    assert sum(int(mask.sum()) for mask in cut(model, 0.2).values()) == math.ceil(0.2 * 144)
    assert not optimizer._optimizer_step_pre_hooks  # the pull has let go


@pytest.mark.parametrize(
    "changed",
    [{"warm": -1}, {"limit": 2}, {"radius": -1}, {"strength": -1}, {"growth": 0.5}, {"radius": 2, "limit": 4}],
)
def test_a_bad_procedure_is_refused_before_any_epoch(changed):
    script = Scripted([], [])
    with pytest.raises(InputError, match="want"):
        script.run(**{"warm": 1, "limit": 5, **changed})
    assert script.pulls == []
    with pytest.raises(InputError, match="judge: got NaN"):
        Scripted([np.nan], [0.5]).run(warm=0, limit=5)

"""Evolution strategies on functions of known optima and on networks: masks, batches of members, tickets, resuming."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import InputError
from ellzero.models.cnn import CNNConfig
from ellzero.models.mlp import MLPConfig
from ellzero.network import evolution
from ellzero.network.evolution import SNES, SepCMAES, evolutionary_tickets, evolve, population_losses
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches

SEARCHES = [SepCMAES, SNES]


def rows(n=40):
    X = torch.from_numpy(rng(0, "evolution rows").standard_normal((n, 6))).float()
    return X, X[:, :3].argmax(1)


def net(seed=0):
    return MLPConfig(6, 3, (8,)).build(seed)


def masks(seed=0, share=0.4):
    return {name: torch.from_numpy(rng(seed, "mask", name).random(tuple(p.shape)) < share)
            for name, p in net().named_parameters() if p.ndim == 2}  # fmt: skip


def batches(seed=0):
    return Batches(*rows(), batch_size=16, seed=seed)


def run(model, **options):
    options = {"generations": 5, "population": 8, **options}
    return evolve(model, losses.classification, options.pop("batches", batches()), **options)


# -- search distributions


@pytest.mark.parametrize("make", SEARCHES)
def test_it_finds_the_optimum_of_a_stretched_bowl_and_learns_its_axes(make):
    stretch, goal = np.array([1.0, 1.0, 100.0, 100.0]), np.array([1.0, -2.0, 0.5, 3.0])
    search = make(np.zeros(4), 0.5, population=16, seed=1)
    for _ in range(60):
        search.tell((stretch * (search.ask() - goal) ** 2).sum(1))
    wide, narrow = search.deviations[:2].mean(), search.deviations[2:].mean()
    assert 3 < wide / narrow < 30  # 10 at the ideal
    for _ in range(200):
        search.tell((stretch * (search.ask() - goal) ** 2).sum(1))
    np.testing.assert_allclose(search.mean, goal, atol=1e-3)


@pytest.mark.parametrize("make", SEARCHES)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(4, 20))
def test_only_the_order_of_losses_counts_and_draws_repeat(make, seed, n, population):
    one, two = (make(np.zeros(n), 0.3, population=population, seed=seed) for _ in range(2))
    for _ in range(3):
        points, again = one.ask(), two.ask()
        np.testing.assert_array_equal(points, again)
        value = np.abs(points - 0.5).sum(1)
        one.tell(value)
        two.tell(np.exp(value) - 3)
    np.testing.assert_array_equal(one.mean, two.mean)
    np.testing.assert_array_equal(one.deviations, two.deviations)


@pytest.mark.parametrize("make", SEARCHES)
def test_under_losses_at_random_the_deviations_stay_of_one_size(make):
    search, draw = make(np.zeros(500), 0.1, population=16), rng(0, "chance")
    for _ in range(100):
        search.ask()
        search.tell(draw.random(16))
    assert 0.5 < np.median(search.deviations) / 0.1 < 1.5


def test_snes_takes_the_step_of_its_formula():
    search = SNES([1.0, 2.0], 0.5, population=4, seed=3)
    search.ask()
    noise, order = search.noise.astype(float), [2, 0, 3, 1]
    search.tell(np.argsort(order))
    raw = np.maximum(0, math.log(3) - np.log([1, 2, 3, 4]))
    utility = raw / raw.sum() - 0.25
    rate = (3 + math.log(2)) / (5 * math.sqrt(2))
    np.testing.assert_allclose(search.mean, [1, 2] + 0.5 * utility @ noise[order])
    np.testing.assert_allclose(search.deviations, 0.5 * np.exp(rate / 2 * utility @ (noise[order] ** 2 - 1)))


def test_the_rates_of_the_separable_search_are_those_of_the_full_one_times_a_third_of_the_size():
    search = SepCMAES(np.zeros(100), population=12)
    m = search.mu
    assert search.c_one == pytest.approx(102 / 3 * 2 / (101.3**2 + m))
    assert search.c_mu == pytest.approx(102 / 3 * 2 * (m - 2 + 1 / m) / (102**2 + m))
    assert search.weights.sum() == pytest.approx(1)
    assert 1 < m < 6


@pytest.mark.parametrize("make", SEARCHES)
def test_members_without_a_finite_loss_come_last(make):
    one, two = (make(np.zeros(3), population=6) for _ in range(2))
    one.ask(), two.ask()
    one.tell([1, 2, np.nan, 3, np.inf, 4])
    two.tell([1, 2, 8, 3, 9, 4])
    np.testing.assert_array_equal(one.mean, two.mean)


@pytest.mark.parametrize("make", SEARCHES)
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda make: make(np.zeros((2, 2))), "mean"), (lambda make: make([np.nan]), "mean"),
        (lambda make: make([0.0], 0.0), "sigma"), (lambda make: make([0.0], population=3), "population"),
        (lambda make: make([0.0], seed=-1), "seed"), (lambda make: make([0.0]).tell(np.zeros(64)), "before ask"),
        (lambda make: make([0.0]).tell(np.zeros(3)), "losses"),
        (lambda make: [s := make([0.0]), s.ask(), s.tell(np.full(64, np.nan))], "none is finite"),
        (lambda make: make([0.0]).load_state_dict(make([0.0, 1.0]).state_dict()), "state"),
    ],
)  # fmt: skip
def test_a_search_refuses_what_it_cannot_use(make, call, named):
    with pytest.raises(InputError, match=named):
        call(make)


# -- on a network


@pytest.mark.parametrize("config", [MLPConfig(36, 3, (8,)), CNNConfig(1, 3, (4,))])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_population_is_judged_as_its_members_one_by_one(config, chunk):
    model = config.build()
    X = torch.from_numpy(rng(0, "images").standard_normal((10, 1, 6, 6))).float()
    batch = (X, torch.arange(10) % 3)
    stacked = {
        name: p.detach() + 0.1 * torch.from_numpy(rng(1, name).standard_normal((5, *p.shape))).float()
        for name, p in model.named_parameters()
    }
    found = population_losses(model, losses.classification, batch, stacked, chunk=chunk)
    for i in range(5):
        twin = config.build()
        twin.load_state_dict({**twin.state_dict(), **{name: value[i] for name, value in stacked.items()}})
        torch.testing.assert_close(found[i], losses.classification(twin.eval(), batch).detach())


@pytest.mark.parametrize("strategy", ["sep_cma_es", "snes"])
def test_a_search_learns_within_its_masks(strategy):
    model, own = net(), masks()
    before = losses.classification(evolution.put(net(), own), rows()).item()
    sigma = run(model, strategy=strategy, masks=own, generations=60, sigma=0.1, population=16)
    assert losses.classification(model, rows()).item() < 0.7 * before
    for name, mask in own.items():
        assert (model.get_parameter(name)[~mask] == 0).all()
        assert (sigma[name][~mask] == 0).all()
        assert (sigma[name][mask] > 0).all()
    assert (sigma["layers.0.bias"] > 0).all()
    layout = evolution._Layout(model, own)
    assert layout.size == sum(int(mask.sum()) for mask in own.values()) + 11
    np.testing.assert_allclose(layout.tree(layout.flat())["layers.0.weight"], model.layers[0].weight.detach())


@pytest.mark.parametrize("strategy", ["sep_cma_es", "snes"])
def test_an_interrupted_search_goes_on_to_the_same_bits(strategy, tmp_path):
    whole, broken, fresh = net(), net(), net()
    sigma = run(whole, strategy=strategy, masks=masks())

    class Stops:
        def __init__(self):
            self.inner, self.drawn = batches(), 0

        def __iter__(self):
            return self

        def __next__(self):
            self.drawn += 1
            if self.drawn == 4:
                raise KeyboardInterrupt
            return next(self.inner)

        def state_dict(self):
            return self.inner.state_dict()

    with pytest.raises(KeyboardInterrupt):
        run(broken, strategy=strategy, masks=masks(), checkpoint=tmp_path, every=2, batches=Stops())
    again = run(fresh, strategy=strategy, masks=masks(), checkpoint=tmp_path, every=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
    assert all(torch.equal(sigma[name], again[name]) for name in sigma)
    other = {"sep_cma_es": "snes", "snes": "sep_cma_es"}[strategy]
    with pytest.raises(InputError, match="strategy"):
        run(net(), strategy=other, masks=masks(), checkpoint=tmp_path)
    with pytest.raises(InputError, match="state"):
        run(net(), strategy=strategy, checkpoint=tmp_path)


def test_the_modes_and_the_frozen_stay_as_they_were():
    model = net().train()
    model.layers[1].weight.requires_grad_(False)
    before = model.layers[1].weight.clone()
    sigma = run(model)
    assert model.training
    assert torch.equal(model.layers[1].weight, before)
    assert "layers.1.weight" not in sigma


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"strategy": "cma"}, "strategy"), ({"generations": 0}, "generations"), ({"every": 0}, "every"),
        ({"sigma": -1.0}, "sigma"), ({"population": 2}, "population"), ({"batches": iter([])}, "batches"),
        ({"masks": {"layers.0.bias": torch.ones(8, dtype=torch.bool)}}, "masks"),
        ({"masks": {"layers.0.weight": torch.ones(8, 6)}}, "masks"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    with pytest.raises(InputError, match=named):
        run(net(), **changed)


# -- tickets


class Noted:
    """A fit that notes where it begins, moves every kept weight and gives deviations."""

    def __init__(self):
        self.starts = []

    def __call__(self, model, own, seed):
        self.starts.append(copy.deepcopy(model.state_dict()))
        found = {}
        for name, p in model.named_parameters():
            draw = rng(seed, "noted", name)
            with torch.no_grad():
                p.add_(torch.from_numpy(draw.standard_normal(tuple(p.shape))).float())
                if own is not None and name in own:
                    p.mul_(own[name])
            found[name] = torch.from_numpy(draw.uniform(0.1, 1, tuple(p.shape))).float()
        self.last = {name: p.detach().abs() for name, p in model.named_parameters()}, found
        return found


@pytest.mark.parametrize("score", ["snr", "magnitude", "random"])
def test_tickets_are_nested_exact_and_begin_at_the_first_weights(score):
    model, fit = net(), Noted()
    first, last = copy.deepcopy(model.state_dict()), None
    for number, density in enumerate((0.5, 0.25, 0.1)):
        cycle = evolutionary_tickets(model, fit, (0.5, 0.25, 0.1), score=score, seed=5) if number == 0 else cycle
        ticket = next(cycle)
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == math.ceil(density * 72)
        for name, mask in ticket.masks.items():
            assert last is None or not (mask & ~last[name]).any()
            assert torch.equal(fit.starts[-1][name], first[name] * mask)
        assert torch.equal(fit.starts[-1]["layers.0.bias"], first["layers.0.bias"])
        last = ticket.masks
    assert ticket.sigma.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("score", ["snr", "magnitude"])
def test_what_stays_has_the_largest_score(score):
    model, fit = net(), Noted()
    fit_states = []

    def kept(model, own, seed):
        found = fit(model, own, seed)
        fit_states.append(fit.last)
        return found

    ticket = next(evolutionary_tickets(model, kept, [0.3], score=score))
    sizes, sigma = fit_states[0]
    value = {name: sizes[name] / (sigma[name] if score == "snr" else 1) for name in ticket.masks}
    inside = min(float(value[name][mask].min()) for name, mask in ticket.masks.items())
    outside = max(float(value[name][~mask].max()) for name, mask in ticket.masks.items())
    assert inside > outside


def test_fresh_weights_replace_the_first_ones():
    fit = Noted()
    next(evolutionary_tickets(net(), fit, [0.5], score="random", fresh=lambda seed: net(40 + seed)))
    mask = fit.starts[-1]["layers.0.weight"] != 0
    torch.testing.assert_close(fit.starts[-1]["layers.0.weight"], net(41).layers[0].weight.detach() * mask)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"score": "ratio"}, "score"), ({"densities": [0.5, 0.6]}, "densities"), ({"densities": []}, "densities"),
        ({"fit": lambda *_: {}}, "fit: gave no deviations"),
    ],
)  # fmt: skip
def test_tickets_that_cannot_be_are_refused(changed, named):
    given = {"fit": Noted(), "densities": [0.5], **changed}
    with pytest.raises(InputError, match=named):
        list(evolutionary_tickets(net(), given.pop("fit"), given.pop("densities"), **given))


def test_a_model_of_which_nothing_is_kept_is_refused():
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(InputError, match="masks"):
        evolution._Layout(model, {"weight": torch.zeros(2, 3, dtype=torch.bool)})

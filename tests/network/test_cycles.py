"""Cycles of pruning and training against plain loops; averages, batch norms, and the tolerance loop."""

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
from ellzero.network.cycles import (
    anytime_progressive_pruning,
    average_of,
    cut,
    fitter,
    geometric_densities,
    iterative_magnitude_pruning,
    prune_to_tolerance,
    refresh_norms,
    sparse_soup,
    swamp,
)
from ellzero.network.initial import snip
from ellzero.network.pulls import Irrelevance
from ellzero.parts.allocations import kept_count
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng
from ellzero.training.loop import Batches
from tests.network.test_sparsifier import Small, batch

NUMEL = 36 + 256 + 48  # convolution, tied pair, head
INPUTS = (torch.zeros(8, 1, 4, 4),)


def loss(model, rows):
    x, y = rows
    return nn.functional.cross_entropy(model(x), y)


def batches(seed):
    xs, ys = zip(*(batch(i) for i in range(4)))
    return Batches(torch.cat(xs), torch.cat(ys), batch_size=8, seed=seed)


def made_fit(**options):
    return fitter(loss, batches, **{"steps": 4, **options})


class Noted:
    """A fit that notes the state it was called at, and then trains."""

    def __init__(self, **options):
        self.calls, self.fit = [], made_fit(**options)

    def __call__(self, model, masks, seed):
        self.calls.append((copy.deepcopy(model.state_dict()), masks, seed))
        return self.fit(model, masks, seed)


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def held(model, masks):
    weights = dict(model.named_parameters())
    return all((weights[name][~mask] == 0).all() for name, mask in masks.items())


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- cuts


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 1 / NUMEL])
def test_a_cut_keeps_the_largest_of_all_layers_and_changes_nothing(density):
    model = Small()
    before = copy.deepcopy(model.state_dict())
    masks = cut(model, density)
    sizes = torch.cat([dict(model.named_parameters())[n].detach().abs().flatten() for n in masks])
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert flat.sum() == kept_count(NUMEL, density)
    assert flat.all() or sizes[flat].min() >= sizes[~flat].max()
    assert equal(model.state_dict(), before)


def test_a_cut_stays_within_the_masks_and_within_the_layers_named():
    model = Small()
    first = cut(model, 0.5)
    with torch.no_grad():
        model.one.weight[~first["one.weight"]] = 9.0  # large, but gone
    second = cut(model, 0.25, first)
    assert kept(second) == kept_count(NUMEL, 0.25)
    assert all(not (second[name] & ~first[name]).any() for name in first)
    uniform = cut(model, 0.25, allocation="uniform", exclude="head")
    assert {name: int(mask.sum()) for name, mask in uniform.items()} == {"conv.weight": 9, "one.weight": 64}
    with pytest.raises(InputError, match=r"masks: got none for 'conv.weight'"):
        cut(model, 0.2, {})
    with pytest.raises(InputError, match=r"masks: got torch.float32 .* want booleans"):
        cut(model, 0.2, {name: mask.float() for name, mask in first.items()})


@given(density=st.floats(0.001, 0.99), cycles=st.integers(1, 12))
def test_geometric_densities_fall_by_one_factor_to_the_last(density, cycles):
    found = geometric_densities(density, cycles)
    assert found[-1] == density
    ratios = np.array(found) / np.array([1.0, *found[:-1]])
    assert np.allclose(ratios, ratios[0])


# -- averages


def states(n, masks=None):
    found = []
    for seed in range(n):
        model = Small()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += torch.from_numpy(rng(seed, name).standard_normal(tuple(parameter.shape)))
                if masks is not None and name in masks:
                    parameter.masked_fill_(~masks[name], 0)
            model.norm.running_mean.fill_(seed)
        found.append(model.state_dict())
    return found


def test_the_average_is_the_mean_of_parameters_and_keeps_tied_weights_tied():
    made, shares = states(3), [1.0, 2.0, 5.0]
    found = average_of(Small(), iter(made), shares)
    for name, _ in Small().named_parameters():
        want = np.average([state[name].double() for state in made], axis=0, weights=shares)
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-6)
    assert torch.equal(found["norm.running_mean"], made[0]["norm.running_mean"])
    model = Small()
    model.load_state_dict(found)
    assert torch.equal(model.two.weight, found["one.weight"])
    assert equal(states(1)[0], average_of(model, states(1)))


@settings(max_examples=20)
@given(seed=st.integers(0, 99), n=st.integers(2, 5), density=st.floats(0.05, 0.9))
def test_models_of_one_mask_average_within_it_and_others_fill_in(seed, n, density):
    draws = [{"one.weight": torch.from_numpy(rng(seed, str(i)).random((16, 16)) < density)} for i in range(n)]
    mean = average_of(Small(), states(n, draws[0]))["one.weight"]
    assert torch.equal(mean != 0, draws[0]["one.weight"])
    apart = [states(i + 1, draws[i])[i] for i in range(n)]
    union = torch.stack([d["one.weight"] for d in draws]).any(0)
    assert torch.equal(average_of(Small(), apart)["one.weight"] != 0, union)


@pytest.mark.parametrize("shares", [[1.0], [1.0, 2.0, 3.0], [1.0, 0.0], [1.0, float("inf")], [1.0, "a"]])
def test_shares_that_do_not_fit_are_refused(shares):
    with pytest.raises(InputError, match="want"):
        average_of(Small(), states(2), shares)
    with pytest.raises(InputError, match="states: got 0, want at least one"):
        average_of(Small(), [])


def test_refreshed_norms_hold_the_plain_mean_over_batches():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
    model.append(nn.BatchNorm1d(4, track_running_stats=False))
    model[3].eval()
    inputs = [torch.from_numpy(rng(i, "x").standard_normal((n, 3)).astype(np.float32)) for i, n in enumerate((5, 8, 3))]
    modes, momentum = [m.training for m in model.modules()], model[2].momentum
    with torch.no_grad():
        hidden = [model[0](x).double().numpy() for x in inputs]
    state = torch.random.get_rng_state()
    for _ in range(2):  # not on top of what was there
        refresh_norms(model, inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_allclose(model[2].running_mean, np.mean([h.mean(0) for h in hidden], axis=0), rtol=1e-5)
    np.testing.assert_allclose(model[2].running_var, np.mean([h.var(0, ddof=1) for h in hidden], axis=0), rtol=1e-5)
    assert [m.training for m in model.modules()] == modes
    assert model[2].momentum == momentum
    with pytest.raises(InputError, match="inputs: got none"):
        refresh_norms(model, ())
    refresh_norms(nn.Linear(2, 2), ())


# -- iterative magnitude pruning


def test_the_fit_of_the_training_loop_holds_masks_and_keeps_states():
    model = Small()
    masks = cut(model, 0.3)
    fit = made_fit(keep=(2, 4), optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    found = fit(model, masks, 0)
    assert held(model, masks)
    assert len(found) == 2
    assert equal(found[1], model.state_dict())
    assert not torch.equal(found[0]["one.weight"], found[1]["one.weight"])
    again = Small()
    fit(again, masks, 0)
    assert equal(again.state_dict(), model.state_dict())
    x, y = batch(0)
    loss(model, (x, y)).backward()
    assert (model.one.weight.grad[~masks["one.weight"]] != 0).any()  # it has let go


def test_a_procedure_begun_anew_goes_through_the_fits_that_it_had(tmp_path):
    whole, again, calls = Small(), Small(), []
    early = copy.deepcopy(whole.state_dict())

    def counted(net, rows):
        calls.append(1)
        return loss(net, rows)

    def run(model, cycles, **options):
        fit = fitter(counted, batches, steps=4, **options)
        found = iterative_magnitude_pruning(model, fit, [0.5, 0.25][:cycles], rewind=early)
        return [ticket.masks for ticket in found]

    masks, steps = run(whole, 2), len(calls)
    run(again, 1, checkpoint=tmp_path, every=2)  # ended after its first cycle
    calls.clear()
    found = run(again, 2, checkpoint=tmp_path, every=2)
    assert len(calls) == steps // 3
    assert all(equal(a, b) for a, b in zip(masks, found))
    assert equal(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("masked", [True, False])
def test_a_penalty_joins_every_step_of_a_fit(masked):
    one, other = Small(), Small()
    masks = cut(one, 0.3) if masked else None
    made_fit()(one, masks, 0)
    made_fit(penalty=lambda w, g, p: {name: 0.5 * weight for name, weight in w.items()})(other, masks, 0)
    assert other.one.weight.norm() < 0.95 * one.one.weight.norm()
    assert masks is None or held(other, masks)


@pytest.mark.parametrize("within", [False, True])
def test_masks_are_nested_counts_exact_and_every_fit_starts_from_the_early_state(within):
    model = Small()
    early = {name: value.clone() for name, value in model.state_dict().items()}
    source = cut(model, 0.7) if within else None
    made_fit()(model, None, 9)  # anywhere else
    fit, densities, last = Noted(), geometric_densities(0.05, 4), source
    for cycle, ticket in enumerate(
        iterative_magnitude_pruning(model, fit, densities, rewind=early, seed=10, within=source)
    ):
        assert kept(ticket.masks) == kept_count(NUMEL, densities[cycle])
        assert ticket.density == kept(ticket.masks) / NUMEL
        assert held(ticket.model, ticket.masks)
        assert last is None or all(not (ticket.masks[name] & ~last[name]).any() for name in last)
        last = ticket.masks
    assert ticket.model is model
    assert [seed for _, _, seed in fit.calls] == [10, 11, 12, 13, 14]
    for state, masks, _ in fit.calls:
        for name, value in state.items():
            mask = (masks or {}).get("one.weight" if name == "two.weight" else name)
            assert torch.equal(value, early[name] if mask is None else early[name] * mask)


def test_what_goes_is_what_training_made_smallest():
    model, fit = Small(), made_fit()
    twin = copy.deepcopy(model)
    early = {name: value.clone() for name, value in model.state_dict().items()}
    (ticket,) = iterative_magnitude_pruning(model, fit, [0.2], rewind=early)
    fit(twin, None, 0)
    weights = dict(twin.named_parameters())
    sizes = torch.cat([weights[name].detach().abs().flatten() for name in ticket.masks])
    flat = torch.cat([mask.flatten() for mask in ticket.masks.values()])
    assert sizes[flat].min() >= sizes[~flat].max()


def test_without_rewinding_it_trains_on_from_where_it_is():
    model, fit = Small(), Noted()
    ends = []
    for ticket in iterative_magnitude_pruning(model, fit, [0.5, 0.2]):
        ends.append((copy.deepcopy(model.state_dict()), ticket.masks))
    (end, _), (_, masks) = ends
    start = fit.calls[2][0]
    assert torch.equal(start["one.weight"], end["one.weight"] * masks["one.weight"])
    assert torch.equal(start["norm.weight"], end["norm.weight"])


# -- several runs to a cycle


def test_swamp_averages_all_snapshots_of_all_particles_and_cuts_the_mean():
    model = Small()
    early = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = [batch(i)[0] for i in range(3)]
    options = {"steps": 6, "keep": (4, 6), "schedule": Cosine(1.0, 0.2, 0.0, 0.5)}
    fit, last, means = Noted(**options), None, []
    for ticket in swamp(model, fit, [0.4, 0.1], rewind=early, particles=2, seed=3, inputs=inputs):
        assert kept(ticket.masks) == kept_count(NUMEL, [0.4, 0.1][len(means)])
        assert held(model, ticket.masks)
        assert last is None or all(not (ticket.masks[name] & ~last[name]).any() for name in last)
        last = ticket.masks
        means.append(copy.deepcopy(model.state_dict()))
    assert [seed for *_, seed in fit.calls] == [3, 4, 5, 6, 7, 8]
    for state, masks, _ in fit.calls:
        for name in ("conv.weight", "norm.weight", "norm.running_var"):
            mask = (masks or {}).get(name)
            assert torch.equal(state[name], early[name] if mask is None else early[name] * mask)
    for mean, calls in zip(means, (fit.calls[2:4], fit.calls[4:])):
        snapshots = []
        for state, masks, seed in calls:
            one = Small()
            one.load_state_dict(state)
            snapshots += made_fit(**options)(one, masks, seed)
        assert len(snapshots) == 4
        for name in ("conv.weight", "one.weight", "head.bias"):
            want = torch.stack([s[name] for s in snapshots]).double().mean(0)
            torch.testing.assert_close(mean[name].double(), want, rtol=1e-5, atol=1e-7)
    statistics = Small()
    statistics.load_state_dict(means[-1])
    refresh_norms(statistics, inputs)
    assert equal(statistics.state_dict(), means[-1])


def test_a_soup_is_the_mean_of_copies_retrained_from_the_same_weights():
    model = Small()
    made_fit()(model, None, 0)
    trained = copy.deepcopy(model.state_dict())
    fit = Noted()
    tickets = [(t.masks, copy.deepcopy(model.state_dict())) for t in
               sparse_soup(model, fit, [0.4, 0.2], copies=3, inputs=[batch(0)[0]])]  # fmt: skip
    assert [kept(masks) for masks, _ in tickets] == [kept_count(NUMEL, 0.4), kept_count(NUMEL, 0.2)]
    assert [seed for *_, seed in fit.calls] == list(range(6))
    for calls, start, (masks, mean) in zip((fit.calls[:3], fit.calls[3:]), (trained, tickets[0][1]), tickets):
        ends = []
        for state, own, seed in calls:
            assert torch.equal(state["one.weight"], start["one.weight"] * masks["one.weight"])
            one = Small()
            one.load_state_dict(state)
            made_fit()(one, own, seed)
            ends.append(one.one.weight.detach().double())
        torch.testing.assert_close(mean["one.weight"].double(), sum(ends) / 3, rtol=1e-5, atol=1e-7)
        assert (mean["one.weight"] != 0).sum() <= masks["one.weight"].sum()
    assert held(model, tickets[-1][0])


def test_a_greedy_soup_takes_only_copies_that_do_not_harm():
    """Copies whose bias is 1, 5, 3: judged by the distance to 4, 5 and 3 make the best of it, and 1 would harm."""
    model = nn.Linear(3, 3)
    values = iter([1.0, 5.0, 3.0])

    def fit(one, masks, seed):
        with torch.no_grad():
            one.bias.fill_(next(values))

    judge = lambda one: -abs(float(one.bias.detach().mean()) - 4)  # noqa: E731
    (_,) = sparse_soup(model, fit, [0.5], copies=3, judge=judge)
    assert model.bias.tolist() == [4.0] * 3
    values = iter([1.0, 5.0, 3.0])
    (_,) = sparse_soup(model, fit, [0.5], copies=3)
    assert model.bias.tolist() == [3.0] * 3


# -- data that arrive


@pytest.mark.parametrize("scored", [False, True])
def test_densities_fall_to_the_last_exponent_and_no_weight_returns(scored):
    model, seen = Small(), []
    weights = {}

    def fit(net, masks, t, seed):
        weights[t] = {name: dict(net.named_parameters())[name].detach().clone() for name in masks}
        seen.append((t, seed))
        made_fit(steps=2)(net, masks, t)

    scores = (lambda net, t: snip(net, loss, [batch(t)])) if scored else None
    last = None
    for t, ticket in enumerate(anytime_progressive_pruning(model, fit, 5, scores=scores, exponent=9, seed=7)):
        exponent = [1, 3, 5, 7, 9][t]
        assert kept(ticket.masks) == kept_count(NUMEL, 0.8**exponent)
        assert held(model, ticket.masks)
        if last is not None:
            assert all(not (ticket.masks[name] & ~last[name]).any() for name in last)
        last = ticket.masks
    assert seen == [(t, 7) for t in range(5)]


def test_scores_choose_the_first_mask():
    model = Small()
    want = snip(model, loss, [batch(0)])
    ticket = next(anytime_progressive_pruning(model, lambda *_: None, 3, scores=lambda net, t: want, rate=0.1))
    flat = torch.cat([mask.flatten() for mask in ticket.masks.values()])
    sizes = torch.cat([want[name].flatten() for name in ticket.masks])
    assert flat.sum() == kept_count(NUMEL, 0.1)
    assert sizes[flat].min() >= sizes[~flat].max()


# -- to a tolerance


class Judged:
    """A model whose quality is what a list says after each fit."""

    def __init__(self, values):
        self.values, self.now, self.counts = iter(values), next(iter([1.0])), []
        self.model = nn.Linear(10, 10, bias=False)

    def fit(self, model, masks, seed):
        self.counts.append((kept(masks), seed))
        self.now = next(self.values)
        with torch.no_grad():
            model.weight.add_(0.001 * masks["weight"])

    def run(self, **options):
        return prune_to_tolerance(self.model, self.fit, lambda model: self.now, factor=0.5, **options)


def test_it_goes_on_while_one_of_two_fits_reaches_the_bar_and_goes_back_to_the_last_that_did():
    script = Judged([0.995, 0.98, 0.99, 0.97, 0.98])
    ticket = script.run(tolerance=0.01, seed=20)
    assert script.counts == [(50, 20), (25, 22), (25, 23), (13, 24), (13, 25)]
    assert kept(ticket.masks) == 25
    assert ticket.density == 0.25
    assert int(script.model.weight.count_nonzero()) == 25
    assert ticket.model is script.model


def test_where_no_cut_is_borne_the_model_is_as_before():
    script = Judged([0.1, 0.1])
    before = script.model.weight.detach().clone()
    ticket = script.run()
    assert torch.equal(script.model.weight, before)
    assert ticket.density == 1.0
    script = Judged([1.0] * 9)
    assert script.run(rounds=3).density == 0.13  # 12.5, rounded up
    assert len(script.counts) == 3


def test_a_negative_quality_has_its_tolerance_below_it():
    model = nn.Linear(4, 4)
    found = prune_to_tolerance(model, lambda *_: None, lambda net: -2.0, tolerance=0.0, rounds=1, factor=0.5)
    assert found.density == 0.5


def test_with_gated_decay_of_real_training():
    model = Small()
    made_fit(steps=20)(model, None, 0)
    x, y = (torch.cat(part) for part in zip(*(batch(i) for i in range(4))))
    judge = lambda net: float((net.eval()(x).argmax(1) == y).double().mean())  # noqa: E731
    bar = judge(model)
    fit = made_fit(steps=20, penalty=Irrelevance(1e-3))
    ticket = prune_to_tolerance(model, fit, judge, tolerance=0.1, rounds=4)
    assert judge(model) >= 0.9 * bar
    assert held(model, ticket.masks)
    assert ticket.density < 1


# -- what is refused


def run(procedure, **changed):
    model = Small()
    early = model.state_dict()
    fit = lambda *_: [early]  # noqa: E731
    given = {
        "imp": lambda densities=(0.5,), rewind=early, **o: list(
            iterative_magnitude_pruning(model, fit, densities, rewind=rewind, **o)
        ),
        "swamp": lambda densities=(0.5,), rewind=early, found=(early,), inputs=INPUTS, **o: list(
            swamp(model, lambda *_: found, densities, rewind=rewind, inputs=inputs, **o)
        ),
        "soup": lambda densities=(0.5,), **o: list(sparse_soup(model, fit, densities, **o)),
        "app": lambda megabatches=3, **o: list(anytime_progressive_pruning(model, fit, megabatches, **o)),
        "tolerance": lambda judge=lambda net: 1.0, **o: prune_to_tolerance(model, fit, judge, **o),
    }
    return given[procedure](**changed)


@pytest.mark.parametrize(
    ("procedure", "changed", "named"),
    [
        ("imp", {"densities": []}, "densities"), ("imp", {"densities": [0.2, 0.3]}, "densities"),
        ("imp", {"densities": [0.0]}, "densities"), ("imp", {"rewind": {}}, "rewind: 'conv.bias' is missing"),
        ("imp", {"rewind": {**Small().state_dict(), "x": torch.ones(1)}}, "rewind: 'x' is unknown"),
        ("imp", {"within": {"one.weight": torch.ones(16, 16, dtype=torch.bool)}}, "masks: got none for 'conv.weight'"),
        ("imp", {"allocation": "globl"}, "allocation.*did you mean"), ("imp", {"include": "nothing"}, "include"),
        ("swamp", {"particles": 0}, "particles"), ("swamp", {"densities": [1.5]}, "densities"),
        ("swamp", {"rewind": {}}, "rewind"), ("swamp", {"found": ()}, "fit: gave no snapshots"),
        ("swamp", {"inputs": ()}, "inputs: got none"), ("soup", {"copies": 0}, "copies"),
        ("soup", {"densities": [float("nan")]}, "densities"), ("soup", {}, "inputs: got none"),
        ("app", {"megabatches": 1}, "megabatches"), ("app", {"exponent": 0.5}, "exponent"),
        ("app", {"rate": 1}, "rate"),
        ("app", {"scores": lambda net, t: {"a": torch.ones(2)}}, "scores: got those of"),
        ("app", {"exclude": "nothing"}, "exclude"), ("tolerance", {"tolerance": -1}, "tolerance"),
        ("tolerance", {"factor": 1.0}, "factor"), ("tolerance", {"tries": 0}, "tries"),
        ("tolerance", {"rounds": 0}, "rounds"), ("tolerance", {"judge": lambda net: math.nan}, "judge"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(procedure, changed, named):
    with pytest.raises(InputError, match=named):
        run(procedure, **changed)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"keep": (5,)}, {"keep": (0,)}, {"every": 0}, {"keep": (2,), "checkpoint": "x"}]
)
def test_a_fit_that_cannot_be_is_refused(options):
    with pytest.raises(InputError, match="want"):
        made_fit(**options)


@pytest.mark.parametrize(("density", "cycles"), [(1.0, 3), (0.0, 3), (0.5, 0), (0.5, 1.5)])
def test_densities_that_cannot_be_are_refused(density, cycles):
    with pytest.raises(InputError, match="want"):
        geometric_densities(density, cycles)

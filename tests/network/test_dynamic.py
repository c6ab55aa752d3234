"""Moving masks against plain loops: constant fan-in, exploration, redistribution, and phases in turn."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.dynamic import (
    ConstantFanIn,
    UpperConfidence,
    ac_dc,
    dst_ee,
    sparse_momentum,
    srigl,
    undertraining_report,
)
from ellzero.network.recipes import rigl
from ellzero.network.sparsifier import Sparsifier
from tests.network.test_sparsifier import OPTIMIZERS, STEPS, Small, advance, batch, check_held, set_up
from tests.parts.test_allocations import filled


def cosine(start, step, until):
    return start * (1 + math.cos(math.pi * min(step / until, 1))) / 2


def half_step(model, optimizer, step):
    """One step of the optimiser; the dense gradient by name, from a twin that no mask touches."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter._backward_hooks = None
    x, y = batch(step)
    nn.functional.cross_entropy(twin(x), y).backward()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}


# -- constant fan-in


def by_unit(weight, gradient, mask, k, share, gamma):
    """The next mask of one layer, unit by unit; gamma None: no unit goes."""
    weight, gradient, mask = (array.reshape(len(array), -1) for array in (weight, gradient, mask))
    units, inputs = mask.shape
    kept = [(i, j) for i in range(units) for j in range(inputs) if mask[i, j]]
    to_drop = int(len(kept) * share)
    to_keep = min(len(kept) - to_drop, sum(weight[i, j] != 0 for i, j in kept))
    by_size = sorted(kept, key=lambda at: -abs(weight[at]))
    by_gradient = sorted(np.ndindex(units, inputs), key=lambda at: -abs(gradient[at]))
    left = list(range(units))
    if gamma is not None:
        salient = {*by_size[:to_keep], *by_gradient[: len(kept) - to_keep]}
        found = [sum(i == unit for i, _ in salient) for unit in range(units)]
        need = max(1, int(gamma * k))
        fewest = math.ceil(k * units / inputs)
        need = min(need, sorted(found, reverse=True)[fewest - 1])
        left = [unit for unit in range(units) if found[unit] >= need]
    wide = min(k * units // len(left), inputs)
    stay = [at for at in by_size if at[0] in left][:to_keep]
    following = np.zeros((units, inputs), dtype=bool)
    for unit in left:
        row = [j for i, j in stay if i == unit][:wide]
        row += [j for j in np.argsort(-abs(gradient[unit]), kind="stable") if j not in row][: wide - len(row)]
        following[unit, row] = True
    return following


@pytest.mark.parametrize(("density", "gamma"), [(0.1, 0.3), (0.3, 0.95), (0.15, 1.0), (0.5, 0.9)])
def test_constant_fan_in_is_what_a_loop_over_units_finds(density, gamma):
    model, made, sparsifier = set_up(srigl(density, gamma=gamma, every=2, drop=0.5, until=1.0))
    fan_in = {n: int(mask.flatten(1).sum(1)[0]) for n, mask in sparsifier.masks.items()}
    for name, count in sparsifier.recipe.allocation.counts(
        {n: tuple(w.shape) for n, w in sparsifier.weights.items()}, density
    ).items():
        units = len(sparsifier.weights[name])
        assert (sparsifier.masks[name].flatten(1).sum(1) == max(1, round(count / units))).all()
    ablated = 0
    for step in range(1, STEPS + 1):
        before = {n: mask.numpy().copy() for n, mask in sparsifier.masks.items()}
        gradient = half_step(model, made, step)
        weight = {n: w.detach().numpy().copy() for n, w in sparsifier.weights.items()}
        sparsifier.step()
        for name, mask in sparsifier.masks.items():
            rows = mask.flatten(1).numpy()
            if step % 2 == 0 or step == STEPS:
                want = by_unit(weight[name], gradient[name], before[name], fan_in[name], cosine(0.5, step, STEPS),
                               None if name == "head.weight" else gamma)  # fmt: skip
                assert np.array_equal(rows, want), (step, name)
                ablated += int((~rows.any(1)).sum())
            else:
                assert np.array_equal(mask.numpy(), before[name])
            counts = rows.sum(1)[rows.any(1)]
            assert (counts == min(fan_in[name] * len(rows) // len(counts), rows.shape[1])).all()
        assert sparsifier.masks["head.weight"].flatten(1).any(1).all()
        check_held(sparsifier, made)
    assert ablated > 0 or gamma < 0.9


def test_an_ablated_unit_returns_where_its_gradients_are_salient():
    move, masks = ConstantFanIn(0.5), {"a": torch.zeros(3, 4, dtype=torch.bool), "last": torch.ones(1, 1).bool()}
    masks["a"][:2] = True
    masks["a"][:2, 2:] = False
    weights = {"a": masks["a"] * torch.tensor([[1.0], [2.0], [0.0]]), "last": torch.ones(1, 1)}
    gradient = torch.tensor([[0.1, 0, 0, 0], [0, 0.2, 0, 0], [3.0, 2.0, 1.0, 0.5]])
    from ellzero.network.moves import Update

    seen = Update(masks, {"a": 4, "last": 1}, 0.5, 0.5, weights, {}, {}, lambda name: weights[name].abs(),
                  {"a": gradient, "last": torch.ones(1, 1)}.__getitem__)  # fmt: skip
    following = move(seen)["a"]
    assert following.tolist() == [[False] * 4, [True, False, False, False], [True, False, False, False]]


def test_constant_fan_in_stays_inside_within():
    within = {"one.weight": torch.zeros(16, 16, dtype=torch.bool)}
    within["one.weight"][:12, :6] = True
    model, made, sparsifier = set_up(srigl(0.3, every=2, drop=0.5, gamma=0.5), within=within)
    for step in range(1, STEPS + 1):
        advance(model, made, sparsifier, step)
        assert not (sparsifier.masks["one.weight"] & ~within["one.weight"]).any()
    assert sparsifier.masks["one.weight"].sum() > 20


# -- exploration


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_a_bonus_exploration_is_rigl(optimizer):
    runs = []
    for recipe in (rigl(0.2, every=2), dst_ee(0.2, every=2, c=0.0)):
        model, made, sparsifier = set_up(recipe, optimizer)
        masks = []
        for step in range(1, STEPS + 1):
            advance(model, made, sparsifier, step)
            masks.append(copy.deepcopy(sparsifier.masks))
        runs.append((masks, model.state_dict()))
    for a, b in zip(*(masks for masks, _ in runs)):
        assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(x, y) for x, y in zip(runs[0][1].values(), runs[1][1].values()))


def test_exploration_grows_by_the_gradient_and_the_rounds_in_which_an_entry_was_active():
    c, eps = 3.0, 0.5
    model, made, sparsifier = set_up(dst_ee(0.2, c=c, eps=eps, every=1, drop=0.5, until=1.0))
    active = {n: mask.numpy().astype(int) for n, mask in sparsifier.masks.items()}
    for step in range(1, STEPS + 1):
        before = {n: mask.numpy().copy() for n, mask in sparsifier.masks.items()}
        gradient = half_step(model, made, step)
        weight = {n: w.detach().numpy().copy() for n, w in sparsifier.weights.items()}
        sparsifier.step()
        for name, mask in sparsifier.masks.items():
            k = before[name].sum()
            stay = k - int(cosine(0.5, step, STEPS) * k)
            best = np.argsort(-np.where(before[name], abs(weight[name]), -1).ravel(), kind="stable")[:stay]
            kept = np.isin(np.arange(before[name].size), best).reshape(before[name].shape)
            g = abs(gradient[name])
            bonus = c * g.mean() * math.log(step) / (active[name] + eps)
            grown = mask.numpy() & ~kept
            assert (mask.numpy() | ~kept).all()
            assert grown.sum() == k - stay
            if grown.any():
                assert (g + bonus)[grown].min() >= (g + bonus)[~mask.numpy()].max() * (1 - 1e-5)
            active[name] += mask.numpy()


# -- redistribution


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("density", [0.2, 0.9])
def test_sparse_momentum_drops_by_size_and_grows_by_momentum_across_layers(optimizer, density):
    model, made, sparsifier = set_up(sparse_momentum(density, every=2, drop=0.5), optimizer)
    total = sum(int(mask.sum()) for mask in sparsifier.masks.values())
    moved = 0
    for step in range(1, STEPS + 1):
        before = {n: mask.clone() for n, mask in sparsifier.masks.items()}
        half_step(model, made, step)
        weight = {n: w.detach().abs().clone() for n, w in sparsifier.weights.items()}
        memory = {}
        for name, w in sparsifier.weights.items():
            state = made.state[w]
            memory[name] = state["momentum_buffer"].abs() if optimizer == "sgd" else (
                state["exp_avg"].abs() / (state["exp_avg_sq"].sqrt() + 1e-8))  # fmt: skip
        held = {n: made.state[w].get("momentum_buffer", torch.zeros(1)).clone() for n, w in sparsifier.weights.items()}
        sparsifier.step()
        assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == total
        if step % 2:
            continue
        mean = {n: float(memory[n][mask].double().mean()) for n, mask in before.items()}
        dropped, grown = {}, {}
        for name, mask in sparsifier.masks.items():
            n, sparsity = int(before[name].sum()), 1 - float(before[name].double().mean())
            rate = cosine(0.5, step, STEPS)
            if sparsity < 0.2 and mean[name] > sum(mean.values()) / len(mean):
                rate = min(rate, sparsity)
            dropped[name] = int(rate * n + 1e-9)
            stay = before[name].flatten().nonzero().flatten().tolist()
            stay = sorted(stay, key=lambda at: -float(weight[name].flatten()[at]))[: n - dropped[name]]
            assert mask.flatten()[stay].all()
            new = mask.clone().flatten()
            new[stay] = False
            grown[name] = int(new.sum())
            out = ~mask.flatten()
            if grown[name] and out.any():
                assert memory[name].flatten()[new].min() >= memory[name].flatten()[out].max()
            assert (sparsifier.weights[name].detach()[mask & ~before[name]] == 0).all()
            assert (sparsifier.weights[name].detach()[~mask] == 0).all()
            if optimizer == "sgd":
                assert torch.equal(made.state[sparsifier.weights[name]]["momentum_buffer"], held[name])
            moved += int((mask & ~before[name]).sum())
        assert sum(dropped.values()) == sum(grown.values())
        room = {n: int((~mask).sum()) + dropped[n] for n, mask in before.items()}
        ideal = filled(sum(dropped.values()), mean, room)
        assert all(abs(grown[name] - ideal[name]) < 1 + 1e-6 for name in grown)
    assert moved > 10


# -- resumed to the same bits


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", [srigl(0.2, every=3, gamma=0.9), sparse_momentum(0.2, every=3)], ids=str)
def test_a_resumed_run_goes_on_identically(recipe, optimizer):
    model, made, sparsifier = set_up(recipe, optimizer)
    for step in range(1, 8):
        advance(model, made, sparsifier, step)
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), sparsifier.state_dict()))
    other, other_made, other_sparsifier = set_up(recipe, optimizer)
    for mine, state in zip((other, other_made, other_sparsifier), saved):
        mine.load_state_dict(state)
    for step in range(8, STEPS + 1):
        advance(model, made, sparsifier, step)
        advance(other, other_made, other_sparsifier, step)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert all(torch.equal(sparsifier.masks[n], other_sparsifier.masks[n]) for n in sparsifier.masks)


# -- phases in turn


def test_phases_alternate_and_end_compressed():
    recipe = ac_dc(0.25, dense=0.2, phases=4, until=0.8, every=1)
    got = [recipe.density(step, 20) for step in range(21)]
    assert got == [1] * 4 + [0.25] * 3 + [1] * 3 + [0.25] * 3 + [1] * 3 + [0.25] * 5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_return_at_zero_and_the_optimiser_starts_anew(optimizer):
    model, made, sparsifier = set_up(ac_dc(0.2, dense=0.25, phases=2, until=0.75, every=1), optimizer)
    returned = 0
    for step in range(1, STEPS + 1):
        before = {n: mask.clone() for n, mask in sparsifier.masks.items()}
        half_step(model, made, step)
        weight = {n: w.detach().clone() for n, w in sparsifier.weights.items()}
        sparsifier.step()
        if step == 6:  # compressed: the largest of all
            sizes = torch.cat([w.abs().flatten() for w in weight.values()])
            kept = torch.cat([mask.flatten() for mask in sparsifier.masks.values()])
            assert kept.sum() == math.ceil(0.2 * len(kept))
            assert sizes[kept].min() >= sizes[~kept].max()
        memory = [v for state in made.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        if step == 12:  # decompressed
            for name, mask in sparsifier.masks.items():
                assert mask.all()
                returned += int((~before[name]).sum())
                assert (sparsifier.weights[name].detach()[~before[name]] == 0).all()
                assert torch.equal(sparsifier.weights[name].detach()[before[name]], weight[name][before[name]])
            assert all((v == 0).all() for v in memory)
        else:
            assert any((v != 0).any() for v in memory)
    assert returned > 100
    assert sparsifier.report().density == pytest.approx(0.2, abs=0.01)


# -- what is asked and refused


def test_undertraining_is_seen_in_loss_and_entropy():
    y = np.array([0, 1, 2, 0])
    draw = np.random.default_rng(0)
    sure, unsure = draw.normal(size=(4, 3)) + 8 * np.eye(3)[y], draw.normal(size=(4, 3))
    found = undertraining_report(torch.tensor(unsure), torch.tensor(sure), y)
    for logits, loss, entropy in ((unsure, found.loss, found.entropy), (sure, found.dense_loss, found.dense_entropy)):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert loss == pytest.approx(-np.log(p[np.arange(4), y]).mean())
        assert entropy == pytest.approx(-(p * np.log(p)).sum(1).mean())
    assert found.undertrained
    assert not undertraining_report(torch.tensor(sure), torch.tensor(unsure), y).undertrained


@pytest.mark.parametrize(
    "build",
    [
        lambda: dst_ee(0.1, c=-1), lambda: dst_ee(0.1, eps=0), lambda: dst_ee(0), lambda: dst_ee(0.1, drop=2),
        lambda: sparse_momentum(1.1), lambda: sparse_momentum(0.1, drop=-0.1), lambda: srigl(0.1, gamma=1.5),
        lambda: srigl(0.1, drop=float("nan")), lambda: srigl(0.1, allocation="erc"), lambda: ac_dc(0.1, phases=3),
        lambda: ac_dc(0.1, phases=0), lambda: ac_dc(0.1, dense=0.9, until=0.8), lambda: ac_dc(0.1, until=1.0),
        lambda: ac_dc(0.1, dense=0), lambda: UpperConfidence()(torch.ones(2), torch.ones(2), {}),
        lambda: undertraining_report(torch.ones(3), torch.ones(3), [0, 1, 2]),
        lambda: undertraining_report(torch.ones(3, 2), torch.ones(2, 2), [0, 1]),
        lambda: undertraining_report(torch.ones(3, 2), torch.ones(3, 2), [0, 1]),
        lambda: undertraining_report(torch.ones(3, 2) * torch.nan, torch.ones(3, 2), [0, 1, 1]),
        lambda: undertraining_report(torch.ones(3, 2), torch.ones(3, 2), [0, 1, 2]),
    ],
)  # fmt: skip
def test_bad_input_is_refused(build):
    with pytest.raises(InputError, match=r"want|not finite"):
        build()


def test_a_layer_without_room_for_a_fan_in_keeps_one_input_each():
    model = Small()
    sparsifier = Sparsifier(model, srigl(0.02), optimizer=OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    assert all((mask.flatten(1).sum(1) >= 1).all() for mask in sparsifier.masks.values())

"""Views with parameters of their own: what they receive, by hand, and what they leave behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network import learned
from ellzero.network.learned import Annealing, LearnedThreshold, LowRankScores, autosparse, pst
from ellzero.network.recipes import Recipe
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.allocations import kept_count
from ellzero.parts.schedules import Constant, Linear
from ellzero.registry import entries
from ellzero.rng import rng
from tests.network.test_sparsifier import OPTIMIZERS, STEPS, Small, advance, batch, set_up

SHORT = {
    "autosparse": autosparse(0.5, start=-2.0, every=3),
    "autosparse held": autosparse(start=-1.5, schedule=Constant(0.3)),
    "pst": pst(0.2, rank=2, score_rank=3, begin=0.0),
    "pst global": pst(0.2, rank=1, beta=0.5, a1=2.0, a2=0.1, every=4, allocation="global"),
}


def double(*shape, seed=0):
    return torch.from_numpy(rng(seed, "double", *shape).standard_normal(shape))


def test_every_recipe_is_registered():
    named = {e.name: e for e in entries(kind="recipe") if e.module == learned.__name__}
    assert {name: entry.paper for name, entry in named.items()} == {"autosparse": "S093", "pst": "S169"}
    assert all(isinstance(entry.example(), Recipe) and entry.claim for entry in named.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", SHORT)
def test_a_saved_and_reloaded_run_goes_on_to_the_same_bits(name, optimizer):
    model, made, sparsifier = set_up(SHORT[name], optimizer)
    for step in range(1, 11):
        advance(model, made, sparsifier, step)
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), sparsifier.state_dict()))
    other, other_made, other_sparsifier = set_up(SHORT[name], optimizer)
    other.load_state_dict(saved[0])
    other_made.load_state_dict(saved[1])
    other_sparsifier.load_state_dict(saved[2])
    for step in range(11, STEPS + 1):
        advance(model, made, sparsifier, step)
        advance(other, other_made, other_sparsifier, step)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    assert all(torch.equal(sparsifier.masks[n], other_sparsifier.masks[n]) for n in sparsifier.masks)
    assert sparsifier.report() == other_sparsifier.report()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHORT)
def test_removed_the_network_is_the_same_function_and_the_optimiser_as_before(name, precision):
    model, made, sparsifier = set_up(SHORT[name], "adamw")
    groups = [len(group["params"]) for group in set_up(SHORT[name], "adamw")[1].param_groups]
    own = sum(len(list(view.parameters())) for view in sparsifier.views.values())
    assert [len(group["params"]) for group in made.param_groups] == groups
    scheduler = torch.optim.lr_scheduler.StepLR(made, 5)
    for step in range(1, STEPS + 1):
        advance(model, made, sparsifier, step, precision)
        scheduler.step()
        for key, weight in (("one.weight", model.one.weight), ("conv.weight", model.conv.weight)):
            assert not weight[~sparsifier.masks[key]].any() or not sparsifier.is_update(step)
    model.eval()
    x, _ = batch(1)
    before, seen = model(x), {key: model.get_submodule(key).weight.clone() for key in ("conv", "one", "two", "head")}
    kept = sparsifier.report().kept
    sparsifier.remove()
    torch.testing.assert_close(model(x), before)
    assert all(torch.equal(model.get_submodule(key).weight, weight) for key, weight in seen.items())
    assert kept == sum(int(seen[key].count_nonzero()) for key in ("conv", "one", "head"))
    assert model.two.weight is model.one.weight
    assert set(model.state_dict()) == set(Small().state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [len(group["params"]) for group in made.param_groups] == [groups[0] - own] == [len(list(model.parameters()))]
    assert {id(parameter) for parameter in made.state} <= {id(parameter) for parameter in model.parameters()}
    advance(model, made, sparsifier, 1)
    scheduler.step()


# -- AutoSparse


def test_the_table_of_gradients_of_a_threshold():
    share, s = 0.3, -1.0
    T = 1 / (1 + np.exp(1.0))  # 0.269
    view = LearnedThreshold(torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.bool), s, Constant(share))
    weight = torch.tensor([0.7, -0.7, 0.1, -0.1, 0.0, T], dtype=torch.float64, requires_grad=True)
    g = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0])
    seen = view(weight)
    seen.backward(torch.from_numpy(g))
    np.testing.assert_allclose(seen.detach(), [0.7 - T, T - 0.7, 0, 0, 0, 0], atol=1e-15)
    slope = np.array([1, 1, share, share, share, share])
    np.testing.assert_allclose(weight.grad, g * slope)
    sign = np.array([1, -1, 1, -1, 1, 1])
    assert view.s.grad.item() == pytest.approx(-(g * sign * slope).sum() * T * (1 - T))
    assert view.support(weight).tolist() == [True, True, False, False, False, False]


def test_without_a_share_the_rule_is_the_derivative():
    view = LearnedThreshold(double(4, 3), torch.ones(4, 3, dtype=torch.bool), -1.0, Constant(0.0))

    def seen(weight, s):
        return torch.func.functional_call(view, {"s": s}, weight)

    weight, s = double(4, 3).requires_grad_(), torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert ((weight.abs() - torch.sigmoid(s)).abs() > 1e-3).all()
    assert torch.autograd.gradcheck(seen, (weight, s))


def test_the_share_anneals_along_the_larger_of_two_curves():
    share = Annealing(0.5, end=0.9)
    assert share(0.0) == pytest.approx(0.5)
    assert share(0.25) == pytest.approx(0.5 * (1 - 1 / (1 + np.exp(3))))  # the sigmoid: 0.9526 > 0.8536
    assert share(0.5) == pytest.approx(0.25)  # they cross
    assert share(0.75) == pytest.approx(0.5 * (1 + np.cos(0.75 * np.pi)) / 2)  # the cosine: 0.1464 > 0.0474
    assert share(0.9) == share(1.0) == share(3, 2) == 0.0
    assert share(3, 4) == share(0.75)
    falling = [share(i / 100) for i in range(101)]
    assert falling == sorted(falling, reverse=True)


def test_the_share_in_force_follows_the_run():
    recipe = autosparse(0.6, end=0.5)
    model, optimizer, sparsifier = set_up(recipe)
    for step in range(1, STEPS + 1):
        advance(model, optimizer, sparsifier, step)
        assert sparsifier.views["one.weight"].gradient.share == pytest.approx(Annealing(0.6, 0.5)(step / STEPS))


def test_thresholds_are_learned_and_decay_like_weights():
    model, optimizer, sparsifier = set_up(autosparse(0.5, start=-2.0))
    threshold = model.one.parametrizations.weight[0].s
    assert threshold is sparsifier.views["one.weight"].s
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y).backward()
    gradient = threshold.grad.item()
    assert gradient != 0
    optimizer.step()
    group = optimizer.param_groups[0]
    wanted = -2.0 - group["lr"] * (1 + group["momentum"]) * (gradient + group["weight_decay"] * -2.0)  # Nesterov
    assert threshold.item() == pytest.approx(wanted, rel=1e-5)


def test_each_threshold_has_the_settings_of_its_weight():
    model = Small()
    groups = [{"params": [model.one.weight], "lr": 0.5}, {"params": [p for n, p in model.named_parameters()
                                                                     if n != "one.weight"], "lr": 0.1}]  # fmt: skip
    optimizer = torch.optim.SGD(groups)
    sparsifier = Sparsifier(model, autosparse(), optimizer=optimizer, steps=STEPS)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(view.s)] for name, view in sparsifier.views.items()} == {
        "conv.weight": 0.1, "one.weight": 0.5, "head.weight": 0.1,
    }  # fmt: skip


def test_what_is_closed_at_first_stays_closed():
    within = {"one.weight": torch.zeros(16, 16, dtype=torch.bool)}
    within["one.weight"][:, :8] = True
    model, optimizer, sparsifier = set_up(autosparse(start=-6.0), within=within)
    for step in range(1, STEPS + 1):
        advance(model, optimizer, sparsifier, step)
        assert not (model.one.weight[:, 8:] != 0).any()
    assert sparsifier.masks["one.weight"].sum() == model.one.weight.count_nonzero() > 64


def test_a_weight_at_zero_can_leave_it():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparsifier = Sparsifier(model, autosparse(), optimizer=optimizer, steps=5)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    sparsifier.step()
    assert (model.weight < -0.9).all()


# -- PST


def views_of(shape, **kwargs):
    weight = nn.Parameter(double(*shape))
    mask = double(*shape, seed=1) > 0
    settings = {"rank": 2, "score_rank": 3, "beta": 0.7, "a1": 1.3, "a2": 0.4, "seed": 0, **kwargs}
    view = LowRankScores(weight, mask, "w", **settings)
    for name, parameter in view.named_parameters():
        parameter.data = double(*parameter.shape, seed=len(name) + ord(name[0]))
    return weight, mask, view


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2)])
def test_what_the_small_matrices_receive(shape):
    weight, mask, view = views_of(shape)
    g = double(*shape, seed=9)
    view(weight).backward(g)
    assert weight.grad is None
    w0, m, G = (t.detach().numpy().reshape(shape[0], -1) for t in (weight, mask, g))
    U, V, A, B, R, C = (getattr(view, k).detach().numpy() for k in "UVABRC")
    W = w0 + 0.7 * U @ V
    to_scores = G * W  # dL/d(mask W) * W
    to_weight = G * m + to_scores * np.sign(W)  # through the product and through |W| in the scores
    wanted = {
        "U": 0.7 * to_weight @ V.T, "V": 0.7 * U.T @ to_weight, "A": 1.3 * to_scores @ B.T,
        "B": 1.3 * A.T @ to_scores, "R": 0.4 * to_scores.sum(1, keepdims=True),
        "C": 0.4 * to_scores.sum(0, keepdims=True),
    }  # fmt: skip
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(view, name).grad, value, rtol=1e-10, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(view(weight).detach().numpy().reshape(shape[0], -1), m * W, rtol=1e-12)
    np.testing.assert_allclose(
        view.scores(weight).detach().numpy().reshape(shape[0], -1), np.abs(W) + 1.3 * A @ B + 0.4 * (R + C), rtol=1e-12
    )


def test_scores_receive_the_derivative_to_the_mask_as_differences_give_it():
    weight, mask, view = views_of((5, 7), a2=1.0)
    x, target = double(4, 7, seed=3), double(4, 5, seed=4)

    def loss(masked):
        return ((torch.tanh(x @ masked.T) - target) ** 2).sum()

    loss(view(weight)).backward()
    W = (weight + 0.7 * view.U @ view.V).detach()
    numeric, h = torch.zeros(5, 7, dtype=torch.float64), 1e-6
    for i in range(5):
        for j in range(7):
            for side in (1, -1):
                m = mask.double().clone()
                m[i, j] += side * h
                numeric[i, j] += side * loss(m * W) / (2 * h)
    torch.testing.assert_close(view.R.grad, numeric.sum(1, keepdim=True), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(view.C.grad, numeric.sum(0, keepdim=True), rtol=1e-6, atol=1e-6)


def test_the_scores_are_differentiable_as_written():
    weight, _, view = views_of((4, 3))
    names = [name for name, _ in view.named_parameters()]

    def scores(*values):
        return torch.func.functional_call(Scored(view, weight), {f"view.{n}": v for n, v in zip(names, values)}, ())

    assert torch.autograd.gradcheck(scores, tuple(p.detach().requires_grad_() for p in view.parameters()))


class Scored(nn.Module):
    def __init__(self, view, weight):
        super().__init__()
        self.view, self.weight = view, weight.detach()

    def forward(self):
        return self.view.scores(self.weight)


def test_the_first_scores_are_magnitudes_and_counts_follow_the_cubic():
    recipe = pst(0.2, rank=2, begin=0.1, end=0.8)
    model, optimizer, sparsifier = set_up(recipe, "adamw")
    start = {n: w.detach().clone() for n, w in sparsifier.weights.items()}
    first = None
    for step in range(1, STEPS + 1):
        if first is None:
            previous = {n: sparsifier.views[n].scores(w).detach() for n, w in sparsifier.weights.items()}
            if step == 1:
                assert all(torch.equal(previous[n], start[n].abs()) for n in start)
        advance(model, optimizer, sparsifier, step)
        u = min(max((step / STEPS - 0.1) / 0.7, 0), 1)
        for name, mask in sparsifier.masks.items():
            assert mask.sum() == kept_count(mask.numel(), 0.2 + 0.8 * (1 - u) ** 3), (name, step)
            scores = sparsifier.views[name].scores(sparsifier.weights[name])
            if mask.any() and not mask.all():
                assert scores[mask].min() >= scores[~mask].max()
            assert torch.equal(sparsifier.weights[name].detach(), start[name])  # frozen, whatever AdamW's decay
        assert sparsifier.report().kept == sum(int(m.sum()) for m in sparsifier.masks.values())


@pytest.mark.parametrize(("rank", "score_rank"), [(8, 8), (2, 5)])
def test_the_trainable_share_is_the_formula(rank, score_rank):
    model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.ReLU(), nn.Linear(30, 20, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Sparsifier(model, pst(0.1, rank=rank, score_rank=score_rank), optimizer=optimizer, steps=3)
    for layer, (out, into) in ((model[0], (30, 40)), (model[2], (20, 30))):
        trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in layer.parameters() if not p.requires_grad)
        share = (rank * (into + out) + score_rank * (into + out) + into + out) / (into * out)
        assert trained / frozen == pytest.approx(share)
        assert frozen == into * out


def test_a_stale_derivative_of_a_frozen_weight_does_nothing():
    model = nn.Linear(6, 5)
    model(torch.ones(2, 6)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, pst(0.5, rank=1), optimizer=optimizer, steps=3)
    before = sparsifier.weights["weight"].detach().clone()
    optimizer.step()
    assert torch.equal(sparsifier.weights["weight"].detach(), before)


def test_seeds_draw_the_small_matrices_by_name():
    draws = []
    for seed in (0, 0, 1):
        *_, sparsifier = set_up(pst(seed=seed))
        draws.append({name: view.U.detach().clone() for name, view in sparsifier.views.items()})
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    assert not any(torch.equal(draws[0][name], draws[2][name]) for name in draws[0])
    assert draws[0]["one.weight"].std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: autosparse(1.5), "share"), (lambda: autosparse(-0.1), "share"), (lambda: autosparse(end=0), "end"),
        (lambda: autosparse(start=float("inf")), "start"), (lambda: autosparse(start=float("nan")), "start"),
        (lambda: autosparse(every=0), "every"), (lambda: autosparse(schedule=0.5), "schedule"),
        (lambda: autosparse(schedule=Linear(0.5, -0.1)), "schedule"),
        (lambda: pst(0.0), "density"), (lambda: pst(rank=0), "rank"), (lambda: pst(score_rank=1.5), "score_rank"),
        (lambda: pst(beta=float("nan")), "beta"), (lambda: pst(a1="1"), "a1"), (lambda: pst(a2=float("inf")), "a2"),
        (lambda: pst(begin=0.8, end=0.7), "end"), (lambda: pst(allocation="even"), "allocation"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name(build, named):
    with pytest.raises(InputError, match=rf"^{named}: got .*want"):
        build()

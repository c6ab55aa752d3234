"""n of m at every step, what the patterns do on the way, and what dropped weights receive."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network import patterns
from ellzero.network.patterns import Fading, Stairs, decaying_mask, pattern_staircase, sr_ste
from ellzero.network.recipes import Recipe
from ellzero.network.sparsifier import Sparsifier
from ellzero.registry import entries
from ellzero.rng import rng
from tests.network.test_sparsifier import OPTIMIZERS, STEPS, advance, set_up

SHORT = {
    "sr_ste": sr_ste(2, 4, decay=0.1),
    "sr_ste late": sr_ste(1, 4, dense=0.25, every=2),
    "decaying_mask": decaying_mask(1, 4, rate=3.0),
    "decaying_mask linear": decaying_mask(2, 8, shape="linear", gradient="ste", dense=0.0, tune=0.3),
    "stepwise": pattern_staircase(1, 8, dense=0.1),
    "stepwise ste": pattern_staircase(3, 16, gradient="ste", tune=0.0),
    "geometric": pattern_staircase(1, 2, variant="geometric", dense=0.2),
}
ENDS = {
    "sr_ste": (2, 4), "sr_ste late": (1, 4), "decaying_mask": (1, 4), "decaying_mask linear": (2, 8),
    "stepwise": (1, 8), "stepwise ste": (3, 16), "geometric": (1, 2),
}  # fmt: skip


class Odd(nn.Module):
    """Channels and widths that no group divides: 5 into 7 by 2 x 2, then 7 into 13, then 13 into 3."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.head = nn.Conv2d(5, 7, 2), nn.Linear(7, 13), nn.Linear(13, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(rng(0, name).standard_normal(tuple(parameter.shape)) * 0.4))

    def forward(self, x):
        return self.head(self.one(self.conv(x).flatten(1).relu()).relu())


def odd(recipe, lr=0.1):
    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, Sparsifier(model, recipe, optimizer=optimizer, steps=STEPS)


def go(model, optimizer, sparsifier, step):
    x = torch.from_numpy(rng(step, "x").standard_normal((6, 5, 2, 2)).astype(np.float32))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    sparsifier.step()
    return x


def cut(weight, n, m):
    """The n largest of each m consecutive inputs, group by group, the last one short."""
    rows = np.moveaxis(np.abs(weight.detach().numpy()), 1, -1)
    mask = np.zeros(rows.shape, dtype=bool)
    for place in np.ndindex(rows.shape[:-1]):
        for first in range(0, rows.shape[-1], m):
            group = rows[place][first : first + m]
            mask[place][first + np.argsort(-group, kind="stable")[:n]] = True
    return torch.from_numpy(np.moveaxis(mask, -1, 1).copy())


def test_every_recipe_is_registered():
    named = {e.name: e for e in entries(kind="recipe") if e.module == patterns.__name__}
    assert set(named) == {"sr_ste", "decaying_mask", "pattern_staircase"}
    assert [named[name].paper for name in ("decaying_mask", "pattern_staircase")] == ["S038", "S038"]
    assert all(isinstance(entry.example(), Recipe) and entry.claim for entry in named.values())


@pytest.mark.parametrize("name", SHORT)
def test_masks_are_the_largest_of_every_group_at_every_step(name):
    recipe = SHORT[name]
    model, optimizer, sparsifier = odd(recipe)
    for step in range(STEPS + 1):
        if step:
            go(model, optimizer, sparsifier, step)
        constraint = recipe.move.pattern(step / STEPS)
        for key, weight in sparsifier.weights.items() if sparsifier.is_update(step) or step == 0 else ():
            wanted = torch.ones_like(weight, dtype=torch.bool)
            if constraint is not None:
                wanted = cut(weight, constraint.n, constraint.m)
            assert torch.equal(sparsifier.masks[key], wanted), (key, step)
        assert sparsifier.report().kept == sum(int(mask.sum()) for mask in sparsifier.masks.values())
    n, m = ENDS[name]
    for key, size in {"conv": 5, "one": 7, "head": 13}.items():
        weight = getattr(model, key).weight
        fits = size // m * n + min(size % m, n)
        assert (weight.count_nonzero(1) == fits).all(), key
        assert torch.equal(weight != 0, sparsifier.masks[f"{key}.weight"])


@pytest.mark.parametrize("name", SHORT)
def test_removed_the_network_is_the_same_function(name):
    model, optimizer, sparsifier = odd(SHORT[name])
    for step in range(1, STEPS + 1):
        x = go(model, optimizer, sparsifier, step)
    before, seen = model(x), {key: model.get_submodule(key).weight.clone() for key in ("conv", "one", "head")}
    sparsifier.remove()
    torch.testing.assert_close(model(x), before)
    assert all(torch.equal(model.get_submodule(key).weight, weight) for key, weight in seen.items())
    assert set(model.state_dict()) == set(Odd().state_dict())
    assert all(model.get_parameter(n).requires_grad for n in dict(Odd().named_parameters()))


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


def test_one_step_of_sr_ste_by_hand():
    model = nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng(0, "w").standard_normal((3, 8))))
    start = model.weight.detach().double().numpy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=0.05)
    sparsifier = Sparsifier(model, sr_ste(2, 4, decay=0.2), optimizer=optimizer, steps=5)
    x = rng(1, "x").standard_normal((5, 8)).astype(np.float32)
    model(torch.from_numpy(x)).square().sum().backward()
    optimizer.step()
    mask = cut(torch.from_numpy(start), 2, 4).numpy()
    gradient = 2 * (x @ (start * mask).T).T @ x  # of the sum of squares at the masked weight, to all entries
    wanted = start - 0.3 * (gradient + 0.2 * ~mask * start + 0.05 * start)
    np.testing.assert_allclose(sparsifier.weights["weight"].detach().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gradient", "share"), [("scaled", None), ("ste", 1.0)])
def test_a_fading_mask_scales_what_is_dropped(gradient, share):
    model, optimizer, sparsifier = odd(decaying_mask(1, 4, shape="linear", dense=0.25, tune=0.25, gradient=gradient))
    view = sparsifier.views["one.weight"]
    for step in range(1, STEPS + 1):
        go(model, optimizer, sparsifier, step)
        beta = min(1.0, max(0.0, 1 - (step / STEPS - 0.25) / 0.5))
        weight = sparsifier.weights["one.weight"].detach().clone().requires_grad_()
        mask = sparsifier.masks["one.weight"]
        seen = view(weight)
        torch.testing.assert_close(seen, weight * (mask + beta * ~mask))
        seen.sum().backward()
        torch.testing.assert_close(weight.grad, mask + (beta if share is None else share) * ~mask)
    assert beta == 0


def test_the_scaled_gradient_is_the_derivative():
    *_, sparsifier = odd(decaying_mask(1, 4, rate=2.0, dense=0.0))
    view = sparsifier.views["one.weight"]
    view.move(view.mask, 0.4)
    assert 0 < view.share < 1
    assert torch.autograd.gradcheck(view, torch.randn(13, 7, dtype=torch.float64, requires_grad=True))


def test_fading_runs_from_one_to_none():
    line, curve = Fading("linear", 0.2, 0.8), Fading("exponential", 0.2, 0.8, rate=3.0)
    for progress, straight, u in ((0.0, 1, 0), (0.2, 1, 0), (0.35, 0.75, 0.25), (0.5, 0.5, 0.5), (0.8, 0, None)):
        assert line(progress) == pytest.approx(straight)
        assert curve(progress) == pytest.approx(0 if u is None else np.exp(-3 * u))
    assert line(0.8) == curve(0.8) == curve(1.0) == 0.0
    assert Fading("linear", 0.0, 1.0)(0.0) == 1.0


@pytest.mark.parametrize(
    ("recipe", "sequence"),
    [
        (lambda: pattern_staircase(1, 16, dense=0.1, tune=0.2), [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]),
        (lambda: pattern_staircase(3, 16, dense=0.1, tune=0.2), [(15, 16), (8, 16), (4, 16), (3, 16)]),
        (lambda: pattern_staircase(2, 4, dense=0.1, tune=0.2), [(3, 4), (2, 4)]),
        (lambda: pattern_staircase(1, 16, variant="geometric", dense=0.1, tune=0.2),
         [(8, 128), (4, 64), (2, 32), (1, 16)]),
        (lambda: pattern_staircase(3, 4, variant="geometric", dense=0.1, tune=0.2),
         [(24, 32), (12, 16), (6, 8), (3, 4)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [20, 70, 97])
def test_stairs_take_equal_periods_between_the_dense_start_and_the_end(recipe, sequence, steps):
    stairs = recipe().move.pattern
    for step in range(steps + 1):
        done, found = Fraction(step, steps), stairs(step / steps)
        if done < Fraction(1, 10):
            assert found is None
            continue
        period = int((done - Fraction(1, 10)) * len(sequence) / Fraction(7, 10))
        assert (found.n, found.m) == sequence[min(period, len(sequence) - 1)], step


def test_stairs_without_a_way_are_at_their_end():
    assert Stairs(((1, 4),), 0.5, 0.5)(0.5).m == 4
    assert Stairs(((1, 4),), 0.5, 0.5)(0.49) is None


def test_what_is_dropped_may_return_under_each_rule():
    returned = {}
    for name in ("sr_ste", "decaying_mask"):
        model, optimizer, sparsifier = odd(SHORT[name])
        ever = {key: ~mask for key, mask in sparsifier.masks.items()}
        returned[name] = 0
        for step in range(1, STEPS + 1):
            go(model, optimizer, sparsifier, step)
            returned[name] += sum(int((sparsifier.masks[key] & ever[key]).sum()) for key in ever)
    assert all(returned.values()), returned


def test_the_cost_counts_what_still_shows():
    recipe = decaying_mask(1, 4, shape="linear", dense=0.0, tune=0.5)
    model, optimizer, sparsifier = odd(recipe)
    for step in range(1, STEPS // 2 + 1):
        go(model, optimizer, sparsifier, step)
        assert sparsifier.report().cost.training == 1
    for step in range(STEPS // 2 + 1, STEPS + 1):
        go(model, optimizer, sparsifier, step)
    density = sparsifier.report().density
    assert sparsifier.report().cost.training == pytest.approx((1 + (2 * density + 1) / 3) / 2)


def test_within_holds_under_a_pattern():
    model = Odd()
    within = {"one.weight": torch.ones(13, 7, dtype=torch.bool)}
    within["one.weight"][:, 2:5] = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, sr_ste(1, 4, dense=0.3), optimizer=optimizer, steps=STEPS, within=within)
    for step in range(1, STEPS + 1):
        go(model, optimizer, sparsifier, step)
        assert not (model.one.weight[:, 2:5] != 0).any()
    assert (model.one.weight.count_nonzero(1) == 2).all()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: sr_ste(4, 4), "n"), (lambda: sr_ste(0, 4), "n"), (lambda: sr_ste(1, 1), "m"),
        (lambda: sr_ste(1.5, 4), "n"), (lambda: sr_ste(2, 4, decay=-1), "decay"),
        (lambda: sr_ste(2, 4, decay=float("nan")), "decay"), (lambda: sr_ste(2, 4, dense=1.0), "dense"),
        (lambda: sr_ste(2, 4, every=0), "every"),
        (lambda: decaying_mask(1, 4, shape="cubic"), "shape"), (lambda: decaying_mask(1, 4, rate=0), "rate"),
        (lambda: decaying_mask(1, 4, rate=float("inf")), "rate"),
        (lambda: decaying_mask(1, 4, dense=0.5, tune=0.5), "tune"), (lambda: decaying_mask(1, 4, dense=-0.1), "dense"),
        (lambda: decaying_mask(1, 4, gradient="exact"), "gradient"), (lambda: decaying_mask(5, 4), "n"),
        (lambda: pattern_staircase(1, 4, variant="cubic"), "variant"), (lambda: pattern_staircase(3, 4), "n"),
        (lambda: pattern_staircase(1, 2), "n"), (lambda: pattern_staircase(1, 4, tune=1.0), "tune"),
        (lambda: pattern_staircase(1, 4, gradient=None), "gradient"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_by_name(build, named):
    with pytest.raises(InputError, match=rf"^{named}: got .*want"):
        build()


def test_a_vector_has_no_groups():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"bias: has shape \(8,\), want an axis of inputs"):
        Sparsifier(model, sr_ste(), optimizer=optimizer, steps=3, include="bias")

"""Laws of the Sparsifier, over every recipe: exact counts at every step, no drift, an optimiser that forgets."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network import recipes
from ellzero.network.dynamic import ac_dc, dst_ee
from ellzero.network.recipes import Recipe, dense, gmp, one_shot, rigl, set_, static
from ellzero.network.sparsifier import Sparsifier, prunable
from ellzero.parts.allocations import ERK, Global, Uniform
from ellzero.parts.schedules import Constant, Cyclic, Linear
from ellzero.parts.scores import Gradient, Magnitude, Momentum, Random
from ellzero.registry import entries
from ellzero.rng import rng

STEPS = 24
SHORT = {
    "dense": dense(),
    "one_shot": one_shot(0.2, at=0.5),
    "one_shot at 0": one_shot(0.2, at=0.0, allocation="uniform"),
    "gmp uniform": gmp(0.15, every=3, allocation="uniform"),
    "gmp erk": gmp(0.15, every=5, allocation="erk"),
    "gmp global": gmp(0.15, every=4),
    "rigl": rigl(0.2, every=3),
    "rigl global": rigl(0.2, every=3, allocation="global"),
    "set_": set_(0.2, every=3),
    "static": static(0.2),
    "steady": Recipe(
        Constant(0.2), ERK(), score=Momentum(), start=Random(0), grow=Gradient(), turnover=Constant(0.5), every=2
    ),
    "cyclic": Recipe(Cyclic(1.0, 0.3, 2), Uniform(), grow=Gradient(), every=3),
    "dst_ee": dst_ee(0.2, every=3, c=2.0),
    "ac_dc": ac_dc(0.2, phases=4, every=2),
    "ac_dc uniform": ac_dc(0.2, phases=2, every=3, allocation="uniform"),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


class Small(nn.Module):
    """A convolution, a norm, a tied pair and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(16, 16)
        self.two = nn.Linear(16, 16)
        self.two.weight = self.one.weight
        self.head = nn.Linear(16, 3)
        draw = rng(0, "small")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * 0.4))

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.two(self.one(x).relu()).relu())


def batch(step):
    draw = rng(step, "batch")
    x = torch.from_numpy(draw.standard_normal((8, 1, 4, 4)).astype(np.float32))
    return x, torch.from_numpy(draw.integers(0, 3, 8))


def set_up(recipe, optimizer="sgd", **kwargs):
    model = Small()
    made = OPTIMIZERS[optimizer](model.parameters())
    return model, made, Sparsifier(model, recipe, optimizer=made, steps=STEPS, **kwargs)


def advance(model, optimizer, sparsifier, step, precision=None):
    x, y = batch(step)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = nn.functional.cross_entropy(model(x).float(), y)
    loss.backward()
    optimizer.step()
    sparsifier.step()


def check_held(sparsifier, optimizer):
    for name, weight in sparsifier.weights.items():
        closed = ~sparsifier.masks[name]
        assert (weight[closed] == 0).all()
        for value in optimizer.state[weight].values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert (value[closed] == 0).all()


def test_every_recipe_is_registered_and_builds():
    names = {entry.name for entry in entries(kind="recipe") if entry.module == recipes.__name__}
    assert names == {"dense", "one_shot", "gmp", "rigl", "set_", "static"}
    for entry in entries(kind="recipe", wing="network"):
        assert isinstance(entry.example(), Recipe)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHORT)
def test_counts_are_exact_at_every_step_and_nothing_drifts(name, optimizer, precision):
    recipe = SHORT[name]
    model, made, sparsifier = set_up(recipe, optimizer)
    shapes = {n: tuple(w.shape) for n, w in sparsifier.weights.items()}
    target = recipe.density(0, STEPS)
    last = int(np.ceil(recipe.until * STEPS - 1e-9))
    for step in range(1, STEPS + 1):
        advance(model, made, sparsifier, step, precision)
        if step <= last and (step % recipe.every == 0 or step == last):
            target = recipe.density(max(step, recipe.until * STEPS if step == last else 0), STEPS)
        check_held(sparsifier, made)
        report = sparsifier.report()
        counted = {row.name: row.kept for row in report.rows}
        if isinstance(recipe.allocation, Global):
            assert sum(counted.values()) == sum(Uniform().counts({"all": (sum(map(np.prod, shapes.values())),)},
                                                                 target).values())  # fmt: skip
        else:
            assert counted == recipe.allocation.counts(shapes, target)
        assert report.density == sum(counted.values()) / sum(np.prod(s) for s in shapes.values())
    assert "one.weight" in shapes
    assert "two.weight" not in shapes  # tied: pruned once
    assert torch.equal(model.two.weight, model.one.weight)


@pytest.mark.parametrize("name", ["rigl", "set_", "steady", "cyclic", "dst_ee", "ac_dc"])
def test_turnover_moves_the_mask_and_new_weights_start_at_zero(name):
    model, made, sparsifier = set_up(SHORT[name])
    moved = 0
    for step in range(1, 13):
        before = {n: mask.clone() for n, mask in sparsifier.masks.items()}
        advance(model, made, sparsifier, step)
        for n, mask in sparsifier.masks.items():
            new = mask & ~before[n]
            moved += int(new.sum())
            assert (sparsifier.weights[n][new] == 0).all()
            assert (made.state[sparsifier.weights[n]]["momentum_buffer"][new] == 0).all()
            if not sparsifier.is_update(step):
                assert torch.equal(mask, before[n])
    assert moved > 0


def test_rigl_grows_where_the_dense_gradient_is_largest():
    model, made, sparsifier = set_up(rigl(0.3, every=1, drop=0.5))
    twin = copy.deepcopy(model)
    before = {n: mask.clone() for n, mask in sparsifier.masks.items()}
    x, y = batch(1)
    nn.functional.cross_entropy(twin(x), y).backward()
    dense_gradient = {n: p.grad.abs() for n, p in twin.named_parameters()}
    advance(model, made, sparsifier, 1)
    grew = 0
    for n, mask in sparsifier.masks.items():
        new, left_out = mask & ~before[n], ~mask & ~before[n]
        grew += int(new.sum())
        if new.any() and left_out.any():
            assert dense_gradient[n][new].min() >= dense_gradient[n][left_out].max()
    assert grew > 5


def test_accumulated_backward_passes_count_together():
    model, made, sparsifier = set_up(rigl(0.3, every=1, drop=0.5))
    other, other_made, other_sparsifier = set_up(rigl(0.3, every=1, drop=0.5))
    model.eval(), other.eval()  # no batch statistics
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    for half in (slice(0, 4), slice(4, 8)):
        nn.functional.cross_entropy(other(x[half]), y[half], reduction="sum").backward()
    for a, b in ((made, sparsifier), (other_made, other_sparsifier)):
        a.step()
        b.step()
    for n in sparsifier.masks:
        assert torch.equal(sparsifier.masks[n], other_sparsifier.masks[n])


def test_gradual_pruning_keeps_the_largest_of_what_was_kept():
    model, made, sparsifier = set_up(gmp(0.2, every=1, begin=0.0, end=1.0))
    x, y = batch(1)
    for step in range(1, 6):
        previous = {n: m.clone() for n, m in sparsifier.masks.items()}
        made.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        made.step()
        sizes = torch.cat([w.detach().abs().flatten() for w in sparsifier.weights.values()])
        sparsifier.step()
        kept = torch.cat([m.flatten() for m in sparsifier.masks.values()])
        assert sizes[kept].min() >= sizes[~kept].max()
        assert all(not (m & ~previous[n]).any() for n, m in sparsifier.masks.items()), step


@pytest.mark.parametrize("steps", [2, 7, 12, 23, 29, 100])
@pytest.mark.parametrize("end", [0.3, 0.55, 0.7, 0.9])
def test_the_last_density_is_reached_for_any_number_of_steps(steps, end):
    for recipe in (gmp(0.3, end=end, every=1000), one_shot(0.3, at=end)):
        model = nn.Linear(10, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=steps)
        for _ in range(steps):
            sparsifier.step()
        assert sparsifier.report().kept == 30


@pytest.mark.parametrize("name", ["rigl", "gmp global", "set_", "static", "dst_ee", "ac_dc"])
def test_a_saved_and_reloaded_run_goes_on_identically(name):
    model, made, sparsifier = set_up(SHORT[name], "adamw")
    for step in range(1, 8):
        advance(model, made, sparsifier, step)
    saved = copy.deepcopy((model.state_dict(), made.state_dict(), sparsifier.state_dict()))
    other, other_made, other_sparsifier = set_up(SHORT[name], "adamw")
    other.load_state_dict(saved[0])
    other_made.load_state_dict(saved[1])
    other_sparsifier.load_state_dict(saved[2])
    for step in range(8, STEPS + 1):
        advance(model, made, sparsifier, step)
        advance(other, other_made, other_sparsifier, step)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)
    assert all(torch.equal(sparsifier.masks[n], other_sparsifier.masks[n]) for n in sparsifier.masks)


def test_a_state_of_another_recipe_is_refused():
    *_, sparsifier = set_up(rigl(0.2))
    *_, other = set_up(rigl(0.3))
    with pytest.raises(InputError, match="recipe"):
        other.load_state_dict(sparsifier.state_dict())


def test_without_a_density_the_nonzero_pattern_stays():
    model = Small()
    with torch.no_grad():
        model.head.weight[:, ::2] = 0
        model.conv.weight.zero_()  # wholly zero: freshly initialised, not empty
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier = Sparsifier(model, static(), optimizer=optimizer, steps=STEPS)
    for step in range(1, 5):
        advance(model, optimizer, sparsifier, step)
    assert (model.head.weight[:, ::2] == 0).all()
    assert (model.head.weight[:, 1::2] != 0).all()
    assert sparsifier.masks["conv.weight"].all()


def test_given_masks_are_taken_as_they_are():
    model = Small()
    masks = {n: torch.from_numpy(rng(1, n).random(tuple(p.shape)) < 0.3) for n, p in prunable(model)[0].items()}
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    before = copy.deepcopy(model.state_dict())
    sparsifier = Sparsifier(model, static(0.5), optimizer=optimizer, steps=STEPS, masks=masks)
    advance(model, optimizer, sparsifier, 1)
    assert all(torch.equal(sparsifier.masks[n], masks[n]) for n in masks)
    fresh = Small()
    Sparsifier(fresh, static(0.5), optimizer=OPTIMIZERS["sgd"](fresh.parameters()), steps=STEPS, masks=masks)
    for n, mask in masks.items():
        assert torch.equal(fresh.get_parameter(n).detach(), before[n] * mask)


def test_nothing_outside_within_is_ever_kept():
    within = {"one.weight": torch.zeros(16, 16, dtype=torch.bool)}
    within["one.weight"][:, :8] = True
    model, made, sparsifier = set_up(rigl(0.2, every=2, drop=0.5), within=within)
    for step in range(1, 13):
        advance(model, made, sparsifier, step)
        assert not sparsifier.masks["one.weight"][:, 8:].any()
    assert sparsifier.masks["one.weight"][:, :8].any()
    with pytest.raises(InputError, match=r"within: 'one.weight' has room for 128"):
        set_up(static(0.9), within=within)


def test_the_sparse_start_keeps_the_variance_of_each_row():
    model = nn.Linear(400, 50)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng(0, "w").standard_normal((50, 400))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Sparsifier(model, static(0.1), optimizer=optimizer, steps=1)
    assert model.weight.square().sum(1).mean().item() / 400 == pytest.approx(1, abs=0.1)


class WithEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.down = nn.Linear(8, 6)
        self.position_embedding = nn.Parameter(torch.zeros(4, 6))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def test_what_is_left_out_is_listed_with_its_reason():
    chosen, excluded = prunable(WithEmbedding())
    assert list(chosen) == ["up.weight", "down.weight"]
    assert excluded == {
        "position_embedding": "embedding", "scale": "vector", "embed.weight": "tied to an embedding",
        "norm.weight": "norm", "norm.bias": "norm", "up.bias": "bias", "frozen.weight": "frozen",
        "frozen.bias": "frozen", "down.bias": "bias",
    }  # fmt: skip
    assert list(prunable(WithEmbedding(), include="head")[0]) == ["embed.weight"]
    assert list(prunable(WithEmbedding(), exclude=["up*"])[0]) == ["down.weight"]
    assert prunable(WithEmbedding(), exclude="up")[1]["up.weight"] == "named in exclude"


def test_the_report_counts_and_names():
    *_, sparsifier = set_up(static(0.25, allocation="uniform"))
    report = sparsifier.report()
    assert report.kept == sum(int((w != 0).sum()) for w in sparsifier.weights.values())
    numel = sum(p.numel() for p in Small().parameters())
    outside = numel - sum(row.numel for row in report.rows)
    assert report.density_of_all == pytest.approx((report.kept + outside) / numel)
    text = str(report)
    for word in ("one.weight", "0.2500", "norm.weight", "excluded: bias"):
        assert word in text


def test_remove_lets_go_and_keeps_the_zeros():
    model, made, sparsifier = set_up(static(0.2))
    zeros = model.one.weight == 0
    sparsifier.remove()
    assert zeros.any()
    x, y = batch(1)
    nn.functional.cross_entropy(model(x), y).backward()
    assert (model.one.weight.grad[zeros] != 0).any()
    made.step()
    assert (model.one.weight[zeros] != 0).any()


@pytest.mark.parametrize(
    "build",
    [
        lambda: rigl(0.0), lambda: rigl(1.5), lambda: gmp(-0.1), lambda: one_shot(float("nan")), lambda: static(0),
        lambda: rigl(0.1, drop=1.5), lambda: rigl(0.1, until=2), lambda: rigl(0.1, every=0),
        lambda: gmp(0.1, begin=0.9),
        lambda: gmp(0.1, allocation="globl"), lambda: one_shot(0.1, at=1.0), lambda: set_("a"),
        lambda: Recipe(Linear(0.1, 0.5), ERK()), lambda: Recipe(Constant(0.5), ERK(), turnover=Constant(0.1)),
        lambda: Recipe(Constant(0.5), "erk"), lambda: Recipe(Constant(0.5), ERK(), grow=Momentum()),
        lambda: Recipe(0.5, ERK()), lambda: Recipe(Constant(0.0), ERK()),
        lambda: Recipe(Constant(0.5), ERK(), score="magnitude"),
        lambda: Recipe(Constant(0.5), ERK(), grow=Magnitude(), turnover=Constant(1.5)),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused(build):
    with pytest.raises(InputError, match="want"):
        build()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"recipe": "rigl"}, "recipe"), ({"steps": 0}, "steps"), ({"model": "net"}, "model"),
        ({"model": nn.LayerNorm(3)}, "no weight to prune"), ({"include": "heads*"}, "include"),
        ({"exclude": ["nothing"]}, "exclude"), ({"include": [3]}, "include"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)}, "optimizer"),
        ({"masks": {"one.weight": torch.ones(16, 16, dtype=torch.bool)}}, "masks: 'conv.weight' is missing"),
        ({"masks": {"on.weight": torch.ones(16, 16, dtype=torch.bool)}}, "masks: .*did you mean"),
        ({"within": {"one.weight": torch.ones(16, 16)}}, "within"), ({"within": {"one.weight": [1]}}, "within"),
        ({"within": {"one.weight": torch.ones(3, 3, dtype=torch.bool)}}, "within"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    model = changed.get("model", Small())
    optimizer = OPTIMIZERS["sgd"](model.parameters()) if isinstance(model, nn.Module) else None
    given = {"model": model, "recipe": rigl(0.2), "optimizer": optimizer, "steps": 10, **changed}
    with pytest.raises(InputError, match=named):
        Sparsifier(given.pop("model"), given.pop("recipe"), **given)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["static", "gmp global"])
def test_a_weight_that_is_not_finite_is_refused_by_name_before_anything_is_changed(bad, name):
    model = Small()
    with torch.no_grad():
        model.one.weight[0, 3] = bad
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"model: one.weight: 1 entry not finite, .* at \(0, 3\)"):
        Sparsifier(model, SHORT[name], optimizer=OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0))


def test_a_weight_that_turns_nan_is_named_with_the_step():
    model, _made, sparsifier = set_up(gmp(0.2, every=1))
    with torch.no_grad():
        model.one.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"one.weight: its Magnitude scores are NaN at step 1"):
        sparsifier.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_outside_the_mask_is_wiped(optimizer, bad):
    model, made, sparsifier = set_up(static(0.2), optimizer)
    advance(model, made, sparsifier, 1)
    closed = ~sparsifier.masks["one.weight"]
    with torch.no_grad():
        model.one.weight[closed] = bad
    sparsifier.step()
    check_held(sparsifier, made)
    model.one.weight.register_hook(lambda gradient: gradient.masked_fill(closed, bad))
    advance(model, made, sparsifier, 2)
    check_held(sparsifier, made)
    assert model.one.weight.isfinite().all()


MADE = {
    "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam, "rmsprop": torch.optim.RMSprop,
    "centred": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True), "adagrad": torch.optim.Adagrad,
    "full adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1),
    "adadelta": torch.optim.Adadelta, "adamax": torch.optim.Adamax, "rprop": torch.optim.Rprop,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "no eps": lambda p: torch.optim.Adam(p, eps=0.0), "plain": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
}  # fmt: skip


@pytest.mark.parametrize("made", MADE)
def test_any_optimiser_is_held(made):
    model = Small()
    optimizer = MADE[made](model.parameters())
    recipe = static(0.3) if made == "no eps" else rigl(0.3, every=3)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=STEPS)
    for step in range(1, 9):
        advance(model, optimizer, sparsifier, step)
        check_held(sparsifier, optimizer)


def test_weights_written_behind_the_back_of_torch_are_held_at_the_tenth_step():
    model, made, sparsifier = set_up(static(0.2))
    for step in range(1, 11):
        advance(model, made, sparsifier, step)
        if step == 4:
            model.one.weight.data.add_(1.0)
    assert (model.one.weight[~sparsifier.masks["one.weight"]] == 0).all()


class Wandering(torch.optim.SGD):
    """An optimiser that moves and remembers entries without a derivative."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.1)
                self.state[p]["momentum_buffer"].add_(0.1)


@pytest.mark.parametrize("name", ["rigl", "static"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_hold_where_others_write(name, optimizer):
    """Noise on gradients, an optimiser of the user's own, states loaded late, weights written in between."""
    model, made, sparsifier = set_up(SHORT[name], optimizer)
    for step in range(1, 9):
        x, y = batch(step)
        made.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for n, weight in sparsifier.weights.items():
            assert (weight.grad[~sparsifier.masks[n]] == 0).all()
            weight.grad.add_(0.1)
        made.step()
        if step % 3 == 0:
            with torch.no_grad():
                model.one.weight.add_(1.0)
        sparsifier.step()
        check_held(sparsifier, made)
        if step == 5:
            model.load_state_dict(Small().state_dict())
    saved = copy.deepcopy(made.state_dict())
    for state in saved["state"].values():
        state["exp_avg" if optimizer == "adamw" else "momentum_buffer"].add_(1.0)
    made.load_state_dict(saved)
    advance(model, made, sparsifier, 9)
    check_held(sparsifier, made)
    model = Small()
    made = Wandering(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, SHORT[name], optimizer=made, steps=STEPS)
    for step in range(1, 9):
        advance(model, made, sparsifier, step)
        check_held(sparsifier, made)


def test_masks_outside_within_are_refused():
    every = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(Small())[0].items()}
    within = {"one.weight": torch.ones(16, 16, dtype=torch.bool)}
    set_up(static(0.9), masks=every, within=within)
    within["one.weight"][0, :3] = False
    with pytest.raises(InputError, match=r"masks\['one.weight'\]: keeps 3 entries outside within"):
        set_up(static(0.9), masks=every, within=within)


class TestTheWarningAboutTiedEmbeddings:
    """One threshold for all layers, and a table of embeddings that is the head as well."""

    def sparsify(self, recipe, model=None, **options):
        model = WithEmbedding() if model is None else model
        parameters = [p for p in model.parameters() if p.requires_grad]
        return Sparsifier(model, recipe, optimizer=torch.optim.SGD(parameters, lr=0.1), steps=4, **options)

    def test_left_out_it_is_counted(self):
        numel = sum(p.numel() for p in WithEmbedding().parameters())
        with pytest.warns(UserWarning, match=rf"embed.weight: .*to the head, stays dense with 66 of {numel}"):
            self.sparsify(gmp(0.5))

    def test_asked_for_it_is_named_with_the_remedy(self):
        with pytest.warns(UserWarning, match=r"embed.weight: .*one threshold with all other .*allocation='uniform'"):
            self.sparsify(gmp(0.5), include=["head", "up"])

    @pytest.mark.parametrize("case", ["uniform", "untied", "none"])
    def test_otherwise_nothing_is_said(self, case):
        model = WithEmbedding() if case != "none" else Small()
        if case == "untied":
            model.head.weight = nn.Parameter(torch.randn(11, 6))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.sparsify(gmp(0.5, allocation="uniform" if case == "uniform" else "global"), model)

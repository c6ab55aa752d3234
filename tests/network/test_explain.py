"""Recipes and models in the field's terms, and the controls of a result."""

import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.layouts.nn import SparseLinear
from ellzero.network import Sparsifier, ac_dc, dense, gmp, rigl, sr_ste, srigl, static
from ellzero.network.explain import controls, describe, explain, structure_of
from ellzero.network.recipes import one_shot


def net(widths=(64, 128, 10)):
    return nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:]))


@pytest.mark.parametrize(
    ("recipe", "when", "path", "mask"),
    [
        (dense(), "never", "dense", "static"),
        (static(0.1), "before training", "sparse to sparse", "static"),
        (rigl(0.1), "before training", "sparse to sparse", "dynamic"),
        (srigl(0.1), "before training", "sparse to sparse", "dynamic"),
        (gmp(0.1), "during training", "dense to sparse", "shrinking"),
        (one_shot(0.1), "during training", "dense to sparse", "shrinking"),
        (ac_dc(0.1), "during training", "dense to sparse", "dynamic"),
        (sr_ste(2, 4), "during training", "dense to sparse", "dynamic"),
    ],
)
def test_recipes_stand_where_the_handbook_puts_them(recipe, when, path, mask):
    found = describe(recipe)
    assert (found.when, found.path, found.mask) == (when, path, mask)
    assert str(found).startswith("sparse ")


def test_costs_count_the_dense_phase_and_dense_gradients():
    assert describe(dense()).training == 1
    assert describe(dense()).inference == 1
    half = describe(one_shot(0.1, at=0.5))
    assert half.training == pytest.approx(0.55)
    assert half.inference == pytest.approx(0.1)
    assert half.memory == 1
    # Evci et al. (2020): one step in `every` reads the dense gradient, until 0.75 of the run.
    assert describe(rigl(0.1, every=100)).training == pytest.approx(0.1 + 0.75 / 100 * 0.9 / 3)
    assert describe(rigl(0.1)).memory == pytest.approx(0.1)
    pattern = describe(sr_ste(2, 4))
    assert pattern.structure == "2:4"
    assert pattern.inference == 0.5
    assert pattern.training == pytest.approx(2.5 / 3)
    assert pattern.memory == 1


def test_the_described_cost_is_what_a_run_counts():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = rigl(0.1, every=10, allocation="uniform")
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=200)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    assert describe(recipe, 200).training == pytest.approx(sparsifier.report().cost.training, rel=0.02)


def masks_of_structures():
    draw = torch.Generator().manual_seed(0)
    random = torch.rand(16, 32, generator=draw) < 0.3
    fan = torch.zeros(16, 32, dtype=torch.bool)
    for row in fan:
        row[torch.randperm(32, generator=draw)[:6]] = True
    yield "unstructured", random
    yield "constant fan-in", fan
    yield "row groups 8", random[:2].repeat_interleave(8, 0)
    yield "row groups 4", random[:4].repeat_interleave(4, 0)
    yield "2:4", torch.tensor([True, False, True, False]).repeat(16, 8)
    yield "whole rows", (torch.arange(16) % 3 == 0)[:, None].expand(16, 32)
    yield "whole columns", (torch.arange(32) % 3 == 0)[None].expand(16, 32)
    yield "dense", torch.ones(16, 32, dtype=torch.bool)
    yield "empty", torch.zeros(16, 32, dtype=torch.bool)


@pytest.mark.parametrize(("name", "mask"), list(masks_of_structures()))
def test_structures_are_told_apart(name, mask):
    if name in ("2:4", "whole columns"):
        mask = mask.clone()
    if name == "2:4":  # not the same columns in each row
        mask[::2] = ~mask[::2]
    assert structure_of(mask) == name


def test_zeros_in_dense_tensors_claim_no_speed():
    model = net()
    with torch.no_grad():
        model[0].weight[torch.rand(128, 64, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    found = explain(model)
    assert found.density == pytest.approx(
        sum(int(p.count_nonzero()) for p in (model[0].weight, model[2].weight)) / (128 * 64 + 1280)
    )
    assert found.density_of_all > found.density
    assert any("dense tensors" in line for line in found.may_not_claim)
    assert not any("smaller" in line for line in found.may_claim)
    assert "unstructured" in str(found)
    assert explain(net()).may_claim == ("nothing: no weight is zero",)


def test_packed_layers_are_smaller():
    model = net()
    with torch.no_grad():
        model[0].weight[torch.rand(128, 64, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    before = explain(model)
    model[0] = SparseLinear.from_linear(model[0], "csr")
    after = explain(model)
    assert after.density == before.density
    assert after.nbytes < before.nbytes
    assert after.density_of_all == pytest.approx(before.density_of_all)
    assert any("smaller" in line for line in after.may_claim)
    assert not any("dense tensors" in line for line in after.may_not_claim)


def test_controls_keep_what_they_say():
    model = net()
    draw = torch.Generator().manual_seed(2)
    masks = {
        f"{i}.weight": torch.rand(model[i].weight.shape, generator=draw) < share for i, share in ((0, 0.05), (2, 0.5))
    }
    found = controls(model, masks, steps=100, training=0.3)
    for name, mask in masks.items():
        assert int(found["shuffled"].masks[name].sum()) == int(mask.sum())
        assert not torch.equal(found["shuffled"].masks[name], mask)
    kept = sum(int(mask.sum()) for mask in masks.values())
    uniform = found["uniform"].masks
    assert sum(int(mask.sum()) for mask in uniform.values()) == pytest.approx(kept, abs=1)
    assert [float(mask.float().mean()) for mask in uniform.values()] == pytest.approx(
        [kept / (8192 + 1280)] * 2, abs=1e-3
    )
    assert found["same_cost"].steps == 30
    assert found["same_cost"].masks is None
    small = sum(p.numel() for p in found["small_dense"].model.parameters())
    assert kept + 138 - 80 < small <= kept + 138
    again = controls(model, masks, steps=100, training=0.3)
    assert torch.equal(again["small_dense"].model[0].weight, found["small_dense"].model[0].weight)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="recipe"):
        describe("rigl")
    with pytest.raises(InputError, match="model"):
        explain("net")
    with pytest.raises(InputError, match="batch"):
        explain(net(), batch=0)
    with pytest.raises(InputError, match="masks"):
        controls(net(), {"0.weight": torch.ones(2, 2)}, steps=1, training=1.0)
    with pytest.raises(InputError, match="masks"):
        controls(net(), {}, steps=1, training=1.0)

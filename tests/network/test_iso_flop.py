"""Bigger sparse networks that cost what the dense one did, counted entry by entry."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.initial import Fixed
from ellzero.network.iso_flop import Doped, Parallel, multiply_adds, sparse_iso_flop
from ellzero.network.recipes import rigl, static
from ellzero.network.sparsifier import Sparsifier
from ellzero.registry import entries
from ellzero.rng import rng

KINDS = ("wide", "parallel", "factorised", "doped")
SIZES = ((37, 24), (24, 31), (31, 10))
DENSE = sum(a * b for a, b in SIZES)


def given(**kwargs):
    layers = [nn.Linear(a, b, **kwargs) for a, b in SIZES]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.Tanh(), nn.Dropout(0.1), layers[2])


def batch(step):
    draw = rng(step, "batch")
    return torch.from_numpy(draw.standard_normal((8, 37)).astype(np.float32)), torch.from_numpy(draw.integers(0, 10, 8))


def trained(found, recipe, steps=6):
    optimizer = torch.optim.SGD(found.model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = Sparsifier(found.model, recipe, optimizer=optimizer, steps=steps, include=found.include)
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(found.model(x), y).backward()
        optimizer.step()
        sparsifier.step()
    return sparsifier


def matrices(model):
    """Nonzero entries of everything that multiplies, found without the library."""
    return sum(int(np.count_nonzero(p.detach().numpy())) for p in model.parameters() if p.ndim == 2)


def test_it_is_registered():
    (entry,) = [e for e in entries(kind="solver", wing="network") if e.name == "sparse_iso_flop"]
    assert entry.paper == "S092"
    assert isinstance(entry.example(), nn.Sequential)


@pytest.mark.parametrize("recipe", ["rigl", "static"])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_what_the_dense_network_did_to_the_entry(kind, sparsity, recipe):
    found = sparse_iso_flop(given(), sparsity, kind)
    made = {"rigl": rigl(found.density, every=2, allocation=found.allocation),
            "static": static(found.density, allocation=found.allocation)}  # fmt: skip
    sparsifier = trained(found, made[recipe])
    report = sparsifier.report()
    assert {row.name: row.kept for row in report.rows} == dict(found.kept)
    dropped = sum(row.numel - row.kept for row in report.rows)
    assert sum(p.numel() for p in found.model.parameters() if p.ndim == 2) - dropped == DENSE
    if recipe == "static":  # nothing was grown at zero
        assert multiply_adds(found.model) == matrices(found.model) == DENSE


@pytest.mark.parametrize("kind", ["parallel", "factorised", "doped"])
def test_one_density_everywhere_comes_within_a_percent(kind):
    model = nn.Sequential(nn.Linear(200, 160), nn.ReLU(), nn.Linear(160, 120), nn.ReLU(), nn.Linear(120, 80))
    found = sparse_iso_flop(model, 0.9, kind)
    trained_one = Sparsifier(
        found.model, static(0.1, allocation="uniform"), steps=1, include=found.include,
        optimizer=torch.optim.SGD(found.model.parameters(), lr=0.1),
    )  # fmt: skip
    assert trained_one.report().density == pytest.approx(0.1, abs=1e-3)
    assert matrices(found.model) == pytest.approx(200 * 160 + 160 * 120 + 120 * 80, rel=0.01)


def test_sizes_are_the_formulas():
    wide = sparse_iso_flop(given(), 0.75, "wide")
    assert [(m.in_features, m.out_features) for m in wide.model if isinstance(m, nn.Linear)] == [
        (37, 48), (48, 62), (62, 10)
    ]  # fmt: skip
    assert wide.kept == {"1.weight": 37 * 24, "3.weight": 24 * 31, "6.weight": 310}
    assert [wide.kept["3.weight"] / (48 * 62), wide.kept["6.weight"] / 620] == [0.25, 0.5]

    parallel = sparse_iso_flop(given(), 0.9, "parallel")
    assert [type(m) for m in parallel.model] == [nn.Flatten, Parallel, Parallel, nn.Dropout, nn.Linear]
    assert [len(m.branches) for m in parallel.model if isinstance(m, Parallel)] == [10, 10]
    assert isinstance(parallel.model[2].activation, nn.Tanh)
    first = [count for name, count in parallel.kept.items() if name.startswith("1.")]
    assert sum(first) == 37 * 24
    assert set(first) == {88, 89}
    assert "4.weight" not in parallel.kept

    factorised = sparse_iso_flop(given(), 0.9, "factorised")
    for (a, b), place in zip(SIZES, (1, 3, 6)):
        pair = factorised.model[place]
        inner = math.ceil(a * b / ((a + b) * 0.1))
        assert (pair[0].weight.shape, pair[2].weight.shape) == ((inner, a), (b, inner))
        assert isinstance(pair[1], nn.ReLU)
        for part in (0, 2):
            density = factorised.kept[f"{place}.{part}.weight"] / pair[part].weight.numel()
            assert density == pytest.approx(0.1, rel=0.02)

    doped = sparse_iso_flop(given(), 0.9, "doped")
    for (a, b), place in zip(SIZES, (1, 3, 6)):
        rank = math.floor(0.9 * a * b / (a + b))
        layer = doped.model[place]
        assert (layer.V.weight.shape, layer.U.weight.shape) == ((rank, a), (b, rank))
        assert doped.kept[f"{place}.sparse.weight"] + rank * (a + b) == a * b


def test_what_the_layers_compute():
    draw = rng(0, "layers")
    x = torch.from_numpy(draw.standard_normal((4, 5)).astype(np.float32))
    parallel, doped = Parallel(5, 3, 4, nn.Tanh()), Doped(5, 3, 2)
    X = x.numpy().astype(float)
    wanted = sum(np.tanh(X @ b.weight.detach().numpy().T + b.bias.detach().numpy()) for b in parallel.branches)
    np.testing.assert_allclose(parallel(x).detach(), wanted, rtol=1e-5, atol=1e-6)
    W = (doped.sparse.weight + doped.U.weight @ doped.V.weight).detach().numpy()
    np.testing.assert_allclose(doped(x).detach(), X @ W.T + doped.sparse.bias.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_first_outputs_are_of_the_size_of_a_dense_networks(kind):
    model = nn.Sequential(nn.Linear(200, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 100))
    found = sparse_iso_flop(model, 0.75, kind)
    Sparsifier(found.model, static(found.density, allocation=found.allocation), steps=1, include=found.include,
               optimizer=torch.optim.SGD(found.model.parameters(), lr=0.1))  # fmt: skip
    x = torch.from_numpy(rng(0, "x").standard_normal((64, 200)).astype(np.float32))
    ratio = found.model(x).square().mean().item() / 2  # He's variance: twice the mean square of the input
    assert 0.4 < ratio < (6 if kind == "parallel" else 2.5)  # sums of rectified branches have a mean


def test_the_given_model_is_left_alone_and_seeds_repeat():
    model = given(bias=False).double().eval()
    before = copy.deepcopy(model.state_dict())
    one, two, other = (sparse_iso_flop(model, 0.5, "doped", seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    states = [found.model.state_dict() for found in (one, two, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["1.sparse.weight"], states[2]["1.sparse.weight"])
    assert one.model[1].sparse.weight.dtype == torch.float64
    assert not one.model.training
    assert all(parameter.ndim == 2 for parameter in one.model.parameters())  # no bias came in


def test_a_layer_too_small_for_its_part_stays():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
    found = sparse_iso_flop(model, 0.5, "doped")
    assert list(found.kept) == ["0.sparse.weight"]
    assert [type(m) for m in found.model] == [Doped, nn.ReLU, nn.Linear]
    for tiny, sparsity, kind in ((nn.Linear(30, 1), 0.5, "doped"), (nn.Linear(30, 8), 0.3, "parallel")):
        with pytest.raises(InputError, match=rf"^sparsity: got {sparsity}, at which '{kind}' leaves every layer"):
            sparse_iso_flop(nn.Sequential(tiny, nn.ReLU()), sparsity, kind)


def test_the_allocation_keeps_its_counts():
    found = sparse_iso_flop(given(), 0.9, "wide")
    assert isinstance(found.allocation, Fixed)
    sizes = {name: tuple(found.model.get_parameter(name).shape) for name in found.include}
    assert found.allocation.counts(sizes, 0.5) == dict(found.kept)
    assert found.density == pytest.approx(DENSE / sum(a * b for a, b in sizes.values()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sparsity": 0.0}, "sparsity"), ({"sparsity": 1.0}, "sparsity"), ({"sparsity": float("nan")}, "sparsity"),
        ({"kind": "deep"}, "kind"), ({"seed": -1}, "seed"), ({"model": nn.Linear(3, 3)}, "model"),
        ({"model": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())}, "model: '1' is a BatchNorm1d"),
        ({"model": nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))}, "model: '1' is a Softmax"),
        ({"model": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))}, "model: got 2 linear layers and 0 activations"),
        ({"model": nn.Sequential(nn.Linear(3, 3), nn.ReLU())}, "model: got 1 linear layers"),
        ({"model": nn.Sequential()}, "model: got 0 linear layers"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(change, named):
    given_ = {"model": given(), "sparsity": 0.5, "kind": "wide", **change}
    with pytest.raises(InputError, match=rf"^{named}.*want"):
        sparse_iso_flop(given_["model"], given_["sparsity"], given_["kind"], seed=given_.get("seed", 0))

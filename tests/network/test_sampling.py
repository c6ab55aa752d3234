"""Sampling: each sample is the one its uniform number picks from the network's own probabilities, in every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.layouts import CSR, RowGroup
from ellzero.models.wavernn import PRUNED, WaveRNNConfig, fold, split, unfold
from ellzero.network.blocks import Blocks, block_gmp
from ellzero.network.sampling import Sampler, pack
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.allocations import Uniform, kept_count
from ellzero.parts.constraints import Block
from ellzero.rng import rng
from tests.models.test_wavernn import KINDS, features_of


def network(kind, width=32, block=None, density=0.25):
    model = WaveRNNConfig(width, **KINDS[kind]).build(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2).add_(0.2 * (parameter.ndim == 1))
            if block is not None and name in PRUNED:
                k = int(parameter.numel() * density / (block[0] * block[1]))
                parameter.mul_(Block(k, block).support(parameter.abs()))
    return model


def picked(model, samples, given, seed, temperature=1.0):
    """The bytes that the uniform numbers pick, each from the probabilities that torch gives it."""
    seen = {}
    model.O2.register_forward_hook(lambda module, x, y: seen.setdefault("coarse", y))
    model.O4.register_forward_hook(lambda module, x, y: seen.setdefault("fine", y))
    model(samples, given)
    n, parts = len(samples), model.config.subscale
    times = samples.shape[1] // parts
    uniform = rng(seed, "wave sampling").random((n, times, parts, 2))
    found = []
    for i, name in enumerate(("coarse", "fine")):
        share = (seen[name].double() / temperature).softmax(-1).cumsum(-1).detach()
        drawn = torch.from_numpy(uniform[..., i]).transpose(1, 2).reshape(n * parts, times, 1)
        found.append(unfold((share <= drawn).sum(-1).reshape(n, parts, times)))
    return found


@pytest.mark.parametrize("block", [None, (16, 1), (4, 4), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_what_its_uniform_number_picks(kind, block):
    model = network(kind, block=block)
    given = features_of(kind, 2, 24)
    out = Sampler(model).sample(24, streams=2, features=given, seed=5)
    assert (out.shape, out.dtype) == ((2, 24), np.int16)
    samples = torch.from_numpy(out).long()
    for want, got in zip(picked(model, samples, given, 5), split(samples)):
        assert (want == got).double().mean() > 0.99  # a number within rounding of an edge may pick its neighbour


@pytest.mark.parametrize("layout", ["dense", "csr", "row-group", "condensed"])
def test_layouts_draw_the_same_samples(layout):
    model = network("folded", block=(4, 4))
    want, got = (Sampler(model, layout=name).sample(40, streams=2, seed=1) for name in ("auto", layout))
    assert (want == got).mean() > 0.95
    assert Sampler(model, layout=layout).stored >= Sampler(model).stored


def test_the_temperature_divides_the_logits():
    model = network("plain")
    out = torch.from_numpy(Sampler(model, temperature=0.5).sample(30, seed=2)).long()
    for want, got in zip(picked(model, out, None, 2, 0.5), split(out)):
        assert (want == got).double().mean() > 0.99


def test_streams_and_steps_do_not_touch_one_another():
    model = network("folded")
    both = Sampler(model).sample(40, streams=3, seed=3)
    assert len({row.tobytes() for row in both}) == 3
    again = Sampler(model).sample(40, streams=3, seed=3)
    assert np.array_equal(both, again)
    assert not np.array_equal(both, Sampler(model).sample(40, streams=3, seed=4))


def test_sub_signals_run_side_by_side():
    """length / B + (B - 1)(future + 1) steps, and at most B columns in each."""
    model = network("folded")
    sampler, columns = Sampler(model), []
    step = sampler.step
    sampler.step = lambda h, known, uniform: (columns.append(h.shape[1]), step(h, known, uniform))[1]
    sampler.sample(80)
    assert len(columns) == 80 // 4 + 3 * (2 + 1)
    assert sum(columns) == 80
    assert max(columns) == 4


def test_auto_takes_the_widest_groups_that_fit():
    rows = rng(0, "matrix").standard_normal((64, 48)).astype(np.float32)
    for block, group in (((16, 1), 8), ((8, 1), 8), ((4, 4), 4), ((1, 1), 1)):
        matrix = rows * Block(rows.size // 10 // (block[0] * block[1]), block).support(abs(rows))
        found = pack(matrix)
        assert isinstance(found, CSR if group == 1 else RowGroup)
        assert found.pattern.group == group
        assert np.array_equal(found.to_dense(), matrix)
    assert pack(rows) is rows
    assert isinstance(pack(np.zeros((8, 8), np.float32)), RowGroup)


@pytest.mark.parametrize("block", [(16, 1), (4, 4), (2, 8)])
def test_pruning_keeps_whole_blocks_of_each_gate_apart_and_none_returns(block):
    model = WaveRNNConfig(32).build(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    recipe = block_gmp(0.1, block, every=3, end=0.8)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=20, include=PRUNED)
    samples = torch.from_numpy(rng(0, "s").integers(-99, 99, (2, 8)))
    area, before = block[0] * block[1], {name: mask.clone() for name, mask in sparsifier.masks.items()}
    assert all(mask.all() for mask in before.values())
    for step in range(1, 21):
        optimizer.zero_grad()
        model(samples).mean().backward()
        optimizer.step()
        sparsifier.step()
        for name, mask in sparsifier.masks.items():
            tiles = mask.reshape(mask.shape[0] // block[0], block[0], -1, block[1]).transpose(1, 2).flatten(2)
            assert (tiles.all(2) == tiles.any(2)).all()
            assert not (mask & ~before[name]).any()
            assert not model.get_parameter(name)[~mask].any()
            if step == 20:
                assert int(mask.sum()) == area * -(-kept_count(mask.numel(), 0.1) // area)
        before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    assert set(sparsifier.masks) == set(PRUNED)
    sparsifier.remove()
    assert np.array_equal(Sampler(model).matrices["O2"].to_dense(), model.O2.weight.detach().numpy())


def test_the_kept_blocks_have_the_largest_means_and_a_sparse_start_is_cut_too():
    from ellzero.network.recipes import Recipe
    from ellzero.parts.schedules import Constant

    layer = torch.nn.Linear(8, 16, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rng(0, "w").standard_normal((16, 8))))
    sums = layer.weight.detach().abs().reshape(4, 4, 8).sum(1)
    recipe = Recipe(Constant(0.25), Uniform(), move=Blocks(4, 1))
    made = Sparsifier(layer, recipe, optimizer=torch.optim.SGD(layer.parameters(), lr=0.1), steps=5)
    kept = made.masks["weight"].reshape(4, 4, 8).all(1)
    assert int(made.masks["weight"].sum()) == 32
    assert sums[kept].min() > sums[~kept].max()


def test_bad_input_is_named():
    model = network("features")
    layer = torch.nn.Linear(9, 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for call, words in [
        (lambda: Sampler(layer), "model: got Linear"),
        (lambda: Sampler(model, layout="sparse"), "layout: got 'sparse'"),
        (lambda: Sampler(model, temperature=0), "temperature: got 0"),
        (lambda: Sampler(model).sample(0), "length: got 0"),
        (lambda: Sampler(model).sample(10), "features: got None"),
        (lambda: Sampler(network("folded")).sample(10), "length: got 10, want a multiple of 4"),
        (lambda: block_gmp(0.5, 4), "block: got 4"),
        (lambda: block_gmp(0.5, (0, 4)), "height: got 0"),
        (lambda: Sparsifier(layer, block_gmp(0.5, (4, 4)), optimizer=optimizer, steps=4), "weight: has shape"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    assert fold(torch.zeros(4), 2).shape == (2, 2)

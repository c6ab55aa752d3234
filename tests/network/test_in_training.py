"""The Sparsifier outside plain loops: parameter groups, scaled gradients, compiled models, two ranks, a kill."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.dynamic import sparse_momentum, srigl
from ellzero.network.learned import pst
from ellzero.network.patterns import sr_ste
from ellzero.network.recipes import gmp, rigl
from ellzero.network.sparsifier import Sparsifier
from ellzero.rng import rng

STEPS, RATE = 12, 0.01
RECIPES = {
    "rigl": rigl(0.3, every=3), "sr_ste": sr_ste(2, 4), "sparse_momentum": sparse_momentum(0.3, every=3),
    "pst": pst(0.3, every=3), "srigl": srigl(0.3, every=3),
}  # fmt: skip


class Net(nn.Module):
    """A tied pair between two layers of their own."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two, self.last = (nn.Linear(a, b) for a, b in ((8, 16), (16, 16), (16, 16), (16, 4)))
        self.two.weight = self.one.weight
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(0.4 * rng(0, name).standard_normal(tuple(parameter.shape))))

    def forward(self, x):
        return self.last(self.two(self.one(self.first(x).relu()).relu()).relu())


def batch(step, rows=8):
    draw = rng(step, "batch")
    x = torch.from_numpy(draw.standard_normal((rows, 8)).astype(np.float32))
    return x, torch.from_numpy(draw.integers(0, 4, rows))


def run(model, optimizer, sparsifier, forward=None, scaler=None, accumulate=1, precision=torch.float32):
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        x, y = batch(step)
        for part_x, part_y in zip(x.chunk(accumulate), y.chunk(accumulate)):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                out = (model if forward is None else forward)(part_x).float()
            loss = nn.functional.cross_entropy(out, part_y) / accumulate
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        sparsifier.step()


def held(sparsifier):
    """No weight shows outside its mask, and the counts are those of the report."""
    report = {row.name: row.kept for row in sparsifier.report().rows}
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    sparsifier.remove()
    for name, mask in masks.items():
        assert int(mask.sum()) == report[name]
        assert not sparsifier.weights[name].detach()[~mask].any()
    return masks


@pytest.mark.parametrize("name", RECIPES)
def test_bfloat16_accumulation_decay_and_groups_at_once(name):
    model = Net()
    groups = [
        {"params": [model.first.weight, model.first.bias], "lr": 0.02, "weight_decay": 0.1},
        {"params": [model.one.weight], "lr": 0.01, "weight_decay": 0.3},
        {"params": [model.one.bias, model.two.bias, *model.last.parameters()], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.005)
    sparsifier = Sparsifier(model, RECIPES[name], optimizer=optimizer, steps=STEPS)
    run(model, optimizer, sparsifier, accumulate=2, precision=torch.bfloat16)
    masks = held(sparsifier)
    assert set(masks) == {"first.weight", "one.weight", "last.weight"}
    assert model.two.weight is model.one.weight
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert kept == pytest.approx(0.5 if name == "sr_ste" else 0.3, abs=0.05)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 4]


@pytest.mark.parametrize("name", ["rigl", "sparse_momentum", "sr_ste"])
def test_scaled_gradients_choose_the_same_masks(name):
    """A power of two as the scale of the loss: exact, so that every bit must agree."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**10)):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-2)
        sparsifier = Sparsifier(model, RECIPES[name], optimizer=optimizer, steps=STEPS)
        run(model, optimizer, sparsifier, scaler=scaler)
        found.append((held(sparsifier), [p.detach().clone() for p in model.parameters()]))
    for key, mask in found[0][0].items():
        assert torch.equal(mask, found[1][0][key])
    for one, two in zip(found[0][1], found[1][1]):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["rigl", "sr_ste", "gmp"])
def test_a_compiled_model_is_pruned_as_the_plain_one(name):
    recipe = gmp(0.3, every=3) if name == "gmp" else RECIPES[name]
    found = []
    for compiled in (False, True):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        outer = torch.compile(model, backend="aot_eager") if compiled else model
        sparsifier = Sparsifier(outer, recipe, optimizer=optimizer, steps=STEPS)
        assert set(sparsifier.masks) == {"first.weight", "one.weight", "last.weight"}
        run(model, optimizer, sparsifier, forward=outer)
        found.append((held(sparsifier), copy.deepcopy(model.state_dict())))
        torch.compiler.reset()
    for key, mask in found[0][0].items():
        assert torch.equal(mask, found[1][0][key])
    for key, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][key], msg=key)


HERE = textwrap.dedent(
    """
    import importlib.util, os, signal, sys
    import torch
    from torch import nn
    spec = importlib.util.spec_from_file_location("in_training", sys.argv[1])
    here = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(here)
    torch.set_num_threads(1)
    """
)

RANK = HERE + textwrap.dedent(
    """
    import torch.distributed as dist
    rank, folder = int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
    out = {}
    for name, recipe in here.RECIPES.items():
        model = here.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=here.RATE, momentum=0.9, weight_decay=1e-2)
        first = name in ("sr_ste", "pst")  # weights with a view join before the wrapper looks at the parameters
        outer = model if first else nn.parallel.DistributedDataParallel(model)
        sparsifier = here.Sparsifier(outer, recipe, optimizer=optimizer, steps=here.STEPS)
        outer = nn.parallel.DistributedDataParallel(model) if first else outer
        for step in range(1, here.STEPS + 1):
            x, y = (part.chunk(2)[rank] for part in here.batch(step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(outer(x), y).backward()
            optimizer.step()
            sparsifier.step()
        out |= {name + ":" + key: mask for key, mask in here.held(sparsifier).items()}
        out |= {name + "=" + key: value for key, value in model.state_dict().items()}
    torch.save(out, folder + "/rank" + str(rank) + ".pt")
    dist.destroy_process_group()
    """
)


def test_two_ranks_keep_the_same_masks_as_one_process_with_both_halves(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, __file__, str(rank), str(tmp_path)], env=environment,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            _, error = rank.communicate(timeout=300)
            assert rank.returncode == 0, error
    finally:
        for rank in ranks:
            rank.kill()
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert set(one) == set(two)
    for key in one:
        assert torch.equal(one[key], two[key]), key
    for name, recipe in RECIPES.items():
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-2)
        sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=STEPS)
        run(model, optimizer, sparsifier, accumulate=2)  # the mean of the halves' gradients, as over ranks
        for key, mask in held(sparsifier).items():
            assert torch.equal(mask, one[f"{name}:{key}"]), (name, key)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, one[f"{name}={key}"], msg=f"{name} {key}", rtol=1e-3, atol=1e-5)


def test_a_view_after_the_parallel_wrapper_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Net())
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        with pytest.raises(InputError, match="wrapper around it afterwards"):
            Sparsifier(model, RECIPES["pst"], optimizer=optimizer, steps=STEPS)
        Sparsifier(model, RECIPES["rigl"], optimizer=optimizer, steps=STEPS).remove()
    finally:
        torch.distributed.destroy_process_group()


KILLED = HERE + textwrap.dedent(
    """
    from ellzero.training import losses
    from ellzero.training.loop import Batches, train

    def run(folder, kill_at):
        X, y = here.batch(0, 60)
        out, count = {}, 0
        for name, recipe in here.RECIPES.items():
            model = here.Net()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
            sparsifier = here.Sparsifier(model, recipe, optimizer=optimizer, steps=here.STEPS)

            def killer(step, loss):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            train(model, losses.classification, Batches(X, y, batch_size=10, seed=1), optimizer=optimizer,
                  steps=here.STEPS, parts={"sparsifier": sparsifier}, checkpoint=os.path.join(folder, name), every=5,
                  callbacks=[killer])
            out |= {name + ":" + key: mask for key, mask in here.held(sparsifier).items()}
            out |= {name + "=" + key: value for key, value in model.state_dict().items()}
        torch.save(out, folder + "/end.pt")

    for folder, kill_at in zip(sys.argv[2::2], sys.argv[3::2]):  # a child each: what it holds in memory dies with it
        os.makedirs(folder, exist_ok=True)
        child = os.fork()
        if not child:
            run(folder, int(kill_at))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    """
)


def test_killed_and_called_again_every_machinery_ends_with_the_same_bits(tmp_path):
    """One run is killed once in each recipe, each time after another number of steps since its checkpoint."""
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    left = (7, 7 + 7, 7 + 8, 7 + 6, 7 + 11)  # steps to the kill: what the recipe before has left, then in the next
    calls = [whole, "0", *(word for kill_at in left for word in (killed, str(kill_at))), killed, "0"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, __file__, *calls], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["0", *[str(int(signal.SIGKILL))] * 5, "0"], done.stderr
    want, got = (torch.load(tmp_path / folder / "end.pt") for folder in ("whole", "killed"))
    assert set(want) == set(got)
    for key, value in want.items():
        assert torch.equal(got[key], value), key

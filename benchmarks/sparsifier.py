"""What sparsity costs a training step: a dense loop against the same loop under RigL, and global magnitude pruning
against ``torch.nn.utils.prune``.

    python benchmarks/sparsifier.py [--threads 1] [--repeats 9] [--steps 200] [--width 1024] [--batch 128]

Jobs take turns in one process, warm-up not counted, by CPU time. RigL's masks move every 100 steps; between updates its
cost is that of holding gradients at zero, which a loop under any mask pays.
"""

import argparse
import copy

import torch
from table import race, ratio, setting
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ellzero.network.recipes import one_shot, rigl, static
from ellzero.network.sparsifier import Sparsifier
from ellzero.rng import rng


def network(width, seed=0):
    model = nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(rng(seed, name).standard_normal(tuple(p.shape)) / p.shape[-1] ** 0.5))
    return model


def loop(width, batch, steps, recipe):
    """A job of ``steps`` training steps; the model and its masks go on from turn to turn."""
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = recipe and Sparsifier(model, recipe, optimizer=optimizer, steps=1_000_000)
    draw = rng(0, "batch")
    X = torch.from_numpy(draw.standard_normal((batch, 784), dtype="float32"))
    y = torch.from_numpy(draw.integers(0, 10, batch))

    def job():
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(X), y).backward()
            optimizer.step()
            if sparsifier:
                sparsifier.step()

    return job


def ours(model, density):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Sparsifier(model, one_shot(density, at=0.0), optimizer=optimizer, steps=1).masks


def theirs(model, density):
    """Their masks, and the model they leave: pruned through a hook at each forward."""
    layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - density)
    return {f"{name}.weight": m.weight_mask.bool() for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("threads", 1), ("repeats", 9), ("steps", 200), ("width", 1024), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"784-{args.width}-{args.width}-10, batch {args.batch}, {args.steps} steps a turn; {setting()}")
    make = {"dense": None, "static mask": static(0.1), "RigL, every 100": rigl(0.1, every=100)}
    times = race(
        {name: loop(args.width, args.batch, args.steps, recipe) for name, recipe in make.items()}, args.repeats
    )
    for name in list(make)[1:]:
        print(f"{name} / dense: {ratio(times[name], times['dense']):.3f}")
    print(f"RigL / static mask: {ratio(times['RigL, every 100'], times['static mask']):.3f}")
    model = network(args.width)
    a, b = ours(copy.deepcopy(model), 0.1), theirs(copy.deepcopy(model), 0.1)
    differing = sum(int((a[name] != b[name]).sum()) for name in a)
    print(f"global magnitude pruning to 10 %; the masks differ at {differing} of {sum(m.numel() for m in a.values())}")
    times = race(
        {"ellzero": lambda: ours(copy.deepcopy(model), 0.1), "torch.nn.utils.prune": lambda: theirs(
            copy.deepcopy(model), 0.1)}, args.repeats)  # fmt: skip
    print(f"ours / theirs: {ratio(times['ellzero'], times['torch.nn.utils.prune']):.3f}")


if __name__ == "__main__":
    main()

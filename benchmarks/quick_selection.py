"""QuickSelection's autoencoder stored by rows against its masked dense twin and the dense one: one epoch, and bytes.

    python benchmarks/quick_selection.py [--columns 5000] [--hidden 1000] [--rows 500] [--repeats 5] [--threads 1]

Each turn is an epoch (batches of 100) with the evolution after it, the jobs interleaved in one process; the first turn
is warm-up. The twin holds both weights dense with a mask on weights, gradients and momentum, as published code does,
and evolves by the same rule. ``--epsilon`` sets the density; the default gives 95 % sparsity or more.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from table import race, ratio, setting
from torch import nn

from ellzero.layouts.grouped import CSR
from ellzero.network.quick_selection import Evolution, SparseAutoencoder, evolved, reconstruction
from ellzero.rng import rng, torch_generator


class Twin(nn.Module):
    """The same network in dense layers, with the mask of ``like`` or none."""

    def __init__(self, like: SparseAutoencoder, masked: bool):
        super().__init__()
        inputs, hidden = like.encoder.in_features, like.encoder.out_features
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Dropout(0.2), nn.Linear(hidden, inputs))
        self.masks: dict[nn.Parameter, torch.Tensor] = {}
        for layer, own in ((self.layers[0], like.encoder), (self.layers[3], like.decoder)):
            with torch.no_grad():
                layer.bias.zero_()
                if masked:
                    layer.weight.copy_(own.to_dense())
                    self.masks[layer.weight] = layer.weight != 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    @torch.no_grad()
    def hold(self, optimizer: torch.optim.Optimizer) -> None:
        """Weights and momentum stay zero outside the mask."""
        for weight, mask in self.masks.items():
            weight.mul_(mask)
            if (memory := optimizer.state[weight].get("momentum_buffer")) is not None:
                memory.mul_(mask)

    @torch.no_grad()
    def evolve(self, optimizer: torch.optim.Optimizer, draw: np.random.Generator) -> None:
        """SET on dense weights, by the rule of the sparse one."""
        for weight, mask in self.masks.items():
            layout = CSR.from_dense(weight.numpy())
            memory = optimizer.state[weight]["momentum_buffer"]
            following, moved = evolved(layout, memory[weight != 0].numpy(), 0.2, draw)
            weight.copy_(torch.from_numpy(following.to_dense()))
            memory.copy_(torch.from_numpy(CSR(following.pattern, moved[:, None]).to_dense()))
            mask.copy_(weight != 0)


def epochs(model: nn.Module, X: torch.Tensor, after_step, after_epoch):
    """A job that runs one epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-5)
    loss = reconstruction(0.2, torch_generator(0, "noise"))

    def job() -> None:
        for rows in X.split(100):
            optimizer.zero_grad()
            loss(model, rows).backward()
            optimizer.step()
            after_step(optimizer)
        after_epoch(optimizer)

    return job, optimizer


def held(model: nn.Module, optimizer: torch.optim.Optimizer, places: int) -> int:
    """Bytes of weights and momentum, with what is stored to place them."""
    kept = [*model.parameters(), *(s["momentum_buffer"] for s in optimizer.state.values())]
    return sum(t.numel() * t.element_size() for t in kept) + places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("columns", 5000), ("hidden", 1000), ("rows", 500), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--epsilon", type=float, default=13.0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    X = torch.from_numpy(rng(0, "rows").standard_normal((given.rows, given.columns), dtype=np.float32))
    sparse = SparseAutoencoder(given.columns, given.hidden, epsilon=given.epsilon)
    density = sparse.encoder.layout.nnz / (given.columns * given.hidden)
    masked, dense, draw = Twin(sparse, True), Twin(sparse, False), rng(0, "twin")
    jobs, made = {}, {}
    jobs["sparse"], made["sparse"] = epochs(sparse, X, lambda _: None, lambda _: evolution.evolve(1))
    evolution = Evolution(sparse, made["sparse"], drop=0.2, epoch=1, epochs=2)
    jobs["masked dense"], made["masked dense"] = epochs(masked, X, masked.hold, lambda o: masked.evolve(o, draw))
    jobs["dense"], made["dense"] = epochs(dense, X, lambda _: None, lambda _: None)
    print(f"{given.columns} columns, {given.hidden} hidden, {given.rows} rows, density {density:.4f}; {setting()}")
    times = race(jobs, given.repeats)
    places = sum(layout.nbytes - 4 * layout.nnz for layout in (sparse.encoder.layout, sparse.decoder.layout))
    nbytes = {
        "sparse": held(sparse, made["sparse"], places),
        "masked dense": held(masked, made["masked dense"], sum(m.numel() for m in masked.masks.values())),
        "dense": held(dense, made["dense"], 0),
    }
    for name in ("masked dense", "dense"):
        spread = sorted(b / a for a, b in zip(times["sparse"].cpu, times[name].cpu))
        print(f"{name} / sparse: {1 / ratio(times['sparse'], times[name]):.1f} times the seconds "
              f"({spread[0]:.1f} to {spread[-1]:.1f}, median {statistics.median(spread):.1f}), "
              f"{nbytes[name] / nbytes['sparse']:.1f} times the bytes ({nbytes[name]})")  # fmt: skip


if __name__ == "__main__":
    main()

"""Time of a training step: many inducing points of which each row sees few, against all at once.

    python benchmarks/gaussian_process.py [--inducing 1024] [--neighbors 32] [--all 512] [--batch 128] [--repeats 5]

A step is the bound of one batch, its gradient and Adam's update, on planted rows of 26 columns (pol has as many); a
turn is ten steps. Jobs take turns in one process; the first turn is warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from table import race, ratio, setting

from ellzero.rng import rng
from ellzero.solvers.neighbour_gp import NeighbourGP


def stepper(x: torch.Tensor, y: torch.Tensor, Z: torch.Tensor, neighbors: int, batch: int) -> Callable[[], None]:
    """Ten steps on batches in order."""
    process = NeighbourGP(Z, neighbors, kernel="matern32", covariance="triangle", jitter=1e-6,
                          lengthscale=float(np.sqrt(x.shape[1])), noise=0.1)  # fmt: skip
    optimizer = torch.optim.Adam(process.parameters(), lr=0.02, fused=True)

    def steps() -> None:
        for i in range(10):
            part = slice(i * batch, (i + 1) * batch)
            optimizer.zero_grad()
            process((x[part], y[part]), len(x)).backward()
            optimizer.step()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inducing", type=int, default=1024)
    parser.add_argument("--neighbors", type=int, default=32)
    parser.add_argument("--all", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    generator = rng(0, "benchmark gaussian process")
    x = generator.standard_normal((10 * options.batch, 26))
    y = np.sin(x[:, 0]) + 0.1 * generator.standard_normal(len(x))
    Z = torch.from_numpy(generator.standard_normal((max(options.inducing, options.all), 26)))
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    few = f"{options.neighbors} of {options.inducing}"
    whole, same = (f"all {count}" for count in (options.all, options.neighbors))
    jobs = {few: stepper(x, y, Z[: options.inducing], options.neighbors, options.batch),
            whole: stepper(x, y, Z[: options.all], options.all, options.batch),
            same: stepper(x, y, Z[: options.neighbors], options.neighbors, options.batch)}  # fmt: skip
    print(f"ten steps of {options.batch} rows; torch on {torch.get_num_threads()} thread(s); {setting()}")
    times = race(jobs, options.repeats)
    print(f"  {whole} / {few}: {ratio(times[whole], times[few]):.2f}; {few} / {same}: "
          f"{ratio(times[few], times[same]):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

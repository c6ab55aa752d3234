"""Six methods at 2 % of the weights on five seeds each: how long a fair comparison takes on two cores.

    OMP_NUM_THREADS=1 python benchmarks/network_bed.py [--seeds 5] [--workers 2]

The bed of the claims: 784-300-100-10 on 8,000 and 2,000 MNIST digits (``ELLZERO_DATA``), 945 steps of 128, here with
torch's fused SGD. Every run is a job of its own for one of the worker processes, each on one thread; by the wall clock,
the workers' start included.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.claims.network_bed import METHODS, mnist_bed, run, spread

bed = cache(mnist_bed)


def accuracy(job: tuple[str, int]) -> float:
    """In percent, of one run at learning rate 0.2."""
    name, seed = job
    return run(bed(), METHODS[name](seed), seed, 0.2, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    jobs = [(name, seed) for name in METHODS for seed in range(options.seeds)]
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers) as pool:
        found = np.array(list(pool.map(accuracy, jobs))).reshape(len(METHODS), -1)
    seconds = time.perf_counter() - start
    for name, row in zip(METHODS, found):
        print(f"{name:18} {spread(row)} %")
    print(f"{len(jobs)} runs in {seconds:.0f} s by the clock, {options.workers} workers")


if __name__ == "__main__":
    main()

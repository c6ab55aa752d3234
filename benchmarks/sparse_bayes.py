"""Sparse Bayesian learning: structured and matrix-free posteriors against the dense one, interleaved in one process.

    python benchmarks/sparse_bayes.py kronecker [--rows 8] [--columns 12] [--factors 3] [--repeats 5]
    python benchmarks/sparse_bayes.py messages [--rows 2000] [--columns 4000] [--nonzeros 400] [--repeats 1]

``kronecker`` times one posterior, dense and from eigen-decompositions of the factors, and checks that they are equal;
the reach is 50 times at N = 1728, M = 512. ``messages`` times whole fits: EM with inverses (``--steps`` of them, scaled
to the steps that EM takes there), the fixed point with inverses, and messages in both precisions; the bound is the time
of the products alone, four per pass. Medians; the first turn is warm-up, except with ``--repeats 1``. Set
OMP_NUM_THREADS for the threads; ``--clock cpu`` counts processor seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import reduce

import numpy as np
from threadpoolctl import threadpool_info

from ellzero.rng import rng
from ellzero.solvers.kronecker_bayes import KroneckerPosterior
from ellzero.solvers.message_passing import ggamp_sbl
from ellzero.solvers.operators import Dense
from ellzero.solvers.sparse_bayes import ExactPosterior, sparse_bayes


def interleave(jobs: dict[str, Callable[[], object]], repeats: int, clock: str) -> tuple[dict, dict]:
    """Median seconds and the last result of each job; the jobs take turns."""
    now = time.perf_counter if clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    results: dict[str, object] = {}
    for turn in range(repeats + (repeats > 1)):
        for name, job in jobs.items():
            start = now()
            results[name] = job()
            if turn or repeats == 1:
                seconds[name].append(now() - start)
    for name, times in seconds.items():
        print(f"{name:28} {statistics.median(times):9.4f} s  ({min(times):.4f} to {max(times):.4f} s)")
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def kronecker(options: argparse.Namespace) -> None:
    generator = rng(0, "benchmark kronecker")
    matrices = [generator.standard_normal((options.rows, options.columns)) for _ in range(options.factors)]
    factors = [generator.uniform(0.1, 2, options.columns) for _ in matrices]
    A, gamma = reduce(np.kron, matrices), reduce(np.kron, factors)
    y = generator.standard_normal(len(A))
    print(f"A [{len(A)}, {len(gamma)}] from {options.factors} factors, one posterior")
    dense, structured = ExactPosterior(Dense(A), y), KroneckerPosterior(matrices, y)
    jobs = {"dense": lambda: dense(gamma, 0.1), "structured": lambda: structured(factors, 0.1)}
    median, results = interleave(jobs, options.repeats, options.clock)
    off = [
        np.max(abs(getattr(results["dense"], name) - getattr(results["structured"], name)))
        / np.max(abs(getattr(results["dense"], name)))
        for name in ("mean", "variance")
    ]
    print(f"dense / structured: {median['dense'] / median['structured']:.0f} (reach: 50)")
    print(f"largest relative difference of the mean {off[0]:.1e}, of the variance {off[1]:.1e}")


def messages(options: argparse.Namespace) -> None:
    generator, n, p = rng(0, "benchmark messages"), options.rows, options.columns
    A = generator.standard_normal((n, p)) / np.sqrt(n)
    w = np.zeros(p)
    w[generator.choice(p, options.nonzeros, replace=False)] = generator.standard_normal(options.nonzeros)
    noise = generator.standard_normal(n)
    y = A @ w + noise * np.linalg.norm(A @ w) / np.linalg.norm(noise) * 10 ** (-options.decibel / 20)
    single = A.astype(np.float32)
    print(f"A [{n}, {p}], {options.nonzeros} nonzeros, {options.decibel} dB, whole fits")
    jobs = {
        "messages": lambda: ggamp_sbl(A, y),
        "messages, float32": lambda: ggamp_sbl(single, y),
        "inverses, fixed point": lambda: sparse_bayes(A, y, tol=1e-4),
        f"inverses, {options.steps} steps of EM": lambda: sparse_bayes(
            A, y, update="em", tol=0, max_iter=options.steps
        ),
        "100 times four products": lambda: [(A @ w, A.T @ y) for _ in range(200)],
    }
    median, results = interleave(jobs, options.repeats, options.clock)
    for name, result in results.items():
        if hasattr(result, "mean"):
            error = 10 * np.log10(np.sum((result.mean - w) ** 2) / np.sum(w**2))
            print(f"{name:28} {result.n_iter:4} steps, error {error:.1f} dB, {len(result.support)} in")
    em = median[f"inverses, {options.steps} steps of EM"] / options.steps
    for name in ("messages", "messages, float32"):
        steps = results[name].n_iter
        print(f"{name} / as many steps of EM with inverses ({steps}): {median[name] / (em * steps):.3f} (reach: 0.2)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kronecker", "messages"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--columns", type=int)
    parser.add_argument("--factors", type=int, default=3)
    parser.add_argument("--nonzeros", type=int, default=400)
    parser.add_argument("--decibel", type=float, default=40)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    defaults = {"kronecker": (8, 12, 5), "messages": (2000, 4000, 1)}[options.what]
    for name, value in zip(("rows", "columns", "repeats"), defaults):
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    print("BLAS", [(lib["architecture"], lib["num_threads"]) for lib in threadpool_info() if lib["user_api"] == "blas"])
    (kronecker if options.what == "kronecker" else messages)(options)


if __name__ == "__main__":
    main()

"""OMP over many targets against scikit-learn and SPAMS, interleaved in one process.

    python benchmarks/pursuit.py [--rows 1000] [--columns 10000] [--targets 64] [-k 50] [--threads 1] [--repeats 3]

Prints medians and spread, ratios, and the time of the products alone: k products of the matrix with all residuals, in
double and in single precision, which is what ``omp`` screens with. Warm-up is not counted. Supports are checked equal
to scikit-learn's. SPAMS joins where it is installed (``pip install spams-bin``); it weighs columns by what they leave
after projection (ORMP), so that its supports are its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import orthogonal_mp as peer_omp
from threadpoolctl import threadpool_info, threadpool_limits

from ellzero.linear import orthogonal_mp
from ellzero.rng import rng

try:
    import spams
except ImportError:
    spams = None


def make_systems(rows: int, columns: int, targets: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian unit columns, targets of k of them each and 1 % noise; in Fortran order, as the peers like it."""
    generator = rng(0, "benchmark pursuit")
    X = generator.standard_normal((rows, columns))
    X /= np.linalg.norm(X, axis=0)
    places = np.argsort(generator.random((columns, targets)), axis=0)[:k]
    W = np.zeros((columns, targets))
    np.put_along_axis(W, places, generator.standard_normal((k, targets)), axis=0)
    return np.asfortranarray(X), np.asfortranarray(X @ W + 0.01 * generator.standard_normal((rows, targets)))


def interleave(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds per job and repeat; the jobs take turns, the first turn is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=10000)
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("-k", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gram", action="store_true", help="let all work from the Gram matrix")
    options = parser.parse_args()
    X, Y = make_systems(options.rows, options.columns, options.targets, options.k)
    single = X.astype(np.float32), Y.astype(np.float32)
    k, gram = options.k, options.gram
    jobs = {
        "ellzero": lambda: orthogonal_mp(X, Y, k, gram=gram),
        "ellzero float32": lambda: orthogonal_mp(*single, k, gram=gram),
        "scikit-learn": lambda: peer_omp(X, Y, n_nonzero_coefs=k, precompute=gram),
        "products float64": lambda: [X.T @ Y for _ in range(k)],
        "products float32": lambda: [single[0].T @ single[1] for _ in range(k)],
    }
    if spams is not None:
        jobs["SPAMS"] = lambda: spams.omp(Y, X, L=k, numThreads=options.threads)
    with threadpool_limits(options.threads):
        ours, theirs = jobs["ellzero"](), jobs["scikit-learn"]()
        assert np.array_equal(ours != 0, theirs != 0), "the supports differ"
        seconds = interleave(jobs, options.repeats)
        blas = {(lib["architecture"], lib["num_threads"]) for lib in threadpool_info() if lib["user_api"] == "blas"}
    print(f"[{options.rows}, {options.columns}], {options.targets} targets, k = {k}, Gram: {gram}; BLAS {blas}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:16} {median[name]:8.3f} s  ({min(times):.3f} to {max(times):.3f} s)")
    for peer in ("scikit-learn", "SPAMS"):
        if peer in median:
            print(f"{peer} / ellzero: {median[peer] / median['ellzero']:.1f}")
        else:
            print(f"{peer}: not installed")


if __name__ == "__main__":
    main()

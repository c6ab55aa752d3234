"""OMP over many targets against scikit-learn and SPAMS, interleaved in one process.

    python benchmarks/pursuit.py [--rows 1000] [--columns 10000] [--targets 64] [-k 50] [--threads 1] [--repeats 3]
                                 [--markdown FILE]

Prints medians and spread, ratios, and the time of the products alone: k products of the matrix with all residuals, in
double and in single precision, which is what ``omp`` screens with. Warm-up is not counted. Supports are checked equal
to scikit-learn's, which runs once, and to those of each target alone. SPAMS joins where it is installed (``pip install
spams-bin``); it weighs columns by what they leave after projection (ORMP), so that its supports are its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import orthogonal_mp as peer_omp
from table import race, ratio, setting, write
from threadpoolctl import threadpool_limits

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=10000)
    parser.add_argument("--targets", type=int, default=64)
    parser.add_argument("-k", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gram", action="store_true", help="let all work from the Gram matrix")
    parser.add_argument("--markdown", type=Path, help="the table to put the rows into")
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
        alone = np.stack([orthogonal_mp(X, y, k, gram=gram) for y in Y.T], axis=1)
        assert np.array_equal(ours != 0, alone != 0), "the supports of one target alone differ"
        print(f"[{options.rows}, {options.columns}], {options.targets} targets, k = {k}, Gram: {gram}; {setting()}")
        times = race(jobs, options.repeats, once=["scikit-learn"])
        where = setting()
    operation = f"OMP, k = {k}, {options.targets} targets, {options.rows} x {options.columns}"
    bound = f"{ratio(times['ellzero'], times['products float32']):.2f} times the products in float32"
    rows = []
    for peer, reach in (("SPAMS", 4), ("scikit-learn", 15)):
        if peer not in times:
            print(f"{peer}: not installed")
            continue
        quotient = ratio(times["ellzero"], times[peer])
        cells = (str(times["ellzero"]), f"{peer} {times[peer]}", f"{quotient:.3f} ({1 / quotient:.1f} times as fast)")
        same = "supports: batched = single = scikit-learn's"
        rows.append((f"{operation}, against {peer}", *cells, f"{reach} times as fast", same, bound, where))
    write(options.markdown, rows)


if __name__ == "__main__":
    main()

"""Lasso paths and single fits against celer and skglm, at equal certified accuracy.

    python benchmarks/linear.py [--case dense sparse single first] [--repeats 3] [--small]

dense : 100 alphas down to alpha_max / 100, 1000 x 10000, AR(0.6), SNR 10, 100 true columns.
sparse : the same grid on 11314 x 39569 text-like rows in CSR with about a million entries, with an intercept and
    without one (there also with a target that is not centred, as a user who asks for no intercept has it).
single : one alpha, alpha_max / 20, on the dense data.
first : seconds of the first fit in a fresh process, after the import.

Jobs take turns in one process; the first turn is warm-up. Times are of the processor clock, which other work on the
machine disturbs least: run with OMP_NUM_THREADS=1, where it is the wall clock of an idle machine. Gaps are relative to
the objective at w = 0. celer stops at ``tol |y|^2 / n``, so it gets half the tolerance; its gaps are its own, since it
extrapolates its dual points. skglm stops at a distance to stationarity; its tolerance is lowered until the gap,
computed here, is reached. The bound is one product X'r per alpha: each certificate must look at X once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_info

from ellzero import show_config
from ellzero.data.generators import AR, planted_regression
from ellzero.parts import penalties
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent

L1 = penalties.L1(1.0)
LIMIT = 120  # seconds for a peer that may take very long


def text_like(n: int, p: int, entries: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Rows of log-normal length over words of a long-tailed frequency, tf-idf weights, unit norm; 200 true words."""
    generator = rng(0, "benchmark linear text")
    lengths = generator.lognormal(0, 0.8, n)
    lengths = np.maximum(1, lengths / lengths.sum() * entries * 1.18).astype(int)
    weight = 1 / (np.arange(p) + 10.0) ** 1.05
    words = np.searchsorted(np.cumsum(weight / weight.sum()), generator.random(lengths.sum())).clip(0, p - 1)
    rows = np.repeat(np.arange(n), lengths)
    X = sparse.coo_array((np.ones(len(rows)), (rows, words)), shape=(n, p)).tocsr()
    X.sum_duplicates()
    found = np.bincount(X.indices, minlength=p)
    X.data = (1 + np.log(X.data)) * np.log((1 + n) / (1 + found[X.indices])) + 1e-3
    X = sparse.csr_array(sparse.diags_array(1 / np.sqrt(X.multiply(X).sum(axis=1))) @ X)
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)  # celer takes no others
    coef = np.zeros(p)
    coef[generator.choice(p // 8, 200, replace=False)] = generator.standard_normal(200)
    signal = X @ coef
    return X, signal + generator.standard_normal(n) * signal.std() / np.sqrt(3) + 0.5


def race(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians of processor seconds, turn by turn; prints them."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if turn:
                seconds[name].append(time.process_time() - start)
    for name, times in seconds.items():
        print(f"  {name:38} {statistics.median(times):9.3f} s  ({min(times):.3f} to {max(times):.3f} s)")
    return {name: statistics.median(times) for name, times in seconds.items()}


def lasso_gap(X: np.ndarray, y: np.ndarray, coef: np.ndarray, alpha: float) -> float:
    """The relative duality gap for centred data, with the scaled residual as dual point."""
    n, residual = len(y), y - X @ coef
    theta = residual * min(1.0, alpha * n / abs(X.T @ residual).max())
    primal = residual @ residual / (2 * n) + alpha * abs(coef).sum()
    return (primal - (2 * y @ theta - theta @ theta) / (2 * n)) / (y @ y / (2 * n))


def dense_data(small: bool) -> tuple[np.ndarray, np.ndarray]:
    n, p = (300, 2000) if small else (1000, 10_000)
    planted = planted_regression(n, p, n // 10, snr=10.0, correlation=AR(0.6), seed=0)
    return np.asfortranarray(planted.X), planted.y


def dense(repeats: int, small: bool) -> None:
    """Ours centres by itself; celer gets centred data."""
    from celer import celer_path

    X, y = dense_data(small)
    centred, target = np.asfortranarray(X - X.mean(axis=0)), y - y.mean()
    alphas = coordinate_descent.alpha_max(X, y, L1) * np.geomspace(1, 0.01, 100)
    found = {}

    def ours(tol: float) -> None:
        found[tol] = coordinate_descent.path(X, y, L1, alphas=alphas, tol=tol)

    def celer() -> None:
        found["celer"] = celer_path(centred, target, "lasso", alphas=alphas, tol=0.5e-6, prune=1, max_iter=100)

    def look() -> None:
        for _ in alphas:
            centred.T @ target

    jobs = {"ours, gap 1e-6": lambda: ours(1e-6), "ours, gap 1e-10": lambda: ours(1e-10), "celer, gap 1e-6": celer,
            "bound: one product X'r per alpha": look}  # fmt: skip
    print(f"dense path: {X.shape[0]} x {X.shape[1]}, {len(alphas)} alphas")
    median = race(jobs, repeats)
    at_zero = target @ target / (2 * len(y))
    for tol, name, reach in ((1e-6, "1e-6", 0.6), (1e-10, "1e-10", 1)):
        done, ratio = found[tol], median[f"ours, gap {name}"] / median["celer, gap 1e-6"]
        exact = max(lasso_gap(centred, target, coef, alpha) for coef, alpha in zip(done.coefs.T, alphas))
        used = np.count_nonzero(done.coefs[:, -1])
        print(f"  ours at {name} / celer at 1e-6: {ratio:.3f} (reach: at most {reach})")
        print(f"  worst gap reported {done.gaps.max():.1e}, recomputed {exact:.1e}; {used} columns at the end")
    print(f"  celer: worst gap of its own {found['celer'][2].max() / at_zero:.1e}")
    print(f"  ours / bound: {median['ours, gap 1e-6'] / median[list(jobs)[-1]]:.1f}")


def sparse_paths(repeats: int, small: bool) -> None:
    """Three questions: an intercept; none; none, and a target with a mean."""
    from celer import celer_path

    X, y = text_like(*((1500, 6000, 100_000) if small else (11_314, 39_569, 1_000_000)))
    columns, target = sparse.csc_matrix(X), y - y.mean()
    means, ones = np.asarray(columns.mean(axis=0)).ravel(), np.ones(X.shape[1])
    print(f"sparse path: {X.shape[0]} x {X.shape[1]}, {X.nnz} entries, 100 alphas")
    for name, fit_intercept, wanted in (("intercept", True, y), ("none", False, target), ("none, mean in y", False, y)):
        top = coordinate_descent.alpha_max(X, wanted, L1, fit_intercept=fit_intercept)
        alphas, found = top * np.geomspace(1, 0.01, 100), {}

        def ours(alphas=alphas, wanted=wanted, fit_intercept=fit_intercept, found=found) -> None:
            found["ours"] = coordinate_descent.path(X, wanted, L1, alphas=alphas, tol=1e-6, fit_intercept=fit_intercept)

        def celer(alphas=alphas, wanted=wanted, fit_intercept=fit_intercept, found=found) -> None:
            centring = {"X_offset": means, "X_scale": ones} if fit_intercept else {}
            given = target if fit_intercept else wanted
            found["celer"] = celer_path(columns, given, "lasso", alphas=alphas, tol=0.5e-6, prune=1, **centring)

        slow = name.endswith("y")  # ill-conditioned: long for celer
        median = race({f"ours, {name}": ours} if slow else {f"ours, {name}": ours, f"celer, {name}": celer}, repeats)
        done = found["ours"]
        print(f"  {name}: worst gap {done.gaps.max():.1e}, {np.count_nonzero(done.coefs[:, -1])} columns at the end")
        if slow:
            process = multiprocessing.get_context("fork").Process(target=celer)
            start = time.perf_counter()
            process.start()
            process.join(LIMIT)
            ended, spent = not process.is_alive(), time.perf_counter() - start
            process.kill()
            print(f"  celer, {name}: {'took' if ended else 'was stopped after'} {spent:.0f} s on the wall; "
                  f"ours / celer: {'' if ended else 'below '}{median[f'ours, {name}'] / spent:.4f}")  # fmt: skip
            continue
        given = target if fit_intercept else wanted
        gap = found["celer"][2].max() / (given @ given / (2 * len(y)))
        ratio = median[f"ours, {name}"] / median[f"celer, {name}"]
        print(f"  celer: worst gap of its own {gap:.1e}; ours / celer: {ratio:.3f} (reach: at most 0.05)")


def single(repeats: int, small: bool) -> None:
    """One alpha with an intercept, from data to coefficients; every peer at a gap of at most 1e-6."""
    import celer
    import skglm

    from ellzero.linear import Lasso

    X, y = dense_data(small)
    centred, target = X - X.mean(axis=0), y - y.mean()
    alpha = coordinate_descent.alpha_max(X, y, L1) / 20
    tol = 1e-4
    while lasso_gap(centred, target, skglm.Lasso(alpha, tol=tol).fit(X, y).coef_, alpha) > 1e-6:
        tol /= 2
    jobs = {
        "ours": lambda: Lasso(alpha, tol=1e-6).fit(X, y),
        "celer": lambda: celer.Lasso(alpha, tol=0.5e-6).fit(X, y),
        "skglm": lambda: skglm.Lasso(alpha, tol=tol).fit(X, y),
    }
    print(f"single fit: {X.shape[0]} x {X.shape[1]}, alpha_max / 20, gap 1e-6 (skglm: tol {tol:.1e})")
    median = race(jobs, max(repeats, 5))
    for name, job in jobs.items():
        print(f"  {name}: gap recomputed {lasso_gap(centred, target, job().coef_, alpha):.1e}")
    print(f"  ours / the faster peer: {median['ours'] / min(median['celer'], median['skglm']):.2f} (reach: at most 1)")


def first(repeats: int, small: bool) -> None:
    """The first fit after the import, in a fresh process."""
    code = (
        "import time, numpy as np\nfrom ellzero.linear import Lasso\n"
        "g = np.random.default_rng(0)\nX = g.standard_normal((100, 50))\nstart = time.process_time()\n"
        "Lasso(0.1).fit(X, X[:, 0])\nprint(time.process_time() - start)"
    )
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
             for _ in range(max(repeats, 5))]  # fmt: skip
    print(f"first fit after the import: {statistics.median(times):.3f} s (reach: at most 0.3)")


CASES = {"dense": dense, "sparse": sparse_paths, "single": single, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="small problems, to see that it runs")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    config = show_config()
    blas = [(lib["architecture"], lib["num_threads"]) for lib in threadpool_info() if lib["user_api"] == "blas"]
    print(f"kernels {config['isa']}, {config['n_threads']} threads; BLAS {blas}")
    for case in options.case:
        CASES[case](options.repeats, options.small)
    if config["blas_below_cpu"] and "OPENBLAS_CORETYPE" not in os.environ and "dense" in options.case:
        command = [sys.executable, __file__, "--case", "dense", "--repeats", str(options.repeats)]
        print("the same with the BLAS core that this processor has:", flush=True)
        subprocess.run(command + ["--small"] * options.small, env={**os.environ, "OPENBLAS_CORETYPE": "SkylakeX"})


if __name__ == "__main__":
    main()

"""Lasso paths and single fits against celer and skglm, at equal certified accuracy.

    python benchmarks/linear.py [--case dense sparse single first] [--repeats 3] [--small] [--markdown FILE]

dense : 100 alphas down to alpha_max / 100, 1000 x 10000, AR(0.6), SNR 10, 100 true columns.
sparse : the same grid on 11314 x 39569 text-like rows in CSR with about a million entries, with an intercept and
    without one (there also with a target that is not centred, as a user who asks for no intercept has it).
single : one alpha, alpha_max / 20, on the dense data.
first : seconds of the first fit in a fresh process, after the import.
others : the printed output of the wing's other benchmarks beside this file, where they exist, for the same FILE.

Jobs take turns in one process; the first turn is warm-up, but celer's paths run once. Times are of the processor clock,
which other work on the machine disturbs least: run with OMP_NUM_THREADS=1, where it is the wall clock of an idle
machine. celer stops at ``tol |y|^2 / n``, so it gets half the tolerance. skglm stops at a distance to stationarity; its
tolerance is lowered until the gap, computed here, is reached. glmnet is R's, at its default tolerance, timed inside R;
it joins where ``Rscript`` finds it. The bound is one product X'r per alpha: each certificate must look at X once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from table import Spent, number, race, ratio, setting, write

from ellzero import show_config
from ellzero.data.generators import AR, planted_regression
from ellzero.parts import penalties
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent

L1 = penalties.L1(1.0)
LIMIT = 60 if "--small" in sys.argv else 300  # seconds after which celer does not begin another alpha
LOOK = "bound: one product X'r per alpha"
OTHERS = (
    "sparse_bayes.py kronecker", "sparse_bayes.py messages", "bundles.py cv", "bundles.py permutations --repeats 1",
)  # fmt: skip
GLMNET = """
suppressMessages({library(Matrix); library(glmnet)})
folder <- commandArgs(TRUE)[1]
held <- function(name, what, n) readBin(file.path(folder, name), what, n)
s <- held("shape", "integer", 5)
X <- new("dgCMatrix", i = held("rows", "integer", s[3]), p = held("starts", "integer", s[2] + 1),
         x = held("data", "double", s[3]), Dim = s[1:2])
y <- held("y", "double", s[1]); alphas <- held("alphas", "double", s[4])
spent <- system.time(fit <- glmnet(X, y, lambda = alphas, standardize = FALSE, intercept = s[5] == 1))
writeBin(as.vector(as.matrix(fit$beta)), file.path(folder, "coefs"))
cat(spent[["user.self"]] + spent[["sys.self"]], spent[["elapsed"]])
"""


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


def dual_points(X: Any, y: np.ndarray, coefs: np.ndarray, alphas: np.ndarray, centre: bool) -> np.ndarray:
    """``[n, n_alphas]``: the residuals (centred with an intercept), scaled until they are feasible."""
    residuals = y[:, None] - X @ coefs
    if centre:
        residuals -= residuals.mean(axis=0)
    largest = np.array([abs(X.T @ residual).max() for residual in residuals.T])
    return residuals * np.minimum(1, alphas * len(y) / np.maximum(largest, np.finfo(float).tiny))


def gaps(X: Any, y: np.ndarray, coefs: np.ndarray, alphas: np.ndarray, centre: bool, known: list[np.ndarray]) -> Any:
    """The largest relative duality gap over the alphas: by the fits' own residuals, and by the best of ``known``."""
    n, residuals = len(y), y[:, None] - X @ coefs
    residuals, y = (residuals - residuals.mean(axis=0), y - y.mean()) if centre else (residuals, y)
    primal = (residuals**2).sum(axis=0) / (2 * n) + alphas * abs(coefs).sum(axis=0)
    points = [dual_points(X, y, coefs, alphas, centre), *known]
    duals = [(2 * (y @ point) - (point**2).sum(axis=0)) / (2 * n) for point in points]
    scale = y @ y / (2 * n)
    return [float((primal - dual).max() / scale) for dual in (duals[0], np.max(duals, axis=0))]


def told(name: str, found: list[float]) -> str:
    """Both gaps of one program in words."""
    own, best = found
    return f"{name} {number(best)}" + (f" ({number(own)} by its residual)" if own > 2 * best else "")


def dense_data(small: bool) -> tuple[np.ndarray, np.ndarray]:
    n, p = (300, 2000) if small else (1000, 10_000)
    planted = planted_regression(n, p, n // 10, snr=10.0, correlation=AR(0.6), seed=0)
    return np.asfortranarray(planted.X), planted.y


def dense(repeats: int, small: bool) -> list[tuple[str, ...]]:
    """Ours centres by itself; celer gets centred data."""
    from celer import celer_path

    X, y = dense_data(small)
    centred, target = np.asfortranarray(X - X.mean(axis=0)), y - y.mean()
    alphas = coordinate_descent.alpha_max(X, y, L1) * np.geomspace(1, 0.01, 100)
    found: dict[Any, Any] = {}

    def ours(tol: float) -> None:
        found[tol] = coordinate_descent.path(X, y, L1, alphas=alphas, tol=tol).coefs

    def celer() -> None:
        found["celer"] = celer_path(centred, target, "lasso", alphas=alphas, tol=0.5e-6, prune=1, max_iter=100)[1]

    def look() -> None:
        for _ in alphas:
            centred.T @ target

    jobs = {"ours, gap 1e-6": lambda: ours(1e-6), "ours, gap 1e-10": lambda: ours(1e-10), "celer, gap 1e-6": celer,
            LOOK: look}  # fmt: skip
    shape = f"{X.shape[0]} x {X.shape[1]}"
    print(f"dense path: {shape}, {len(alphas)} alphas")
    times = race(jobs, repeats, once=["celer, gap 1e-6"])
    peer, rows = times["celer, gap 1e-6"], []
    known = [dual_points(centred, target, found[1e-10], alphas, False)]
    theirs = told("celer", gaps(centred, target, found["celer"], alphas, False, known))
    for tol, name, reach in ((1e-6, "1e-6", "0.6"), (1e-10, "1e-10", "1")):
        spent = times[f"ours, gap {name}"]
        own = told("ours", gaps(centred, target, found[tol], alphas, False, known))
        bound = f"{ratio(spent, times[LOOK]):.1f} times the products X'r"
        rows.append((f"Lasso path, dense {shape}, gap {name}", str(spent), f"celer at 1e-6: {peer}",
                     f"{ratio(spent, peer):.3f}", f"at most {reach}", f"{own}; {theirs}", bound,
                     setting()))  # fmt: skip
    return rows


class Glmnet:
    """R's glmnet on a sparse matrix: ``job()`` runs it in its own process, ``coefs`` are what it found last."""

    def __init__(self, X: sparse.csc_array, y: np.ndarray, alphas: np.ndarray, fit_intercept: bool, folder: Path):
        X.sort_indices()
        shape = np.array([*X.shape, X.nnz, len(alphas), fit_intercept], dtype=np.int32)
        files = {"shape": shape, "rows": X.indices.astype(np.int32), "starts": X.indptr.astype(np.int32),
                 "data": X.data, "y": y, "alphas": alphas}  # fmt: skip
        for name, array in files.items():
            array.tofile(folder / name)
        self.command, self.folder, self.columns = ["Rscript", "-e", GLMNET, str(folder)], folder, X.shape[1]

    def __call__(self) -> Spent:
        done = subprocess.run(self.command, capture_output=True, text=True, check=True)
        return Spent(*map(float, done.stdout.split()))

    @property
    def coefs(self) -> np.ndarray:
        return np.fromfile(self.folder / "coefs").reshape(-1, self.columns).T


def has_glmnet() -> bool:
    if shutil.which("Rscript") is None:
        return False
    return not subprocess.run(["Rscript", "-e", "library(glmnet)"], capture_output=True).returncode


def sparse_paths(repeats: int, small: bool) -> list[tuple[str, ...]]:
    """Three questions: an intercept; none; none, and a target with a mean."""
    X, y = text_like(*((1500, 6000, 100_000) if small else (11_314, 39_569, 1_000_000)))
    print(f"sparse path: {X.shape[0]} x {X.shape[1]}, {X.nnz} entries, 100 alphas")
    questions = (("intercept", True, y), ("no intercept, centred y", False, y - y.mean()), ("no intercept", False, y))
    return [row for question in questions for row in sparse_path(X, *question, repeats)]


def sparse_path(X: Any, name: str, fit_intercept: bool, y: np.ndarray, repeats: int) -> list[tuple[str, ...]]:
    from celer import celer_path

    columns, given = sparse.csc_matrix(X), y - y.mean() if fit_intercept else y
    alphas = coordinate_descent.alpha_max(X, y, L1, fit_intercept=fit_intercept) * np.geomspace(1, 0.01, 100)
    centring = {}
    if fit_intercept:
        centring = {"X_offset": np.asarray(columns.mean(axis=0)).ravel(), "X_scale": np.ones(X.shape[1])}
    found: dict[Any, Any] = {}

    def ours(tol: float) -> None:
        found[tol] = coordinate_descent.path(X, y, L1, alphas=alphas, tol=tol, fit_intercept=fit_intercept).coefs

    def celer() -> None:
        fits, start = [np.zeros(X.shape[1])], time.process_time()
        for alpha in alphas:  # as ``celer_path`` goes along its alphas
            options = {"alphas": [alpha], "coef_init": fits[-1], "tol": 0.5e-6, "prune": 1, **centring}
            fits.append(celer_path(columns, given, "lasso", **options)[1][:, 0].copy())
            if time.process_time() - start > LIMIT:
                break
        found["celer"] = np.stack(fits[1:], axis=1)

    def look() -> None:
        for _ in alphas:
            columns.T @ given

    jobs = {"ours, gap 1e-6": lambda: ours(1e-6), "celer, gap 1e-6": celer, LOOK: look}
    with tempfile.TemporaryDirectory() as folder:
        if has_glmnet():
            jobs["glmnet, default"] = Glmnet(sparse.csc_array(X), y, alphas, fit_intercept, Path(folder))
        print(f" {name}")
        times = race(jobs, repeats, once=["celer, gap 1e-6"])
        ours(1e-10)
        if "glmnet, default" in jobs:
            found["glmnet"] = jobs["glmnet, default"].coefs
    known = dual_points(X, y, found[1e-10], alphas, fit_intercept)
    text = {
        peer: told(peer, gaps(X, y, coefs, alphas[: coefs.shape[1]], fit_intercept, [known[:, : coefs.shape[1]]]))
        + (f" on the first {coefs.shape[1]} alphas" if coefs.shape[1] < len(alphas) else "")
        for peer, coefs in found.items()
    }
    own, rows = told("ours", gaps(X, y, found[1e-6], alphas, fit_intercept, [known])), []
    spent = times["ours, gap 1e-6"]
    bound = f"{ratio(spent, times[LOOK]):.1f} times the products X'r"
    for peer, reach in (("celer, gap 1e-6", "0.05"), ("glmnet, default", "3")):
        if peer in times:
            who = peer.split(",")[0]
            rows.append((f"Lasso path, CSR {X.shape[0]} x {X.shape[1]}, {name}, against {who}", str(spent),
                         f"{peer}: {times[peer]}", f"{ratio(spent, times[peer]):.3f}", f"at most {reach}",
                         f"{own}; {text[who]}", bound, setting()))  # fmt: skip
    return rows


def single(repeats: int, small: bool) -> list[tuple[str, ...]]:
    """One alpha with an intercept, from data to coefficients; every peer at a gap of at most 1e-6."""
    import celer
    import skglm

    from ellzero.linear import Lasso

    X, y = dense_data(small)
    alpha = coordinate_descent.alpha_max(X, y, L1) / 20
    alphas, tol = np.array([alpha]), 1e-4
    known = [dual_points(X, y, Lasso(alpha, tol=1e-10).fit(X, y).coef_[:, None], alphas, True)]

    def gap_of(fitted: Any) -> list[float]:
        return gaps(X, y, fitted.coef_[:, None], alphas, True, known)

    while gap_of(skglm.Lasso(alpha, tol=tol).fit(X, y))[0] > 1e-6:
        tol /= 2
    jobs = {
        "ours": lambda: Lasso(alpha, tol=1e-6).fit(X, y),
        "celer": lambda: celer.Lasso(alpha, tol=0.5e-6).fit(X, y),
        "skglm": lambda: skglm.Lasso(alpha, tol=tol).fit(X, y),
        "bound: three looks at X": lambda: [X.T @ y for _ in range(3)],
    }
    print(f"single fit: {X.shape[0]} x {X.shape[1]}, alpha_max / 20, gap 1e-6 (skglm: tol {tol:.1e})")
    times = race(jobs, max(repeats, 5))
    text = {name: told(name, gap_of(job())) for name, job in list(jobs.items())[:3]}
    bound = f"{ratio(times['ours'], times['bound: three looks at X']):.1f} times three looks at X"
    return [
        (f"Lasso at alpha_max / 20, dense {X.shape[0]} x {X.shape[1]}, against {peer}", str(times["ours"]),
         f"{peer} {times[peer]}", f"{ratio(times['ours'], times[peer]):.2f}", "at most 1",
         f"{text['ours']}; {text[peer]}", bound, setting())
        for peer in ("celer", "skglm")
    ]  # fmt: skip


def first(repeats: int, small: bool) -> list[tuple[str, ...]]:
    """The first fit after the import, in a fresh process."""
    code = (
        "import time, numpy as np\nfrom ellzero.linear import Lasso\n"
        "g = np.random.default_rng(0)\nX = g.standard_normal((100, 50))\n"
        "cpu, wall = time.process_time(), time.perf_counter()\nLasso(0.1).fit(X, X[:, 0])\n"
        "print(time.process_time() - cpu, time.perf_counter() - wall)"
    )
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(max(repeats, 5))]  # fmt: skip
    cpu, wall = (statistics.median(map(float, column)) for column in zip(*done))
    return [
        ("First Lasso fit after the import, 100 x 50", f"{cpu:.3f} s ({wall:.3f})", "", "", "0.3 s", "", "", setting())
    ]


def others() -> dict[str, str]:
    """The printed output of the wing's other benchmarks, where they exist."""
    blocks = {}
    for command in OTHERS:
        script, *options = command.split()
        path = Path(__file__).with_name(script)
        if path.exists():
            run = subprocess.run([sys.executable, str(path), *options], capture_output=True, text=True, check=True)
            blocks[command] = run.stdout
    return blocks


CASES = {"dense": dense, "sparse": sparse_paths, "single": single, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=[*CASES, "others"], default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="small problems, to see that it runs")
    parser.add_argument("--markdown", type=Path, help="the table to put the rows into")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(setting())
    for case in options.case:
        if case == "others":
            write(options.markdown, [], others())
        else:
            write(options.markdown, CASES[case](options.repeats, options.small))
    if show_config()["blas_below_cpu"] and "OPENBLAS_CORETYPE" not in os.environ and "dense" in options.case:
        command = [sys.executable, __file__, "--case", "dense", "--repeats", str(options.repeats)]
        print("the same with the BLAS core that this processor has:", flush=True)
        subprocess.run(command + ["--small"] * options.small, env={**os.environ, "OPENBLAS_CORETYPE": "SkylakeX"})


if __name__ == "__main__":
    main()

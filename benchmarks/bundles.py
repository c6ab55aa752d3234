"""Many related regressions at once against loops of sequential peers, at equal certified accuracy.

    python benchmarks/bundles.py [cv permutations] [--repeats 3] [--small]

cv : L1 logistic regression, 10 folds x 100 alphas down to alpha_max / 100 and the path of all rows, 500 x 2000,
    AR(0.5), SNR 3, 30 true columns; every fit at a relative gap of 1e-6. Peers: R's glmnet at its loose default
    (``cv.glmnet`` with the same folds and alphas), and the library's own sequential path (one fold, times 11).
permutations : 200 permutations of the target x 20 alphas down to alpha_max / 20 on the same table, for both losses.
    Peers are timed on the first few permutations, and the time is scaled up: the sequential path, glmnet with
    its threshold lowered until its worst gap reaches 1e-6, and celer (least squares).

Jobs take turns; the first turn is warm-up. Times are of the processor clock (wall clock in brackets): ours on one
thread and on all of them. R's jobs run in a process of their own and are timed inside R.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from table import Spent, Times, race, ratio, setting

from ellzero.data.generators import AR, planted_regression
from ellzero.linear.bundles import cross_validate_path, folds_of_rows
from ellzero.linear.resampling import permutation_test
from ellzero.parts.datafits import Logistic
from ellzero.parts.penalties import L1
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent, prox_newton

FAMILY = {"quadratic": "gaussian", "logistic": "binomial"}
GLMNET = """
suppressMessages(library(glmnet))
a <- commandArgs(TRUE); folder <- a[1]; kind <- a[2]; family <- a[3]; thresh <- as.numeric(a[4])
held <- function(name, what, n) readBin(file.path(folder, name), what, n)
s <- held("shape", "integer", 4)
X <- matrix(held("X", "double", s[1] * s[2]), s[1], s[2]); alphas <- held("alphas", "double", s[3])
Y <- matrix(held("Y", "double", s[1] * s[4]), s[1], s[4])
one <- function(X, y) glmnet(X, y, family = family, lambda = alphas, standardize = FALSE, thresh = thresh)
out <- NULL
spent <- system.time(
  if (kind == "cv") {
    fit <- cv.glmnet(X, Y[, 1], family = family, lambda = alphas, standardize = FALSE, thresh = thresh,
                     foldid = Y[, 2], type.measure = "deviance")
    out <- list(fit$glmnet.fit)
  } else for (k in seq_len(s[4])) out[[k]] <- one(X, Y[, k]))
for (k in seq_along(out)) {
  writeBin(as.vector(as.matrix(out[[k]]$beta)), file.path(folder, paste0("coefs", k)))
  writeBin(as.vector(out[[k]]$a0), file.path(folder, paste0("intercepts", k)))
}
cat(spent[["user.self"]] + spent[["sys.self"]], spent[["elapsed"]])
"""


class Glmnet:
    """R's glmnet in its own process; ``Y`` is the target and the folds, or a column for each target."""

    def __init__(self, kind: str, loss: str, X: np.ndarray, Y: np.ndarray, alphas: np.ndarray, folder: str):
        self.kind, self.loss, self.folder, self.thresh = kind, loss, Path(folder), 1e-7
        self.columns, self.targets = X.shape[1], 1 if kind == "cv" else Y.shape[1]
        shape = np.array([*X.shape, len(alphas), Y.shape[1]], dtype=np.int32)
        for name, array in {"shape": shape, "X": X.T, "Y": Y.T, "alphas": alphas}.items():
            np.ascontiguousarray(array).tofile(self.folder / name)

    def __call__(self) -> Spent:
        words = [str(self.folder), self.kind, FAMILY[self.loss], repr(self.thresh)]
        done = subprocess.run(["Rscript", "-e", GLMNET, *words], capture_output=True, text=True, check=True)
        return Spent(*map(float, done.stdout.split()))

    def fits(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients ``[p, A]`` and intercepts ``[A]`` of target k."""
        coefs = np.fromfile(self.folder / f"coefs{k + 1}").reshape(-1, self.columns).T
        return coefs, np.fromfile(self.folder / f"intercepts{k + 1}")


def has_glmnet() -> bool:
    if shutil.which("Rscript") is None:
        return False
    return not subprocess.run(["Rscript", "-e", "library(glmnet)"], capture_output=True).returncode


def worst_gap(loss: str, X: np.ndarray, y: np.ndarray, coefs: np.ndarray, alphas: np.ndarray) -> float:
    """The largest relative gap along a path, with the best intercepts; dual points are the scaled, balanced slopes."""
    from ellzero.solvers.bundle_losses import LOSSES

    rows = LOSSES[loss]()
    count = coefs.shape[1]
    s = np.full((count, len(y)), 1 / len(y))
    target = rows.prepare(np.broadcast_to(y - y.mean() if loss == "quadratic" else y, s.shape), s)
    z = np.ascontiguousarray((X @ coefs).T)
    scale = rows.null(target, s, True)[1]
    shift = np.zeros(count)
    for _ in range(5):
        step, value, slope = rows.exact_intercept(target, s, z + shift[:, None])
        shift = shift + step
    slope = rows.balanced(target, s, slope)
    alphas = alphas[:count]
    cap = alphas / np.maximum(abs(X.T @ slope.T).max(0), 1e-300)
    gap = value + alphas * abs(coefs).sum(0) - rows.dual(target, s, slope, cap, np.zeros(count))
    return float((gap / scale).max())


def table(small: bool) -> tuple[np.ndarray, np.ndarray]:
    planted = planted_regression(*((200, 500, 10) if small else (500, 2000, 30)), snr=3.0, correlation=AR(0.5), seed=0)
    return np.asfortranarray(planted.X), planted.y


def one_path(loss: str, X: np.ndarray, y: np.ndarray, alphas: np.ndarray, weight: Any = None) -> Any:
    if loss == "quadratic":
        return coordinate_descent.path(X, y, L1(1.0), alphas=alphas, tol=1e-6, sample_weight=weight)
    return prox_newton.path(X, 2 * y - 1, Logistic(), L1(1.0), alphas=alphas, tol=1e-6, sample_weight=weight)


def against(times: dict[str, Times], ours: str, peer: str, parts: float, reach: str) -> None:
    """Prints ours / peer, whose time stands for ``parts`` of the whole work."""
    wall = np.median(times[ours].wall) / (np.median(times[peer].wall) * parts)
    print(f"  {ours} / {peer}: {ratio(times[ours], times[peer]) / parts:.3f} of the processor time, "
          f"{wall:.3f} of the wall clock (reach: at most {reach})", flush=True)  # fmt: skip


def cv(repeats: int, small: bool) -> None:
    X, y = table(small)
    y, found = (y > 0) * 1.0, {}
    fold = folds_of_rows(y, len(y), 10, 0)

    def ours(n_threads: int | None) -> None:
        found["ours"] = cross_validate_path(X, y, loss="logistic", cv=10, eps=0.01, n_threads=n_threads)

    ours(1)
    alphas = found["ours"].alphas
    jobs: dict[str, Callable] = {
        "ours, 1 thread": lambda: ours(1),
        "ours, all threads": lambda: ours(None),
        "one fold, sequential": lambda: one_path("logistic", X, y, alphas, (fold != 0) * 1.0),
    }
    with tempfile.TemporaryDirectory() as folder:
        if has_glmnet():
            Y = np.column_stack([y, fold + 1.0])
            jobs["cv.glmnet, default"] = glmnet = Glmnet("cv", "logistic", X, Y, alphas, folder)
        print(f"cv: logistic, {X.shape[0]} x {X.shape[1]}, 10 folds x 100 alphas and all rows; {setting()}")
        times = race(jobs, repeats)
        gaps = found["ours"].gaps
        print(f"  ours: worst of {gaps.size} gaps {gaps.max():.1e}")
        if has_glmnet():
            print(f"  glmnet: worst gap {worst_gap('logistic', X, y, glmnet.fits(0)[0], alphas):.1e} (all rows)")
            for name in list(jobs)[:2]:
                against(times, name, "cv.glmnet, default", 1, "0.5")
    against(times, "ours, 1 thread", "one fold, sequential", 11, "0.2")


def permutations(repeats: int, small: bool) -> None:
    X, continuous = table(small)
    draws = 40 if small else 200
    for loss in ("logistic", "quadratic"):
        y = (continuous > 0) * 1.0 if loss == "logistic" else continuous
        permuted(loss, X, y, draws, 4, repeats)


def permuted(loss: str, X: np.ndarray, y: np.ndarray, draws: int, few: int, repeats: int) -> None:
    found = {}

    def ours(n_threads: int | None) -> None:
        found["ours"] = permutation_test(
            X, y, statistic="max_coef", n_permutations=draws, loss=loss, n_threads=n_threads
        )

    ours(1)
    alphas, generator = found["ours"].alphas, rng(0, "permutation")
    targets = [generator.permutation(y) for _ in range(few)]
    jobs: dict[str, Callable] = {
        "ours, 1 thread": lambda: ours(1),
        "ours, all threads": lambda: ours(None),
        f"{few} draws, sequential": lambda: [one_path(loss, X, target, alphas) for target in targets],
    }
    if loss == "quadratic":
        from celer import celer_path

        centred = np.asfortranarray(X - X.mean(0))
        jobs[f"{few} draws, celer"] = lambda: [
            celer_path(centred, target - target.mean(), "lasso", alphas=alphas, tol=0.5e-6) for target in targets
        ]
    with tempfile.TemporaryDirectory() as folder:
        if has_glmnet():
            jobs[f"{few} draws, glmnet"] = glmnet = Glmnet("loop", loss, X, np.stack(targets, 1), alphas, folder)
            gap = np.inf
            while gap > 1e-6 and glmnet.thresh > 1e-20:
                glmnet()
                gap = max(worst_gap(loss, X, t, glmnet.fits(k)[0], alphas) for k, t in enumerate(targets))
                print(f"  glmnet at threshold {glmnet.thresh:.0e}: worst gap {gap:.1e}", flush=True)
                glmnet.thresh /= 1 if gap <= 1e-6 else 10
        print(f"permutations: {loss}, {X.shape[0]} x {X.shape[1]}, {draws} draws x {len(alphas)} alphas; {setting()}")
        times = race(jobs, repeats)
    print(f"  ours: worst gap {found['ours'].gap:.1e}")
    for name in list(jobs)[2:]:
        against(times, "ours, 1 thread", name, (draws + 1) / few, "0.1")


CASES = {"cv": cv, "permutations": permutations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    for name in options.cases or CASES:
        CASES[name](options.repeats, options.small)


if __name__ == "__main__":
    main()

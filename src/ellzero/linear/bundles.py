"""Many sparse regressions with one X at once: any list of problems, and cross-validated paths.

Lives here: ``fit_bundle`` (problems that differ in rows, targets or alpha) and ``cross_validate_path`` (all folds and
alphas together). Does not live here: bootstraps and permutations (``resampling``), selection with error control
(``stability``, ``knockoffs``), the algorithm (``solvers.bundle``).
Losses are weighted means. Columns are taken as they are: scaling them by all rows before a cross-validation would let
held-out rows speak.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.linear.lasso_cv import over_folds
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers.bundle import Bundle, Fits
from ellzero.solvers.bundle_descent import descend
from ellzero.solvers.bundle_path import alpha_grid, iterate

__all__ = ["BundleFit", "CrossValidation", "cross_validate_path", "fit_bundle", "folds_of_rows"]

_CHUNK = 256  # problems at once: what they share is well used, and their state fits in cache


class BundleFit(NamedTuple):
    """Fits of B problems: ``coefs`` is ``[p, B]``, the rest ``[B]``; ``gaps`` are certificates relative to P(0)."""

    coefs: np.ndarray
    intercepts: np.ndarray
    gaps: np.ndarray
    n_iters: np.ndarray
    converged: np.ndarray


class CrossValidation(NamedTuple):
    """Held-out losses and the path of the full data; ``best`` and ``one_standard_error`` are positions in ``alphas``.

    ``scores`` is ``[A, folds]``, mean squared errors or mean log losses; ``mean`` and ``standard_error`` ``[A]`` weigh
    folds by their held-out rows. ``coefs`` ``[p, A]`` and ``intercepts`` ``[A]`` are those of all rows; ``gaps``
    ``[A, folds + 1]`` certify every fit, the last column those of all rows.
    """

    alphas: np.ndarray
    scores: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    best: int
    one_standard_error: int
    coefs: np.ndarray
    intercepts: np.ndarray
    gaps: np.ndarray


@register(kind="solver", wing="linear", id="S170", source="arXiv:1307.8430",
          claim="related elastic nets solved together look at the data far less often than one by one")  # fmt: skip
def fit_bundle(
    X: Any,
    targets: Any,
    alphas: Any,
    *,
    weights: Any = None,
    loss: str = "quadratic",
    l1_ratio: float = 1.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 100,
    n_threads: int | None = None,
) -> BundleFit:
    """Solve B elastic nets that share X: problem b has its own row weights, targets and alpha.

    Minimises ``sum_i r_ib l(y_ib, x_i'w + c) / sum_i r_ib + alpha_b (rho |w|_1 + (1 - rho) |w|^2 / 2)`` over w and c
    for every b, with rho = ``l1_ratio`` and l half the squared error or the logistic loss. The correlations of all
    problems are one matrix product; working sets, Gram blocks and, for close problems, second-order models are shared.

    Parameters
    ----------
    X : ``[n, p]`` array or scipy sparse matrix (never densified as a whole); float32 is kept.
    targets : ``[n]`` or ``[n, B]``; two different values for the logistic loss, the larger is the positive class.
    alphas : a number above 0, or ``[B]``.
    weights : ``[n, B]`` at least 0: zeros are held-out rows, counts are bootstraps. ``None``: all rows alike.
    tol : the relative duality gap ``(P - D) / P(0)`` that ends a fit.
    max_iter : outer steps at most.
    n_threads : default all; the results do not depend on it.

    Raises
    ------
    InputError : shapes or values that do not fit, a problem that sees one class only.

    Source: the bundling of FaSTGLZ, arXiv 1307.8430; its inner ADMM is replaced by working sets, proximal Newton steps
    (exact active-set steps for least squares without the squared penalty) and duality gaps.
    """
    options = fit_options(l1_ratio, tol, max_iter)
    alphas = check_array("alphas", np.atleast_1d(np.asarray(alphas)), ndim=1, dtypes="fiu").astype(np.float64)
    if (alphas <= 0).any():
        raise InputError(f"alphas: got {alphas.min()}, want numbers above 0")
    targets = np.asarray(targets)
    weights = None if weights is None else np.asarray(weights)
    columns = [len(alphas), *(x.shape[1] for x in (targets, weights) if x is not None and x.ndim == 2)]
    count = max(columns)
    if any(size not in (1, count) for size in columns):
        raise InputError(f"alphas: got {len(alphas)} beside {columns[1:]} columns of targets and weights, want as many")
    parts = []
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        bundle = Bundle(
            X, _columns(targets, rows), _columns(weights, rows), loss=loss, fit_intercept=fit_intercept,
            n_threads=n_threads,
        )  # fmt: skip
        strengths = np.broadcast_to(alphas, (count,))[rows]
        size = len(strengths)
        task = np.arange(size) if bundle.count == size else np.zeros(size, dtype=np.int64)
        fits = Fits(task, strengths * l1_ratio, strengths * (1 - l1_ratio), np.zeros((size, 0)), bundle.null[task])
        with bundle.limits():
            descend(bundle, fits, tol=tol, max_iter=options["max_iter"])
            parts.append((bundle.coefficients(fits), bundle.intercepts(fits), fits.gap, fits.n_iter, fits.gap <= tol))
    return BundleFit(*(np.concatenate(pieces, axis=-1) for pieces in zip(*parts)))


@register(kind="solver", wing="linear", id="S170", source="arXiv:1307.8430",
          claim="all folds and alphas in a fraction of the time of one-by-one fits")  # fmt: skip
def cross_validate_path(
    X: Any,
    y: Any,
    *,
    loss: str = "quadratic",
    cv: int | Iterable[tuple[Any, Any]] = 10,
    alphas: Any = None,
    n_alphas: int = 100,
    eps: float | None = None,
    l1_ratio: float = 1.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 100,
    seed: int = 0,
    n_threads: int | None = None,
) -> CrossValidation:
    """Held-out losses along a path, all folds solved together; the minimum and the one-standard-error rule.

    Parameters
    ----------
    X : ``[n, p]`` array or scipy sparse matrix. y : ``[n]`` numbers, or two classes for ``loss="logistic"``.
    cv : number of shuffled folds (stratified for the logistic loss), or ``(train, held out)`` pairs of row numbers.
    alphas : default ``n_alphas``, geometric, from where every fold is empty down to ``eps`` times that (default 1e-2
        for n < p, else 1e-4).
    sample_weight : ``[n]`` weighs the losses of the fits and of the held-out rows.
    seed : of the folds. The other parameters are those of ``fit_bundle``.

    Raises
    ------
    InputError : bad shapes or values; folds without rows or with one class only.
    """
    options = fit_options(l1_ratio, tol, max_iter)
    y, weight = targets_and_weights(y, sample_weight)
    train, held = training_and_held_out(y, weight, loss, cv, seed)
    bundle = Bundle(X, y, np.column_stack([train, weight]), loss=loss, fit_intercept=fit_intercept, n_threads=n_threads)
    alphas = alpha_grid(bundle, alphas, n_alphas=n_alphas, eps=eps, l1_ratio=l1_ratio)
    folds, size = train.shape[1], len(alphas)
    scores, gaps = np.empty((size, folds)), np.empty((size, folds + 1))
    coefs = np.empty((bundle.p, size), dtype=bundle.operator.dtype)
    intercepts = np.empty(size)
    shares = np.ascontiguousarray((held / held.sum(0)).T)
    for place, fits in iterate(bundle, alphas, **options):
        scores[place] = held_out_losses(bundle, fits.rows(slice(0, folds)), shares)
        last = fits.rows(slice(folds, None))
        coefs[:, place], intercepts[place] = bundle.coefficients(last)[:, 0], bundle.intercepts(last)[0]
        gaps[place] = fits.gap
    mean, deviation = over_folds(scores, held.sum(0) / held.sum())
    best = int(mean.argmin())
    within = int((mean <= mean[best] + deviation[best]).argmax())
    return CrossValidation(alphas, scores, mean, deviation, best, within, coefs, intercepts, gaps)


def held_out_losses(bundle: Bundle, fits: Fits, shares: np.ndarray) -> np.ndarray:
    """The mean squared errors or log losses ``[B]`` on the rows that ``shares`` ``[B, n]`` weigh."""
    value = bundle.loss.evaluate(bundle.y[fits.task], shares, bundle.margins(fits))[0]
    return 2 * value if bundle.loss.fixed_curvature else value


def fit_options(l1_ratio: float, tol: float, max_iter: int) -> dict[str, Any]:
    """The checked options of a path."""
    return {
        "l1_ratio": check("l1_ratio", l1_ratio, above=0, at_most=1),
        "tol": check("tol", tol, above=0),
        "max_iter": check_integer("max_iter", max_iter, at_least=1),
    }


def folds_of_rows(labels: np.ndarray | None, n: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each row ``[n]``, shuffled; with ``labels`` each fold gets its part of every class."""
    order = rng(seed, "folds").permutation(n)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(n, dtype=np.int64)
    fold[order] = np.arange(n) % folds
    return fold


def training_and_held_out(
    y: np.ndarray, weight: np.ndarray, loss: str, cv: Any, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of training and held-out rows, ``[n, folds]`` each."""
    n = len(y)
    if isinstance(cv, int | np.integer):
        cv = check_integer("cv", cv, at_least=2, at_most=n)
        fold = folds_of_rows(y if loss == "logistic" else None, n, cv, seed)
        pairs = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(cv)]
    else:
        pairs = [(_row_numbers(train, n), _row_numbers(held, n)) for train, held in cv]
        if not pairs:
            raise InputError("cv: got no pairs, want at least one (train, held out)")
    train, held = np.zeros((n, len(pairs))), np.zeros((n, len(pairs)))
    for k, (rows, out) in enumerate(pairs):
        train[rows, k], held[out, k] = weight[rows], weight[out]
    for name, part in (("training", train), ("held-out", held)):
        empty = np.flatnonzero(part.sum(0) == 0)
        if len(empty):
            raise InputError(f"cv: fold {empty[0]} has no {name} rows of positive weight, want some")
    for k, rows in enumerate(train.T > 0):
        if loss == "logistic" and len(np.unique(y[rows])) < 2:
            raise InputError(f"cv: fold {k} trains with one class only, want both; use fewer folds, or stratified ones")
    return train, held


def _row_numbers(rows: Any, n: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.dtype == bool and rows.shape == (n,):
        return np.flatnonzero(rows)
    if rows.size == 0:
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n:
        raise InputError(f"cv: got {rows.dtype} {rows.shape} as the rows of a fold, want row numbers below {n}")
    return rows


def targets_and_weights(y: Any, sample_weight: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Checked targets and row weights ``[n]``."""
    y = check_array("y", np.asarray(y), ndim=1, dtypes="fiub")
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    check_array("sample_weight", weight, shape=y.shape)
    if (weight < 0).any() or not weight.any():
        raise InputError(f"sample_weight: got {weight.min()} to {weight.max()}, want at least 0 and some above it")
    return y, weight


def _columns(x: np.ndarray | None, columns: slice) -> np.ndarray | None:
    """Some columns, where there are several."""
    return x if x is None or x.ndim != 2 or x.shape[1] == 1 else x[:, columns]

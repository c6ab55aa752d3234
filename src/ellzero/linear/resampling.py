"""What a sparse path is worth: bootstraps of it, and its permutation null.

Lives here: ``bootstrap_path`` and ``permutation_test``, both as bundles of all their fits. Does not live here:
cross-validation (``bundles``), selection with a bound on errors (``stability``, ``knockoffs``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.linear.bundles import fit_options, held_out_losses, targets_and_weights, training_and_held_out
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers.bundle import Bundle
from ellzero.solvers.bundle_path import alpha_grid, iterate

__all__ = ["BootstrapPath", "PermutationTest", "bootstrap_path", "common_grid", "permutation_test"]

_CHUNK = 128  # problems at once


class BootstrapPath(NamedTuple):
    """Over bootstraps, for each column and alpha ``[p, A]``: how often it was chosen, its mean and its deviation.

    ``gap`` is the largest certified gap of all fits; ``redrawn`` counts draws that had one class only.
    """

    alphas: np.ndarray
    frequency: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    gap: float
    redrawn: int


class PermutationTest(NamedTuple):
    """A statistic of the data and under permutations of the targets, and the shares of draws that reach it.

    For ``"score"``: ``observed`` is a number (the least mean held-out loss of the path) and ``null`` ``[N]``. For
    ``"max_coef"``: ``observed`` is ``[A]`` (the largest absolute coefficient at each alpha), ``null`` ``[A, N]``,
    ``p_values`` ``[A]``. ``p_value`` is one number for the whole path; both count the data as a draw of its own.
    """

    alphas: np.ndarray
    observed: Any
    null: np.ndarray
    p_values: Any
    p_value: float
    gap: float


@register(kind="solver", wing="linear", id="S170", source="arXiv:1307.8430")
def bootstrap_path(
    X: Any,
    y: Any,
    *,
    n_bootstraps: int = 100,
    loss: str = "quadratic",
    alphas: Any = None,
    n_alphas: int = 50,
    eps: float | None = None,
    l1_ratio: float = 1.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 100,
    seed: int = 0,
    n_threads: int | None = None,
) -> BootstrapPath:
    """Paths of bootstrap samples (rows drawn with replacement), solved together: how stable each coefficient is.

    With ``alphas=[alpha]`` and the ``frequency`` of that one alpha, ``tables.coefficient_table`` says beside every
    coefficient how often it would be there.

    Parameters
    ----------
    n_bootstraps : samples; a draw that holds one class only is drawn again.
    seed : of the draws. The other parameters are those of ``bundles.cross_validate_path``; the default grid is that of
        all rows.

    Raises
    ------
    InputError : bad shapes or values; one class only.
    """
    options = fit_options(l1_ratio, tol, max_iter)
    n_bootstraps = check_integer("n_bootstraps", n_bootstraps, at_least=2)
    y, _ = targets_and_weights(y)
    counts, redrawn = _draws(y, n_bootstraps, loss, seed)
    common = {"loss": loss, "fit_intercept": fit_intercept, "n_threads": n_threads}
    whole = Bundle(X, y, **common)
    alphas = alpha_grid(whole, alphas, n_alphas=n_alphas, eps=eps, l1_ratio=l1_ratio)
    chosen, total, squares = (np.zeros((whole.p, len(alphas))) for _ in range(3))
    gap = 0.0
    for start in range(0, n_bootstraps, _CHUNK):
        bundle = Bundle(X, y, counts[:, start : start + _CHUNK], **common)
        for place, fits in iterate(bundle, alphas, **options):
            ids = bundle.pool.ids[: fits.w.shape[1]]
            chosen[ids, place] += (fits.w != 0).sum(0)
            total[ids, place] += fits.w.sum(0)
            squares[ids, place] += (fits.w**2).sum(0)
            gap = max(gap, float(fits.gap.max()))
    mean = total / n_bootstraps
    deviation = np.sqrt(np.maximum(squares / n_bootstraps - mean**2, 0) * n_bootstraps / (n_bootstraps - 1))
    return BootstrapPath(alphas, chosen / n_bootstraps, mean, deviation, gap, redrawn)


@register(kind="solver", wing="linear", id="S170", source="arXiv:1307.8430",
          claim="p-values are those of one-by-one fits, and uniform where there is nothing to find")  # fmt: skip
def permutation_test(
    X: Any,
    y: Any,
    *,
    statistic: str = "score",
    n_permutations: int = 200,
    loss: str = "quadratic",
    cv: Any = 5,
    alphas: Any = None,
    n_alphas: int = 20,
    eps: float | None = 0.05,
    l1_ratio: float = 1.0,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 100,
    seed: int = 0,
    n_threads: int | None = None,
) -> PermutationTest:
    """Does X tell anything about y? A path's statistic against that of permuted targets, all solved together.

    Parameters
    ----------
    statistic : ``"score"``, the least mean held-out loss of the path over folds ``cv`` (small is good), or
        ``"max_coef"``, the largest absolute coefficient at each alpha (for columns of like scale).
    n_permutations : draws N; the smallest p-value is 1 / (N + 1).
    alphas : one grid for the data and all draws; default geometric from where all of them are empty (for
        ``"max_coef"`` from the step below it) down to ``eps`` times that.
    The other parameters are those of ``bundles.cross_validate_path``.

    Raises
    ------
    InputError : bad shapes or values; so few of one class that permutations leave folds without it.

    Notes
    -----
    Whatever X and y are, if the order of y tells nothing then ``p_value <= a`` has a chance of at most a, for every a:
    the data is one of N + 1 draws that are treated alike. Folds therefore do not look at y (not even to balance
    classes), and folds that are given must not either. ``p_value`` of ``"max_coef"`` is that of the smallest of the A
    p-values among the same minimum of all draws, so it holds for the path as a whole.
    """
    options = fit_options(l1_ratio, tol, max_iter)
    check_choice("statistic", statistic, ("score", "max_coef"))
    n_permutations = check_integer("n_permutations", n_permutations, at_least=1)
    y, weight = targets_and_weights(y)
    common = {"loss": loss, "fit_intercept": fit_intercept, "n_threads": n_threads}
    if statistic == "score":  # folds without a look at the labels, or they would suit the data better than the draws
        train, held = training_and_held_out(y, weight, "quadratic", cv, seed)
    else:
        train = held = weight[:, None]
    draws = _permutations(y, n_permutations, train, loss, seed)
    # One grid that does not single out the data among the draws, or their ranks would not be exchangeable.
    # Where all of them are empty the largest coefficient is 0, and what a solver leaves of it would make the ranks.
    skip = int(alphas is None and statistic == "max_coef")
    grid = {"n_alphas": check_integer("n_alphas", n_alphas, at_least=1) + skip, "eps": eps, "l1_ratio": l1_ratio}
    alphas = common_grid(X, draws, None, alphas, **grid, **common)[skip:]
    values, gap = _statistics(X, draws, train, held, statistic, alphas, common, options)
    if statistic == "score":
        least = values.min(0)
        p_value = float(_reached(-least[None])[0, 0])
        return PermutationTest(alphas, float(least[0]), least[1:], p_value, p_value, gap)
    ranks = _reached(values)  # of every draw among all: [A, 1 + N]
    p_value = float(_reached(-ranks.min(0)[None])[0, 0])
    return PermutationTest(alphas, values[:, 0], values[:, 1:], ranks[:, 0], p_value, gap)


def common_grid(
    X: Any, targets: np.ndarray, weights: np.ndarray | None, alphas: Any, *, n_alphas: int, eps: float | None,
    l1_ratio: float, **common: Any,
) -> np.ndarray:  # fmt: skip
    """The grid of ``alpha_grid`` for all data sets together, however they are then divided into bundles."""
    count = max(x.shape[1] for x in (targets, weights) if x is not None and x.ndim == 2)
    pieces = (slice(i, i + _CHUNK) for i in range(0, count, _CHUNK))
    grids = (
        alpha_grid(
            Bundle(X, *(x if x is None or x.ndim == 1 else x[:, piece] for x in (targets, weights)), **common),
            alphas, n_alphas=n_alphas, eps=eps, l1_ratio=l1_ratio,
        )
        for piece in pieces
    )  # fmt: skip
    return max(grids, key=lambda grid: grid[0])


def _statistics(
    X: Any, draws: np.ndarray, train: np.ndarray, held: np.ndarray, statistic: str, alphas: np.ndarray, common: dict,
    options: dict,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """Mean held-out losses or largest coefficients, ``[A, draws]``, and the largest gap."""
    count, folds = draws.shape[1], train.shape[1]
    step = max(1, _CHUNK // folds)
    shares = np.ascontiguousarray((held / held.sum(0)).T)
    values, gap = np.empty((len(alphas), count)), 0.0
    for start in range(0, count, step):
        block = draws[:, start : start + step]
        size = block.shape[1]
        bundle = Bundle(X, np.repeat(block, folds, axis=1), np.tile(train, size), **common)
        for place, fits in iterate(bundle, alphas, **options):
            if statistic == "score":
                losses = held_out_losses(bundle, fits, np.tile(shares, (size, 1)))
                each = losses.reshape(size, folds) @ (held.sum(0) / held.sum())
            else:
                each = abs(fits.w).max(1, initial=0.0)
            values[place, start : start + size] = each
            gap = max(gap, float(fits.gap.max()))
    return values, gap


def _reached(values: np.ndarray) -> np.ndarray:
    """For each of ``values`` ``[A, draws]`` the share of its row that is as large; what is apart by rounding is not."""
    lowest = values - 1e-10 * abs(values).max()
    counts = [values.shape[1] - np.searchsorted(np.sort(row), low) for row, low in zip(values, lowest)]
    return np.array(counts) / values.shape[1]


def _draws(y: np.ndarray, count: int, loss: str, seed: int) -> tuple[np.ndarray, int]:
    """How often each row was drawn, ``[n, count]``, and how many draws were repeated."""
    generator = rng(seed, "bootstrap")
    n, redrawn, draws = len(y), 0, []
    _several(y, loss)
    while len(draws) < count:
        drawn = np.bincount(generator.integers(n, size=n), minlength=n)
        if loss == "logistic" and len(np.unique(y[drawn > 0])) < 2:
            redrawn += 1
            continue
        draws.append(drawn)
    return np.stack(draws, axis=1), redrawn


def _permutations(y: np.ndarray, count: int, train: np.ndarray, loss: str, seed: int) -> np.ndarray:
    """The targets and ``count`` permutations of them, ``[n, 1 + count]``; every fold sees both classes."""
    generator = rng(seed, "permutation")
    _several(y, loss)
    draws = [y]
    for _ in range(1000 * count):
        if len(draws) > count:
            return np.stack(draws, axis=1)
        drawn = generator.permutation(y)
        if loss != "logistic" or all(len(np.unique(drawn[rows > 0])) == 2 for rows in train.T):
            draws.append(drawn)
    raise InputError("y: so few of one class that permutations leave folds without it; want more, or fewer folds")


def _several(y: np.ndarray, loss: str) -> None:
    if loss == "logistic" and len(np.unique(y)) != 2:
        raise InputError(f"y: got {len(np.unique(y))} different labels, want two for the logistic loss")

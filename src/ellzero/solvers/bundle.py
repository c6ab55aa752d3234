"""Many L1 and elastic-net problems with one X: folds, bootstraps, permutations, targets, alphas.

Lives here: ``Bundle``, what the problems are and what they share, and ``Fits``, where each of them stands.
Does not live here: the loop that solves them (``bundle_descent``), paths of alphas (``bundle_path``), losses
(``bundle_losses``), Gram matrices (``bundle_metric``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.kernels._dispatch import CHOICE
from ellzero.solvers.bundle_losses import LOSSES
from ellzero.solvers.bundle_metric import Curvature, Pool
from ellzero.solvers.operators import aslinear, centred, need

__all__ = ["Bundle", "Fits"]

_ROWS = 16  # fits in a part: large enough for matrix products, the same for every number of threads
_WORK = 1 << 22  # multiplications that are worth waking a thread


class Bundle:
    """``K`` data sets with one X, each minimising ``sum_i s_i l(y_i, x_i'w + b) + l1 |w|_1 + l2 |w|^2 / 2``.

    Parameters
    ----------
    x : ``[n, p]`` array, scipy sparse matrix or operator; a sparse one is never densified as a whole.
    targets : ``[n]`` for all data sets, or ``[n, K]``.
    weights : ``[n, K]`` (or ``[n, 1]``) at least 0, 0 leaves a row out; ``None`` for all ones. Each column is scaled
        to sum to 1: losses are weighted means.
    loss : ``"quadratic"``, ``(y - z)^2 / 2``, or ``"logistic"``, for targets of two different values.
    fit_intercept : whether b is fitted (never penalised).
    n_threads : parts that run at the same time, each with a serial BLAS; ``None`` for all threads. The results do not
        depend on it: the parts are the same.

    Raises
    ------
    InputError : bad shapes or values; a data set that sees one class only.
    """

    def __init__(self, x: Any, targets: Any, weights: Any = None, *, loss: str = "quadratic",
                 fit_intercept: bool = True, n_threads: int | None = None):  # fmt: skip
        base = aslinear(x)
        need("bundle", base, "shape", "dtype", "rmatmat", "columns")
        self.n, self.p = base.shape
        self.loss = LOSSES[check_choice("loss", loss, LOSSES)]()
        native = CHOICE.module
        most = native.max_threads() if native else 1
        self.threads = most if n_threads is None else check_integer("n_threads", n_threads, at_least=1)
        self.fit_intercept = bool(fit_intercept)
        targets, shares = _targets(targets, self.n), _shares(weights, self.n)
        self.count = max(len(targets), len(shares))
        for name, have in (("targets", len(targets)), ("weights", len(shares))):
            if have not in (1, self.count):
                raise InputError(f"{name}: got {have} columns, want {self.count}, one for each problem")
        y = self.loss.prepare(targets, shares)
        null, scale = self.loss.null(y, shares, self.fit_intercept)
        offset = np.zeros_like(null)
        if self.loss.fixed_curvature:  # targets far from zero would cost digits
            y, offset, null = y - null[:, None], null, np.zeros_like(null)
        self.y, self.shares = (np.broadcast_to(rows, (self.count, self.n)) for rows in (y, shares))
        self.null, self.scale, self.offset = (np.broadcast_to(rows, (self.count,)) for rows in (null, scale, offset))
        self.operator, _, self.centring = centred(base, np.zeros(self.n), self.fit_intercept)
        known: dict[bytes, int] = {}
        group = np.array([known.setdefault(share.tobytes(), len(known)) for share in shares])
        self.group = np.broadcast_to(group, (self.count,))  # data sets with the same rows share Gram matrices
        self.pool = Pool(self.operator)
        self._workers: ThreadPoolExecutor | None = None
        self.forget()

    def forget(self) -> None:
        """Forget the Gram matrices, and the searches that keep factors of them."""
        self.metrics: dict[int, Curvature] = {}
        self.searches: dict[int, Any] = {}
        share = self.loss.fixed_curvature and len(np.unique(self.group)) > 1
        self.whole = Curvature(self.pool, np.ones(self.n), 0.0, False, dtype=np.float64) if share else None

    def gradients(self, slope: np.ndarray) -> np.ndarray:
        """``X' u`` for the rows u of ``slope``: ``[B, p]``."""
        return self.operator.rmatmat(slope.T.astype(self.operator.dtype, copy=False)).T

    def intercepts(self, fits: Fits) -> np.ndarray:
        """The intercepts ``[B]`` for X as it was given."""
        means = self.centring.x_mean[self.pool.ids[: fits.w.shape[1]]]
        return fits.b + self.offset[fits.task] - fits.w @ means

    def coefficients(self, fits: Fits) -> np.ndarray:
        """The coefficients ``[p, B]``, in the dtype of X."""
        coefs = np.zeros((self.p, len(fits.w)), dtype=self.operator.dtype)
        coefs[self.pool.ids[: fits.w.shape[1]]] = fits.w.T
        return coefs

    def margins(self, fits: Fits) -> np.ndarray:
        """The predictions on all rows less ``offset``, ``[B, n]``: what the losses take."""
        return fits.w @ self.pool.block[: fits.w.shape[1]] + fits.b[:, None]

    def decision(self, fits: Fits) -> np.ndarray:
        """The predictions ``X w + b`` on all rows, ``[B, n]``."""
        return self.margins(fits) + self.offset[fits.task][:, None]

    def limits(self) -> contextlib.AbstractContextManager:
        """Holds BLAS to one thread: its sums depend on their number, and it is slow at many small products."""
        return threadpool_limits(1, "blas")

    def in_parts(self, run: Callable[[slice], Any], size: int, work: int, rows: int = _ROWS) -> list:
        """``run`` over parts of ``size`` fits, in order; at the same time where ``work`` (of one fit) pays for it."""
        parts = [slice(start, start + rows) for start in range(0, size, rows)]
        if len(parts) < 2 or size * work < 2 * _WORK or self.threads < 2:
            return [run(part) for part in parts]
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self.threads)
        return list(self._workers.map(run, parts))


@dataclass
class Fits:
    """``B`` fits of the data sets ``task``: their strengths, coefficients on the pool's columns, and certificates.

    ``w`` is ``[B, W]``; ``b`` belongs to the centred columns and targets. ``gap`` is relative to P(0).
    """

    task: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    w: np.ndarray
    b: np.ndarray
    gap: np.ndarray = field(init=False)
    n_iter: np.ndarray = field(init=False)
    gradient: np.ndarray | None = None

    def __post_init__(self):
        self.gap = np.full(len(self.task), np.inf)
        self.n_iter = np.zeros(len(self.task), dtype=np.int64)

    def widen(self, width: int) -> None:
        """Zeros for the columns that joined the pool."""
        if width > self.w.shape[1]:
            self.w = np.pad(self.w, ((0, 0), (0, width - self.w.shape[1])))

    def rows(self, rows: slice) -> Fits:
        """Some of the fits."""
        part = Fits(self.task[rows], self.l1[rows], self.l2[rows], self.w[rows], self.b[rows])
        part.gap, part.n_iter = self.gap[rows], self.n_iter[rows]
        return part


def _targets(targets: Any, n: int) -> np.ndarray:
    targets = check_array("targets", np.asarray(targets), ndim=(1, 2), dtypes="fiub")
    if targets.shape[0] != n:
        raise InputError(f"targets: got {targets.shape[0]} rows, want {n}, the rows of X")
    return np.ascontiguousarray(np.atleast_2d(targets.T), dtype=np.float64)


def _shares(weights: Any, n: int) -> np.ndarray:
    """The row weights as ``[K, n]`` shares that sum to 1."""
    if weights is None:
        return np.full((1, n), 1 / n)
    weights = check_array("weights", np.asarray(weights), ndim=2, dtypes="fiub").astype(np.float64)
    if weights.shape[0] != n:
        raise InputError(f"weights: got {weights.shape[0]} rows, want {n}, the rows of X")
    if (weights < 0).any():
        raise InputError(f"weights: got {weights.min()}, want numbers of at least 0")
    total = weights.sum(0)
    if (total <= 0).any():
        raise InputError(f"weights: column {int(np.argmin(total))} is all zero, want at least one row in each problem")
    return np.ascontiguousarray((weights / total).T)

"""Gaussian process regression with thousands of inducing points, of which every row sees its nearest few.

Lives here: the estimator: scaling, first inducing points, training, prediction.
Does not live here: the bound and its algebra (``solvers.neighbour_gp``), the loop (``training``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.schedules import Linear
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers.neighbour_gp import COVARIANCES, KERNELS, NeighbourGP
from ellzero.training.loop import Batches, train

__all__ = ["SparseWithinSparseGP"]

_MOST = 16_384  # inducing points: their equations are M x M


@register(id="S075", source="arXiv:2011.05041", kind="estimator", wing="linear", extra="torch",
          claim="many inducing points of which each row sees few beat as many as it sees, at the same cost",
          example=lambda: SparseWithinSparseGP(8, n_neighbors=4, steps=5))  # fmt: skip
class SparseWithinSparseGP(RegressorMixin, BaseEstimator):
    """Regression with uncertainty by a variational Gaussian process, trained on batches. Tran et al. (2021).

    A batch of B rows costs ``B (H^3 + M)`` and not ``M^3``, as only the H inducing points nearest to a row take part in
    it. ``n_neighbors=None`` gives the ordinary process of Hensman et al. (2013), all M in one active set.

    The paper's bound weighs the prior of every active set by its share of the rows, so that what many active sets
    share is regularised less than in an exact process: with few rows or strong noise compare ``lower_bound`` and the
    error on held-out rows with those of ``n_neighbors=None``.

    Measured on pol (13,500 rows, 26 columns, 300 batches), errors in units of the deviation of y: 32 of 512 points
    0.107, against 0.206 of all of 32, trained on all rows at once with the posterior maximised out.

    Parameters
    ----------
    n_inducing : M, at least 1; of fewer distinct rows all are taken.
    n_neighbors : H, the inducing points that a row sees, at most M of them; ``None`` for all.
    kernel : ``"rbf"``, ``"matern12"``, ``"matern32"`` or ``"matern52"``; every column has its own length scale.
    covariance : of the posterior, ``"triangle"``, ``"marginal"`` or ``"diagonal"``; see ``NeighbourGP``. The first two
        keep M^2 numbers.
    steps, batch_size, lr : of Adam; the rate falls in the second half of the steps. Last, the mean of the inducing
        variables is put where the bound of all rows is largest.
    lengthscale : the first one, in standard deviations of a column; ``None`` for the square root of their number.
    noise : the first variance of the noise, as a share of the variance of y.
    jitter : added to kernel matrices, relative to their diagonal.
    seed : of the first inducing points (rows by chance, then k-means) and of the batches.

    Attributes
    ----------
    process_ : the fitted ``NeighbourGP``, in standardised units. n_inducing_, n_neighbors_ : M and H as used.
    inducing_ : ``[M, d]``. lengthscale_ : ``[d]``, in units of the columns. variance_, noise_ : in squared units of y.
    losses_ : ``[steps]`` minus the bound per row of each batch, in standardised units.

    Raises
    ------
    InputError : a bad setting, by name; a covariance that is not ``"diagonal"`` above 8192 inducing points.
    """

    def __init__(
        self, n_inducing=512, *, n_neighbors=32, kernel="matern32", covariance="triangle", steps=1000, batch_size=128,
        lr=0.02, lengthscale=None, noise=0.1, jitter=1e-6, seed=0,
    ):  # fmt: skip
        self.n_inducing = n_inducing
        self.n_neighbors = n_neighbors
        self.kernel = kernel
        self.covariance = covariance
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.lengthscale = lengthscale
        self.noise = noise
        self.jitter = jitter
        self.seed = seed

    def fit(self, X: Any, y: Any) -> SparseWithinSparseGP:
        """Learn from ``X [n, d]`` and ``y [n]``."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        self._check()
        self._centre, self._scale = X.mean(0), _spread(X)
        self._level, self._size = y.mean(), float(_spread(y))
        rows, target = self._rows(X), torch.from_numpy((y - self._level) / self._size)
        Z = torch.from_numpy(self._first(rows.numpy()))
        self.n_inducing_ = len(Z)
        self.n_neighbors_ = len(Z) if self.n_neighbors is None else min(self.n_neighbors, len(Z))
        self.process_ = process = NeighbourGP(
            Z, self.n_neighbors_, kernel=self.kernel, covariance=self.covariance, jitter=self.jitter,
            lengthscale=self.lengthscale or math.sqrt(X.shape[1]), noise=self.noise,
        )  # fmt: skip
        process.settle(rows, target)
        batches = Batches(rows, target, batch_size=min(self.batch_size, len(rows)), seed=self.seed)
        run = train(
            process, lambda model, batch: model(batch, len(rows)), batches, steps=self.steps, seed=self.seed,
            optimizer=torch.optim.Adam(process.parameters(), lr=self.lr, fused=True),
            schedule=Linear(1.0, 0.05, 0.5, 1.0),
        )  # fmt: skip
        process.settle(rows, target)
        self.losses_ = np.array(list(run.losses.values()))
        return self

    def _check(self) -> None:
        check_integer("n_inducing", self.n_inducing, at_least=1, at_most=_MOST)
        if self.n_neighbors is not None:
            check_integer("n_neighbors", self.n_neighbors, at_least=1)
        check_choice("kernel", self.kernel, KERNELS)
        check_choice("covariance", self.covariance, COVARIANCES)
        if self.covariance != "diagonal" and self.n_inducing > _MOST // 2:
            raise InputError(f"covariance: got {self.covariance!r} for {self.n_inducing} inducing points, "
                             f"want 'diagonal' above {_MOST // 2}")  # fmt: skip
        check_integer("steps", self.steps, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)
        check_integer("seed", self.seed, at_least=0)
        for name in ("lr", "noise", "jitter") + (() if self.lengthscale is None else ("lengthscale",)):
            check(name, getattr(self, name), above=0, below=math.inf)

    def _rows(self, X: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((X - self._centre) / self._scale)

    def _first(self, rows: np.ndarray) -> np.ndarray:
        """Rows by chance, moved to the means of those nearest to them."""
        distinct = np.unique(rows, axis=0)
        if len(distinct) <= self.n_inducing:
            return distinct
        start = distinct[rng(self.seed, "inducing").permutation(len(distinct))[: self.n_inducing]]
        return KMeans(self.n_inducing, init=start, n_init=1, max_iter=5).fit(rows).cluster_centers_

    @torch.no_grad()
    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of y for ``X [n, d]``, ``[n]``; with ``return_std`` also the standard deviation of a new y.

        Noise is part of it: ``sqrt(std**2 - noise_)`` is that of the function.
        """
        check_is_fitted(self)
        rows = self._rows(validate_data(self, X, dtype=np.float64, reset=False))
        parts = [self.process_.moments(chunk) for chunk in rows.split(self.process_.chunk)]
        mean, variance = (torch.cat(part) for part in zip(*parts))
        found = self._level + self._size * mean.numpy()
        if not return_std:
            return found
        return found, self._size * torch.sqrt(variance + torch.exp(self.process_.log_noise)).numpy()

    @torch.no_grad()
    def lower_bound(self, X: Any, y: Any) -> float:
        """The bound on the log marginal likelihood of ``y [n]`` given ``X [n, d]``, over n: nats per row."""
        check_is_fitted(self)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=False)
        rows, target = self._rows(X), torch.from_numpy((y - self._level) / self._size)
        process, total = self.process_, 0.0
        for part in torch.arange(len(rows)).split(process.chunk):
            total += float(process.bound(rows[part], target[part], len(rows))) * len(part) / len(rows)
        return total / len(rows) - math.log(self._size)

    @property
    def inducing_(self) -> np.ndarray:
        return self._centre + self._scale * self.process_.Z.detach().numpy()

    @property
    def lengthscale_(self) -> np.ndarray:
        return self._scale * torch.exp(self.process_.log_lengthscale).detach().numpy()

    @property
    def variance_(self) -> float:
        return self._size**2 * math.exp(self.process_.log_variance.item())

    @property
    def noise_(self) -> float:
        return self._size**2 * math.exp(self.process_.log_noise.item())


def _spread(values: np.ndarray) -> np.ndarray:
    """Standard deviations, 1 for what is constant."""
    spread = values.std(0)
    return np.where(spread > 1e-12 * np.maximum(abs(values).max(0), 1e-300), spread, 1.0)

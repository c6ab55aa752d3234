"""Three estimates of mutual information: kernel densities by cosine transform, bins, nearest neighbours.

Lives here: the estimates, each a value that is called with a block of columns and a target.
Does not live here: checks of the user's input, blocks of columns, and the selector (``screening``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri
from scipy.stats import rankdata

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["KernelDensity", "NearestNeighbours", "PlugIn"]


def _entropy_sum(p: np.ndarray) -> np.ndarray:
    """``sum p log p`` over the last axis, in float64; empty cells count nothing."""
    return np.einsum("...i,...i->...", p, np.log(np.maximum(p, 1e-38)), dtype=np.float64)


def _information(joint: np.ndarray) -> np.ndarray:
    """Mutual information in nats of each table in ``[columns, r, c]``; tables are normalised here."""
    joint = joint / joint.sum((1, 2), keepdims=True)
    whole = _entropy_sum(joint.reshape(len(joint), -1))
    return np.maximum(whole - _entropy_sum(joint.sum(2)) - _entropy_sum(joint.sum(1)), 0)


def _unit(x: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Columns moved to [0, 1], and their standard deviations there; a constant column becomes 0.5."""
    if scale == "normal":
        x = ndtri(rankdata(x, axis=0) / (len(x) + 1))
    low, width = x.min(0), np.ptp(x, axis=0)
    flat = width <= 1e-12 * np.maximum(abs(low), abs(low + width))
    unit = np.where(flat, 0.5, (x - low) / np.where(flat, 1, width))
    return unit, unit.std(0)


def _corners(unit: np.ndarray, bins: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The two nearest cell centres of each value, with the linear weights (1 - t, t)."""
    place = np.clip(unit * bins - 0.5, 0, bins - 1)
    cell = np.minimum(place.astype(np.intp), bins - 2)
    share = place - cell
    yield cell, 1 - share
    yield cell + 1, share


@register(kind="score", id="S104", wing="linear", source="Contributions to high-dimensional data analysis (2025)",
          example=lambda: KernelDensity())  # fmt: skip
@dataclass(frozen=True)
class KernelDensity:
    """Mutual information of two smoothed histograms: ``sum p log(p / (p_x p_y))`` over a grid of cells.

    Values are moved to [0, 1], spread linearly over the two nearest cells of a ``bins`` x ``bins`` grid, and smoothed
    by a Gaussian whose mass is reflected at the borders: a product in the cosine transform, so nothing leaks and no
    padding is needed. A target of classes keeps its classes: one density of x for each. Smoothing is a channel on
    each side, so the estimate never exceeds that of the unsmoothed grid and is 0 for a constant.

    Parameters
    ----------
    bins : cells per axis.
    bandwidth : standard deviation of the kernel as a fraction of the column's; ``None`` is Scott's
        ``n ** (-1 / 6)`` for a continuous target and ``n ** (-1 / 5)`` for classes.
    scale : ``"normal"`` replaces a column by its normal scores first, which leaves mutual information as it is, makes
        outliers harmless and the null of all columns alike; ``"range"`` scales by minimum and maximum.
    """

    bins: int = 64
    bandwidth: float | None = None
    scale: str = "normal"

    def __post_init__(self):
        check_integer("bins", self.bins, at_least=4, at_most=1024)
        if self.bandwidth is not None:
            check("bandwidth", self.bandwidth, above=0)
        check_choice("scale", self.scale, ("normal", "range"))

    def __call__(self, X: np.ndarray, y: np.ndarray, classes: int | None = None) -> np.ndarray:
        """Nats per column of ``X [n, p]``; ``y [n]`` holds numbers, or labels 0 to ``classes - 1``."""
        n, p = X.shape
        width = self.bandwidth or n ** (-1 / (6 if classes is None else 5))
        unit, spread = _unit(X, self.scale)
        if classes is None:
            unit_y, spread_y = _unit(y[:, None], self.scale)
            columns, sides = self.bins, list(_corners(unit_y, self.bins))
            kernel_y = self._kernel(width * spread_y)
        else:
            columns, sides, kernel_y = classes, [(y[:, None], 1.0)], None
        cells = np.zeros(p * self.bins * columns)
        start = np.arange(p) * self.bins
        for row, share in _corners(unit, self.bins):
            for column, part in sides:
                place = (start + row) * columns + column
                cells += np.bincount(place.ravel(), (share * part).ravel(), len(cells))
        tables = cells.reshape(p, self.bins, columns)
        tables = self._smooth(tables, self._kernel(width * spread)[:, :, None], kernel_y)
        return _information(tables)

    def _kernel(self, width: np.ndarray) -> np.ndarray:
        """The Gaussian in the cosine transform: ``exp(-(pi k h)^2 / 2)``, one row per width."""
        return np.exp(-0.5 * (math.pi * width[:, None] * np.arange(self.bins)) ** 2)

    def _smooth(self, tables: np.ndarray, kernel_x: np.ndarray, kernel_y: np.ndarray | None) -> np.ndarray:
        axes = (1,) if kernel_y is None else (1, 2)
        waves = fft.dctn(tables.astype(np.float32), axes=axes) * kernel_x.astype(np.float32)
        if kernel_y is not None:
            waves *= kernel_y.astype(np.float32)
        return np.maximum(fft.idctn(waves, axes=axes, overwrite_x=True), 0)


@register(kind="score", source="Miller (1955)", wing="linear", example=lambda: PlugIn())
@dataclass(frozen=True)
class PlugIn:
    """Mutual information of the table of counts, on bins that hold equally many samples; equal values share a bin.

    Parameters
    ----------
    bins : bins per continuous column; ``None`` is ``round(sqrt(n / 5))``, between 2 and 32.
    correct : subtract the first-order bias ``(K_xy - K_x - K_y + 1) / (2 n)``, K counting cells in use
        (Miller, 1955); a score may then be below zero.
    """

    bins: int | None = None
    correct: bool = True

    def __post_init__(self):
        if self.bins is not None:
            check_integer("bins", self.bins, at_least=2)

    def __call__(self, X: np.ndarray, y: np.ndarray, classes: int | None = None) -> np.ndarray:
        """Nats per column of ``X [n, p]``; ``y [n]`` holds numbers, or labels 0 to ``classes - 1``."""
        n, p = X.shape
        bins = self.bins or int(np.clip(round(math.sqrt(n / 5)), 2, 32))
        label, columns = (self._bin(y[:, None], bins), bins) if classes is None else (y[:, None], classes)
        place = (np.arange(p) * bins + self._bin(X, bins)) * columns + label
        counts = np.bincount(place.ravel(), minlength=p * bins * columns).reshape(p, bins, columns)
        nats = _information(counts.astype(np.float64))
        if self.correct:
            used = (counts > 0).sum((1, 2)) - (counts.any(2)).sum(1) - (counts.any(1)).sum(1) + 1
            nats -= used / (2 * n)
        return nats

    @staticmethod
    def _bin(x: np.ndarray, bins: int) -> np.ndarray:
        below = rankdata(x, method="min", axis=0) - 1  # the same for equal values
        return (below * bins // len(x)).astype(np.intp)


@register(kind="score", source="Kraskov, Stoegbauer and Grassberger (2004)", wing="linear",
          example=lambda: NearestNeighbours())  # fmt: skip
@dataclass(frozen=True)
class NearestNeighbours:
    """Mutual information from the distances to the ``k``-th neighbours: ``psi(k) + psi(n) - <psi(n_x) + psi(n_y)>``.

    Kraskov et al. (2004), equation 8, in the maximum norm; for classes Ross (2014), equation 2. Columns are divided
    by their standard deviation; ties are broken by noise of relative size 1e-10. A score may be below zero.
    The least biased of the three for smooth dependence, at about four times the cost of ``KernelDensity``.
    """

    k: int = 3
    seed: int = 0

    def __post_init__(self):
        check_integer("k", self.k, at_least=1)
        check_integer("seed", self.seed, at_least=0)

    def __call__(self, X: np.ndarray, y: np.ndarray, classes: int | None = None) -> np.ndarray:
        """Nats per column of ``X [n, p]``; ``y [n]`` holds numbers, or labels 0 to ``classes - 1``."""
        if len(X) <= self.k:
            raise InputError(f"X: got {len(X)} rows, want more than the {self.k} neighbours")
        noise = rng(self.seed, "nearest neighbours")
        if classes is None:
            y = self._apart(y[:, None], noise)[:, 0]
            return np.array([self._continuous(x, y) for x in self._apart(X, noise).T])
        return np.array([self._classes(x, y, classes) for x in self._apart(X, noise).T])

    @staticmethod
    def _apart(x: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        spread = x.std(0)
        x = x / np.where(spread > 0, spread, 1)
        return x + 1e-10 * np.maximum(1, abs(x).mean(0)) * noise.standard_normal(x.shape)

    @staticmethod
    def _within(x: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """How many values lie strictly within ``radius`` of each, itself included."""
        ordered = np.sort(x)
        radius = radius * (1 - 1e-12)  # the neighbour itself lies on the border, and rounding must not let it in
        return np.searchsorted(ordered, x + radius) - np.searchsorted(ordered, x - radius, side="right")

    def _continuous(self, x: np.ndarray, y: np.ndarray) -> float:
        points = np.column_stack([x, y])
        radius = cKDTree(points).query(points, self.k + 1, p=np.inf)[0][:, -1]
        around = digamma(np.maximum(self._within(x, radius), 1)) + digamma(np.maximum(self._within(y, radius), 1))
        return digamma(self.k) + digamma(len(x)) - around.mean()

    def _classes(self, x: np.ndarray, y: np.ndarray, classes: int) -> float:
        radius, own, rank = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x))
        for label in range(classes):
            here = y == label
            size = int(here.sum())
            if size < 2:  # a class of one sample says nothing about a density
                continue
            k = min(self.k, size - 1)
            radius[here] = cKDTree(x[here, None]).query(x[here, None], k + 1)[0][:, -1]
            own[here], rank[here] = size, k
        used = own > 0
        if not used.any():
            raise InputError("y: every class has a single sample, want at least two of one")
        x, radius = x[used], radius[used]
        around = np.maximum(self._within(x, radius), 1)
        return digamma(len(x)) + (digamma(rank[used]) - digamma(own[used]) - digamma(around)).mean()

"""Data with a known answer: what a method should find is returned beside what it sees.

Lives here: sparse linear systems, sparse-coded signals, feature trees and superposed features, and the correlation
structures of a design. Does not live here: scores of how well the answer was found, or real data (``sets``).
Every signal-to-noise ratio is the realised one: the sum of squares of signal over that of noise, exact in the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = [
    "AR",
    "Block",
    "Correlation",
    "Equicorrelated",
    "Independent",
    "PlantedFeatures",
    "PlantedRegression",
    "SparseSignals",
    "planted_features",
    "planted_regression",
    "sparse_signals",
    "superposed_features",
]


class Correlation(Protocol):
    """How the columns of a design depend on each other; each column has variance 1."""

    def covariance(self, p: int) -> np.ndarray:
        """The (p, p) correlation matrix."""

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        """``n`` Gaussian rows with that matrix, in O(np)."""


@dataclass(frozen=True)
class Independent:
    """Independent columns."""

    def covariance(self, p: int) -> np.ndarray:
        return np.eye(p)

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        return generator.standard_normal((n, p))


@dataclass(frozen=True)
class AR:
    """Columns that fade with distance: the correlation of i and j is ``rho ** |i - j|``."""

    rho: float

    def __post_init__(self):
        check("rho", self.rho, above=-1, below=1)

    def covariance(self, p: int) -> np.ndarray:
        places = np.arange(p)
        return np.power(float(self.rho), abs(places[:, None] - places))

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        x = generator.standard_normal((n, p))
        fresh = math.sqrt(1 - self.rho**2)
        for j in range(1, p):
            x[:, j] = self.rho * x[:, j - 1] + fresh * x[:, j]
        return x


@dataclass(frozen=True)
class Equicorrelated:
    """Columns that share one factor: every pair has correlation ``rho``."""

    rho: float

    def __post_init__(self):
        check("rho", self.rho, at_least=0, below=1)

    def covariance(self, p: int) -> np.ndarray:
        return np.full((p, p), float(self.rho)) + (1 - self.rho) * np.eye(p)

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        return _with_factor(generator, n, p, self.rho, np.zeros(p, dtype=int))


@dataclass(frozen=True)
class Block:
    """Columns in groups of ``size``: correlation ``rho`` within a group, none between groups."""

    rho: float
    size: int

    def __post_init__(self):
        check("rho", self.rho, at_least=0, below=1)
        check_integer("size", self.size, at_least=1)

    def covariance(self, p: int) -> np.ndarray:
        group = np.arange(p) // self.size
        return np.where(group[:, None] == group, self.rho, 0.0) + (1 - self.rho) * np.eye(p)

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        return _with_factor(generator, n, p, self.rho, np.arange(p) // self.size)


def _with_factor(generator: np.random.Generator, n: int, p: int, rho: float, group: np.ndarray) -> np.ndarray:
    own = generator.standard_normal((n, p))
    shared = generator.standard_normal((n, int(group[-1]) + 1))
    return math.sqrt(1 - rho) * own + math.sqrt(rho) * shared[:, group]


@dataclass(frozen=True)
class PlantedRegression:
    """``y = X @ coef + noise``: ``support`` are the sorted indices of the nonzero coefficients.

    ``noise_level`` is the root mean square of the noise, ``snr`` the realised ratio.
    """

    X: np.ndarray
    y: np.ndarray
    coef: np.ndarray
    support: np.ndarray
    noise_level: float
    snr: float


@dataclass(frozen=True)
class SparseSignals:
    """``signals = codes @ dictionary + noise``; atoms are the unit rows of the dictionary (atoms, d)."""

    signals: np.ndarray
    codes: np.ndarray
    dictionary: np.ndarray
    noise_level: float


@dataclass(frozen=True)
class PlantedFeatures:
    """``x = activations @ directions + noise``: a feature is a unit row of ``directions`` (features, d).

    ``parent[i]`` is the feature without which ``i`` is never active, or -1.
    """

    x: np.ndarray
    activations: np.ndarray
    directions: np.ndarray
    parent: np.ndarray
    noise_level: float = field(default=0.0)

    @property
    def mean_l0(self) -> float:
        """Mean number of active features per row."""
        return float(np.count_nonzero(self.activations) / len(self.activations))


def _with_noise(generator: np.random.Generator, signal: np.ndarray, snr: float) -> tuple[np.ndarray, float]:
    """Signal plus Gaussian noise scaled so that the ratio of their sums of squares is ``snr``, and the noise's rms."""
    noise = generator.standard_normal(signal.shape)
    if math.isinf(snr):
        return signal.copy(), 0.0
    size = np.linalg.norm(signal)
    level = float(size / math.sqrt(snr) / math.sqrt(signal.size)) if size > 0 else 1.0
    noise *= level * math.sqrt(noise.size) / np.linalg.norm(noise)
    return signal + noise, level


@register(
    kind="generator",
    source="Hastie, Tibshirani and Tibshirani (2020), section 3",
    example=lambda: planted_regression(20, 10, 3, snr=5.0, seed=0),
)
def planted_regression(
    n: int,
    p: int,
    k: int,
    *,
    snr: float = 5.0,
    correlation: Correlation | None = None,
    amplitude: str = "signs",
    seed: int = 0,
) -> PlantedRegression:
    """A sparse linear system ``y = X b + e`` with ``k`` nonzero coefficients at random places.

    Parameters
    ----------
    n, p : rows and columns of ``X``, float64; each column has mean 0 and variance 1 in the population.
    k : exact number of nonzero coefficients, 0 to ``p``. With 0 the target is noise of unit root mean square.
    snr : ``|X b|^2 / |e|^2``, exact in the sample; ``inf`` for no noise.
    correlation : ``Independent()`` (the default), ``AR(rho)``, ``Equicorrelated(rho)`` or ``Block(rho, size)``.
    amplitude : of the coefficients: ``"signs"`` (+1 or -1), ``"normal"`` (standard normal, at least 0.1 in size), or
        ``"decay"`` (size 1, 1/2, ..., 1/k with random signs).

    Raises
    ------
    InputError : a size below 1, ``k`` above ``p``, or ``snr`` not above 0.
    """
    n, p = check_integer("n", n, at_least=1), check_integer("p", p, at_least=1)
    k = check_integer("k", k, at_least=0, at_most=p)
    check("snr", snr, above=0)
    check_choice("amplitude", amplitude, ("signs", "normal", "decay"))
    correlation = Independent() if correlation is None else correlation
    if not hasattr(correlation, "draw"):
        raise InputError(
            f"correlation: got {correlation!r}, want AR(rho), Equicorrelated(rho), Block(rho, size) or None"
        )
    X = correlation.draw(rng(seed, "planted_regression", "X"), n, p)
    generator = rng(seed, "planted_regression", "coef")
    support = np.sort(generator.choice(p, size=k, replace=False))
    coef = np.zeros(p)
    coef[support] = _amplitudes(generator, k, amplitude)
    y, level = _with_noise(rng(seed, "planted_regression", "noise"), X @ coef, snr)
    return PlantedRegression(X, y, coef, support, level, 0.0 if k == 0 else float(snr))


def _amplitudes(generator: np.random.Generator, k: int, kind: str) -> np.ndarray:
    signs = generator.choice([-1.0, 1.0], size=k)
    if kind == "signs":
        return signs
    if kind == "decay":
        return signs * generator.permutation(1 / np.arange(1, k + 1))
    return signs * np.maximum(abs(generator.standard_normal(k)), 0.1)


def _unit_rows(generator: np.random.Generator, m: int, d: int) -> np.ndarray:
    """``m`` random unit rows in ``d`` dimensions: orthogonal where they fit (m <= d), else independent."""
    if m <= d:
        q, r = np.linalg.qr(generator.standard_normal((d, m)))
        return np.ascontiguousarray((q * np.where(np.diag(r) < 0, -1.0, 1.0)).T)  # uniform over all frames
    rows = generator.standard_normal((m, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@register(
    kind="generator",
    source="Aharon, Elad and Bruckstein (2006), section V",
    example=lambda: sparse_signals(30, 8, 12, 3, seed=0),
)
def sparse_signals(
    n: int, d: int, atoms: int, k: int, *, snr: float = math.inf, positive: bool = False, seed: int = 0
) -> SparseSignals:
    """Signals that are each a sum of ``k`` atoms of one random dictionary.

    Parameters
    ----------
    n, d : signals and their length. ``atoms`` : rows of the dictionary, unit norm; orthogonal if ``atoms <= d``.
    k : exact number of nonzero codes per signal, their size uniform between 0.5 and 1.5.
    snr : sum of squares of the clean signals over that of the noise, exact; ``inf`` for no noise.
    positive : codes above 0 only.

    Raises
    ------
    InputError : a size below 1, ``k`` above ``atoms``, or ``snr`` not above 0.
    """
    n, d = check_integer("n", n, at_least=1), check_integer("d", d, at_least=1)
    atoms = check_integer("atoms", atoms, at_least=1)
    k = check_integer("k", k, at_least=0, at_most=atoms)
    check("snr", snr, above=0)
    dictionary = _unit_rows(rng(seed, "sparse_signals", "dictionary"), atoms, d)
    generator = rng(seed, "sparse_signals", "codes")
    places = np.argsort(generator.random((n, atoms)), axis=1)[:, :k]
    sizes = generator.uniform(0.5, 1.5, (n, k)) * (1.0 if positive else generator.choice([-1.0, 1.0], (n, k)))
    codes = np.zeros((n, atoms))
    np.put_along_axis(codes, places, sizes, axis=1)
    signals, level = _with_noise(rng(seed, "sparse_signals", "noise"), codes @ dictionary, snr)
    return SparseSignals(signals, codes, dictionary, level)


@register(
    kind="generator",
    source="arXiv:2503.17547",
    example=lambda: planted_features(50, 16, trees=4, seed=0),
)
def planted_features(
    n: int,
    d: int = 64,
    *,
    trees: int = 12,
    branching: Sequence[int] = (3,),
    p_root: float = 0.2,
    p_child: float = 0.15,
    exclusive: bool = False,
    snr: float = math.inf,
    seed: int = 0,
    dtype: Any = np.float32,
) -> PlantedFeatures:
    """A forest of features in which a child is active only with its parent: what a flat dictionary tends to absorb.

    Parameters
    ----------
    n, d : rows and dimensions. Directions are orthonormal if the features fit into ``d``, else random unit vectors.
    trees, branching : ``trees`` roots, each with ``branching[0]`` children, each of those with ``branching[1]``, ...
    p_root : probability that a root is active. ``p_child`` : that a child is, given its parent is.
    exclusive : at most one child per parent at a time; then ``p_child`` times the children must not exceed 1.
    snr : exact ratio of sums of squares; ``inf`` for no noise.

    Features come tree by tree level, roots first; sizes of active features are uniform between 0.75 and 1.25.

    Raises
    ------
    InputError : a size below 1, a probability outside (0, 1], or exclusive children that do not fit into 1.
    """
    n, d = check_integer("n", n, at_least=1), check_integer("d", d, at_least=1)
    check_integer("trees", trees, at_least=1)
    branching = tuple(check_integer("branching", b, at_least=1) for b in branching)
    check("p_root", p_root, above=0, at_most=1)
    check("p_child", p_child, above=0, at_most=1)
    check("snr", snr, above=0)
    if exclusive and branching and p_child * max(branching) > 1:
        raise InputError(f"p_child: got {p_child} for {max(branching)} exclusive children, want at most 1 in all")
    generator = rng(seed, "planted_features", "active")
    level = generator.random((n, trees)) < p_root
    active, parent, first = [level], [np.full(trees, -1)], 0
    for children in branching:
        above = np.repeat(level, children, axis=1)
        parent.append(first + np.repeat(np.arange(level.shape[1]), children))
        first += level.shape[1]
        level = above & _children_on(generator, n, level.shape[1], children, p_child, exclusive)
        active.append(level)
    on = np.concatenate(active, axis=1)
    sizes = rng(seed, "planted_features", "sizes").uniform(0.75, 1.25, on.shape)
    return _features(seed, "planted_features", np.where(on, sizes, 0.0), np.concatenate(parent), d, snr, dtype)


def _children_on(
    generator: np.random.Generator, n: int, parents: int, children: int, p: float, exclusive: bool
) -> np.ndarray:
    if not exclusive:
        return generator.random((n, parents * children)) < p
    chosen = np.floor(generator.random((n, parents)) / p).astype(int)  # child i owns the interval [i p, (i + 1) p)
    return (chosen[:, :, None] == np.arange(children)).reshape(n, -1)


@register(
    kind="generator",
    source="arXiv:2209.10652",
    example=lambda: superposed_features(50, 8, 24, seed=0),
)
def superposed_features(
    n: int,
    d: int,
    features: int,
    *,
    mean_l0: float = 4.0,
    zipf: float = 0.0,
    snr: float = math.inf,
    seed: int = 0,
    dtype: Any = np.float32,
) -> PlantedFeatures:
    """More independent features than dimensions, each rarely active: what a sparse autoencoder should take apart.

    Parameters
    ----------
    n, d, features : rows, dimensions, and features; their directions are random unit vectors.
    mean_l0 : expected number of active features per row, below ``features``.
    zipf : feature of rank r (from 1) is active with probability in proportion to ``r ** -zipf``, at most 1.
    snr : exact ratio of sums of squares; ``inf`` for no noise.

    Sizes of active features are uniform between 0 and 1, as in the source.

    Raises
    ------
    InputError : a size below 1, ``mean_l0`` not within (0, features], or a negative ``zipf``.
    """
    n, d = check_integer("n", n, at_least=1), check_integer("d", d, at_least=1)
    features = check_integer("features", features, at_least=1)
    check("mean_l0", mean_l0, above=0, at_most=features)
    check("zipf", zipf, at_least=0)
    check("snr", snr, above=0)
    probability = _capped(np.arange(1, features + 1, dtype=np.float64) ** -zipf, mean_l0)
    on = rng(seed, "superposed_features", "active").random((n, features)) < probability
    sizes = 1.0 - rng(seed, "superposed_features", "sizes").random(on.shape)  # in (0, 1]: active is never 0
    activations = np.where(on, sizes, 0.0)
    return _features(seed, "superposed_features", activations, np.full(features, -1), d, snr, dtype)


def _capped(weights: np.ndarray, total: float) -> np.ndarray:
    """Probabilities in proportion to ``weights`` that sum to ``total``; those above 1 are capped, the rest solved."""
    capped = np.zeros(len(weights), dtype=bool)
    while True:
        share = np.where(capped, 1.0, weights * (total - capped.sum()) / max(weights[~capped].sum(), 1e-300))
        if not (share > 1).any():
            return share
        capped |= share > 1


def _features(
    seed: int, name: str, activations: np.ndarray, parent: np.ndarray, d: int, snr: float, dtype: Any
) -> PlantedFeatures:
    directions = _unit_rows(rng(seed, name, "directions"), activations.shape[1], d)
    x, level = _with_noise(rng(seed, name, "noise"), activations @ directions, snr)
    return PlantedFeatures(x.astype(dtype), activations.astype(dtype), directions.astype(dtype), parent, level)

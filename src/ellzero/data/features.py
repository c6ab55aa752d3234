"""A world of planted features, to be sampled on demand: which are active together, how strongly, and below which.

Lives here: ``FeatureModel``, ``forest``, and the copulas ``LowRank`` and ``Matrix`` beside those of ``generators``.
Does not live here: one-off sets of rows (``generators``), or scores of what was recovered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from ellzero.data.generators import Correlation, Independent, _capped
from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["FeatureModel", "LowRank", "Matrix", "forest", "zipf_probabilities"]

MAGNITUDES = ("constant", "folded_normal", "exponential")


@dataclass(frozen=True, eq=False)
class LowRank:
    """Few shared causes: the correlation of i and j is ``loadings[i] @ loadings[j]``; ``loadings [features, rank]``.

    The norm of each row is at most 1. Costs O(features * rank) per row of a sample, so it suits many features.
    """

    loadings: np.ndarray

    def __post_init__(self):
        check_array("loadings", self.loadings, ndim=2, dtypes="f")
        if (size := float(np.square(self.loadings).sum(1).max())) > 1 + 1e-9:
            raise InputError(f"loadings: got a row of norm {math.sqrt(size):.4g}, want rows of norm at most 1")

    @classmethod
    def random(cls, features: int, rank: int = 8, strength: float = 0.5, seed: int = 0) -> LowRank:
        """Random loadings with squared row norm ``strength``: that share of each feature's cause is shared."""
        check_integer("features", features, at_least=1)
        check_integer("rank", rank, at_least=1)
        check("strength", strength, at_least=0, at_most=1)
        rows = rng(seed, "LowRank").standard_normal((features, rank))
        return cls(math.sqrt(strength) * rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def covariance(self, p: int) -> np.ndarray:
        """The (p, p) correlation matrix."""
        full = self.loadings @ self.loadings.T
        np.fill_diagonal(full, 1.0)
        return full

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        """``n`` Gaussian rows with that matrix."""
        if p != len(self.loadings):
            raise InputError(f"correlation: has loadings of {len(self.loadings)} features, want {p}")
        own = np.sqrt(np.clip(1 - np.square(self.loadings).sum(1), 0, None))
        shared = generator.standard_normal((n, self.loadings.shape[1])) @ self.loadings.T
        return shared + own * generator.standard_normal((n, p))


@dataclass(frozen=True, eq=False)
class Matrix:
    """A correlation matrix ``[features, features]``: symmetric, positive semidefinite, ones on the diagonal."""

    values: np.ndarray

    def __post_init__(self):
        R = check_array("values", self.values, ndim=2, dtypes="f")
        if R.shape[0] != R.shape[1] or not np.allclose(R, R.T) or not np.allclose(np.diag(R), 1):
            raise InputError("values: got no correlation matrix, want a symmetric one with ones on the diagonal")
        if (low := float(np.linalg.eigvalsh(R)[0])) < -1e-8 * len(R):
            raise InputError(f"values: has the eigenvalue {low:.3g}, want a positive semidefinite matrix")

    def covariance(self, p: int) -> np.ndarray:
        """The matrix."""
        return np.array(self.values, dtype=np.float64)

    def draw(self, generator: np.random.Generator, n: int, p: int) -> np.ndarray:
        """``n`` Gaussian rows with that matrix."""
        if p != len(self.values):
            raise InputError(f"correlation: is of {len(self.values)} features, want {p}")
        size, turn = np.linalg.eigh(self.values)
        return generator.standard_normal((n, p)) @ (turn * np.sqrt(np.clip(size, 0, None))).T


def forest(trees: int, branching: Sequence[int] = (3,)) -> np.ndarray:
    """Parents in a forest (-1 for a root): ``trees`` roots first, then their ``branching[0]`` children each, and on."""
    check_integer("trees", trees, at_least=1)
    parents, first, width = [np.full(trees, -1)], 0, trees
    for children in branching:
        check_integer("branching", children, at_least=1)
        parents.append(first + np.repeat(np.arange(width), children))
        first, width = first + width, width * children
    return np.concatenate(parents)


def zipf_probabilities(features: int, mean_l0: float, exponent: float = 1.0) -> np.ndarray:
    """Probabilities in proportion to ``rank ** -exponent`` (rank from 1) that sum to ``mean_l0``, none above 1."""
    check_integer("features", features, at_least=1)
    check("mean_l0", mean_l0, above=0, at_most=features)
    check("exponent", exponent, at_least=0)
    return _capped(np.arange(1, features + 1, dtype=np.float64) ** -exponent, mean_l0)


@register(kind="generator", source="arXiv:2209.10652", wing="autoencoder", example=lambda: FeatureModel(8, 24))
class FeatureModel:
    """Activations that are sums of planted features: ``x = f @ atoms + noise``, with the features ``f`` known.

    Parameters
    ----------
    d, n_features : dimensions and features.
    probability : that a feature fires, given that its parent does: a number for all, or one for each
        (``zipf_probabilities(n_features, mean_l0)`` gives unequal ones).
    correlation : of the normal variables behind the firing (a Gaussian copula): feature i fires where its variable
        exceeds the quantile of ``1 - p_i``, so each fires as often as it should whatever the correlation.
        ``Independent()``, ``AR``, ``Equicorrelated``, ``Block``, ``LowRank`` or ``Matrix``.
    magnitude : of a firing feature: ``"constant"`` (``size``), ``"folded_normal"`` (``|size + spread * normal|``) or
        ``"exponential"`` (of mean ``size``). ``size`` is a number, or one for each feature.
    parents : a forest as from ``forest(trees, branching)``: a feature fires only where its parent (-1 for none) does.
    exclusive : at most one child of a parent fires at a time. Siblings then share the variable of the first, each
        owning an interval of its own, so their probabilities are kept; those of one family must not exceed 1 in all.
    scale_by_parent : a child's magnitude is multiplied by its parent's.
    noise : standard deviation of the Gaussian noise on every dimension.
    orthogonalize : steps of gradient descent on the squared cosines between atoms, random unit rows at the start;
        enough of them give orthonormal rows (a tight frame where ``n_features > d``).
    seed : of atoms and samples.

    Attributes
    ----------
    atoms : ``[n_features, d]`` float32, unit rows.
    probabilities : ``[n_features]``, given the parent. ``marginals``: their products along the path from the root,
        exact where family lines are independent of each other.

    Raises
    ------
    InputError : a size below 1, probabilities outside [0, 1], no forest, or exclusive children that do not fit into 1.

    Elhage et al. (2022) for sparse features in superposition; Bussmann et al. (2025) for the forest.
    """

    def __init__(
        self,
        d: int,
        n_features: int,
        *,
        probability: float | Sequence[float] | np.ndarray = 0.1,
        correlation: Correlation | None = None,
        magnitude: str = "constant",
        size: float | Sequence[float] | np.ndarray = 1.0,
        spread: float = 0.5,
        parents: Sequence[int] | np.ndarray | None = None,
        exclusive: bool = False,
        scale_by_parent: bool = False,
        noise: float = 0.0,
        orthogonalize: int = 0,
        seed: int = 0,
    ):
        self.d, self.n_features = check_integer("d", d, at_least=1), check_integer("n_features", n_features, at_least=1)
        self.probabilities = _each("probability", probability, n_features, at_most=1.0)
        self.size = _each("size", size, n_features, at_most=math.inf)
        self.magnitude = check_choice("magnitude", magnitude, MAGNITUDES)
        self.spread = check("spread", spread, at_least=0)
        self.noise = check("noise", noise, at_least=0, below=math.inf)
        self.seed = check_integer("seed", seed, at_least=0)
        self.correlation = Independent() if correlation is None else correlation
        if not hasattr(self.correlation, "draw"):
            raise InputError(f"correlation: got {correlation!r}, want AR, Equicorrelated, Block, LowRank or Matrix")
        self.parents = np.full(n_features, -1) if parents is None else _parents(parents, n_features)
        self.exclusive, self.scale_by_parent = bool(exclusive), bool(scale_by_parent)
        self._levels = _levels(self.parents)
        self._variable, self._low = self._intervals()
        start = rng(seed, "FeatureModel", "atoms").standard_normal((n_features, d))
        steps = check_integer("orthogonalize", orthogonalize, at_least=0)
        self.atoms = _spread_out(start, steps).astype(np.float32)

    @property
    def marginals(self) -> np.ndarray:
        """How often each feature fires, ``[n_features]``."""
        found = self.probabilities.copy()
        for level in self._levels[1:]:
            found[level] *= found[self.parents[level]]
        return found

    def sample(self, n: int, round: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """``x [n, d]`` and the features ``f [n, n_features]`` behind it, float32, 0 where one does not fire.

        The same ``(n, round)`` gives the same rows; another ``round`` new ones.
        """
        check_integer("n", n, at_least=0)
        check_integer("round", round, at_least=0)
        names = ("FeatureModel", n, round)
        normal = self.correlation.draw(rng(self.seed, *names, "fires"), n, self.n_features)
        upper = ndtr(-normal)[:, self._variable]  # uniform, and small where the variable is large
        fires = (upper >= self._low) & (upper < self._low + self.probabilities)
        f = np.where(fires, self._magnitudes(rng(self.seed, *names, "magnitude"), n), 0.0)
        for level in self._levels[1:]:
            above = f[:, self.parents[level]]
            f[:, level] *= above if self.scale_by_parent else above != 0
        x = f @ self.atoms
        if self.noise > 0:
            x += self.noise * rng(self.seed, *names, "noise").standard_normal(x.shape)
        return x.astype(np.float32), f.astype(np.float32)

    def _magnitudes(self, generator: np.random.Generator, n: int) -> np.ndarray:
        shape = (n, self.n_features)
        if self.magnitude == "exponential":
            return self.size * generator.exponential(size=shape)
        if self.magnitude == "folded_normal":
            return abs(self.size + self.spread * generator.standard_normal(shape))
        return np.broadcast_to(self.size, shape)

    def _intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Whose variable each feature reads, and where its interval of upper-tail probabilities begins."""
        variable, low = np.arange(self.n_features), np.zeros(self.n_features)
        if not self.exclusive:
            return variable, low
        for parent in np.unique(self.parents[self.parents >= 0]):
            family = np.flatnonzero(self.parents == parent)
            ends = np.cumsum(self.probabilities[family])
            if ends[-1] > 1 + 1e-9:
                raise InputError(f"probability: the exclusive children of {parent} have {ends[-1]:.4g} in all, "
                                 "want at most 1")  # fmt: skip
            variable[family], low[family] = family[0], ends - self.probabilities[family]
        return variable, low


def _each(name: str, value: Any, n: int, *, at_most: float) -> np.ndarray:
    values = np.broadcast_to(np.asarray(value, dtype=np.float64), (n,)) if np.ndim(value) == 0 else np.asarray(value)
    check_array(name, values, ndim=1, shape=(n,), dtypes="fiu")
    for bad in (float(values.min()), float(values.max())):
        check(name, bad, at_least=0, at_most=at_most)
    return np.array(values, dtype=np.float64)


def _parents(parents: Any, n: int) -> np.ndarray:
    parents = check_array("parents", np.asarray(parents), ndim=1, shape=(n,), dtypes="iu").astype(np.int64)
    if parents.min() < -1 or parents.max() >= n:
        raise InputError(f"parents: got {int(parents.min())} to {int(parents.max())}, want -1 to {n - 1}")
    return parents


def _levels(parents: np.ndarray) -> list[np.ndarray]:
    """The features by depth, roots first; a cycle is refused."""
    level = np.flatnonzero(parents < 0)
    found, placed = [level], len(level)
    while len(level):
        level = np.flatnonzero(np.isin(parents, level))
        found.append(level)
        placed += len(level)
    if placed < len(parents):
        raise InputError(f"parents: {len(parents) - placed} features are below themselves, want a forest")
    return found[:-1]


def _spread_out(rows: np.ndarray, steps: int) -> np.ndarray:
    """Unit rows after so many steps of gradient descent on ``sum_ij <a_i, a_j>^2`` over the sphere."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if steps == 0:
        return rows
    # the largest eigenvalue of A^T A falls along the way, so the first one bounds the step throughout
    step = 0.5 / np.linalg.norm(rows, 2) ** 2
    for _ in range(steps):
        pull = (rows @ rows.T) @ rows if len(rows) < rows.shape[1] else rows @ (rows.T @ rows)
        rows = rows - step * pull
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows

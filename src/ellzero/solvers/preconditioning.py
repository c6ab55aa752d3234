"""A change of columns that makes a badly conditioned design easy for the Lasso, found from the design alone.

Lives here: the search for directions that explain many columns, the map to the new columns and back, and how hard
random supports are before and after. Does not live here: the Lasso, tuning (``ellzero.linear.preconditioned``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import check, check_array, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Difficulty", "Preconditioner", "difficulty", "precondition"]

_GONE = 1e-10  # a column of which so little is left is a combination of the directions


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """New columns ``X S``: ``r`` directions, then what is left of each column, all of norm ``sqrt(n)`` (or zero).

    ``scale`` ``[p]`` brings a column to norm ``sqrt(n)``; ``loadings`` ``[r, p]`` are the parts of those columns along
    the directions; ``directions`` ``[p, r]`` their combinations; ``stretch`` ``[p]`` rescales what is left, 0 where
    nothing is.
    """

    scale: np.ndarray
    directions: np.ndarray
    loadings: np.ndarray
    stretch: np.ndarray

    @property
    def rank(self) -> int:
        """How many directions were taken out."""
        return self.directions.shape[1]

    def columns(self, X: np.ndarray) -> np.ndarray:
        """``X S``, ``[rows, r + p]``, for any rows of the same columns."""
        unit = X * self.scale
        taken = unit @ self.directions
        return np.hstack([taken, (unit - taken @ self.loadings) * self.stretch])

    def coef(self, z: np.ndarray) -> np.ndarray:
        """``S z``, ``[p]``: the coefficients of the columns as given, from ``[r + p]`` of the new ones."""
        own = z[self.rank :] * self.stretch
        return self.scale * (own + self.directions @ (z[: self.rank] - self.loadings @ own))


def precondition(
    X: Any, k: int, *, share: float = 0.9, spread: float = 10.0, max_directions: int | None = None, seed: int = 0
) -> Preconditioner:
    """Take out the directions that explain very many columns, and bring what is left of each back to full length.

    A sparse combination of nearly dependent columns is hard for the Lasso: its coefficients are huge. A random support
    of size k meets a dependency only where that runs through many columns, and such a one is a direction that takes a
    large share of the energy of many columns at once. Those are few, and can be fitted without a penalty.

    Parameters
    ----------
    X : ``[n, p]``, dense. Its columns are brought to norm ``sqrt(n)``.
    k : size of the supports that are expected.
    share : a direction explains a column where it takes at least this share of what is left of its energy.
    spread : a direction counts where it explains more than ``p / (spread k)`` columns, and at least two.
    max_directions : most directions, ``None`` for ``k log p``, at most ``n / 2``; 0 for the identity up to scale.
    seed : draws the columns that are tried as pivots, about ``5 spread k`` a round.

    Notes
    -----
    Each round tries columns as pivots, takes the one that explains most, and turns it to the leading singular vector of
    all it explains. This is our construction; the theorem of the source is about another one.
    """
    X = check_array("X", np.asarray(X, dtype=np.float64), ndim=2)
    n, p = X.shape
    k = check_integer("k", k, at_least=1, at_most=p)
    check("share", share, above=0, at_most=1)
    check("spread", spread, above=0)
    most = min(math.ceil(k * math.log(max(p, 2))), n // 2) if max_directions is None else max_directions
    most = check_integer("max_directions", most, at_least=0, at_most=n)
    norms = np.linalg.norm(X, axis=0)
    scale = np.where(norms > 0, np.sqrt(n) / np.where(norms > 0, norms, 1), 0)
    rest = X * scale
    directions, loadings = np.zeros((p, 0)), np.zeros((0, p))
    generator = rng(seed, "precondition")
    while len(loadings) < most:
        left = np.linalg.norm(rest, axis=0)
        alive = left > _GONE * np.sqrt(n)
        unit = np.where(alive, rest / np.where(alive, left, 1), 0)
        found = _direction(unit, alive, share, max(p / (spread * k), 1), math.ceil(5 * spread * k), generator)
        if found is None:
            break
        direction, weights = found
        # As a combination of the scaled columns: each residual is its column less its parts along the directions.
        combination = np.where(alive, weights / np.where(alive, left, 1), 0)
        combination -= directions @ (loadings @ combination)
        length = np.linalg.norm(direction)
        direction, combination = direction / length, combination / length * np.sqrt(n)
        along = direction @ rest
        rest -= np.outer(direction, along)
        again = direction @ rest  # the first pass leaves rounding of the size of the column, not of what is left
        rest -= np.outer(direction, again)
        directions = np.column_stack([directions, combination])
        loadings = np.vstack([loadings, (along + again) / np.sqrt(n)])
    left = np.linalg.norm(rest, axis=0)
    alive = left > _GONE * np.sqrt(n)
    return Preconditioner(scale, directions, loadings, np.where(alive, np.sqrt(n) / np.where(alive, left, 1), 0))


def _direction(unit, alive, share, count, tries, generator) -> tuple[np.ndarray, np.ndarray] | None:
    """The best direction ``[n]``, and its weights ``[p]`` over the unit residuals; ``None`` if none explains enough."""
    candidates = np.flatnonzero(alive)
    if len(candidates) > tries:
        candidates = np.sort(generator.choice(candidates, tries, replace=False))
    if not len(candidates):
        return None
    alike = (unit[:, candidates].T @ unit) ** 2 >= share
    best = int(alike.sum(axis=1).argmax())
    if alike[best].sum() <= count:
        return None
    members = np.flatnonzero(alike[best])
    _, _, right = np.linalg.svd(unit[:, members], full_matrices=False)
    weights = np.zeros(unit.shape[1])
    weights[members] = right[0]
    return unit @ weights, weights


@dataclass(frozen=True, eq=False)
class Difficulty:
    """How hard supports of k random columns are for an l1 method: ``before`` and ``after``, one number per draw.

    Each is the smallest singular value of the support's columns of norm 1 (after: of what is left of them, brought back
    to norm 1). A support with the value s may need coefficients of the 1-norm ``sqrt(k) / s`` per unit of signal: near
    1 is easy, near 0 is hard. ``rank`` counts the directions that were taken out.
    """

    before: np.ndarray
    after: np.ndarray
    rank: int

    def quantiles(self, at: Any = (0.0, 0.1, 0.5)) -> dict[float, tuple[float, float]]:
        """``{q: (before, after)}``: the share q of the supports is at least as hard as this."""
        return {float(q): (float(np.quantile(self.before, q)), float(np.quantile(self.after, q))) for q in at}


@register(
    id="S029",
    kind="metric",
    wing="linear",
    source="arXiv:2511.06211",
    claim="random supports are easy on any design once the directions that many columns share are taken out",
    example=lambda: difficulty(np.eye(4), 2, 5),
)
def difficulty(
    X: Any, k: int, n_draws: int = 200, *, preconditioner: Preconditioner | None = None, seed: int = 0, **options: Any
) -> Difficulty:
    """How hard ``n_draws`` random supports of size k are in a design, before and after ``precondition``.

    Parameters
    ----------
    X : ``[n, p]``, dense. k : size of the supports, at most ``min(n, p)``. n_draws : supports that are drawn.
    preconditioner : one that was found before; else ``precondition(X, k, **options)`` is.
    seed : draws the supports.

    Returns
    -------
    Difficulty
    """
    X = check_array("X", np.asarray(X, dtype=np.float64), ndim=2)
    k = check_integer("k", k, at_least=1, at_most=min(X.shape))
    n_draws = check_integer("n_draws", n_draws, at_least=1)
    if preconditioner is None:
        preconditioner = precondition(X, k, seed=seed, **options)
    n, p = X.shape
    left = preconditioner.columns(X)[:, preconditioner.rank :] / np.sqrt(n)
    plain, generator = X * preconditioner.scale / np.sqrt(n), rng(seed, "difficulty")
    supports = np.stack([generator.choice(p, k, replace=False) for _ in range(n_draws)])
    alive = preconditioner.stretch > 0
    after = np.ones(n_draws)
    for i, support in enumerate(supports):
        kept = support[alive[support]]  # a column that is gone is fitted by the directions
        if len(kept):
            after[i] = np.linalg.svd(left[:, kept], compute_uv=False)[-1]
    before = np.linalg.svd(plain.T[supports], compute_uv=False)[:, -1]
    return Difficulty(before, after, preconditioner.rank)

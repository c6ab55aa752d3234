"""Systems driven by paths, seen irregularly and seldom: the drivers, a few noisy observations, and the whole truth.

Lives here: a controlled differential equation, an Ornstein-Uhlenbeck process and a tumour under treatment.
Does not live here: models of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from ellzero.errors import check, check_choice, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Driven", "driven_systems"]

_GRID = 1001  # points of the fine grid on which systems are solved


@dataclass(frozen=True, eq=False)
class Driven:
    """``n`` subjects: ``paths`` and ``targets`` are pairs (times, values) as seen; ``truth`` is on the ``grid``.

    ``grid [1001]`` on [0, 1], ``truth [n, 1001]``.
    """

    paths: list[tuple[np.ndarray, np.ndarray]]
    targets: list[tuple[np.ndarray, np.ndarray]]
    grid: np.ndarray
    truth: np.ndarray


def _cde(x: np.ndarray, grid: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``dY = tanh(A Y + b) dX`` in four dimensions from 0, solved by Heun's method; the first one is seen."""
    channels = x.shape[2]
    A = generator.standard_normal((4, channels, 4)) / 4
    b = generator.standard_normal((4, channels)) / 2
    y = np.zeros((len(x), 4))

    def slope(state, step):
        return np.einsum("nij,nj->ni", np.tanh(np.einsum("ijk,nk->nij", A, state) + b), step)

    out = [y[:, 0]]
    for step in np.moveaxis(np.diff(x, axis=1), 1, 0):
        first = slope(y, step)
        y = y + (first + slope(y + first, step)) / 2
        out.append(y[:, 0])
    return np.stack(out, axis=1)


def _ornstein_uhlenbeck(x: np.ndarray, grid: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """``dy = 3 (1 - y) dt + dx`` from 0, for the sum of the drivers."""
    y, out = np.zeros(len(x)), [np.zeros(len(x))]
    for step, t in zip(np.diff(x[:, :, 1:].sum(2), axis=1).T, np.diff(grid)):
        y = y + 3 * (1 - y) * t + step
        out.append(y)
    return np.stack(out, axis=1)


def _tumour(x: np.ndarray, grid: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Growth that slows with size, killed by the drug ``x^2`` in three stages. Simeoni et al. (2004)."""
    growth, limit, passage, kill, horizon = 0.9, 0.7, 2.0, 0.3, 5.0
    drug = x[:, :, 1:].sum(2) ** 2
    cells = np.zeros((4, len(x)))
    cells[0], out = 0.5, [np.full(len(x), 0.5)]
    for i, t in enumerate(np.diff(grid) * horizon):
        total = cells.sum(0)
        born = growth * cells[0] / (1 + (growth / limit * total) ** 4) ** 0.25
        killed = kill * drug[:, i] * cells[0]
        change = np.stack([born - killed, killed - passage * cells[1], passage * (cells[1] - cells[2]),
                           passage * (cells[2] - cells[3])])  # fmt: skip
        cells = np.maximum(cells + t * change, 0)
        out.append(cells.sum(0))
    return np.stack(out, axis=1)


_SYSTEMS: dict[str, Callable] = {"cde": _cde, "ornstein-uhlenbeck": _ornstein_uhlenbeck, "tumour": _tumour}


@register(kind="generator", source="arXiv:2301.11647", id="S128", wing="linear",
          example=lambda: driven_systems("cde", 3, seed=0))  # fmt: skip
def driven_systems(
    system: str, n: int = 50, *, samples: int = 100, observations: int = 5, channels: int = 2, noise: float = 0.0,
    seed: int = 0, part: str = "train",
) -> Driven:  # fmt: skip
    """Subjects of one system, each driven by its own smooth random path.

    Parameters
    ----------
    system : ``"cde"``, ``"ornstein-uhlenbeck"`` or ``"tumour"``; its fixed numbers are drawn by ``seed``.
    samples : times at which the drivers are seen, by chance, the first at 0.
    observations : times at which the target is seen, by chance.
    channels : drivers, splines through 15 normal knots.
    noise : standard deviation added to observations.
    part : a name; other parts of one seed are other subjects of the same system.

    Raises
    ------
    InputError : an unknown system, counts below 1 (samples below 2), negative noise.
    """
    check_choice("system", system, _SYSTEMS)
    check_integer("n", n, at_least=1)
    check_integer("samples", samples, at_least=2, at_most=_GRID)
    check_integer("observations", observations, at_least=1, at_most=_GRID)
    check_integer("channels", channels, at_least=1)
    check("noise", noise, at_least=0)
    stream, grid = rng(seed, "driven", system, part), np.linspace(0, 1, _GRID)
    knots = stream.standard_normal((n, 15, channels))
    drivers = CubicSpline(np.linspace(0, 1, 15), knots, axis=1)(grid)
    x = np.concatenate([np.broadcast_to(grid[None, :, None], (n, _GRID, 1)), drivers], axis=2)
    truth = _SYSTEMS[system](x, grid, rng(seed, "driven", system, "numbers"))
    paths, targets = [], []
    for i in range(n):
        seen = np.append(0, np.sort(stream.permutation(_GRID - 1)[: samples - 1] + 1))
        wanted = np.sort(stream.permutation(_GRID)[:observations])
        paths.append((grid[seen], drivers[i, seen]))
        targets.append((grid[wanted], truth[i, wanted] + noise * stream.standard_normal(observations)))
    return Driven(paths, targets, grid, truth)

"""Recipes: how a network becomes sparse, as plain values made of parts.

Lives here: ``Recipe`` and the recipes by name, each a row of parts with its defaults in view. Does not live here: any
step on a model (``sparsifier``). ``density`` is the kept fraction of the prunable weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.allocations import ERK, Balanced, Deviation, ERKPlus, Global, Pyramidal, Uniform
from ellzero.parts.schedules import Constant, Cosine, Cubic, OneShot
from ellzero.parts.scores import Gradient, Magnitude, Momentum, Random
from ellzero.registry import register

__all__ = ["Recipe", "dense", "gmp", "one_shot", "rigl", "set_", "static"]

Score = Callable[..., Any]
_MAGNITUDE = Magnitude()


@dataclass(frozen=True)
class Recipe:
    """What is kept (``score``), where (``allocation``), when (``density``, ``every``, ``until``), and what returns.

    Parameters
    ----------
    density : schedule of the kept fraction, ``density(step, steps)``, within (0, 1].
    allocation : spreads it over layers.
    score : what stays: the largest.
    start : the score of the first mask; None takes the nonzero pattern of the weights, a wholly zero weight as dense.
    grow : the score of the entries that return; None where none does, and then the density never rises.
    turnover : schedule of the fraction of kept entries dropped and grown anew at an update, called with the progress
        up to ``until``.
    every, until : an update each ``every`` steps up to the fraction ``until`` of the run, and one there.
    scale_start : scale the first weights of each row by its own kept fan-in.
    move : how masks move at an update (``moves``); None for drop and grow within each layer.
    through : what the network sees of weights that stay dense underneath (``views``), called as
        ``through(name, weight, mask)``; None where a dropped weight is zero.
    penalty : added to the derivatives before each optimiser step, called as ``penalty(weights, gradients, progress)``
        with mappings by name, giving tensors by name.
    dense_momentum : the optimiser sees dense derivatives and remembers dropped entries.
    forget : whenever the density rises, the optimiser forgets everything, of all its parameters.
    """

    density: Callable[[float, float], float]
    allocation: Any
    score: Score = _MAGNITUDE
    start: Score | None = None
    grow: Score | None = None
    turnover: Callable[[float, float], float] | None = None
    every: int = 100
    until: float = 1.0
    scale_start: bool = False
    move: Callable[..., Any] | None = None
    through: Callable[..., Any] | None = None
    penalty: Callable[..., Any] | None = None
    dense_momentum: bool = False
    forget: bool = False

    def __post_init__(self):
        check_integer("every", self.every, at_least=1)
        check("until", self.until, at_least=0, at_most=1)
        for name in ("density", "score"):
            if not callable(getattr(self, name)):
                raise InputError(f"{name}: got {getattr(self, name)!r}, want a part such as Constant(0.1), Magnitude()")
        if not callable(getattr(self.allocation, "counts", None)):
            raise InputError(f"allocation: got {self.allocation!r}, want an allocation such as ERK()")
        if self.turnover is not None and self.grow is None:
            raise InputError("grow: got None with a turnover, want the score of the entries that return")
        if isinstance(self.grow, Momentum) and not self.dense_momentum:
            raise InputError(
                "grow: got Momentum(), held at zero outside the mask; want Gradient(), Random() or dense_momentum"
            )
        for name in ("move", "through", "penalty"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise InputError(f"{name}: got {getattr(self, name)!r}, want a function or None")
        rises = self.grow is not None or self.move is not None or self.through is not None
        last = 1.0
        for i in range(1001):
            value = check("density", self.density(i, 1000), above=0, at_most=1)
            if not rises and value > last + 1e-12:
                raise InputError("grow: got None with a density that rises, want the score of the entries that return")
            last = value
            if self.turnover is not None:
                check("turnover", self.turnover(i, 1000), at_least=0, at_most=1)


def checked_density(density: float) -> float:
    """``density`` if it lies in (0, 1]."""
    return check("density", density, above=0, at_most=1)


ALLOCATIONS: Mapping[str, Any] = {
    "uniform": Uniform(), "erk": ERK(), "global": Global(), "erk+": ERKPlus(), "balanced": Balanced(),
    "pyramidal": Pyramidal(), "deviation": Deviation(),
}  # fmt: skip


def named_allocation(allocation: Any) -> Any:
    """An allocation by name or as it is."""
    if isinstance(allocation, str):
        return ALLOCATIONS[check_choice("allocation", allocation, ALLOCATIONS)]
    return allocation


@register(kind="recipe", wing="network", source="none", extra="torch", example=lambda: dense())
def dense() -> Recipe:
    """Every weight is kept: the baseline of all others."""
    return Recipe(density=Constant(1.0), allocation=Uniform(), start=_MAGNITUDE, until=0.0)


@register(kind="recipe", wing="network", source="arXiv:1506.02626", extra="torch", example=lambda: one_shot())
def one_shot(density: float = 0.1, *, at: float = 0.5, allocation: Any = "global") -> Recipe:
    """Train dense, keep the largest weights at the fraction ``at`` of the run, train on. Han et al. (2015)."""
    check("at", at, at_least=0, below=1)
    schedule = OneShot(1.0, checked_density(density), at)
    return Recipe(density=schedule, allocation=named_allocation(allocation), every=1_000_000_000, until=at)


@register(kind="recipe", wing="network", source="arXiv:1710.01878", extra="torch", example=lambda: gmp())
def gmp(
    density: float = 0.1, *, begin: float = 0.0, end: float = 0.7, every: int = 20, allocation: Any = "global"
) -> Recipe:
    """Gradual magnitude pruning: the smallest weights go along a cubic. Zhu and Gupta (2017)."""
    schedule = Cubic(1.0, checked_density(density), begin, end)
    return Recipe(density=schedule, allocation=named_allocation(allocation), every=every, until=end)


@register(
    kind="recipe", wing="network", source="arXiv:1911.11134", extra="torch", example=lambda: rigl(),
    claim="growing by gradient beats growing at random",
)  # fmt: skip
def rigl(
    density: float = 0.1, *, every: int = 100, drop: float = 0.3, until: float = 0.75, allocation: Any = "erk",
    seed: int = 0,
) -> Recipe:  # fmt: skip
    """Sparse from the start; drop the smallest, grow where the dense gradient is largest. Evci et al. (2020)."""
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        grow=Gradient(), turnover=Cosine(check("drop", drop, at_least=0, at_most=1), 0.0), every=every, until=until,
        scale_start=True,
    )  # fmt: skip


@register(kind="recipe", wing="network", source="arXiv:1707.04780", extra="torch", example=lambda: set_())
def set_(
    density: float = 0.1, *, every: int = 100, drop: float = 0.3, until: float = 0.75, allocation: Any = "erk",
    seed: int = 0,
) -> Recipe:  # fmt: skip
    """Sparse from the start; drop the smallest weights and grow at random. Mocanu et al. (2018)."""
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        grow=Random(seed), turnover=Cosine(check("drop", drop, at_least=0, at_most=1), 0.0), every=every, until=until,
        scale_start=True,
    )  # fmt: skip


@register(
    kind="recipe", wing="network", id="S043", source="arXiv:2202.02643", extra="torch", example=lambda: static(0.1),
    claim="random masks lose less to dense the wider the network",
)  # fmt: skip
def static(density: float | None = None, *, allocation: Any = "erk", seed: int = 0) -> Recipe:
    """A mask that never changes: random at a density, or, without one, the nonzero pattern. Liu et al. (2022)."""
    if density is None:
        return Recipe(density=Constant(1.0), allocation=Uniform(), until=0.0)
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        until=0.0, scale_start=True,
    )  # fmt: skip

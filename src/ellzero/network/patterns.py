"""Recipes of n of m: every ``m`` consecutive inputs of a unit keep ``n``, while the weights stay dense underneath.

Lives here: ``sr_ste``, ``decaying_mask`` and ``pattern_staircase``, with their schedules. Does not live here: the
constraint (``parts.constraints.NM``), how it is cut from convolutions and odd widths (``moves.ByPattern``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.network.moves import ByPattern
from ellzero.network.recipes import Recipe
from ellzero.network.views import Through
from ellzero.parts.allocations import Uniform
from ellzero.parts.constraints import NM
from ellzero.parts.gradients import Masked, StraightThrough
from ellzero.parts.schedules import Constant
from ellzero.registry import register

__all__ = ["Fading", "Stairs", "decaying_mask", "pattern_staircase", "sr_ste"]


def _pattern(n: int, m: int) -> None:
    check_integer("m", m, at_least=2)
    check_integer("n", n, at_least=1, at_most=m - 1)


def _recipe(stairs: Stairs, through: Through, every: int) -> Recipe:
    return Recipe(Constant(1.0), Uniform(), move=ByPattern(stairs), through=through, every=every)


def _rule(gradient: str) -> Any:
    return {"scaled": Masked(), "ste": StraightThrough()}[check_choice("gradient", gradient, ("scaled", "ste"))]


@dataclass(frozen=True)
class Stairs:
    """Patterns one after the other in equal periods from the fraction ``begin`` to ``end``, and the last one after."""

    patterns: tuple[tuple[int, int], ...]
    begin: float = 0.0
    end: float = 1.0

    def __call__(self, progress: float) -> NM | None:
        """The pattern in force; None before ``begin``."""
        if progress < self.begin:
            return None
        share = (progress - self.begin) / (self.end - self.begin) if progress < self.end else 1.0
        period = int(share * len(self.patterns) + 1e-9)  # a period that starts at a step starts at that step
        return NM(*self.patterns[min(period, len(self.patterns) - 1)])


@register(
    kind="recipe", wing="network", source="arXiv:2102.04010", extra="torch", example=lambda: sr_ste(),
    claim="a decay of dropped weights steadies straight-through n:m training",
)  # fmt: skip
def sr_ste(n: int = 2, m: int = 4, *, decay: float = 2e-4, dense: float = 0.0, every: int = 1) -> Recipe:
    """n of m by a straight-through mask and a decay of what is dropped. Zhou et al. (2021), equation 9.

    The forward product uses the ``n`` largest of each group of ``m`` consecutive inputs; all weights get the
    derivative, and dropped ones also ``decay * w``. ``dense`` is the fraction of the run before the pattern.
    """
    _pattern(n, m)
    check("decay", decay, at_least=0, below=math.inf)
    check("dense", dense, at_least=0, below=1)
    return _recipe(Stairs(((n, m),), dense, dense), Through(StraightThrough(), decay=decay), every)


@dataclass(frozen=True)
class Fading:
    """The share of a dropped weight that still shows: 1 until ``begin``, none from ``end`` on.

    ``"linear"`` falls along a line; ``"exponential"`` is ``exp(-rate u)`` of the progress ``u`` between the two.
    """

    shape: str
    begin: float
    end: float
    rate: float = 8.0

    def __call__(self, progress: float) -> float:
        if progress >= self.end:
            return 0.0
        u = max(progress - self.begin, 0.0) / (self.end - self.begin)
        return 1.0 - u if self.shape == "linear" else math.exp(-self.rate * u)


@register(
    kind="recipe", wing="network", id="S038", source="arXiv:2402.04744", extra="torch",
    example=lambda: decaying_mask(1, 16), claim="n:m training that does not collapse at 1:16: above SR-STE",
)  # fmt: skip
def decaying_mask(
    n: int = 1, m: int = 16, *, shape: str = "exponential", rate: float = 8.0, dense: float = 0.05, tune: float = 0.15,
    gradient: str = "scaled", every: int = 1,
) -> Recipe:  # fmt: skip
    """n of m by a mask that fades in: ``w (mask + beta_t (1 - mask))``. Bambhaniya et al. (2024), MdGf.

    Parameters
    ----------
    n, m : ``n`` of each ``m`` consecutive inputs of a unit stay.
    shape, rate : of ``beta``, which falls from 1 after the fraction ``dense`` of the run to 0 before its last ``tune``,
        which trains under the hard mask; ``exp(-rate u)`` or ``1 - u`` of the progress ``u`` between the two.
    gradient : ``"scaled"`` gives dropped weights ``beta`` times the derivative, as differentiating the product does;
        ``"ste"`` all of it, as the published code does.

    Until ``beta`` is 0 the network computes with all its weights, and its report counts it so.
    """
    _pattern(n, m)
    check_choice("shape", shape, ("exponential", "linear"))
    check("rate", rate, above=0, below=math.inf)
    check("dense", dense, at_least=0, below=1)
    check("tune", tune, at_least=0, below=1 - dense)
    showing = Fading(shape, dense, 1 - tune, rate)
    return _recipe(Stairs(((n, m),), 0.0, 0.0), Through(_rule(gradient), showing), every)


@register(
    kind="recipe", wing="network", id="S038", source="arXiv:2402.04744", extra="torch",
    example=lambda: pattern_staircase(1, 16), claim="coarser patterns first end near SR-STE at 1:16",
)  # fmt: skip
def pattern_staircase(
    n: int = 1, m: int = 16, *, variant: str = "stepwise", dense: float = 0.05, tune: float = 0.15,
    gradient: str = "scaled", every: int = 1,
) -> Recipe:  # fmt: skip
    """n of m by coarser patterns first. Bambhaniya et al. (2024), SdGf.

    ``"stepwise"`` goes through ``m-1 : m``, ``m/2 : m``, ``m/4 : m``, ... to ``n : m``; ``"geometric"`` through groups
    that shrink at the same density, ``8n : 8m``, ``4n : 4m``, ``2n : 2m``, ``n : m``. Each lasts as long as the others,
    between the first ``dense`` and the last ``tune`` of the run, which trains on under ``n : m``. Dropped weights keep
    their value underneath; ``gradient="scaled"`` gives them no derivative, ``"ste"`` all of it.

    Published to end above SR-STE at 1:16; on MNIST it did not: 92.7 against 93.1 % (three seeds, each at the better of
    its learning rates).
    """
    _pattern(n, m)
    check_choice("variant", variant, ("stepwise", "geometric"))
    check("dense", dense, at_least=0, below=1)
    check("tune", tune, at_least=0, below=1 - dense)
    if variant == "geometric":
        patterns = [(k * n, k * m) for k in (8, 4, 2)]
    else:
        halves = [m // 2**i for i in range(1, m.bit_length())]
        patterns = [(k, m) for k in dict.fromkeys([m - 1, *halves]) if k > n]
    if not patterns:
        raise InputError(f"n: got {n} of {m}, want a smaller share: there is no coarser pattern before it")
    return _recipe(Stairs((*patterns, (n, m)), dense, 1 - tune), Through(_rule(gradient)), every)

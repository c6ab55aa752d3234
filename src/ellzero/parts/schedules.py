"""Schedules: how a number (a density, a drop fraction, a learning rate) moves over a run.

Lives here: plain values called as ``schedule(step, total)``; ``schedule(progress)`` is the same with ``total=1``.
Does not live here: what the number means, or when somebody acts on it (that is a recipe's ``every`` and ``until``).
Each one is affine in its end points, so a schedule of densities is the same curve as the one of sparsities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ellzero.errors import InputError, check, check_integer
from ellzero.registry import register

__all__ = ["Constant", "Cosine", "Cubic", "Cyclic", "Linear", "OneShot", "Quadratic", "Steps"]


def _progress(step: float, total: float) -> float:
    """``step / total``, held at 1 beyond the end."""
    check("total", total, above=0)
    check("step", step, at_least=0)
    return min(step / total, 1.0)


def _window(progress: float, begin: float, end: float) -> float:
    """Progress within ``[begin, end]``: 0 before it, 1 from its end on."""
    if progress >= end:
        return 1.0
    return max(progress - begin, 0.0) / (end - begin)


def _check_window(begin: float, end: float) -> None:
    check("begin", begin, at_least=0, below=1)
    check("end", end, above=begin, at_most=1)


def _finite(name: str, value: float) -> None:
    check(name, value, above=-math.inf, below=math.inf)


@register(kind="schedule", source="none", example=lambda: Constant(0.1))
@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __post_init__(self):
        _finite("value", self.value)

    def __call__(self, step: float, total: float = 1.0) -> float:
        _progress(step, total)
        return float(self.value)


@dataclass(frozen=True)
class _Ramp:
    """From ``start`` to ``stop``; ``_left`` is the share of the way still ahead at ``u`` in (0, 1)."""

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        _finite("start", self.start)
        _finite("stop", self.stop)
        _check_window(self.begin, self.end)

    def __call__(self, step: float, total: float = 1.0) -> float:
        u = _window(_progress(step, total), self.begin, self.end)
        if u in (0, 1):  # the end points exactly, whatever the rounding
            return float(self.stop if u else self.start)
        return float(self.stop + (self.start - self.stop) * self._left(u))


@register(kind="schedule", source="none", example=lambda: Linear(1.0, 0.1))
@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from ``start`` to ``stop`` between the fractions ``begin`` and ``end`` of the run."""

    def _left(self, u):
        return 1 - u


@register(kind="schedule", source="arXiv:1710.01878", example=lambda: Cubic(1.0, 0.1, 0.25, 0.75))
@dataclass(frozen=True)
class Cubic(_Ramp):
    """Fast first, then slow: ``stop + (start - stop) (1 - u)**3``. Zhu and Gupta (2017), equation 1.

    ``u`` is the progress between the fractions ``begin`` and ``end`` of the run.
    """

    def _left(self, u):
        return (1 - u) ** 3


@register(kind="schedule", source="arXiv:2004.05665", example=lambda: Quadratic(0.0, 1.0, 0.0, 0.5))
@dataclass(frozen=True)
class Quadratic(_Ramp):
    """Slow first, then fast: ``start + (stop - start) u**2``. Paria et al. (2020), section 4.

    ``u`` is the progress between the fractions ``begin`` and ``end`` of the run.
    """

    def _left(self, u):
        return 1 - u**2


@register(kind="schedule", source="arXiv:1608.03983", example=lambda: Cosine(0.3, 0.0))
@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine: ``stop + (start - stop) (1 + cos(pi u)) / 2``. Loshchilov and Hutter (2017), equation 5.

    ``u`` is the progress between the fractions ``begin`` and ``end`` of the run.
    """

    def _left(self, u):
        return (1 + math.cos(math.pi * u)) / 2


@register(kind="schedule", source="none", example=lambda: Steps((1.0, 0.5, 0.1), (0.25, 0.5)))
@dataclass(frozen=True)
class Steps:
    """``values[i]`` from the fraction ``at[i - 1]`` of the run on; ``values[0]`` before the first."""

    values: tuple[float, ...]
    at: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "at", tuple(self.at))
        if len(self.values) != len(self.at) + 1:
            raise InputError(f"values: got {len(self.values)} for {len(self.at)} steps, want one more than steps")
        for value in self.values:
            _finite("values", value)
        last = 0.0
        for fraction in self.at:
            check("at", fraction, at_least=last, at_most=1)
            last = fraction

    def __call__(self, step: float, total: float = 1.0) -> float:
        progress = _progress(step, total)
        return float(self.values[sum(progress >= fraction for fraction in self.at)])


@register(kind="schedule", source="arXiv:2308.02060", example=lambda: Cyclic(1.0, 0.1, cycles=3))
@dataclass(frozen=True)
class Cyclic:
    """``cycles`` equal sweeps, each a straight line from ``start`` to ``stop``; the run ends at ``stop``."""

    start: float
    stop: float
    cycles: int = 4

    def __post_init__(self):
        _finite("start", self.start)
        _finite("stop", self.stop)
        check_integer("cycles", self.cycles, at_least=1)

    def __call__(self, step: float, total: float = 1.0) -> float:
        progress = _progress(step, total)
        if progress == 1:
            return float(self.stop)
        return float(self.start + (self.stop - self.start) * (progress * self.cycles % 1.0))


@register(kind="schedule", source="none", example=lambda: OneShot(1.0, 0.1, at=0.5))
@dataclass(frozen=True)
class OneShot:
    """``start`` before the fraction ``at`` of the run, ``stop`` from there on."""

    start: float
    stop: float
    at: float = 0.5

    def __post_init__(self):
        _finite("start", self.start)
        _finite("stop", self.stop)
        check("at", self.at, at_least=0, at_most=1)

    def __call__(self, step: float, total: float = 1.0) -> float:
        return float(self.stop if _progress(step, total) >= self.at else self.start)

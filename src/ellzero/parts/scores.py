"""Scores: how much an entry of a weight counts. Larger is kept.

Lives here: frozen values called as ``score(weight, gradient, state)``, giving non-negative numbers shaped like the
weight, for NumPy and torch alike. Does not live here: how many are kept (allocations), or which (the selection).
``state`` is a mapping; a score reads ``"momentum"``, or ``"name"`` and ``"step"``, and says so where it is missing.
``needs`` names what costs something to have ready: ``"gradient"`` (dense), ``"rounds"``. A rule without it is taken to
read the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ellzero.errors import InputError, check_integer
from ellzero.parts.namespace import is_torch, namespace
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Gradient", "Magnitude", "Momentum", "Random", "Saliency"]


def _like(name: str, array: Any, weight: Any, needed_by: str) -> Any:
    """``array`` if it is given and shaped like the weight."""
    if array is None:
        raise InputError(f"{name}: got None, want an array of shape {tuple(weight.shape)} ({needed_by} reads it)")
    if tuple(array.shape) != tuple(weight.shape):
        raise InputError(f"{name}: got shape {tuple(array.shape)}, want {tuple(weight.shape)}")
    return array


@register(kind="score", source="none", example=lambda: Magnitude())
@dataclass(frozen=True)
class Magnitude:
    """``|w|``."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        return abs(weight)


@register(kind="score", source="arXiv:1911.11134", example=lambda: Gradient())
@dataclass(frozen=True)
class Gradient:
    """``|g|``, the size of the dense gradient: how fast the loss would fall if the entry were free."""

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        return abs(_like("gradient", gradient, weight, "the score Gradient"))


@register(kind="score", source="arXiv:1810.02340", example=lambda: Saliency())
@dataclass(frozen=True)
class Saliency:
    """``|w g|``, the first-order change of the loss when the entry goes. Lee et al. (2019), equation 5."""

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        return abs(weight * _like("gradient", gradient, weight, "the score Saliency"))


@register(kind="score", source="arXiv:1907.04840", example=lambda: Momentum())
@dataclass(frozen=True)
class Momentum:
    """``|m|``, the size of the optimiser's running gradient ``state["momentum"]``. Dettmers, Zettlemoyer (2019)."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        momentum = None if state is None else state.get("momentum")
        return abs(_like('state["momentum"]', momentum, weight, "the score Momentum"))


@register(kind="score", source="arXiv:1707.04780", example=lambda: Random())
@dataclass(frozen=True)
class Random:
    """Uniform on ``[0, 1)``: a new draw for each ``state["name"]`` and ``state["step"]``, the same on every machine.

    Without a state the draw depends on the seed and the shape alone.
    """

    seed: int = 0

    def __post_init__(self):
        check_integer("seed", self.seed, at_least=0)

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        state = state or {}
        stream = rng(self.seed, "score", state.get("name", ""), state.get("step", 0))
        drawn = stream.random(tuple(weight.shape), dtype="float32")
        if is_torch(weight):
            return namespace(weight).from_numpy(drawn).to(weight.device)
        return drawn

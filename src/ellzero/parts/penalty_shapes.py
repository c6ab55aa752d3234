"""What penalties share: the checks of their arguments, weights, equality, and the frame of a separable penalty.

Lives here: ``Value``, ``Separable`` and the checks. Does not live here: any formula of a penalty.
A separable penalty is given by four functions of the magnitude |w|; signs, weights, positivity, infinities
and broadcasting are handled here, once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice
from ellzero.parts.namespace import floating, is_torch, like, namespace, unwrap

__all__ = ["Separable", "Value", "check_penalty", "check_step", "frozen_weights", "scaled"]


def frozen_weights(name: str, weights: Any) -> Any:
    """Weights as a read-only float64 array (a tensor stays one): at least 0, infinity allowed, NaN refused."""
    if is_torch(weights):
        kept = check_array(name, weights, finite=False, dtypes="fiu").detach().clone()
        low = float(kept.min())
    else:
        try:
            kept = np.array(weights, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: got {type(weights).__name__}, want numbers at least 0") from error
        check_array(name, kept, finite=False)
        kept.setflags(write=False)
        low = float(kept.min())
    if not low >= 0:  # also catches NaN, which min() passes on
        raise InputError(f"{name}: got {low}, want numbers at least 0 (0: unpenalised, infinity: excluded)")
    return kept


def check_penalty(penalty: Any) -> None:
    """The checks that every penalty with ``alpha`` needs: finite and at least 0, sound weights, a boolean sign rule."""
    check("alpha", penalty.alpha, at_least=0, below=math.inf)
    names = {field.name for field in fields(penalty)}
    for name in names & {"weights", "feature_weights"}:
        if getattr(penalty, name) is not None:
            object.__setattr__(penalty, name, frozen_weights(name, getattr(penalty, name)))
    if "positive" in names:
        check_choice("positive", penalty.positive, (False, True))


def check_step(step: Any) -> Any:
    """Return ``step`` if every entry is finite and at least 0."""
    if isinstance(step, int | float | np.number):
        return check("step", step, at_least=0, below=math.inf)
    check_array("step", step, dtypes="fiu", allow_empty=True)
    if bool((step < 0).any()):
        raise InputError(f"step: got {float(step.min())}, want numbers at least 0")
    return step


def scaled(x: Any, step: Any, weights: Any) -> tuple[Any, Any]:
    """``step * weights`` beside ``x``, and where the weight is infinite (``None`` if nowhere can be)."""
    step = like(x, check_step(step))
    if weights is None:
        return step, None
    weights = like(x, weights)
    xp = namespace(x)
    excluded = xp.isinf(weights)
    try:
        np.broadcast_shapes(tuple(x.shape), tuple(step.shape), tuple(weights.shape))
    except ValueError as error:
        shapes = f"{tuple(weights.shape)} beside x {tuple(x.shape)} and step {tuple(step.shape)}"
        raise InputError(f"weights: got shape {shapes}, want shapes that broadcast") from error
    return step * xp.where(excluded, xp.zeros_like(weights), weights), excluded


class Value:
    """Equality by content, arrays included; arrays do not compare to one truth value, so dataclasses cannot."""

    def _content(self) -> tuple:
        def plain(value: Any) -> Any:
            if is_torch(value):
                value = value.cpu().numpy()
            return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value

        return tuple(plain(getattr(self, field.name)) for field in fields(self))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self), self._content()))


class Separable(Value, ABC):
    """A sum over coordinates of ``weight * p(|w|)``, with p rising from p(0) = 0; the frame of a scalar penalty.

    ``weights`` broadcast against the input: 0 leaves a coordinate unpenalised, infinity excludes it (its coefficient
    is 0). Weights given in a call take the place of the field's. With ``positive`` a coordinate below zero costs
    infinity. The prox is the global minimiser for every step; a draw goes to the smaller magnitude.
    """

    alpha: float
    weights: Any
    positive: bool

    @abstractmethod
    def _each(self, size: Any) -> Any:
        """p at magnitudes."""

    @abstractmethod
    def _prox(self, size: Any, step: Any) -> Any:
        """The minimiser's magnitude at finite magnitudes."""

    @abstractmethod
    def _slope(self, size: Any) -> Any:
        """The derivative of p at magnitudes above zero."""

    @abstractmethod
    def _kink(self) -> float:
        """The derivative of p at 0+."""

    @property
    @abstractmethod
    def compiled(self) -> tuple[str, tuple[float, ...]]:
        """Name and parameters of the compiled twin; weights and positivity are arguments of the kernel."""

    def _alpha_at(self, kink: float) -> float:
        """The alpha at which the derivative at 0+ is ``kink``, where that is alpha times a constant."""
        unit = self._unit_kink()
        return kink / unit if unit > 0 else (math.inf if kink > 0 else 0.0)

    def _unit_kink(self) -> float:
        return 1.0

    def each(self, x: Any, weights: Any = None) -> Any:
        """The penalty of each coordinate, in the shape of ``x``."""
        x = floating("x", x)
        xp = namespace(x)
        cost = self._each(abs(x))
        weights = self._weights(weights)
        if weights is not None:
            scale, excluded = scaled(x, 1.0, weights)
            cost = xp.where(excluded & (x != 0), math.inf, scale * cost)
        if self.positive:
            cost = xp.where(x < 0, math.inf, cost)
        return unwrap(cost)

    def value(self, x: Any, weights: Any = None) -> Any:
        """The penalty of all coordinates together."""
        return self.each(x, weights).sum()

    def prox(self, x: Any, step: Any, weights: Any = None) -> Any:
        """The global minimiser over w of ``0.5 (w - x)^2 + step * weight * p(|w|)``, for each coordinate.

        ``step`` (at least 0) and ``weights`` are numbers or arrays that broadcast against ``x``; dtype and device
        follow ``x``. NaN stays NaN, infinity stays infinity.
        """
        x = floating("x", x)
        xp = namespace(x)
        scale, excluded = scaled(x, step, self._weights(weights))
        finite = xp.isfinite(x)
        size = xp.where(finite, abs(x), xp.zeros_like(x))
        size = xp.where(scale == 0, size, self._prox(size, scale))
        w = xp.where(finite, xp.where(x < 0, -size, size) + 0.0, x)  # + 0.0 turns -0.0 into 0.0
        if self.positive:
            w = xp.where(x <= 0, xp.zeros_like(w), w)
        if excluded is not None:
            w = xp.where(excluded, xp.zeros_like(w), w)
        return unwrap(w)

    def subdifferential_distance(self, w: Any, gradient: Any, weights: Any = None) -> Any:
        """How far ``-gradient`` is from the subdifferential at ``w``, per coordinate; 0 where w is stationary."""
        w, gradient = floating("w", w), floating("gradient", gradient)
        xp = namespace(w)
        weights = self._weights(weights)
        ones = xp.ones_like(w)
        scale, excluded = (ones, None) if weights is None else scaled(w, ones, weights)
        size, zero, free = abs(w), w == 0, scale == 0
        slope = scale * self._slope(xp.where(zero, ones, size))
        at_zero = xp.where(free, xp.zeros_like(w), xp.where(free, ones, scale) * self._kink())
        outward = -gradient if self.positive else abs(gradient)
        far = xp.where(zero, xp.clip(outward - at_zero, 0, None), abs(gradient + xp.sign(w) * slope))
        if self.positive:
            far = xp.where(w < 0, math.inf, far)
        if excluded is not None:
            far = xp.where(excluded, xp.where(zero, 0.0, math.inf), far)
        return unwrap(like(w, far))

    def alpha_max(self, gradient: Any, weights: Any = None) -> float:
        """The smallest ``alpha`` at which w = 0 is stationary, from the datafit's gradient at zero.

        Unpenalised coordinates do not count (fit them first), nor do excluded ones.
        """
        gradient = floating("gradient", gradient)
        xp = namespace(gradient)
        pull = xp.clip(-gradient, 0, None) if self.positive else abs(gradient)
        weights = self._weights(weights)
        if weights is not None:
            scale, _ = scaled(gradient, 1.0, weights)  # 0 where unpenalised or excluded
            pull = xp.where(scale > 0, pull / xp.where(scale > 0, scale, xp.ones_like(scale)), 0.0)
        return self._alpha_at(float(pull.max()) if math.prod(pull.shape) else 0.0)

    def support(self, w: Any) -> Any:
        """Where ``w`` is not zero."""
        return w != 0

    def _weights(self, given: Any) -> Any:
        return self.weights if given is None else frozen_weights("weights", given)

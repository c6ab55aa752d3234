"""A penalty as a kink and a smooth rest: ``p(w) = p'(0+) |w| + rest(w)``.

Lives here: ``split`` and the ``Rest`` it gives. Does not live here: the penalties (``penalties``), nor the solvers that
add the rest to a datafit so that soft thresholding alone serves MCP and SCAD (``solvers.first_order``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ellzero.errors import InputError
from ellzero.parts.namespace import floating, namespace, unwrap
from ellzero.parts.penalties import L1
from ellzero.parts.penalty_shapes import Separable, scaled

__all__ = ["Rest", "split"]

_BENDS = {  # the largest |p''| beyond zero, by the name and parameters of the compiled twin
    "L1": lambda alpha: 0.0,
    "ElasticNet": lambda alpha, l1_ratio: alpha * (1 - l1_ratio),
    "MCP": lambda alpha, gamma: 1 / gamma,
    "SCAD": lambda alpha, gamma: 1 / (gamma - 1),
    "LogSum": lambda alpha, epsilon: alpha / epsilon**2,
    "CEL0": lambda alpha, norm: norm**2,
}


@dataclass(frozen=True)
class Rest:
    """``sum_j weight_j (p(|w_j|) - p'(0+) |w_j|)``: differentiable everywhere, concave for MCP and SCAD."""

    penalty: Separable
    kink: L1
    bend: float

    def value(self, w: Any) -> Any:
        """The penalty less its kink, summed; 0 for what is excluded."""
        return self._weighed(w, self.penalty._each(abs(w)) - self.kink.alpha * abs(w)).sum()

    def gradient(self, w: Any) -> Any:
        """The derivative by each coordinate, in the shape of ``w``; 0 at 0."""
        w = floating("w", w)
        xp = namespace(w)
        zero = w == 0
        slope = self.penalty._slope(xp.where(zero, xp.ones_like(w), abs(w))) - self.kink.alpha
        return unwrap(self._weighed(w, xp.where(zero, xp.zeros_like(w), xp.sign(w) * slope)))

    def lipschitz(self) -> float:
        """A bound of the second derivative of every coordinate, on either side."""
        weights = self.penalty.weights
        if weights is None:
            return self.bend
        used = [float(weight) for weight in weights.reshape(-1) if math.isfinite(weight)]
        return self.bend * max(used, default=0.0)

    def _weighed(self, w: Any, each: Any) -> Any:
        return each if self.penalty.weights is None else scaled(w, 1.0, self.penalty.weights)[0] * each


def split(penalty: Any) -> tuple[L1, Rest]:
    """The L1 penalty with the same slope at zero, and what is left: ``penalty.value = kink.value + rest.value``.

    Weights and the sign rule go with the kink.

    Raises
    ------
    InputError : a penalty whose slope is not Lipschitz beyond zero (L0, Lq), or that is not separable, by name.
    """
    name, params = getattr(penalty, "compiled", None) or ("", ())
    if not isinstance(penalty, Separable) or name not in _BENDS:
        raise InputError(
            f"penalty: got {type(penalty).__name__}, which is no kink at zero and a smooth rest; want one of "
            f"{', '.join(_BENDS)}"
        )
    kink = L1(penalty._kink(), weights=penalty.weights, positive=penalty.positive)
    return kink, Rest(penalty, kink, float(_BENDS[name](*params)))

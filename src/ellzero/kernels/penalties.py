"""The compiled twins of the scalar penalties, on NumPy vectors.

Lives here: ``scalar(penalty)``, which runs a penalty's compiled loop under the penalty's own verbs. Does not live
here: the formulas (``csrc/penalties.hpp``), the plain forms (the penalties themselves, ``ellzero.parts.penalties``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.kernels._dispatch import CHOICE

__all__ = ["Scalar", "scalar"]


@dataclass(frozen=True)
class Scalar:
    """A penalty's compiled loops. Arrays of any shape in float32 or float64; contiguous ones are read in place."""

    name: str
    params: np.ndarray
    weights: Any
    positive: bool
    module: Any

    def prox(self, x: Any, step: Any, weights: Any = None) -> Any:
        """The global minimiser over w of ``0.5 (w - x)^2 + step * weight * p(w)``, for each entry."""
        x = _floating("x", x)
        step = _spread("step", step, x)
        if not (np.isfinite(step).all() and (step >= 0).all()):
            raise InputError(f"step: got {step.min()} to {step.max()}, want finite numbers at least 0")
        return self._run("prox_each", x, weights, step)

    def each(self, x: Any, weights: Any = None) -> Any:
        """The penalty of each entry."""
        return self._run("penalty_each", _floating("x", x), weights)

    def subdifferential_distance(self, w: Any, gradient: Any, weights: Any = None) -> Any:
        """How far ``-gradient`` is from the subdifferential at each entry of ``w``."""
        w = _floating("w", w)
        gradient = np.ascontiguousarray(np.broadcast_to(_floating("gradient", gradient), w.shape), w.dtype)
        return self._run("distance_each", w, weights, gradient.reshape(-1))

    def _run(self, kernel: str, x: np.ndarray, weights: Any, *middle: np.ndarray) -> Any:
        given = self.weights if weights is None else weights
        weights = np.ones(1, x.dtype) if given is None else _spread("weights", given, x)
        if not (weights >= 0).all():
            raise InputError(f"weights: got {weights.min()}, want numbers at least 0")
        out = np.empty(x.shape, x.dtype)
        flat = np.ascontiguousarray(x).reshape(-1)
        getattr(self.module, kernel)(self.name, self.params, flat, *middle, weights, self.positive, out.reshape(-1))
        return out[()]


def scalar(penalty: Any) -> Scalar:
    """The compiled twin of a penalty that names one as ``penalty.compiled``.

    Raises
    ------
    InputError
        If the penalty has none, or no compiled module is live (the penalty itself is the plain form).
    """
    twin = getattr(penalty, "compiled", None)
    if twin is None:
        raise InputError(f"penalty: got {type(penalty).__name__}, want one with a compiled twin")
    if CHOICE.module is None:
        raise InputError("penalty: no compiled module is live, want a build with the compiled kernels")
    name, params = twin
    return Scalar(name, np.array(params, dtype=np.float64), penalty.weights, penalty.positive, CHOICE.module)


def _floating(name: str, x: Any) -> np.ndarray:
    x = check_array(name, np.asarray(x), finite=False, allow_empty=True, dtypes="f")
    if x.dtype not in (np.float32, np.float64):
        raise InputError(f"{name}: got dtype {x.dtype}, want float32 or float64")
    return x


def _spread(name: str, value: Any, x: np.ndarray) -> np.ndarray:
    """One entry, or one for each of ``x``."""
    value = np.asarray(value, dtype=x.dtype)
    if value.size == 1:
        return value.reshape(1)
    try:
        return np.ascontiguousarray(np.broadcast_to(value, x.shape)).reshape(-1)
    except ValueError as error:
        raise InputError(f"{name}: got shape {value.shape}, want one that broadcasts to {x.shape}") from error

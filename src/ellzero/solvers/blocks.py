"""What a penalty takes together, coordinates or groups, and descent on some of them in Gram space.

Lives here: one face over separable and group penalties for solvers with working sets: flat weights, what is free of
penalty, distances to optimality by block, and the minimum of a quadratic plus the penalty on chosen coordinates.
Does not live here: the penalties (``parts``), designs and datafits, the choice of blocks (``prox_newton``).
Coefficients are flat: those of ``[p, outputs]`` in row order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from ellzero.errors import InputError
from ellzero.kernels.coordinate_descent import coordinate_descent
from ellzero.parts.penalties_group import L21, GroupL2
from ellzero.solvers.certificates import crossover, l1_l2
from ellzero.solvers.group_descent import group_descent
from ellzero.solvers.operators import need

__all__ = ["Blocks", "Coordinates", "Groups", "blocks"]

_SWEEPS, _MAX_SWEEPS = 20, 2000


def blocks(penalty: Any, p: int, outputs: int | None) -> Blocks:
    """The face of ``penalty`` for ``[p]`` coefficients, or ``[p, outputs]``.

    Raises
    ------
    InputError : a penalty that is neither separable nor made of groups, by the capability that it lacks.
    """
    need("proximal Newton", penalty, "alpha", "prox", "subdifferential_distance", "value")
    width = 1 if outputs is None else outputs
    if hasattr(penalty, "norms"):
        return Groups(_flat_groups(penalty, p, width), p * width)
    need("proximal Newton", penalty, "each")
    weights = getattr(penalty, "weights", None)
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape not in ((), (1,), (p,), (p, width)):
            raise InputError(f"weights: got shape {weights.shape}, want ({p},), one per column of X")
        rows = weights[:, None] if weights.ndim == 1 else weights
        penalty = replace(penalty, weights=np.broadcast_to(rows, (p, width)).reshape(-1))
    return Coordinates(penalty, p * width)


class Blocks(ABC):
    """A penalty on flat coefficients. ``free`` are the coordinates that it does not touch, of either sign."""

    penalty: Any
    free: np.ndarray

    @property
    def half_free(self) -> np.ndarray:
        """Coordinates without a price that must be at least 0."""
        return np.empty(0, dtype=np.int64)

    def at(self, alpha: float) -> Blocks:
        """The same with another ``alpha``."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.penalty = replace(self.penalty, alpha=alpha)
        return other

    @property
    def excluded(self) -> np.ndarray:
        """Where the weight is infinite."""
        return np.isinf(self.spread_weights())

    @abstractmethod
    def spread_weights(self) -> np.ndarray:
        """A weight for each coordinate."""

    @abstractmethod
    def members(self, chosen: np.ndarray) -> np.ndarray:
        """The coordinates, in order, of the chosen blocks."""

    @abstractmethod
    def used(self, coef: np.ndarray) -> np.ndarray:
        """The blocks with a coefficient that is not 0."""

    @abstractmethod
    def local(self, index: np.ndarray) -> Any:
        """The penalty of whole blocks of coordinates alone."""

    @abstractmethod
    def descend(self, gram: np.ndarray, w: np.ndarray, gradient: np.ndarray, local: Any, tol: float) -> None:
        """Minimise ``w' G w / 2 - c' w + local(w)`` in place; ``gradient`` is ``G w - c`` at the start."""


class Coordinates(Blocks):
    """A separable penalty: every coordinate is a block."""

    def __init__(self, penalty: Any, size: int):
        self.penalty, self.size = penalty, size
        bare = np.flatnonzero(self.spread_weights() == 0)
        self.free = np.empty(0, dtype=np.int64) if getattr(penalty, "positive", False) else bare
        self._half_free = bare if getattr(penalty, "positive", False) else self.free[:0]

    @property
    def half_free(self):
        return self._half_free

    def spread_weights(self):
        return np.ones(self.size) if self.penalty.weights is None else self.penalty.weights

    def members(self, chosen):
        return chosen

    def used(self, coef):
        return np.flatnonzero(coef)

    def local(self, index):
        return (
            self.penalty if self.penalty.weights is None else replace(self.penalty, weights=self.penalty.weights[index])
        )

    def descend(self, gram, w, gradient, local, tol):
        weights = local.weights
        plain = local if weights is None else replace(local, weights=None)
        strengths = l1_l2(local)
        if strengths is None:
            coordinate_descent(gram, w, gradient, plain, weights=weights, tol=tol, max_sweeps=_MAX_SWEEPS)
            return
        for round in range(8):  # a few sweeps find the signs, the exact step the values
            sweeps = min(_SWEEPS * 2**round, _MAX_SWEEPS)
            coordinate_descent(gram, w, gradient, plain, weights=weights, tol=tol, max_sweeps=sweeps)
            crossover(gram, w, gradient, strengths, weights, bool(local.positive))
            if np.max(local.subdifferential_distance(w, gradient)) <= tol:
                return


class Groups(Blocks):
    """A group penalty with a label for each coordinate."""

    def __init__(self, penalty: Any, size: int):
        self.penalty = penalty
        self.labels = np.asarray(penalty._labels(size))
        bare = self.spread_weights() == 0
        each = getattr(penalty, "feature_weights", None)
        if hasattr(penalty, "l1_ratio"):
            bare = (bare | (penalty.l1_ratio == 1)) & ((penalty.l1_ratio == 0) if each is None else each == 0)
        self.free = np.empty(0, dtype=np.int64) if penalty.positive else np.flatnonzero(bare)

    def spread_weights(self):
        count = int(self.labels.max()) + 1
        weights = np.ones(count) if self.penalty.weights is None else self.penalty.weights
        if weights.shape not in ((), (1,), (count,)):
            raise InputError(f"weights: got shape {weights.shape}, want ({count},), one per group")
        return np.broadcast_to(weights, (count,))[self.labels]

    def members(self, chosen):
        marked = np.zeros(int(self.labels.max()) + 1, dtype=bool)
        marked[chosen] = True
        return np.flatnonzero(marked[self.labels])

    def used(self, coef):
        return np.unique(self.labels[coef != 0])

    def local(self, index):
        names, labels = np.unique(self.labels[index], return_inverse=True)
        changes = {"groups": labels}
        if self.penalty.weights is not None:
            changes["weights"] = np.broadcast_to(self.penalty.weights, (int(self.labels.max()) + 1,))[names]
        if getattr(self.penalty, "feature_weights", None) is not None:
            changes["feature_weights"] = np.broadcast_to(self.penalty.feature_weights, self.labels.shape)[index]
        return replace(self.penalty, **changes)

    def descend(self, gram, w, gradient, local, tol):
        group_descent(gram, w, gradient, local, tol=tol)


def _flat_groups(penalty: Any, p: int, width: int) -> Any:
    if isinstance(penalty, L21):
        if penalty.axis not in (-1, 1):
            raise InputError(f"axis: got {penalty.axis}, want -1: a row of coefficients is what lives or dies")
        return GroupL2(penalty.alpha, width, weights=penalty.weights, positive=penalty.positive)
    if width > 1:
        raise InputError(f"penalty: got {type(penalty).__name__} for {width} outputs, want L21 or a separable penalty")
    return penalty

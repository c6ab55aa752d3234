"""Group penalties: whole groups of coordinates live or die together.

Lives here: group L2, sparse group and L21. Does not live here: the separable penalties (``penalties``) and those of a
whole matrix (``penalties_matrix``). All three are ``alpha sum_g v_g (r' |x_g|_1 + r |x_g|_2)`` and share one frame:
what a group is, is two functions, its norm and the way back to coordinates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.namespace import floating, is_torch, like, namespace
from ellzero.parts.penalty_shapes import Value, check_penalty, frozen_weights, scaled
from ellzero.registry import register

__all__ = ["L21", "GroupL2", "SparseGroup"]


class Grouped(Value, ABC):
    """``alpha sum_g (r |u * x_g|_1 + (1 - r) v_g |x_g|_2)``: the frame of the group penalties.

    ``weights`` v weigh groups: 0 leaves a group's norm free, infinity excludes the group (its coefficients are 0).
    Weights given in a call take the place of the field's. With ``positive`` a coordinate below zero costs infinity.
    """

    alpha: float
    weights: Any
    positive: bool
    compiled = None

    @abstractmethod
    def _sums(self, squares: Any) -> Any:
        """The sum of each group."""

    @abstractmethod
    def _spread(self, groups: Any, x: Any) -> Any:
        """One number per group, back in the shape of ``x``."""

    def _ratio(self) -> float:
        return 0.0

    def _feature_weights(self) -> Any:
        return None

    def norms(self, x: Any) -> Any:
        """The length of each group."""
        return _root(self._sums(floating("x", x) ** 2))

    def value(self, x: Any, weights: Any = None) -> Any:
        """The penalty of all groups together."""
        x = floating("x", x)
        xp, ratio = namespace(x), self._ratio()
        norms = self.norms(x)
        total = (1 - ratio) * self.alpha * _weighted(norms, self._weights(weights)).sum()
        if ratio:
            total = total + ratio * self.alpha * _weighted(abs(x), self._feature_weights()).sum()
        if self.positive:
            total = total + xp.where(x < 0, xp.full_like(x, float("inf")), xp.zeros_like(x)).sum()
        return total

    def prox(self, x: Any, step: Any, weights: Any = None) -> Any:
        """The minimiser over w of ``0.5 |w - x|^2 + step * penalty(w)``: the soft threshold, then shorter groups.

        ``step`` is a number or one per group (and then broadcasts against ``norms(x)``).
        """
        x = floating("x", x)
        xp, ratio = namespace(x), self._ratio()
        if self.positive:
            x = xp.clip(x, 0, None)
        if ratio:
            step_each = step if not np.ndim(step) else self._spread(like(x, step), x)
            scale, excluded = scaled(x, step_each, self._feature_weights())
            x = xp.sign(x) * xp.clip(abs(x) - ratio * self.alpha * scale, 0, None)
            x = x if excluded is None else xp.where(excluded, xp.zeros_like(x), x)
        norms = self.norms(x)
        scale, excluded = scaled(norms, step, self._weights(weights))
        threshold = (1 - ratio) * self.alpha * scale
        dead = norms <= threshold
        dead = dead if excluded is None else dead | excluded
        factor = xp.where(dead, xp.zeros_like(norms), 1 - threshold / xp.where(dead, xp.ones_like(norms), norms))
        return self._spread(factor, x) * x

    def subdifferential_distance(self, w: Any, gradient: Any, weights: Any = None) -> Any:
        """How far ``-gradient`` is from the subdifferential at ``w``, per group."""
        w, pull = floating("w", w), -floating("gradient", gradient)
        xp, ratio = namespace(w), self._ratio()
        norms = self.norms(w)
        scale, excluded = scaled(norms, 1.0, self._weights(weights))
        scale = (1 - ratio) * self.alpha * scale + xp.zeros_like(norms)
        each, gone = scaled(w, 1.0, self._feature_weights())
        each = ratio * self.alpha * each
        alive = norms > 0
        slope = self._spread(scale / xp.where(alive, norms, xp.ones_like(norms)), w) * w
        inside = xp.clip((pull if self.positive else abs(pull)) - each, 0, None)  # what the L1 part cannot hold
        far = xp.where(w == 0, inside, pull - each * xp.sign(w) - slope)
        if gone is not None:
            far = xp.where(gone, xp.where(w == 0, xp.zeros_like(w), xp.full_like(w, float("inf"))), far)
        distance = self.norms(far)
        distance = xp.where(alive, distance, xp.clip(distance - scale, 0, None))
        if self.positive:
            distance = xp.where(self._sums(like(w, w < 0)) > 0, xp.full_like(norms, float("inf")), distance)
        if excluded is not None:
            barred = xp.where(alive, xp.full_like(norms, float("inf")), xp.zeros_like(norms))
            distance = xp.where(excluded, barred, distance)
        return distance

    def alpha_max(self, gradient: Any, weights: Any = None) -> float:
        """The smallest ``alpha`` at which w = 0 is stationary, from the datafit's gradient at zero.

        With an L1 part it is the root, for each group, of ``|soft(g, alpha r u)| = alpha (1 - r) v``, by bisection.
        Groups and coordinates of weight 0 in every part do not count; nor do excluded ones.
        """
        pull = -floating("gradient", gradient)
        pull = pull.detach().cpu().numpy() if is_torch(pull) else pull
        pull = (np.clip(pull, 0, None) if self.positive else abs(pull)).astype(np.float64)
        ratio = self._ratio()
        norms = self.norms(pull)
        v, excluded = scaled(norms, 1.0, self._weights(weights))
        u, gone = scaled(pull, 1.0, self._feature_weights())
        v, u = np.broadcast_to(v, norms.shape), np.broadcast_to(u, pull.shape)
        pull = pull if gone is None else np.where(gone, 0.0, pull)
        if ratio:  # the coordinates that nothing holds cannot count
            pull = np.where((u == 0) & (self._spread(v, pull) * (1 - ratio) == 0), 0.0, pull)
        counted = (v > 0) | (ratio > 0) if excluded is None else ((v > 0) | (ratio > 0)) & ~excluded
        norms = np.where(counted, self.norms(pull), 0.0)
        if not norms.size or norms.max() == 0:
            return 0.0
        if not ratio:
            return float(np.max(norms / np.where(norms > 0, v, 1.0)))
        low, high = np.zeros_like(norms), np.full_like(norms, self._ceiling(pull, norms, u, v, ratio))
        for _ in range(200):
            middle = (low + high) / 2
            left = self.norms(np.clip(pull - ratio * self._spread(middle, pull) * u, 0, None))
            holds = left <= (1 - ratio) * middle * v
            low, high = np.where(holds, low, middle), np.where(holds, middle, high)
        return float(np.where(norms > 0, high, 0.0).max())

    @staticmethod
    def _ceiling(pull: Any, norms: Any, u: Any, v: Any, ratio: float) -> float:
        """An alpha that holds every group: the L1 part alone where it can, else the norm alone."""
        by_l1 = (pull[u > 0] / u[u > 0]).max(initial=0.0) / ratio
        by_norm = (norms[v > 0] / v[v > 0]).max(initial=0.0) / (1 - ratio) if ratio < 1 else 0.0
        return by_l1 + by_norm

    def support(self, w: Any) -> Any:
        """Where ``w`` is not zero."""
        return w != 0

    def _weights(self, given: Any) -> Any:
        return self.weights if given is None else frozen_weights("weights", given)


class Labelled(Grouped):
    """Groups of the last axis, by a label for each coordinate or by one size for all groups."""

    groups: Any

    def _labels(self, width: int) -> np.ndarray:
        if isinstance(self.groups, int):
            if width % self.groups:
                raise InputError(f"x: got {width} on the last axis, want a multiple of the group size {self.groups}")
            return np.arange(width) // self.groups
        if len(self.groups) != width:
            raise InputError(f"x: got {width} on the last axis, want {len(self.groups)}, the length of groups")
        return self.groups

    def _sums(self, squares: Any) -> Any:
        labels = self._labels(squares.shape[-1])
        count = int(labels.max()) + 1 if labels.size else 0
        if is_torch(squares):
            index = like(squares, labels).long()
            return squares.new_zeros((*squares.shape[:-1], count)).index_add(-1, index, squares)
        if not count:
            return np.zeros(squares.shape, squares.dtype)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(count))
        return np.add.reduceat(squares[..., order], starts, axis=-1)

    def _spread(self, groups: Any, x: Any) -> Any:
        labels = self._labels(x.shape[-1])
        if not is_torch(groups):
            return groups[..., labels]
        return groups[..., like(groups, labels).long()]


@register(kind="group_penalty", source="Yuan and Lin (2006)", example=lambda: GroupL2(1.0, 2))
@dataclass(frozen=True, eq=False)
class GroupL2(Labelled):
    """``alpha sum_g v_g |x_g|_2`` over groups of the last axis; the prox shortens each group by ``s alpha v_g``.

    ``groups`` is one label 0 .. G-1 for each coordinate, or an integer: the size of adjacent groups. Yuan and Lin
    (2006), who weigh a group by the square root of its size; here ``weights`` are 1 unless given.
    """

    alpha: float
    groups: Any
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        object.__setattr__(self, "groups", _checked_groups(self.groups))


@register(kind="group_penalty", source="Simon et al. (2013)", example=lambda: SparseGroup(1.0, 2, 0.5))
@dataclass(frozen=True, eq=False)
class SparseGroup(Labelled):
    """``alpha (r sum_j u_j |x_j| + (1 - r) sum_g v_g |x_g|_2)`` with r = ``l1_ratio``: sparse groups, sparse inside.

    The prox is the soft threshold followed by the group's. ``weights`` v weigh the groups' norms,
    ``feature_weights`` u the coordinates. Simon et al. (2013), equation 1.
    """

    alpha: float
    groups: Any
    l1_ratio: float = 0.5
    weights: Any = None
    feature_weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("l1_ratio", self.l1_ratio, at_least=0, at_most=1)
        object.__setattr__(self, "groups", _checked_groups(self.groups))

    def _ratio(self):
        return self.l1_ratio

    def _feature_weights(self):
        return self.feature_weights


@register(kind="group_penalty", source="Obozinski, Taskar and Jordan (2010)", example=lambda: L21(1.0))
@dataclass(frozen=True, eq=False)
class L21(Grouped):
    """``alpha sum_i v_i |X_i|_2`` over the slices of an array along ``axis``: rows of a matrix for axis -1.

    Rows live or die in all tasks together. ``weights`` broadcast against ``x`` without that axis.
    Obozinski, Taskar and Jordan (2010).
    """

    alpha: float
    weights: Any = None
    positive: bool = False
    axis: int = -1

    def __post_init__(self):
        check_penalty(self)
        check_integer("axis", self.axis)

    def _sums(self, squares):
        if not -squares.ndim <= self.axis < squares.ndim:
            raise InputError(
                f"axis: got {self.axis} for an array of shape {tuple(squares.shape)}, want one of its axes"
            )
        return squares.sum(self.axis)

    def _spread(self, groups, x):
        return namespace(groups).moveaxis(groups[..., None], -1, self.axis)


def _checked_groups(groups: Any) -> Any:
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        return check_integer("groups", groups, at_least=1)
    labels = np.array(groups.detach().cpu() if is_torch(groups) else groups)
    check_array("groups", labels, ndim=1, dtypes="iu")
    missing = np.setdiff1d(np.arange(labels.max() + 1), labels)
    if labels.min() < 0 or missing.size:
        wrong = f"no coordinate labelled {missing[0]}" if missing.size else f"the label {labels.min()}"
        raise InputError(f"groups: got {wrong}, want labels 0 .. {labels.max()}, each in use")
    labels.setflags(write=False)
    return labels


def _root(squares: Any) -> Any:
    """The square root, with derivative 0 at 0 under autograd."""
    xp = namespace(squares)
    zero = squares == 0
    return xp.where(zero, xp.zeros_like(squares), xp.where(zero, xp.ones_like(squares), squares) ** 0.5)


def _weighted(sizes: Any, weights: Any) -> Any:
    if weights is None:
        return sizes
    xp = namespace(sizes)
    scale, excluded = scaled(sizes, 1.0, weights)
    return xp.where(excluded & (sizes > 0), xp.full_like(sizes, float("inf")), scale * sizes)

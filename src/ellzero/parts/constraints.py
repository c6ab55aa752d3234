"""Constraints: which entries are kept. Selection by count or by threshold; the maps onto the simplex.

Lives here: frozen values with ``support(scores)`` (a boolean array, exactly the promised count) and ``project(x)``.
Does not live here: what the derivative sees (``gradients``), how many to keep where (``allocations``), scores.
Written once for NumPy and torch with identical supports: any axis, ties to the lowest index, k = 0 and k = n legal,
rows of ``-inf`` and empty arrays legal, NaN refused. ``support`` goes by the score; ``project`` is the nearest point
of the set, so it keeps the largest *magnitudes* (of entries, or of blocks): ``x`` where ``support(abs(x))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.parts.namespace import is_torch, like, namespace
from ellzero.parts.selection import check_axis, check_scores, largest, largest_of_all
from ellzero.parts.simplex import Entmax, Simplex
from ellzero.registry import register
from ellzero.rng import rng

__all__ = [
    "NM", "BatchTopK", "Block", "Entmax", "FanIn", "FeatureTopK", "RandomSupport", "Simplex", "Threshold", "TopK",
]  # fmt: skip


class _Selection:
    """What every selection shares: the projection keeps the support of the magnitudes."""

    def project(self, x: Any) -> Any:
        """The nearest point of the set: ``x`` where ``support(abs(x))``, else zero."""
        check_scores("x", x)
        return namespace(x).where(self.support(abs(x.detach() if is_torch(x) else x)), x, like(x, 0.0))


def _check_k(k: int, size: int, of: str) -> None:
    if k > size:
        raise InputError(f"k: got {k}, want at most {size}, the number of {of}")


@register(kind="constraint", source="arXiv:1312.5663", example=lambda: TopK(2))
@dataclass(frozen=True)
class TopK(_Selection):
    """The ``k`` largest scores of each row: ``argmax_{|S| = k} sum_{i in S} score_i``. Makhzani and Frey (2013).

    A row is a line along ``axis``.
    """

    k: int
    axis: int = -1

    def __post_init__(self):
        check_integer("k", self.k, at_least=0)
        check_integer("axis", self.axis)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k`` true per row."""
        rows, back = _lines(scores, self.axis)
        _check_k(self.k, rows.shape[-1], f"entries along axis {self.axis}")
        return back(largest(rows, self.k))


@register(kind="constraint", source="arXiv:2412.06410", example=lambda: BatchTopK(2))
@dataclass(frozen=True)
class BatchTopK(_Selection):
    """The ``k * rows`` largest scores of the whole batch: k per row on average. Bussmann et al. (2024).

    Rows are the lines along ``axis``; a draw goes to the entry that comes first in the array.
    """

    k: int
    axis: int = -1

    def __post_init__(self):
        check_integer("k", self.k, at_least=0)
        check_integer("axis", self.axis)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k * rows`` true in all."""
        check_scores("scores", scores)
        n = scores.shape[check_axis(self.axis, scores.ndim)]
        _check_k(self.k, n, f"entries along axis {self.axis}")
        rows = math.prod(scores.shape) // n if n else 0
        return largest_of_all(scores, self.k * rows)


@register(kind="constraint", source="arXiv:2411.02124", example=lambda: FeatureTopK(1))
@dataclass(frozen=True)
class FeatureTopK(_Selection):
    """For each feature (index along ``axis``) the ``k`` largest scores over the batch. Ayonrinde (2024).

    The batch is all other axes together. ``k`` may be a sequence, one count per feature.
    """

    k: int | Sequence[int]
    axis: int = -1

    def __post_init__(self):
        check_integer("axis", self.axis)
        if isinstance(self.k, Sequence | np.ndarray):
            counts = tuple(check_integer("k", int(k) if isinstance(k, np.integer) else k, at_least=0) for k in self.k)
            object.__setattr__(self, "k", counts)
        else:
            check_integer("k", self.k, at_least=0)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k`` true per feature."""
        check_scores("scores", scores)
        moved = namespace(scores).moveaxis(scores, check_axis(self.axis, scores.ndim), 0)
        features, batch = moved.shape[0], math.prod(moved.shape[1:])
        if isinstance(self.k, tuple) and len(self.k) != features:
            raise InputError(f"k: got {len(self.k)} counts, want {features}, one per feature")
        top = max(self.k, default=0) if isinstance(self.k, tuple) else self.k
        _check_k(top, batch, "entries per feature")
        kept = largest(moved.reshape(features, batch), self.k)
        return namespace(scores).moveaxis(kept.reshape(moved.shape), 0, self.axis)


@register(kind="constraint", source="arXiv:2305.02299", example=lambda: FanIn(1))
@dataclass(frozen=True)
class FanIn(_Selection):
    """The same fan-in everywhere: each unit (index along ``axis``) keeps its ``k`` largest inputs. Lasby et al. (2023).

    The inputs are all other axes together, so a convolution's weight ``[out, in, h, w]`` has ``in * h * w``.
    """

    k: int
    axis: int = 0

    def __post_init__(self):
        check_integer("k", self.k, at_least=0)
        check_integer("axis", self.axis)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k`` true per unit."""
        return FeatureTopK(self.k, self.axis).support(scores)


@register(kind="constraint", source="arXiv:2407.14435", example=lambda: Threshold(0.5))
@dataclass(frozen=True, eq=False)
class Threshold(_Selection):
    """The scores strictly above ``threshold``, a number or an array that broadcasts. The JumpReLU's support.

    Not a count: nothing is promised about how many. Rajamanoharan et al. (2024).
    """

    threshold: Any = 0.0

    def __post_init__(self):
        if hasattr(self.threshold, "shape"):
            check_scores("threshold", self.threshold, scalars=True)
        else:
            check("threshold", self.threshold)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``."""
        check_scores("scores", scores)
        bound = self.threshold.detach() if is_torch(self.threshold) else self.threshold
        try:
            kept = scores > (like(scores, bound) if hasattr(bound, "shape") else bound)
        except (ValueError, RuntimeError):
            kept = None
        if kept is None or kept.shape != scores.shape:
            raise InputError(
                f"threshold: got shape {tuple(np.shape(bound))}, want one that broadcasts to {tuple(scores.shape)}"
            )
        return kept


@register(kind="constraint", source="arXiv:2104.08378", example=lambda: NM(2, 4))
@dataclass(frozen=True)
class NM(_Selection):
    """``n`` of every ``m`` consecutive entries along ``axis``. Mishra et al. (2021), where n:m is 2:4."""

    n: int
    m: int
    axis: int = -1

    def __post_init__(self):
        check_integer("m", self.m, at_least=1)
        check_integer("n", self.n, at_least=0, at_most=self.m)
        check_integer("axis", self.axis)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``n`` true in each group."""
        rows, back = _lines(scores, self.axis)
        size = rows.shape[-1]
        if size % self.m:
            raise InputError(f"scores: got {size} entries along axis {self.axis}, want a multiple of m = {self.m}")
        groups = rows.reshape(*rows.shape[:-1], size // self.m, self.m)
        return back(largest(groups, self.n).reshape(rows.shape))


@register(kind="constraint", source="arXiv:1711.02782", example=lambda: Block(1, (2, 2)))
@dataclass(frozen=True)
class Block(_Selection):
    """The ``k`` blocks with the largest sum of scores; a block is kept or dropped whole. Narang et al. (2017).

    ``shape`` tiles the trailing axes (or those in ``axes``), whose sizes must be multiples of it; ``k`` counts the
    blocks kept per index of the other axes. The projection goes by each block's sum of squares.
    """

    k: int
    shape: int | tuple[int, ...]
    axes: int | tuple[int, ...] | None = None

    def __post_init__(self):
        check_integer("k", self.k, at_least=0)
        shape = self.shape if isinstance(self.shape, tuple | list) else (self.shape,)
        object.__setattr__(self, "shape", tuple(check_integer("shape", side, at_least=1) for side in shape))
        axes = tuple(range(-len(shape), 0)) if self.axes is None else self.axes
        axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
        object.__setattr__(self, "axes", tuple(check_integer("axes", axis) for axis in axes))
        if len(self.axes) != len(self.shape):
            raise InputError(f"axes: got {len(self.axes)} axes, want {len(self.shape)}, one per side of the block")

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k`` blocks true."""
        check_scores("scores", scores)
        xp, axes = namespace(scores), [check_axis(axis, scores.ndim, "axes") for axis in self.axes]
        if len(set(axes)) != len(axes):
            raise InputError(f"axes: got {self.axes}, want different axes")
        ends = list(range(-len(axes), 0))
        moved = xp.moveaxis(scores, axes, ends)
        tiles = self._tiles(moved)
        lead = moved.ndim - len(axes)
        with np.errstate(invalid="ignore"):
            sums = check_scores("scores (summed by block)", tiles.sum(tuple(range(lead + 1, tiles.ndim, 2))))
        count = math.prod(sums.shape[lead:])
        _check_k(self.k, count, "blocks")
        kept = largest(sums.reshape(*sums.shape[:lead], count), self.k).reshape(sums.shape)
        for position in range(len(axes)):
            kept = kept[(slice(None),) * (lead + 2 * position + 1) + (None,)]
        full = xp.broadcast_to(kept, tiles.shape).reshape(moved.shape)
        return xp.moveaxis(full, ends, axes)

    def project(self, x: Any) -> Any:
        """The nearest point of the set: the ``k`` blocks of largest norm, the others zero."""
        check_scores("x", x)
        size = abs(x.detach() if is_torch(x) else x)
        top = size.max() if math.prod(x.shape) else 1.0
        scaled = size / top if 0 < top < math.inf else size  # so that no square leaves the range of the dtype
        return namespace(x).where(self.support(scaled**2), x, like(x, 0.0))

    def _tiles(self, moved: Any) -> Any:
        """``[..., blocks, side, blocks, side]``."""
        lead = moved.ndim - len(self.shape)
        split = []
        for size, side, axis in zip(moved.shape[lead:], self.shape, self.axes):
            if size % side:
                raise InputError(f"scores: got {size} entries along axis {axis}, want a multiple of {side}")
            split += [size // side, side]
        return moved.reshape(*moved.shape[:lead], *split)


@register(kind="constraint", source="none", example=lambda: RandomSupport(1))
@dataclass(frozen=True)
class RandomSupport(_Selection):
    """``k`` of each row at random, whatever the scores: the control that every selection must beat.

    The draw depends on the seed and the shape alone, so it is the same in NumPy and torch, and on every device.
    """

    k: int
    axis: int = -1
    seed: int = 0

    def __post_init__(self):
        check_integer("k", self.k, at_least=0)
        check_integer("axis", self.axis)
        check_integer("seed", self.seed, at_least=0)

    def support(self, scores: Any) -> Any:
        """Boolean, shaped like ``scores``, with exactly ``k`` true per row."""
        check_scores("scores", scores)
        drawn = rng(self.seed, "support", *scores.shape).random(tuple(scores.shape))
        kept = TopK(self.k, self.axis).support(drawn)
        return namespace(scores).as_tensor(kept, device=scores.device) if is_torch(scores) else kept


def _lines(scores: Any, axis: int) -> tuple[Any, Any]:
    """The array with ``axis`` moved last, and the way back."""
    check_scores("scores", scores)
    xp, place = namespace(scores), check_axis(axis, scores.ndim)
    return xp.moveaxis(scores, place, -1), lambda kept: xp.moveaxis(kept, -1, place)

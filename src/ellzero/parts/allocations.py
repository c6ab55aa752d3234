"""Allocations: how one budget of kept weights is spread over layers.

Lives here: frozen values with ``densities(shapes, density, scores)`` and the exact ``counts`` that follow from them.
Does not live here: which entries of a layer are kept, or when. ``shapes`` maps names to shapes, the output axis first;
``density`` is the kept fraction of all entries together. Counts are whole numbers that repeat on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check
from ellzero.registry import register

__all__ = ["ER", "ERK", "Balanced", "Deviation", "ERKPlus", "FromScores", "Global", "Pyramidal", "Uniform",
           "kept_count", "shared_out"]  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]


def kept_count(numel: int, density: float) -> int:
    """``numel - floor((1 - density) * numel)``, with products that are whole but for rounding taken as whole.

    In floating point ``10 - floor((1 - 0.1) * 10)`` hits or misses 1 by one bit; here ``kept_count(10, 0.1) == 1``.
    """
    check("density", density, at_least=0, at_most=1)
    kept = density * numel
    whole = round(kept)
    return whole if abs(kept - whole) <= 1e-12 * max(1.0, kept) else math.ceil(kept)


def _sizes(shapes: Shapes) -> dict[str, int]:
    if not shapes:
        raise InputError("shapes: got none, want at least one layer")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, size in sizes.items():
        if size == 0 or len(shapes[name]) == 0:
            raise InputError(f"shapes: {name!r} has shape {tuple(shapes[name])}, want at least one axis and one entry")
    return sizes


def _scaled(raw: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, float]:
    """Densities ``min(1, eps * raw)`` whose entries sum to the budget.

    A layer that would pass 1 is pinned dense, and ``eps`` is solved again over the rest; ``eps`` only grows, so a
    pinned layer stays pinned.
    """
    budget = density * sum(sizes.values())
    pinned: set[str] = set()
    while True:
        free = [name for name in sizes if name not in pinned]
        weight = sum(raw[name] * sizes[name] for name in free)
        left = budget - sum(sizes[name] for name in pinned)
        eps = left / weight if weight > 0 else 0.0
        over = [name for name in free if eps * raw[name] > 1]
        if not over:
            if weight == 0 and free and left > 0:  # nothing distinguishes the rest: the same density in each
                even = left / sum(sizes[name] for name in free)
                return {name: 1.0 if name in pinned else even for name in sizes}
            return {name: 1.0 if name in pinned else eps * raw[name] for name in sizes}
        pinned.update(over)


def _rounded(densities: Mapping[str, float], sizes: Mapping[str, int], density: float) -> dict[str, int]:
    """Whole counts within one of ``densities * sizes`` whose sum is exact: largest remainders, earliest layer first."""
    exact = {name: densities[name] * sizes[name] for name in sizes}
    counts = {name: min(math.floor(value + 1e-9), sizes[name]) for name, value in exact.items()}
    missing = kept_count(sum(sizes.values()), density) - sum(counts.values())
    order = sorted(sizes, key=lambda name: -round(exact[name] - counts[name], 9))
    for name in [name for name in order if counts[name] < sizes[name]][: max(missing, 0)]:
        counts[name] += 1
    return counts


def shared_out(total: int, weight: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """``total`` in whole numbers in proportion to the weights, at most ``room`` each, and the rest again.

    The sum is ``total``, or all the room there is. Where the weights left are all zero, in proportion to the room.
    """
    open_ = {name: size for name, size in room.items() if size}
    if not open_:
        return dict.fromkeys(room, 0)
    share, most = min(total / sum(open_.values()), 1.0), max(weight[name] for name in open_)
    raw = {name: weight[name] / most / size if most > 0 else 0.0 for name, size in open_.items()}
    return {**dict.fromkeys(room, 0), **_rounded(_scaled(raw, open_, share), open_, share)}


@register(kind="allocation", source="none", example=lambda: Uniform())
@dataclass(frozen=True)
class Uniform:
    """The same density in every layer: ``k = numel - floor(sparsity * numel)`` in each.

    Each layer is rounded up on its own, so the total passes the budget by less than one entry per layer.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        check("density", density, at_least=0, at_most=1)
        return dict.fromkeys(_sizes(shapes), float(density))

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer."""
        return {name: kept_count(size, density) for name, size in _sizes(shapes).items()}


def _erdos_renyi(shapes: Shapes, density: float, axes: int | None) -> dict[str, float]:
    check("density", density, at_least=0, at_most=1)
    sizes = _sizes(shapes)
    raw = {name: sum(shape[:axes]) / math.prod(shape[:axes]) for name, shape in shapes.items()}
    return _scaled(raw, sizes, density)


@register(kind="allocation", source="arXiv:1707.04780", example=lambda: ER())
@dataclass(frozen=True)
class ER:
    """Erdos-Renyi: density proportional to ``(n_out + n_in) / (n_out n_in)``. Mocanu et al. (2018), equation 3.

    The kernel axes of a convolution are left out. Layers that would pass 1 are dense and the rest is solved again.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        return _erdos_renyi(shapes, density, 2)

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density), _sizes(shapes), density)


@register(kind="allocation", source="arXiv:1911.11134", example=lambda: ERK())
@dataclass(frozen=True)
class ERK:
    """Erdos-Renyi with kernels: density proportional to the sum of all axes over their product. Evci et al. (2020).

    Layers that would pass 1 are dense and the rest is solved again.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        return _erdos_renyi(shapes, density, None)

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density), _sizes(shapes), density)


@register(kind="allocation", source="arXiv:2202.02643", example=lambda: ERKPlus())
@dataclass(frozen=True)
class ERKPlus:
    """``ERK`` with the last layer dense and the rest solved again. Liu et al. (2022), section 3.2.

    Where the budget is less than twice the last layer, plain ``ERK``.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        found, sizes = ERK().densities(shapes, density), _sizes(shapes)
        last, total = list(sizes)[-1], sum(sizes.values())
        if len(sizes) == 1 or density * total < 2 * sizes[last]:
            return found
        rest = {name: shape for name, shape in shapes.items() if name != last}
        left = (density * total - sizes[last]) / (total - sizes[last])
        return {**ERK().densities(rest, min(max(left, 0.0), 1.0)), last: 1.0}

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density), _sizes(shapes), density)


def _with_an_entry_per_output(solve: Callable[[Shapes, float], dict[str, float]], shapes: Shapes, density: float):
    """Densities by ``solve(shapes, density)``, raised where a layer would keep fewer entries than it has outputs.

    Those layers are pinned at one entry per output and the rest is solved again. Where the budget is less than that in
    all layers, nothing is raised.
    """
    sizes = _sizes(shapes)
    least = {name: shape[0] / sizes[name] for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    pinned: dict[str, float] = {}
    while budget >= sum(shape[0] for shape in shapes.values()):
        rest = {name: shape for name, shape in shapes.items() if name not in pinned}
        left = budget - sum(pinned[name] * sizes[name] for name in pinned)
        if not rest:
            return pinned
        share = min(left / sum(sizes[name] for name in rest), 1.0)
        found = {**solve(rest, share), **pinned}
        under = [name for name in rest if found[name] < least[name] * (1 - 1e-12)]
        if not under:
            return {name: found[name] for name in shapes}
        pinned.update({name: least[name] for name in under})
    return solve(shapes, density)


@register(kind="allocation", source="arXiv:2210.02412", example=lambda: Balanced())
@dataclass(frozen=True)
class Balanced:
    """The same number of kept entries in every layer. Gadhikar et al. (2023).

    Layers that would pass 1 are dense and the rest is solved again. No layer keeps fewer entries than it has outputs,
    unless the budget is less than one for each output.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        check("density", density, at_least=0, at_most=1)

        def solve(shapes: Shapes, density: float) -> dict[str, float]:
            sizes = _sizes(shapes)
            return _scaled({name: 1 / size for name, size in sizes.items()}, sizes, density)

        return _with_an_entry_per_output(solve, shapes, density)

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density), _sizes(shapes), density)


@register(kind="allocation", source="arXiv:2210.02412", example=lambda: Pyramidal())
@dataclass(frozen=True)
class Pyramidal:
    """Sparser with depth: layer ``l`` keeps the fraction ``p ** l``, with one ``p`` that meets the budget.

    Gadhikar et al. (2023). Depth is the order of the shapes. A layer that would keep fewer entries than it has outputs
    keeps as many, and ``p`` is solved again over the others, unless the budget is less than one for each output.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        check("density", density, at_least=0, at_most=1)
        depths = {name: depth for depth, name in enumerate(shapes, 1)}

        def solve(shapes: Shapes, density: float) -> dict[str, float]:
            sizes = _sizes(shapes)
            low, high = 0.0, 1.0
            for _ in range(100):  # the kept share rises with p
                p = (low + high) / 2
                kept = sum(p ** depths[name] * size for name, size in sizes.items())
                low, high = (p, high) if kept < density * sum(sizes.values()) else (low, p)
            return {name: min(high ** depths[name], 1.0) for name in sizes}

        return _with_an_entry_per_output(solve, shapes, density)

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density), _sizes(shapes), density)


def _layer_scores(shapes: Shapes, scores: Mapping[str, Any] | None, needed_by: str) -> dict[str, np.ndarray]:
    if scores is None:
        raise InputError(f"scores: got None, want the scores of each layer ({needed_by} reads them)")
    found = {}
    for name, shape in shapes.items():
        if name not in scores:
            raise InputError(f"scores: {name!r} is missing, want the scores of each layer")
        array = scores[name]
        array = array.detach().float().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)
        if array.shape != tuple(shape):
            raise InputError(f"scores: {name!r} has shape {array.shape}, want {tuple(shape)}")
        if np.isnan(array).any():
            raise InputError(f"scores: {name!r} has NaN, want numbers")
        found[name] = array
    return found


@register(kind="allocation", source="arXiv:1506.02626", example=lambda: Global())
@dataclass(frozen=True)
class Global:
    """One threshold for all layers: the largest scores of the whole network stay, wherever they are.

    Ties go to the earlier layer, and within it to the lower flat index. A layer can come out empty.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        sizes = _sizes(shapes)
        return {name: count / sizes[name] for name, count in self.counts(shapes, density, scores).items()}

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        sizes = _sizes(shapes)
        found = _layer_scores(shapes, scores, "the allocation Global")
        k = kept_count(sum(sizes.values()), density)
        if k == 0:
            return dict.fromkeys(sizes, 0)
        every = np.concatenate([found[name].ravel() for name in sizes])
        threshold = np.partition(every, every.size - k)[every.size - k]
        counts = {name: int((found[name] > threshold).sum()) for name in sizes}
        left = k - sum(counts.values())
        for name in sizes:
            tied = min(int((found[name] == threshold).sum()), left)
            counts[name] += tied
            left -= tied
        return counts


@register(kind="allocation", id="S046", source="arXiv:1606.09274; arXiv:2107.12917", example=lambda: Deviation())
@dataclass(frozen=True)
class Deviation:
    """The threshold ``c sigma`` in a layer whose scores spread by ``sigma``, with one ``c`` that meets the budget.

    ``sigma`` is the root mean square of the scores: for magnitudes, the standard deviation of weights of mean 0.
    See et al. (2016), class-distribution. Ties go to the earlier layer. Gradual pruning of a perceptron: on 8 x 8
    digits at 3 % (one seed) 87.7 %, one threshold for all 92.6, one fraction 83.9; on MNIST at 2 % (three seeds) 94.1,
    94.6 and 94.2, so that the reported gap of two points is not there.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        return Global().densities(shapes, density, self._scaled(shapes, scores))

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return Global().counts(shapes, density, self._scaled(shapes, scores))

    def _scaled(self, shapes: Shapes, scores: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        _sizes(shapes)
        found = {}
        for name, array in _layer_scores(shapes, scores, "the allocation Deviation").items():
            array = array.astype(np.float64)
            open_ = array[np.isfinite(array)]  # -inf marks entries that are closed
            sigma = math.sqrt(float(np.mean(open_**2))) if open_.size else 0.0
            found[name] = array / sigma if sigma > 0 else array
        return found


@register(kind="allocation", source="arXiv:1907.04840", example=lambda: FromScores())
@dataclass(frozen=True)
class FromScores:
    """Density proportional to the mean score of the layer, as sparse momentum spreads its weights.

    Dettmers and Zettlemoyer (2019), section 3. Scores are non-negative; layers that would pass 1 are dense and the
    rest is solved again.
    """

    def densities(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, float]:
        """The kept fraction of each layer."""
        check("density", density, at_least=0, at_most=1)
        sizes = _sizes(shapes)
        raw = {}
        for name, array in _layer_scores(shapes, scores, "the allocation FromScores").items():
            raw[name] = float(array.mean(dtype=np.float64))
            if not (array >= 0).all() or not math.isfinite(raw[name]):
                raise InputError(f"scores: {name!r} has negative or infinite scores, want finite numbers at least 0")
        return _scaled(raw, sizes, density)

    def counts(self, shapes: Shapes, density: float, scores: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The kept entries of each layer; their sum is exact."""
        return _rounded(self.densities(shapes, density, scores), _sizes(shapes), density)

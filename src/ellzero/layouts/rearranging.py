"""Rows put in an order in which neighbours keep the same inputs, so that groups of rows lose less to a shared pattern.

Lives here: ``group_rows`` (the order), ``grouped_mask`` (what a budget keeps by groups), ``Tied`` and ``rearrange``
(the order applied to a network, whose function stays). Does not live here: the layout (``grouped.RowGroup``), training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ellzero.errors import InputError, check, check_array, check_choice
from ellzero.registry import register

__all__ = ["Tied", "group_rows", "grouped_mask", "rearrange"]


@register(
    kind="score", wing="network", id="S156", source="arXiv:2310.19509", name="group_rows",
    claim="rearranged rows lose less to shared patterns, and the network's function stays",
    example=lambda: group_rows(np.eye(8), 4, 0.5),
)  # fmt: skip
def group_rows(importance: np.ndarray, group: int, density: float, *, sweeps: int = 2) -> np.ndarray:
    """An order of the rows in which every ``group`` neighbours want the same columns.

    Rows are seated around seeds (each the row least alike those already taken), by how much importance a row keeps on
    the columns that a group would keep; then pairs of rows of different groups are swapped while that keeps more.
    After Xu et al. (2023), SparseByteNN: output channels are rearranged before a shared pattern is chosen.

    Parameters
    ----------
    importance : nonnegative ``[rows, columns]``, as ``|W|`` or ``W ** 2``; rows a multiple of ``group``.
    density : share of the columns that a group will keep.
    sweeps : passes over all rows in the second step; each costs about rows ** 2 * columns, a minute at 768 x 3072.

    Returns
    -------
    order : int64 ``[rows]``: place i holds row ``order[i]``. Never keeps less than the order given.
    """
    importance = np.asarray(check_array("importance", importance, ndim=2, dtypes="f"), np.float64)
    check("density", density, above=0, at_most=1)
    rows, columns = importance.shape
    if (importance < 0).any() or group < 1 or rows % group:
        raise InputError(f"importance: got {rows} rows, want a multiple of {group}, with no negative entry")
    k = max(round(density * columns), 1)
    seats = _seated(importance, group, k)
    for _ in range(sweeps):
        if not _swapped(importance, seats, k):
            break
    natural = np.arange(rows).reshape(-1, group)
    best = max((seats, natural), key=lambda order: _kept(importance[order].sum(1), k).sum())
    return best.reshape(-1)


def _kept(sums: np.ndarray, k: int) -> np.ndarray:
    """Sum of the k largest of each row."""
    return np.partition(sums, sums.shape[-1] - k, axis=-1)[..., -k:].sum(-1)


def _top(sums: np.ndarray, k: int) -> np.ndarray:
    """The k largest columns of each row, as zeros and ones; ties to the lowest."""
    keep = np.zeros_like(sums)
    np.put_along_axis(keep, np.argsort(-sums, axis=-1, kind="stable")[..., :k], 1.0, axis=-1)
    return keep


def _seated(importance: np.ndarray, group: int, k: int) -> np.ndarray:
    own = _top(importance, k)
    free = np.ones(len(importance), bool)
    seats = np.empty((len(importance) // group, group), np.int64)
    seed = int(np.argmax(importance.sum(1)))
    for seat in seats:
        seat[0], free[seed] = seed, False
        sums = importance[seed].copy()
        for place in range(1, group):
            gain = np.where(free, importance @ _top(sums[None], k)[0], -1.0)
            seat[place] = int(np.argmax(gain))
            free[seat[place]] = False
            sums += importance[seat[place]]
        if free.any():
            alike = own @ _top(sums[None], k)[0]
            seed = int(np.argmin(np.where(free, alike, np.inf)))
    return seats


def _swapped(importance: np.ndarray, seats: np.ndarray, k: int) -> bool:
    """One pass of improving swaps, in place; whether there was any."""
    sums = importance[seats].sum(1)
    kept, changed = _kept(sums, k), False
    for a in range(len(seats)):
        for i in range(seats.shape[1]):
            # the gain of trading row i of group a for every row of every other group, all at once
            mine = importance[seats[a, i]]
            without = sums[a] - mine
            others = importance[seats]
            gain = _kept(without + others, k) + _kept(sums[:, None] - others + mine, k) - kept[a] - kept[:, None]
            gain[a] = 0
            b, j = np.unravel_index(int(np.argmax(gain)), gain.shape)
            if gain[b, j] > 1e-12 * max(kept.sum(), 1e-300):
                seats[a, i], seats[b, j] = seats[b, j], seats[a, i]
                sums[[a, b]] = importance[seats[[a, b]]].sum(1)
                kept[[a, b]] = _kept(sums[[a, b]], k)
                changed = True
    return changed


def grouped_mask(importance: np.ndarray, group: int, density: float) -> np.ndarray:
    """Each group of neighbouring rows keeps the same ``round(density * columns)`` columns, those of most importance."""
    importance = check_array("importance", importance, ndim=2, dtypes="f")
    rows, columns = importance.shape
    if rows % group:
        raise InputError(f"importance: got {rows} rows, want a multiple of {group}")
    sums = importance.reshape(-1, group, columns).sum(1)
    return np.repeat(_top(sums, max(round(density * columns), 1)) > 0, group, axis=0)


@dataclass(frozen=True)
class Tied:
    """Modules that share one axis of channels and so must be permuted together.

    ``producers`` give the channels (linear or convolution layers, several where residual sums tie them), ``through``
    act on each channel by itself (norms, depthwise convolutions, per-channel slopes), ``consumers`` read them. A linear
    consumer behind a flattened image reads every channel at several neighbouring places.
    """

    producers: Sequence[nn.Module]
    consumers: Sequence[nn.Module]
    through: Sequence[nn.Module] = ()


def rearrange(tied: Tied, group: int, density: float, *, importance: str = "square") -> np.ndarray:
    """Permute the shared channels of ``tied`` in place so that row groups keep more; the network's function stays.

    Parameters
    ----------
    tied : all the modules on these channels; one that is left out would change the function. Channels that reach the
        output of the network must not be permuted.
    importance : ``"square"`` or ``"magnitude"`` of the weights, summed over the kernel's places kept apart.

    Returns
    -------
    order : int64 ``[channels]``; channel i is now what ``order[i]`` was.
    """
    check_choice("importance", importance, ("square", "magnitude"))
    sizes = {module.weight.shape[0] for module in tied.producers}
    if len(sizes) != 1:
        raise InputError(f"tied: got producers of {sorted(sizes)} channels, want one number of channels")
    channels = sizes.pop()
    for module in tied.consumers:
        if module.weight.shape[1] % channels or getattr(module, "groups", 1) != 1:
            raise InputError(f"tied: a consumer reads {module.weight.shape[1]} channels, want a multiple of {channels}")
    size = np.concatenate([module.weight.detach().flatten(1).abs().double().numpy() for module in tied.producers], 1)
    order = group_rows(size**2 if importance == "square" else size, group, density)
    index = torch.from_numpy(order)
    with torch.no_grad():
        for module in [*tied.producers, *tied.through]:
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if tensor.ndim and tensor.shape[0] == channels:
                    tensor.copy_(tensor[index].clone())
        for module in tied.consumers:
            weight = module.weight
            places = weight.reshape(weight.shape[0], channels, -1)
            weight.copy_(places[:, index].reshape(weight.shape).clone())
    return order

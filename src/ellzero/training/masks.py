"""Mask turnover: which entries of a weight are kept, which go, which come back, and what the optimiser forgets.

Lives here: exact selection by score with ties to the lowest flat index, drop and grow, the zeros outside a mask in
weights, gradients and optimiser state, and the scaling of sparse initial weights. Does not live here: how many to keep
(allocations), when (recipes).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ellzero.errors import InputError, check_integer

__all__ = ["bits", "drop_and_grow", "forget", "has_nan", "hold", "hold_state", "largest", "scale_by_fan_in"]


def largest(scores: Tensor, k: int) -> Tensor:
    """The mask of the ``k`` largest scores of the whole tensor, ties by the lowest flat index.

    Selects the k-th value and then leaves out the last of its ties: linear in the size, and equal to a stable sort.

    Parameters
    ----------
    scores : any shape; -inf marks entries that come last. NaN is refused.
    k : how many to keep, 0 to the number of entries.

    Raises
    ------
    InputError : ``k`` out of range, or NaN in the scores.
    """
    flat = scores.detach().reshape(-1)
    k = check_integer("k", k, at_least=0, at_most=flat.numel())
    if k in (0, flat.numel()):
        return torch.full(scores.shape, k > 0, dtype=torch.bool, device=scores.device)
    if has_nan(flat):
        raise InputError(f"scores: {int(flat.isnan().sum())} of {flat.numel()} are NaN, want numbers")
    threshold = _kth_largest(flat, k)
    kept = flat >= threshold
    if surplus := int(kept.count_nonzero()) - k:
        tied = flat == threshold
        kept &= ~tied | (tied.cumsum(0) <= tied.count_nonzero() - surplus)
    return kept.reshape(scores.shape)


def has_nan(x: Tensor) -> bool:
    """Whether any entry is NaN: first by the sum, which tells where there is none at a tenth of the time."""
    return bool(x.sum().isnan()) and bool(x.isnan().any())


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """The ``k``-th largest entry; on the CPU NumPy finds it in an eighth of torch's time."""
    if flat.device.type != "cpu":
        return flat.kthvalue(flat.numel() - k + 1).values
    array = (flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat).numpy()
    finite = array > -np.inf
    if k <= np.count_nonzero(finite) < array.size / 2:
        array = array[finite]  # a partition of mostly equal entries is slow
    return torch.as_tensor(np.partition(array, array.size - k)[array.size - k]).to(flat.dtype)


def drop_and_grow(
    mask: Bool[Tensor, "*shape"],
    keep_scores: Tensor,
    grow_scores: Tensor | None,
    k: int,
    n_drop: int,
    within: Bool[Tensor, "*shape"] | None = None,
) -> Bool[Tensor, "*shape"]:
    """The next mask with exactly ``k`` entries: drop the ``n_drop`` lowest of the kept, then grow from all others.

    An entry dropped here may be grown at once, as in RigL: every entry outside the kept set is a candidate.

    Parameters
    ----------
    mask : the entries kept so far.
    keep_scores, grow_scores : larger is better, shaped like the mask; no growing where ``grow_scores`` is None.
    k : how many entries the next mask has.
    n_drop : how many of the ``min(k, mask.sum())`` best kept entries go.
    within : entries that may ever be kept.

    Raises
    ------
    InputError : the mask cannot reach ``k``, because nothing may grow or too few entries are within.
    """
    kept = int(mask.count_nonzero())
    stay = max(min(k, kept) - n_drop, 0)
    if grow_scores is None and k > kept:
        raise InputError(f"k: got {k} with {kept} kept and no rule that grows, want at most {kept}")
    allowed = mask.numel() if within is None else int((within | mask).count_nonzero())
    if k > allowed:
        raise InputError(f"k: got {k}, want at most {allowed}, the entries that may be kept")
    if grow_scores is None:
        return largest(torch.where(mask, keep_scores, -torch.inf), k) & mask
    following = largest(torch.where(mask, keep_scores, -torch.inf), stay)
    if stay == k:
        return following
    closed = following if within is None else following | ~(within | mask)
    return following | largest(torch.where(closed, -torch.inf, grow_scores), k - stay)


_WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(mask: Bool[Tensor, "*shape"], like: Tensor) -> Int[Tensor, "*shape"]:
    """The mask as integers as wide as the entries of ``like``: all ones where it keeps, all zeros elsewhere."""
    return mask.to(_WIDTHS.get(like.element_size(), torch.int8)).neg_()


@torch.no_grad()
def hold(tensor: Tensor, kept: Int[Tensor, "*shape"]) -> None:
    """Zero what a mask, given as ``bits``, leaves out, in place and whatever is there, NaN and infinities too.

    A bitwise product takes a twelfth of the time of a masked fill on a CPU; entries of another width are filled.
    """
    if tensor.element_size() == kept.element_size() and tensor.device == kept.device:
        tensor.view(kept.dtype).bitwise_and_(kept)
    else:
        tensor.masked_fill_((kept == 0).to(tensor.device), 0)


def hold_state(optimizer: torch.optim.Optimizer, parameter: Tensor, kept: Int[Tensor, "*shape"]) -> None:
    """Zero the optimiser's memory of what a mask, given as ``bits``, leaves out."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            hold(value, kept)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer) -> None:
    """Zero all of an optimiser's memory, counts of steps too: as if it had just been built."""
    for memory in optimizer.state.values():
        for value in memory.values():
            if isinstance(value, Tensor):
                value.zero_()


@torch.no_grad()
def scale_by_fan_in(weight: Tensor, mask: Bool[Tensor, "*shape"]) -> None:
    """Scale each output row by ``sqrt(fan-in / its own kept fan-in)``, in place, so that it keeps its variance.

    Evci et al. (2022), Gradient Flow in Sparse Neural Networks: the fan-in of a sparse unit is its own.
    """
    if weight.ndim < 2:
        return
    rows = mask.reshape(mask.shape[0], -1)
    kept = rows.sum(1)
    factor = (rows.shape[1] / kept.clamp(min=1)).sqrt().to(weight.dtype)
    weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))

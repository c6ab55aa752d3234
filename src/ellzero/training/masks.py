"""Mask turnover: which entries of a weight are kept, which go, which come back, and what the optimiser forgets.

Lives here: exact selection by score with ties to the lowest flat index, drop and grow, the reset of optimiser state,
and the scaling of sparse initial weights. Does not live here: how many to keep (allocations), when (recipes).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.errors import InputError, check_integer

__all__ = ["drop_and_grow", "forget", "hold", "largest", "reset_state", "scale_by_fan_in"]


def largest(scores: Tensor, k: int) -> Tensor:
    """The mask of the ``k`` largest scores of the whole tensor, ties by the lowest flat index.

    Selects the k-th value and then fills the ties in order: linear in the size, and equal to a stable sort.

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
    if bool(flat.isnan().any()):
        raise InputError(f"scores: {int(flat.isnan().sum())} of {flat.numel()} are NaN, want numbers")
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    above = flat > threshold
    tied = flat == threshold
    tied &= tied.cumsum(0) <= k - above.sum()
    return (above | tied).reshape(scores.shape)


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
    kept = int(mask.sum())
    stay = max(min(k, kept) - n_drop, 0)
    if grow_scores is None and k > kept:
        raise InputError(f"k: got {k} with {kept} kept and no rule that grows, want at most {kept}")
    allowed = mask.numel() if within is None else int((within | mask).sum())
    if k > allowed:
        raise InputError(f"k: got {k}, want at most {allowed}, the entries that may be kept")
    if grow_scores is None:
        return largest(keep_scores.masked_fill(~mask, -torch.inf), k) & mask
    following = largest(keep_scores.masked_fill(~mask, -torch.inf), stay)
    if stay == k:
        return following
    closed = following if within is None else following | ~(within | mask)
    return following | largest(grow_scores.masked_fill(closed, -torch.inf), k - stay)


def reset_state(optimizer: torch.optim.Optimizer, parameter: Tensor, entries: Bool[Tensor, "*shape"]) -> None:
    """Zero the optimiser's memory of some entries: momentum, Adam's moments, anything shaped like the parameter."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(entries.to(value.device), 0)


@torch.no_grad()
def hold(parameter: Tensor, factor: Float[Tensor, "*shape"], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Multiply a parameter, and an optimiser's memory of it, by its mask as numbers 0 and 1."""
    parameter.mul_(factor)
    for value in optimizer.state.get(parameter, {}).values() if optimizer is not None else ():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.mul_(factor.to(value)) if value.is_floating_point() else value.masked_fill_(factor == 0, 0)


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

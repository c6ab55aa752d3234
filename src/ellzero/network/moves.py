"""How masks move at an update: a rule for all weights at once.

Lives here: ``Update`` (what a move may look at), ``within_layers`` (the default), ``afresh`` (for weights that stay
dense underneath) and ``ByPattern`` (n of m, fan-in: a constraint in place of counts). Does not live here: when masks
move and how many entries they have (``recipes``), how one mask is cut (``training.masks``).
A move is called as ``move(update)`` and gives the next mask of each weight; one with ``first(update)`` cuts the first
masks too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ellzero.errors import InputError
from ellzero.training.masks import drop_and_grow, largest

__all__ = ["ByPattern", "Update", "afresh", "along_inputs", "within_layers"]

Masks = Mapping[str, Bool[Tensor, "*shape"]]


@dataclass(frozen=True)
class Update:
    """One update, as a move sees it.

    ``counts`` are the entries that each next mask should have, ``share`` the fraction of kept entries to drop and grow,
    ``progress`` the fraction of the run. ``keep(name)`` and ``grow(name)`` give the scores of the recipe's rules.
    """

    masks: Masks
    counts: Mapping[str, int]
    share: float
    progress: float
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    within: Masks
    keep: Callable[[str], Tensor]
    grow: Callable[[str], Tensor] | None


def within_layers(update: Update) -> dict[str, Tensor]:
    """In each layer by itself: keep the best, drop a share, grow as many."""
    following = {}
    for name, mask in update.masks.items():
        kept = int(mask.count_nonzero())
        k = update.counts[name] if update.grow is not None else min(update.counts[name], kept)
        dropped = int(update.share * min(k, kept))
        if dropped == 0 and k == kept:
            continue
        grow = update.grow(name) if update.grow is not None else None
        following[name] = drop_and_grow(mask, update.keep(name), grow, k, dropped, update.within.get(name))
    return following


def afresh(update: Update) -> dict[str, Tensor]:
    """The largest scores, whatever was kept before."""
    following = {}
    for name in update.masks:
        scores, within = update.keep(name), update.within.get(name)
        if within is not None:
            scores = scores.masked_fill(~within, -torch.inf)
        following[name] = largest(scores, update.counts[name])
    return following


@dataclass(frozen=True)
class ByPattern:
    """A constraint in place of counts: ``pattern(progress)`` gives one with ``support(scores)``, or None for dense.

    It is cut along the inputs of each unit: a weight ``[out, in, ...]`` is read as ``[out, ...]`` with its second axis
    last, and filled up to a multiple of the pattern's ``m`` with entries that are never kept.
    """

    pattern: Callable[[float], Any]

    def __call__(self, update: Update) -> dict[str, Tensor]:
        constraint = self.pattern(update.progress)
        return {name: self._cut(constraint, name, update) for name in update.masks}

    first = __call__

    def _cut(self, constraint: Any, name: str, update: Update) -> Tensor:
        mask = update.masks[name]
        if constraint is None:
            return torch.ones_like(mask) if name not in update.within else update.within[name].clone()
        scores = update.keep(name)
        if name in update.within:
            scores = scores.masked_fill(~update.within[name], -torch.inf)
        kept = along_inputs(constraint, scores, name)
        return kept if name not in update.within else kept & update.within[name]


def along_inputs(constraint: Any, scores: Tensor, name: str = "scores") -> Bool[Tensor, "*shape"]:
    """What a constraint keeps of ``[out, in, ...]`` along the inputs, filled up to a multiple of its ``m``."""
    if scores.ndim < 2:
        raise InputError(f"{name}: has shape {tuple(scores.shape)}, want an axis of inputs after that of units")
    rows = scores.movedim(1, -1)
    size, m = rows.shape[-1], getattr(constraint, "m", 1)
    padded = torch.nn.functional.pad(rows, (0, -size % m), value=-torch.inf)
    return constraint.support(padded)[..., :size].movedim(-1, 1)

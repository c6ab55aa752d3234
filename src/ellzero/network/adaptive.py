"""Adaptive training of HyperSparse: pull ever harder until cutting costs nothing, then cut and train on.

Lives here: ``adaptive_training`` with its stop rule, and ``epochs_of``, which makes its ``epoch`` of the training loop.
Does not live here: the pull (``pulls``), the same with a fixed end as a recipe (``pulls.hyper_sparse``).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.network.cycles import Fit, Ticket, copied, cut, put, ticket_of
from ellzero.network.pulls import HyperSparse
from ellzero.network.recipes import checked_density, dense
from ellzero.network.sparsifier import Sparsifier
from ellzero.registry import register
from ellzero.training.loop import train

__all__ = ["Adapted", "adaptive_training", "epochs_of"]


@dataclass(frozen=True)
class Adapted:
    """The ticket, the number of pulled epochs, whether the stop rule ended them, and what it saw.

    ``whole`` and ``pruned`` are the training quality after each pulled epoch, of the model and of its cut copy.
    """

    ticket: Ticket
    epochs: int
    stopped: bool
    whole: tuple[float, ...]
    pruned: tuple[float, ...]


def epochs_of(
    loss: Callable[[nn.Module, Any], Tensor], batches: Any, *, optimizer: torch.optim.Optimizer, steps: int,
    clip: float | None = None,
) -> Callable[[nn.Module, Any, int], None]:  # fmt: skip
    """An ``epoch(model, pull, number)`` of the training loop: ``steps`` steps with an optimiser that goes on."""
    check_integer("steps", steps, at_least=1)

    def epoch(model: nn.Module, pull: Any, number: int) -> None:
        parts = {}
        if pull is not None:
            recipe = replace(dense(), penalty=pull)
            parts["sparsifier"] = Sparsifier(model, recipe, optimizer=optimizer, steps=steps)
        train(model, loss, batches, optimizer=optimizer, steps=steps, clip=clip, seed=number, parts=parts)
        for part in parts.values():
            part.remove()

    return epoch


@register(
    kind="solver", wing="network", id="S035", source="arXiv:2308.07163", extra="torch",
    claim="pulled until the cut costs no training accuracy, a network beats a dense one cut at 99 %",
)  # fmt: skip
def adaptive_training(
    model: nn.Module, epoch: Callable[[nn.Module, Any, int], Any], fit: Fit, judge: Callable[[nn.Module], float],
    density: float, *, warm: int = 60, limit: int = 200, strength: float = 5e-6, growth: float = 1.05, radius: int = 1,
    seed: int = 0,
) -> Adapted:  # fmt: skip
    """Train, pull all but the largest weights to zero ever harder until cutting them costs nothing, cut, train on.

    Glandorf et al. (2023), ART. After each pulled epoch a copy is cut to ``density`` by one threshold for the whole
    network. The pull ends when the cut copies of the last ``2 radius + 1`` epochs are on average as good on training
    data as the models they were cut from; the middle one of these epochs is gone on from.

    Parameters
    ----------
    model : trained in place.
    epoch : ``epoch(model, pull, number)`` trains one epoch; ``pull`` is a ``HyperSparse``, or None in the first
        ``warm`` epochs (``epochs_of`` makes one).
    fit : ``fit(model, masks, seed)`` is the final training under the mask (``cycles.fitter`` makes one).
    judge : quality on training data, higher being better.
    limit : pulled epochs at most.
    strength, growth : the pull of pulled epoch e is ``strength * growth ** e`` times that of ``HyperSparse``.

    Raises
    ------
    InputError : an argument outside its bounds, or a limit below ``2 radius + 1``.
    """
    pull = HyperSparse(checked_density(density), strength, growth=1.0, begin=0.0, end=1.0)
    check("growth", growth, at_least=1)
    check_integer("warm", warm, at_least=0)
    check_integer("radius", radius, at_least=0)
    if check_integer("limit", limit) < 2 * radius + 1:
        raise InputError(f"limit: got {limit}, want at least {2 * radius + 1}, the epochs that are averaged over")
    for number in range(warm):
        epoch(model, None, number)
    recent: deque[dict[str, Tensor]] = deque(maxlen=2 * radius + 1)
    whole, pruned, stopped = [], [], False
    for number in range(limit):
        epoch(model, replace(pull, strength=strength * growth**number), warm + number)
        recent.append(copied(model.state_dict()))
        whole.append(check("judge", float(judge(model))))
        pruned.append(check("judge", float(judge(put(copy.deepcopy(model), cut(model, density))))))
        span = slice(-recent.maxlen, None)
        stopped = len(recent) == recent.maxlen and sum(pruned[span]) >= sum(whole[span])
        if stopped:
            break
    model.load_state_dict(recent[radius])
    masks = cut(model, density)
    fit(put(model, masks), masks, seed)
    return Adapted(ticket_of(model, masks), len(whole), stopped, tuple(whole), tuple(pruned))

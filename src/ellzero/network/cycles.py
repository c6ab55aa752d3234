"""Prune, train, prune again: procedures around a ``fit`` of the user's, and averages of models with one mask.

Lives here: ``Ticket``, ``iterative_magnitude_pruning`` (with rewinding), ``swamp``, ``sparse_soup``,
``anytime_progressive_pruning``, ``prune_to_tolerance``, and ``fitter``, which makes a ``fit`` of
the training loop. Does not live here: recipes that prune within one run (``recipes`` and its neighbours).
``fit(model, masks, seed)`` trains the model in place and holds it to the masks (``None``: dense); ``seed`` orders its
data. All averaging is of models with the same masks, so the average has them too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.network.prunable import prunable
from ellzero.network.recipes import static
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.allocations import Global
from ellzero.parts.schedules import Cosine
from ellzero.training.loop import Batches, train
from ellzero.training.masks import largest

__all__ = [
    "Arrival", "Ticket", "anytime_progressive_pruning", "average_of", "cut", "fitter", "geometric_densities",
    "iterative_magnitude_pruning", "prune_to_tolerance", "refresh_norms", "sparse_soup", "swamp",
]  # fmt: skip

Masks = Mapping[str, Bool[Tensor, "*shape"]]
Fit = Callable[[nn.Module, Masks | None, int], Any]


class Ticket(NamedTuple):
    """A model after one cycle: its masks and their density over the prunable weights."""

    model: nn.Module
    masks: dict[str, Tensor]
    density: float


def fitter(
    loss: Callable[[nn.Module, Any], Tensor], batches: Callable[[int], Batches], *, steps: int, lr: float = 0.1,
    momentum: float = 0.9, weight_decay: float = 1e-4, schedule: Any = None, clip: float | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
) -> Fit:  # fmt: skip
    """A ``fit`` of the training loop: ``batches(seed)`` gives the data, the optimiser is SGD unless one is given."""
    check_integer("steps", steps, at_least=1)

    def fit(model: nn.Module, masks: Masks | None, seed: int) -> None:
        made = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        made = made if optimizer is None else optimizer(model.parameters())
        parts = {}
        if masks is not None:
            parts["sparsifier"] = Sparsifier(model, static(), optimizer=made, steps=steps, masks=masks,
                                             include=list(masks))  # fmt: skip
        train(model, loss, batches(seed), optimizer=made, steps=steps, schedule=schedule or Cosine(1.0, 0.0),
              clip=clip, seed=seed, parts=parts)  # fmt: skip
        for part in parts.values():
            part.remove()

    return fit


def geometric_densities(density: float, cycles: int) -> list[float]:
    """Equal factors from 1 down to ``density``: each cycle drops the same fraction of what is left."""
    check("density", density, above=0, below=1)
    check_integer("cycles", cycles, at_least=1)
    return [density ** ((i + 1) / cycles) for i in range(cycles)]


@torch.no_grad()
def cut(
    model: nn.Module, density: float, masks: Masks | None = None, *, allocation: Any = None, include: Any = None,
    exclude: Any = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Masks of the largest weights, within ``masks`` where given; the model itself is not changed."""
    check("density", density, above=0, at_most=1)
    weights = prunable(model, include, exclude)[0]
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    if masks is not None:
        scores = {name: score.masked_fill(~masks[name], -torch.inf) for name, score in scores.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    counts = (allocation or Global()).counts(shapes, density, scores)
    kept = {name: largest(score, counts[name]) for name, score in scores.items()}
    return kept if masks is None else {name: mask & masks[name] for name, mask in kept.items()}


def _ticket(model: nn.Module, masks: Masks) -> Ticket:
    kept, numel = (sum(int(f(mask)) for mask in masks.values()) for f in (torch.sum, torch.numel))
    return Ticket(model, dict(masks), kept / numel)


@torch.no_grad()
def _rewound(model: nn.Module, state: Mapping[str, Tensor], masks: Masks) -> None:
    """The model at a state, zero outside the masks."""
    model.load_state_dict(state)
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0)


def iterative_magnitude_pruning(
    model: nn.Module, fit: Fit, densities: Sequence[float], *, rewind: Mapping[str, Tensor] | None = None,
    seed: int = 0, within: Masks | None = None, **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Train, drop the smallest weights of the network, go back to an early state, train again. Frankle et al. (2020).

    Parameters
    ----------
    model : trained in place; it is the ticket's model after each cycle.
    fit : see the module.
    densities : of the cycles, falling; the first fit is dense (or ``within``), and one more fit follows each cut.
    rewind : state that each cycle starts from, as of ``model.state_dict()`` early in training; None to train on from
        where it is (no rewinding).
    within : masks that all others stay inside, as of a sparse source network.
    **choice : ``allocation``, ``include``, ``exclude`` of ``cut``.

    Raises
    ------
    InputError : densities that do not fall within (0, 1].
    """
    _check_falling(densities)
    state = None if rewind is None else {name: value.clone() for name, value in rewind.items()}
    fit(model, within, seed)
    masks = within
    for cycle, density in enumerate(densities):
        masks = cut(model, density, masks, **choice)
        _rewound(model, model.state_dict() if state is None else state, masks)
        fit(model, masks, seed + 1 + cycle)
        yield _ticket(model, masks)


def _check_falling(densities: Sequence[float]) -> None:
    last = 1.0
    if not len(densities):
        raise InputError("densities: got none, want at least one")
    for density in densities:
        last = check("densities", density, above=0, at_most=last)


@torch.no_grad()
def average_of(models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The (weighted) mean of the parameters; buffers are those of the first. Equal masks stay; others would fill in."""
    if not models:
        raise InputError("models: got none, want at least one")
    share = [1 / len(models)] * len(models) if weights is None else [w / sum(weights) for w in weights]
    states = [model.state_dict() for model in models]
    found = {name: value.clone() for name, value in states[0].items()}
    for name, _ in models[0].named_parameters():
        found[name] = sum(s * state[name] for s, state in zip(share, states))
    return found


@torch.no_grad()
def refresh_norms(model: nn.Module, inputs: Any) -> None:
    """Statistics of batch norms anew, as the plain mean over these inputs; averaged weights need it."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    was, momenta = model.training, [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for x in inputs:
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    model.train(was)


def swamp(
    model: nn.Module, fit: Callable[[nn.Module, Masks | None, int], Sequence[Mapping[str, Tensor]]],
    densities: Sequence[float], *, rewind: Mapping[str, Tensor], particles: int = 4, seed: int = 0,
    inputs: Any = (), **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Iterative magnitude pruning in which each cycle trains several particles and averages them. Choi et al. (2024).

    Parameters
    ----------
    fit : as in the module, and gives the snapshots (state dicts) of the last phase of its run, at a constant learning
        rate; the average is over all snapshots of all particles.
    rewind : state early in training that each cycle starts from; without it the particles are not connected.
    particles : runs of each cycle, which differ in their seed.
    inputs : batches for the statistics of batch norms.
    """
    check_integer("particles", particles, at_least=1)
    _check_falling(densities)
    state = {name: value.clone() for name, value in rewind.items()}
    masks: Masks | None = None
    for cycle, density in enumerate([None, *densities]):
        if density is not None:
            masks = cut(model, density, masks, **choice)
        snapshots = []
        for particle in range(particles):
            one = copy.deepcopy(model)
            _rewound(one, state, masks or {})
            snapshots += fit(one, masks, seed + cycle * particles + particle)
        if not snapshots:
            raise InputError("fit: gave no snapshots, want at least one state dict of the end of its run")
        _rewound(model, _mean_state(model, snapshots), masks or {})
        refresh_norms(model, inputs)
        if masks is not None:
            yield _ticket(model, masks)


@torch.no_grad()
def _mean_state(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in states[0].items()}
    for name, _ in model.named_parameters():
        found[name] = sum(state[name] for state in states) / len(states)
    return found


def sparse_soup(
    model: nn.Module, fit: Fit, densities: Sequence[float], *, copies: int = 5, seed: int = 0, inputs: Any = (),
    judge: Callable[[nn.Module], float] | None = None, **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Prune, retrain copies with the same mask, average them, prune again. Zimmer et al. (2024).

    Parameters
    ----------
    model : trained already; no rewinding.
    copies : retrained from the same pruned weights, with seeds of their own.
    judge : validation quality; with it the soup is greedy: a copy joins, best first, if the average does not get worse.
    inputs : batches for the statistics of batch norms.
    """
    check_integer("copies", copies, at_least=1)
    _check_falling(densities)
    masks: Masks | None = None
    for cycle, density in enumerate(densities):
        masks = cut(model, density, masks, **choice)
        _rewound(model, model.state_dict(), masks)
        made = []
        for number in range(copies):
            made.append(copy.deepcopy(model))
            fit(made[-1], masks, seed + cycle * copies + number)
        _rewound(model, _soup(model, made, judge, inputs), masks)
        refresh_norms(model, inputs)
        yield _ticket(model, masks)


def _soup(model: nn.Module, made: list[nn.Module], judge: Any, inputs: Any) -> dict[str, Tensor]:
    if judge is None:
        return average_of(made)
    order = sorted(made, key=judge, reverse=True)
    chosen, best = order[:1], judge(order[0])
    trial = copy.deepcopy(model)
    for one in order[1:]:
        trial.load_state_dict(average_of([*chosen, one]))
        refresh_norms(trial, inputs)
        value = judge(trial)
        if value >= best:
            chosen, best = [*chosen, one], value
    return average_of(chosen)


@dataclass(frozen=True)
class Arrival:
    """A model after one megabatch."""

    megabatch: int
    ticket: Ticket


def anytime_progressive_pruning(
    model: nn.Module, fit: Callable[[nn.Module, Masks | None, int, int], Any], megabatches: int, *,
    scores: Callable[[nn.Module, int], Mapping[str, Tensor]] | None = None, exponent: float = 10.0, rate: float = 0.8,
    seed: int = 0, include: Any = None, exclude: Any = None,
) -> Iterator[Arrival]:  # fmt: skip
    """Prune as data arrive: before megabatch t the network is cut to ``rate ** e_t``. Misra et al. (2022), APP.

    Parameters
    ----------
    fit : ``fit(model, masks, t, seed)`` trains on megabatch ``t`` (with replay: on all up to it), counted from 0.
    scores : ``scores(model, t)`` by name, as of SNIP on a part of megabatch ``t``; None for magnitudes.
    exponent : of the last megabatch; the ``e_t`` go evenly from 1 to it, and are relative to the dense network.

    Raises
    ------
    InputError : fewer than two megabatches, an exponent below 1, a rate outside (0, 1).
    """
    check_integer("megabatches", megabatches, at_least=2)
    check("exponent", exponent, at_least=1)
    check("rate", rate, above=0, below=1)
    weights = prunable(model, include, exclude)[0]
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for t in range(megabatches):
        density = rate ** (1 + (exponent - 1) * t / (megabatches - 1))
        found = {n: w.detach().abs() for n, w in weights.items()} if scores is None else dict(scores(model, t))
        found = {name: score.detach().masked_fill(~masks[name], -torch.inf) for name, score in found.items()}
        counts = Global().counts(shapes, density, found)
        masks = {name: largest(score, counts[name]) & masks[name] for name, score in found.items()}
        _rewound(model, model.state_dict(), masks)
        fit(model, masks, t, seed)
        yield Arrival(t, _ticket(model, masks))


def prune_to_tolerance(
    model: nn.Module, fit: Fit, judge: Callable[[nn.Module], float], *, tolerance: float = 0.01, factor: float = 0.7,
    tries: int = 2, rounds: int = 30, seed: int = 0, **choice: Any,
) -> Ticket:  # fmt: skip
    """Cut to ``factor`` of what is left, train on, and go on while the quality stays within a tolerance of the dense.

    The loop of Bonetta et al. (2022): it ends when ``tries`` fits at one density fail, or after ``rounds`` cuts.

    Parameters
    ----------
    model : trained already; it is left at the sparsest state within the tolerance.
    judge : quality on validation data, higher being better.
    tolerance : relative to the quality at the start.
    """
    check("tolerance", tolerance, at_least=0)
    check("factor", factor, above=0, below=1)
    bar = judge(model) * (1 - tolerance)
    weights = prunable(model, choice.get("include"), choice.get("exclude"))[0]
    masks: Masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    density = 1.0
    best, state = _ticket(model, masks), copy.deepcopy(model.state_dict())
    for number in range(check_integer("rounds", rounds, at_least=1)):
        density *= factor
        found = cut(model, density, masks, **choice)
        for attempt in range(check_integer("tries", tries, at_least=1)):
            _rewound(model, state if attempt == 0 else model.state_dict(), found)
            fit(model, found, seed + number * tries + attempt)
            if judge(model) >= bar:
                break
        else:
            break
        masks, state = found, copy.deepcopy(model.state_dict())
        best = _ticket(model, masks)
    model.load_state_dict(state)
    return best

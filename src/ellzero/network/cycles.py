"""Prune, train, prune again: procedures around a ``fit`` of the user's, and averages of models with one mask.

Lives here: ``iterative_magnitude_pruning`` (with rewinding), ``swamp``, ``sparse_soup``,
``anytime_progressive_pruning``, ``prune_to_tolerance``, what they are made of (``cut``, ``average_of``,
``refresh_norms``), and ``fitter``, which makes a ``fit`` of the training loop. Does not live here: recipes that prune
within one run (``recipes`` and its neighbours), the procedure of the HyperSparse pull (``adaptive``).
``fit(model, masks, seed)`` trains the model in place and holds it to the masks (``None``: dense); ``seed`` orders its
data. All averaging is of models with the same masks, so the average has them too. The procedures are generators: each
cycle is trained when it is asked for.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.network.initial import magnitudes, masks_of
from ellzero.network.recipes import dense, named_allocation
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.registry import register
from ellzero.training.loop import Batches, train

__all__ = [
    "Ticket", "anytime_progressive_pruning", "average_of", "cut", "fitter", "geometric_densities",
    "iterative_magnitude_pruning", "prune_to_tolerance", "refresh_norms", "sparse_soup", "swamp",
]  # fmt: skip

Masks = Mapping[str, Bool[Tensor, "*shape"]]
State = Mapping[str, Tensor]
Fit = Callable[[nn.Module, Masks | None, int], Any]


class Ticket(NamedTuple):
    """A model after one cycle: its masks and their density over the prunable weights."""

    model: nn.Module
    masks: dict[str, Tensor]
    density: float


# -- what the procedures are made of


def fitter(
    loss: Callable[[nn.Module, Any], Tensor], batches: Callable[[int], Batches], *, steps: int, lr: float = 0.1,
    momentum: float = 0.9, weight_decay: float = 1e-4, schedule: Any = None, clip: float | None = None,
    penalty: Any = None, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, keep: Sequence[int] = (),
    checkpoint: str | os.PathLike | None = None, every: int = 1000,
) -> Callable[[nn.Module, Masks | None, int], list[dict[str, Tensor]]]:  # fmt: skip
    """A ``fit`` of the training loop; it gives the state dicts after the steps ``keep``, counted from 1.

    Parameters
    ----------
    batches : ``batches(seed)`` gives the data of one fit.
    schedule : of the learning rate; None for a cosine to zero.
    penalty : added to the derivatives, as in a ``Recipe``.
    optimizer : ``optimizer(parameters)``; None for SGD with ``lr``, ``momentum`` and ``weight_decay``.
    checkpoint, every : a folder of checkpoints, one inside for each seed, and the steps between two. A procedure that
        is begun anew goes through the fits that it had without training them again.
    """
    check_integer("steps", steps, at_least=1)
    check_integer("every", every, at_least=1)
    if checkpoint is not None and len(keep):
        raise InputError("checkpoint: got a folder beside keep, whose states would be lost; want one of the two")
    kept = {check_integer("keep", step, at_least=1, at_most=steps) for step in keep}
    recipe = replace(dense(), penalty=penalty)

    def fit(model: nn.Module, masks: Masks | None, seed: int) -> list[dict[str, Tensor]]:
        if optimizer is None:
            made = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        else:
            made = optimizer(model.parameters())
        parts, states = {}, []
        if masks is not None or penalty is not None:
            include = None if masks is None else list(masks)
            parts["sparsifier"] = Sparsifier(model, recipe, optimizer=made, steps=steps, masks=masks, include=include)

        def remember(step: int, loss: float) -> None:
            if step in kept:
                states.append(copied(model.state_dict()))

        train(
            model, loss, batches(seed), optimizer=made, steps=steps, schedule=schedule or Cosine(1.0, 0.0), clip=clip,
            seed=seed, parts=parts, callbacks=[remember], every=every,
            checkpoint=None if checkpoint is None else Path(checkpoint) / f"seed-{seed}",
        )  # fmt: skip
        for part in parts.values():
            part.remove()
        return states

    return fit


def geometric_densities(density: float, cycles: int) -> list[float]:
    """Equal factors from 1 down to ``density``: each cycle drops the same fraction of what is left."""
    check("density", density, above=0, below=1)
    check_integer("cycles", cycles, at_least=1)
    return [density ** ((i + 1) / cycles) for i in range(cycles)]


def cut(
    model: nn.Module, density: float, masks: Masks | None = None, *, allocation: Any = "global", include: Any = None,
    exclude: Any = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Masks of the largest weights, within ``masks`` where given; the model itself is not changed.

    Raises
    ------
    InputError : a density outside (0, 1], masks that miss a prunable weight, or weights that are not finite.
    """
    scores = magnitudes(model, include=include, exclude=exclude)
    return masks_of(scores, density, allocation=named_allocation(allocation), within=_complete(masks, scores))


def _complete(masks: Masks | None, weights: Mapping[str, Tensor]) -> Masks | None:
    """The masks, if there is one of each weight and of its shape."""
    for name, weight in weights.items() if masks is not None else ():
        if name not in masks or masks[name].shape != weight.shape or masks[name].dtype != torch.bool:
            got = f"{masks[name].dtype} of shape {tuple(masks[name].shape)}" if name in masks else "none"
            raise InputError(f"masks: got {got} for {name!r}, want booleans of shape {tuple(weight.shape)}")
    return masks


def copied(state: State) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _start(name: str, state: State, model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, if it is one of this model."""
    for key in sorted(model.state_dict().keys() ^ state.keys()):
        found = "missing" if key not in state else "unknown"
        raise InputError(f"{name}: {key!r} is {found}, want a state dict of this model")
    return copied(state)


def ticket_of(model: nn.Module, masks: Masks) -> Ticket:
    kept, numel = (sum(int(f(mask)) for mask in masks.values()) for f in (torch.sum, torch.numel))
    return Ticket(model, dict(masks), kept / numel)


@torch.no_grad()
def put(model: nn.Module, masks: Masks | None, state: State | None = None) -> nn.Module:
    """The model at a state (where it is), zero outside the masks."""
    if state is not None:
        model.load_state_dict(state)
    weights = dict(model.named_parameters())
    for name, mask in (masks or {}).items():
        weights[name].masked_fill_(~mask, 0)
    return model


def check_falling(densities: Sequence[float]) -> None:
    last = 1.0
    if not len(densities):
        raise InputError("densities: got none, want at least one")
    for density in densities:
        last = check("densities", density, above=0, at_most=last)


def average_of(model: nn.Module, states: Iterable[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The (weighted) mean of the model's parameters over state dicts; buffers are those of the first.

    What is zero in all of them stays zero. Models pruned apart from one another would fill in: their average keeps
    the union of their masks.

    Raises
    ------
    InputError : no states, or weights that are not positive and one for each state.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found: dict[str, Tensor] = {}
    total, count = 0.0, 0
    for state in states:
        if weights is not None and count == len(weights):
            raise InputError(f"weights: got {len(weights)}, want one for each state")
        share = 1.0 if weights is None else float(check("weights", weights[count], above=0, below=float("inf")))
        total, count = total + share, count + 1
        if not found:
            found = copied(state)
            for name in names:
                found[name] *= share
        else:
            for name in names:
                found[name] += share * state[name].detach()
    if not count or (weights is not None and count != len(weights)):
        want = "at least one" if weights is None else f"{len(weights)}, as many as weights"
        raise InputError(f"states: got {count}, want {want}")
    for name in names:
        found[name] /= total
    return found


@torch.no_grad()
def refresh_norms(model: nn.Module, inputs: Sequence[Any]) -> None:
    """Statistics of batch norms anew, as the plain mean over these batches; averaged weights need it.

    All other modules are in evaluation mode meanwhile. Without batch norms nothing is done.

    Raises
    ------
    InputError : no batches for a model that has batch norms.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        return
    if not len(inputs):
        raise InputError("inputs: got none, want batches, since the model has batch norms")
    modes, momenta = [(m, m.training) for m in model.modules()], [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for the plain mean
        norm.train()
    for x in inputs:
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training


# -- the procedures


@register(
    kind="solver", wing="network", source="arXiv:1912.05671", extra="torch",
    claim="rewound to an early state, the kept weights train to what the dense network reaches",
)  # fmt: skip
def iterative_magnitude_pruning(
    model: nn.Module, fit: Fit, densities: Sequence[float], *, rewind: State | None = None, seed: int = 0,
    within: Masks | None = None, **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Train, drop the smallest weights of the network, go back to an early state, train again. Frankle et al. (2020).

    Parameters
    ----------
    model : trained in place; it is the ticket's model after each cycle.
    fit : see the module.
    densities : of the cycles, falling; the first fit is dense (or ``within``), and one more fit follows each cut.
    rewind : state that every fit starts from, as of ``model.state_dict()`` early in training; None to train on from
        where the model is.
    within : masks that all others stay inside, as of a sparse source network.
    **choice : ``allocation``, ``include``, ``exclude`` of ``cut``.

    Raises
    ------
    InputError : densities that do not fall within (0, 1], or a state of another model.
    """
    check_falling(densities)
    state = None if rewind is None else _start("rewind", rewind, model)
    _complete(within, magnitudes(model, include=choice.get("include"), exclude=choice.get("exclude")))
    masks = within
    fit(put(model, masks, state), masks, seed)
    for cycle, density in enumerate(densities):
        masks = cut(model, density, masks, **choice)
        fit(put(model, masks, state), masks, seed + 1 + cycle)
        yield ticket_of(model, masks)


@register(
    kind="solver", wing="network", id="S116", source="arXiv:2305.14852", extra="torch",
    claim="averaged particles beat each of them; one longer run beats the average",
)  # fmt: skip
def swamp(
    model: nn.Module, fit: Callable[[nn.Module, Masks | None, int], Sequence[State]], densities: Sequence[float], *,
    rewind: State, particles: int = 4, seed: int = 0, inputs: Sequence[Any] = (), **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Iterative magnitude pruning in which each cycle trains several particles and averages them. Choi et al. (2024).

    For long, noisy runs. Measured on digits with two epochs to a particle (98 % sparse), it was on a par with plain
    iterative magnitude pruning, and behind it at the same number of steps altogether.

    Parameters
    ----------
    model : it is the average after each cycle.
    fit : as in the module, and gives the snapshots (state dicts) of the last phase of its run, at a constant learning
        rate (a ``fitter`` with ``keep``); the average is over all snapshots of all particles.
    rewind : state early in training that each cycle starts from; without it the particles are not connected.
    particles : runs of each cycle, which differ in their seed.
    inputs : batches for the statistics of batch norms, if there are any.
    **choice : ``allocation``, ``include``, ``exclude`` of ``cut``.

    Raises
    ------
    InputError : densities that do not fall within (0, 1], a state of another model, or a fit that gives no snapshots.
    """
    check_integer("particles", particles, at_least=1)
    check_falling(densities)
    state = _start("rewind", rewind, model)

    def snapshots(masks: Masks | None, first: int) -> Iterator[State]:
        for particle in range(particles):
            found = fit(put(copy.deepcopy(model), masks, state), masks, first + particle)
            if not found:
                raise InputError("fit: gave no snapshots, want at least one state dict of the end of its run")
            yield from found

    masks: Masks | None = None
    for cycle in range(len(densities) + 1):
        if cycle:
            masks = cut(model, densities[cycle - 1], masks, **choice)
        put(model, masks, average_of(model, snapshots(masks, seed + cycle * particles)))
        refresh_norms(model, inputs)
        if cycle:
            yield ticket_of(model, masks)


@register(
    kind="solver", wing="network", id="S138", source="arXiv:2306.16788", extra="torch",
    claim="the average of copies with one mask beats each of them; one longer run beats it",
)  # fmt: skip
def sparse_soup(
    model: nn.Module, fit: Fit, densities: Sequence[float], *, copies: int = 5, seed: int = 0,
    inputs: Sequence[Any] = (), judge: Callable[[nn.Module], float] | None = None, **choice: Any,
) -> Iterator[Ticket]:  # fmt: skip
    """Prune, retrain copies with the same mask, average them, prune again. Zimmer et al. (2024).

    For runs that go side by side: where steps are counted, one copy trained as long as all together was better
    (measured on digits, 98 % sparse, one epoch for each copy).

    Parameters
    ----------
    model : trained already; it is the average after each cycle. No rewinding.
    fit : see the module; copies differ in its seed, which may also pick a learning rate or a weight decay.
    copies : retrained from the same pruned weights.
    inputs : batches for the statistics of batch norms, if there are any.
    judge : validation quality; with it the soup is greedy: a copy joins, best first, if the average does not get worse.
    **choice : ``allocation``, ``include``, ``exclude`` of ``cut``.

    Raises
    ------
    InputError : densities that do not fall within (0, 1].
    """
    check_integer("copies", copies, at_least=1)
    check_falling(densities)
    masks: Masks | None = None
    for cycle, density in enumerate(densities):
        masks = cut(model, density, masks, **choice)
        put(model, masks)
        made = [copy.deepcopy(model) for _ in range(copies)]
        for number, one in enumerate(made):
            fit(one, masks, seed + cycle * copies + number)
        put(model, masks, _soup(model, made, judge, inputs))
        refresh_norms(model, inputs)
        yield ticket_of(model, masks)


def _soup(model: nn.Module, made: list[nn.Module], judge: Any, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """The average of all, or of those that a greedy choice takes."""
    states = [one.state_dict() for one in made]
    if judge is None:
        return average_of(model, states)
    values = [judge(one) for one in made]
    first, *others = sorted(range(len(made)), key=lambda i: -values[i])
    chosen, best, trial = [first], values[first], copy.deepcopy(model)
    for i in others:
        trial.load_state_dict(average_of(model, [states[j] for j in [*chosen, i]]))
        refresh_norms(trial, inputs)
        if (value := judge(trial)) >= best:
            chosen, best = [*chosen, i], value
    return average_of(model, [states[j] for j in chosen])


@register(
    kind="solver", wing="network", id="S129", source="arXiv:2204.01640", extra="torch",
    claim="pruned as the data arrive, a network is more accurate over time than one pruned at the start",
)  # fmt: skip
def anytime_progressive_pruning(
    model: nn.Module, fit: Callable[[nn.Module, Masks | None, int, int], Any], megabatches: int, *,
    scores: Callable[[nn.Module, int], Mapping[str, Tensor]] | None = None, exponent: float = 10.0, rate: float = 0.8,
    seed: int = 0, include: Any = None, exclude: Any = None,
) -> Iterator[Ticket]:  # fmt: skip
    """Prune as data arrive: before megabatch t the network is cut to ``rate ** e_t``. Misra et al. (2022), APP.

    One ticket after each megabatch. All weights below one threshold go, and none comes back.

    Parameters
    ----------
    fit : ``fit(model, masks, t, seed)`` trains on megabatch ``t`` (with replay: on all up to it), counted from 0.
    scores : ``scores(model, t)`` by name, as of ``initial.snip`` on a part of megabatch ``t``; None for magnitudes.
    exponent : of the last megabatch; the ``e_t`` go evenly from 1 to it, and are relative to the dense network.

    Raises
    ------
    InputError : fewer than two megabatches, an exponent below 1, a rate outside (0, 1), or scores of other weights.
    """
    check_integer("megabatches", megabatches, at_least=2)
    check("exponent", exponent, at_least=1)
    check("rate", rate, above=0, below=1)
    sizes = magnitudes(model, include=include, exclude=exclude)
    masks: Masks = {name: torch.ones_like(size, dtype=torch.bool) for name, size in sizes.items()}
    for t in range(megabatches):
        found = magnitudes(model, include=include, exclude=exclude) if scores is None else dict(scores(model, t))
        if found.keys() != masks.keys():
            raise InputError(f"scores: got those of {sorted(found)}, want those of {sorted(masks)}")
        density = rate ** (1 + (exponent - 1) * t / (megabatches - 1))
        masks = masks_of(found, density, within=masks)
        fit(put(model, masks), masks, t, seed)
        yield ticket_of(model, masks)


@register(
    kind="solver", wing="network", id="S084", source="arXiv:2204.04977", extra="torch",
    claim="with decay gated by irrelevance it ends at least as sparse as with L2",
)  # fmt: skip
def prune_to_tolerance(
    model: nn.Module, fit: Fit, judge: Callable[[nn.Module], float], *, tolerance: float = 0.01, factor: float = 0.7,
    tries: int = 2, rounds: int = 30, seed: int = 0, **choice: Any,
) -> Ticket:  # fmt: skip
    """Cut to ``factor`` of what is left, train on, and go on while the quality stays within a tolerance of the dense.

    The loop of Bonetta et al. (2022), with a falling density for their rising threshold: it ends when ``tries`` fits
    at one density fail, or after ``rounds`` cuts. Their decay is a ``fitter`` with the penalty ``pulls.Irrelevance``.

    Parameters
    ----------
    model : trained already; it is left at the sparsest state within the tolerance.
    judge : quality on validation data, higher being better.
    tolerance : relative to the size of the quality at the start.
    **choice : ``allocation``, ``include``, ``exclude`` of ``cut``.
    """
    check("tolerance", tolerance, at_least=0)
    check("factor", factor, above=0, below=1)
    check_integer("tries", tries, at_least=1)
    check_integer("rounds", rounds, at_least=1)
    start = check("judge", float(judge(model)), above=-float("inf"), below=float("inf"))
    bar = start - tolerance * abs(start)
    masks: Masks = cut(model, 1.0, **choice)
    best, state = ticket_of(model, masks), copied(model.state_dict())
    for number in range(rounds):
        found = cut(model, factor ** (number + 1), masks, **choice)
        put(model, found)
        if not any(_reaches(model, fit, judge, bar, found, seed + number * tries + i) for i in range(tries)):
            break
        masks, best, state = found, ticket_of(model, found), copied(model.state_dict())
    model.load_state_dict(state)
    return best


def _reaches(model: nn.Module, fit: Fit, judge: Any, bar: float, masks: Masks, seed: int) -> bool:
    fit(model, masks, seed)
    return judge(model) >= bar

"""Evolution strategies on the kept weights of a network, and tickets found by them.

Lives here: ``SepCMAES`` and ``SNES`` (search distributions, asked and told), ``evolve`` (one of them on a network),
``evolutionary_tickets`` (iterative pruning by signal to noise). Does not live here: pruning with gradients
(``cycles``). A population is one batched forward pass wherever the model allows it; no gradient is taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.network.cycles import Masks, check_falling, copied, put, ticket_of
from ellzero.network.initial import masks_of
from ellzero.network.prunable import prunable
from ellzero.parts.scores import Random
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training import checkpoints
from ellzero.training.loop import next_batch, skip
from ellzero.training.threads import threads_for

__all__ = ["SNES", "EvolvedTicket", "SepCMAES", "evolutionary_tickets", "evolve", "population_losses"]

Loss = Callable[[Any, Any], Tensor]


# -- search distributions


class _Search:
    """A normal distribution with a deviation of its own in each coordinate: ``ask`` for a population, ``tell`` losses.

    Parameters
    ----------
    mean : where it starts, ``[n]``.
    sigma : deviation of all coordinates at the start.
    population : points in each generation.
    seed : draws them; generation g always draws the same numbers.
    """

    state: tuple[str, ...] = ()

    def __init__(self, mean: Any, sigma: float = 0.1, *, population: int = 64, seed: int = 0):
        self.mean = np.array(check_array("mean", np.asarray(mean, dtype=np.float64), ndim=1))
        self.sigma = float(check("sigma", sigma, above=0, below=math.inf))
        self.population = check_integer("population", population, at_least=4)
        self.seed, self.generation = check_integer("seed", seed, at_least=0), 0
        self.noise = np.empty((0, len(self.mean)), dtype=np.float32)

    @property
    def deviations(self) -> Float[np.ndarray, " n"]:
        """Of each coordinate, now."""
        raise NotImplementedError

    def ask(self) -> Float[np.ndarray, "population n"]:
        """The points of this generation."""
        stream = rng(self.seed, "evolution", self.generation)
        self.noise = stream.standard_normal((self.population, len(self.mean)), dtype=np.float32)
        return (self.mean + self.deviations * self.noise).astype(np.float32)

    def tell(self, losses: Any) -> None:
        """Move by the losses of the points asked for last, smaller being better; only their order counts.

        Raises
        ------
        InputError : losses of another number of points, or that are all not finite.
        """
        losses = check_array("losses", np.asarray(losses, dtype=np.float64), shape=(self.population,), finite=False)
        if len(self.noise) != self.population:
            raise InputError("losses: told before ask, want the losses of the points asked for")
        if not np.isfinite(losses).any():
            raise InputError("losses: none is finite, want a smaller sigma")
        self._move(self.noise[np.argsort(np.where(np.isfinite(losses), losses, np.inf), kind="stable")])
        self.generation += 1
        self.noise = self.noise[:0]

    def _move(self, ranked: Float[np.ndarray, "population n"]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next generation depends on."""
        arrays = {name: torch.from_numpy(np.atleast_1d(getattr(self, name)).copy()) for name in ("mean", *self.state)}
        return {"generation": self.generation, "sigma": self.sigma, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back there.

        Raises
        ------
        InputError : a state of another number of coordinates or of another strategy.
        """
        if any(name not in state for name in self.state) or len(state["mean"]) != len(self.mean):
            raise InputError(f"state: is of another search, want one of {type(self).__name__} on {len(self.mean)}")
        self.generation, self.sigma = state["generation"], state["sigma"]
        for name in ("mean", *self.state):
            setattr(self, name, state[name].numpy().copy())


@register(
    kind="solver", wing="network", source="Ros and Hansen (2008)", example=lambda: SepCMAES(np.zeros(4)),
)  # fmt: skip
class SepCMAES(_Search):
    """CMA-ES with a diagonal covariance matrix: linear in the coordinates. Ros and Hansen (2008), section 3.

    Weighted recombination of the better half, cumulative step size, rank-one and rank-mu updates of the diagonal, both
    ``(n + 2) / 3`` times as fast as for a full matrix. Defaults of the constants as in Hansen (2016), table 1.
    """

    state = ("diagonal", "path", "path_sigma")

    def __init__(self, mean: Any, sigma: float = 0.1, *, population: int = 64, seed: int = 0):
        super().__init__(mean, sigma, population=population, seed=seed)
        n, half = len(self.mean), self.population // 2
        weights = math.log(half + 0.5) - np.log(np.arange(1, half + 1))
        self.weights = weights / weights.sum()
        self.mu = m = 1 / float(np.square(self.weights).sum())
        self.c_sigma = (m + 2) / (n + m + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt((m - 1) / (n + 1)) - 1) + self.c_sigma
        self.c_path = (4 + m / n) / (n + 4 + 2 * m / n)
        faster = (n + 2) / 3
        self.c_one = min(faster * 2 / ((n + 1.3) ** 2 + m), 1.0)
        self.c_mu = min(faster * 2 * (m - 2 + 1 / m) / ((n + 2) ** 2 + m), 1 - self.c_one)
        self.expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        self.diagonal, self.path, self.path_sigma = np.ones(n), np.zeros(n), np.zeros(n)

    @property
    def deviations(self) -> Float[np.ndarray, " n"]:
        """``sigma sqrt(C_ii)``."""
        return self.sigma * np.sqrt(self.diagonal)

    def _move(self, ranked: Float[np.ndarray, "population n"]) -> None:
        best = ranked[: len(self.weights)].astype(np.float64)
        scale, step = np.sqrt(self.diagonal), self.weights @ best
        self.mean = self.mean + self.sigma * scale * step
        c = self.c_sigma
        self.path_sigma = (1 - c) * self.path_sigma + math.sqrt(c * (2 - c) * self.mu) * step
        length = float(np.linalg.norm(self.path_sigma))
        worn = math.sqrt(1 - (1 - c) ** (2 * (self.generation + 1)))
        steady = length / worn < (1.4 + 2 / (len(step) + 1)) * self.expected
        c = self.c_path
        self.path = (1 - c) * self.path + steady * math.sqrt(c * (2 - c) * self.mu) * scale * step
        lost = (1 - steady) * c * (2 - c)  # what the path misses while it stands still
        self.diagonal = (
            (1 - self.c_one - self.c_mu + self.c_one * lost) * self.diagonal
            + self.c_one * self.path**2
            + self.c_mu * self.diagonal * (self.weights @ best**2)
        )
        self.sigma *= math.exp(min((self.c_sigma / self.damping) * (length / self.expected - 1), 1.0))


@register(kind="solver", wing="network", source="Schaul et al. (2011)", example=lambda: SNES(np.zeros(4)))
class SNES(_Search):
    """Separable natural evolution strategy: natural gradients of the mean and of log deviations. Schaul et al. (2011).

    ``mean += d sum u_k s_k``, ``d *= exp(rate / 2 sum u_k (s_k^2 - 1))`` for noise ``s_k`` of rank k and utilities
    ``u_k``, with ``rate = (3 + ln n) / (5 sqrt n)``.
    """

    state = ("spread",)

    def __init__(self, mean: Any, sigma: float = 0.1, *, population: int = 64, seed: int = 0):
        super().__init__(mean, sigma, population=population, seed=seed)
        n, size = len(self.mean), self.population
        raw = np.maximum(0, math.log(size / 2 + 1) - np.log(np.arange(1, size + 1)))
        self.utilities = raw / raw.sum() - 1 / size
        self.rate = (3 + math.log(n)) / (5 * math.sqrt(n))
        self.spread = np.full(n, self.sigma)

    @property
    def deviations(self) -> Float[np.ndarray, " n"]:
        """Of each coordinate."""
        return self.spread

    def _move(self, ranked: Float[np.ndarray, "population n"]) -> None:
        ranked = ranked.astype(np.float64)
        self.mean = self.mean + self.spread * (self.utilities @ ranked)
        self.spread = self.spread * np.exp(0.5 * self.rate * (self.utilities @ (ranked**2 - 1)))


STRATEGIES: Mapping[str, Callable[..., _Search]] = {"sep_cma_es": SepCMAES, "snes": SNES}


# -- on a network


class _Layout:
    """Where the kept entries of a model's trainable parameters are in a flat vector; the others stay zero."""

    def __init__(self, model: nn.Module, masks: Masks | None):
        weights = prunable(model)[0]
        for name, mask in (masks or {}).items():
            if name not in weights or mask.dtype != torch.bool or mask.shape != weights[name].shape:
                raise InputError(f"masks: got one for {name!r}, want booleans shaped like a prunable weight")
        self.model, self.places, self.size = model, {}, 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                mask = (masks or {}).get(name)
                kept = torch.arange(parameter.numel()) if mask is None else mask.flatten().cpu().nonzero()[:, 0]
                self.places[name] = (kept, slice(self.size, self.size + len(kept)), parameter)
                self.size += len(kept)
        if not self.size:
            raise InputError("masks: keep nothing and the model has no other parameter, want some to search")

    def flat(self) -> np.ndarray:
        """The kept entries now."""
        parts = [p.detach().flatten().cpu()[kept].double() for kept, _, p in self.places.values()]
        return torch.cat(parts).numpy()

    def tree(self, vectors: np.ndarray, fill: float = 0.0) -> dict[str, Tensor]:
        """Parameters by name of one vector ``[n]`` or of several ``[population, n]``."""
        found, rows = {}, torch.from_numpy(vectors)
        for name, (kept, part, p) in self.places.items():
            own = torch.full((*rows.shape[:-1], p.numel()), fill, dtype=rows.dtype)
            own[..., kept] = rows[..., part]
            found[name] = own.reshape(*rows.shape[:-1], *p.shape).to(p)
        return found


@torch.no_grad()
def population_losses(
    model: nn.Module, loss: Loss, batch: Any, parameters: Mapping[str, Tensor], *, chunk: int | None = None
) -> Float[Tensor, " population"]:
    """``loss(model, batch)`` for stacked parameters ``[population, ...]``: one batched pass, ``chunk`` members at once.

    The model is called in evaluation mode. ``loss`` may only call it.
    """
    was = model.training
    model.eval()

    def one(values: Mapping[str, Tensor]) -> Tensor:
        return loss(lambda *inputs: functional_call(model, dict(values), inputs), batch)

    try:
        return vmap(one, chunk_size=chunk)(dict(parameters))
    finally:
        model.train(was)


def evolve(
    model: nn.Module, loss: Loss, batches: Any, *, strategy: str = "sep_cma_es", generations: int = 200,
    population: int = 64, sigma: float = 0.05, masks: Masks | None = None, seed: int = 0, chunk: int | None = None,
    checkpoint: str | os.PathLike | None = None, every: int = 100,
) -> dict[str, Tensor]:  # fmt: skip
    """Train the kept weights of a network without gradients; it is left at the mean of the search.

    Parameters
    ----------
    loss : ``loss(model, batch)``, a scalar; all members of a generation see the same batch.
    batches : an iterator, as ``Batches``; one for each generation.
    strategy : ``"sep_cma_es"`` or ``"snes"``.
    sigma : first deviation of each weight.
    masks : kept entries by name; only they and the parameters without a mask (biases, norms) are searched.
    chunk : members in one batched pass; None for all.
    checkpoint, every : folder from which an interrupted run goes on, and the generations between two checkpoints.

    Returns
    -------
    dict : the deviation of each entry at the end, by parameter name; zero outside the masks.

    Raises
    ------
    InputError : a bad argument, or losses none of which is finite.
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_integer("generations", generations, at_least=1)
    check_integer("every", every, at_least=1)
    layout = _Layout(model, masks)
    put(model, masks)
    search = STRATEGIES[strategy](layout.flat(), sigma, population=population, seed=seed)
    source, batches = batches, iter(batches)
    found = None if checkpoint is None else checkpoints.latest(checkpoint)
    if found is not None:
        if found[1]["strategy"] != strategy:
            raise InputError(f"strategy: got {strategy!r}, want {found[1]['strategy']!r}, as in the checkpoint")
        search.load_state_dict(found[1]["search"])
        skip(source, batches, found[1]["batches"], found[0], generations)
    while search.generation < generations:
        batch = next_batch(batches, search.generation + 1, generations)
        rows = len(batch[0] if isinstance(batch, tuple) else batch)
        with threads_for(layout.size * rows * (chunk or population)):
            values = population_losses(model, loss, batch, layout.tree(search.ask()), chunk=chunk)
        search.tell(values.double().cpu())
        done = search.generation
        if checkpoint is not None and (done % every == 0 or done == generations):
            place = source.state_dict() if hasattr(source, "state_dict") else None
            checkpoints.save(checkpoint, done, {"strategy": strategy, "search": search.state_dict(), "batches": place})
    with torch.no_grad():
        for name, value in layout.tree(search.mean).items():
            layout.places[name][2].copy_(value)
    return layout.tree(search.deviations)


# -- tickets


class EvolvedTicket(NamedTuple):
    """A model at the mean of its search, its masks, their density, and the deviation of each entry."""

    model: nn.Module
    masks: dict[str, Tensor]
    density: float
    sigma: dict[str, Tensor]


@register(
    kind="solver", wing="network", id="S142", source="arXiv:2306.00045", extra="torch",
    claim="evolved tickets kept by signal to noise stay trainable, by evolution and by gradients",
)  # fmt: skip
def evolutionary_tickets(
    model: nn.Module, fit: Callable[[nn.Module, Masks | None, int], Mapping[str, Tensor]], densities: Sequence[float],
    *, score: str = "snr", seed: int = 0, fresh: Callable[[int], nn.Module] | None = None,
) -> Iterator[EvolvedTicket]:  # fmt: skip
    """Evolve, drop the kept weights with the least signal to noise, go back to the first weights, evolve again.

    Iterative pruning where training is a search distribution ``N(mu, diag sigma^2)``. Lange and Sprekeler (2023).
    A ticket's masks train under gradients too: put the first weights under them and ``fit`` as for any mask.

    On 8 x 8 digits at 3 % (three seeds) signal to noise leaves 83.4 % by SNES, magnitude 81.4, random masks of the same
    layer densities 31.8; by separable CMA-ES 74.0, 71.5 and 34.1. The gain over magnitude is 2.0 +- 2.2 and 2.5 +- 0.9
    points, and trained by gradients such tickets of SNES are not ahead: 81.4 against 83.0.

    Parameters
    ----------
    model : its weights now are what every cycle begins at; in place.
    fit : ``fit(model, masks, seed)`` evolves it, and gives deviations by name: ``evolve`` with its settings.
    densities : of the cycles, falling; the first search is dense, one more follows each cut.
    score : what stays, over the whole network: ``"snr"`` ``|mu / sigma|``, ``"magnitude"`` ``|mu|``, or ``"random"``.
        Biases are searched and not pruned.
    fresh : ``fresh(seed)`` gives other first weights for each cycle; with ``"random"`` it is the weakest control.

    Raises
    ------
    InputError : densities that do not fall within (0, 1], another score, or deviations that miss a weight.
    """
    check_choice("score", score, ("snr", "magnitude", "random"))
    check_falling(densities)
    start = copied(model.state_dict())
    masks: Masks | None = None
    sigma = fit(model, masks, seed)
    for cycle, density in enumerate(densities, 1):
        masks = masks_of(_scores(model, sigma, score, seed + cycle), density, within=masks)
        put(model, masks, start if fresh is None else fresh(seed + cycle).state_dict())
        sigma = fit(model, masks, seed + cycle)
        yield EvolvedTicket(*ticket_of(model, masks), dict(sigma))


def _scores(model: nn.Module, sigma: Mapping[str, Tensor], score: str, seed: int) -> dict[str, Tensor]:
    found = {}
    for name, weight in prunable(model)[0].items():
        size = weight.detach().abs()
        if score == "random":
            size = Random(seed)(size, None, {"name": name})
        elif score == "snr":
            if name not in sigma or sigma[name].shape != size.shape:
                raise InputError(f"fit: gave no deviations of {name!r}, want those of every weight, as evolve gives")
            size = size / sigma[name].clamp_min(1e-30)
        found[name] = size
    return found

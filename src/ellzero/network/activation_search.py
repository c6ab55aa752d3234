"""Which activation functions suit a network that has been pruned: a search over layers, then over their shape.

Lives here: the pool of functions, ``Activation`` (``a act(b x)``), ``late_acceptance`` (hill climbing), and
``search_activations`` with its two stages. Does not live here: the pruning (``cycles``, ``recipes``), the training
(a ``fit`` of ``cycles.fitter``). The search sees training and validation data alone, and what it spends is counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.models.attach import swap
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["POOL", "Activation", "Climb", "Found", "activation_sites", "late_acceptance", "search_activations",
           "shape_and_tune", "with_activations"]  # fmt: skip

Masks = Mapping[str, Tensor]

POOL: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "swish": F.silu, "gelu": F.gelu,
    "mish": F.mish, "hardswish": F.hardswish, "softplus": F.softplus, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "softsign": F.softsign, "hardtanh": F.hardtanh, "relu6": F.relu6, "celu": F.celu,
    "symlog": lambda x: x.sign() * x.abs().log1p(), "atan": torch.atan, "erf": torch.erf, "sine": torch.sin,
    "identity": lambda x: x,
}  # fmt: skip
"""Functions by name; ``symlog`` is ``sign(x) log(1 + |x|)``."""

_KINDS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Softplus, nn.Tanh,
          nn.Sigmoid, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.CELU)  # fmt: skip


class Activation(nn.Module):
    """``a act(b x)`` with two numbers a layer, which learn if ``learned``. Loni et al. (2023), equation 3."""

    def __init__(self, name: str = "relu", *, a: float = 1.0, b: float = 1.0, learned: bool = False):
        super().__init__()
        self.name = check_choice("name", name, POOL)
        self.a, self.b = (nn.Parameter(torch.tensor(float(value)), requires_grad=learned) for value in (a, b))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.a * POOL[self.name](self.b * x)

    def extra_repr(self) -> str:
        return f"{self.name}, a={float(self.a.detach()):.3g}, b={float(self.b.detach()):.3g}"


def activation_sites(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are activation functions.

    Raises
    ------
    InputError : none; functions that are called in ``forward`` have no module to exchange.
    """
    found = tuple(name for name, module in model.named_modules() if isinstance(module, (*_KINDS, Activation)) and name)
    if not found:
        raise InputError(f"model: {type(model).__name__} has no module of an activation such as nn.ReLU inside")
    return found


def with_activations(model: nn.Module, names: Sequence[str], *, learned: bool = False) -> nn.Module:
    """A copy of the model with these activations at its sites, in order; ``learned`` lets their shape train.

    Raises
    ------
    InputError : an unknown name, or not one for each site.
    """
    sites, model = activation_sites(model), copy.deepcopy(model)
    if len(names) != len(sites):
        raise InputError(f"names: got {len(names)}, want {len(sites)}, one for each of {', '.join(sites)}")
    made = {site: Activation(name, learned=learned) for site, name in zip(sites, names)}
    device = next(model.parameters()).device
    swap(model, {site: lambda own, module: made[own].to(device) for site in sites})
    return model


# -- the search


@dataclass(frozen=True)
class Climb:
    """The best value, its score, and the scores of all candidates in order."""

    best: Any
    score: float
    scores: tuple[float, ...]
    accepted: int


def late_acceptance(
    start: Hashable, score: Callable[[Any], float], propose: Callable[[Any], Any], *, evaluations: int = 30,
    history: int = 3,
) -> Climb:  # fmt: skip
    """Hill climbing that accepts what is no worse than now, or than what stood ``history`` steps ago.

    Burke and Bykov (2017). The larger score wins. A value that comes again is not scored again, and counts as a step.

    Parameters
    ----------
    start, propose : the first value, and what gives a neighbour of one.
    evaluations : steps, the start among them.
    history : length of the list of past scores; 1 is plain hill climbing.

    Raises
    ------
    InputError : a bad number, or a score that is not finite.
    """
    check_integer("evaluations", evaluations, at_least=1)
    check_integer("history", history, at_least=1)
    known: dict[Any, float] = {}

    def scored(value: Any) -> float:
        if value not in known:
            known[value] = float(check("score", score(value), above=-math.inf, below=math.inf))
        return known[value]

    now, best = start, start
    past, scores, accepted = [scored(start)] * history, [scored(start)], 0
    for step in range(evaluations - 1):
        candidate = propose(now)
        scores.append(scored(candidate))
        if scores[-1] >= known[now] or scores[-1] >= past[step % history]:
            now, accepted = candidate, accepted + 1
        if known[now] > known[best]:
            best = now
        past[step % history] = known[now]
    return Climb(best, known[best], tuple(scores), accepted)


@dataclass(frozen=True, eq=False)
class Found:
    """Activations by site, their validation score after the short fits, and the climb."""

    names: tuple[str, ...]
    score: float
    climb: Climb


@register(
    kind="method", wing="network", id="S051", source="arXiv:2305.10964", extra="torch", name="search_activations",
    claim="activations found for a pruned network make up for part of what pruning costs",
)  # fmt: skip
def search_activations(
    model: nn.Module, masks: Masks, fit: Callable[[nn.Module, Masks, int], Any], judge: Callable[[nn.Module], float], *,
    pool: Sequence[str] = tuple(POOL), evaluations: int = 30, history: int = 3, seed: int = 0,
) -> Found:  # fmt: skip
    """Stage 1 of SAFS: an activation for each layer of a pruned network, by late acceptance. Loni et al. (2023).

    A candidate differs from the present choice at one site. Each is the pruned network with its activations exchanged,
    trained briefly under its masks. The first is ``relu`` everywhere, or the first of the pool.

    On 8 x 8 digits, five seeds, ReLU given as many steps in all, the gain with both stages was 5.1 +- 1.3 points at 2 %
    of the weights (84.0 by ReLU) and 11.1 +- 2.8 at 1 % (54.6).

    Parameters
    ----------
    model : pruned; it is not changed. Its activations are modules.
    masks : of its weights.
    fit : ``fit(model, masks, seed)``, a short training in place (``cycles.fitter``).
    judge : the score on validation data, the larger the better.
    pool : names of ``POOL``.
    evaluations, history : of ``late_acceptance``.

    Raises
    ------
    InputError : a bad argument, or a model without a module of an activation.
    """
    sites, pool = activation_sites(model), list(pool)
    for name in pool:
        if name not in POOL:
            raise InputError(f"pool: got {name!r}, want names such as 'swish'{suggestion(name, POOL)}")
    if len(set(pool)) < 2:
        raise InputError(f"pool: got {pool}, want at least two names")
    draw = rng(seed, "activations")

    def score(names: tuple[str, ...]) -> float:
        candidate = with_activations(model, names)
        try:
            fit(candidate, masks, seed)
        except InputError as error:  # a loss that is not finite: the worst there is
            if not str(error).startswith("loss"):
                raise
            return -1e9
        return judge(candidate)

    def propose(names: tuple[str, ...]) -> tuple[str, ...]:
        place = int(draw.integers(len(names)))
        others = [name for name in pool if name != names[place]]
        return (*names[:place], others[int(draw.integers(len(others)))], *names[place + 1 :])

    start = ("relu" if "relu" in pool else pool[0],) * len(sites)
    climb = late_acceptance(start, score, propose, evaluations=evaluations, history=history)
    return Found(climb.best, climb.score, climb)


@register(
    kind="method", wing="network", id="S051", source="arXiv:2305.10964", extra="torch", name="shape_and_tune"
)  # fmt: skip
def shape_and_tune(
    model: nn.Module, names: Sequence[str], masks: Masks, fitter: Callable[..., Callable[[nn.Module, Masks, int], Any]],
    judge: Callable[[nn.Module], float], space: Mapping[str, Sequence[Any]], *, trials: int = 6, learned: bool = True,
    seed: int = 0,
) -> tuple[nn.Module, dict[str, Any], float]:  # fmt: skip
    """Stage 2 of SAFS: fine-tune with learned ``a`` and ``b``, under the best settings of a random search.

    The paper searches learning rate, weight decay and schedule by a model of past trials; at the few trials that a user
    can pay, random draws stand in for it. With ``learned=False`` and ``relu`` it is the baseline at equal cost.

    Parameters
    ----------
    model : pruned; it is not changed.
    names : activations by site.
    fitter : ``fitter(**settings)`` gives ``fit(model, masks, seed)``.
    judge : the score on validation data, the larger the better.
    space : choices of settings by name.
    trials : fits, the first with the first choice of each.

    Returns the best model, its settings and its score.

    Raises
    ------
    InputError : a bad argument, or no trial whose loss stays finite.
    """
    check_integer("trials", trials, at_least=1)
    for name, choices in space.items():
        if not len(choices):
            raise InputError(f"space: got no choice of {name!r}, want at least one")
    draw, best = rng(seed, "tuning"), None
    for trial in range(trials):
        picks = {name: 0 if not trial else int(draw.integers(len(choices))) for name, choices in space.items()}
        settings = {name: space[name][pick] for name, pick in picks.items()}
        candidate = with_activations(model, names, learned=learned)
        try:
            fitter(**settings)(candidate, masks, seed)
        except InputError as error:
            if not str(error).startswith("loss"):
                raise
            continue
        score = float(judge(candidate))
        if best is None or score > best[2]:
            best = candidate, settings, score
    if best is None:
        raise InputError("space: no trial kept a finite loss, want smaller learning rates")
    return best

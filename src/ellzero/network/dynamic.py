"""Recipes whose masks move while the network trains: where weights return decides the method.

Lives here: ``dst_ee``, ``sparse_momentum``, ``srigl`` and ``ac_dc``, with the moves that are their own, and
``undertraining_report``. Does not live here: ``rigl`` and ``set_`` (``recipes``), the cut of a mask (``masks``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.network.moves import Update
from ellzero.network.recipes import Recipe, checked_density, named_allocation
from ellzero.parts.allocations import shared_out
from ellzero.parts.constraints import FanIn
from ellzero.parts.schedules import Constant, Cosine, Steps
from ellzero.parts.scores import Gradient, Momentum, Random
from ellzero.registry import register
from ellzero.training.masks import drop_and_grow, largest

__all__ = ["ConstantFanIn", "Redistributed", "Undertraining", "ac_dc", "dst_ee", "sparse_momentum", "srigl",
           "undertraining_report"]  # fmt: skip


@register(kind="score", wing="network", source="arXiv:2211.16667", extra="torch", example=lambda: UpperConfidence())
@dataclass(frozen=True)
class UpperConfidence:
    """The size of the gradient plus ``c m ln(t) / (N + eps)``. Huang et al. (2023).

    ``t`` counts updates from 1, ``N`` the updates after which the entry was active, and ``m`` is the mean size of the
    layer's gradient, so that ``c`` has no unit; in the paper ``c`` is absolute, ``m = 1``. With ``c = 0`` it is the
    score ``Gradient``.
    """

    c: float = 10.0
    eps: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("gradient", "rounds")

    def __post_init__(self):
        check("c", self.c, at_least=0)
        check("eps", self.eps, above=0)

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        size = Gradient()(weight, gradient, state)
        if state is None or state.get("rounds") is None:
            raise InputError('state["rounds"]: got None, want the rounds in which each entry was active')
        bonus = math.log(max(state.get("round", 1), 1)) / (state["rounds"] + self.eps)
        return size + self.c * size.mean() * bonus


@register(
    kind="recipe", wing="network", id="S067", source="arXiv:2211.16667", extra="torch", example=lambda: dst_ee(),
    claim="growing with an exploration bonus covers more weights than RigL",
)  # fmt: skip
def dst_ee(
    density: float = 0.1, *, c: float = 10.0, eps: float = 1.0, every: int = 100, drop: float = 0.3,
    until: float = 0.75, allocation: Any = "erk", seed: int = 0,
) -> Recipe:  # fmt: skip
    """RigL that also explores: entries rarely active get a bonus. Huang et al. (2023), equation 2.

    ``c`` weighs the bonus in units of the layer's mean gradient; 0 is RigL.
    """
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        grow=UpperConfidence(c, eps), turnover=Cosine(check("drop", drop, at_least=0, at_most=1), 0.0), every=every,
        until=until, scale_start=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Redistributed:
    """Drop in each layer, grow where the momentum is: layers get back shares of what all of them dropped.

    A layer's share is the mean size of the momentum over its kept entries; what does not fit is shared again. A layer
    less than 20 % sparse that has more than its even share of the momentum drops at most its sparsity.
    Dettmers and Zettlemoyer (2019), sections 3.1 to 3.3.
    """

    def __call__(self, update: Update) -> dict[str, Tensor]:
        kept = {name: int(mask.sum()) for name, mask in update.masks.items()}
        grow = {name: update.grow(name) for name in kept}
        weight = {n: float(grow[n][mask].double().mean()) if kept[n] else 0.0 for n, mask in update.masks.items()}
        even, dropped, room = sum(weight.values()) / len(weight), {}, {}
        for name, mask in update.masks.items():
            free = int(update.within[name].sum()) if name in update.within else mask.numel()
            sparsity = (free - kept[name]) / max(free, 1)
            grows = sparsity < 0.2 and weight[name] > even
            dropped[name] = int((min(update.share, sparsity) if grows else update.share) * kept[name])
            room[name] = free - kept[name] + dropped[name]
        grown = shared_out(sum(dropped.values()), weight, room)
        following = {}
        for name, mask in update.masks.items():
            k = kept[name] - dropped[name] + grown[name]
            stay = largest(update.keep(name).masked_fill(~mask, -torch.inf), kept[name] - dropped[name])
            following[name] = drop_and_grow(stay, update.keep(name), grow[name], k, 0, update.within.get(name))
        return following


@dataclass(frozen=True)
class AdamMomentum:
    """``|m| / sqrt(v)`` where the optimiser keeps a second moment, else ``|m|``."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        size = Momentum()(weight, gradient, state)
        variance = (state or {}).get("variance")
        return size if variance is None else size / (variance.sqrt() + 1e-8)


@register(
    kind="recipe", wing="network", id="S079", source="arXiv:1907.04840", extra="torch",
    example=lambda: sparse_momentum(), claim="momentum tells which layers and weights should grow: above SET",
)  # fmt: skip
def sparse_momentum(
    density: float = 0.1, *, every: int = 100, drop: float = 0.5, until: float = 1.0, allocation: Any = "uniform",
    seed: int = 0,
) -> Recipe:  # fmt: skip
    """Sparse from the start; drop the smallest, grow where the momentum is largest, across layers.

    Dettmers and Zettlemoyer (2019). ``every`` is an epoch in the paper. The momentum is dense, so the optimiser's
    memory is that of a dense run.
    """
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        grow=AdamMomentum(), turnover=Cosine(check("drop", drop, at_least=0, at_most=1), 0.0), every=every,
        until=until, scale_start=True, move=Redistributed(), dense_momentum=True,
    )  # fmt: skip


@dataclass(frozen=True)
class ConstantFanIn:
    """RigL under a constant fan-in, with units that have too few salient inputs taken out. Lasby et al. (2024).

    The fan-in k of a layer is its budget over its units, rounded, at least 1. Of its ``n`` kept entries ``n_keep`` are
    to stay, no more than are nonzero. Salient are the ``n_keep`` largest weights and the ``n - n_keep`` largest
    gradients; a unit with fewer than ``max(1, gamma k)`` salient entries is ablated, but never so many that those left
    could not hold the layer's entries. These get ``k' = k units // units left`` inputs each: of the ``n_keep`` largest
    weights of all units left their own, at most k', then their largest gradients. Each update judges
    all units anew. The last layer keeps all its units.

    Parameters
    ----------
    gamma : share of the fan-in that must be salient. ``None`` is 0.3 for convolutions and 0.95 for linear layers: what
        the paper takes for convolutional networks and for vision transformers.
    """

    gamma: float | None = None

    def __post_init__(self):
        if self.gamma is not None:
            check("gamma", self.gamma, at_least=0, at_most=1)

    def first(self, update: Update) -> dict[str, Tensor]:
        """The largest start scores of each unit."""
        masks = {}
        for name, mask in update.masks.items():
            rows = mask.flatten(1)
            scores = update.keep(name).flatten(1).masked_fill(~rows, -torch.inf)
            masks[name] = _per_row(scores, _fan_in(update.counts[name], rows)).reshape(mask.shape)
        return masks

    def __call__(self, update: Update) -> dict[str, Tensor]:
        last = list(update.masks)[-1]
        return {name: self._layer(name, update, ablate=name != last) for name in update.masks}

    def _layer(self, name: str, update: Update, ablate: bool) -> Tensor:
        mask = update.masks[name].flatten(1)
        size, grow = update.keep(name).flatten(1).masked_fill(~mask, -torch.inf), update.grow(name).flatten(1)
        if name in update.within:
            grow = grow.masked_fill(~update.within[name].flatten(1), -torch.inf)
        alive = (grow > -torch.inf).any(1)
        n, k = int(mask.sum()), _fan_in(update.counts[name], mask)
        n_keep = min(n - int(n * update.share), int(((update.weights[name].flatten(1) != 0) & mask).sum()))
        budget, inputs = k * len(mask), mask.shape[1]
        if ablate:
            salient = (largest(size, n_keep) & mask) | (largest(grow, n - n_keep) & (grow > -torch.inf))
            fewest = -(-budget // inputs)  # as many units as hold the budget at full fan-in
            found = salient.sum(1)
            share = self.gamma
            if share is None:
                share = 0.3 if update.masks[name].ndim > 2 else 0.95
            need = min(max(1, int(share * k)), int(found.sort(descending=True).values[fewest - 1]))
            alive &= found >= need
        k = min(budget // max(int(alive.sum()), 1), inputs)
        size = size.masked_fill(~alive[:, None], -torch.inf)
        stay = largest(size, n_keep) & _per_row(size, k)
        grow = grow.masked_fill(stay | ~alive[:, None], -torch.inf)
        order = grow.sort(dim=1, descending=True, stable=True).indices
        ranks = torch.arange(inputs, device=mask.device)
        grown = torch.zeros_like(stay).scatter(1, order, ranks < (k - stay.sum(1))[:, None]) & (grow > -torch.inf)
        return (stay | grown).reshape(update.masks[name].shape)


def _fan_in(count: int, rows: Bool[Tensor, "units inputs"]) -> int:
    return min(max(round(count / len(rows)), 1), rows.shape[1])


def _per_row(scores: Float[Tensor, "units inputs"], k: int) -> Tensor:
    return FanIn(k).support(scores) & (scores > -torch.inf)


@register(
    kind="recipe", wing="network", id="S052", source="arXiv:2305.02299", extra="torch", example=lambda: srigl(),
    claim="growing under a constant fan-in beats a static one of the same fan-in",
)  # fmt: skip
def srigl(
    density: float = 0.1, *, gamma: float | None = None, every: int = 100, drop: float = 0.3, until: float = 0.75,
    allocation: Any = "erk", seed: int = 0,
) -> Recipe:  # fmt: skip
    """Dynamic sparse training whose units all have the same fan-in: layers that a condensed layout makes fast.

    Lasby et al. (2024) report RigL's accuracy. On rows of MNIST held out, at 2 %: 93.5 % against RigL's 93.1 (two
    seeds; 92.5 with ``gamma=0.3``, which suits convolutions). At 3 % of the small digits' network, where fan-ins are
    one or two, it reached 83.4 % against 92.7. The first fan-in of a layer is its share of the budget over its units,
    rounded, at least 1.
    """
    return Recipe(
        density=Constant(checked_density(density)), allocation=named_allocation(allocation), start=Random(seed),
        grow=Gradient(), turnover=Cosine(check("drop", drop, at_least=0, at_most=1), 0.0), every=every, until=until,
        scale_start=True, move=ConstantFanIn(gamma),
    )  # fmt: skip


@register(
    kind="recipe", wing="network", id="S040", source="arXiv:2106.12379, arXiv:2308.02060", extra="torch",
    example=lambda: ac_dc(), claim="sparse networks gain more from longer training than dense ones",
)  # fmt: skip
def ac_dc(
    density: float = 0.1, *, dense: float = 0.1, phases: int = 8, until: float = 0.85, allocation: Any = "global",
    every: int = 10,
) -> Recipe:  # fmt: skip
    """Compressed and decompressed phases in turn: all weights return at zero, then the largest stay.

    Peste et al. (2021), and with longer runs Kuznedelev et al. (2023). The first ``dense`` of the run is dense, then
    ``phases`` equal phases, compressed and decompressed in turn, up to the fraction ``until``; the rest is compressed.
    Phases change at the multiples of ``every`` steps; the optimiser forgets everything whenever all weights return.
    """
    check("dense", dense, above=0, below=1)
    check("until", until, above=dense, below=1)
    check_integer("phases", phases, at_least=2)
    if phases % 2:
        raise InputError(f"phases: got {phases}, want an even number, compressed and decompressed in turn")
    at = [*(dense + (until - dense) * i / phases - 1e-12 for i in range(phases)), until]  # at the step, if rounded up
    low = checked_density(density)
    values = [1.0] + [low if i % 2 == 0 else 1.0 for i in range(phases)] + [low]
    return Recipe(
        density=Steps(tuple(values), tuple(at)), allocation=named_allocation(allocation), grow=Random(0), every=every,
        until=until, forget=True,
    )  # fmt: skip


class Undertraining(NamedTuple):
    """Training loss (nats) and mean entropy of predictions (nats) of a sparse model over those of the dense one."""

    loss: float
    entropy: float
    dense_loss: float
    dense_entropy: float

    @property
    def undertrained(self) -> bool:
        """Whether the sparse model is above the dense one in both."""
        return self.loss > self.dense_loss and self.entropy > self.dense_entropy


@torch.no_grad()
def undertraining_report(
    sparse_logits: Float[Tensor, "rows classes"], dense_logits: Float[Tensor, "rows classes"], labels: Any
) -> Undertraining:
    """Does a sparse model still have to learn? Its training loss and the entropy of its predictions, beside the dense.

    Kuznedelev et al. (2023), section 3: an undertrained model has both above the dense model's, and both still fall
    with longer training.

    Parameters
    ----------
    sparse_logits, dense_logits : logits on training rows.
    labels : ``[rows]`` classes.

    Raises
    ------
    InputError : logits that are not two finite tables of the same shape, or labels of another length.
    """
    found = []
    labels = torch.as_tensor(labels, dtype=torch.int64)
    for name, logits in (("sparse_logits", sparse_logits), ("dense_logits", dense_logits)):
        check_array(name, logits, ndim=2, shape=tuple(dense_logits.shape), dtypes="f")
        if labels.shape != logits.shape[:1]:
            raise InputError(f"labels: got shape {tuple(labels.shape)}, want ({len(logits)},)")
        if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
            raise InputError(f"labels: got classes {int(labels.min())} to {int(labels.max())}, "
                             f"want 0 to {logits.shape[1] - 1}")  # fmt: skip
        log_p = logits.double().log_softmax(1)
        found += [float(torch.nn.functional.nll_loss(log_p, labels)), float(-(log_p.exp() * log_p).sum(1).mean())]
    return Undertraining(*found)

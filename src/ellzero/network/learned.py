"""Recipes whose masks are learned: views with parameters of their own.

Lives here: ``autosparse`` (a threshold for each layer, learned by gradient descent) and ``pst`` (low-rank scores while
the weights are frozen). Does not live here: the frame of a view (``views``), gradient rules (``parts.gradients``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.network.moves import Update
from ellzero.network.recipes import Recipe, checked_density, named_allocation
from ellzero.network.views import View
from ellzero.parts.allocations import Uniform
from ellzero.parts.gradients import Annealed, Masked
from ellzero.parts.schedules import Constant, Cubic
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Annealing", "LearnedThreshold", "LowRankScores", "autosparse", "pst"]


@dataclass(frozen=True)
class Annealing:
    """``start * max(half a cosine, a falling sigmoid)`` of the progress, and 0 from ``end`` on.

    ``max((1 + cos(pi u)) / 2, 1 - 1 / (1 + exp(6 - 12 u)))``. Kundu et al. (2023), section 3.3.
    """

    start: float
    end: float = 0.9

    def __call__(self, progress: float, total: float = 1.0) -> float:
        u = min(progress / total, 1.0)
        if u >= self.end:
            return 0.0
        return self.start * max((1 + math.cos(math.pi * u)) / 2, 1 - 1 / (1 + math.exp(6 - 12 * u)))


class LearnedThreshold(View):
    """``sign(w) h(|w| - sigmoid(s))`` with a learned ``s``; h has slope 1 above zero and ``share`` at and below it.

    Entries that the first mask closes stay closed.
    """

    def __init__(self, weight, mask, start, schedule):
        super().__init__(mask)
        self.register_buffer("open", mask.clone(), persistent=False)
        self.s = nn.Parameter(weight.new_tensor(float(start)))
        self.gradient: Any = Annealed(schedule)

    def move(self, mask, progress):
        super().move(mask, progress)
        self.gradient = self.gradient.at(min(progress, 1.0))

    def support(self, weight: Tensor) -> Bool[Tensor, "*shape"]:
        """The entries above the threshold."""
        return (weight.abs() > torch.sigmoid(self.s)) & self.open

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The shrunk weight."""
        one = torch.ones((), dtype=weight.dtype, device=weight.device)
        sign = one.where(weight >= 0, -one)  # never 0, so that a weight at zero can leave it
        above = sign * weight - torch.sigmoid(self.s)
        return Masked().apply(sign * self.gradient.apply(above, above.detach() > 0), self.open)


@dataclass(frozen=True)
class _Thresholds:
    start: float
    schedule: Any

    def __call__(self, name: str, weight: Tensor, mask: Tensor) -> View:
        return LearnedThreshold(weight, mask, self.start, self.schedule)


@dataclass(frozen=True)
class _Own:
    """Masks stay with their views."""

    def __call__(self, update: Update) -> dict[str, Tensor]:
        return {}


@register(
    kind="recipe", wing="network", id="S093", source="arXiv:2304.06941", extra="torch", example=lambda: autosparse(),
    claim="annealing the derivative of dropped weights ends sparser than holding it, nearly as good",
)  # fmt: skip
def autosparse(
    share: float = 0.5, *, start: float = -5.0, end: float = 0.9, every: int = 20, schedule: Any = None
) -> Recipe:
    """Thresholds learned by gradient descent, one for each layer; the density comes out. Kundu et al. (2023).

    Short runs want a weight decay of 5e-3 or more, for it is what moves the thresholds. On a perceptron annealing the
    share ended sparser than holding it, at nearly the same accuracy.

    Parameters
    ----------
    share : of the derivative that dropped weights get at first; it anneals to none at the fraction ``end`` of the run,
        and sets the density: a smaller one gives a sparser network.
    start : first value of the logit of the threshold; -5 is a threshold of 0.0067. The optimiser's weight decay acts on
        it too, which pulls the threshold towards 0.5.
    every : steps between two counts of what is above the thresholds; it changes nothing else.
    schedule : another course of the share, called with the progress; ``Constant(share)`` holds it.
    """
    check("share", share, at_least=0, at_most=1)
    check("end", end, above=0, at_most=1)
    check("start", start, above=-math.inf, below=math.inf)
    if schedule is not None and not callable(schedule):
        raise InputError(f"schedule: got {schedule!r}, want a schedule such as Constant(0.5)")
    course = Annealing(share, end) if schedule is None else schedule
    for i in range(101):
        check("schedule", course(i / 100), at_least=0, at_most=1)
    through = _Thresholds(start, course)
    return Recipe(Constant(1.0), Uniform(), move=_Own(), through=through, every=every)


class LowRankScores(View):
    """``mask * (W + beta U V)`` with scores ``|W + beta U V| + a1 A B + a2 (R + C)``; W is frozen.

    The mask's derivative goes straight to the scores: ``dL/dS = dL/d(mask W) * W``.
    """

    def __init__(self, weight, mask, name, rank, score_rank, beta, a1, a2, seed):
        super().__init__(mask)
        rows, columns = weight.shape[0], weight[0].numel()
        self.beta, self.a1, self.a2 = beta, a1, a2
        stream = rng(seed, "low-rank scores", name)

        def normal(*shape):
            return nn.Parameter(torch.from_numpy(stream.standard_normal(shape, dtype=np.float32)).to(weight))

        def zero(*shape):
            return nn.Parameter(weight.new_zeros(shape))

        self.U, self.V = normal(rows, rank), zero(rank, columns)
        self.A, self.B = normal(rows, score_rank), zero(score_rank, columns)
        self.R, self.C = zero(rows, 1), zero(1, columns)
        weight.requires_grad_(False).grad = None  # an optimiser steps on a stale derivative too

    def _updated(self, weight: Tensor) -> Tensor:
        return weight + self.beta * (self.U @ self.V).reshape(weight.shape)

    def scores(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the mask is cut from."""
        return self._scores(self._updated(weight))

    def _scores(self, updated: Tensor) -> Tensor:
        learned = self.a1 * (self.A @ self.B) + self.a2 * (self.R + self.C)
        return updated.abs() + learned.reshape(updated.shape)

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the layer uses."""
        updated = self._updated(weight)
        scores = self._scores(updated)
        return Masked().apply(updated, self.mask) + updated.detach() * (scores - scores.detach())


@dataclass(frozen=True)
class _LowRank:
    rank: int
    score_rank: int
    beta: float
    a1: float
    a2: float
    seed: int

    def __call__(self, name: str, weight: Tensor, mask: Tensor) -> View:
        return LowRankScores(weight, mask, name, self.rank, self.score_rank, self.beta, self.a1, self.a2, self.seed)


@dataclass(frozen=True)
class OfView:
    """The scores that a weight's view learns; before there is one, the size of the weight."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, weight: Any, gradient: Any = None, state: Mapping[str, Any] | None = None) -> Any:
        view = (state or {}).get("view")
        return weight.abs() if view is None else view.scores(weight)


@register(
    kind="recipe", wing="network", id="S169", source="arXiv:2205.11005", extra="torch", example=lambda: pst(),
    claim="where steps are few, above one-shot magnitude with a low-rank update",
)  # fmt: skip
def pst(
    density: float = 0.1, *, rank: int = 8, score_rank: int = 8, beta: float = 1.0, a1: float = 1.0, a2: float = 1.0,
    begin: float = 0.1, end: float = 0.7, every: int = 1, allocation: Any = "uniform", seed: int = 0,
) -> Recipe:  # fmt: skip
    """Prune while fine-tuning with few trainable parameters. Li et al. (2022).

    A weight ``W`` of shape ``[out, in]`` is frozen. The layer uses ``mask * (W + beta U V)``; the mask keeps what is
    largest of ``|W + beta U V| + a1 A B + a2 (R + C)``, with ``R`` a number for each row and ``C`` one for each column.
    ``U`` and ``A`` start normal and the others at zero, so the first scores are magnitudes. Trainable are
    ``(rank + score_rank) (out + in) + out + in`` numbers for each weight; freeze biases yourself to train no more. A
    filter counts as a row.

    Parameters
    ----------
    density : falls to this along a cubic between the fractions ``begin`` and ``end`` of the run.
    rank, score_rank : of ``U V`` and of ``A B``.
    beta, a1, a2 : how much they weigh.
    every : steps between two masks.
    seed : draws ``U`` and ``A``.

    On a perceptron at density 0.1 it beat a one-shot magnitude mask with a low-rank update where steps were few, and
    tied with it where they were plenty.

    After ``remove()`` the weights are those of the masked product, and the small matrices are gone.
    """
    for name, value in (("rank", rank), ("score_rank", score_rank)):
        check_integer(name, value, at_least=1)
    for name, value in (("beta", beta), ("a1", a1), ("a2", a2)):
        check(name, value, above=-math.inf, below=math.inf)
    return Recipe(
        density=Cubic(1.0, checked_density(density), begin, end), allocation=named_allocation(allocation),
        score=OfView(), through=_LowRank(rank, score_rank, beta, a1, a2, seed), every=every,
    )  # fmt: skip

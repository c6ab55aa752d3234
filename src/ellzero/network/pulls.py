"""Recipes that pull weights to zero while they train, and cut once at the end of the pull.

Lives here: ``hyper_sparse`` and ``irrelevance`` with their pulls. Does not live here: procedures that decide when to
stop (``adaptive``, ``cycles``), the optimiser's own weight decay.
A pull is called as ``pull(weights, gradients, progress)`` and gives what is added to the derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import check
from ellzero.network.recipes import Recipe, checked_density, named_allocation
from ellzero.parts.allocations import kept_count
from ellzero.parts.schedules import OneShot
from ellzero.registry import register

__all__ = ["HyperSparse", "Irrelevance", "hyper_sparse", "irrelevance"]

_BEND = 0.6585  # artanh(1 / sqrt(3)), where the slope of tanh falls fastest


@dataclass(frozen=True)
class HyperSparse:
    """A pull that is strong on all but the ``density`` largest weights of the network. Glandorf et al. (2023).

    With ``s = 0.6585 / |w|_(k)``, ``|w|_(k)`` the largest size of a weight that is to go, and ``t_i = tanh(s |w_i|)``,
    the derivative of ``sum |w| (sum t / sg(sum t)) - sum |w|``, ``s`` held fixed and sg stopping gradients:
    ``sign(w_i) s (1 - t_i^2) sum |w| / sum t``. Its strength is ``strength * growth ** (epochs * (progress - begin))``
    from the fraction ``begin`` of the run to ``end``, and nothing outside; ``epochs`` is the length of the whole run.
    """

    density: float
    strength: float = 5e-6
    growth: float = 1.05
    epochs: float = 100.0
    begin: float = 0.2
    end: float = 0.6

    def __post_init__(self):
        checked_density(self.density)
        check("strength", self.strength, at_least=0)
        check("growth", self.growth, at_least=1)
        check("epochs", self.epochs, above=0)
        check("begin", self.begin, at_least=0, below=1)
        check("end", self.end, above=self.begin, at_most=1)

    def __call__(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], progress: float
    ) -> dict[str, Tensor]:
        if not self.begin <= progress < self.end:
            return {}
        strength = self.strength * self.growth ** (self.epochs * (progress - self.begin))
        return {name: strength * pull for name, pull in self.derivative(weights).items()}

    def derivative(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The derivative of the term at strength 1, by name; zero where no weight is to go or all of them are 0."""
        sizes = {name: weight.detach().abs() for name, weight in weights.items()}
        every = torch.cat([size.flatten() for size in sizes.values()])
        going = every.numel() - kept_count(every.numel(), self.density)
        bound = float(every.kthvalue(going).values) if going else 0.0
        if bound == 0:
            return {name: torch.zeros_like(size) for name, size in sizes.items()}
        s = _BEND / bound
        ratio = float(every.double().sum() / torch.tanh(s * every.double()).sum())
        return {
            name: weights[name].detach().sign() * (s * ratio) * (1 - torch.tanh(s * size).square())
            for name, size in sizes.items()
        }


@register(
    kind="recipe", wing="network", id="S035", source="arXiv:2308.07163", extra="torch", example=lambda: hyper_sparse(),
    claim="a pull on all but the largest weights beats cutting a dense network at 99 %",
)  # fmt: skip
def hyper_sparse(
    density: float = 0.1, *, strength: float = 5e-6, growth: float = 1.05, epochs: float = 100.0, begin: float = 0.2,
    end: float = 0.6, allocation: Any = "global",
) -> Recipe:  # fmt: skip
    """Train, pull all but the largest weights to zero ever harder, cut them, train on. Glandorf et al. (2023).

    ``begin`` and ``end`` are the fractions of the run where the pull begins, and where the cut is; ``epochs`` is the
    length of the run, of which ``growth`` is the factor of one. A run of few steps wants a larger ``strength``. The
    procedure that stops pulling when cutting no longer costs training accuracy is ``adaptive.adaptive_training``.
    """
    pull = HyperSparse(density, strength, growth, epochs, begin, end)
    return Recipe(
        OneShot(1.0, checked_density(density), end), named_allocation(allocation), every=1_000_000_000, until=end,
        penalty=pull,
    )  # fmt: skip


@dataclass(frozen=True)
class Irrelevance:
    """A weight decay for weights that the loss does not feel: ``strength w exp(-|g| / (scale mean |g|))``.

    Bonetta et al. (2022), whose ``exp(-|g|)`` is made relative to the mean size of the derivative over the layer's
    nonzero weights, since derivatives of 1e-4 would otherwise make every weight irrelevant. It joins the derivative, so
    that it is multiplied by the learning rate. It ends at the fraction ``end`` of the run.
    """

    strength: float = 1e-4
    scale: float = 1.0
    end: float = 1.0

    def __post_init__(self):
        check("strength", self.strength, at_least=0)
        check("scale", self.scale, above=0)
        check("end", self.end, above=0, at_most=1)

    def __call__(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], progress: float
    ) -> dict[str, Tensor]:
        if progress >= self.end:
            return {}
        return {name: self._pull(weight, gradients.get(name)) for name, weight in weights.items()}

    def _pull(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros_like(weight)
        size = gradient.abs()
        live = weight != 0
        mean = (size * live).sum() / live.sum().clamp_min(1)
        return self.strength * weight * torch.exp(-size / (self.scale * mean).clamp_min(torch.finfo(size.dtype).tiny))


@register(
    kind="recipe", wing="network", id="S084", source="arXiv:2204.04977", extra="torch", example=lambda: irrelevance(),
    claim="decay gated by irrelevance reaches at least the sparsity of L2 at equal accuracy",
)  # fmt: skip
def irrelevance(
    density: float = 0.1, *, strength: float = 1e-4, scale: float = 1.0, end: float = 0.6, allocation: Any = "global"
) -> Recipe:
    """Decay weights that the loss does not feel, cut the smallest at ``end``, train on. Bonetta et al. (2022).

    The loop that cuts on until the validation metric leaves its tolerance is ``cycles.prune_to_tolerance``. Measured on
    digits it ended as sparse as with plain decay, not sparser.
    """
    return Recipe(
        OneShot(1.0, checked_density(density), end), named_allocation(allocation), every=1_000_000_000, until=end,
        penalty=Irrelevance(strength, scale, end),
    )  # fmt: skip

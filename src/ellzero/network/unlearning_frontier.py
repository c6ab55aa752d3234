"""Ways to unlearn, as methods of the comparison: the gap to retraining against the density of the network.

Lives here: ``UnlearningMethod`` and the list of them, ``FittedUnlearned``. Does not live here: how one unlearns
(``unlearning``), the rows to forget (the task). At each density all methods start from the same sparse network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import check_choice
from ellzero.network.cycles import State, fitter
from ellzero.network.frontier import FittedNetwork, tensors, variants
from ellzero.network.recipes import static
from ellzero.network.sparsifier import Sparsifier
from ellzero.network.unlearning import METHODS, Part, UnlearningReport, prune_first, unlearn, unlearning_report
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.training import losses
from ellzero.training.loop import Batches
from ellzero.training.threads import products, threads_for

__all__ = ["FittedUnlearned", "Original", "UnlearningMethod", "unlearning_methods"]


@dataclass(frozen=True, eq=False)
class Original:
    """A network trained on all rows under masks, its first weights, and one retrained without the rows to forget."""

    model: nn.Module
    masks: Mapping[str, Tensor]
    start: State
    retrained: nn.Module
    retain: Part
    forget: Part


def _original(data: Data, density: float, seed: int) -> Original:
    """Trained once for all methods of a comparison: the task's ``originals`` keeps it."""
    info = data.info
    key = (density, seed)
    if key in info["originals"]:
        return info["originals"][key]
    (X, y), size = tensors(data.train), info["batch_size"]
    gone = torch.from_numpy(info["forget"])
    retain, forget = (X[~gone], y[~gone]), (X[gone], y[gone])
    model = info["build"](seed)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit = fitter(
        losses.classification, lambda own: Batches(X, y, batch_size=size, seed=own), steps=info["steps"], clip=5.0
    )
    with threads_for(products(model, X[:size])):
        found = prune_first(model, fit, density, by=info["by"], example=X[:1], seed=seed)
    retrained = copy.deepcopy(model)
    unlearn(retrained, retain, forget, "retrain", masks=found.masks, start=start, steps=info["steps"], batch_size=size,
            seed=seed)  # fmt: skip
    info["originals"][key] = Original(model, found.masks, start, retrained, retain, forget)
    return info["originals"][key]


@dataclass(frozen=True)
class FittedUnlearned(FittedNetwork):
    """A network after unlearning; its fidelity is the gap to retraining under the same masks, lower being better."""

    original: Original | None = None
    seconds: float = 0.0

    @cached_property
    def _sides(self) -> tuple[nn.Module, nn.Module]:
        return self.model.eval(), self.original.retrained.eval()

    def reports(self, part: tuple[Any, Any]) -> tuple[UnlearningReport, UnlearningReport]:
        """Of the network and of the retrained one, ``part`` being the rows that neither was trained on."""
        parts = (self.original.retain, self.original.forget, tensors(part))
        own, other = (unlearning_report(side, *parts) for side in self._sides)
        return own, other

    def score(self, part: tuple[Any, Any]) -> float:
        """The mean gap of the four shares to retraining."""
        own, other = self.reports(part)
        return own.gap(other)


@register(
    kind="method", wing="network", id="S140", source="arXiv:2304.04934", extra="torch", name="unlearning",
    example=lambda: UnlearningMethod("fine-tune", "fine_tune"),
)  # fmt: skip
@dataclass(frozen=True)
class UnlearningMethod:
    """A way to unlearn as a method of the comparison: prune first to the budget, train, then unlearn.

    Parameters
    ----------
    name : in the comparison.
    method, settings : of ``unlearn``; ``steps`` is a share of the steps of the task's training.
    space : choices of settings, for tuning.

    Retraining itself is a method too: its gap is that between two runs of it. The seconds of a fit hold the training of
    the first network where the method is the first to ask for it.
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    dense: bool = False

    def __post_init__(self):
        check_choice("method", self.method, METHODS)

    def candidates(self, trials: int, seed: int) -> Sequence[UnlearningMethod]:
        """The method itself and ``trials - 1`` random settings from its space."""
        return variants(self, trials, seed)

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedUnlearned]:
        """One unlearned network for each density."""
        for budget in budgets:
            yield self._fit(data, _original(data, budget, seed), seed)

    def _fit(self, data: Data, original: Original, seed: int) -> FittedUnlearned:
        info, model, settings = data.info, copy.deepcopy(original.model), dict(self.settings)
        if "steps" in settings:
            settings["steps"] = max(round(settings["steps"] * info["steps"]), 1)
        if self.method == "retrain":
            settings["start"] = original.start
        found = unlearn(model, original.retain, original.forget, self.method, masks=original.masks,
                        batch_size=info["batch_size"], seed=seed + 1, **settings)  # fmt: skip
        sparsifier = Sparsifier(
            model, static(), optimizer=torch.optim.SGD(model.parameters()), steps=1, masks=original.masks,
            include=list(original.masks),
        )  # fmt: skip
        report = sparsifier.report()
        sparsifier.remove()
        return FittedUnlearned(model.eval(), report, info, original, found.seconds)


def unlearning_methods() -> dict[str, UnlearningMethod]:
    """Retraining again, fine-tuning, with a falling L1 penalty, up the gradient, Fisher noise, one Newton step."""
    rates = (0.01, 0.02, 0.05, 0.1)
    methods = [
        UnlearningMethod("retrain", "retrain", {"steps": 1.0}),
        UnlearningMethod("fine-tune", "fine_tune", {"steps": 0.1, "lr": 0.02}, {"lr": rates}),
        UnlearningMethod("l1-sparse", "l1_sparse", {"steps": 0.1, "lr": 0.02, "gamma": 1e-3},
                         {"lr": rates, "gamma": (5e-4, 1e-3, 2e-3, 5e-3)}),
        UnlearningMethod("gradient-ascent", "gradient_ascent", {"steps": 0.02, "lr": 0.003},
                         {"lr": (1e-3, 3e-3, 1e-2), "steps": (0.005, 0.02)}),
        UnlearningMethod("fisher", "fisher", {"noise": 0.02}, {"noise": (0.005, 0.01, 0.02, 0.05)}),
        UnlearningMethod("influence", "influence", {"damping": 0.01, "iterations": 30},
                         {"damping": (1e-3, 1e-2, 0.1), "scale": (0.5, 1.0)}),
    ]  # fmt: skip
    return {method.name: method for method in methods}

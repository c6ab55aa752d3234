"""Which methods a comparison of sparse networks has: by recipe, by mask at initialisation, by pattern.

Lives here: the lists with each method's tuning space, and what a method does before or after its recipe. Does not live
here: how one is trained (``frontier``), the recipes. ``pst`` takes no part, for it fine-tunes a trained network.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import check_choice
from ellzero.network import initial, net_trim
from ellzero.network.dynamic import ac_dc, dst_ee, sparse_momentum, srigl
from ellzero.network.frontier import RecipeMethod, tensors
from ellzero.network.learned import autosparse
from ellzero.network.moves import ByPattern
from ellzero.network.patterns import Stairs, decaying_mask, pattern_staircase, sr_ste
from ellzero.network.prunable import prunable
from ellzero.network.pulls import hyper_sparse, irrelevance
from ellzero.network.recipes import Recipe, dense, gmp, named_allocation, one_shot, rigl, set_, static
from ellzero.parts.allocations import Uniform
from ellzero.parts.schedules import Constant
from ellzero.parts.scores import Random
from ellzero.protocol import Data
from ellzero.training import losses
from ellzero.training.loop import Batches
from ellzero.training.masks import scale_by_fan_in

__all__ = ["cut_to_budget", "initial_masks", "initial_methods", "one_shot_pattern", "pattern_methods", "recipe_methods",
           "trimmed"]  # fmt: skip

_DRAWN = {"drop": (0.2, 0.3, 0.5), "until": (0.6, 0.75, 0.9)}
_CUT = {"end": (0.4, 0.6, 0.75)}


def _named(training: Mapping[str, Any], *methods: RecipeMethod) -> dict[str, RecipeMethod]:
    """The methods by name, all trained in the same way; learning rates and weight decays join their spaces."""
    choices = {"lr": training["lrs"], "weight_decay": (0.0, 1e-4, 1e-3)}
    same = {"lr": training["lr"], "optimizer": training["optimizer"]}
    return {method.name: replace(method, space={**choices, **method.space}, **same) for method in methods}


SGD = {"optimizer": "sgd", "lr": 0.1, "lrs": (0.02, 0.05, 0.1, 0.2)}
ADAMW = {"optimizer": "adamw", "lr": 3e-3, "lrs": (1e-3, 3e-3, 1e-2)}
_DENSE = RecipeMethod("dense", dense, dense=True)


def recipe_methods(training: Mapping[str, Any] = SGD, linear: bool = True) -> dict[str, RecipeMethod]:
    """Every recipe that trains from scratch to a density, and Net-Trim where all layers are ``linear``.

    AutoSparse's density comes out of training: here it is cut to the budget, and trained on in the last 0.4 of the run.
    Net-Trim's convex programs come after the run, and are not in its training cost.
    """
    window = {"begin": (0.0, 0.1, 0.25), "end": (0.5, 0.7, 0.85)}
    moved = {"drop": 0.3, "until": 0.75}
    methods = [
        _DENSE,
        RecipeMethod("one-shot", one_shot, {"at": 0.5, "allocation": "global"}, {"at": (0.3, 0.5, 0.7)}),
        *(
            RecipeMethod(f"gradual-{name}", gmp, {"begin": 0.0, "end": 0.7, "allocation": name}, window)
            for name in ("uniform", "erk", "global")
        ),
        RecipeMethod("rigl", rigl, {**moved, "allocation": "erk"}, _DRAWN),
        RecipeMethod("set", set_, {**moved, "allocation": "erk"}, _DRAWN),
        RecipeMethod("static-erk", static, {"allocation": "erk"}),
        RecipeMethod("static-uniform", static, {"allocation": "uniform"}),
        RecipeMethod("dst-ee", dst_ee, {**moved, "c": 10.0}, {**_DRAWN, "c": (1.0, 10.0, 100.0)}),
        RecipeMethod("sparse-momentum", sparse_momentum, {"drop": 0.5, "until": 0.75}, _DRAWN),
        RecipeMethod("srigl", srigl, {**moved, "gamma": None}, {**_DRAWN, "gamma": (None, 0.3, 0.6)}),
        RecipeMethod("ac-dc", ac_dc, {"dense": 0.1, "phases": 8, "until": 0.85},
                     {"phases": (4, 8), "until": (0.7, 0.85)}),
        RecipeMethod("hyper-sparse", hyper_sparse, {"strength": 1e-3, "growth": 1.2, "begin": 0.2, "end": 0.6},
                     {**_CUT, "strength": (3e-4, 1e-3, 3e-3)}),
        RecipeMethod("irrelevance", irrelevance, {"strength": 1e-3, "end": 0.6},
                     {**_CUT, "strength": (1e-4, 1e-3, 1e-2)}),
        RecipeMethod("autosparse", autosparse, {"share": 0.1, "start": -3.0},
                     {"share": (0.0, 0.1, 0.3, 0.5), "start": (-5.0, -4.0, -3.0, -2.0)}, finish=cut_to_budget,
                     tune=0.4),
    ]  # fmt: skip
    if linear:
        methods.append(
            RecipeMethod("net-trim", dense, {"refit": True, "allocation": "erk"},
                         {"allocation": ("uniform", "erk", "global")}, finish=trimmed)
        )  # fmt: skip
    return _named(training, *methods)


def initial_methods(training: Mapping[str, Any] = SGD) -> dict[str, RecipeMethod]:
    """Masks that are chosen before training and stay: at random, or by a score of the untrained weights."""

    def method(name: str, **settings: Any) -> RecipeMethod:
        settings = {**settings, "scale": True}
        return RecipeMethod(name, static, settings, {"scale": (True, False)}, start=initial_masks)

    return _named(
        training, _DENSE,
        method("random-uniform", by="random", allocation="uniform"),
        method("random-erk", by="random", allocation="erk"),
        method("random-erk+", by="random", allocation="erk+"),
        method("random-snip-ratio", by="snip-ratio"),
        method("snip", by="snip"), method("synflow", by="synflow"), method("magnitude", by="magnitude"),
        method("sampled-magnitude", by="sampled-magnitude"),
    )  # fmt: skip


def pattern_methods(training: Mapping[str, Any] = SGD) -> dict[str, RecipeMethod]:
    """n of m: cut once, straight-through, by a fading mask, and by coarser patterns first."""
    faded = {"rate": (4.0, 8.0, 16.0), "dense": (0.0, 0.05, 0.2)}
    stairs = {"variant": ("stepwise", "geometric"), "tune": (0.15, 0.3)}
    each = {"every": 1}  # weights underneath move at every step, and the mask with them
    return _named(
        training, _DENSE,
        RecipeMethod("one-shot", one_shot_pattern, {"at": 0.5}, {"at": (0.3, 0.5, 0.7)}),
        RecipeMethod("sr-ste", sr_ste, {**each, "decay": 2e-4, "dense": 0.0},
                     {"decay": (2e-4, 1e-3, 5e-3), "dense": (0.0, 0.1)}),
        RecipeMethod("decaying-scaled", decaying_mask, {**each, "gradient": "scaled"}, faded),
        RecipeMethod("decaying-ste", decaying_mask, {**each, "gradient": "ste"}, faded),
        RecipeMethod("staircase", pattern_staircase, {**each, "gradient": "scaled"}, stairs),
        RecipeMethod("staircase-ste", pattern_staircase, {**each, "gradient": "ste"}, stairs),
    )  # fmt: skip


def one_shot_pattern(n: int = 2, m: int = 4, *, at: float = 0.5) -> Recipe:
    """Train dense, keep the n largest of each m consecutive inputs at the fraction ``at`` of the run, train on."""
    move = ByPattern(Stairs(((n, m),), at, at))
    return Recipe(Constant(1.0), Uniform(), move=move, every=1_000_000_000, until=at)


def cut_to_budget(model: nn.Module, data: Data, density: float) -> None:
    """Keep the largest weights of the whole network where more than ``density`` of them are not zero."""
    sizes = initial.magnitudes(model, include=data.info.get("include"), exclude=data.info.get("exclude"))
    _keep(model, initial.masks_of(sizes, density))


def trimmed(
    model: nn.Module, data: Data, density: float, *, refit: bool = True, allocation: Any = "erk", samples: int = 500
) -> None:
    """Net-Trim of the trained network on rows of its training part."""
    info, X = data.info, tensors(data.train)[0]
    net_trim.net_trim(
        model, X, density=density, allocation=allocation, refit=refit, samples=samples, include=info.get("include"),
        exclude=info.get("exclude"),
    )  # fmt: skip


@torch.no_grad()
def _keep(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter.masked_fill_(~masks[name], 0)


def initial_masks(
    model: nn.Module, data: Data, density: float, seed: int, *, by: str = "random", allocation: Any = "erk",
    batches: int = 4, rounds: int = 100, scale: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Masks of an untrained network, of exactly ``density``.

    Parameters
    ----------
    by : ``"random"``, spread by ``allocation``; ``"snip"``, or ``"snip-ratio"``, random with its ratios; ``"synflow"``;
        ``"magnitude"``, or ``"sampled-magnitude"``, drawn with probabilities in proportion to it.
    batches : of training data, for SNIP.
    rounds : cuts of SynFlow.
    scale : scale the kept weights of each unit by its own kept fan-in, in place.
    """
    check_choice("by", by, ("random", "snip", "snip-ratio", "synflow", "magnitude", "sampled-magnitude"))
    chosen = {"include": data.info.get("include"), "exclude": data.info.get("exclude")}
    weights = prunable(model, **chosen)[0]
    if by == "synflow":
        twin = _unscaled(model)
        masks = initial.synflow(twin, tensors(data.train)[0][:1], density, rounds=rounds, **chosen)
    elif by in ("snip", "snip-ratio"):
        rows = Batches(*tensors(data.train), batch_size=data.info["batch_size"], seed=seed)
        twin = copy.deepcopy(model)  # a pass in training mode moves the means of batch norms
        scores = initial.snip(twin, losses.classification, itertools.islice(rows, batches), **chosen)
        masks = initial.masks_of(scores, density)
    elif by != "random":
        sample = seed if by == "sampled-magnitude" else None
        masks = initial.masks_of(initial.magnitudes(model, **chosen), density, sample=sample)
    if by in ("random", "snip-ratio"):
        drawn = {name: Random(seed)(weight.detach(), None, {"name": name}) for name, weight in weights.items()}
        spread = named_allocation(allocation) if by == "random" else initial.ratios_of(masks)
        masks = initial.masks_of(drawn, density, allocation=spread)
    for name, weight in weights.items() if scale else ():
        scale_by_fan_in(weight.data, masks[name])
    return masks


def _unscaled(model: nn.Module) -> nn.Module:
    """A copy without the moments that a task's network takes off its inputs: the flow is that of an input of ones."""
    twin = copy.deepcopy(model)
    if getattr(twin, "standardizes", False):
        twin.mean.zero_()
        twin.scale.fill_(1)
    return twin

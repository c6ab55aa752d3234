"""Which sparsity this is: a recipe or a model in the terms of the field, and what may be claimed of it.

Lives here: ``describe`` (a recipe), ``explain`` (a model's report card), ``controls`` (the runs that a result must
beat). Does not live here: measured times (``models.report``), counts during training (``report``). The distinctions are
those of Liu and Wang (2023), arXiv:2302.02596.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.layouts.nn import SparseConv2d, SparseLinear
from ellzero.models.initial import empty, fill
from ellzero.models.layer_report import foretold
from ellzero.network.moves import ByPattern
from ellzero.network.prunable import prunable
from ellzero.network.recipes import Recipe
from ellzero.parts.scores import Gradient, Momentum
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training.masks import largest

__all__ = ["Control", "Description", "Explanation", "Kind", "controls", "describe", "explain", "structure_of"]

_POINTS = 1000


@dataclass(frozen=True)
class Description:
    """A recipe on the axes that are to be kept apart; costs are multiples of a dense run's multiply-adds.

    Attributes
    ----------
    when : ``"before training"``, ``"during training"``, or ``"never"`` for a dense run.
    path : ``"sparse to sparse"`` where no step uses all weights, ``"dense to sparse"``, or ``"dense"``.
    mask : ``"static"``, ``"shrinking"`` (what goes stays away) or ``"dynamic"``.
    structure : ``"unstructured"``, or the pattern's name.
    memory : the largest share of the weights that training holds at once.
    training, inference : with each layer at the density of the whole; the dense phase and dense gradients count.
    """

    when: str
    path: str
    mask: str
    structure: str
    memory: float
    training: float
    inference: float

    def __str__(self) -> str:
        return (
            f"sparse {self.when}, {self.path}, mask {self.mask}, {self.structure}\n"
            f"holds {self.memory:.3f} of the weights in training; multiply-adds of a dense run: training "
            f"{self.training:.3f}, use {self.inference:.3f}"
        )


@register(
    id="S026", kind="method", wing="network", source="arXiv:2302.02596", name="describe",
    claim="the layers' densities are most of what a mask of SNIP is worth: its shuffle beats a uniform random one",
)  # fmt: skip
def describe(recipe: Recipe, steps: int = 10_000) -> Description:
    """Where a recipe stands: when weights go, along which path, under what mask, and what is saved at which time.

    That a mask shuffled within its layers trains as well as the one that SNIP chose did not show on 8 x 8 digits at
    10 % of the weights (two seeds): 94.1 % by SNIP, 88.1 shuffled, 78.8 uniform at random; nor on MNIST at 5 % (five
    seeds): 93.2, 91.0 and 88.9. Many of their pixels are never on, and SNIP sees which.

    Parameters
    ----------
    steps : of the run, which tells what the dense gradients of the updates weigh. One costs ``(2 d + 1) / 3`` of a
        dense step at density d, an ordinary sparse step d (Evci et al., 2020).

    Raises
    ------
    InputError : not a recipe.
    """
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: got {type(recipe).__name__}, want a Recipe such as rigl(density=0.1)")
    check_integer("steps", steps, at_least=1)
    shares = np.array([_active(recipe, (i + 0.5) / _POINTS) for i in range(_POINTS)])
    underneath = recipe.through is not None
    last = _active(recipe, 1.0)
    reads_all = isinstance(recipe.grow, Gradient | Momentum)
    every = 1 if recipe.dense_momentum else recipe.every
    updates = recipe.until / every if reads_all else 0.0
    training = shares.mean() if not underneath else (shares.mean() + 2) / 3
    training += updates * (1 - shares[: max(int(recipe.until * _POINTS), 1)].mean()) / 3
    dense_run = last == 1 and shares.min() == 1
    moves = recipe.turnover is not None or recipe.move is not None or underneath or (np.diff(shares) > 1e-9).any()
    from_dense = underneath or shares.max() == 1 or _active(recipe, 0.0) == 1
    path = "dense" if dense_run else "dense to sparse" if from_dense else "sparse to sparse"
    return Description(
        when="never" if dense_run else "before training" if path == "sparse to sparse" else "during training",
        path=path,
        mask="static" if recipe.until == 0 and not underneath else "dynamic" if moves else "shrinking",
        structure=_structure(recipe),
        memory=1.0 if from_dense else float(shares.max()),
        training=float(training),
        inference=float(last),
    )


def _active(recipe: Recipe, progress: float) -> float:
    if isinstance(recipe.move, ByPattern):
        pattern = recipe.move.pattern(progress)
        if pattern is None:
            return 1.0
        if hasattr(pattern, "n"):
            return pattern.n / pattern.m
    return float(recipe.density(progress, 1.0))


def _structure(recipe: Recipe) -> str:
    if not isinstance(recipe.move, ByPattern):
        return "unstructured" if recipe.move is None else f"as {type(recipe.move).__name__} moves it"
    pattern = recipe.move.pattern(1.0)
    return f"{pattern.n}:{pattern.m}" if hasattr(pattern, "n") else type(pattern).__name__


class Kind(NamedTuple):
    """One weight: its structure, the density, and the layout that is foretold to be fastest here.

    ``speedup`` is over the dense layer at the batch asked for; at most 1.1 means that dense should be kept.
    """

    name: str
    shape: tuple[int, ...]
    structure: str
    density: float
    stored_sparse: bool
    layout: str
    speedup: float


@dataclass(frozen=True)
class Explanation:
    """A model's report card; its text says what the numbers allow to be claimed."""

    layers: tuple[Kind, ...]
    density: float
    """Of the prunable weights."""
    density_of_all: float
    """Of all parameters, those that take no part counted as kept."""
    nbytes: int
    batch: int

    @property
    def may_claim(self) -> tuple[str, ...]:
        """What holds of this model as it stands."""
        if self.density == 1:
            return ("nothing: no weight is zero",)
        held = [f"{1 - self.density:.1%} of the prunable weights are zero ({1 - self.density_of_all:.1%} of all)"]
        if any(layer.stored_sparse for layer in self.layers):
            held.append(f"smaller: {self.nbytes} bytes of weights are stored")
        return tuple(held)

    @property
    def may_not_claim(self) -> tuple[str, ...]:
        """What does not follow."""
        missing = []
        masked = [layer for layer in self.layers if layer.density < 1 and not layer.stored_sparse]
        if masked:
            missing.append(
                f"smaller or faster: {len(masked)} layers hold their zeros in dense tensors; finalize() them"
            )
        slow = [layer.name for layer in self.layers if layer.density < 1 and layer.speedup < 1.1]
        if slow:
            missing.append(f"a speed-up at batch {self.batch} of {', '.join(slow)}: dense is as fast there")
        missing.append("cheaper training: a model does not tell; see describe(recipe) and Sparsifier.report()")
        return tuple(missing)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{layer.name:<{width}}  {'x'.join(map(str, layer.shape)):>12}  {layer.structure:<18} {layer.density:.4f}  "
            f"{layer.layout:<12} {layer.speedup:.2f}x foretold"
            for layer in self.layers
        ]
        lines += [f"holds: {line}" for line in self.may_claim]
        lines += [f"does not follow: {line}" for line in self.may_not_claim]
        return "\n".join(lines)


def explain(model: nn.Module, *, batch: int = 64, include: Any = None, exclude: Any = None) -> Explanation:
    """Which kind of sparsity a model has, layer by layer, which speed to expect of it on this machine, and its claims.

    Times are foretold by a cost model that is calibrated on this machine's kernels, once in a process (a second or so);
    ``ellzero.models.report`` measures them.

    Parameters
    ----------
    batch : rows of activations that a layer sees at once.
    include, exclude : as for ``prunable``; layers of ``finalize`` are always shown.

    Raises
    ------
    InputError : not a module, or nothing to prune in it.
    """
    check_integer("batch", batch, at_least=1)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got {type(model).__name__}, want a torch module")
    packed = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear | SparseConv2d)}
    inside = {id(p) for module in packed.values() for name, p in module.named_parameters() if name != "bias"}
    try:
        weights = prunable(model, include, exclude)[0]
    except InputError:
        if not packed or include is not None or exclude is not None:
            raise
        weights = {}
    layers, kept, total = [], 0, 0
    for name, module in packed.items():
        layout = module.layout
        nonzero = int(np.count_nonzero(layout.to_dense()))
        size = int(np.prod(layout.shape))
        layers.append(_kind(name, tuple(layout.shape), layout.name, nonzero / size, True, batch))
        kept, total = kept + nonzero, total + size
    for name, weight in weights.items():
        if id(weight) in inside:
            continue
        mask = weight.detach() != 0
        density = float(mask.float().mean())
        layers.append(_kind(name, tuple(mask.shape), structure_of(mask), density, False, batch))
        kept, total = kept + int(mask.sum()), total + mask.numel()
    rest = sum(p.numel() for p in model.parameters() if id(p) not in inside) - sum(
        weight.numel() for weight in weights.values() if id(weight) not in inside
    )
    nbytes = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    return Explanation(tuple(layers), kept / total, (kept + rest) / (total + rest), nbytes, batch)


def _kind(name: str, shape: tuple[int, ...], structure: str, density: float, packed: bool, batch: int) -> Kind:
    rows, columns = shape[0], int(np.prod(shape[1:]))
    stored = {"dense": 1.0, "csr": density}
    if structure.startswith("row groups"):
        stored[f"row-group-{structure.split()[-1]}"] = density
    elif structure == "2:4":
        stored["nm-2-4"] = 0.5
    elif structure == "constant fan-in":
        stored["condensed"] = density
    seconds = foretold((rows, columns), batch, stored)
    best = min(seconds, key=seconds.__getitem__) if density < 1 else "dense"
    return Kind(name, shape, structure, density, packed, best, seconds["dense"] / seconds[best])


def structure_of(mask: Tensor) -> str:
    """The most regular pattern that a mask ``[rows, ...]`` has, in words.

    One of ``dense``, ``empty``, ``whole rows``, ``whole columns``, ``n:m``, ``row groups 8`` or ``4``,
    ``constant fan-in``, ``unstructured``.
    """
    rows = mask.reshape(len(mask), -1)
    fan = rows.sum(dim=1)
    if not int(fan.sum()) or bool(rows.all()):
        return "dense" if bool(rows.all()) else "empty"
    if bool(((fan == 0) | (fan == rows.shape[1])).all()):
        return "whole rows"
    if bool((rows == rows[fan > 0][0]).all(dim=1)[fan > 0].all()):
        return "whole columns"
    for m in (4, 8, 16):
        if rows.shape[1] % m == 0 and rows.shape[1] > m:
            of = rows.reshape(len(rows), -1, m).sum(dim=-1)
            if int(of.max()) <= m // 2 and int(of.min()) == int(of.max()):
                return f"{int(of.max())}:{m}"
    for group in (8, 4):
        if len(rows) % group == 0:
            within = rows.reshape(-1, group, rows.shape[1])
            if bool((within == within[:, :1]).all()):
                return f"row groups {group}"
    return "constant fan-in" if bool((fan[fan > 0] == fan.max()).all()) else "unstructured"


class Control(NamedTuple):
    """A run to train beside one's own: on ``model`` under ``masks`` (none for a dense one), for ``steps``."""

    model: nn.Module
    masks: dict[str, Tensor] | None
    steps: int


def controls(
    model: nn.Module, masks: Mapping[str, Tensor], *, steps: int, training: float, seed: int = 0
) -> dict[str, Control]:
    """The runs that a sparse training result has to be compared with.

    ``shuffled``: each mask shuffled within its layer, so that only the layers' densities are kept. ``uniform``: random,
    every layer at the density of the whole. ``same_cost``: the dense model, for as many steps as the sparse run paid
    for. ``small_dense``: a dense model of as many weights, narrower in all hidden layers; only of an ``nn.Sequential``
    whose parametrised layers are linear.

    Parameters
    ----------
    model : untrained, as the sparse run starts from it; copied.
    masks : kept entries by parameter name, as ``Sparsifier.masks``.
    steps, training : of the sparse run, and its cost as a share of a dense one (``Sparsifier.report().cost.training``).

    Raises
    ------
    InputError : masks of other names or shapes.
    """
    check_integer("steps", steps, at_least=1)
    check("training", training, above=0)
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in weights or weights[name].shape != mask.shape:
            raise InputError(f"masks: {name!r} fits no parameter of the model in name and shape")
    if not masks:
        raise InputError("masks: got none, want the kept entries by parameter name")
    kept, total = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    shuffled = {name: _random(mask, int(mask.sum()), seed, name) for name, mask in masks.items()}
    uniform = {name: _random(mask, round(kept / total * mask.numel()), seed, name, "uniform")
               for name, mask in masks.items()}  # fmt: skip
    found = {
        "shuffled": Control(copy.deepcopy(model), shuffled, steps),
        "uniform": Control(copy.deepcopy(model), uniform, steps),
        "same_cost": Control(copy.deepcopy(model), None, max(round(steps * training), 1)),
    }
    small = _narrower(model, kept + sum(p.numel() for name, p in weights.items() if name not in masks), seed)
    if small is not None:
        found["small_dense"] = Control(small, None, steps)
    return found


def _random(mask: Tensor, count: int, seed: int, *names: str) -> Tensor:
    scores = torch.from_numpy(rng(seed, "controls", *names).random(tuple(mask.shape)))
    return largest(scores, max(count, 1))


def _narrower(model: nn.Module, budget: int, seed: int) -> nn.Sequential | None:
    """Hidden layers narrower by one factor, so that the parameters are at most ``budget`` and nearly that many."""
    linear = [module for module in model if isinstance(module, nn.Linear)] if isinstance(model, nn.Sequential) else []
    others = sum(p.numel() for p in model.parameters()) - sum(p.numel() for layer in linear for p in layer.parameters())
    if len(linear) < 2 or others:
        return None
    widths = [layer.out_features for layer in linear[:-1]]

    def sizes(factor: float) -> list[int]:
        return [linear[0].in_features, *(max(int(factor * width), 1) for width in widths), linear[-1].out_features]

    def count(factor: float) -> int:
        at = sizes(factor)
        biased = [layer.bias is not None for layer in linear]
        return sum(a * b + (b if bias else 0) for a, b, bias in zip(at, at[1:], biased))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) <= budget else (low, middle)
    at = sizes(low)
    pairs = dict(zip(linear, itertools.pairwise(at)))

    def make() -> nn.Sequential:
        return nn.Sequential(*(
            nn.Linear(*pairs[module], bias=module.bias is not None) if module in pairs else copy.deepcopy(module)
            for module in model
        ))  # fmt: skip

    return fill(empty(make), seed)

"""Net-Trim: after training, each layer gets the sparsest weights that keep its responses on some rows.

Lives here: ``net_trim`` for a whole model, and what it reports. Does not live here: the program of a layer
(``net_trim_layer``), training under the masks (``sparsifier``).
No labels are needed. Linear layers only; whether a ReLU follows one is seen from what flows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.models.attach import attach
from ellzero.network.net_trim_layer import LayerProgram, Solution
from ellzero.network.recipes import named_allocation
from ellzero.network.sparsifier import prunable
from ellzero.registry import register

__all__ = ["MODES", "Trim", "TrimmedLayer", "net_trim"]

MODES = ("parallel", "cascade")


@dataclass(frozen=True)
class TrimmedLayer:
    """One layer: kept entries of all; ``error``, the change of its responses over their size, and ``allowed`` of it.

    In a cascade the layer sees the inputs that the trimmed layers before it give.
    """

    name: str
    kept: int
    numel: int
    error: float
    allowed: float
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class Trim:
    """What a trim came to: ``masks`` of the kept entries by weight name, for a ``Sparsifier``, and a row per layer."""

    masks: Mapping[str, Bool[Tensor, "units inputs"]]
    layers: tuple[TrimmedLayer, ...]

    @property
    def density(self) -> float:
        """Kept entries over all of the trimmed weights."""
        return sum(row.kept for row in self.layers) / sum(row.numel for row in self.layers)


@register(
    kind="solver", wing="network", id="S103", source="arXiv:1806.06457", extra="torch",
    claim="without labels or training, a layer keeps its responses with a tenth of its weights",
)  # fmt: skip
def net_trim(
    model: nn.Module,
    rows: Tensor,
    *,
    epsilon: float | None = None,
    density: float | None = None,
    allocation: Any = "erk",
    mode: str = "cascade",
    refit: bool = False,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    samples: int = 1000,
    tol: float = 1e-3,
    max_iter: int = 500,
) -> Trim:
    """Trim the linear layers of a trained model in place, to an error or to a density.

    Each layer's weights become the solution of a convex program (see ``LayerProgram``), by ADMM with one factor for
    all its units. What stays is exactly zero or kept.

    Parameters
    ----------
    model : its weights of linear layers are changed, and their biases; nothing else.
    rows : a tensor that the model takes, ``[rows, ...]``.
    epsilon : error allowed in each layer, over the size of its responses; in (0, 1].
    density : kept fraction of all these weights together, in (0, 1], in place of ``epsilon``: each layer's error is
        searched for, and counts are exact.
    allocation : spreads a density over layers: ``"uniform"``, ``"erk"``, ``"global"`` (by size) or an allocation.
    mode : ``"parallel"``: each layer on the inputs that the model gives it; ``"cascade"``: on those of the layers
        trimmed before it, so that later layers mend what earlier ones broke. Responses are those of the model as it
        came.
    refit : end with least squares of the pre-activations on what is kept. The L1 norm shrinks the weights; at
        densities below 0.1 that costs most of the accuracy. Not in the paper, which trains on instead.
    include, exclude : names or glob patterns, as ``prunable`` takes them.
    samples : at most so many rows of each layer's inputs, evenly spaced.
    tol, max_iter : of ADMM.

    Raises
    ------
    InputError : neither or both of ``epsilon`` and ``density``, or out of range; a weight that is not of a linear
        layer, shared or not finite; rows that are not finite. The model is unchanged.

    Measured (64-128-64-10 on digits, 1000 rows, dense 97.4 %): an error of 0.2 keeps a fifth of the weights and 96.4 %;
    a density of 0.1 keeps 95.0 % (96.6 % refitted) where pruning by magnitude keeps 74.8 %, and 97.1 against 95.8 %
    after 100 steps of retraining. See ``tests/claims/test_network_nettrim.py``.

    Source: Aghasi, Abdi and Romberg (2018), algorithms 1 and 2 and the ADMM of section 4.
    """
    if (epsilon is None) == (density is None):
        raise InputError(f"epsilon: got {epsilon} beside density {density}, want one of the two")
    name, dial = ("epsilon", epsilon) if density is None else ("density", density)
    check(name, dial, above=0, at_most=1)
    check_choice("mode", mode, MODES)
    check("tol", tol, above=0, below=math.inf)
    check_integer("max_iter", max_iter, at_least=1)
    samples = check_integer("samples", samples, at_least=1)
    names = _linear_layers(model, include, exclude)
    flows = _flows(model, check_array("rows", rows), names)
    weights = {name: model.get_submodule(name).weight.detach() for name in flows}
    counts = {}
    if density is not None:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        sizes = {name: weight.abs() for name, weight in weights.items()}
        counts = named_allocation(allocation).counts(shapes, density, sizes)
    masks, report = {}, []
    for place, name in enumerate(weights):
        layer, flow = model.get_submodule(name), flows[name]
        inputs = flow.inputs if place == 0 or mode == "parallel" else _flows(model, rows, names)[name].inputs
        bias = None if layer.bias is None else layer.bias.detach().float()
        program = LayerProgram(
            layer.weight.detach().float(), bias, _spaced(inputs, samples), _spaced(flow.outputs, samples),
            rectified=flow.rectified, tol=tol, max_iter=max_iter,
        )  # fmt: skip
        found = program.solve(epsilon) if density is None else program.keep(counts[name])
        if refit:
            weight, bias = program.refit(found.mask)
            found = found._replace(weight=weight, bias=bias)
        masks[f"{name}.weight" if name else "weight"] = found.mask
        report.append(_put(name, layer, program, found))
    return Trim(masks, tuple(report))


def _put(name: str, layer: nn.Linear, program: LayerProgram, found: Solution) -> TrimmedLayer:
    with torch.no_grad():
        layer.weight.copy_(found.weight)
        if found.bias is not None:
            layer.bias.copy_(found.bias)
    error = program.error(found.weight, found.bias)
    kept, numel = int(found.mask.sum()), found.mask.numel()
    return TrimmedLayer(name, kept, numel, error, found.epsilon, found.n_iter, found.converged)


def _spaced(x: Tensor, samples: int) -> Tensor:
    x = x.reshape(-1, x.shape[-1]).float()
    return x[torch.linspace(0, len(x) - 1, samples).long()] if len(x) > samples else x


def _linear_layers(model: nn.Module, include: Any, exclude: Any) -> list[str]:
    """Names of the layers whose weights take part."""
    names = []
    for name, parameter in prunable(model, include, exclude)[0].items():
        check_array(f"model: {name}", parameter.detach())
        owner = name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        if not isinstance(layer, nn.Linear):
            raise InputError(f"model: {name!r} is of {type(layer).__name__}, want linear layers; name it in exclude")
        users = [module for module in model.modules() if getattr(module, "weight", None) is parameter]
        if len(users) > 1:
            raise InputError(f"model: {name!r} is shared by {len(users)} layers, want it in one; name it in exclude")
        names.append(owner)
    return names


@dataclass(frozen=True)
class _Flow:
    """What goes into a linear layer and comes out, and whether a ReLU follows."""

    inputs: Tensor
    outputs: Tensor
    rectified: bool


def _flows(model: nn.Module, rows: Tensor, names: Sequence[str]) -> dict[str, _Flow]:
    """By layer, in the order that they run.

    A ReLU follows where the rectified output is, entry by entry, what another layer takes or the model gives.
    """
    takes: dict[str, list[Tensor]] = {}
    gives: dict[str, list[Tensor]] = {}

    def record(seen: dict[str, list[Tensor]]) -> Callable:
        return lambda name, module: lambda x: seen.setdefault(name, []).append(x.detach())

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    was = model.training
    try:
        with (
            torch.no_grad(),
            attach(model.eval(), dict.fromkeys(linear, record(takes)), "input", bind=True),
            attach(model, dict.fromkeys(linear, record(gives)), bind=True),
        ):
            given = model(rows)
    finally:
        model.train(was)
    for name in names:
        if name not in takes:
            raise InputError(f"model: {name!r} is not called with these rows, want its inputs; name it in exclude")
    after = [torch.cat(parts) for parts in takes.values()] + ([given] if isinstance(given, Tensor) else [])

    def flow(name: str) -> _Flow:
        output = torch.cat(gives[name])
        flat = output.clamp(min=0).flatten()
        rectified = any(x.numel() == flat.numel() and torch.equal(x.flatten(), flat) for x in after)
        return _Flow(torch.cat(takes[name]), output, rectified)

    return {name: flow(name) for name in takes if name in names}

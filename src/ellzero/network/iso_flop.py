"""Bigger sparse layers at the multiply-adds of the dense ones they replace.

Lives here: ``sparse_iso_flop`` (wide, parallel, factorised, doped), the two layers it needs, and ``multiply_adds``.
Does not live here: training under a mask (``sparsifier``), how masks move (``recipes``), layouts that make the zeros
pay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.models.initial import empty, fill
from ellzero.network.initial import Fixed
from ellzero.registry import register

__all__ = ["Doped", "IsoFlop", "Parallel", "multiply_adds", "sparse_iso_flop"]

KINDS = ("wide", "parallel", "factorised", "doped")
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Hardswish, nn.Hardtanh,
)  # fmt: skip
_OTHERS = (nn.Flatten, nn.Identity, nn.Dropout)


class Parallel(nn.Module):
    """``sum_i activation(W_i x + b_i)``: branches of the same shape, each with its own nonlinearity."""

    def __init__(self, inputs: int, outputs: int, branches: int, activation: nn.Module, bias: bool = True):
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(inputs, outputs, bias) for _ in range(branches)])
        self.activation = activation

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return sum(self.activation(branch(x)) for branch in self.branches)


class Doped(nn.Module):
    """``S x + U V x + b``: a weight to be made sparse, and one of low rank that stays dense."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = True):
        super().__init__()
        self.sparse = nn.Linear(inputs, outputs, bias)
        self.V, self.U = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return self.sparse(x) + self.U(self.V(x))


@dataclass(frozen=True)
class IsoFlop:
    """A bigger model, and how many entries of which weights to keep so that it costs what the dense one did.

    ``Sparsifier(found.model, rigl(found.density, allocation=found.allocation), include=found.include, ...)``
    """

    model: nn.Sequential
    kept: Mapping[str, int]

    @property
    def include(self) -> list[str]:
        """The weights to make sparse."""
        return list(self.kept)

    @property
    def allocation(self) -> Fixed:
        """Just these counts."""
        return Fixed(tuple(self.kept.items()))

    @property
    def density(self) -> float:
        """Of these weights together."""
        return sum(self.kept.values()) / sum(self.model.get_parameter(name).numel() for name in self.kept)


def multiply_adds(model: nn.Module) -> int:
    """Of one row: the nonzero entries of all linear layers. Biases and activations are not counted."""
    return sum(int(m.weight.count_nonzero()) for m in model.modules() if isinstance(m, nn.Linear))


@register(
    kind="solver", wing="network", id="S092", source="arXiv:2303.11525", extra="torch", name="sparse_iso_flop",
    example=lambda: sparse_iso_flop(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), 0.5).model,
    claim="a wider sparse network costs what the dense one does and is as good",
)  # fmt: skip
def sparse_iso_flop(model: nn.Sequential, sparsity: float, kind: str = "wide", *, seed: int = 0) -> IsoFlop:
    """Replace linear layers by bigger sparse ones of equal multiply-adds. Thangarasa et al. (2024), section 3.

    A layer from ``a`` to ``b`` costs ``a b`` before and after, to the entry; sizes are rounded, and counts take up what
    that leaves. With the sparsity ``s``:

    - ``"wide"``: hidden widths times ``sqrt(1 / (1 - s))``. The first and the last layer grow on one side, so their
      density is ``sqrt(1 - s)``.
    - ``"parallel"``: ``1 / (1 - s)`` branches with a nonlinearity each, summed. The last layer, which has none, stays.
    - ``"factorised"``: two layers with ``a b / ((a + b)(1 - s))`` units and a nonlinearity between.
    - ``"doped"``: a sparse weight and a dense one of rank ``s a b / (a + b)``. A layer too small for rank 1 stays.

    Weights are drawn anew from ``seed``, with the variance of He et al. (2015) for the dense layer; biases start at 0.
    More units and branches bring more biases and activations, which are not counted, and time and memory are equal only
    where the sparse layers run on a sparse layout. On a narrow perceptron wide tied with dense; the gains of the
    paper are those of deep convolutional networks.

    Parameters
    ----------
    model : linear layers and elementwise activations, in order; flattening and dropout may stand between.
    sparsity : of the new weights, in (0, 1).
    kind : one of the four.

    Raises
    ------
    InputError : another module, no activation, no hidden layer to widen, or nothing to replace at this sparsity; the
        given model is never changed.
    """
    check("sparsity", sparsity, above=0, below=1)
    check_choice("kind", kind, KINDS)
    check_integer("seed", seed, at_least=0)
    activation = _checked(model, kind)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    kept: dict[str, int] = {}
    make = {"parallel": _parallel, "factorised": _factorised, "doped": _doped}
    if kind == "wide":
        new = empty(lambda: _wide(model, layers, sparsity, kept))
    else:
        new = empty(lambda: make[kind](model, sparsity, kept, activation))
    if not kept:
        raise InputError(f"sparsity: got {sparsity}, at which {kind!r} leaves every layer as it is; want a larger one")
    fill(new, seed, lambda name, weight: _std(new, name, weight))
    return IsoFlop(new.to(layers[0].weight).train(model.training), kept)


def _checked(model: nn.Sequential, kind: str) -> nn.Module:
    """The first activation, if the model is of linear layers and activations."""
    if not isinstance(model, nn.Sequential):
        raise InputError(f"model: got {type(model).__name__}, want a torch.nn.Sequential of linear layers")
    for name, module in model.named_children():
        if not (type(module) is nn.Linear or isinstance(module, (*_ACTIVATIONS, *_OTHERS))):
            raise InputError(f"model: {name!r} is a {type(module).__name__}, want linear layers and activations")
    n_linear = sum(isinstance(module, nn.Linear) for module in model)
    activations = [module for module in model if isinstance(module, _ACTIVATIONS)]
    if n_linear < (2 if kind == "wide" else 1) or not activations:
        raise InputError(f"model: got {n_linear} linear layers and {len(activations)} activations, want a hidden layer")
    return activations[0]


def _std(model: nn.Module, name: str, weight: Tensor) -> float:
    """He's, with the variance shared out where several products are summed."""
    holder = name.split(".")[0]
    module = model.get_submodule(holder)
    summed = len(module.branches) if isinstance(module, Parallel) else 2 if isinstance(module, Doped) else 1
    return math.sqrt(2 / (summed * weight.shape[1]))


def _wide(model: nn.Sequential, layers: list[nn.Linear], sparsity: float, kept: dict[str, int]) -> nn.Sequential:
    factor, new = math.sqrt(1 / (1 - sparsity)), []
    for position, module in enumerate(model):
        if not isinstance(module, nn.Linear):
            new.append(copy.deepcopy(module))
            continue
        a, b = module.in_features, module.out_features
        kept[f"{position}.weight"] = a * b
        wide_a = a if module is layers[0] else round(a * factor)
        wide_b = b if module is layers[-1] else round(b * factor)
        new.append(nn.Linear(wide_a, wide_b, module.bias is not None))
    return nn.Sequential(*new)


def _parallel(model: nn.Sequential, sparsity: float, kept: dict[str, int], _: nn.Module) -> nn.Sequential:
    branches, modules, new = round(1 / (1 - sparsity)), list(model), []
    for position, module in enumerate(modules):
        after = modules[position + 1] if position + 1 < len(modules) else None
        before = modules[position - 1] if position else None
        if branches > 1 and isinstance(module, nn.Linear) and isinstance(after, _ACTIVATIONS):
            a, b = module.in_features, module.out_features
            for i in range(branches):
                kept[f"{len(new)}.branches.{i}.weight"] = (a * b + i) // branches
            new.append(Parallel(a, b, branches, copy.deepcopy(after), module.bias is not None))
        elif branches == 1 or not (isinstance(before, nn.Linear) and isinstance(module, _ACTIVATIONS)):
            new.append(copy.deepcopy(module))  # an activation after a linear layer is inside the branches
    return nn.Sequential(*new)


def _factorised(
    model: nn.Sequential, sparsity: float, kept: dict[str, int], activation: nn.Module
) -> nn.Sequential:  # fmt: skip
    new = []
    for position, module in enumerate(model):
        if not isinstance(module, nn.Linear):
            new.append(copy.deepcopy(module))
            continue
        a, b, bias = module.in_features, module.out_features, module.bias is not None
        inner = math.ceil(a * b / ((a + b) * (1 - sparsity)) - 1e-9)
        kept[f"{position}.0.weight"] = first = round(a * b * a / (a + b))
        kept[f"{position}.2.weight"] = a * b - first
        new.append(nn.Sequential(nn.Linear(a, inner, bias), copy.deepcopy(activation), nn.Linear(inner, b, bias)))
    return nn.Sequential(*new)


def _doped(model: nn.Sequential, sparsity: float, kept: dict[str, int], _: nn.Module) -> nn.Sequential:
    new = []
    for position, module in enumerate(model):
        if not isinstance(module, nn.Linear):
            new.append(copy.deepcopy(module))
            continue
        a, b, bias = module.in_features, module.out_features, module.bias is not None
        rank = math.floor(sparsity * a * b / (a + b) + 1e-9)
        if rank:
            kept[f"{position}.sparse.weight"] = a * b - rank * (a + b)
        new.append(Doped(a, b, rank, bias) if rank else copy.deepcopy(module))
    return nn.Sequential(*new)

"""Networks with a hidden, very sparse ticket that is known, as the test bed of pruning.

Lives here: ``Target`` and the paper's three (``relu_target``, ``circle_target``, ``helix_target``) with their data,
``source`` (the random network) and ``plant``. Does not live here: any pruning; every recipe may look for the ticket.
Fischer and Burkholz (2022), Plant 'n' Seek.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["BOUNDARIES", "Planted", "Target", "circle_data", "circle_target", "helix", "helix_data", "helix_target",
           "plant", "relu_data", "relu_target", "source"]  # fmt: skip

BOUNDARIES = (0.2, 0.5, 0.7)


@dataclass(frozen=True, eq=False)
class Target:
    """A small network: ``relu(W x + b)`` layer by layer, the last one linear."""

    weights: tuple[Float[np.ndarray, "out into"], ...]
    biases: tuple[Float[np.ndarray, " out"], ...]

    def __call__(self, X: Float[np.ndarray, "rows into"]) -> Float[np.ndarray, "rows out"]:
        X = np.asarray(check_array("X", X, ndim=2, shape=(None, self.weights[0].shape[1])), dtype=np.float64)
        for number, (w, b) in enumerate(zip(self.weights, self.biases), 1):
            X = X @ w.T + b
            X = X if number == len(self.weights) else np.maximum(X, 0)
        return X

    @property
    def size(self) -> int:
        """Its nonzero weights, biases not counted."""
        return sum(int(np.count_nonzero(w)) for w in self.weights)


def _deepened(weights: Sequence[np.ndarray], biases: Sequence[np.ndarray], depth: int | None) -> Target:
    """With identities before the last layer, where values are not negative, up to ``depth`` layers of weights."""
    depth = len(weights) if depth is None else check_integer("depth", depth, at_least=len(weights))
    width, extra = weights[-1].shape[1], depth - len(weights)
    return Target((*weights[:-1], *[np.eye(width)] * extra, weights[-1]),
                  (*biases[:-1], *[np.zeros(width)] * extra, biases[-1]))  # fmt: skip


def relu_target(d: int = 10, depth: int | None = None) -> Target:
    """``relu(x_1)`` of ``d`` inputs: one unit in each hidden layer."""
    first = np.zeros((1, check_integer("d", d, at_least=1)))
    first[0, 0] = 1.0
    return _deepened([first, np.ones((1, 1))], [np.zeros(1), np.zeros(1)], depth)


def circle_target(knots: int = 10, depth: int | None = None) -> Target:
    """Scores of four classes by ``x_1^2 + x_2^2``, which are told apart at ``BOUNDARIES``.

    The first layer and the second make the squares, piecewise linear between ``knots`` on [-1, 1], half of them on each
    side: they err by at most ``1 / knots ** 2`` each. The scores of neighbouring classes cross at the boundaries.
    """
    check_integer("knots", knots, at_least=2)
    if knots % 2:
        raise InputError(f"knots: got {knots}, want an even number, half of them on each side of 0")
    at = np.arange(knots // 2) * 2 / knots
    rows = [(axis, sign) for axis in (0, 1) for sign in (1.0, -1.0)]
    first = np.zeros((4 * len(at), 2))
    for number, (axis, sign) in enumerate(rows):
        first[number * len(at) : (number + 1) * len(at), axis] = sign
    bends = np.full(len(at), 4 / knots)
    bends[0] = 2 / knots
    ranks = np.arange(len(BOUNDARIES) + 1.0)
    offsets = -np.concatenate([[0.0], np.cumsum(BOUNDARIES)])
    return _deepened([first, np.tile(bends, 4)[None], 10 * ranks[:, None]],
                     [np.tile(-at, 4), np.zeros(1), 10 * offsets], depth)  # fmt: skip


def helix(t: Shaped[np.ndarray, " rows"]) -> Float[np.ndarray, "rows 3"]:
    """``(s cos a, s sin a, s)`` with ``a = 5 pi + 3 pi t`` and ``s = a / (8 pi)``, t in [0, 1]."""
    a = math.pi * (5 + 3 * np.asarray(t, dtype=np.float64))
    return np.stack([np.cos(a), np.sin(a), np.ones_like(a)], axis=1) * (a / (8 * math.pi))[:, None]


def helix_target(knots: int = 30, depth: int | None = None) -> Target:
    """One input to the three coordinates of ``helix``, piecewise linear between ``knots`` on [0, 1]."""
    at = np.arange(check_integer("knots", knots, at_least=1) + 1) / knots
    slopes = np.diff(helix(at), axis=0) * knots
    bends = np.diff(slopes, axis=0, prepend=0.0)
    bends[abs(bends) < 1e-12] = 0  # the last coordinate is a line
    return _deepened([np.ones((knots, 1)), bends.T], [-at[:-1], helix(at[:1])[0]], depth)


def relu_data(rows: int, d: int = 10, *, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``x`` uniform on ``[-1, 1]^d``, ``y = relu(x_1)`` with normal noise, as columns."""
    X = rng(seed, "planted", "relu").uniform(-1, 1, (check_integer("rows", rows, at_least=1), d))
    return X, np.maximum(X[:, :1], 0) + check("noise", noise, at_least=0) * rng(seed, "noise").standard_normal(
        (rows, 1)
    )


def circle_data(rows: int, *, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``x`` uniform on ``[-1, 1]^2`` and its class; the fraction ``noise`` of the classes is drawn anew."""
    draw = rng(seed, "planted", "circle")
    X = draw.uniform(-1, 1, (check_integer("rows", rows, at_least=1), 2))
    y = np.searchsorted(BOUNDARIES, (X**2).sum(1))
    anew = draw.random(rows) < check("noise", noise, at_least=0, at_most=1)
    return X, np.where(anew, draw.integers(0, len(BOUNDARIES) + 1, rows), y)


def helix_data(rows: int, *, noise: float = 0.01, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``t`` uniform on [0, 1] as a column, and its ``helix`` with normal noise."""
    draw = rng(seed, "planted", "helix")
    t = draw.random(check_integer("rows", rows, at_least=1))
    return t[:, None], helix(t) + check("noise", noise, at_least=0) * draw.standard_normal((rows, 3))


def source(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Linear layers and ReLUs; weights of deviation ``sqrt(2 / n)``, biases of the product of those so far."""
    layers: list[nn.Module] = []
    spread = 1.0
    for number, (into, out) in enumerate(itertools.pairwise(sizes)):
        deviation = math.sqrt(2 / check_integer("sizes", into, at_least=1))
        spread *= deviation
        layer, draw = nn.Linear(into, check_integer("sizes", out, at_least=1)), rng(seed, "source", number)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(draw.standard_normal((out, into)) * deviation))
            layer.bias.copy_(torch.from_numpy(draw.standard_normal(out) * spread))
        layers += [layer, nn.ReLU()]
    if not layers:
        raise InputError(f"sizes: got {list(sizes)}, want at least an input and an output size")
    return nn.Sequential(*layers[:-1])


class Planted(NamedTuple):
    """Where the ticket is: masks by parameter name; by layer the units taken, and how much larger they are."""

    masks: dict[str, Bool[Tensor, "out into"]]
    units: list[np.ndarray]
    scales: list[np.ndarray]


@register(
    kind="generator", wing="network", id="S133", source="arXiv:2111.11153", extra="torch", name="plant",
    claim="pruning at initialisation misses tickets that are known to be there",
    example=lambda: plant(source((3, 4, 1)), relu_target(3)),
)  # fmt: skip
@torch.no_grad()
def plant(model: nn.Module, target: Target) -> Planted:
    """Write a target into a chain of linear layers and ReLUs, layer by layer, where it is least seen.

    Each unit of the target takes the free unit of the layer whose bias and weights from the units taken before are
    nearest, in L1, to a positive multiple of its own; that multiple is written there, and the last layer undoes the
    multiples. Section 3.2 and algorithm 1 of the paper. Changed in place: biases of the units taken and their
    weights within the ticket. Under the masks the network is the target.

    Raises
    ------
    InputError : a model that is no such chain, or too small: its layers must be as many as the target's and as wide.
    """
    layers = {
        f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear) if m.bias is not None
    }
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    wanted = [w.shape for w in target.weights]
    fits = len(shapes) == len(wanted) and shapes[0][1] == wanted[0][1] and shapes[-1][0] == wanted[-1][0]
    if not fits or any(out < want for (out, _), (want, _) in zip(shapes, wanted)):
        raise InputError(f"model: got layers with biases of shapes {shapes}, want {len(wanted)} at least {wanted}")
    units, scales, masks = [np.arange(wanted[0][1])], [np.ones(wanted[0][1])], {}
    for number, (name, layer) in enumerate(layers.items(), 1):
        own = np.column_stack([target.biases[number - 1], target.weights[number - 1] / scales[-1]])
        weight, bias = layer.weight.double().cpu().numpy(), layer.bias.double().cpu().numpy()
        if number == len(layers):
            taken, scale = np.arange(len(own)), np.ones(len(own))
        else:
            taken, scale = _matches(np.column_stack([bias, weight[:, units[-1]]]), own)
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        for unit, row, factor in zip(taken, own, scale):
            on = row[1:] != 0
            mask[unit, units[-1][on]] = True
            weight[unit, units[-1][on]] = factor * row[1:][on]
            bias[unit] = factor * row[0]
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
        masks[name] = mask.to(layer.weight.device)
        units.append(taken)
        scales.append(scale)
    return Planted(masks, units[1:], scales[1:])


def _matches(found: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row wanted a free row found and a positive factor; only entries that are not zero are compared."""
    free, taken, factors = np.ones(len(found), dtype=bool), [], []
    for row in wanted:
        on = row != 0
        if not on.any():
            raise InputError("target: a unit has neither bias nor weights, want none that is always zero")
        near = found[:, on]
        factor = near @ row[on] / (row[on] @ row[on])
        gap = abs(near - factor[:, None] * row[on]).sum(1) / np.maximum(factor, 1e-300) / abs(row[on]).sum()
        gap[(factor <= 0) | ~free] = np.inf
        best = int(gap.argmin())
        if not np.isfinite(gap[best]):  # nothing of the same sign: any that is free, at its own size
            best = int(free.argmax())
            factor[best] = abs(near[best]).sum() / abs(row[on]).sum() or 1.0
        free[best] = False
        taken.append(best)
        factors.append(factor[best])
    return np.array(taken), np.array(factors)

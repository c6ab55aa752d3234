"""Activations that make activations sparse, and the initial weights under which deep networks of them still train.

Lives here: ``CReLU`` and ``CST`` (shifted and clipped), their variance map in closed form, ``stable_initialisation``
and ``stabilise`` for a model, ``layer_statistics`` of what really comes. Does not live here: sparse weights
(``sparsifier``), activations that are cut by rank or score (another wing).
Throughout, a pre-activation is ``N(0, q)`` in a wide random network, and the design has ``q = 1``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.models.attach import attach, matching
from ellzero.registry import register
from ellzero.rng import rng

__all__ = [
    "CST", "CReLU", "LayerStatistics", "StableInitialisation", "clip_for_slope", "layer_statistics", "slope",
    "stabilise", "stable_initialisation", "variance_map",
]  # fmt: skip

_SIDES = {"relu": 1, "threshold": 2}
"""Tails of the normal distribution in which the activation is not zero."""


class _Clipped(nn.Module):
    """``tau`` and ``m`` checked, and said by ``print``."""

    kind: str

    def __init__(self, tau: float, m: float = math.inf):
        super().__init__()
        self.tau = float(check("tau", tau, above=-math.inf, below=math.inf))
        self.m = float(check("m", m, above=0))

    def extra_repr(self) -> str:
        return f"tau={self.tau:.4g}, m={self.m:.4g}"


@register(
    kind="model", wing="network", id="S146", source="arXiv:2402.16184", extra="torch", example=lambda: CReLU(1.0, 1.0),
    claim="clipped, a network of depth 30 with 85 % of its activations at zero keeps its variance and trains",
)  # fmt: skip
class CReLU(_Clipped):
    """``min(max(x - tau, 0), m)``: zero below ``tau``, at most ``m``. Price et al. (2024), section 3.

    Without ``m`` the shifted ReLU, whose variance explodes in deep networks.
    """

    kind = "relu"

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (x - self.tau).clamp(0, self.m)


@register(
    kind="model", wing="network", id="S146", source="arXiv:2402.16184", extra="torch", example=lambda: CST(1.5, 1.0),
    claim="clipped, a network of depth 30 with 85 % of its activations at zero keeps its variance and trains",
)  # fmt: skip
class CST(_Clipped):
    """``sign(x) min(max(|x| - tau, 0), m)``: the soft threshold, at most ``m`` in size. Price et al. (2024), section 3.

    ``tau`` is at least 0.
    """

    kind = "threshold"

    def __init__(self, tau: float, m: float = math.inf):
        super().__init__(check("tau", tau, at_least=0), m)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sign(x) * (x.abs() - self.tau).clamp(0, self.m)


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0


def _share(tau: float, m: float, q: float) -> float:
    """``P(tau < x < tau + m)`` for ``x ~ N(0, q)``, without cancellation in the tail."""
    low, high = tau / math.sqrt(q), (tau + m) / math.sqrt(q)
    return float(ndtr(-low) - ndtr(-high))


def _second_moment(tau: float, m: float, q: float) -> float:
    """``E[min(max(x - tau, 0), m)^2]`` for ``x ~ N(0, q)``: a quadratic over the rise, and ``m^2`` above it."""
    root = math.sqrt(q)
    low, high = tau / root, (tau + m) / root
    inside = _share(tau, m, q)
    edge = high * _density(high) if math.isfinite(high) else 0.0
    square = inside + low * _density(low) - edge
    rise = q * square - 2 * root * tau * (_density(low) - _density(high)) + tau**2 * inside
    return rise + (m**2 * float(ndtr(-high)) if math.isfinite(m) else 0.0)


@dataclass(frozen=True)
class StableInitialisation:
    """Where an activation's variance map has its fixed point ``q* = 1``, on the edge of chaos.

    Attributes
    ----------
    kind : ``"relu"`` or ``"threshold"``.
    sparsity : share of activations that are zero at ``q = 1``.
    tau, m : of the activation.
    weight_variance : ``sigma_w^2``; weights are ``N(0, sigma_w^2 / fan_in)``.
    bias_variance : ``sigma_b^2``.
    slope : ``V'(1)``; below 1 the variance returns to 1 after a push, at 1 it drifts.
    """

    kind: str
    sparsity: float
    tau: float
    m: float
    weight_variance: float
    bias_variance: float
    slope: float

    def activation(self) -> nn.Module:
        """A fresh module."""
        return (CReLU if self.kind == "relu" else CST)(self.tau, self.m)


def variance_map(q: Any, initialisation: StableInitialisation) -> Any:
    """``V(q) = sigma_w^2 E[phi(sqrt(q) Z)^2] + sigma_b^2``: the variance of the next layer's pre-activations.

    ``q`` is a positive number or an array of them. Price et al. (2024), equation 3, in closed form.
    """
    values, it = np.asarray(q, np.float64), initialisation
    check("q", float(values.min(initial=math.inf)), above=0)
    moments = [_SIDES[it.kind] * _second_moment(it.tau, it.m, float(each)) for each in values.ravel()]
    found = (it.weight_variance * np.array(moments) + it.bias_variance).reshape(values.shape)
    return float(found) if found.ndim == 0 else found


def slope(q: float, initialisation: StableInitialisation) -> float:
    """``V'(q)``, by Stein's lemma ``sigma_w^2 (P(tau < |x| < tau + m) - m p(tau + m))`` with p the density of x."""
    it = initialisation
    check("q", q, above=0, below=math.inf)
    clipped = it.m * _density((it.tau + it.m) / math.sqrt(q)) / math.sqrt(q) if math.isfinite(it.m) else 0.0
    return it.weight_variance * _SIDES[it.kind] * (_share(it.tau, it.m, q) - clipped)


def _threshold(sparsity: float, kind: str) -> float:
    check_choice("kind", kind, _SIDES)
    check("sparsity", sparsity, above=0, below=1)
    return float(ndtri(sparsity) if kind == "relu" else ndtri((1 + sparsity) / 2))


@register(
    kind="metric", wing="network", id="S146", source="arXiv:2402.16184", extra="torch", name="stable_initialisation",
    claim="clipped, a network of depth 30 with 85 % of its activations at zero keeps its variance and trains",
)  # fmt: skip
def stable_initialisation(sparsity: float, m: float = 1.0, *, kind: str = "relu") -> StableInitialisation:
    """The threshold, weight and bias variances for a share of zeros, on the edge of chaos. Price et al. (2024).

    ``tau`` makes ``P(phi(Z) = 0)`` the sparsity; ``sigma_w^2 = 1 / E[phi'(Z)^2]`` (a small difference of two inputs is
    neither damped nor blown up), ``sigma_b^2 = 1 - sigma_w^2 E[phi(Z)^2]`` (so that ``V(1) = 1``).

    Parameters
    ----------
    sparsity : share of activations at zero, in (0, 1); 0.7 to 0.9 in the paper.
    m : largest activation, in the units of a pre-activation's standard deviation; a larger one says more and is less
        stable; infinity is the unclipped activation.
    kind : ``"relu"`` for ``CReLU``, ``"threshold"`` for ``CST``.

    Raises
    ------
    InputError : a bad argument, or a pair for which no bias variance is left (a low sparsity with a large ``m``).
    """
    tau, sides = _threshold(sparsity, kind), _SIDES[kind]
    check("m", m, above=0)
    weight = 1 / (sides * _share(tau, m, 1.0))
    bias = 1 - weight * sides * _second_moment(tau, m, 1.0)
    if bias < -1e-12:
        raise InputError(
            f"m: got {m} at sparsity {sparsity}, which leaves a bias variance of {bias:.3g}; want a smaller m or a "
            "larger sparsity"
        )
    found = StableInitialisation(kind, sparsity, tau, float(m), weight, max(bias, 0.0), 0.0)
    return StableInitialisation(kind, sparsity, tau, float(m), weight, max(bias, 0.0), slope(1.0, found))


def clip_for_slope(sparsity: float, target: float, *, kind: str = "relu") -> float:
    """The ``m`` at which ``V'(1)`` is ``target``, between 0 and 1: 0.5 to 0.9 trains well.

    It solves ``1 - m p(tau + m) / P(tau < Z < tau + m) = target``, whose left side rises with ``m`` for ``tau >= 0``.

    Raises
    ------
    InputError : a bad argument, or a sparsity below one half (where a slope may belong to several ``m``).
    """
    tau = _threshold(sparsity, kind)
    check("target", target, above=0, below=1)
    if tau < 0:
        raise InputError(f"sparsity: got {sparsity}, want at least 0.5")
    found = brentq(lambda m: 1 - m * _density(tau + m) / _share(tau, m, 1.0) - target, 1e-6, 40.0, xtol=1e-14)
    return float(found)


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def stabilise(
    model: nn.Module, initialisation: StableInitialisation, *, seed: int = 0, mean_square: float = 1.0,
    pattern: str = "*",
) -> nn.Module:  # fmt: skip
    """Draw the weights and biases of every linear layer and convolution anew, in place, and return the model.

    Weights are ``N(0, sigma_w^2 / fan_in)`` and biases ``N(0, sigma_b^2)``. The first layer, which sees the input and
    no activation, has ``N(0, (1 - sigma_b^2) / (fan_in mean_square))``, so that its pre-activations have ``q = 1``.

    Parameters
    ----------
    mean_square : of the entries that the first layer sees; 1 for standardised inputs.
    pattern : names of the modules to draw; the first of them sees the input.

    Raises
    ------
    InputError : a bad argument, or no layer that the pattern fits.
    """
    check_integer("seed", seed, at_least=0)
    check("mean_square", mean_square, above=0, below=math.inf)
    found = {name: layer for name, layer in matching(model, pattern).items() if isinstance(layer, _LAYERS)}
    if not found:
        raise InputError(f"model: {type(model).__name__} has no linear layer or convolution that fits {pattern!r}")
    variance = (1 - initialisation.bias_variance) / mean_square
    for name, layer in found.items():
        fan_in = layer.weight[0].numel()
        _draw(layer.weight, variance / fan_in, seed, f"{name}.weight")
        if layer.bias is not None:
            _draw(layer.bias, initialisation.bias_variance, seed, f"{name}.bias")
        variance = initialisation.weight_variance
    return model


def _draw(parameter: Tensor, variance: float, seed: int, name: str) -> None:
    drawn = rng(seed, "stable", name).standard_normal(tuple(parameter.shape), dtype=np.float32)
    parameter.copy_(torch.from_numpy(drawn * math.sqrt(variance)))


class LayerStatistics(NamedTuple):
    """Of one activation: mean square of what came in, and share of zeros of what went out."""

    name: str
    mean_square: float
    sparsity: float


@torch.no_grad()
def layer_statistics(model: nn.Module, x: Tensor) -> list[LayerStatistics]:
    """What each ``CReLU`` and ``CST`` of a model sees and gives for inputs ``x``: sparsity drifts in training.

    Raises
    ------
    InputError : a model without such an activation.
    """
    seen: list[LayerStatistics] = []

    def watch(name: str, module: nn.Module) -> Any:
        def look(value: Tensor) -> None:
            zeros = float((module.forward(value) == 0).double().mean())
            seen.append(LayerStatistics(name, float(value.double().square().mean()), zeros))

        return look

    places = {name: watch for name, module in model.named_modules() if isinstance(module, _Clipped) and name}
    if not places:
        raise InputError(f"model: {type(model).__name__} has no CReLU or CST inside, want one")
    with attach(model, places, "input", bind=True) as handle:
        model(x)
    order = {name: i for i, name in enumerate(handle.names)}
    return sorted(seen, key=lambda row: order[row.name])

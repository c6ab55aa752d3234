"""Gradient rules: what the derivative sees of entries that were dropped, and of the threshold that dropped them.

Lives here: ``apply(x, support, threshold=None)`` for tensors, forward always ``x`` on the support and zero elsewhere.
Does not live here: which entries are kept (``constraints``). A rule knows nothing of how the support was found.
This is the one module of ``parts`` that needs torch: autograd lives only here, in ``layouts`` and in custom ops.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.errors import InputError, check
from ellzero.parts.schedules import Linear
from ellzero.parts.selection import check_scores
from ellzero.registry import register

__all__ = ["Annealed", "Masked", "Rectangle", "StraightThrough", "through_jacobian"]


def _check(x: Tensor, support: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"x: got {type(x).__name__}, want a torch tensor (gradient rules are for autograd)")
    check_scores("x", x, scalars=True)
    if not isinstance(support, Tensor) or support.dtype != torch.bool:
        came = getattr(support, "dtype", type(support).__name__)
        raise InputError(f"support: got {came}, want a boolean tensor")
    if support.shape != x.shape:
        raise InputError(f"support: got shape {tuple(support.shape)}, want that of x, {tuple(x.shape)}")


@register(kind="gradient", source="none", extra="torch", example=lambda: Masked())
@dataclass(frozen=True)
class Masked:
    """The derivative of what was kept, zero for the rest; exact wherever the support does not change."""

    def apply(
        self, x: Float[Tensor, "*shape"], support: Bool[Tensor, "*shape"], threshold: Any = None
    ) -> Float[Tensor, "*shape"]:
        """``x`` where ``support``, else zero."""
        _check(x, support)
        return x.where(support, torch.zeros((), dtype=x.dtype, device=x.device))


@register(kind="gradient", source="arXiv:1308.3432", extra="torch", example=lambda: StraightThrough())
@dataclass(frozen=True)
class StraightThrough:
    """The kept values forward, the identity backward: biased, so that dropped entries can return. Bengio et al. (2013).

    Finite for entries of ``-inf`` too.
    """

    def apply(
        self, x: Float[Tensor, "*shape"], support: Bool[Tensor, "*shape"], threshold: Any = None
    ) -> Float[Tensor, "*shape"]:
        """``x`` where ``support``, else zero."""
        _check(x, support)
        return _Leaky.apply(x, support, 1.0)

    def step(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``H(x)`` as 0.0 or 1.0 (0 at 0) forward, the identity backward: a bit that can be learned."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, want a floating-point tensor")
        return _Bit.apply(x)


@register(kind="gradient", source="none", extra="torch", example=lambda: Annealed())
@dataclass(frozen=True)
class Annealed:
    """Between ``StraightThrough`` and ``Masked``: dropped entries see ``share`` of the derivative, which decays.

    ``share`` is ``schedule(progress)``; ``at(progress)`` gives the rule at another point of the run.
    """

    schedule: Any = field(default_factory=lambda: Linear(1.0, 0.0))
    progress: float = 0.0

    def __post_init__(self):
        check("progress", self.progress, at_least=0, at_most=1)
        check("share", self.schedule(self.progress), at_least=0, at_most=1)

    @property
    def share(self) -> float:
        """The part of the derivative that dropped entries see now."""
        return self.schedule(self.progress)

    def at(self, progress: float) -> Annealed:
        """The same rule when that fraction of the run is done."""
        return replace(self, progress=progress)

    def apply(
        self, x: Float[Tensor, "*shape"], support: Bool[Tensor, "*shape"], threshold: Any = None
    ) -> Float[Tensor, "*shape"]:
        """``x`` where ``support``, else zero."""
        _check(x, support)
        return _Leaky.apply(x, support, self.share)


@register(kind="gradient", source="arXiv:2407.14435", extra="torch", example=lambda: Rectangle(0.1))
@dataclass(frozen=True)
class Rectangle:
    """The JumpReLU's rule: masked for ``x``, and a kernel estimate for the threshold. Rajamanoharan et al. (2024).

    With ``K(u) = 1`` on ``|u| < 1/2`` and bandwidth e: ``d(x H(x - t))/dt = -(t / e) K((x - t) / e)`` (equation 11)
    and ``dH(x - t)/dt = -(1 / e) K((x - t) / e)`` (equation 12). Each is biased per sample; its mean tends to the
    derivative of the expectation as e falls. ``bandwidth`` is in the units of ``x``.
    """

    bandwidth: float

    def __post_init__(self):
        check("bandwidth", self.bandwidth, above=0, below=float("inf"))

    def apply(
        self,
        x: Float[Tensor, "*shape"],
        support: Bool[Tensor, "*shape"],
        threshold: Float[Tensor, "*threshold"] | None = None,
    ) -> Float[Tensor, "*shape"]:
        """``x`` where ``support``, else zero; ``threshold`` broadcasts to ``x`` and gets the kernel's derivative."""
        _check(x, support)
        return _Jump.apply(x, support, _check_threshold(x, threshold), self.bandwidth)

    def step(self, x: Float[Tensor, "*shape"], threshold: Float[Tensor, "*threshold"]) -> Float[Tensor, "*shape"]:
        """``H(x - threshold)`` as 0.0 or 1.0: summed, an L0 whose derivative reaches the threshold (and not ``x``)."""
        check_scores("x", x, scalars=True)
        return _Step.apply(x, _check_threshold(x, threshold), self.bandwidth)


def _check_threshold(x: Tensor, threshold: Any) -> Tensor:
    if not isinstance(threshold, Tensor) or not threshold.is_floating_point():
        came = getattr(threshold, "dtype", type(threshold).__name__)
        raise InputError(f"threshold: got {came}, want a floating-point tensor: the rule Rectangle differentiates it")
    check_scores("threshold", threshold, scalars=True)
    try:
        fits = torch.broadcast_shapes(x.shape, threshold.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(f"threshold: got shape {tuple(threshold.shape)}, want one that broadcasts to {tuple(x.shape)}")
    return threshold


class _Leaky(torch.autograd.Function):
    """Forward the kept values; backward the gradient, times ``share`` where dropped."""

    @staticmethod
    def forward(ctx, x, support, share):
        ctx.save_for_backward(support)
        ctx.share = share
        return x.where(support, torch.zeros((), dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx, grad):
        (support,) = ctx.saved_tensors
        return (grad if ctx.share == 1 else grad.where(support, ctx.share * grad)), None, None


class _Bit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


def _kernel(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((x - threshold).abs() < bandwidth / 2).to(x.dtype)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, support, threshold, bandwidth):
        ctx.save_for_backward(x, support, threshold)
        ctx.bandwidth = bandwidth
        return x.where(support, torch.zeros((), dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx, grad):
        x, support, threshold = ctx.saved_tensors
        to_threshold = None
        if ctx.needs_input_grad[2]:
            each = -(threshold / ctx.bandwidth) * _kernel(x, threshold, ctx.bandwidth) * grad
            to_threshold = each.sum_to_size(threshold.shape)
        return grad * support, None, to_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, threshold, bandwidth):
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, threshold = ctx.saved_tensors
        each = -_kernel(x, threshold, ctx.bandwidth) * grad / ctx.bandwidth
        return torch.zeros_like(x), each.sum_to_size(threshold.shape), None


class _ThroughJacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, constraint):
        p = constraint.solve(x)
        ctx.save_for_backward(p)
        ctx.constraint = constraint
        return p

    @staticmethod
    def backward(ctx, grad):
        (p,) = ctx.saved_tensors
        return ctx.constraint.jacobian_vector(p, grad), None


def through_jacobian(constraint: Any, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``constraint.solve(x)`` with ``constraint.jacobian_vector`` as its backward pass (itself differentiable)."""
    return _ThroughJacobian.apply(x, constraint)

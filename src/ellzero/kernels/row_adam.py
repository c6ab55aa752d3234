"""Adam over the rows of a dictionary in one pass over memory: the compiled loop where it is live, else the reference.

Lives here: ``row_adam_`` and ``row_squares`` on tensors, as torch custom ops. float32 and float64 on the CPU go to the
compiled loop; other devices and dtypes take plain torch. Does not live here: schedules, and where the gradients come
from (``torch_latents``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.errors import InputError, check, check_integer
from ellzero.kernels._dispatch import CHOICE

__all__ = ["row_adam_", "row_squares"]


def row_adam_(
    W: Float[Tensor, "m d"],
    gradient: Float[Tensor, "m d"],
    first: Float[Tensor, "m d"],
    second: Float[Tensor, "m d"],
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 6.25e-10,
    clip_scale: float = 1.0,
    unit_norm: bool = False,
    skip_zero: bool = False,
) -> None:
    """One step of Adam on ``W`` and its moments, in place; ``step`` counts from 1.

    Parameters
    ----------
    clip_scale : factor on the gradient, for a clipped norm (see ``row_squares``).
    unit_norm : rows of norm 1 stay so: the component of the gradient along the row is taken out first, and the row is
        put back to norm 1 after the step.
    skip_zero : a row whose gradient is zero stays as it is, and so do its moments (their bias is corrected by the
        common ``step``, as in torch's SparseAdam).

    All four must be contiguous; an encoder ``W_enc [d, m]`` kept in column order passes ``W_enc.T``. The result
    equals torch's Adam between a projection and a normalisation.

    Raises
    ------
    InputError : shapes, dtypes or devices that differ; tensors that are not contiguous; settings out of range.
    """
    tensors = {"W": W, "gradient": gradient, "first": first, "second": second}
    for name, tensor in tensors.items():
        _check_same(name, tensor, W)
        if name != "gradient" and not tensor.is_contiguous():
            raise InputError(f"{name}: got strides {tensor.stride()}, want a contiguous tensor, to be changed in place")
    check("lr", lr, at_least=0, below=math.inf)
    check_integer("step", step, at_least=1)
    for beta in betas:
        check("betas", beta, at_least=0, below=1)
    check("eps", eps, at_least=0)
    check("clip_scale", clip_scale, at_least=0)
    rate, root = lr / (1 - betas[0] ** step), 1 / math.sqrt(1 - betas[1] ** step)
    _row_adam(*tensors.values(), rate, root, eps, *betas, clip_scale, unit_norm, skip_zero)


def row_squares(gradient: Float[Tensor, "m d"], W: Float[Tensor, "m d"] | None = None) -> float:
    """The sum of squares of the gradient; with ``W`` of what is left of it without the components along W's unit rows.

    So the norm over all parameters after the projection needs no projected copy.

    Raises
    ------
    InputError : shapes, dtypes or devices that differ.
    """
    _check_same("gradient", gradient, gradient)
    if W is not None:
        _check_same("W", W, gradient)
    gradient, W = gradient.detach(), None if W is None else W.detach()
    if _native(gradient):
        squares = np.empty(len(gradient))
        given = None if W is None else W.contiguous().numpy()
        CHOICE.module.row_squares(gradient.contiguous().numpy(), given, squares, torch.get_num_threads())
        return float(squares.sum())
    left = gradient if W is None else gradient - (gradient * W).sum(1, keepdim=True) * W
    return float(left.square().sum(dtype=torch.float64 if left.device.type == "cpu" else torch.float32))


@torch.library.custom_op("ellzero::row_adam_", mutates_args=("W", "first", "second"))
def _row_adam(
    W: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: float, root: float, eps: float, beta1: float,
    beta2: float, clip_scale: float, unit_norm: bool, skip_zero: bool,
) -> None:  # fmt: skip
    W, gradient, first, second = (t.detach() for t in (W, gradient, first, second))
    if _native(W):
        CHOICE.module.row_adam(
            W.numpy(), gradient.contiguous().numpy(), first.numpy(), second.numpy(), rate, root, eps, beta1, beta2,
            clip_scale, unit_norm, skip_zero, torch.get_num_threads(),
        )  # fmt: skip
        return
    rows = gradient.any(1) if skip_zero else slice(None)
    w, g, m, v = (t[rows] for t in (W, gradient, first, second))
    g = (g - (g * w).sum(1, keepdim=True) * w if unit_norm else g) * clip_scale
    m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
    w = w - rate * m / (v.sqrt() * root + eps)
    first[rows], second[rows] = m, v
    W[rows] = torch.nn.functional.normalize(w, dim=1) if unit_norm else w


def _native(x: Tensor) -> bool:
    return CHOICE.module is not None and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _check_same(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise InputError(f"{name}: got {tensor.dtype} with {tensor.ndim} axes, want floating point [m, d]")
    if tensor.shape != other.shape or tensor.dtype != other.dtype or tensor.device != other.device:
        raise InputError(
            f"{name}: got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, want {other.dtype} "
            f"{tuple(other.shape)} on {other.device}"
        )

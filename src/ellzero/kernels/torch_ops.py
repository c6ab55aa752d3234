"""The kernels as torch custom ops, with autograd and shapes for ``torch.compile``.

Lives here: ``ellzero::top_k``. CPU tensors are handed to the compiled kernels in place; other devices and dtypes
take a stable sort with the same answer. Does not live here: the loops, and anything a kernel does not need.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ellzero import kernels
from ellzero.errors import InputError, check_integer

__all__ = ["TopK", "top_k"]

# Widened exactly to float32, which keeps order and ties.
_NARROW = (torch.float16, torch.bfloat16)
_NATIVE = (torch.float32, torch.float64)


class TopK(NamedTuple):
    """The ``k`` largest entries of each row: values descending, and where they stood."""

    values: Float[Tensor, "*batch k"]
    indices: Int64[Tensor, "*batch k"]


def top_k(x: Float[Tensor, "*batch n"], k: int) -> TopK:
    """The ``k`` largest entries of each row of ``x`` (last axis), exactly; ties keep the lowest index.

    Solves ``argmax_{|S| = k} sum_{i in S} x_i`` per row, the answer being unique by the rule of ties: that of
    ``ellzero.kernels.top_k``, on every device, in every floating dtype. Infinities are legal, NaN comes after every
    number. The derivative flows to the kept entries: ``d values_j / d x_i = [i = indices_j]``. Threads are torch's
    (``torch.set_num_threads``); the result does not depend on them.

    Raises
    ------
    InputError : x without axes or not floating point; k outside ``[0, n]``.
    """
    if x.ndim == 0:
        raise InputError("x: got a scalar, want a tensor with at least one axis")
    if not x.is_floating_point():
        raise InputError(f"x: got dtype {x.dtype}, want floating point")
    if isinstance(k, int) and isinstance(x.shape[-1], int):
        check_integer("k", k, at_least=0, at_most=x.shape[-1])
    return TopK(*_top_k(x, k))


@torch.library.custom_op("ellzero::top_k", mutates_args=())
def _top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    x = x.detach()
    if not kernels.live or x.device.type != "cpu" or x.dtype not in _NATIVE + _NARROW:
        return _by_sort(x, k)
    wide = x.float() if x.dtype in _NARROW else x
    found = kernels.top_k(wide.numpy(), k, n_threads=torch.get_num_threads())
    return torch.from_numpy(found.values).to(x.dtype), torch.from_numpy(found.indices)


@_top_k.register_fake
def _(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:-1], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


def _by_sort(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A stable descending sort with NaN last; torch puts NaN first, so it is sorted as ``-inf`` in a second key."""
    missing = x.isnan()
    order = x.masked_fill(missing, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    late = missing.gather(-1, order).to(torch.int8).sort(dim=-1, stable=True).indices
    indices = order.gather(-1, late)[..., :k].contiguous()
    return x.gather(-1, indices), indices


def _setup(ctx, inputs, output) -> None:
    x, _ = inputs
    ctx.save_for_backward(output[1])
    ctx.shape = x.shape
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).scatter(-1, indices, grad), None


_top_k.register_autograd(_backward, setup_context=_setup)

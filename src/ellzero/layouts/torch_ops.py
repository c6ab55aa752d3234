"""Products of stored matrices as torch custom operators, with exact gradients at the stored places only.

Lives here: ``Stored`` (a layout that operators can name), ``product``, ``slide`` and ``turn``. Does not live here:
modules (``nn``), the loops (``kernels.sparse``). An operator takes tensors and numbers, so it names its layout by a
handle; the module that owns the layout keeps it alive.
"""

from __future__ import annotations

import itertools
import weakref
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.kernels.sparse import Pattern
from ellzero.kernels.sparse import turn as turn_array
from ellzero.layouts.base import Layout

__all__ = ["Stored", "product", "slide", "turn"]

_ALIVE: weakref.WeakValueDictionary[int, Stored] = weakref.WeakValueDictionary()
_NEXT = itertools.count()


class Stored:
    """What the operators need of a matrix: a pattern whose values are given at each call, or a layout with its own."""

    def __init__(self, of: Pattern | Layout):
        self.of = of
        self.rows, self.columns = (of.rows, of.columns) if isinstance(of, Pattern) else of.shape
        self.handle = next(_NEXT)
        self._windows: dict[tuple[int, ...], Pattern] = {}
        _ALIVE[self.handle] = self

    def __deepcopy__(self, memo: Any) -> Stored:
        return Stored(self.of)

    def __reduce__(self) -> Any:
        return Stored, (self.of,)

    @cached_property
    def turned(self) -> Pattern:
        """The pattern of the transpose, for the values of this one; made when a gradient first asks for it."""
        return self.of.turned()

    def windows(self, image: tuple[int, int, int], kernel: list[int], dilation: list[int]) -> Pattern:
        """The pattern of a kernel ``[rows, channels * height * width]`` as offsets into a flat image; the last is kept.

        ``image`` is channels, height and width with the padding.
        """
        key = (*image, *kernel, *dilation)
        if key not in self._windows:
            channels, height, width = image
            taps = dilation[0] * np.arange(kernel[0])[:, None] * width + dilation[1] * np.arange(kernel[1])
            offsets = (np.arange(channels)[:, None] * height * width + taps.ravel()).ravel()
            batch = _places(image, kernel, dilation)[2]
            columns = channels * height * width - batch + 1
            pattern = Pattern(self.of.ptr, offsets[self.of.index], group=self.of.group, columns=columns)
            self._windows = {key: pattern}
        return self._windows[key]


def _places(image: tuple[int, ...], kernel: list[int], dilation: list[int]) -> tuple[int, int, int]:
    """Height and width of the output, and the length of the run from its first place to its last in the flat image."""
    high, wide = (image[1 + i] - dilation[i] * (kernel[i] - 1) for i in (0, 1))
    return high, wide, (high - 1) * image[2] + wide


def product(
    stored: Stored, value: Tensor | None, x: Float[Tensor, "columns batch"], bias: Tensor | None = None
) -> Float[Tensor, "rows batch"]:
    """``W x + bias`` on the CPU; gradients by ``x`` and ``bias``, and by ``value`` where W is a pattern.

    ``value`` ``[entries, group]`` belongs to a pattern; a layout has its own values, which get no gradient.
    """
    return _product(stored.handle, value, x, bias, stored.rows)


@torch.library.custom_op("ellzero::stored_product", mutates_args=())
def _product(handle: int, value: Tensor | None, x: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    of, threads = _ALIVE[handle].of, torch.get_num_threads()
    columns, row = _array(x), None if bias is None else _array(bias)
    if isinstance(of, Pattern):
        return torch.from_numpy(of.product(_array(value), columns, bias=row, n_threads=threads))
    return torch.from_numpy(np.ascontiguousarray(of.matmul(columns, bias=row, n_threads=threads)))


@_product.register_fake
def _(handle: int, value: Tensor | None, x: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((rows, x.shape[1]))


@torch.library.custom_op("ellzero::stored_product_turned", mutates_args=())
def _turned(handle: int, value: Tensor | None, grad: Tensor, columns: int) -> Tensor:
    stored, threads = _ALIVE[handle], torch.get_num_threads()
    if not isinstance(stored.of, Pattern):
        return torch.from_numpy(np.ascontiguousarray(stored.of.rmatmul(_array(grad), n_threads=threads)))
    return torch.from_numpy(stored.turned.product(_array(value), _array(grad), n_threads=threads))


@_turned.register_fake
def _(handle: int, value: Tensor | None, grad: Tensor, columns: int) -> Tensor:
    return grad.new_empty((columns, grad.shape[1]))


@torch.library.custom_op("ellzero::stored_values_gradient", mutates_args=())
def _values(handle: int, grad: Tensor, x: Tensor, like: Tensor) -> Tensor:
    pattern = _ALIVE[handle].of
    return torch.from_numpy(pattern.values_gradient(_array(grad), _array(x), n_threads=torch.get_num_threads()))


@_values.register_fake
def _(handle: int, grad: Tensor, x: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like)


def slide(
    stored: Stored, value: Tensor, x: Float[Tensor, "n channels height width"], bias: Tensor | None,
    kernel_size: tuple[int, int], dilation: tuple[int, int],
) -> Float[Tensor, "n rows high wide"]:  # fmt: skip
    """A convolution of stride 1 on padded images, which are read as they lie and never unfolded; for inference."""
    return _slide(stored.handle, value, x, bias, stored.rows, list(kernel_size), list(dilation))


@torch.library.custom_op("ellzero::stored_slide", mutates_args=())
def _slide(
    handle: int, value: Tensor, x: Tensor, bias: Tensor | None, rows: int, kernel_size: list[int], dilation: list[int]
) -> Tensor:
    image, threads = tuple(x.shape[1:]), torch.get_num_threads()
    pattern = _ALIVE[handle].windows(image, kernel_size, dilation)
    high, wide, batch = _places(image, kernel_size, dilation)
    out = np.empty((len(x), rows, high, wide), _array(value).dtype)
    row = None if bias is None else _array(bias)
    for i, flat in enumerate(_array(x).reshape(len(x), -1)):
        spread = np.empty((rows, high * image[2]), out.dtype)
        spread[:, :batch] = pattern.slide(_array(value), flat, batch, bias=row, n_threads=threads)
        out[i] = spread.reshape(rows, high, image[2])[:, :, :wide]  # places beyond the right edge are cut off
    return torch.from_numpy(out)


@_slide.register_fake
def _(
    handle: int, value: Tensor, x: Tensor, bias: Tensor | None, rows: int, kernel_size: list[int], dilation: list[int]
) -> Tensor:
    high, wide, _ = _places(tuple(x.shape[1:]), kernel_size, dilation)
    return x.new_empty((len(x), rows, high, wide))


def _setup(ctx, inputs, output) -> None:
    handle, value, x, bias, _ = inputs
    ctx.handle, ctx.columns, ctx.has_bias = handle, x.shape[0], bias is not None
    ctx.stored = _ALIVE.get(handle)  # alive until the gradient is taken
    ctx.save_for_backward(value, x)


def _backward(ctx, grad: Tensor):
    value, x = ctx.saved_tensors
    grad = turn(grad.t()) if _is_turned(grad) else grad.contiguous()
    by_value = _values(ctx.handle, grad, x, value) if value is not None and ctx.needs_input_grad[1] else None
    by_x = _turned(ctx.handle, value, grad, ctx.columns) if ctx.needs_input_grad[2] else None
    by_bias = grad.sum(1) if ctx.has_bias and ctx.needs_input_grad[3] else None
    return None, by_value, by_x, by_bias, None


_product.register_autograd(_backward, setup_context=_setup)


def turn(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """The transpose in memory of its own: a batch to feature-major, and its gradient back."""
    return _turn(x) if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else x.t().contiguous()


@torch.library.custom_op("ellzero::turn", mutates_args=())
def _turn(x: Tensor) -> Tensor:
    return torch.from_numpy(turn_array(x.detach().contiguous().numpy(), n_threads=torch.get_num_threads()))


@_turn.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[1], x.shape[0]))


_turn.register_autograd(lambda ctx, grad: _turn(grad))


def _is_turned(x: Tensor) -> bool:
    """Whether x is the view of a transpose, which ``turn`` brings into C order."""
    known = x.ndim == 2 and x.dtype in (torch.float32, torch.float64)
    return known and not x.is_contiguous() and x.t().is_contiguous()


def _array(tensor: Tensor) -> np.ndarray:
    """In C order; of a transposed view, as outputs of modules are, by our own loops."""
    tensor = tensor.detach()
    if _is_turned(tensor):
        return turn_array(tensor.t().numpy(), n_threads=torch.get_num_threads())
    return tensor.contiguous().numpy()

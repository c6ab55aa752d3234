"""Products of stored matrices as torch custom operators, with exact gradients at the stored places only.

Lives here: ``Stored`` (a layout that operators can name), ``product``, ``layer`` and ``slide``. Does not live here:
modules (``nn``), the loops (``kernels.sparse``). An operator takes tensors and numbers, so it names its layout by
a handle; the module that owns the layout keeps it alive.
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

from ellzero.kernels.sparse import Pattern, turn
from ellzero.layouts.base import Layout

__all__ = ["SMALL", "Stored", "layer", "plainly", "product", "slide", "together"]

SMALL = 128
"""Places of an image below which a batch of images is multiplied together."""

_PLAIN = (Tensor, torch.nn.Parameter)
_TOGETHER = 1 << 18  # numbers of the images that are taken as one
_ALIVE: weakref.WeakValueDictionary[int, Stored] = weakref.WeakValueDictionary()
_NEXT = itertools.count()


class Stored:
    """What the operators need of a matrix: a pattern whose values are given at each call, or a layout with its own."""

    def __init__(self, of: Pattern | Layout):
        self.of = of
        self.rows, self.columns = (of.rows, of.columns) if isinstance(of, Pattern) else of.shape
        self.handle = next(_NEXT)
        self._windows: dict[tuple[int, ...], Pattern] = {}
        self._views: dict[str, tuple[int, np.ndarray]] = {}
        _ALIVE[self.handle] = self

    def __deepcopy__(self, memo: Any) -> Stored:
        return Stored(self.of)

    def __reduce__(self) -> Any:
        return Stored, (self.of,)

    @cached_property
    def turned(self) -> Pattern:
        """The pattern of the transpose, for the values of this one; made when a gradient first asks for it."""
        return self.of.turned()

    def view(self, name: str, tensor: Tensor) -> np.ndarray:
        """A parameter as an array over the same memory, kept from call to call: a small layer's product takes less
        time than to make one."""
        if type(tensor) is not torch.nn.Parameter or not tensor.is_contiguous():
            return _array(tensor)  # made for this call, or a copy
        at, kept = tensor.data_ptr(), self._views.get(name)
        if kept is None or kept[0] != at or kept[1].shape != tensor.shape:
            kept = self._views[name] = (at, _array(tensor))
        return kept[1]

    def forget(self) -> None:
        """Let go of the arrays over parameters."""
        self._views.clear()

    def windows(self, image: tuple[int, int, int], kernel: list[int], dilation: list[int]) -> Pattern:
        """The pattern of a kernel ``[rows, channels * height * width]`` as offsets into a flat image; the last is kept.

        ``image`` is channels, height and width with the padding.
        """
        key = (*image, *kernel, *dilation)
        pattern = self._windows.get(key)
        if pattern is None:
            channels, height, width = image
            taps = dilation[0] * np.arange(kernel[0])[:, None] * width + dilation[1] * np.arange(kernel[1])
            offsets = (np.arange(channels)[:, None] * height * width + taps.ravel()).ravel()
            batch = _places(image, kernel, dilation)[2]
            columns = channels * height * width - batch + 1
            pattern = Pattern(self.of.ptr, offsets[self.of.index], group=self.of.group, columns=columns)
            self._windows = {key: pattern}
        return pattern


def _places(image: tuple[int, ...], kernel: list[int], dilation: list[int]) -> tuple[int, int, int]:
    """Height and width of the output, and the length of the run from its first place to its last in the flat image."""
    high, wide = (image[1 + i] - dilation[i] * (kernel[i] - 1) for i in (0, 1))
    return high, wide, (high - 1) * image[2] + wide


def together(numbers: int) -> int:
    """How many images of so many numbers each make about a megabyte."""
    return max(1, _TOGETHER // max(numbers, 1))


def plainly(*tensors: Tensor | None) -> bool:
    """Whether nothing looks at what is done to these tensors: no gradient, compiler, trace, transform or dispatch mode,
    and none is a subclass.

    The operators then run as functions: an operator's way through torch costs more than a small layer's product.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._functorch.maybe_current_level() is not None:
        return False
    graded = torch.is_grad_enabled()
    for t in tensors:  # noqa: SIM110 (a generator would cost as much as the rest)
        if t is not None and ((graded and t.requires_grad) or type(t) not in _PLAIN):
            return False
    return True


def product(
    stored: Stored, value: Tensor | None, x: Float[Tensor, "columns batch"], bias: Tensor | None = None
) -> Float[Tensor, "rows batch"]:
    """``W x + bias`` on the CPU; gradients by ``x`` and ``bias``, and by ``value`` where W is a pattern.

    ``value`` ``[entries, group]`` belongs to a pattern; a layout has its own values, which get no gradient.
    """
    return _either(stored, value, x, bias, by_rows=False)


def layer(
    stored: Stored, value: Tensor | None, x: Float[Tensor, "batch columns"], bias: Tensor | None = None
) -> Float[Tensor, "batch rows"]:
    """``x W' + bias`` for a batch of rows; else as ``product``."""
    return _either(stored, value, x, bias, by_rows=True)


def _either(stored: Stored, value: Tensor | None, x: Tensor, bias: Tensor | None, by_rows: bool) -> Tensor:
    if plainly(value, x, bias):
        return _product_now(stored, value, x, bias, by_rows)
    return _product(stored.handle, value, x, bias, stored.rows, by_rows)


def _product_now(stored: Stored, value: Tensor | None, x: Tensor, bias: Tensor | None, by_rows: bool) -> Tensor:
    of, row = stored.of, None if bias is None else stored.view("bias", bias)
    run = of.layer if by_rows else of.product if isinstance(of, Pattern) else of.matmul
    given = (_array(x),) if value is None else (stored.view("value", value), _array(x))
    return torch.from_numpy(np.ascontiguousarray(run(*given, bias=row, n_threads=torch.get_num_threads())))


@torch.library.custom_op("ellzero::stored_product", mutates_args=())
def _product(
    handle: int, value: Tensor | None, x: Tensor, bias: Tensor | None, rows: int, by_rows: bool
) -> Tensor:  # fmt: skip
    return _product_now(_ALIVE[handle], value, x, bias, by_rows)


@_product.register_fake
def _(handle: int, value: Tensor | None, x: Tensor, bias: Tensor | None, rows: int, by_rows: bool) -> Tensor:
    return x.new_empty((x.shape[0], rows) if by_rows else (rows, x.shape[1]))


@torch.library.custom_op("ellzero::stored_product_turned", mutates_args=())
def _turned(handle: int, value: Tensor | None, grad: Tensor, columns: int, by_rows: bool) -> Tensor:
    stored, threads, given = _ALIVE[handle], torch.get_num_threads(), _array(grad)
    if isinstance(stored.of, Pattern):
        run = stored.turned.layer if by_rows else stored.turned.product
        return torch.from_numpy(run(_array(value), given, n_threads=threads))
    given = turn(given, n_threads=threads) if by_rows else given
    out = np.ascontiguousarray(stored.of.rmatmul(given, n_threads=threads))
    return torch.from_numpy(turn(out, n_threads=threads) if by_rows else out)


@_turned.register_fake
def _(handle: int, value: Tensor | None, grad: Tensor, columns: int, by_rows: bool) -> Tensor:
    return grad.new_empty((grad.shape[0], columns) if by_rows else (columns, grad.shape[1]))


@torch.library.custom_op("ellzero::stored_values_gradient", mutates_args=())
def _values(handle: int, grad: Tensor, x: Tensor, like: Tensor, by_rows: bool) -> Tensor:
    pattern = _ALIVE[handle].of
    run = pattern.layer_gradient if by_rows else pattern.values_gradient
    return torch.from_numpy(run(_array(grad), _array(x), n_threads=torch.get_num_threads()))


@_values.register_fake
def _(handle: int, grad: Tensor, x: Tensor, like: Tensor, by_rows: bool) -> Tensor:
    return torch.empty_like(like)


def _setup(ctx, inputs, output) -> None:
    handle, value, x, bias, _, by_rows = inputs
    ctx.handle, ctx.has_bias, ctx.by_rows = handle, bias is not None, by_rows
    ctx.stored = _ALIVE.get(handle)  # alive until the gradient is taken
    ctx.save_for_backward(value, x)


def _backward(ctx, grad: Tensor):
    value, x = ctx.saved_tensors
    grad, by_rows, needs = grad.contiguous(), ctx.by_rows, ctx.needs_input_grad
    by_value = _values(ctx.handle, grad, x, value, by_rows) if value is not None and needs[1] else None
    by_x = _turned(ctx.handle, value, grad, x.shape[int(by_rows)], by_rows) if needs[2] else None
    by_bias = grad.sum(0 if by_rows else 1) if ctx.has_bias and needs[3] else None
    return None, by_value, by_x, by_bias, None, None


_product.register_autograd(_backward, setup_context=_setup)


def slide(
    stored: Stored, value: Tensor, x: Float[Tensor, "n channels height width"], bias: Tensor | None,
    kernel_size: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int],
) -> Float[Tensor, "n rows high wide"]:  # fmt: skip
    """A convolution of stride 1 on images, which are read as they lie and never unfolded; for inference.

    Images of fewer than ``SMALL`` places are read as one tall image, about a megabyte at a time.
    """
    way = _slide_now if plainly(value, x, bias) else _slide
    return way(stored.handle, value, x, bias, stored.rows, list(kernel_size), list(dilation), list(padding))


def _slide_now(
    handle: int, value: Tensor, x: Tensor, bias: Tensor | None, rows: int, kernel_size: list[int], dilation: list[int],
    padding: list[int],
) -> Tensor:  # fmt: skip
    images = _array(x)
    up, left = padding
    channels, height, width = x.shape[1], x.shape[2] + 2 * up, x.shape[3] + 2 * left
    high, wide, _ = _places((channels, height, width), kernel_size, dilation)
    out = np.empty((len(x), rows, high, wide), images.dtype)
    each = together(channels * height * width) if high * wide < SMALL else 1
    for at in range(0, len(x), each):
        some = images[at : at + each].swapaxes(0, 1)
        tall = np.zeros((channels, some.shape[1], height, width), images.dtype)
        tall[:, :, up : height - up, left : width - left] = some
        spread = _spread(_ALIVE[handle], value, tall.reshape(channels, -1, width), bias, kernel_size, dilation)
        # places beyond an image's right edge and below it are cut off
        out[at : at + each] = spread.reshape(rows, -1, height, width)[:, :, :high, :wide].swapaxes(0, 1)
    return torch.from_numpy(out)


def _spread(
    stored: Stored, value: Tensor, image: np.ndarray, bias: Tensor | None, kernel_size: list[int], dilation: list[int]
) -> np.ndarray:
    """``[rows, height * width]``: what the kernel gives with its corner at every place of one image."""
    pattern = stored.windows(image.shape, kernel_size, dilation)
    batch = _places(image.shape, kernel_size, dilation)[2]
    spread = np.empty((stored.rows, image[0].size), image.dtype)
    row, threads = None if bias is None else _array(bias), torch.get_num_threads()
    spread[:, :batch] = pattern.slide(_array(value), image.reshape(-1), batch, bias=row, n_threads=threads)
    return spread


_slide = torch.library.custom_op("ellzero::stored_slide", _slide_now, mutates_args=())


@_slide.register_fake
def _(
    handle: int, value: Tensor, x: Tensor, bias: Tensor | None, rows: int, kernel_size: list[int], dilation: list[int],
    padding: list[int],
) -> Tensor:  # fmt: skip
    image = (x.shape[1], x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1])
    high, wide, _ = _places(image, kernel_size, dilation)
    return x.new_empty((len(x), rows, high, wide))


def _is_turned(x: Tensor) -> bool:
    """Whether x is the view of a transpose."""
    known = x.ndim == 2 and x.dtype in (torch.float32, torch.float64)
    return known and not x.is_contiguous() and x.t().is_contiguous()


def _array(tensor: Tensor) -> np.ndarray:
    """In C order; of a transposed view by our own loops."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.numpy()
    if _is_turned(tensor):
        return turn(tensor.t().numpy(), n_threads=torch.get_num_threads())
    return tensor.contiguous().numpy()

"""Sparse products on a GPU: the condensed layer at small batches, and blocks, in Triton.

Lives here: ``condensed_product`` and ``block_product`` on tensors, with the answers of their CPU namesakes, and
``missing`` (why they cannot run here). Does not live here: which of them a module uses (``layouts.device``).
Triton is imported by the first call. With ``TRITON_INTERPRET=1`` both also run on the CPU, for tests.
"""

from __future__ import annotations

import os
from functools import cache
from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ellzero.errors import InputError

__all__ = ["block_product", "condensed_product", "missing"]


def missing() -> str:
    """Why these products cannot run in this process; empty where they can."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed (it comes with the CUDA builds of torch)"
    if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
        return ""
    return "no CUDA GPU is present"


@cache
def _compiled() -> SimpleNamespace:
    import triton
    import triton.language as tl

    @triton.jit
    def condensed(value, index, x, out, rows, fan_in, columns, ROWS: tl.constexpr, INPUTS: tl.constexpr):
        i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        b = tl.program_id(1)
        total = tl.zeros((ROWS,), tl.float32)
        for start in range(0, fan_in, INPUTS):
            j = start + tl.arange(0, INPUTS)
            stored = (i < rows)[:, None] & (j < fan_in)[None, :]
            at = i[:, None] * fan_in + j[None, :]
            column = tl.load(index + at, mask=stored, other=0)
            given = tl.load(x + b * columns + column, mask=stored, other=0.0).to(tl.float32)
            total += tl.sum(tl.load(value + at, mask=stored, other=0.0).to(tl.float32) * given, 1)
        tl.store(out + b * rows + i, total.to(out.dtype.element_ty), mask=i < rows)

    @triton.jit
    def blocks(value, ptr, index, x, out, batch, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BATCH: tl.constexpr):
        row = tl.program_id(0)
        b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
        r, c = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
        total = tl.zeros((HEIGHT, BATCH), tl.float32)
        for e in range(tl.load(ptr + row), tl.load(ptr + row + 1)):
            own = tl.load(value + e * HEIGHT * WIDTH + r[:, None] * WIDTH + c[None, :])
            at = tl.load(index + e) * WIDTH + c
            slab = tl.load(x + at[:, None] * batch + b[None, :], mask=(b < batch)[None, :], other=0.0)
            total += tl.dot(own, slab, input_precision="ieee")
        to = out + (row * HEIGHT + r)[:, None] * batch + b[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=(b < batch)[None, :])

    return SimpleNamespace(condensed=condensed, blocks=blocks, ceil=triton.cdiv)


def condensed_product(
    value: Float[Tensor, "rows fan_in"], index: Int[Tensor, "rows fan_in"], x: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch rows"]:
    """``out[b, i] = sum_j value[i, j] x[b, index[i, j]]``, summed in float32: for a handful of rows of ``x``.

    Indices are not checked again: they come from a layout.
    """
    why = missing()
    if why:
        raise InputError(f"condensed_product: {why}")
    if value.shape != index.shape or value.ndim != 2 or x.ndim != 2:
        raise InputError(f"value: got {tuple(value.shape)} with index {tuple(index.shape)}, want equal shapes")
    rows, fan_in = value.shape
    out = x.new_empty(len(x), rows)
    if out.numel() == 0:
        return out
    kernels = _compiled()
    grid = (kernels.ceil(rows, 16), len(x))
    kernels.condensed[grid](
        value.contiguous(), index.to(torch.int32).contiguous(), x.contiguous(), out, rows, fan_in, x.shape[1],
        ROWS=16, INPUTS=64,
    )  # fmt: skip
    return out


def block_product(
    value: Float[Tensor, "blocks height width"], ptr: Int[Tensor, block_rows_1], index: Int[Tensor, blocks],
    x: Float[Tensor, "columns batch"],
) -> Float[Tensor, "rows batch"]:  # fmt: skip
    """The product with stored blocks, summed in float32; block row i has the blocks ``ptr[i] .. ptr[i + 1]``.

    Height and width are powers of two from 16 on, as a GPU's matrix units want.
    """
    why = missing()
    if why:
        raise InputError(f"block_product: {why}")
    _, height, width = value.shape
    if any(side < 16 or side & (side - 1) for side in (height, width)):
        raise InputError(f"value: got blocks of {height} x {width}, want powers of two from 16 on")
    block_rows, batch = len(ptr) - 1, x.shape[1]
    out = x.new_empty(block_rows * height, batch)
    if out.numel() == 0:
        return out
    kernels = _compiled()
    grid = (block_rows, kernels.ceil(batch, 16 if batch <= 16 else 64))
    kernels.blocks[grid](
        value.contiguous(), ptr.to(torch.int32).contiguous(), index.to(torch.int32).contiguous(), x.contiguous(), out,
        batch, HEIGHT=height, WIDTH=width, BATCH=16 if batch <= 16 else 64,
    )  # fmt: skip
    return out

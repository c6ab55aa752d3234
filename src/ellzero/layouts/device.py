"""Products of sparse modules whose tensors are on a GPU, behind the names that run on the CPU.

Lives here: ``product_on_device`` and what it chooses: 2:4 in half precision by torch's semi-structured tensors, blocks
and small batches of the condensed layer by Triton, all else on the dense matrix, with a note. Does not live here: the
Triton code (``kernels.triton_sparse``), modules (``nn``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ellzero.kernels import triton_sparse
from ellzero.layouts.base import DenseFallbackWarning

__all__ = ["dense_weight", "product_on_device", "way"]

SMALL_BATCH = 16
"""Up to so many inputs at once the condensed layer is bound by reading its weights, which is what its kernel is for."""

_NOTED: set[tuple[str, str]] = set()


def way(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, grad: bool) -> tuple[str, str]:
    """How a layout runs on the device of ``x`` ``[columns, batch]``, and why it is dense where it is.

    Returns one of ``"condensed"``, ``"block"``, ``"2:4"`` and ``"dense"``, and the reason for the last.
    """
    name, value = facts["layout"], tensors.get("value")
    if grad:
        return "dense", "gradients on a GPU are those of the dense matrix"
    if name == "nm":
        if (facts["n"], facts["m"]) != (2, 4) or value.dtype not in (torch.float16, torch.bfloat16):
            return "dense", "a GPU multiplies 2:4 in float16 and bfloat16 only"
        if not x.is_cuda or torch.cuda.get_device_capability(x.device) < (8, 0):
            return "dense", "2:4 needs a GPU of compute capability 8.0"
        return "2:4", ""
    if name not in ("condensed", "block"):
        return "dense", f"the layout {name!r} has no kernel for a GPU"
    why = triton_sparse.missing()
    if why:
        return "dense", why
    if name == "block":
        sides = value.shape[1:]
        fits = all(side >= 16 and side & (side - 1) == 0 for side in sides)
        return (
            ("block", "") if fits else ("dense", f"blocks of {sides[0]} x {sides[1]} are not powers of two from 16 on")
        )
    if x.shape[1] > SMALL_BATCH:
        return "dense", f"the condensed kernel is for batches of up to {SMALL_BATCH}"
    return "condensed", ""


def product_on_device(
    facts: Mapping[str, Any], tensors: Mapping[str, Tensor], x: Tensor, bias: Tensor | None
) -> Tensor:  # fmt: skip
    """``W x + bias`` for ``x`` ``[columns, batch]``, with all tensors on one device."""
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors.values()))
    how, why = way(facts, tensors, x, grad)
    if how == "condensed":
        out = x.new_zeros(facts["shape"][0], x.shape[1])
        out[tensors["kept"]] = triton_sparse.condensed_product(tensors["value"], tensors["index"], x.t()).t()
    elif how == "block":
        out = triton_sparse.block_product(tensors["value"], tensors["ptr"], tensors["index"], x)
    elif how == "2:4":
        from torch.sparse import to_sparse_semi_structured

        out = to_sparse_semi_structured(dense_weight(facts, tensors)) @ x.to(tensors["value"].dtype)
    else:
        if (facts["layout"], why) not in _NOTED:
            _NOTED.add((facts["layout"], why))
            note = f"matmul of the layout {facts['layout']!r} runs on the dense matrix: {why}"
            warnings.warn(note, DenseFallbackWarning, stacklevel=3)
        out = dense_weight(facts, tensors) @ x
    return out if bias is None else out + bias[:, None].to(out.dtype)


def dense_weight(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """The matrix with its zeros on the tensors' device, differentiable by the stored values."""
    name, (rows, columns), value = facts["layout"], facts["shape"], tensors.get("value")
    if name in ("csr", "row-group") and value.is_floating_point():
        group, count = facts["group"], tensors["ptr"].diff()
        at = torch.arange(len(count), device=value.device).repeat_interleave(count)
        row = at[:, None] * group + torch.arange(group, device=value.device)
        place = row * columns + tensors["index"].long()[:, None]
    elif name == "condensed":
        place = tensors["kept"][:, None] * columns + tensors["index"].long()
    elif name == "block":
        _, height, width = value.shape
        at = torch.arange(rows // height, device=value.device).repeat_interleave(tensors["ptr"].diff())
        row = at[:, None] * height + torch.arange(height, device=value.device)
        column = tensors["index"].long()[:, None] * width + torch.arange(width, device=value.device)
        place = row[:, :, None] * columns + column[:, None, :]
    elif name == "nm" and facts["m"] == 4:
        shifts = torch.arange(0, 8, 2, device=value.device, dtype=torch.uint8)
        inner = (tensors["place"][:, :, None] >> shifts & 3).reshape(rows, -1)[:, : value.shape[1]].long()
        starts = torch.arange(0, columns, 4, device=value.device).repeat_interleave(facts["n"])
        place = torch.arange(rows, device=value.device)[:, None] * columns + starts + inner
    else:  # rare layouts go through the CPU
        from ellzero.layouts import base

        arrays = {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}
        dense = base.layouts()[name].from_parts(arrays, facts).to_dense()
        return torch.from_numpy(dense).to(next(iter(tensors.values())).device)
    flat = value.new_zeros(rows * columns).index_put((place.reshape(-1),), value.reshape(-1))
    return flat.reshape(rows, columns)

"""Sparse encoders and decoders on a GPU in Triton: what ``latents`` does on the CPU, behind the same names.

Lives here: ``encode``, ``decode``, ``rows_dot`` and ``accumulate`` on tensors of float32, float16 and bfloat16, all
summed in float32, and ``missing`` (why they cannot run here). Does not live here: derivatives and the choice of this
road (``torch_latents``), nested errors, which need loops of plain torch only (``plain_latents``).

The pre-activations are made twice and kept never. A first pass over tiles of rows x latents leaves the largest of every
64 latents of a row; the k wanted lie in the k groups whose largest are the largest. A second pass makes those groups
alone, for all rows that want a group together, so that it too is a product of matrices: ``64 k / m`` of the first one.
Ties keep the lowest latent and NaN comes last, as on the CPU. Sums by latent follow one sort of the code's entries:
nothing is added by atomics, so results repeat exactly. Products of float32 use TF32 only where torch's own would
(``torch.set_float32_matmul_precision``).

Triton is imported by the first call. With ``TRITON_INTERPRET=1`` all run on the CPU, for tests.
"""

from __future__ import annotations

import contextlib
import importlib
from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ellzero.kernels.plain_latents import GROUP, best_groups, blocks, kept_by_rule, uses_by_latent
from ellzero.kernels.triton_sparse import missing

__all__ = ["DTYPES", "accumulate", "decode", "encode", "missing", "rows_dot"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Of a tile of pre-activations: rows, latents, inputs at a time.
_TILE = {"ROWS": 128, "LATENTS": 128, "INPUTS": 32}
_GATHERED_ROWS = 64
# The lower half of a packed key: the latent counted down in 30 bits, then whether the value is negative.
_LAST = 2**30 - 1


@cache
def _loops() -> ModuleType:
    return importlib.import_module("ellzero.kernels.triton_loops")


def encode(
    x: Float[Tensor, "rows d"], W: Float[Tensor, "m d"], bias: Float[Tensor, " m"],
    counts: Int64[Tensor, " rows"] | None, k: int, rule: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch_latents.encode_top_k`` of centred rows, as values and indices ``[rows, k]``.

    Entries are ranked in float32, before values are rounded to the dtype of ``x``.
    """
    rows, groups = len(x), -(-len(W) // GROUP)
    values, indices = x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64)
    if values.numel() == 0:
        return values, indices
    x, W, bias = x.contiguous(), W.contiguous(), bias.contiguous()
    for own in blocks(rows, 8 * (groups + min(k, groups) * GROUP)):
        key = _candidates(x[own], W, bias, k, rule == "absolute").topk(k).values
        found, at = _unpacked(key, rule == "absolute")
        kept = None if counts is None else counts[own]
        values[own], indices[own] = kept_by_rule(found.to(x.dtype), at, kept, rule)
    return values, indices


def _candidates(x: Tensor, W: Tensor, bias: Tensor, k: int, absolute: bool) -> Int64[Tensor, "rows candidates"]:
    """Packed keys of all entries in the groups that hold the k wanted."""
    (rows, d), m, groups = x.shape, len(W), -(-len(W) // GROUP)
    kernels, kept = _loops(), min(k, groups)
    options = {
        "ABSOLUTE": absolute, "GROUP": GROUP, "WIDEN": not x.is_cuda and x.dtype == torch.bfloat16,
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
    }  # fmt: skip
    largest = x.new_empty(rows, groups, dtype=torch.int64)
    with _device_of(x):
        kernels.maxima[_cells(rows, _TILE["ROWS"]), _cells(m, _TILE["LATENTS"])](
            x, W, bias, largest, rows, m, d, groups, **_TILE, **options, num_warps=8,
        )  # fmt: skip
        wanted, order = best_groups(largest, k).view(-1).sort(stable=True)
        starts = torch.searchsorted(wanted, torch.arange(groups + 1, device=x.device))
        ends = ((starts.diff() + _GATHERED_ROWS - 1) // _GATHERED_ROWS).cumsum(0)
        # How many tiles there are is known on the device alone; those beyond find no group and end at once.
        most = len(order) // _GATHERED_ROWS + min(groups, len(order))
        group_of = torch.searchsorted(ends, torch.arange(most, device=x.device), right=True)
        tiles = torch.nn.functional.pad(ends, (1, 0))
        out = x.new_empty(rows, kept * GROUP, dtype=torch.int64)
        kernels.candidates[(most,)](
            x, W, bias, order, starts, tiles, group_of, out, groups, kept, m, d, ROWS=_GATHERED_ROWS,
            INPUTS=_TILE["INPUTS"], **options,
        )  # fmt: skip
    return out


def _unpacked(packed: Int64[Tensor, "rows k"], absolute: bool) -> tuple[Float[Tensor, "rows k"], Tensor]:
    """The values and latents of packed keys; the lowest key is a NaN by its bits."""
    key = (packed >> 32).to(torch.int32)
    values = (key ^ (key >> 31 & 0x7FFFFFFF)).view(torch.float32)
    if absolute:
        values = torch.where((packed & 1).bool(), -values, values)
    return values, _LAST - ((packed & 0x7FFFFFFF) >> 1)


def decode(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"]
) -> Float[Tensor, "rows d"]:
    """``out[b] = sum_j values[b, j] W[indices[b, j]]``; an entry of value zero is absent."""
    (rows, k), d = values.shape, W.shape[1]
    out = W.new_empty(rows, d)
    if out.numel():
        tile = _gathered(d)
        with _device_of(W):
            _loops().decoded[_cells(rows, tile["ROWS"]), _cells(d, tile["COLUMNS"])](
                values.contiguous(), indices.contiguous(), W.contiguous(), out, rows, k, d, **tile
            )
    return out


def rows_dot(
    indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"], x: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows k"]:
    """``out[b, j] = <W[indices[b, j]], x[b]>``: the derivative of decoded rows by the values."""
    (rows, k), d = indices.shape, W.shape[1]
    out = W.new_empty(rows, k)
    if out.numel():
        tile = _gathered(d)
        with _device_of(W):
            _loops().dotted[_cells(rows, tile["ROWS"]), _cells(k, tile["ENTRIES"])](
                indices.contiguous(), W.contiguous(), x.contiguous(), out, rows, k, d, **tile
            )
    return out


def accumulate(
    coefficients: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], x: Float[Tensor, "rows d"], m: int
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """``out[i]``, the sum of ``coefficients[b, j] x[b]`` over the entries of latent i, and that of the coefficients."""
    k, d = indices.shape[1], x.shape[1]
    out, sums = x.new_zeros(m, d), x.new_zeros(m)
    if m and indices.numel():
        tile = _gathered(d)
        order, starts = uses_by_latent(coefficients, indices, m)
        with _device_of(x):
            _loops().accumulated[_cells(m, tile["ROWS"]), max(_cells(d, tile["COLUMNS"]), 1)](
                coefficients.contiguous(), order, starts, x.contiguous(), out, sums, m, k, d, **tile
            )
    return out, sums


def _gathered(d: int) -> dict[str, int]:
    """How many rows, entries and columns a program holds where it gathers rows of ``d``."""
    return {"ROWS": 4, "ENTRIES": 4, "COLUMNS": min(max(1 << (d - 1).bit_length(), 16), 128)}


def _cells(length: int, size: int) -> int:
    return -(-length // size)


def _device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()

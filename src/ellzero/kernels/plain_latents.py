"""Sparse codes and the rows of a dictionary that they use, in plain torch: for what no compiled loop takes.

Lives here: ``encode``, ``decode``, ``rows_dot``, ``accumulate`` and the two halves of nested errors, on any device and
in any floating dtype, with the answers of ``latents``; sums of float16 and bfloat16 are made in float32. Does not live
here: derivatives and checks (``torch_latents``), Triton (``triton_latents``).

Selections go by *keys*: the bits of a float32 as an int32 that sorts as the number does, with NaN below everything, and
the place in the lower half of an int64. No two are equal, so that ``torch.topk`` has one answer: the rule of ties.
Sums by latent follow one stable sort of the code's entries, without atomics: they repeat exactly on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from ellzero.errors import InputError
from ellzero.kernels import torch_ops

__all__ = [
    "GROUP", "accumulate", "best_groups", "blocks", "check_ends", "check_indices", "decode", "encode", "kept_by_rule",
    "nested_errors", "nested_gradient", "rows_dot", "uses_by_latent", "wide",
]  # fmt: skip

GROUP = 64
"""The k entries wanted of a row lie in the k groups of so many latents whose largest entries are the largest."""

_LOWEST, _REST = -(2**31), 2**31 - 1
# Of pre-activations at a time, and of rows gathered for sums.
_BLOCK_BYTES = 128 * 2**20


def encode(
    x: Float[Tensor, "rows d"], W: Float[Tensor, "m d"], bias: Float[Tensor, " m"],
    counts: Int64[Tensor, " rows"] | None, k: int, rule: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch_latents.encode_top_k`` of centred rows, as values and indices ``[rows, k]``."""
    values, indices = x.new_empty(len(x), k), x.new_empty(len(x), k, dtype=torch.int64)
    if values.numel() == 0:
        return values, indices
    W_wide, b_wide = wide(W), wide(bias)
    for own in blocks(len(x), len(W) * W_wide.element_size()):
        pre = torch.addmm(b_wide, wide(x[own]), W_wide.T)
        score = pre.abs() if rule == "absolute" else pre
        at = torch_ops.top_k(score, k).indices if pre.dtype == torch.float64 else _best(score, k)
        kept = None if counts is None else counts[own]
        values[own], indices[own] = kept_by_rule(pre.gather(1, at).to(x.dtype), at, kept, rule)
    return values, indices


def kept_by_rule(values: Tensor, indices: Tensor, counts: Tensor | None, rule: str) -> tuple[Tensor, Tensor]:
    """What is beyond a row's count, or not positive where the rule rectifies, as zeros of latent 0."""
    absent = values <= 0 if rule == "relu" else torch.zeros_like(values, dtype=torch.bool)
    if counts is not None:
        absent |= torch.arange(values.shape[1], device=values.device) >= counts[:, None]
    return values.masked_fill(absent, 0), indices.masked_fill(absent, 0)


def best_groups(packed: Int64[Tensor, "rows groups"], k: int) -> Int64[Tensor, "rows kept"]:
    """The groups that hold the k entries wanted, rising, from keys of their largest entries packed with their places.

    Whatever lies in another group has k entries before it: the largest of each group kept, which are larger, or as
    large at a lower place.
    """
    return (_REST - (packed.topk(min(k, packed.shape[1])).values & _REST)).sort(dim=1).values


def decode(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"]
) -> Float[Tensor, "rows d"]:
    """``out[b] = sum_j values[b, j] W[indices[b, j]]`` over entries that are not zero."""
    out = wide(W[:0]).new_zeros(len(values), W.shape[1])
    for j in range(values.shape[1]):
        out += _term(values[:, j, None], W[indices[:, j]])
    return out.to(W.dtype)


def rows_dot(
    indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"], x: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows k"]:
    """``out[b, j] = <W[indices[b, j]], x[b]>``."""
    given = wide(x)
    columns = [(wide(W[indices[:, j]]) * given).sum(1) for j in range(indices.shape[1])]
    return torch.stack(columns, 1).to(W.dtype) if columns else W.new_zeros(indices.shape)


def accumulate(
    coefficients: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], x: Float[Tensor, "rows d"], m: int
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """``out[i]``, the sum of ``coefficients[b, j] x[b]`` over the entries of latent i, and that of the coefficients."""
    order, starts = uses_by_latent(coefficients, indices, m)
    # Absent entries stand last, in a segment of their own that is left out.
    ends = torch.cat([starts, starts.new_full((1,), len(order))])
    used, row = wide(coefficients).reshape(-1)[order], order // max(indices.shape[1], 1)
    sums = torch.segment_reduce(used, "sum", offsets=ends, unsafe=True)[:m]
    out = x.new_empty(m, x.shape[1])
    for own in blocks(x.shape[1], max(len(order), 1) * used.element_size()):
        terms = used[:, None] * wide(x[:, own])[row]
        out[:, own] = torch.segment_reduce(terms, "sum", offsets=ends, axis=0, unsafe=True)[:m]
    return out, sums.to(x.dtype)


def uses_by_latent(
    coefficients: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], m: int
) -> tuple[Int64[Tensor, " entries"], Int64[Tensor, " m_1"]]:
    """The entries ``b k + j`` by latent, each latent's in the order of the rows; latent i's from ``starts[i]`` on.

    Those of value zero are absent: they come after ``starts[m]``.
    """
    latent = indices.masked_fill(coefficients == 0, m).reshape(-1)
    latent, order = latent.sort(stable=True)
    return order, torch.searchsorted(latent, torch.arange(m + 1, device=latent.device))


def nested_errors(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"],
    target: Float[Tensor, "rows d"], ends: Int64[Tensor, "rows levels"],
) -> tuple[Float[Tensor, "rows levels"], Float[Tensor, "rows d"]]:  # fmt: skip
    """``latents.nested_errors``."""
    residual = wide(target).clone()
    squares = residual.new_empty(len(values), values.shape[1] + 1)
    squares[:, 0] = residual.square().sum(1)
    for i in range(values.shape[1]):
        residual -= _term(values[:, i, None], W[indices[:, i]])
        squares[:, i + 1] = residual.square().sum(1)
    return squares.gather(1, ends).to(W.dtype), residual.to(W.dtype)


def nested_gradient(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"],
    residual: Float[Tensor, "rows d"], ends: Int64[Tensor, "rows levels"], weights: Float[Tensor, "rows levels"],
    summed=accumulate,
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "m d"], Float[Tensor, "rows d"]]:  # fmt: skip
    """``latents.nested_gradient``; ``summed`` adds up by latent. Suffix sums are kept for a block of rows at a time."""
    (rows, k), d = values.shape, W.shape[1]
    by_values, by_target = torch.empty_like(values), torch.empty_like(residual)
    by_W = wide(W[:0]).new_zeros(W.shape)
    for own in blocks(rows, max(k * d, 1) * by_W.element_size()):
        left, value, index = wide(residual[own]).clone(), values[own], indices[own]
        at = ends[own, :, None] == torch.arange(k + 1, device=ends.device)
        weight = 2 * (wide(weights[own])[:, :, None] * at).sum(1)
        suffix, kept = torch.zeros_like(left), left.new_empty(len(left), k, d)
        for i in range(k, -1, -1):
            suffix += weight[:, i, None] * left
            if i:
                row = wide(W[index[:, i - 1]])
                by_values[own, i - 1] = -(row * suffix).sum(1).to(values.dtype)
                kept[:, i - 1] = suffix
                left += _term(value[:, i - 1, None], row)
        by_target[own] = suffix.to(residual.dtype)
        if k:
            by_W -= summed(wide(value).reshape(-1, 1), index.reshape(-1, 1), kept.reshape(-1, d), len(W))[0]
    return by_values, by_W.to(W.dtype), by_target


def check_indices(indices: Int[Tensor, "rows k"], m: int) -> None:
    """Refuses an index that is no row; a kernel would read beside the dictionary."""
    if indices.numel():
        low, high = torch.stack(indices.aminmax()).tolist()
        if low < 0 or high >= m:
            raise InputError(f"indices: got {low} to {high}, want latents from 0 to {m - 1}")


def check_ends(ends: Int64[Tensor, "rows levels"], k: int) -> None:
    """Refuses levels that do not rise within the code."""
    if ends.numel():
        low, high, falls = torch.stack([*ends.aminmax(), (ends.diff(dim=1) < 0).any().long()]).tolist()
        if low < 0 or high > k or falls:
            raise InputError(f"ends: got {low} to {high}, want numbers that rise within 0 to {k}")


def blocks(length: int, each: int) -> Iterator[slice]:
    """Slices of ``0 .. length`` of ``each`` bytes an entry, within a bound on memory."""
    size = max(_BLOCK_BYTES // max(each, 1), 1)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _term(value: Tensor, row: Tensor) -> Tensor:
    """Nothing where the value is zero, whatever the row holds."""
    value = wide(value)
    return torch.where(value != 0, value * wide(row), 0)


def _best(score: Float[Tensor, "rows m"], k: int) -> Int64[Tensor, "rows k"]:
    """Where the k largest entries of each row stand, the largest first; ties keep the lowest, NaN comes last."""
    rows, m = score.shape
    groups = -(-m // GROUP)
    key = torch.nn.functional.pad(_keys(score), (0, groups * GROUP - m), value=_LOWEST).view(rows, groups, GROUP)
    chosen = best_groups(_packed(key.amax(2), torch.arange(groups, device=key.device)), k)
    among = key.gather(1, chosen[:, :, None].expand(-1, -1, GROUP))
    place = chosen[:, :, None] * GROUP + torch.arange(GROUP, device=key.device)
    return _REST - (_packed(among, place).view(rows, -1).topk(k).values & _REST)


def _keys(score: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    bits = score.masked_fill(score == 0, 0).view(torch.int32)  # -0.0 equals 0.0
    return (bits ^ (bits >> 31 & _REST)).masked_fill(score.isnan(), _LOWEST)


def _packed(key: Int32[Tensor, "*shape"], place: Int64[Tensor, "*place"]) -> Int64[Tensor, "*shape"]:
    return key.long() << 32 | (_REST - place)

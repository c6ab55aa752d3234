"""Sparse encoders and decoders as torch custom ops, with derivatives that flow through the entries in use alone.

Lives here: ``encode_top_k``, ``encode_batch_top_k``, ``decode_rows`` and ``nested_rows`` on tensors. float32 and
float64 on the CPU go to the compiled kernels, a CUDA tensor to Triton where that is installed; all else takes plain
torch with the same answers. Does not live here: loss terms and training (``autoencoder``), the loops and their faces
(``latents`` on arrays, ``triton_latents``, ``plain_latents``).
The encoder is ``W [m, d]``, one row per latent (an encoder stored as ``[d, m]`` in column order has it as ``W_enc.T``).
The pre-activations of the whole batch never exist at once: they are made and searched by blocks of rows.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.kernels import latents, plain_latents, triton_latents

__all__ = [
    "BatchCode", "Code", "Nested", "by_latent", "decode_rows", "encode_batch_top_k", "encode_top_k", "nested_rows",
]  # fmt: skip

# A block of pre-activations: rows enough for a good product (it packs W anew each time), yet a small part of the batch.
_BLOCK_BYTES, _BLOCK_ROWS = 112 * 2**20, (512, 2048)


class Code(NamedTuple):
    """Per row the entries in use, best first, and their latents; absent ones are zeros of latent 0."""

    values: Float[Tensor, "rows k"]
    indices: Int64[Tensor, "rows k"]


class BatchCode(NamedTuple):
    """A ``Code`` of which row b uses the first ``counts[b]`` columns."""

    values: Float[Tensor, "rows width"]
    indices: Int64[Tensor, "rows width"]
    counts: Int64[Tensor, " rows"]


def encode_top_k(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"],
    k: int | Int64[Tensor, " rows"],
    rule: str = "relu",
    *,
    center: Float[Tensor, " d"] | None = None,
) -> Code:
    """The ``k`` entries of each row of ``(x - center) W' + bias`` that the rule wants; ties keep the lowest latent.

    Parameters
    ----------
    k : one number, or one per row; then the code is as wide as the largest.
    rule : ``"relu"``: the largest, of which those that are not positive become zeros of latent 0; ``"signed"``: the
        largest; ``"absolute"``: the largest in size, with their signs.
    center : subtracted from the rows of x; its derivative costs one product of a vector with ``W``.

    The derivative flows to ``W`` and ``bias`` at the entries kept, to ``center``, and to ``x`` where it asks for one.
    The matrix product is the vendor's, whose last bits may depend on the threads; nothing else does.

    Raises
    ------
    InputError : shapes or dtypes that do not fit; k outside ``[0, m]``; an unknown rule.
    """
    _check_encoder(x, W, bias, center)
    check_choice("rule", rule, latents.RULES)
    counts = None
    if isinstance(k, Tensor):
        if k.dtype != torch.int64 or k.shape != x.shape[:1]:
            raise InputError(f"k: got {k.dtype} {tuple(k.shape)}, want a number, or int64 ({len(x)},)")
        if len(k) and int(k.min()) < 0:
            raise InputError(f"k: got {int(k.min())}, want a number at least 0")
        counts, k = k, int(k.max()) if len(k) else 0
    if isinstance(k, int) and isinstance(W.shape[0], int):
        check_integer("k", k, at_least=0, at_most=W.shape[0])
    return Code(*_encode(x, W, bias, center, counts, k, rule))


def encode_batch_top_k(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"],
    k: int,
    *,
    center: Float[Tensor, " d"] | None = None,
) -> BatchCode:
    """The ``k * rows`` largest entries of ``relu((x - center) W' + bias)`` over the whole batch, exactly.

    The set and its ties are those of ``BatchTopK(k)``: a draw goes to the entry that comes first, row by row. Zeros
    are left out, so fewer may be kept. Each row names ``4 k`` candidates first; a row whose last candidate still
    reaches the bound over all is searched again, twice as wide. Derivatives as for ``encode_top_k``.

    Raises
    ------
    InputError : shapes or dtypes that do not fit; k outside ``[0, m]``.
    """
    _check_encoder(x, W, bias, center)
    if isinstance(k, int) and isinstance(W.shape[0], int):
        check_integer("k", k, at_least=0, at_most=W.shape[0])
    return BatchCode(*_encode_batch(x, W, bias, center, k))


def decode_rows(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], W: Float[Tensor, "m d"]
) -> Float[Tensor, "rows d"]:
    """``out[b] = sum_j values[b, j] W[indices[b, j]]``; an entry of value zero is absent.

    The derivative by a value is ``<W[i], g[b]>``, that by ``W`` is summed latent by latent in the order of the rows.

    Raises
    ------
    InputError : shapes or dtypes that do not fit, or an index that is no row of ``W``.
    """
    _check_code(values, indices, W)
    return _decode(values, indices, W)


class Nested(NamedTuple):
    """Squared errors by row and level, and what all entries leave of the target (without a derivative)."""

    errors: Float[Tensor, "rows levels"]
    residual: Float[Tensor, "rows d"]


def nested_rows(
    values: Float[Tensor, "rows k"],
    indices: Int64[Tensor, "rows k"],
    W: Float[Tensor, "m d"],
    target: Float[Tensor, "rows d"],
    ends: Int64[Tensor, " levels"] | Int64[Tensor, "rows levels"],
) -> Nested:
    """``errors[b, l] = ||target[b] - sum_{j < ends[b, l]} values[b, j] W[indices[b, j]]||^2``.

    With values in descending order and ``ends = 1 .. k`` these are the errors of HierarchicalTopK; with a code sorted
    by latent (``by_latent``) those of Matryoshka prefixes. The cost is that of one decoding and a running residual,
    whatever the number of levels; the derivative sums residuals over suffixes (see ``latents.nested_gradient``) and
    flows to values, ``W`` and target.

    Parameters
    ----------
    ends : how many entries each level holds, rising; one list for all rows, or one per row.

    Raises
    ------
    InputError : shapes or dtypes that do not fit, an index that is no row of ``W``, ends that do not rise from 0 to k.
    """
    _check_code(values, indices, W)
    if target.shape != (values.shape[0], W.shape[1]) or target.dtype != W.dtype:
        raise InputError(f"target: got {target.dtype} {tuple(target.shape)}, want {W.dtype} [rows, {W.shape[1]}]")
    if ends.dtype != torch.int64 or ends.ndim not in (1, 2):
        raise InputError(f"ends: got {ends.dtype} with {ends.ndim} axes, want int64 [levels] or [rows, levels]")
    return Nested(*_nested(values, indices, W, target, ends.expand(values.shape[0], -1)))


def by_latent(
    values: Float[Tensor, "rows k"], indices: Int64[Tensor, "rows k"], prefixes: Int64[Tensor, " levels"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The code sorted by latent, and the ``ends`` at which latents below each of the rising ``prefixes`` stop."""
    indices, order = indices.sort(dim=1, stable=True)
    ends = torch.searchsorted(indices, prefixes.expand(len(indices), -1).contiguous())
    return values.gather(1, order), indices, ends


# -- the custom ops


@torch.library.custom_op("ellzero::encode_top_k", mutates_args=())
def _encode(
    x: Tensor, W: Tensor, bias: Tensor, center: Tensor | None, counts: Tensor | None, k: int, rule: str
) -> tuple[Tensor, Tensor]:
    return _encoded(x.detach(), W.detach(), bias.detach(), None if center is None else center.detach(), counts, k, rule)


@_encode.register_fake
def _(x, W, bias, center, counts, k, rule):
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


def _setup_encode(ctx, inputs, output) -> None:
    x, W, _, center, counts, _, rule = inputs
    ctx.save_for_backward(x, W, center, counts, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.rule = rule


def _backward_encode(ctx, grad: Tensor, _):
    x, W, center, counts, values, indices = ctx.saved_tensors
    if ctx.rule == "relu":
        grad = grad * (values > 0)
    elif counts is not None:
        grad = grad * (torch.arange(grad.shape[1], device=grad.device) < counts[:, None])
    return (*_encoder_gradients(ctx, grad, x, W, center, indices), None, None, None)


_encode.register_autograd(_backward_encode, setup_context=_setup_encode)


@torch.library.custom_op("ellzero::encode_batch_top_k", mutates_args=())
def _encode_batch(x: Tensor, W: Tensor, bias: Tensor, center: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    return _batch_encoded(x.detach(), W.detach(), bias.detach(), None if center is None else center.detach(), k)


@_encode_batch.register_fake
def _(x, W, bias, center, k):
    width = torch.library.get_ctx().new_dynamic_size()
    counts = x.new_empty(x.shape[0], dtype=torch.int64)
    return x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], width, dtype=torch.int64), counts


def _setup_encode_batch(ctx, inputs, output) -> None:
    x, W, _, center, _ = inputs
    ctx.save_for_backward(x, W, center, *output[:2])
    ctx.mark_non_differentiable(*output[1:])


def _backward_encode_batch(ctx, grad: Tensor, *_):
    x, W, center, values, indices = ctx.saved_tensors
    return (*_encoder_gradients(ctx, grad * (values > 0), x, W, center, indices), None)


_encode_batch.register_autograd(_backward_encode_batch, setup_context=_setup_encode_batch)


def _encoder_gradients(ctx, grad: Tensor, x: Tensor, W: Tensor, center: Tensor | None, indices: Tensor):
    """By x, W, bias and center, of pre-activations whose derivative ``grad`` is known at the entries in use."""
    by_x = _decode(grad, indices, W) if ctx.needs_input_grad[0] else None
    by_W = by_bias = by_center = None
    if any(ctx.needs_input_grad[1:4]):
        by_W, by_bias = _accumulate(grad, indices, x if center is None else x - center, W.shape[0])
        by_center = -(by_bias @ W) if ctx.needs_input_grad[3] else None
    return by_x, by_W, by_bias, by_center


@torch.library.custom_op("ellzero::decode_rows", mutates_args=())
def _decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    values, indices, W = values.detach(), indices, W.detach()
    if _native(W):
        out = latents.decode_rows(_array(values), _array(indices), _array(W), n_threads=torch.get_num_threads())
        return torch.from_numpy(out)
    plain_latents.check_indices(indices, W.shape[0])
    return _loops(W).decode(values, indices, W)


@_decode.register_fake
def _(values, indices, W):
    return W.new_empty(values.shape[0], W.shape[1])


def _setup_decode(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_decode(ctx, grad: Tensor):
    values, indices, W = ctx.saved_tensors
    by_values = _dot(indices, W, grad) if ctx.needs_input_grad[0] else None
    by_W = _accumulate(values, indices, grad, W.shape[0])[0] if ctx.needs_input_grad[2] else None
    return by_values, None, by_W


_decode.register_autograd(_backward_decode, setup_context=_setup_decode)


@torch.library.custom_op("ellzero::rows_dot", mutates_args=())
def _dot(indices: Tensor, W: Tensor, x: Tensor) -> Tensor:
    W, x = W.detach(), x.detach()
    if _native(W):
        return torch.from_numpy(
            latents.rows_dot(_array(indices), _array(W), _array(x), n_threads=torch.get_num_threads())
        )
    return _loops(W).rows_dot(indices, W, x)


@_dot.register_fake
def _(indices, W, x):
    return W.new_empty(indices.shape)


@torch.library.custom_op("ellzero::accumulate_rows", mutates_args=())
def _accumulate(coefficients: Tensor, indices: Tensor, x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    coefficients, x = coefficients.detach(), x.detach()
    if _native(x):
        found = latents.accumulate_rows(
            _array(coefficients), _array(indices), _array(x), m, n_threads=torch.get_num_threads()
        )
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return _loops(x).accumulate(coefficients, indices, x, m)


@_accumulate.register_fake
def _(coefficients, indices, x, m):
    return x.new_empty(m, x.shape[1]), x.new_empty(m)


@torch.library.custom_op("ellzero::nested_rows", mutates_args=())
def _nested(values: Tensor, indices: Tensor, W: Tensor, target: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    values, W, target = values.detach(), W.detach(), target.detach()
    if _native(W):
        found = latents.nested_errors(
            *(_array(t) for t in (values, indices, W, target, ends)), n_threads=torch.get_num_threads()
        )
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    plain_latents.check_indices(indices, W.shape[0])
    plain_latents.check_ends(ends, values.shape[1])
    return plain_latents.nested_errors(values, indices, W, target, ends)


@_nested.register_fake
def _(values, indices, W, target, ends):
    return W.new_empty(ends.shape), torch.empty_like(target, memory_format=torch.contiguous_format)


def _setup_nested(ctx, inputs, output) -> None:
    values, indices, W, _, ends = inputs
    ctx.save_for_backward(values, indices, W, output[1], ends)
    ctx.mark_non_differentiable(output[1])


def _backward_nested(ctx, grad: Tensor, _):
    by_values, by_W, by_target = _nested_gradient(*ctx.saved_tensors, grad)
    return by_values, None, by_W, by_target, None


_nested.register_autograd(_backward_nested, setup_context=_setup_nested)


@torch.library.custom_op("ellzero::nested_gradient", mutates_args=())
def _nested_gradient(
    values: Tensor, indices: Tensor, W: Tensor, residual: Tensor, ends: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    values, W, residual, weights = values.detach(), W.detach(), residual.detach(), weights.detach()
    if _native(W):
        found = latents.nested_gradient(
            *(_array(t) for t in (values, indices, W, residual, ends, weights)), n_threads=torch.get_num_threads()
        )
        return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])
    return plain_latents.nested_gradient(values, indices, W, residual, ends, weights, summed=_loops(W).accumulate)


@_nested_gradient.register_fake
def _(values, indices, W, residual, ends, weights):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (values, W, residual))


# -- selection by blocks of rows


def _encoded(x: Tensor, W: Tensor, bias: Tensor, center: Tensor | None, counts: Tensor | None, k: int, rule: str):
    """Values and indices ``[rows, k]``."""
    rows, m = x.shape[0], W.shape[0]
    if not _native(x):
        return _loops(x).encode(x if center is None else x - center, W, bias, counts, k, rule)
    values, indices = x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64)
    if rows == 0 or k == 0:
        return values, indices
    fits = _BLOCK_BYTES // max(m * x.element_size(), 1)
    most = max(min(fits, _BLOCK_ROWS[1]), _BLOCK_ROWS[0])
    block = -(-rows // -(-rows // most))  # as many blocks, of even size
    room = x.new_empty(block, m)
    for start in range(0, rows, block):
        own = slice(start, min(start + block, rows))
        given = x[own] if center is None else x[own] - center
        pre = torch.mm(given, W.T, out=room[: len(given)])
        some = None if counts is None else _array(counts[own])
        found = latents.select_rows(
            _array(pre), k, rule, bias=_array(bias), counts=some, n_threads=torch.get_num_threads()
        )
        values[own], indices[own] = torch.from_numpy(found.values), torch.from_numpy(found.indices)
    return values, indices


def _batch_encoded(x: Tensor, W: Tensor, bias: Tensor, center: Tensor | None, k: int):
    """Values, indices and counts of the largest ``k * rows`` activations."""
    rows, m = x.shape[0], W.shape[0]
    width = min(4 * k, m)
    values, indices = _encoded(x, W, bias, center, None, width, "relu")
    while True:
        bound = _last_kept(values, k * rows)
        if width in (0, m):
            break
        again = ((values[:, -1] > 0) & (values[:, -1] >= bound)).nonzero().squeeze(1)
        if not len(again):
            break
        wider = min(2 * width, m)
        values, indices = (torch.nn.functional.pad(t, (0, wider - width)) for t in (values, indices))
        values[again], indices[again] = _encoded(x[again], W, bias, center, None, wider, "relu")
        width = wider
    kept = values > bound
    ties = ((values == bound) & (values > 0)).reshape(-1).nonzero().squeeze(1)
    kept.view(-1)[ties[: max(k * rows - int(kept.sum()), 0)]] = True
    counts = kept.sum(1)
    width = int(counts.max()) if rows else 0
    kept = kept[:, :width]
    return values[:, :width].where(kept, 0), indices[:, :width].where(kept, 0), counts


def _last_kept(values: Tensor, count: int) -> float:
    """The ``count``-th largest positive value; 0 where there are not so many. infinity where none is wanted."""
    if count == 0:
        return float("inf")
    positive = values[values > 0]
    if len(positive) < count:
        return 0.0
    if positive.device.type != "cpu" or positive.dtype not in (torch.float32, torch.float64):
        return float(positive.topk(count, sorted=False).values.min())
    return float(np.partition(positive.numpy(), len(positive) - count)[len(positive) - count])


# -- checks


def _native(x: Tensor) -> bool:
    """Whether the NumPy face takes it, which has its own references where nothing is compiled."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _loops(x: Tensor) -> ModuleType:
    """Whose loops serve a tensor that is not native."""
    return triton_latents if _on_gpu(x) and x.dtype in triton_latents.DTYPES else plain_latents


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda and not triton_latents.missing()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _check_encoder(x: Tensor, W: Tensor, bias: Tensor, center: Tensor | None) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"x: got {x.dtype} with {x.ndim} axes, want floating point [rows, d]")
    if W.ndim != 2 or W.shape[1] != x.shape[1] or W.dtype != x.dtype:
        raise InputError(f"W: got {W.dtype} {tuple(W.shape)}, want {x.dtype} [m, {x.shape[1]}], a row per latent")
    if bias.shape != W.shape[:1] or bias.dtype != x.dtype:
        raise InputError(f"bias: got {bias.dtype} {tuple(bias.shape)}, want {x.dtype} ({W.shape[0]},)")
    if center is not None and (center.shape != x.shape[1:] or center.dtype != x.dtype):
        raise InputError(f"center: got {center.dtype} {tuple(center.shape)}, want {x.dtype} ({x.shape[1]},)")


def _check_code(values: Tensor, indices: Tensor, W: Tensor) -> None:
    if W.ndim != 2 or not W.is_floating_point():
        raise InputError(f"W: got {W.dtype} with {W.ndim} axes, want floating point [m, d]")
    if values.ndim != 2 or values.dtype != W.dtype:
        raise InputError(f"values: got {values.dtype} with {values.ndim} axes, want {W.dtype} [rows, k]")
    if indices.shape != values.shape or indices.dtype != torch.int64:
        raise InputError(f"indices: got {indices.dtype} {tuple(indices.shape)}, want int64 {tuple(values.shape)}")

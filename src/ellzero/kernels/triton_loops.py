"""The loops of ``triton_latents`` in Triton, imported by their first call.

Lives here: what one program does. Does not live here: tensors, shapes and grids. Matrices are row-major; ``m`` rows of
``d`` columns are latents, ``rows`` of them are samples, ``k`` entries a sample make a code.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # every module can be imported; without Triton nobody calls these
    jit = lambda loop: loop  # noqa: E731
else:
    jit = triton.jit


@jit
def product(x, W, bias, b, i, here, m, d, PRECISION: tl.constexpr, INPUTS: tl.constexpr, WIDEN: tl.constexpr):
    """``x[b] W[i]' + bias[i]`` for a list of rows and one of latents."""
    total = tl.full((b.shape[0], i.shape[0]), 0.0, tl.float32)
    for start in range(0, d, INPUTS):
        c = start + tl.arange(0, INPUTS)
        left = tl.load(x + b[:, None] * d + c[None, :], mask=here[:, None] & (c < d)[None, :], other=0.0)
        right = tl.load(W + i[None, :] * d + c[:, None], mask=(i < m)[None, :] & (c < d)[:, None], other=0.0)
        if WIDEN:  # Triton's interpreter cannot multiply bfloat16
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total + tl.load(bias + i, mask=i < m, other=0.0).to(tl.float32)[None, :]


@jit
def keyed(pre, stored, ABSOLUTE: tl.constexpr):
    """int32 that sort as the numbers do, NaN and what is not stored below everything."""
    rank = tl.abs(pre) if ABSOLUTE else pre
    bits = tl.where(rank == 0, 0.0, rank).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    return tl.where((rank == rank) & stored, bits ^ ((bits >> 31) & 0x7FFFFFFF), -0x80000000)


@jit
def maxima(
    x, W, bias, out, rows, m, d, groups, ABSOLUTE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    LATENTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The largest pre-activation of each group of latents, packed with the group's number, for ROWS of the rows."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1).to(tl.int64) * LATENTS + tl.arange(0, LATENTS)
    pre = product(x, W, bias, b, i, b < rows, m, d, PRECISION, INPUTS, WIDEN)
    key = keyed(pre, (i < m)[None, :], ABSOLUTE)
    best = tl.max(tl.reshape(key, (ROWS, LATENTS // GROUP, GROUP)), 2)
    g = tl.program_id(1).to(tl.int64) * (LATENTS // GROUP) + tl.arange(0, LATENTS // GROUP)
    packed = (best.to(tl.int64) << 32) | (0x7FFFFFFF - g)[None, :]
    tl.store(out + b[:, None] * groups + g[None, :], packed, mask=(b < rows)[:, None] & (g < groups)[None, :])


@jit
def candidates(
    x, W, bias, order, starts, tiles, group_of, out, groups, kept, m, d, ABSOLUTE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One group for up to ROWS of the rows that want it; ``order`` lists pairs ``row kept + slot`` by group."""
    t = tl.program_id(0)
    g = tl.load(group_of + t)
    if g < groups:
        at = tl.load(starts + g) + (t - tl.load(tiles + g)) * ROWS + tl.arange(0, ROWS)
        here = at < tl.load(starts + g + 1)
        pair = tl.load(order + at, mask=here, other=0)
        i = g * GROUP + tl.arange(0, GROUP)
        pre = product(x, W, bias, pair // kept, i, here, m, d, PRECISION, INPUTS, WIDEN)
        key = keyed(pre, (i < m)[None, :], ABSOLUTE)
        place = (0x3FFFFFFF - i)[None, :] * 2 + (pre < 0).to(tl.int64)
        packed = (key.to(tl.int64) << 32) | place
        tl.store(out + pair[:, None] * GROUP + tl.arange(0, GROUP)[None, :], packed, mask=here[:, None])


@jit
def decoded(
    values, indices, W, out, rows, k, d, ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """``out[b] = sum_j values[b, j] W[indices[b, j]]`` over entries that are not zero."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.full((ROWS, ENTRIES, COLUMNS), 0.0, tl.float32)
    for start in range(0, k, ENTRIES):
        j = start + tl.arange(0, ENTRIES)
        here = (b < rows)[:, None] & (j < k)[None, :]
        value = tl.load(values + b[:, None] * k + j[None, :], mask=here, other=0.0).to(tl.float32)
        index = tl.load(indices + b[:, None] * k + j[None, :], mask=here, other=0)
        read = (value != 0)[:, :, None] & (c < d)[None, None, :]
        row = tl.load(W + index[:, :, None] * d + c[None, None, :], mask=read, other=0.0).to(tl.float32)
        total += value[:, :, None] * row
    to = out + b[:, None] * d + c[None, :]
    tl.store(to, tl.sum(total, 1).to(out.dtype.element_ty), mask=(b < rows)[:, None] & (c < d)[None, :])


@jit
def dotted(
    indices, W, x, out, rows, k, d, ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """``out[b, j] = <W[indices[b, j]], x[b]>``."""
    b = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    here = (b < rows)[:, None] & (j < k)[None, :]
    index = tl.load(indices + b[:, None] * k + j[None, :], mask=here, other=0)
    total = tl.full((ROWS, ENTRIES, COLUMNS), 0.0, tl.float32)
    for start in range(0, d, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        given = tl.load(x + b[:, None] * d + c[None, :], mask=(b < rows)[:, None] & (c < d)[None, :], other=0.0)
        read = here[:, :, None] & (c < d)[None, None, :]
        row = tl.load(W + index[:, :, None] * d + c[None, None, :], mask=read, other=0.0).to(tl.float32)
        total += row * given.to(tl.float32)[:, None, :]
    tl.store(out + b[:, None] * k + j[None, :], tl.sum(total, 2).to(out.dtype.element_ty), mask=here)


@jit
def accumulated(
    coefficients, order, starts, x, out, sums, m, k, d, ROWS: tl.constexpr, ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of ``coefficients[e] x[e // k]`` over the entries e of each latent: ``order[starts[i] .. starts[i + 1]]``.

    A program has ROWS latents and goes on for the one with most entries, ENTRIES of each at a time: most have few.
    """
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(starts + i, mask=i < m, other=0)
    last = tl.load(starts + i + 1, mask=i < m, other=0)
    total = tl.full((ROWS, ENTRIES, COLUMNS), 0.0, tl.float32)
    alone = tl.full((ROWS, ENTRIES), 0.0, tl.float32)
    for start in range(0, tl.max(last - first, 0), ENTRIES):
        e = first[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        here = e < last[:, None]
        entry = tl.load(order + e, mask=here, other=0)
        value = tl.load(coefficients + entry, mask=here, other=0.0).to(tl.float32)
        read = here[:, :, None] & (c < d)[None, None, :]
        given = tl.load(x + (entry // k)[:, :, None] * d + c[None, None, :], mask=read, other=0.0).to(tl.float32)
        total += value[:, :, None] * given
        alone += value
    to = out + i[:, None] * d + c[None, :]
    tl.store(to, tl.sum(total, 1).to(out.dtype.element_ty), mask=(i < m)[:, None] & (c < d)[None, :])
    if tl.program_id(1) == 0:
        tl.store(sums + i, tl.sum(alone, 1).to(sums.dtype.element_ty), mask=i < m)

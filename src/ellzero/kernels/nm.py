"""Products of n:m matrices with dense ones on NumPy arrays: the compiled kernels where they are live, else references.

Lives here: ``nm_product``, ``nmg_product``, and how places among m are packed. Does not live here: how a dense matrix
becomes one (``ellzero.layouts``), the loops (``csrc/nm_product.hpp``). Dense operands are feature-major.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels._dispatch import CHOICE
from ellzero.kernels.sparse import batch_tile, operand, row_or_none, threads_asked

__all__ = ["nm_product", "nmg_product", "pack_places", "place_bits", "unpack_places"]


def nm_product(
    place: np.ndarray, value: np.ndarray, x: np.ndarray, *, n: int, m: int, bias: np.ndarray | None = None,
    n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """``W x + bias`` for an N:M matrix: each row stores n of every m neighbouring columns.

    Parameters
    ----------
    place : uint8 ``[rows, bytes]``: for each value its place within the m, packed in 2, 4 or 8 bits, lowest first.
    value : ``[rows, columns / m * n]`` float32 or float64.
    x : ``[columns, batch]``, of the dtype of ``value``.

    Raises
    ------
    InputError : an x of another shape or dtype.
    """
    kind = np.dtype(np.float64 if value.dtype == np.float64 else np.float32)
    columns = value.shape[1] // n * m
    x = operand("x", x, columns, kind)
    threads = threads_asked(n_threads)
    if CHOICE.module is None:
        index = unpack_places(place, value.shape[1], m) + np.repeat(np.arange(0, columns, m), n)
        out = np.einsum("ij,ijb->ib", value, x[index]) if value.size else np.zeros((len(value), x.shape[1]), kind)
        return out if bias is None else out + bias[:, None]
    out = np.empty((len(value), x.shape[1]), kind)
    tile = batch_tile(columns, x.shape[1], kind.itemsize)
    CHOICE.module.nm_product(place, value, x, out, row_or_none(bias), n, m, place_bits(m), tile, threads)
    return out


def nmg_product(
    row: np.ndarray, place: np.ndarray, value: np.ndarray, x: np.ndarray, *, m: int, bias: np.ndarray | None = None,
    seat: np.ndarray | None = None, turned: bool = False, n_threads: int | None = None,
) -> np.ndarray:  # fmt: skip
    """``W x + bias`` for an n:m:g matrix, or ``W' x``: the columns of every seat of a chunk are known beforehand.

    Parameters
    ----------
    row : uint16 ``[chunks, blocks, seats]``: which row of the chunk (of as many rows as seats) has each seat.
    place : uint8 ``[seats, n]``: the columns of each seat among m; the same for every chunk.
    value : ``[chunks, blocks, seats, n]`` float32 or float64.
    seat : the inverse of ``row`` along its last axis, uint16; made where it is not given.
    x : ``[blocks * m, batch]``, or ``[chunks * seats, batch]`` where ``turned``; of the dtype of ``value``.

    Raises
    ------
    InputError : an x of another shape or dtype.
    """
    chunks, blocks, seats, n = value.shape
    rows, columns = chunks * seats, blocks * m
    kind = np.dtype(np.float64 if value.dtype == np.float64 else np.float32)
    x = operand("x", x, rows if turned else columns, kind)
    threads = threads_asked(n_threads)
    if CHOICE.module is None:
        return _nmg_reference(row, np.arange(blocks)[:, None, None] * m + place, value, x, bias, columns, turned)
    seat = np.argsort(row, axis=-1).astype(np.uint16) if seat is None else seat
    out = np.empty((columns if turned else rows, x.shape[1]), kind)
    CHOICE.module.nmg_product(
        row.reshape(-1, seats), seat.reshape(-1, seats), place, value.reshape(-1, n), x, out, row_or_none(bias), m,
        seats, turned, threads,
    )  # fmt: skip
    return out


def _nmg_reference(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, x: np.ndarray, bias: Any, columns: int, turned: bool
) -> np.ndarray:  # fmt: skip
    """Over stored entries; ``column`` ``[blocks, seats, n]``."""
    chunks, _, seats, _ = value.shape
    row = row.astype(np.int64)
    if turned:
        seated = np.take_along_axis(x.reshape(chunks, 1, seats, x.shape[1]), row[..., None], axis=2)
        out = np.zeros((columns, x.shape[1]), x.dtype)
        np.add.at(out, column, np.einsum("cjsn,cjsb->jsnb", value, seated))
        return out
    sums = np.einsum("cjsn,jsnb->cjsb", value, x[column])
    out = (
        np.take_along_axis(sums, np.argsort(row, axis=-1)[..., None], axis=2)
        .sum(axis=1)
        .reshape(chunks * seats, x.shape[1])
    )
    return out if bias is None else out + bias[:, None]


def place_bits(m: int) -> int:
    """Bits that a place among m takes when packed."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def pack_places(place: np.ndarray, m: int) -> np.ndarray:
    """``[rows, k]`` places among m as ``[rows, bytes]`` uint8."""
    bits = place_bits(m)
    each = 8 // bits
    padded = np.zeros((len(place), -(-place.shape[1] // each) * each), np.uint8)
    padded[:, : place.shape[1]] = place
    shifted = padded.reshape(len(place), padded.shape[1] // each, each) << (np.arange(each, dtype=np.uint8) * bits)
    return np.bitwise_or.reduce(shifted, axis=-1).astype(np.uint8)


def unpack_places(packed: np.ndarray, k: int, m: int) -> np.ndarray:
    """The inverse of ``pack_places``, int64 ``[rows, k]``."""
    bits = place_bits(m)
    each = 8 // bits
    spread = (packed[:, :, None] >> (np.arange(each, dtype=np.uint8) * bits)) & ((1 << bits) - 1)
    return np.minimum(spread.reshape(len(packed), packed.shape[1] * each)[:, :k].astype(np.int64), m - 1)

"""Inverted lists of 8-bit impacts: documents by terms, stored by term, for exact top-k of sparse products.

Lives here: ``InvertedLists`` from a CSR matrix of impacts, its postings and its search on document numbers, and the
merging of several into one without holding them in memory. Does not live here: the format and the loops
(``kernels.impact``), quantisation, document ids and files (the retrieval wing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_integer
from ellzero.kernels import impact

__all__ = ["InvertedLists", "ListWriter", "merged"]

_BATCH = 1 << 22
"""Postings that are decoded at a time when lists are merged."""


class InvertedLists:
    """A matrix ``[documents, terms]`` of impacts from 1 to 255, stored by term.

    Parameters
    ----------
    arrays : as ``kernels.impact`` describes them; memory maps stay maps.

    Raises
    ------
    InputError : arrays that do not fit together.
    """

    def __init__(self, arrays: impact.Lists):
        self.arrays = arrays
        try:
            self.handle = impact.prepare(arrays)
        except (ValueError, TypeError) as error:
            raise InputError(f"lists: do not fit together ({error})") from error

    @classmethod
    def from_csr(cls, impacts: Any, *, rank: np.ndarray | None = None, block_size: int = 64) -> InvertedLists:
        """The lists of a CSR matrix of uint8 ``[documents, terms]`` without stored zeros or duplicates.

        Parameters
        ----------
        rank : which of two documents with equal scores comes first; default their order.
        block_size : documents that share a bound, a power of two up to 1024.
        """
        documents = impacts.shape[0]
        shift = checked_shift(block_size)
        by_term = sparse.csc_array(impacts)
        by_term.sort_indices()
        ptr, docs = by_term.indptr.astype(np.int64), by_term.indices.astype(np.uint32)
        encoded = impact.encode(ptr, docs, by_term.data.astype(np.uint8, copy=False), documents, shift)
        writer = ListWriter()
        parts = [writer.add(encoded)]
        return cls(writer.lists(padded(parts), documents, shift, rank))

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.arrays.documents

    @property
    def terms(self) -> int:
        """Number of terms."""
        return len(self.arrays.form)

    @property
    def block_size(self) -> int:
        """Documents that share a bound."""
        return 1 << self.arrays.shift

    @property
    def nnz(self) -> int:
        """Number of postings."""
        return int(np.sum(self.arrays.frequency, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays if isinstance(array, np.ndarray))

    def postings(self, term: int) -> tuple[np.ndarray, np.ndarray]:
        """``(documents, impacts)`` of one term."""
        _, docs, impacts = impact.decode(self.handle, term, term + 1)
        return docs, impacts

    def to_csr(self) -> Any:
        """The matrix again, uint8."""
        ptr, docs, impacts = impact.decode(self.handle, 0, self.terms)
        return sparse.csr_array(sparse.csc_array((impacts, docs, ptr), shape=(self.documents, self.terms)))

    def search(self, ptr: np.ndarray, terms: np.ndarray, weights: np.ndarray, k: int, **options: Any) -> impact.Found:
        """The k best documents of each query; see ``kernels.impact.search``."""
        return impact.search(self.handle, ptr, terms, weights, k, **options)


def checked_shift(block_size: int) -> int:
    """log2 of the block size."""
    block_size = check_integer("block_size", block_size, at_least=1, at_most=1024)
    if block_size & (block_size - 1):
        raise InputError(f"block_size: got {block_size}, want a power of two up to 1024")
    return int(math.log2(block_size))


def padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The bytes of all parts, with the padding that the loops need behind them."""
    return np.concatenate([*parts, np.zeros(impact.PADDING, np.uint8)])


class ListWriter:
    """Puts lists together that were encoded some terms at a time; where their bytes go is the caller's."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._bytes = 0

    def add(self, encoded: dict[str, np.ndarray]) -> np.ndarray:
        """Note the next terms; returns their bytes, which must follow those before."""
        starts = encoded["starts"][1:] + np.uint64(self._bytes)
        self._bytes += len(encoded["data"])
        for name in ("form", "frequency", "kth"):
            self._parts.setdefault(name, []).append(encoded[name])
        self._parts.setdefault("starts", [np.zeros(1, np.uint64)]).append(starts)
        return encoded["data"]

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays but the bytes, after the last ``add``."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def lists(self, data: np.ndarray, documents: int, shift: int, rank: np.ndarray | None) -> impact.Lists:
        """The arrays of the whole."""
        rank = np.arange(documents, dtype=np.uint32) if rank is None else rank.astype(np.uint32)
        return impact.Lists(documents=documents, shift=shift, data=data, rank=rank, **self.arrays())


def merged(
    parts: Sequence[tuple[InvertedLists, np.ndarray]], documents: int, shift: int, put: Callable[[np.ndarray], Any]
) -> ListWriter:
    """Several collections over the same terms as one; memory holds some terms at a time.

    Parameters
    ----------
    parts : each with int64 ``[its documents]``: the new number of a document, or -1 if it is left out. Numbers rise
        within a part and from part to part.
    put : takes the bytes of the lists, piece by piece.
    """
    writer = ListWriter()
    for first, stop in _batches(parts):
        terms, docs, impacts = [], [], []
        for lists, number in parts:
            ptr, old, gains = impact.decode(lists.handle, first, stop)
            new = number[old]
            kept = new >= 0
            terms.append(np.repeat(np.arange(stop - first), np.diff(ptr))[kept])
            docs.append(new[kept].astype(np.uint32))
            impacts.append(gains[kept])
        term = np.concatenate(terms)
        order = np.argsort(term, kind="stable")
        ptr = np.searchsorted(term[order], np.arange(stop - first + 1)).astype(np.int64)
        encoded = impact.encode(ptr, np.concatenate(docs)[order], np.concatenate(impacts)[order], documents, shift)
        put(writer.add(encoded))
    return writer


def _batches(parts: Sequence[tuple[InvertedLists, np.ndarray]]) -> Iterator[tuple[int, int]]:
    total = np.cumsum(sum(lists.arrays.frequency.astype(np.int64) for lists, _ in parts))
    first, terms = 0, len(total)
    while first < terms:
        before = total[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(total, before + _BATCH, side="right")))
        yield first, min(stop, terms)
        first = stop
    if not terms:
        yield 0, 0

"""Inverted lists of 8-bit impacts and their exact top-k: the compiled kernels where they are live, else the reference.

Lives here: the format of the lists, their encoding, decoding and search on raw arrays, and the plain references. Does
not live here: quantisation, document ids, files (``layouts.inverted``, the retrieval wing), the loops
(``csrc/impact_lists.hpp``).

The format. Documents 0, 1, ... stand in blocks of ``2^shift``, and 64 blocks make a window. A term's list is *short*
(``form`` 0): uint32 documents, then uint8 impacts; or *dense*: the largest impact of each window, then the size of each
window's cut (of 1, 2 or 4 bytes, which is its ``form``), then the cuts one after another. A size is twice the stored
pairs, plus 1 where they hold places. A cut of 48 pairs or more begins with 32 bytes of bounds, four bits per block, in
steps of a fifteenth of the term's largest impact, rounded up. Its pairs stand 16 at a time, first what tells the
documents, then their impacts: gaps of one byte, where a gap of 255 with impact 0 is a step that scores nothing; or,
where that is shorter, places within the window, of 12 bits (16 bits if a window has more than 4096 documents). ``kth``
has the term's impacts of ranks 1, 10, 100 and 1000, which bound the k-th score of a query from below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import check, check_integer
from ellzero.kernels._dispatch import CHOICE

__all__ = ["PADDING", "Found", "Lists", "decode", "encode", "prepare", "search"]

PADDING = 64
"""Bytes that must follow the last list in ``data``."""

WINDOW_BLOCKS = 64
KTH = (1, 10, 100, 1000)
GROUP, LEAST_BOUNDED, BOUNDS = 16, 48, 32


class Lists(NamedTuple):
    """The arrays of the format: ``documents`` and ``shift`` are numbers, the others NumPy arrays.

    ``starts`` uint64 ``[terms + 1]`` bytes into data; ``form`` uint8 ``[terms]``; ``frequency`` int32 ``[terms]``;
    ``kth`` uint8 ``[terms, 4]``; ``data`` uint8; ``rank`` uint32 ``[documents]``, the place of each document's id in
    ascending order, by which ties are decided.
    """

    documents: int
    shift: int
    starts: np.ndarray
    form: np.ndarray
    frequency: np.ndarray
    kth: np.ndarray
    data: np.ndarray
    rank: np.ndarray

    @property
    def windows(self) -> int:
        """Windows of 64 blocks."""
        return -(-self.documents // (WINDOW_BLOCKS << self.shift))


class Found(NamedTuple):
    """Hits of a batch: int32 ``scores`` and int64 ``ranks`` ``[queries, k]``, of which the first ``found`` are valid.

    ``counts`` int64 ``[queries, 4]``: windows scored, left out by their bound, left out by their blocks' bounds, and
    postings read.
    """

    scores: np.ndarray
    ranks: np.ndarray
    found: np.ndarray
    counts: np.ndarray


def encode(ptr: np.ndarray, docs: np.ndarray, impacts: np.ndarray, documents: int, shift: int) -> dict[str, np.ndarray]:
    """The lists of some terms, without ``rank`` and without the padding of ``data``.

    Parameters
    ----------
    ptr : int64 ``[terms + 1]``, the postings of each term. docs : uint32, rising within a term. impacts : uint8, 1 to
        255.
    documents : how many there are. shift : log2 of the block, 0 to 10.
    """
    native = CHOICE.module
    make = _encode if native is None else native.impact_encode
    names = ("starts", "form", "frequency", "kth", "data")
    return dict(zip(names, make(ptr, docs, impacts, documents, shift)))


def prepare(lists: Lists) -> Any:
    """The handle that ``decode`` and ``search`` take: the arrays in place, checked once.

    Raises
    ------
    ValueError : arrays that do not fit together; every place they name is then known to lie within them.
    """
    native = CHOICE.module
    return lists if native is None else native.ImpactLists(**lists._asdict())


def decode(handle: Any, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(ptr, docs, impacts)`` of the terms from ``first`` up to ``stop``; the inverse of ``encode``."""
    native = CHOICE.module
    return (_decode if native is None else native.impact_decode)(handle, first, stop)


def search(
    handle: Any,
    ptr: np.ndarray,
    terms: np.ndarray,
    weights: np.ndarray,
    k: int,
    *,
    prune: bool = True,
    alpha: float = 1.0,
    allowed: np.ndarray | None = None,
    n_threads: int | None = None,
) -> Found:
    """The ``k`` documents with the largest ``sum_t weight_t * impact_t`` of each query; zeros are no hits.

    Hits are ordered by score descending, then by ``rank`` ascending; with ``alpha = 1`` they do not depend on
    ``prune``.

    Parameters
    ----------
    ptr : int64 ``[queries + 1]``, the entries of each query. terms : int32. weights : int32, 0 to 32767, with
        ``255 * sum(weights)`` of a query below 2^31.
    prune : leave out windows whose bounds cannot reach the k-th score found. alpha : leave out those whose bound
        times alpha cannot.
    allowed : uint8 ``[documents]``, nonzero where a document may be a hit. n_threads : over queries; default all.
    """
    k = check_integer("k", k, at_least=0)
    check("alpha", alpha, above=0, at_most=1)
    queries = len(ptr) - 1
    out = Found(
        np.zeros((queries, k), np.int32), np.full((queries, k), -1, np.int64), np.zeros(queries, np.int64),
        np.zeros((queries, 4), np.int64),
    )  # fmt: skip
    native = CHOICE.module
    if native is None:
        _search(handle, ptr, terms, weights, k, allowed, out)
    else:
        native.impact_search(handle, ptr, terms, weights, k, prune, float(alpha), allowed, out.scores, out.ranks,
                             out.found, out.counts, n_threads or 0)  # fmt: skip
    return out


# ---------------------------------------------------------------- plain references


def _encode(ptr, docs, impacts, documents, shift):
    window = WINDOW_BLOCKS << shift
    windows = -(-documents // window)
    data, starts, forms, kth = bytearray(), [0], [], []
    for t in range(len(ptr) - 1):
        d, v = docs[ptr[t] : ptr[t + 1]].astype(np.int64), impacts[ptr[t] : ptr[t + 1]]
        falling = np.sort(v)[::-1]
        kth.append([int(falling[rank - 1]) if len(v) >= rank else 0 for rank in KTH])
        form = 0
        if 3 * len(d) > 2 * windows:
            sizes, cuts = _cuts(d, v, window, windows, shift, kth[-1][0])
            form = 1 if max(sizes) < 1 << 8 else 2 if max(sizes) < 1 << 16 else 4
            form = form if len(cuts) + windows * (1 + form) < min(5 * len(d), 1 << 32) else 0
        forms.append(form)
        if form:
            largest = np.zeros(windows, np.uint8)
            np.maximum.at(largest, d // window, v)
            data += largest.tobytes() + np.array(sizes).astype(f"<u{form}").tobytes() + cuts
        else:
            data += d.astype("<u4").tobytes() + v.tobytes()
        starts.append(len(data))
    return (
        np.array(starts, np.uint64), np.array(forms, np.uint8), np.diff(ptr).astype(np.int32),
        np.array(kth, np.uint8).reshape(-1, len(KTH)), np.frombuffer(bytes(data), np.uint8),
    )  # fmt: skip


def _cuts(docs, impacts, window, windows, shift, top):
    sizes, cuts = [], bytearray()
    edges = np.searchsorted(docs, np.arange(windows + 1) * window)
    for w in range(windows):
        places, gains = docs[edges[w] : edges[w + 1]] - w * window, impacts[edges[w] : edges[w + 1]]
        gaps = np.diff(places, prepend=0)
        steps = np.maximum(gaps - 1, 0) // 255
        ends = np.cumsum(steps + 1) - 1
        spread, scores = np.repeat(255, len(gaps) + steps.sum()), np.zeros(len(gaps) + steps.sum(), np.uint8)
        spread[ends], scores[ends] = gaps - 255 * steps, gains
        size, wide = 2 * len(spread), 2 * len(places) + 1
        size = wide if _cut_bytes(wide, shift) < _cut_bytes(size, shift) else size
        sizes.append(size)
        if size >> 1 >= LEAST_BOUNDED:
            best = np.zeros(WINDOW_BLOCKS, np.int64)
            np.maximum.at(best, places >> shift, gains)
            levels = (15 * best + top - 1) // top
            cuts += (levels[:32] | levels[32:] << 4).astype(np.uint8).tobytes()
        told, gains = (places, gains) if size & 1 else (spread, scores)
        for i in range(0, size >> 1, GROUP):
            part = told[i : i + GROUP]
            cuts += _packed(part, shift) if size & 1 else part.astype(np.uint8).tobytes()
            cuts += gains[i : i + GROUP].tobytes()
    return sizes, bytes(cuts)


def _cut_bytes(size, shift):
    pairs = size >> 1
    places = pairs if not size & 1 else (3 * pairs + 1) // 2 if shift <= 6 else 2 * pairs
    return (BOUNDS if pairs >= LEAST_BOUNDED else 0) + pairs + places


def _packed(places, shift):
    if shift > 6:
        return places.astype("<u2").tobytes()
    bits = (places[:, None] >> np.arange(12) & 1).astype(np.uint8)
    return np.packbits(bits, bitorder="little").tobytes()


def _unpacked(raw, count, shift):
    if shift > 6:
        return raw.view("<u2").astype(np.int64)
    bits = np.unpackbits(raw, bitorder="little")[: 12 * count].reshape(count, 12)
    return bits.astype(np.int64) @ (1 << np.arange(12))


def _decode(lists, first, stop):
    ptr, docs, impacts = [0], [np.empty(0, np.uint32)], [np.empty(0, np.uint8)]
    for t in range(first, stop):
        d, v = _list(lists, t)
        docs.append(d.astype(np.uint32))
        impacts.append(v)
        ptr.append(ptr[-1] + len(d))
    return np.array(ptr, np.int64), np.concatenate(docs), np.concatenate(impacts)


def _list(lists: Lists, term: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.asarray(lists.data[int(lists.starts[term]) : int(lists.starts[term + 1])])
    count, form, windows = int(lists.frequency[term]), int(lists.form[term]), lists.windows
    if not form:
        return raw[: 4 * count].view("<u4").astype(np.int64), raw[4 * count : 5 * count]
    docs, impacts, at = [], [], windows * (1 + form)
    for w, size in enumerate(raw[windows:at].view(f"<u{form}").tolist()):
        end = at + _cut_bytes(size, lists.shift)
        places, gains = _cut(raw[at:end], size, lists.shift)
        docs.append(places[gains > 0] + w * (WINDOW_BLOCKS << lists.shift))
        impacts.append(gains[gains > 0])
        at = end
    return np.concatenate(docs), np.concatenate(impacts)


def _cut(raw, size, shift):
    places, gains, pairs = [np.empty(0, np.int64)], [np.empty(0, np.uint8)], size >> 1
    at = BOUNDS if pairs >= LEAST_BOUNDED else 0
    for i in range(0, pairs, GROUP):
        count = min(GROUP, pairs - i)
        middle = at + count if not size & 1 else at + ((3 * count + 1) // 2 if shift <= 6 else 2 * count)
        places.append(_unpacked(raw[at:middle], count, shift) if size & 1 else raw[at:middle].astype(np.int64))
        gains.append(raw[middle : middle + count])
        at = middle + count
    told = np.concatenate(places)
    return told if size & 1 else np.cumsum(told), np.concatenate(gains)


def _search(lists, ptr, terms, weights, k, allowed, out):
    for q in range(len(ptr) - 1):
        scores = np.zeros(lists.documents, np.int64)
        for term, weight in zip(terms[ptr[q] : ptr[q + 1]], weights[ptr[q] : ptr[q + 1]]):
            docs, gains = _list(lists, int(term))
            scores[docs] += int(weight) * gains.astype(np.int64)
            out.counts[q, 3] += len(docs)
        if allowed is not None:
            scores[allowed == 0] = 0
        hits = np.flatnonzero(scores)
        hits = hits[np.lexsort((lists.rank[hits], -scores[hits]))][:k]
        out.found[q], out.counts[q, 0] = len(hits), lists.windows
        out.scores[q, : len(hits)], out.ranks[q, : len(hits)] = scores[hits], lists.rank[hits]

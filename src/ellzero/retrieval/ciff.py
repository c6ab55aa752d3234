"""The Common Index File Format, read and written: inverted lists that many engines exchange.

Lives here: ``read_ciff`` and ``write_ciff``. Does not live here: JSON vectors (``vectors``), our own files
(``segments``).

A file is a sequence of length-prefixed protocol buffers: a header (1 version, 2 lists, 3 documents, 4 and 5 those of
the whole collection, 6 its terms, 7 mean length as double, 8 description); per term a list (1 term, 2 documents, 3 sum
of counts, 4 postings of 1 gap and 2 count); per document a record (1 number, 2 id, 3 length). Zeros are left out.
Lin et al. (2020), arXiv:2003.08276.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from scipy import sparse

from ellzero.errors import InputError
from ellzero.io import container
from ellzero.io.atomic import writing

__all__ = ["Ciff", "read_ciff", "whole_by_term", "write_ciff"]


class Ciff(NamedTuple):
    """What a file holds: counts or impacts ``[documents, terms]``, ids, terms, lengths and the description."""

    X: sparse.csr_array
    ids: list[str]
    vocabulary: list[str]
    lengths: np.ndarray
    description: str


def read_ciff(path: str | os.PathLike) -> Ciff:
    """The lists of a CIFF file as one matrix.

    Raises
    ------
    InputError : a file that is cut short or is none.
    """
    path = container.regular_file(path)
    try:
        with open(path, "rb") as file:
            return _read(file)
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, struct.error) as error:
        raise InputError(f"{path}: is not a CIFF file, or is cut short ({error})") from error


def _read(file: BinaryIO) -> Ciff:
    header = dict(_fields(_message(file)))
    lists, documents = header.get(2, 0), header.get(3, 0)
    ptr, docs, counts, vocabulary = [0], [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
    for _ in range(lists):
        term, places, gains = _list(_message(file))
        vocabulary.append(term)
        docs.append(places)
        counts.append(gains)
        ptr.append(ptr[-1] + len(places))
    ids, lengths = [""] * documents, np.zeros(documents, np.int64)
    for _ in range(documents):
        record = dict(_fields(_message(file)))
        ids[record.get(1, 0)] = bytes(record.get(2, b"")).decode()
        lengths[record.get(1, 0)] = record.get(3, 0)
    if file.read(1):
        raise ValueError("more bytes than the header counts")
    by_term = sparse.csc_array((np.concatenate(counts), np.concatenate(docs), ptr), shape=(documents, lists))
    by_term.check_format(full_check=True)
    return Ciff(sparse.csr_array(by_term), ids, vocabulary, lengths, bytes(header.get(8, b"")).decode())


def _message(file: BinaryIO) -> memoryview:
    size = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise EOFError("ends where a message should begin")
        size |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    content = file.read(size)
    if len(content) != size:
        raise EOFError("ends within a message")
    return memoryview(content)


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        if tag & 7 == 0:
            value, at = _varint(content, at)
        elif tag & 7 == 1:
            value, at = struct.unpack_from("<d", content, at)[0], at + 8
        elif tag & 7 == 2:
            size, at = _varint(content, at)
            value, at = content[at : at + size], at + size
            if at > len(content):
                raise EOFError("ends within a field")
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        yield tag >> 3, value


def _list(content: memoryview) -> tuple[str, np.ndarray, np.ndarray]:
    """A list's term, documents and counts; its postings are read at once where they have the usual shape."""
    term, at, documents = "", 0, 0
    while at < len(content) and content[at] != 0x22:
        tag, at = _varint(content, at)
        if tag == 0x0A:
            size, at = _varint(content, at)
            term, at = bytes(content[at : at + size]).decode(), at + size
        else:
            value, at = _varint(content, at)
            documents = value if tag == 0x10 else documents
    gaps, counts = _postings(content[at:])
    if len(gaps) != documents:
        raise ValueError(f"the list of {term!r} has {len(gaps)} postings and counts {documents}")
    return term, np.cumsum(gaps), counts


def _postings(content: memoryview) -> tuple[np.ndarray, np.ndarray]:
    """All postings ``22 size 08 gap 10 count`` of a list: each number is a varint, so all are decoded together."""
    first: list[tuple[int, int]] = []
    if len(content) > 2 and content[2] == 0x10:  # document 0 has no gap written
        size = content[1]
        fields = dict(_fields(content[2 : 2 + size]))
        first, content = [(0, fields[2])], content[2 + size :]
    raw = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(raw < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else ends
    values = np.zeros(len(ends), np.int64)
    for shift in range(int((ends - starts).max(initial=-1)) + 1):
        inside = starts + shift <= ends
        values[inside] |= (raw[(starts + shift)[inside]] & 127).astype(np.int64) << (7 * shift)
    usual = len(values) % 6 == 0 and (len(ends) == 0 or ends[-1] == len(raw) - 1)
    table = values.reshape(-1, 6) if usual else None
    if table is None or not ((table[:, 0] == 0x22) & (table[:, 2] == 0x08) & (table[:, 4] == 0x10)).all():
        postings = [dict(_fields(value)) for field, value in _fields(content) if field == 4]
        gaps, counts = [p.get(1, 0) for p in postings], [p.get(2, 0) for p in postings]
    else:
        gaps, counts = table[:, 3].tolist(), table[:, 5].tolist()
    both = first + list(zip(gaps, counts))
    return np.array([gap for gap, _ in both], np.int64), np.array([count for _, count in both], np.int64)


def write_ciff(
    path: str | os.PathLike, X: Any, ids: Sequence[Any], vocabulary: Sequence[str], description: str = "ellzero"
) -> None:
    """Write whole numbers ``[documents, terms]``, whole or not at all; terms in byte order, as readers expect.

    Raises
    ------
    InputError : numbers that are not whole or not above zero, or ids and terms that do not match the shape.
    """
    X, order = whole_by_term(X, ids, vocabulary, below=2**31)
    lengths = np.bincount(X.indices, weights=X.data, minlength=X.shape[0]).astype(np.int64)
    with writing(path) as file:
        mean = struct.pack("<d", float(lengths.mean()) if len(lengths) else 0.0)
        _put(file, _number(1, 1) + _number(2, len(order)) + _number(3, len(ids)) + _number(4, len(order))
             + _number(5, len(ids)) + _number(6, int(lengths.sum())) + b"\x39" + mean
             + _bytes(8, description.encode()))  # fmt: skip
        for column in order:
            part = slice(X.indptr[column], X.indptr[column + 1])
            docs, counts = X.indices[part].astype(np.int64), X.data[part].astype(np.int64)
            head = _bytes(1, vocabulary[column].encode()) + _number(2, len(docs)) + _number(3, int(counts.sum()))
            gaps = np.diff(docs, prepend=0).tolist()
            _put(file, head + b"".join(_bytes(4, _number(1, g) + _number(2, c)) for g, c in zip(gaps, counts.tolist())))
        for number, (name, length) in enumerate(zip(ids, lengths.tolist())):
            _put(file, _number(1, number) + _bytes(2, str(name).encode()) + _number(3, length))


def whole_by_term(
    X: Any, ids: Sequence[Any], vocabulary: Sequence[str], below: int
) -> tuple[sparse.csc_array, list[int]]:
    """Checked whole numbers by term, and the columns that have any, in the order of their terms' bytes."""
    X = sparse.csc_array(X)
    X.sum_duplicates()
    X.eliminate_zeros()
    if len(ids) != X.shape[0] or len(vocabulary) != X.shape[1]:
        raise InputError(f"ids: got {len(ids)} ids and {len(vocabulary)} terms for a matrix of shape {X.shape}")
    if len(X.data) and (X.data.min() <= 0 or np.any(X.data != np.rint(X.data)) or X.data.max() >= below):
        raise InputError(f"X: want whole numbers above zero, below 2^{below.bit_length() - 1}")
    used = np.flatnonzero(np.diff(X.indptr)).tolist()
    return X, sorted(used, key=lambda column: vocabulary[column].encode())


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint_bytes(value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint_bytes(len(value)) + value


def _put(file: BinaryIO, message: bytes) -> None:
    file.write(_varint_bytes(len(message)) + message)

"""PISA's canonical files, read and written: sequences of 32-bit numbers, each after its length.

Lives here: ``read_pisa`` and ``write_pisa``. Does not live here: CIFF (``ciff``), PISA's own compressed indexes.

``PREFIX.docs`` holds a sequence with the number of documents alone, then the ascending documents of each term;
``PREFIX.freqs`` their counts, term by term; ``PREFIX.sizes`` one sequence, the documents' lengths. All numbers are
little-endian. ``PREFIX.terms`` and ``PREFIX.documents`` name the terms and documents, one a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError
from ellzero.io import container
from ellzero.io.atomic import write_bytes, writing
from ellzero.retrieval.ciff import Ciff, whole_by_term

__all__ = ["read_pisa", "write_pisa"]

_NUMBER = np.dtype("<u4")


def write_pisa(prefix: str | os.PathLike, X: Any, ids: Sequence[Any], vocabulary: Sequence[str]) -> None:
    """Write whole numbers ``[documents, terms]`` as five files that begin with ``prefix``; ``.docs`` comes last.

    Terms stand in the order of their bytes, as PISA looks them up, and those without documents are left out.

    Raises
    ------
    InputError : numbers that are not whole or not above zero, names with line breaks, ids or terms that do not match.
    """
    X, order = whole_by_term(X, ids, vocabulary, below=2**32)
    names = {".terms": [vocabulary[column] for column in order], ".documents": [str(name) for name in ids]}
    for suffix, lines in names.items():
        bad = next((line for line in lines if line != line.strip() or len(line.splitlines()) != 1), None)
        if bad is not None:
            raise InputError(f"{suffix[1:]}: got the name {bad!r}, want text without line breaks or outer blanks")
        write_bytes(f"{prefix}{suffix}", "".join(f"{line}\n" for line in lines).encode())
    lengths = np.bincount(X.indices, weights=X.data, minlength=X.shape[0])
    if len(lengths) and lengths.max() >= 2**32:
        raise InputError(f"X: a document's numbers sum to {lengths.max():.0f}, want less than 2^32")
    write_bytes(f"{prefix}.sizes", _sequence(lengths))
    parts = [slice(X.indptr[column], X.indptr[column + 1]) for column in order]
    for suffix, values, head in ((".freqs", X.data, b""), (".docs", X.indices, _sequence(np.array([len(ids)])))):
        with writing(f"{prefix}{suffix}") as file:
            file.write(head)
            for part in parts:
                file.write(_sequence(values[part]))


def _sequence(values: np.ndarray) -> bytes:
    return np.concatenate([[len(values)], values]).astype(_NUMBER).tobytes()


def read_pisa(prefix: str | os.PathLike) -> Ciff:
    """The counts as one matrix, with names where ``.documents`` and ``.terms`` are there, else numbers as text.

    Raises
    ------
    InputError : a file that is missing, cut short, or does not fit the others.
    """
    documents, *lists = [*_sequences(f"{prefix}.docs")] or [[]]
    if len(documents) != 1:
        raise InputError(f"{prefix}.docs: begins with {len(documents)} numbers, want the number of documents alone")
    counts, lengths = list(_sequences(f"{prefix}.freqs")), list(_sequences(f"{prefix}.sizes"))
    if [len(part) for part in counts] != [len(part) for part in lists]:
        raise InputError(f"{prefix}.freqs: has other lengths of lists than .docs, want one count for each document")
    if len(lengths) != 1 or len(lengths[0]) != documents[0]:
        raise InputError(f"{prefix}.sizes: want one sequence of {documents[0]} lengths")
    ptr = np.concatenate([[0], np.cumsum([len(part) for part in lists], dtype=np.int64)])
    flat = np.concatenate([np.empty(0, _NUMBER), *lists]).astype(np.int64)
    steps = np.diff(flat, prepend=-1)
    steps[ptr[:-1][ptr[:-1] < len(flat)]] = 1  # the first of a list follows another list
    if (steps <= 0).any() or (len(flat) and flat.max() >= documents[0]):
        raise InputError(f"{prefix}.docs: want ascending documents below {documents[0]} in every list")
    data = np.concatenate([np.empty(0, _NUMBER), *counts]).astype(np.int64)
    X = sparse.csr_array(sparse.csc_array((data, flat, ptr), shape=(int(documents[0]), len(lists))))
    ids, terms = _names(f"{prefix}.documents", X.shape[0]), _names(f"{prefix}.terms", X.shape[1])
    return Ciff(X, ids, terms, lengths[0].astype(np.int64), "PISA")


def _sequences(path: str) -> Iterator[np.ndarray]:
    raw = container.regular_file(path)
    size = os.path.getsize(raw)
    if size % 4:
        raise InputError(f"{path}: has {size} bytes, want sequences of numbers of 4 bytes")
    values = np.memmap(raw, _NUMBER, mode="r") if size else np.empty(0, _NUMBER)
    at = 0
    while at < len(values):
        end = at + 1 + int(values[at])
        if end > len(values):
            raise InputError(f"{path}: is cut short: a sequence of {values[at]} numbers begins at number {at}")
        yield values[at + 1 : end]
        at = end


def _names(path: str, count: int) -> list[str]:
    if not os.path.exists(path):
        return [str(number) for number in range(count)]
    lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1]
    if len(lines) != count:
        raise InputError(f"{path}: has {len(lines)} names, want {count}")
    return lines

"""Collections of JSON vectors: a line ``{"id": ..., "vector": {term: weight}}`` per document, as Anserini reads them.

Lives here: ``JsonVectors``, which goes over files larger than memory, and ``write_json_vectors``. Does not live here:
CIFF (``ciff``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_integer
from ellzero.io import container
from ellzero.io.atomic import writing

__all__ = ["JsonVectors", "json_lines", "write_json_vectors"]


class JsonVectors:
    """Pairs ``(X, ids)`` of some thousands of documents at a time, as ``ImpactIndex.build`` takes them.

    Parameters
    ----------
    paths : one file or several, in order.
    vocabulary : the terms by column; default all terms of the files, sorted, for which they are read once before.
    at_once : documents of one pair.

    Raises
    ------
    InputError : while reading: a line without id and vector, or a weight that is no number, by file and line.
    """

    def __init__(
        self,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        vocabulary: Sequence[str] | None = None,
        at_once: int = 10_000,
    ):
        several = paths if isinstance(paths, list | tuple) else [paths]
        self.paths = [container.regular_file(path) for path in several]
        self.at_once = check_integer("at_once", at_once, at_least=1)
        if vocabulary is None:
            terms: set[str] = set()
            for _, vector in self.records():
                terms.update(vector)
            vocabulary = sorted(terms)
        self.vocabulary = list(vocabulary)
        self._columns = {term: column for column, term in enumerate(self.vocabulary)}

    def records(self) -> Iterator[tuple[str | int, dict[str, float]]]:
        """``(id, vector)`` of every document."""
        for path in self.paths:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _record(path, number, line)

    def __iter__(self) -> Iterator[tuple[sparse.csr_array, list[Any]]]:
        ids, columns, weights, ptr = [], [], [], [0]
        for name, vector in self.records():
            ids.append(name)
            known = [(self._columns[term], weight) for term, weight in vector.items() if term in self._columns]
            columns += [column for column, _ in known]
            weights += [weight for _, weight in known]
            ptr.append(len(columns))
            if len(ids) == self.at_once:
                yield self._matrix(columns, weights, ptr), ids
                ids, columns, weights, ptr = [], [], [], [0]
        if ids:
            yield self._matrix(columns, weights, ptr), ids

    def _matrix(self, columns: list[int], weights: list[float], ptr: list[int]) -> sparse.csr_array:
        data = np.array(weights, np.float64)
        return sparse.csr_array((data, np.array(columns, np.int64), ptr), shape=(len(ptr) - 1, len(self.vocabulary)))


def _record(path: Any, number: int, line: str) -> tuple[str | int, dict[str, float]]:
    try:
        record = json.loads(line)
        name, vector = record["id"], record["vector"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: line {number} is no {{"id": ..., "vector": {{...}}}} ({error})') from error
    if not isinstance(name, str | int) or isinstance(name, bool) or not isinstance(vector, dict):
        raise InputError(f"{path}: line {number} has no id and vector, want text or a number, and weights by term")
    for term, weight in vector.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputError(f"{path}: line {number} gives the term {term!r} {weight!r}, want a number")
    return name, vector


def write_json_vectors(path: str | os.PathLike, X: Any, ids: Iterable[Any], vocabulary: Sequence[str]) -> None:
    """Write rows of weights, whole or not at all; whole numbers stay whole."""
    with writing(path) as file:
        file.writelines(json_lines(X, ids, vocabulary))


def json_lines(X: Any, ids: Iterable[Any], vocabulary: Sequence[str]) -> Iterator[bytes]:
    """The line of each row."""
    X = sparse.csr_array(X)
    ids = list(ids)
    if len(ids) != X.shape[0] or len(vocabulary) != X.shape[1]:
        raise InputError(f"ids: got {len(ids)} ids and {len(vocabulary)} terms for a matrix of shape {X.shape}")
    for row, name in enumerate(ids):
        part = slice(X.indptr[row], X.indptr[row + 1])
        weights = X.data[part].tolist()
        whole = [int(weight) if float(weight).is_integer() else weight for weight in weights]
        vector = {vocabulary[column]: weight for column, weight in zip(X.indices[part], whole)}
        name = name.item() if isinstance(name, np.generic) else name
        yield json.dumps({"id": name, "vector": vector}, ensure_ascii=False).encode() + b"\n"

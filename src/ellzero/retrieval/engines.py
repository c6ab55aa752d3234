"""Documents as other engines load them: OpenSearch's bulk lines and Qdrant's bodies of points.

Lives here: ``write_opensearch``, ``write_qdrant`` and their readers. Does not live here: talking to an engine (any
HTTP client sends the files), Anserini's JSON vectors (``vectors``).

Both are folders: a file that makes the collection, and numbered files of documents, each small enough for one request.
Weights are written as 32-bit numbers with as few digits as say which.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_integer
from ellzero.io.atomic import writing_folder
from ellzero.retrieval.vectors import JsonVectors

__all__ = ["read_opensearch", "read_qdrant", "write_opensearch", "write_qdrant"]

MAPPING, COLLECTION, TERMS = "index.json", "collection.json", "vocabulary.txt"
_NAMES = uuid.UUID("6b3c5b0e-6d0b-5c52-9f39-3f2f0f6d1a57")
REQUEST_BYTES = 20_000_000
"""Bytes of one request's body; OpenSearch takes 100 MB and Qdrant 32 MB unless told otherwise."""

Parts = Iterable[tuple[Any, Sequence[Any]]]


def write_opensearch(
    path: str | os.PathLike, parts: Parts, vocabulary: Sequence[str], *, name: str = "ellzero", field: str = "terms",
    most_bytes: int = REQUEST_BYTES,
) -> list[Path]:  # fmt: skip
    """A folder for OpenSearch: ``index.json`` (for ``PUT /NAME``) and ``bulk-N.ndjson`` (for ``POST /_bulk``).

    Each document is an action line with its id and a line ``{FIELD: {term: weight}}``; the field is of the type
    ``rank_features``, which keeps 9 significant bits of a weight. Elasticsearch reads the same, without dots in terms.

    Parameters
    ----------
    parts : pairs ``(X, ids)``, as ``rows`` gives them. vocabulary : a term per column.
    name, field : of the engine's index, and of the field that holds the terms.
    most_bytes : of one file.

    Returns
    -------
    The files of documents.

    Raises
    ------
    InputError : weights that are not above zero, a document beyond ``most_bytes``, a folder that is not empty.
    """
    mapping = {"mappings": {"properties": {field: {"type": "rank_features"}}}}

    def record(doc: Any, columns: list[int], weights: list[float]) -> bytes:
        action = {"index": {"_index": name, "_id": str(doc)}}
        source = {field: {vocabulary[column]: weight for column, weight in zip(columns, weights)}}
        return _line(action) + b"\n" + _line(source) + b"\n"

    with writing_folder("path", path) as folder:
        (folder / MAPPING).write_bytes(_line(mapping) + b"\n")
        return _write(folder, Path(path), "bulk-{:05d}.ndjson", parts, vocabulary, record, (b"", b"", b""), most_bytes)


def write_qdrant(
    path: str | os.PathLike, parts: Parts, vocabulary: Sequence[str], *, field: str = "terms",
    most_bytes: int = REQUEST_BYTES,
) -> list[Path]:  # fmt: skip
    """A folder for Qdrant: ``collection.json`` (for ``PUT /collections/NAME``) and ``points-N.json`` (its ``/points``).

    Each document is a point with a sparse vector of indices (columns; ``vocabulary.txt`` names them, one a line) and
    values. A whole number of zero or more is the point's id; any other id becomes a UUID of version 5 made from its
    text. The payload holds the id as it was. Parameters, results and errors as ``write_opensearch``.
    """
    collection = {"sparse_vectors": {field: {}}}

    def record(doc: Any, columns: list[int], weights: list[float]) -> bytes:
        number = isinstance(doc, int) and doc >= 0
        vector = {field: {"indices": columns, "values": weights}}
        point = {"id": doc if number else str(uuid.uuid5(_NAMES, str(doc))), "vector": vector, "payload": {"id": doc}}
        return _line(point)

    with writing_folder("path", path) as folder:
        (folder / COLLECTION).write_bytes(_line(collection) + b"\n")
        (folder / TERMS).write_bytes("".join(f"{term}\n" for term in vocabulary).encode())
        frame = (b'{"points":[\n', b",\n", b"\n]}\n")
        return _write(folder, Path(path), "points-{:05d}.json", parts, vocabulary, record, frame, most_bytes)


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _write(
    folder: Path, target: Path, pattern: str, parts: Parts, vocabulary: Sequence[str], record: Any,
    frame: tuple[bytes, bytes, bytes],
    most_bytes: int,
) -> list[Path]:  # fmt: skip
    """Files of a head, records with marks between and an end; a file is closed before it grows too large."""
    check_integer("most_bytes", most_bytes, at_least=1)
    head, mark, end = frame
    held, size, files = [], len(head) + len(end), []

    def close() -> None:
        files.append(target / pattern.format(len(files)))
        (folder / files[-1].name).write_bytes(head + mark.join(held) + end)

    for doc, columns, weights in _documents(parts, len(vocabulary)):
        made = record(doc, columns, weights)
        if len(head) + len(made) + len(end) > most_bytes:
            raise InputError(f"most_bytes: got {most_bytes}, and the document {doc!r} alone takes {len(made)}")
        if held and size + len(mark) + len(made) > most_bytes:
            close()
            held, size = [], len(head) + len(end)
        held.append(made)
        size += len(made) + len(mark)
    if held:
        close()
    return files


def _documents(parts: Parts, terms: int) -> Iterator[tuple[Any, list[int], list[float]]]:
    """Id, columns and weights of every document; whole weights as whole numbers, others by their shortest digits."""
    for X, ids in parts:
        X = sparse.csr_array(X)
        if X.shape != (len(ids), terms):
            raise InputError(f"parts: got a matrix of shape {X.shape} for {len(ids)} ids and {terms} terms")
        values, which = np.unique(X.data.astype(np.float32), return_inverse=True)
        if len(values) and not (values[0] >= np.finfo(np.float32).tiny and np.isfinite(values[-1])):
            raise InputError(f"parts: got a weight of {X.data.min()} or {X.data.max()}, want finite ones above zero")
        shown = np.array([int(v) if v.is_integer() else float(str(v)) for v in values], dtype=object)
        weights = shown[which.ravel()].tolist()
        for row, doc in enumerate(ids):
            part = slice(X.indptr[row], X.indptr[row + 1])
            doc = doc.item() if isinstance(doc, np.generic) else doc
            yield doc, X.indices[part].tolist(), weights[part]


class _Bulk(JsonVectors):
    """OpenSearch's lines, read as JSON vectors are."""

    def records(self) -> Iterator[tuple[str, dict[str, float]]]:
        for path in self.paths:
            with open(path, "rb") as file:
                for number, (action, source) in enumerate(zip(file, file)):
                    try:
                        doc, (vector,) = json.loads(action)["index"]["_id"], json.loads(source).values()
                    except (ValueError, KeyError, TypeError, AttributeError) as error:
                        raise InputError(f"{path}: lines {2 * number + 1} and {2 * number + 2} are no action with an "
                                         f"id and a document with one field ({error})") from error  # fmt: skip
                    yield doc, vector


def read_opensearch(path: str | os.PathLike, vocabulary: Sequence[str] | None = None) -> JsonVectors:
    """Pairs ``(X, ids)`` of a folder that ``write_opensearch`` made, as ``ImpactIndex.build`` takes them."""
    files = sorted(Path(path).glob("bulk-*.ndjson"))
    if not files and not (Path(path) / MAPPING).is_file():
        raise InputError(f"path: {path} has no {MAPPING}, want a folder of bulk files for OpenSearch")
    return _Bulk(files, vocabulary)


def read_qdrant(path: str | os.PathLike) -> Iterator[tuple[sparse.csr_array, list[Any]]]:
    """Pairs ``(X, ids)``, one per file of points, of a folder that ``write_qdrant`` made."""
    folder = Path(path)
    if not (folder / TERMS).is_file():
        raise InputError(f"path: {folder} has no {TERMS}, want a folder of points for Qdrant")
    terms = len((folder / TERMS).read_bytes().decode().split("\n")) - 1
    for file in sorted(folder.glob("points-*.json")):
        try:
            points = json.loads(file.read_bytes())["points"]
            vectors = [next(iter(point["vector"].values())) for point in points]
            ptr = np.cumsum([0, *(len(vector["indices"]) for vector in vectors)])
            columns, weights = (
                np.concatenate([np.empty(0), *(vector[key] for vector in vectors)]) for key in ("indices", "values")
            )
            X = sparse.csr_array((weights, columns.astype(np.int64), ptr), shape=(len(points), terms))
            X.check_format(full_check=True)
            yield X, [point["payload"]["id"] for point in points]
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
            raise InputError(f"{file}: holds no points with one sparse vector each ({error})") from error

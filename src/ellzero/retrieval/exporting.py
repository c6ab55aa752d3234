"""An index as files for other engines.

Lives here: ``rows``, the documents of an index, and ``export``, one of the forms by its name. Does not live here: the
forms themselves (``ciff``, ``pisa``, ``vectors``, ``engines``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.io.atomic import writing
from ellzero.retrieval import segments as disk
from ellzero.retrieval.engines import write_opensearch, write_qdrant
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.pisa import write_pisa
from ellzero.retrieval.vectors import json_lines

__all__ = ["FORMS", "export", "rows"]

FORMS = ("ciff", "vectors", "pisa", "opensearch", "qdrant")


def rows(index: ImpactIndex, at_once: int = 10_000) -> Iterator[tuple[sparse.csr_array, list[Any]]]:
    """Pairs ``(X, ids)`` of some thousands of documents: their weights, as the index holds them.

    Memory holds one segment at a time; deleted documents are left out. Whole weights come as whole numbers.
    """
    check_integer("at_once", at_once, at_least=1)
    for impacts, ids in _impacts(index):
        for start in range(0, len(ids), at_once):
            some = impacts[start : start + at_once]
            weights = some.astype(np.int64) if index.scale == 1 else some * np.float64(index.scale)
            yield sparse.csr_array(weights), ids[start : start + at_once]


def export(
    index: ImpactIndex, form: str, path: str | os.PathLike, *, name: str = "ellzero", field: str = "terms"
) -> Path:
    """Write an index for another engine, whole or not at all.

    Parameters
    ----------
    form : ``"ciff"`` (a file), ``"vectors"`` (Anserini's JSON vectors, a file), ``"pisa"`` (five files that begin with
        ``path``), ``"opensearch"`` or ``"qdrant"`` (a new folder of requests' bodies). The first and third hold the
        impacts as whole numbers, the others the weights.
    name, field : of the engine's index and of its field, for OpenSearch and Qdrant.

    Raises
    ------
    InputError : an unknown form, an index whose terms have no names, a place that cannot be written.
    """
    check_choice("form", form, FORMS)
    path, vocabulary = Path(path), index.vocabulary
    if vocabulary is None:
        raise InputError("vocabulary: the index has none, and other engines know terms by name")
    if form == "ciff":
        index.to_ciff(path)
    elif form == "pisa":
        parts = list(_impacts(index))
        X = sparse.vstack([X for X, _ in parts]) if parts else sparse.csr_array((0, index.terms), dtype=np.int64)
        write_pisa(path, X, [name for _, ids in parts for name in ids], vocabulary)
    elif form == "vectors":
        with writing(path) as file:
            for X, ids in rows(index):
                file.writelines(json_lines(X, ids, vocabulary))
    elif form == "opensearch":
        write_opensearch(path, rows(index), vocabulary, name=name, field=field)
    else:
        write_qdrant(path, rows(index), vocabulary, field=field)
    return path


def _impacts(index: ImpactIndex) -> Iterator[tuple[sparse.csr_array, list[Any]]]:
    """Impacts and ids of every segment that has documents."""
    for segment in index._snapshot.segments:
        if not segment.live:
            continue
        part = disk.merge([segment])
        yield part.lists.to_csr(), part.ids.take(np.asarray(part.lists.arrays.rank, np.int64)).tolist()

"""Encoded documents on the disk: numbered files of sparse rows with their ids, in the order of the corpus.

Lives here: ``Encoded``, which goes over more of them than memory holds, and the files' form. Does not live here: the
job that writes them (``encoding``), the index (``index``).

A folder holds ``job.json`` (which encoder), ``vocabulary.txt``, ``shard-NNNNNN.safetensors``, and ``done.json`` once
the whole corpus is encoded. Every file is written whole or not at all.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.io.atomic import write_json

__all__ = ["Encoded"]

KIND, VERSION = "encoded-documents", 1
JOB, TERMS, DONE = "job.json", "vocabulary.txt", "done.json"
_SHARD = re.compile(r"shard-(\d{6,})\.safetensors")


def shard_path(home: Path, number: int) -> Path:
    return home / f"shard-{number:06d}.safetensors"


def write_shard(path: Path, X: sparse.csr_array, ids: Sequence[str], meta: Mapping[str, Any]) -> None:
    """One file of rows; columns take 16 bits where they fit."""
    text = [name.encode() for name in ids]
    kind = np.uint16 if X.shape[1] <= 2**16 else np.int32
    tensors = {
        "indptr": X.indptr.astype(np.int64), "indices": X.indices.astype(kind),
        "data": X.data, "id_starts": np.cumsum([0, *map(len, text)], dtype=np.int64),
        "id_text": np.frombuffer(b"".join(text), np.uint8),
    }  # fmt: skip
    record = {**meta, "documents": X.shape[0], "terms": X.shape[1], "largest": float(X.data.max(initial=0)),
              "whole": bool(np.all(X.data == np.rint(X.data)))}  # fmt: skip
    artefacts.save(path, tensors, record, KIND, VERSION)


def read_shard(path: Path) -> tuple[sparse.csr_array, list[str]]:
    """Rows and ids of one file, hashes checked."""
    tensors, meta = artefacts.load(path, KIND, version=VERSION)
    shape = (meta["documents"], meta["terms"])
    X = sparse.csr_array((tensors["data"], tensors["indices"].astype(np.int32), tensors["indptr"]), shape=shape)
    raw, starts = tensors["id_text"].tobytes(), tensors["id_starts"].tolist()
    return X, [raw[start:stop].decode() for start, stop in itertools.pairwise(starts)]


def shard_metas(home: Path) -> list[dict[str, Any]]:
    """What each shard says of itself, from the first on, as far as none is missing; read from the headers alone."""
    found = []
    while (path := shard_path(home, len(found))).is_file():
        told = artefacts.inspect(path)
        if told["kind"] != KIND:
            raise InputError(f"{path}: holds {told['kind']!r}, want {KIND!r}")
        found.append(told["meta"])
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file of a job."""
    try:
        record = json.loads(path.read_bytes())
        if record["kind"] != KIND or record["version"] > VERSION:
            raise ValueError(f"kind {record['kind']!r}, version {record['version']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is missing, damaged or of a newer ellzero ({error})") from error
    return record


def save_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a file of a job."""
    write_json(path, {"kind": KIND, "version": VERSION, **record})


class Encoded:
    """Pairs ``(X, ids)``, one per shard, of an encoded corpus, as ``ImpactIndex.build`` takes them.

    Parameters
    ----------
    path : the folder. shards : which of its shards, by number; default all.

    Attributes
    ----------
    vocabulary : the terms by column. documents, postings : how many these shards hold. largest : the largest weight of
    the whole folder; whole : whether all of its weights are whole numbers.

    Raises
    ------
    InputError : a folder that is none, or whose corpus is not encoded to the end; while reading, a damaged file.
    """

    def __init__(self, path: str | os.PathLike, shards: Sequence[int] | None = None):
        self.path = Path(path)
        if not (self.path / JOB).is_file():
            raise InputError(f"path: {self.path} has no {JOB}, want a folder that `ellzero encode` wrote")
        self.job = read_json(self.path / JOB)
        metas = shard_metas(self.path)
        if not (self.path / DONE).is_file():
            raise InputError(f"path: {self.path} is not complete: {sum(meta['documents'] for meta in metas)} documents "
                             "so far; the same `ellzero encode` goes on from there")  # fmt: skip
        done = read_json(self.path / DONE)
        if len(metas) != done["shards"] or any(meta["job"] != self.job["job"] for meta in metas):
            raise InputError(f"path: {self.path} has {len(metas)} shards of this job, want {done['shards']}")
        self.shards = list(range(len(metas))) if shards is None else list(shards)
        self.vocabulary = (self.path / TERMS).read_bytes().decode().split("\n")[:-1]
        self.largest = max((meta["largest"] for meta in metas), default=0.0)
        self.whole = all(meta["whole"] for meta in metas)
        self.sizes = [meta["documents"] for meta in metas]
        self.documents = sum(self.sizes[number] for number in self.shards)

    def scale(self, bits: int = 8) -> float:
        """The weight of one level, as ``ImpactIndex.build`` would choose it for all rows at once."""
        levels = 2**bits - 1
        return 1.0 if not self.largest or (self.whole and self.largest <= levels) else self.largest / levels

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[tuple[sparse.csr_array, list[str]]]:
        for number in self.shards:
            yield read_shard(shard_path(self.path, number))
        if not self.shards:
            yield sparse.csr_array((0, len(self.vocabulary))), []

"""Segments: what an index is made of, in memory and on the disk.

Lives here: ``Segment`` (lists, ids, which documents are deleted), its folder, the merging of several, and the index's
own manifest, which names the segments and is renamed last. Does not live here: searching over segments (``index``).
A segment's folder never changes once it is complete. What a killed writer leaves behind is no part of any index and
goes with the next write; a reader's memory maps outlive the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ellzero.errors import InputError
from ellzero.io import manifest
from ellzero.io.atomic import sync_directory
from ellzero.kernels import impact
from ellzero.layouts.inverted import InvertedLists, ListWriter, merged, padded
from ellzero.retrieval.ids import Ids

__all__ = ["Segment", "lock", "merge", "merge_into", "read_index", "read_segment", "write_index", "write_segment"]

INDEX, SEGMENT, VERSION = "impact-index", "impact-segment", 2
_PREFIX, _LOCK = "segment-", ".lock"
_ARRAYS = ("starts", "form", "frequency", "kth", "rank")


@dataclass(frozen=True)
class Segment:
    """Documents that were indexed together; ``deleted`` is a mask by rank of id, or None; ``folder`` None in memory."""

    lists: InvertedLists
    ids: Ids
    deleted: np.ndarray | None = None
    folder: str | None = None

    @property
    def live(self) -> int:
        """Documents that are not deleted."""
        return len(self.ids) - (0 if self.deleted is None else int(self.deleted.sum()))

    def without(self, ranks: np.ndarray) -> Segment:
        """The segment with these documents deleted too."""
        mask = np.zeros(len(self.ids), bool) if self.deleted is None else self.deleted.copy()
        mask[ranks] = True
        return replace(self, deleted=mask)

    def find(self, ids: Any) -> np.ndarray:
        """Ranks of ids, -1 where one is not there or deleted."""
        ranks = self.ids.find(ids)
        if self.deleted is not None and len(ranks):
            ranks[(ranks >= 0) & self.deleted[ranks]] = -1
        return ranks

    def allowed(self, within: np.ndarray | None) -> np.ndarray | None:
        """The kernel's mask by document: those not deleted, and among the ranks ``within`` where given."""
        if within is None and self.deleted is None:
            return None
        by_rank = np.ones(len(self.ids), np.uint8)
        if within is not None:
            by_rank[:] = 0
            by_rank[within] = 1
        if self.deleted is not None:
            by_rank[self.deleted] = 0
        return by_rank[self.lists.arrays.rank]


# ---------------------------------------------------------------- one segment on the disk


def _npy(array: np.ndarray) -> Callable[[BinaryIO], None]:
    return lambda file: np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _id_files(ids: Ids) -> dict[str, Callable[[BinaryIO], None]]:
    if ids.numbers is not None:
        return {"ids.npy": _npy(ids.numbers)}
    return {"id_starts.npy": _npy(ids.starts), "id_text.npy": _npy(ids.text)}


def write_segment(index: Path, segment: Segment) -> Segment:
    """Write a segment that is in memory; the one that is returned reads from its files."""
    lists = segment.lists.arrays

    def put_data(file: BinaryIO) -> None:
        file.write(memoryview(np.ascontiguousarray(lists.data)))

    files = {"data.bin": put_data, **{f"{name}.npy": _npy(getattr(lists, name)) for name in _ARRAYS}}
    folder = _write(index, {**files, **_id_files(segment.ids)}, lists.documents, lists.shift)
    return replace(read_segment(index, folder), deleted=segment.deleted)


def _write(index: Path, files: dict[str, Any], documents: int, shift: int) -> str:
    folder = f"{_PREFIX}{secrets.token_hex(8)}"
    (index / folder).mkdir()
    manifest.save(index / folder, files, {"documents": documents, "shift": shift}, SEGMENT, VERSION)
    sync_directory(index)
    return folder


def read_segment(index: Path, folder: str) -> Segment:
    """A complete segment: hashes checked, arrays mapped.

    Raises
    ------
    InputError : a torn, changed, missing, foreign or newer file.
    """
    found = manifest.load(index / folder, SEGMENT, version=VERSION)
    try:
        arrays = {name: np.load(found.files[f"{name}.npy"], mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        data = np.memmap(found.files["data.bin"], np.uint8, mode="r")
        lists = InvertedLists(impact.Lists(found.meta["documents"], found.meta["shift"], data=data, **arrays))
        if "ids.npy" in found.files:
            ids = Ids(numbers=np.load(found.files["ids.npy"], mmap_mode="r", allow_pickle=False))
        else:
            starts = np.load(found.files["id_starts.npy"], mmap_mode="r", allow_pickle=False)
            ids = Ids(starts=starts, text=np.load(found.files["id_text.npy"], mmap_mode="r", allow_pickle=False))
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{index / folder}: is not a segment of an index ({error})") from error
    if len(ids) != lists.documents:
        raise InputError(f"{index / folder}: has {len(ids)} ids for {lists.documents} documents")
    return Segment(lists, ids, folder=folder)


# ---------------------------------------------------------------- merging


def _numbering(segments: Sequence[Segment]) -> tuple[list[np.ndarray], Ids, np.ndarray]:
    """New numbers of every segment's documents, the ids of those that stay, and their ranks by new number."""
    numbers, ids, before = [], [], 0
    for segment in segments:
        rank = np.asarray(segment.lists.arrays.rank, np.int64)
        stays = np.ones(len(rank), bool) if segment.deleted is None else ~segment.deleted[rank]
        number = np.full(len(rank), -1, np.int64)
        number[stays] = before + np.arange(stays.sum())
        before += int(stays.sum())
        numbers.append(number)
        ids.append(segment.ids.take(rank[stays]))
    joined, rank = Ids.sorted_from(np.concatenate(ids))
    return numbers, joined, rank


def merge(segments: Sequence[Segment]) -> Segment:
    """Several segments as one in memory, without the deleted documents."""
    numbers, ids, rank = _numbering(segments)
    parts: list[np.ndarray] = []
    shift = segments[0].lists.arrays.shift
    writer = merged([(s.lists, n) for s, n in zip(segments, numbers)], len(ids), shift, parts.append)
    return Segment(InvertedLists(writer.lists(padded(parts), len(ids), shift, rank)), ids)


def merge_into(index: Path, segments: Sequence[Segment]) -> Segment:
    """Several segments as one on the disk; the lists are written as they are made and never held whole."""
    numbers, ids, rank = _numbering(segments)
    shift = segments[0].lists.arrays.shift
    writers: list[ListWriter] = []

    def put_data(file: BinaryIO) -> None:
        parts = [(s.lists, n) for s, n in zip(segments, numbers)]
        writers.append(merged(parts, len(ids), shift, lambda data: file.write(memoryview(data))))
        file.write(bytes(impact.PADDING))

    def later(name: str) -> Callable[[BinaryIO], None]:  # files are written in order: the lists are complete by then
        return lambda file: _npy(writers[-1].arrays()[name])(file)

    files = {"data.bin": put_data, **{f"{name}.npy": later(name) for name in _ARRAYS if name != "rank"}}
    files |= {"rank.npy": _npy(rank.astype(np.uint32)), **_id_files(ids)}
    return read_segment(index, _write(index, files, len(ids), shift))


# ---------------------------------------------------------------- the index on the disk


@contextlib.contextmanager
def lock(index: Path) -> Iterator[None]:
    """Writers of one index take turns, also between processes; the system frees the turn of a killed one."""
    descriptor = os.open(index / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_index(
    index: Path, segments: Sequence[Segment], meta: dict[str, Any], vocabulary: Sequence[str] | None
) -> int:
    """Make these segments the index; returns its generation. Segments that no index names are removed afterwards."""
    files = {}
    if vocabulary is not None:
        files["vocabulary.txt"] = "\n".join(vocabulary).encode()
    for number, segment in enumerate(segments):
        if segment.deleted is not None:
            files[f"deleted-{number}.bin"] = np.packbits(segment.deleted).tobytes()
    record = {**meta, "segments": [segment.folder for segment in segments]}
    written = manifest.save(index, files, record, INDEX, VERSION)
    named = {segment.folder for segment in segments}
    for path in index.iterdir():
        if path.name.startswith(_PREFIX) and path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
    return written.number


def read_index(index: Path) -> tuple[list[Segment], dict[str, Any], list[str] | None, int]:
    """The newest complete state: segments, what was said of them, vocabulary, generation."""
    seen = None
    while True:
        found = manifest.load(index, INDEX, version=VERSION)
        try:
            segments = [read_segment(index, folder) for folder in found.meta["segments"]]
            break
        except InputError:
            if found.number == seen:
                raise
            seen = found.number  # a writer may have gone on and removed them meanwhile: look once more
    for number, segment in enumerate(segments):
        if f"deleted-{number}.bin" in found.files:
            bits = np.frombuffer(found.read(f"deleted-{number}.bin"), np.uint8)
            segments[number] = replace(segment, deleted=np.unpackbits(bits, count=len(segment.ids)).astype(bool))
    vocabulary = None
    if "vocabulary.txt" in found.files:
        vocabulary = found.read("vocabulary.txt").decode().split("\n")
    meta = {name: value for name, value in found.meta.items() if name != "segments"}
    return segments, meta, vocabulary, found.number

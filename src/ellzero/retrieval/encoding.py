"""The job that encodes a corpus: JSON lines in, numbered shards of sparse rows out; killed at any moment, it goes on.

Lives here: ``encode_corpus`` and ``Progress``. Does not live here: the shards' form (``encoded``), encoders.

The corpus is read once, in order. A shard says which bytes of the corpus it stands for, with their hash; it appears
whole or not at all, so the next run begins where the last complete shard ends, and no document is lost or doubled.
Texts are encoded in groups that begin at fixed numbers of documents: rows do not depend on where a run was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import sparse

from ellzero.errors import InputError, check, check_integer
from ellzero.io import container
from ellzero.io.atomic import TEMPORARY, write_bytes
from ellzero.retrieval import encoded as disk
from ellzero.retrieval.collections import full_text, parsed_record
from ellzero.retrieval.encoded import Encoded
from ellzero.retrieval.encoders import BM25_FILE, FOLDER, Encoder, as_encoder, fingerprint, keep_encoder
from ellzero.retrieval.quantise import as_matrix

__all__ = ["Progress", "encode_corpus"]

SHARD_POSTINGS = 5_000_000


@dataclass(frozen=True)
class Progress:
    """How far a job is: documents and bytes, of which ``before`` by earlier runs, and seconds of this run."""

    documents: int
    nbytes: int
    total_nbytes: int
    documents_before: int
    nbytes_before: int
    seconds: float

    @property
    def speed(self) -> float:
        """Documents a second of this run."""
        return (self.documents - self.documents_before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of this run, by bytes; None before the first document."""
        done = self.nbytes - self.nbytes_before
        return None if not done else (self.total_nbytes - self.nbytes) / done * self.seconds


def encode_corpus(
    corpus: str | os.PathLike,
    encoder: Encoder,
    out: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
    name: str | None = None,
    group: int = 256,
    shard_documents: int = 20_000,
    shard_seconds: float = 30.0,
    report: Callable[[Progress], None] | None = None,
) -> Encoded:
    """Encode a corpus into a folder; a folder that an earlier run began is gone on with, also if the corpus has grown.

    Parameters
    ----------
    corpus : JSON lines with ``_id`` or ``id``, and ``title`` with ``text``, or ``contents``.
    encoder : an object with ``encode_document(texts)``, ``encode_query(texts)`` and ``vocabulary``.
    out : a new or empty folder, or one of the same job.
    source : the encoder's file or folder; it is copied into ``out``, from where ``ellzero index`` takes it on.
    name : what tells the encoder from others if it has no ``source``; default its class's name.
    group : texts that the encoder is given at a time.
    shard_documents, shard_seconds : a shard ends with the group that reaches one of the two.
    report : called after each group.

    Raises
    ------
    InputError : a line that is no document, weights that are negative or infinite, a folder of another encoder or of
        another corpus, or one that another process is writing.
    """
    corpus = container.regular_file(corpus)
    as_encoder("encoder", encoder)
    group = check_integer("group", group, at_least=1)
    check_integer("shard_documents", shard_documents, at_least=1)
    check("shard_seconds", shard_seconds, at_least=0)
    home = Path(out)
    with _alone(home):
        for torn in home.glob(f".*{TEMPORARY}"):  # left by a process that was killed
            torn.unlink(missing_ok=True)
        job = _job(home, encoder, source, name, group)
        metas = disk.shard_metas(home)
        _check_corpus(Path(corpus), metas, home)
        (home / disk.DONE).unlink(missing_ok=True)
        writer = _Writer(home, job["job"], len(encoder.vocabulary), metas, shard_documents, shard_seconds)
        start, clock = (writer.stop, writer.documents), time.monotonic()
        total = os.path.getsize(corpus)
        for part in _groups(Path(corpus), writer.stop, writer.lines, group, writer.documents):
            writer.add(as_matrix("encoder", encoder.encode_document(part.texts), writer.terms), part)
            if report is not None:
                report(Progress(writer.documents, part.stop, total, start[1], start[0], time.monotonic() - clock))
        writer.close()
        if not writer.documents:
            raise InputError(f"FILE: {corpus} has no documents")
        disk.save_json(home / disk.DONE, {"shards": writer.number, "documents": writer.documents})
    return Encoded(home)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which the system gives back when the process is killed."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / disk.JOB).is_file():
            begun = (disk.TERMS, FOLDER, BM25_FILE)  # by a job that was killed at its start
            names = sorted(path.name for path in home.iterdir() if not path.name.startswith("."))
            other = next((name for name in names if name not in begun), None)
            if other is not None:
                raise InputError(f"out: {home} holds {other!r}, want a new or empty folder, or one of the same job")
        descriptor = os.open(home / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"out: {home} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"out: another process encodes into {home}; want one at a time") from error
    finally:
        os.close(descriptor)


def _job(home: Path, encoder: Encoder, source: Any, name: str | None, group: int) -> dict[str, Any]:
    """What the folder says of its encoder; a new folder is told."""
    terms = [*encoder.vocabulary]
    bad = next((term for term in terms if not isinstance(term, str) or "\n" in term), None)
    if bad is not None:
        raise InputError(f"encoder: got the term {bad!r}, want text without line breaks")
    content = "".join(f"{term}\n" for term in terms).encode()
    told = {
        "encoder": fingerprint(source) if source is not None else name or type(encoder).__name__,
        "terms": hashlib.blake2b(content, digest_size=16).hexdigest(), "group": group,
    }  # fmt: skip
    told["job"] = hashlib.blake2b(repr(sorted(told.items())).encode(), digest_size=16).hexdigest()
    if (home / disk.JOB).is_file():
        found = disk.read_json(home / disk.JOB)
        changed = [key for key in ("encoder", "terms", "group") if found.get(key) != told[key]]
        if changed:
            raise InputError(f"out: {home} was begun with another {changed[0]} ({found.get(changed[0])}, now "
                             f"{told[changed[0]]}); want the same, or another folder")  # fmt: skip
        return found
    if source is not None and Path(source).resolve().parent != home.resolve():
        keep_encoder(source, home)
    write_bytes(home / disk.TERMS, content)
    disk.save_json(home / disk.JOB, told)  # last: a folder with it has the rest
    return told


def _check_corpus(corpus: Path, metas: list[dict[str, Any]], home: Path) -> None:
    """The bytes that are encoded already must be those of the corpus."""
    at = 0
    with open(corpus, "rb") as file:
        for number, meta in enumerate(metas):
            content = file.read(meta["stop"] - meta["start"])
            if meta["start"] != at or hashlib.blake2b(content, digest_size=16).hexdigest() != meta["bytes"]:
                raise InputError(f"FILE: {corpus} is not what {disk.shard_path(home, number).name} was made of; want "
                                 "the same corpus, or another --out")  # fmt: skip
            at = meta["stop"]
        if metas and file.read(1) and not content.endswith(b"\n"):
            raise InputError(f"FILE: the last line of {corpus} grew after it was encoded; want whole lines, or another "
                             "--out")  # fmt: skip


@dataclass(frozen=True)
class _Group:
    """Some documents: ids, texts, their bytes in the corpus, and where they end, in bytes and in lines."""

    ids: list[str]
    texts: list[str]
    raw: bytes
    stop: int
    lines: int


def _groups(corpus: Path, start: int, lines: int, size: int, before: int) -> Iterator[_Group]:
    """Groups that end at multiples of ``size`` documents from the beginning of the corpus; blank lines go along."""
    ids: list[str] = []
    texts: list[str] = []
    raw: list[bytes] = []
    with open(corpus, "rb") as file:
        file.seek(start)
        for line in file:
            lines += 1
            start += len(line)
            raw.append(line)
            if line.strip():
                name, record = parsed_record(corpus, lines, line)
                ids.append(name)
                texts.append(full_text(record))
                before += 1
                if before % size == 0:
                    yield _Group(ids, texts, b"".join(raw), start, lines)
                    ids, texts, raw = [], [], []
    if ids:
        yield _Group(ids, texts, b"".join(raw), start, lines)


class _Writer:
    """Collects groups and writes a shard of them when it is large or old enough."""

    def __init__(self, home: Path, job: str, terms: int, metas: list[dict[str, Any]], documents: int, seconds: float):
        self.home, self.job, self.terms, self.most, self.seconds = home, job, terms, documents, seconds
        self.number, self.documents = len(metas), sum(meta["documents"] for meta in metas)
        self.stop, self.lines = (metas[-1]["stop"], metas[-1]["lines"]) if metas else (0, 0)
        self._empty()

    def _empty(self) -> None:
        self.start, self.held, self.ids, self.since = self.stop, [], [], time.monotonic()
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, X: sparse.csr_array, part: _Group) -> None:
        if X.shape[0] != len(part.ids):
            raise InputError(f"encoder: gave {X.shape[0]} rows for {len(part.ids)} texts, want one each")
        self.held.append(X)
        self.ids += part.ids
        self.digest.update(part.raw)
        self.stop, self.lines, self.documents = part.stop, part.lines, self.documents + len(part.ids)
        old = time.monotonic() - self.since >= self.seconds
        if old or len(self.ids) >= self.most or sum(part.nnz for part in self.held) >= SHARD_POSTINGS:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self.held:
            return
        meta = {"job": self.job, "start": self.start, "stop": self.stop, "lines": self.lines,
                "bytes": self.digest.hexdigest()}  # fmt: skip
        X = sparse.csr_array(sparse.vstack(self.held, format="csr"))
        disk.write_shard(disk.shard_path(self.home, self.number), X, self.ids, meta)
        self.number += 1
        self._empty()

"""What turns texts into rows: found by its path, checked, and kept beside an index.

Lives here: the protocol of an encoder, ``load_encoder``, ``find_encoder`` and ``keep_encoder``. Does not live here: the
encoders (``bm25``, ``encoder``), the job that encodes a corpus (``encoding``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ellzero.errors import InputError
from ellzero.io.atomic import writing, writing_folder

__all__ = [
    "BM25_FILE",
    "FOLDER",
    "Encoder",
    "as_encoder",
    "find_encoder",
    "fingerprint",
    "keep_encoder",
    "load_encoder",
]

BM25_FILE, FOLDER = "bm25.safetensors", "encoder"
"""Where an encoder stands in the folder of an index or of encoded documents."""


@runtime_checkable
class Encoder(Protocol):
    """What ``encode``, ``search`` and ``serve`` need: rows of weights, zero or more, and the names of the columns."""

    vocabulary: Sequence[str]

    def encode_document(self, texts: Sequence[str]) -> Any:
        """scipy CSR ``[texts, terms]``."""
        ...

    def encode_query(self, texts: Sequence[str]) -> Any:
        """scipy CSR ``[texts, terms]``."""
        ...


def as_encoder(name: str, value: Any) -> Encoder:
    """The value, if it is an encoder."""
    missing = [part for part in ("encode_document", "encode_query", "vocabulary") if not hasattr(value, part)]
    if missing:
        raise InputError(f"{name}: got {type(value).__name__}, which has no {missing[0]!r}; want encode_document, "
                         "encode_query and vocabulary")  # fmt: skip
    return value


def load_encoder(path: str | os.PathLike) -> Encoder:
    """A saved encoder: a file of BM25 weights, or a folder of ``SparseEncoder`` or of sentence-transformers.

    Raises
    ------
    InputError : nothing stands there, or what does is no encoder.
    """
    path = Path(path)
    if path.is_file():
        from ellzero.retrieval.bm25 import BM25Vectorizer

        return BM25Vectorizer.load(path)
    if not path.is_dir():
        raise InputError(f"encoder: {path} is not there, want a file of BM25 weights or an encoder's folder")
    found = find_encoder(path)
    if found is not None:
        return found
    from ellzero.retrieval.encoder import SparseEncoder

    return as_encoder("encoder", SparseEncoder.load(path))


def standing(home: str | os.PathLike) -> Path | None:
    """The encoder's file or folder that stands in a folder, if one does."""
    home = Path(home)
    return next((path for path in (home / FOLDER, home / BM25_FILE) if path.exists()), None)


def find_encoder(home: str | os.PathLike) -> Encoder | None:
    """The encoder that stands in the folder of an index, or None."""
    path = standing(home)
    return None if path is None else load_encoder(path)


def keep_encoder(source: str | os.PathLike | None, home: str | os.PathLike) -> None:
    """Copy an encoder's file or folder into the folder of an index, in the place of the one that stood there."""
    source, home = None if source is None else Path(source), Path(home)
    name = None if source is None else FOLDER if source.is_dir() else BM25_FILE
    if name == FOLDER:
        made = home / f".{FOLDER}-new"
        shutil.rmtree(made, ignore_errors=True)  # left by a process that was killed
        with writing_folder("encoder", made) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
        shutil.rmtree(home / FOLDER, ignore_errors=True)
        os.replace(made, home / FOLDER)
    elif name == BM25_FILE:
        with open(source, "rb") as old, writing(home / BM25_FILE) as new:
            shutil.copyfileobj(old, new)
    if name != FOLDER:
        shutil.rmtree(home / FOLDER, ignore_errors=True)
    if name != BM25_FILE:
        (home / BM25_FILE).unlink(missing_ok=True)


def fingerprint(source: str | os.PathLike) -> str:
    """A hash of an encoder's file, or of the names and contents of its folder."""
    source = Path(source)
    total = hashlib.blake2b(digest_size=16)
    for path in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        total.update(f"{'' if path == source else path.relative_to(source).as_posix()}\n{content}\n".encode())
    return total.hexdigest()

"""Where activations come from: a file, or a model that reads texts; each row with the document it is from.

Lives here: ``Source``, ``from_file``, ``from_model``, ``stream``, ``read_rows`` and ``read_documents``. Does not live
here: hooks and windows (``ellzero.models``), readers of files (``ellzero.io``), the split. What was made last is kept
for the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.io import arrays
from ellzero.io.readers import read_matrix, read_texts
from ellzero.models.activation_cache import fingerprint
from ellzero.models.activations import ActivationStream
from ellzero.models.huggingface import load_model
from ellzero.models.reference import documents, reference_texts
from ellzero.rng import rng

__all__ = [
    "FEWEST_DOCUMENTS",
    "FEWEST_ROWS",
    "Source",
    "enough",
    "from_file",
    "from_model",
    "read_documents",
    "read_rows",
    "stream",
    "suffix",
]

FEWEST_ROWS, FEWEST_DOCUMENTS = 50, 10
_BLOCKS = 100


class Source:
    """Activations and the document of each row, read or computed when they are first asked for."""

    def __init__(self, digest: str, read: Callable[[], tuple[np.ndarray, np.ndarray]], option: str):
        self.digest, self._read, self._option = digest, read, option

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """``[rows, d]`` float32 and ``[rows]``."""
        X, origin = self._read()
        if len(X) < FEWEST_ROWS:
            raise InputError(f"{self._option}: gives {len(X)} rows, want at least {FEWEST_ROWS}")
        units = len(np.unique(origin))
        if units < FEWEST_DOCUMENTS:
            raise InputError(f"{self._option}: gives {units} documents, want at least {FEWEST_DOCUMENTS} to split")
        if not np.ptp(X, axis=0).any():
            raise InputError(f"{self._option}: all {len(X)} rows are equal, want rows that vary")
        X.setflags(write=False)
        return X, origin


def suffix(path: str) -> str:
    """The suffix in small letters, before that of a compression."""
    return Path(path.lower().removesuffix(".gz")).suffix


def read_rows(path: str) -> np.ndarray:
    """The rows of a file as a float32 array of its own."""
    X, _ = read_matrix(path)
    X = X.toarray() if hasattr(X, "toarray") else X
    with np.errstate(over="ignore"):
        return check_array(str(path), np.array(X, dtype=np.float32))


def from_file(path: str, rows: int | None = None) -> Source:
    """The rows of a file ``[rows, d]``, at most so many of them.

    An .npz or .safetensors file may hold an array ``documents`` beside ``X``; else each hundredth of the rows counts
    as a document, since neighbours may be of one text.
    """
    return _file(path, rows, _stamp(path))


def from_model(model: str, hook: str, texts: str | None, rows: int) -> Source:
    """About so many rows of what the module ``hook`` of a model gives for texts, or for those that ship.

    The paragraphs of a .txt file are joined into documents; each line of a .jsonl file, each file of a folder is one.
    """
    return _streamed(model, hook, texts, rows, (_stamp(model), _stamp(texts)))


def stream(model: str, hook: str, texts: list[str]) -> ActivationStream:
    """The stream of a model by its name; its tokenizer must be beside it."""
    net, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"model: {model} has no tokenizer beside it to read texts; give its activations as data")
    return ActivationStream(net, hook=hook, texts=texts, tokenizer=tokenizer, batch_size=_HELD, buffer=_HELD)


# The stream shuffles windows; rows need no shuffling here, since training does it.
_HELD = 4096


def _stamp(path: str | None) -> int | None:
    return Path(path).stat().st_mtime_ns if path is not None and Path(path).exists() else None


@lru_cache(maxsize=2)
def _file(path: str, rows: int | None, stamp: int | None) -> Source:
    X = read_rows(path)
    origin = np.arange(len(X)) * _BLOCKS // max(len(X), _BLOCKS)
    if Path(path).suffix.lower() in (".npz", ".safetensors") and "documents" in arrays.names(path):
        origin = arrays.read_vector(Path(path), "documents")
        if len(origin) != len(X):
            raise InputError(f"{path}: X has {len(X)} rows and documents has {len(origin)}, want equal")
    digest = hashlib.sha256(X.tobytes() + np.ascontiguousarray(origin).tobytes()).hexdigest()[:16]
    source = Source(digest, lambda: _some(X, origin, rows), "data")
    _ = source.rows  # what cannot be used is said at once
    return source


@lru_cache(maxsize=2)
def _streamed(model: str, hook: str, texts: str | None, rows: int, stamp: Any) -> Source:
    chosen = enough(read_documents(texts), rows)
    found = stream(model, hook, chosen)
    content = hashlib.sha256("\x1f".join(chosen).encode()).hexdigest()[:16]
    digest = f"{fingerprint(found.model.state_dict())[:16]}-{found.name}-{content}"
    read = min(max(rows, 2 * _HELD), found.rows)  # a few rows must be of many documents too
    return Source(digest, lambda: _some(*found.collect(read, return_documents=True), rows), "texts")


def _some(X: np.ndarray, origin: np.ndarray, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """At most so many rows, drawn at random, in their order."""
    if rows is None or rows >= len(X):
        return X, origin
    chosen = np.sort(rng(0, "autoencoder", "rows").choice(len(X), rows, replace=False))
    return X[chosen], origin[chosen]


def read_documents(path: str | None) -> list[str]:
    """The documents of a .txt file (its paragraphs, joined), a .jsonl file or a folder; without one those that ship."""
    if path is None:
        return reference_texts()
    found = read_texts(path)
    if not Path(path).is_dir() and suffix(path) == ".txt":
        found = documents("\n\n".join(found))
    if len(found) < FEWEST_DOCUMENTS:
        raise InputError(f"texts: {path} gives {len(found)} documents, want at least {FEWEST_DOCUMENTS} to split")
    return found


def enough(texts: list[str], rows: int) -> list[str]:
    """Documents drawn at random until they must hold that many tokens; a token has fewer than 8 characters."""
    order = rng(0, "autoencoder", "documents").permutation(len(texts))
    ends = np.cumsum([len(texts[i]) for i in order])
    count = max(int(np.searchsorted(ends, 8 * rows)) + 1, 3 * FEWEST_DOCUMENTS)
    return [texts[i] for i in order[:count]]

"""Readers of a user's own files: tables with a target, plain matrices, and texts.

Lives here: ``read_table``, ``read_matrix``, ``read_texts`` and ``Table``; the text formats are in ``delimited``, the
binary ones in ``arrays``. Does not live here: the sets that ship with ellzero (``data.sets``).
Nothing is guessed away: text, missing values, NaN and ragged rows are refused by column name and line number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, suggestion
from ellzero.io import arrays, delimited
from ellzero.io.container import regular_file
from ellzero.io.frames import Frame

__all__ = ["Table", "read_matrix", "read_table", "read_texts"]

_READERS = {
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_csv,
    ".jsonl": delimited.read_jsonl,
    ".parquet": arrays.read_parquet,
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    ".safetensors": arrays.read_safetensors,
}
_TEXT = (".txt", ".jsonl")


@dataclass(frozen=True)
class Table:
    """A table of numbers with one column set apart as the target.

    ``X`` is float64 (rows, columns), dense or scipy sparse; ``y`` has one number per row; ``columns`` names the
    columns of ``X`` and ``target`` names ``y``; ``labels`` names the classes ``0, 1, ...`` of ``y`` where it has any.
    """

    X: Any
    y: np.ndarray
    columns: tuple[str, ...]
    target: str
    labels: tuple[str, ...] | None = None

    def __post_init__(self):
        rows, width = self.X.shape
        if self.y.shape != (rows,):
            raise InputError(f"y: got shape {self.y.shape}, want ({rows},), one number per row of X")
        if len(self.columns) != width:
            raise InputError(f"columns: got {len(self.columns)} names, want {width}, one per column of X")

    def __len__(self) -> int:
        return self.X.shape[0]


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        known = tuple(suffix for suffix in known if suffix in (".csv", ".tsv", ".jsonl", ".txt"))
    last = suffixes[-1] if suffixes else ""
    if last not in known:
        raise InputError(
            f"{path}: has the suffix {last!r}, want one of {', '.join(known)}{suggestion(last, known) if last else ''}"
        )
    return last


def _frame(path: str | os.PathLike, name: str | None = None) -> Frame:
    path = regular_file(path)
    suffix = _suffix(path, tuple(_READERS))
    if name is not None and suffix not in (".npz", ".safetensors"):
        raise InputError(f"name: got {name!r}, but {path} holds one matrix; want no name")
    return _READERS[suffix](path, name) if suffix in (".npz", ".safetensors") else _READERS[suffix](path)


def read_matrix(path: str | os.PathLike, name: str | None = None) -> tuple[Any, tuple[str, ...] | None]:
    """A matrix of finite numbers from .npy, .npz, .csv, .tsv, .jsonl, .parquet or .safetensors.

    Parameters
    ----------
    name : which array of an .npz or .safetensors file; may be left out if there is one, or one called ``X``.

    Returns
    -------
    array : (rows, columns); floating point stays as it is (a .npy file is mapped, not read), the rest becomes
        float64; a scipy sparse .npz stays sparse (CSR or CSC).
    columns : their names, or ``None`` where the file has none.

    Raises
    ------
    InputError : unreadable, empty, ragged, non-numeric, missing or infinite; by line or column where there is one.
    """
    frame = _frame(path, name)
    return frame.values, frame.columns


def read_table(path: str | os.PathLike, target: str | int | None = None) -> Table:
    """A table of finite numbers with its target column.

    Parameters
    ----------
    target : the column's name, or its index (negative from the end). Without it: the column called ``target`` or
        ``y`` if there is one, else the last. An .npz or .safetensors file with arrays ``X`` and ``y`` has its target
        in ``y`` (or in the array that ``target`` names).

    Raises
    ------
    InputError : as ``read_matrix``; or an unknown target, or a table that has no other column.
    """
    path = Path(path)
    frame = _frame(path, "X" if _holds(path, "X") else None)
    if _holds(path, "X") and (isinstance(target, str) or _holds(path, "y")) and not isinstance(target, int):
        y = arrays.read_vector(path, "y" if target is None else target)
        if len(y) != frame.values.shape[0]:
            raise InputError(f"{path}: X has {frame.values.shape[0]} rows and {target or 'y'} has {len(y)}, want equal")
        return Table(arrays.as_float64(frame.values), y, frame.named(), target or "y")
    names = frame.named()
    if len(names) < 2:
        raise InputError(f"{path}: has {len(names)} column, want at least two: one is the target")
    place = _target_place(path, names, target)
    rest = [i for i in range(len(names)) if i != place]
    values = frame.values
    if sparse.issparse(values):
        y = np.asarray(values[:, [place]].todense(), dtype=np.float64).ravel()
        X = sparse.csr_array(values)[:, rest].astype(np.float64)
    else:
        y = np.array(values[:, place], dtype=np.float64)
        X = np.array(values[:, rest], dtype=np.float64)
    return Table(X, y, tuple(names[i] for i in rest), names[place])


def _holds(path: Path, name: str) -> bool:
    return path.suffix.lower() in (".npz", ".safetensors") and name in arrays.names(path)


def _target_place(path: Path, names: tuple[str, ...], target: str | int | None) -> int:
    if target is None:
        return next((names.index(word) for word in ("target", "y") if word in names), len(names) - 1)
    if target in names:
        return names.index(target)
    try:
        place = int(target)
    except ValueError:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"target: got {target!r}, want a column of {path} ({shown}){suggestion(target, names)}"
        ) from None
    if isinstance(target, bool) or not -len(names) <= place < len(names):
        raise InputError(f"target: got {target!r}, want a column index from {-len(names)} to {len(names) - 1}")
    return place % len(names)


def read_texts(path: str | os.PathLike) -> list[str]:
    """Texts from a .txt file, a .jsonl file with a ``text`` field, or a folder of .txt files.

    A .txt file gives its paragraphs (blocks between blank lines), or its lines if it has no blank line. A folder
    gives one text per file, by name. Gzip (``.txt.gz``) is read too. Empty texts are left out.

    Raises
    ------
    InputError : nothing to read, bytes that are not UTF-8, or a line without ``text``, by number.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".txt")
        if not files:
            raise InputError(f"{path}: has no .txt file, want a folder of texts")
        texts = [delimited.read_utf8(file).strip() for file in files]
    elif _suffix(regular_file(path), _TEXT) == ".txt":
        texts = paragraphs(delimited.read_utf8(path))
    else:
        texts = [text.strip() for text in _jsonl_texts(path)]
    texts = [text for text in texts if text]
    if not texts:
        raise InputError(f"{path}: holds no text")
    return texts


def paragraphs(text: str) -> list[str]:
    """The blocks between blank lines, or the lines if there is no blank line; without empty ones."""
    blocks: list[list[str]] = [[]]
    for line in text.strip().splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    if len(blocks) == 1:
        return [line.strip() for line in blocks[0]]
    return ["\n".join(block).strip() for block in blocks if block]


def _jsonl_texts(path: Path) -> Iterator[str]:
    for number, row in delimited.json_lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            came = f"the fields {', '.join(row)}" if isinstance(row, dict) else json.dumps(row)[:40]
            raise InputError(f"{path}: line {number} has {came}, want a field 'text' that holds text")
        yield row["text"]

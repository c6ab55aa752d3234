"""The files that ``ellzero apply --out`` writes: .csv, .npz or .jsonl, whole or not at all.

Lives here: turning an ``Output`` into a file. Does not live here: making it (``Task.apply``).
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_choice
from ellzero.io import atomic
from ellzero.protocol import Output

__all__ = ["check_writable", "write"]

SUFFIXES = (".csv", ".npz", ".jsonl")


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before any work."""
    check_choice("--out", path.suffix, SUFFIXES)
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder, want a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out: {path.parent} is not a writable folder")


def write(output: Output, path: Path) -> None:
    """Write the columns; a column with several numbers per row becomes one column each in .csv."""
    columns = {name: np.asarray(values) for name, values in output.columns.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"output: columns of different lengths {lengths}")
    atomic.write_bytes(path, {".csv": _csv, ".npz": _npz, ".jsonl": _jsonl}[path.suffix](columns))


def _csv(columns: dict[str, np.ndarray]) -> bytes:
    flat: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if values.ndim == 1:
            flat[name] = values
        else:
            wide = values.reshape(len(values), -1)
            flat |= {f"{name}_{i}": wide[:, i] for i in range(wide.shape[1])}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(flat)
    writer.writerows([_text(value) for value in row] for row in zip(*(values.tolist() for values in flat.values())))
    return file.getvalue().encode()


def _text(value: Any) -> Any:
    return repr(value) if isinstance(value, float) else value


def _npz(columns: dict[str, np.ndarray]) -> bytes:
    for name, values in columns.items():
        if values.dtype.kind == "O":
            raise InputError(f"--out: column {name!r} is not numeric or text; want .jsonl")
    file = io.BytesIO()
    np.savez(file, **columns)
    return file.getvalue()


def _jsonl(columns: dict[str, np.ndarray]) -> bytes:
    names = list(columns)
    rows = zip(*(values.tolist() for values in columns.values()))
    return "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows).encode()

"""Tables as text: .csv, .tsv and .jsonl, plain or gzipped.

Lives here: their parsing, with errors by line and column. Does not live here: which column is the target
(``readers``). Line numbers count from 1, as an editor shows them; quoted cells may span lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError
from ellzero.io.frames import Frame, check_finite_columns, check_names, is_missing, missing, text

__all__ = ["json_lines", "read_csv", "read_jsonl", "read_utf8"]

_TRUTH = {"true": 1.0, "false": 0.0}


def read_utf8(path: str | os.PathLike) -> str:
    """The file as text (a byte order mark is dropped; .gz is unpacked), or the place of the first foreign byte."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from error


def read_csv(path: Path) -> Frame:
    """A .csv or .tsv table of numbers.

    The separator is whichever of comma, semicolon and tab the first line has most of. The first row is taken as the
    names if one of its cells is neither a number nor missing; otherwise there are no names. Columns of true and
    false become 1 and 0.
    """
    content = read_utf8(path).replace("\r\n", "\n").rstrip("\n")
    separator = max(",;\t", key=content.split("\n", 1)[0].count)  # the comma, on a draw
    quick = _quick_csv(path, content, separator)
    if quick is not None:
        return quick
    rows, lines = _csv_rows(path, content, separator)
    if not rows:
        raise InputError(f"{path}: is empty")
    names = _csv_names(path, rows[0])
    if names is not None:
        rows, lines = rows[1:], lines[1:]
    if not rows:
        raise InputError(f"{path}: has column names and no rows")
    return Frame(_numbers(path, rows, lines, names), names)


def _quick_csv(path: Path, content: str, separator: str) -> Frame | None:
    """A clean table, four times as fast as by ``csv``; ``None`` for all that needs a closer look or an exact error."""
    if any(mark in content for mark in ('"', "\r", "\n\n")) or content.count("\n") < 1 or content[0] == "\n":
        return None
    first = content.split("\n", 1)[0].split(separator)
    names = _csv_names(path, first)
    try:
        values = np.loadtxt(
            io.StringIO(content), delimiter=separator, comments=None, skiprows=int(names is not None), ndmin=2
        )
    except ValueError:
        return None
    clean = values.size and values.shape[1] == len(first) and np.isfinite(values).all()
    return Frame(values, names) if clean else None


def _csv_names(path: Path, first: Sequence[str]) -> tuple[str, ...] | None:
    if all(_is_number(cell) or is_missing(cell) for cell in first) and not all(is_missing(cell) for cell in first):
        return None
    return check_names(path, [cell.strip() for cell in first])


def _csv_rows(path: Path, content: str, separator: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if not row:
                raise InputError(f"{path}: line {reader.line_num} is empty")
            if rows and len(row) != len(rows[0]):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, want {len(rows[0])} as in line {lines[0]}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from error
    return rows, lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000 as a number; a table that says so means text


def _numbers(
    path: Path, rows: Sequence[Sequence[str]], lines: Sequence[int], names: tuple[str, ...] | None
) -> np.ndarray:
    """float64 (rows, columns), or what is wrong with which column and line."""
    columns = []
    for place, column in enumerate(zip(*rows)):
        name = names[place] if names else str(place)
        gaps = [line for line, cell in zip(lines, column) if is_missing(cell)]
        known = {cell.strip().lower() for cell in column if not is_missing(cell)}
        strange = next((cell for cell in column if not is_missing(cell) and not _is_number(cell)), None)
        if strange is not None and not known <= set(_TRUTH):
            raise text(path, name, strange.strip())
        if gaps:
            raise missing(path, name, len(gaps), f"the first in line {gaps[0]}")
        numbers = np.array([_TRUTH[cell.strip().lower()] if strange is not None else float(cell) for cell in column])
        if not np.isfinite(numbers).all():
            line = lines[int(np.flatnonzero(~np.isfinite(numbers))[0])]
            raise InputError(f"{path}: column {name!r} holds infinity in line {line}; want finite numbers")
        columns.append(numbers)
    return np.stack(columns, axis=1)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """``(line number, value)`` of each line that is not blank."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not valid JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def read_jsonl(path: Path) -> Frame:
    """A table from JSON lines: objects with the same fields in each line, or lists of equal length."""
    rows: list[list[Any]] = []
    names: tuple[str, ...] | None = None
    for number, row in json_lines(path):
        if isinstance(row, dict) and (not rows or names is not None):
            if not rows:
                names = check_names(path, list(row))
            row = [row[name] for name in _same_fields(path, number, names, row)]
        elif not isinstance(row, list) or names is not None:
            want = "a list" if rows and names is None else "an object" if rows else "an object or a list"
            raise InputError(f"{path}: line {number} holds {json.dumps(row)[:40]}, want {want}")
        if rows and len(row) != len(rows[0]):
            raise InputError(f"{path}: line {number} has {len(row)} values, want {len(rows[0])} as in the first line")
        rows.append(row)
    if not rows or not rows[0]:
        raise InputError(f"{path}: is empty")
    columns = [_json_column(path, names[i] if names else str(i), column) for i, column in enumerate(zip(*rows))]
    values = np.stack(columns, axis=1)
    check_finite_columns(path, values, names, first_row=1)
    return Frame(values, names)


def _same_fields(path: Path, number: int, names: tuple[str, ...], row: dict[str, Any]) -> tuple[str, ...]:
    if set(row) != set(names):
        lacking, extra = sorted(set(names) - set(row)), sorted(set(row) - set(names))
        said = f"lacks {lacking[0]!r}" if lacking else f"has {extra[0]!r} besides"
        raise InputError(f"{path}: line {number} {said}; want the fields of the first line: {', '.join(names)}")
    return names


def _json_column(path: Path, name: str, column: Sequence[Any]) -> np.ndarray:
    strange = next((v for v in column if v is not None and not isinstance(v, int | float)), None)
    if strange is not None:
        what = {str: "text", list: "a list", dict: "an object"}[type(strange)]
        raise text(path, name, strange, what)
    gaps = [row for row, value in enumerate(column, start=1) if value is None]
    if gaps:
        raise missing(path, name, len(gaps), f"null, the first in row {gaps[0]}")
    try:
        return np.array([float(value) for value in column])
    except OverflowError as error:
        raise InputError(f"{path}: column {name!r} holds a whole number beyond the range of float64") from error

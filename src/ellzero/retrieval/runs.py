"""Runs and judgements in TREC's formats, read and written.

Lives here: run files (``query Q0 document rank score tag``) and qrels (``query iteration document judgement``, or
BEIR's tab-separated table with a header). Does not live here: measures, collections.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ellzero.errors import InputError
from ellzero.io import container
from ellzero.io.atomic import write_text

__all__ = ["read_qrels", "read_run", "write_qrels", "write_run"]


def _lines(path: str | os.PathLike) -> list[tuple[int, str]]:
    path = container.regular_file(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 ({error.reason})") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_run(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """``{query: {document: score}}`` of a run file, in its order.

    Raises
    ------
    InputError : a line of another shape, a score that is no number, a document that a query has twice.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise InputError(f"{path}: line {number} has {len(fields)} fields, want query Q0 document rank score tag")
        try:
            score = float(fields[4])
        except ValueError:
            raise InputError(f"{path}: line {number} has the score {fields[4]!r}, want a number") from None
        if fields[2] in run.setdefault(fields[0], {}):
            raise InputError(f"{path}: line {number} names the document {fields[2]!r} a second time")
        run[fields[0]][fields[2]] = score
    return run


def write_run(path: str | os.PathLike, run: Mapping[str, Mapping[str, float]], tag: str = "ellzero") -> None:
    """Write a run, best first within each query, whole or not at all."""
    lines = []
    for query, scores in run.items():
        for name in (query, tag, *scores):
            if not str(name) or str(name).split() != [str(name)]:
                raise InputError(f"run: got the name {name!r}, want one without spaces")
        ranked = sorted(scores.items(), key=lambda item: -item[1])
        lines += [f"{query} Q0 {doc} {rank} {score!r} {tag}\n" for rank, (doc, score) in enumerate(ranked, 1)]
    write_text(path, "".join(lines))


def read_qrels(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    """``{query: {document: judgement}}`` of TREC qrels (four fields) or BEIR's (three, with a header).

    Raises
    ------
    InputError : a line of another shape, or a judgement that is no whole number.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if number == 1 and fields[-1] == "score":
            continue
        if len(fields) not in (3, 4):
            raise InputError(f"{path}: line {number} has {len(fields)} fields, want query 0 document judgement")
        try:
            qrels.setdefault(fields[0], {})[fields[-2]] = int(fields[-1])
        except ValueError:
            raise InputError(f"{path}: line {number} has the judgement {fields[-1]!r}, want a whole number") from None
    return qrels


def write_qrels(path: str | os.PathLike, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write TREC qrels, whole or not at all."""
    rows = (f"{query} 0 {doc} {value}\n" for query, judged in qrels.items() for doc, value in judged.items())
    write_text(path, "".join(rows))

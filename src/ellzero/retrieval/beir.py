"""Collections in BEIR's folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``.

Lives here: ``BeirFolder`` and ``write_beir``. Does not live here: other collections (``collections``), TREC's runs and
judgements (``runs``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ellzero.errors import InputError, check_choice
from ellzero.io.atomic import writing_folder
from ellzero.retrieval.collections import read_jsonl, read_records
from ellzero.retrieval.runs import read_qrels

__all__ = ["BeirFolder", "Document", "write_beir"]

_HEADER = "query-id\tcorpus-id\tscore\n"


class Document(NamedTuple):
    """A document as BEIR keeps it: id, title (often empty) and text."""

    id: str
    title: str
    text: str


class BeirFolder:
    """A folder of BEIR's: documents, queries and judgements by split.

    Parameters
    ----------
    path : the folder; it must hold ``corpus.jsonl`` and ``queries.jsonl``.

    Raises
    ------
    InputError : one of the two files is missing; while reading, a line of another shape, by file and line.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        for name in ("corpus.jsonl", "queries.jsonl"):
            if not (self.path / name).is_file():
                raise InputError(f"path: {self.path} has no {name}, want a folder of BEIR's")

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have judgements, sorted."""
        return sorted(path.stem for path in self.path.glob("qrels/*.tsv"))

    def documents(self) -> Iterator[Document]:
        """Every document, one at a time."""
        for name, record in read_records(self.path / "corpus.jsonl"):
            title = record.get("title") or ""
            yield Document(name, title, record.get("text", record.get("contents")))

    def texts(self) -> Iterator[tuple[str, str]]:
        """``(id, title and text)`` of every document, as ``ellzero index`` reads them."""
        return read_jsonl(self.path / "corpus.jsonl")

    def queries(self, split: str | None = None) -> list[tuple[str, str]]:
        """``(id, text)`` of the queries; of a split, those that have judgements there."""
        judged = None if split is None else self.qrels(split)
        return [query for query in read_jsonl(self.path / "queries.jsonl") if judged is None or query[0] in judged]

    def qrels(self, split: str = "test") -> dict[str, dict[str, int]]:
        """``{query: {document: judgement}}`` of a split."""
        check_choice("split", split, self.splits)
        return read_qrels(self.path / "qrels" / f"{split}.tsv")


def write_beir(
    path: str | os.PathLike,
    documents: Iterable[Document | tuple[str, ...]],
    queries: Iterable[tuple[str, str]],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> None:
    """Write a folder of BEIR's, whole or not at all.

    Parameters
    ----------
    documents : ``(id, title, text)`` or ``(id, text)``. queries : ``(id, text)``.
    qrels : ``{split: {query: {document: judgement}}}``.

    Raises
    ------
    InputError : ids that stand twice or are no text, a tab or line break in a judged id, a folder that is not empty.
    """
    with writing_folder("path", path) as folder:
        with open(folder / "corpus.jsonl", "wb") as file:
            rows = ((row[0], row[1] if len(row) == 3 else "", row[-1]) for row in documents)
            _write_lines(file, "documents", ({"_id": i, "title": title, "text": text} for i, title, text in rows))
        with open(folder / "queries.jsonl", "wb") as file:
            _write_lines(file, "queries", ({"_id": name, "text": text} for name, text in queries))
        (folder / "qrels").mkdir()
        for split, judged in qrels.items():
            if Path(split).name != split or split.startswith("."):
                raise InputError(f"qrels: got the split {split!r}, want a plain name such as 'test'")
            (folder / "qrels" / f"{split}.tsv").write_bytes(_table(judged).encode())


def _write_lines(file: BinaryIO, name: str, records: Iterable[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for record in records:
        bad = next((value for value in record.values() if not isinstance(value, str)), None)
        if bad is not None:
            raise InputError(f"{name}: got {bad!r} ({type(bad).__name__}), want ids and texts as text")
        if record["_id"] in seen:
            raise InputError(f"{name}: the id {record['_id']!r} stands twice, want every id once")
        seen.add(record["_id"])
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _table(judged: Mapping[str, Mapping[str, int]]) -> str:
    lines = [_HEADER]
    for query, values in judged.items():
        for document, value in values.items():
            for name in (query, document):
                if not name or name != name.strip() or len(name.splitlines()) != 1 or "\t" in name:
                    raise InputError(f"qrels: got the id {name!r}, want text without tabs, line breaks or outer blanks")
            lines.append(f"{query}\t{document}\t{int(value)}\n")
    return "".join(lines)

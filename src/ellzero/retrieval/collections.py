"""Texts with ids: JSON lines, BEIR's folders, and the SMART format of the old test collections.

Lives here: readers of documents and queries. Does not live here: judgements and runs (``runs``), vectors (``vectors``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ellzero.errors import InputError
from ellzero.io import container

__all__ = ["full_text", "parsed_record", "read_jsonl", "read_records", "read_smart", "read_topics"]

# A tag of TREC's topics and what follows it, up to the next tag; old collections do not close their tags.
_FIELD = re.compile(r"<(\w+)>([^<]*)")


def read_records(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(id, object)`` of each line: ``_id`` or ``id``; it has ``text`` (BEIR) or ``contents``.

    Raises
    ------
    InputError : a line that is no JSON object, or lacks an id or a text; the line is named.
    """
    path = container.regular_file(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parsed_record(path, number, line)


def parsed_record(path: Any, number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    """Id and object of one line."""
    try:
        record = json.loads(line)
        name = record.get("_id", record.get("id"))
        text, title = record.get("text", record.get("contents")), record.get("title") or ""
        f"{name}{title}{text}".encode()
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: line {number} is no JSON object in UTF-8 ({error})") from error
    if not isinstance(name, str | int) or not isinstance(text, str) or not isinstance(title, str):
        raise InputError(f"{path}: line {number} lacks an id ('_id', 'id') or a text ('text', 'contents')")
    return str(name), record


def full_text(record: Mapping[str, Any]) -> str:
    """Title and text of a line's object."""
    return f"{record.get('title') or ''} {record.get('text', record.get('contents'))}".strip()


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """``(id, text)`` of each line: ``_id`` or ``id``, and ``title`` with ``text`` (BEIR) or ``contents``.

    Raises
    ------
    InputError : a line that is no JSON object, or lacks an id or a text; the line is named.
    """
    for name, record in read_records(path):
        yield name, full_text(record)


def read_topics(path: str | os.PathLike) -> list[tuple[str, str]]:
    """``(id, text)`` of queries: JSON lines, lines of an id, a tab and the text, or TREC's topics (their titles)."""
    path = container.regular_file(path)
    if Path(path).suffix in (".jsonl", ".json"):
        return list(read_jsonl(path))
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text in UTF-8 ({error.reason})") from error
    if "<top>" in text and "<num>" in text:
        return _trec_topics(path, text)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        name, tab, text = line.partition("\t")
        if line.strip() and not tab:
            raise InputError(f"{path}: line {number} has no tab, want an id, a tab and the text")
        if tab:
            found.append((name.strip(), text.strip()))
    return found


def _trec_topics(path: Any, text: str) -> list[tuple[str, str]]:
    """Topics between ``<top>`` and ``</top>``: what follows ``<num> Number:`` and ``<title> Topic:``."""
    found = []
    for place, topic in enumerate(text.split("<top>")[1:], 1):
        fields = {tag.lower(): " ".join(body.split()) for tag, body in _FIELD.findall(topic.split("</top>")[0])}
        if not fields.get("num") or "title" not in fields:
            raise InputError(f"{path}: topic {place} lacks <num> or <title>")
        name = fields["num"].removeprefix("Number:").strip()
        found.append((name, fields["title"].removeprefix("Topic:").strip()))
    return found


def read_smart(path: str | os.PathLike, fields: str = "TW") -> list[tuple[str, str]]:
    """``(id, text)`` of a file in SMART's format: ``.I id``, then fields such as ``.T`` title and ``.W`` text.

    Parameters
    ----------
    fields : letters of the fields that make the text, joined in the order in which they stand.
    """
    path = container.regular_file(path)
    found: list[tuple[str, list[str]]] = []
    taken = False
    for number, line in enumerate(Path(path).read_text(encoding="latin-1").splitlines(), 1):
        if line.startswith(".I"):
            found.append((line[2:].strip(), []))
            taken = False
        elif len(line.rstrip()) == 2 and line[0] == "." and line[1].isupper():
            taken = line[1] in fields
        elif taken:
            if not found:
                raise InputError(f"{path}: line {number} stands before the first .I, want SMART's format")
            found[-1][1].append(line.strip())
    if not found:
        raise InputError(f"{path}: has no line that starts with .I, want SMART's format")
    return [(name, " ".join(lines).strip()) for name, lines in found]

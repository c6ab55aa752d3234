"""Texts with ids: JSON lines, BEIR's folders, and the SMART format of the old test collections.

Lives here: readers of documents and queries. Does not live here: judgements and runs (``runs``), vectors (``vectors``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ellzero.errors import InputError
from ellzero.io import container

__all__ = ["read_jsonl", "read_smart", "read_topics"]


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """``(id, text)`` of each line: ``_id`` or ``id``, and ``title`` with ``text`` (BEIR) or ``contents``.

    Raises
    ------
    InputError : a line that is no JSON object, or lacks an id or a text; the line is named.
    """
    path = container.regular_file(path)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name = record.get("_id", record.get("id"))
                text = record.get("text", record.get("contents"))
            except (ValueError, AttributeError) as error:
                raise InputError(f"{path}: line {number} is no JSON object") from error
            if not isinstance(name, str | int) or not isinstance(text, str):
                raise InputError(f"{path}: line {number} lacks an id ('_id', 'id') or a text ('text', 'contents')")
            title = record.get("title") or ""
            yield str(name), f"{title} {text}".strip()


def read_topics(path: str | os.PathLike) -> list[tuple[str, str]]:
    """``(id, text)`` of queries: JSON lines, or lines of an id, a tab and the text."""
    path = container.regular_file(path)
    if Path(path).suffix in (".jsonl", ".json"):
        return list(read_jsonl(path))
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        name, tab, text = line.partition("\t")
        if line.strip() and not tab:
            raise InputError(f"{path}: line {number} has no tab, want an id, a tab and the text")
        if tab:
            found.append((name.strip(), text.strip()))
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

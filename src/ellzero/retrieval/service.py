"""Answers to one query at a time, with reasons, for a page or a program.

Lives here: ``SearchService`` and ``Texts``, which reads a document's text from its corpus. Does not live here: HTTP
(``web``), search (``index``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_integer
from ellzero.io import container
from ellzero.retrieval.collections import parsed_record
from ellzero.retrieval.ids import Ids, as_ids
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.quantise import as_queries
from ellzero.retrieval.sharded import ShardedIndex

__all__ = ["SearchService", "Texts"]

SHOWN = 600
"""Characters of a document's text in an answer."""


class Texts:
    """Titles and texts of a JSON lines file, looked up by id; memory holds ids and places, not texts.

    Raises
    ------
    InputError : a line that is no document, or an id that stands twice.
    """

    def __init__(self, corpus: str | os.PathLike):
        self.path = container.regular_file(corpus)
        names, places, at = [], [], 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    names.append(parsed_record(self.path, number, line)[0])
                    places.append(at)
                at += len(line)
        self._ids, rank = Ids.sorted_from(as_ids("ids", names))
        self._places = np.empty(len(names), np.int64)
        self._places[rank] = places

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, name: Any) -> tuple[str, str] | None:
        """``(title, text)`` of a document, or None."""
        rank = int(self._ids.find([str(name)])[0]) if len(self) else -1
        if rank < 0:
            return None
        with open(self.path, "rb") as file:
            file.seek(int(self._places[rank]))
            found, record = parsed_record(self.path, rank, file.readline())
        if found != str(name):
            raise InputError(f"{self.path}: changed since it was opened")
        return record.get("title") or "", record.get("text", record.get("contents"))


class SearchService:
    """Hits of a text, each with what every term added; read-only, and safe to call from several threads.

    Parameters
    ----------
    index : what is searched. encode : from a list of texts to queries; called by one thread at a time.
    texts : the documents' texts, or None. name : of the collection, for the page.
    most_characters, most_hits : bounds of what may be asked.
    """

    def __init__(
        self,
        index: ImpactIndex | ShardedIndex,
        encode: Callable[[list[str]], Any],
        *,
        texts: Texts | None = None,
        name: str = "index",
        most_characters: int = 500,
        most_hits: int = 100,
    ):
        self.index, self.texts, self.name = index, texts, name
        self.most_characters = check_integer("most_characters", most_characters, at_least=1)
        self.most_hits = check_integer("most_hits", most_hits, at_least=1)
        self._encode, self._turn = encode, threading.Lock()

    def about(self) -> dict[str, Any]:
        """What there is to search."""
        return {"name": self.name, "documents": self.index.documents, "terms": self.index.terms,
                "postings": self.index.postings, "most_characters": self.most_characters,
                "most_hits": self.most_hits}  # fmt: skip

    def answer(self, text: str, k: int = 10) -> dict[str, Any]:
        """The k best documents for a text: id, score, title, the text's beginning, and the terms that matched.

        Raises
        ------
        InputError : a text or a k beyond the bounds.
        """
        if len(text) > self.most_characters:
            raise InputError(f"q: got {len(text)} characters, want at most {self.most_characters}")
        check_integer("k", k, at_least=1, at_most=self.most_hits)
        start = time.perf_counter()
        with self._turn:
            query = self._encode([text])
        encoded = time.perf_counter()
        found = self.index.search(query, k, n_threads=1)
        searched = time.perf_counter()
        whole = as_queries(query, self.index.terms, self.index._columns)
        ids = found.ids[0].tolist()
        reasons = self.index.reasons(query, ids)
        names = self.index.vocabulary
        asked = sorted(zip(whole.terms.tolist(), (whole.weights * whole.unit[0]).tolist()), key=lambda row: -row[1])
        return {
            "query": text, "algorithm": found.algorithm, "why": found.why, "exact": found.exact,
            "encode_seconds": encoded - start, "search_seconds": searched - encoded,
            "terms": [{"term": term if names is None else names[term], "weight": weight} for term, weight in asked],
            "hits": [self._hit(*row) for row in zip(range(1, len(ids) + 1), ids, found.scores[0].tolist(), reasons)],
        }  # fmt: skip

    def _hit(self, rank: int, name: Any, score: float, reasons: dict[str, Any] | None) -> dict[str, Any]:
        told = None if self.texts is None else self.texts.get(name)
        shown = {} if told is None else {"title": told[0], "text": told[1][:SHOWN], "cut": len(told[1]) > SHOWN}
        return {"rank": rank, "id": name, "score": score, **shown, "terms": reasons["terms"] if reasons else []}

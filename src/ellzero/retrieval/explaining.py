"""Why documents have their scores: what each term of a query adds.

Lives here: ``contributions``. Does not live here: search (``index``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ellzero.retrieval.quantise import Queries
from ellzero.retrieval.segments import Segment

__all__ = ["contributions"]


def contributions(
    segments: Sequence[Segment], query: Queries, documents: Sequence[Any], scale: float, names: Sequence[str] | None
) -> list[dict[str, Any] | None]:
    """``{"id", "score", "terms": [{"term", "query", "document", "score"}, ...]}`` per document, None for unknown ones.

    The largest contribution stands first; the numbers are those that the index works with. A term's list is decoded
    once for all documents.

    Parameters
    ----------
    query : one query, in whole numbers. scale : the weight of one level. names : of the terms, or None for columns.
    """
    unit = float(query.unit[0])
    rows: list[list] = [[] for _ in documents]
    totals: list[int | None] = [None] * len(documents)
    for segment in segments:
        ranks = segment.find(documents)
        places = np.flatnonzero(ranks >= 0)
        if not len(places):
            continue
        by_number = np.asarray(segment.lists.arrays.rank, np.int64)
        there = np.flatnonzero(np.isin(by_number, ranks[places]))
        number = dict(zip(by_number[there].tolist(), there.tolist()))
        numbers = np.array([number[rank] for rank in ranks[places].tolist()], np.int64)
        for place in places:
            totals[place] = 0
        for term, weight in zip(query.terms.tolist(), query.weights.tolist()):
            docs, impacts = segment.lists.postings(term)
            at = np.minimum(np.searchsorted(docs, numbers), max(len(docs) - 1, 0))
            for place in np.flatnonzero(docs[at] == numbers) if len(docs) else ():
                document, impact = places[place], int(impacts[at[place]])
                gain = weight * impact
                totals[document] += gain
                name = term if names is None else names[term]
                rows[document].append({"term": name, "query": weight * unit, "document": impact * scale,
                                       "score": gain * (unit * scale)})  # fmt: skip
    return [
        None if total is None else {"id": name, "score": total * (unit * scale),
                                    "terms": sorted(terms, key=lambda row: -row["score"])}
        for name, total, terms in zip(documents, totals, rows)
    ]  # fmt: skip

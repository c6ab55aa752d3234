"""Hard negatives: what retrievers rank high for a query and is not known to answer it.

Lives here: ``mine_negatives``, and ``Negatives`` to draw from. Does not live here: search (``index``), losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.rng import rng

__all__ = ["Negatives", "mine_negatives"]


@dataclass(frozen=True)
class Negatives:
    """Candidates of each query by id, the hardest first, and how many were left out and why."""

    ids: Mapping[str, list[Any]]
    known: int = 0
    """Left out as judged relevant."""
    doubtful: int = 0
    """Left out because the teacher takes them for answers."""

    def __getitem__(self, query: str) -> list[Any]:
        return self.ids[query]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def draw(self, query: str, count: int, seed: int = 0) -> list[Any]:
        """``count`` different candidates of a query, or all where there are fewer, drawn evenly."""
        found = self.ids[query]
        if count >= len(found):
            return list(found)
        chosen = rng(seed, "negatives", query).choice(len(found), count, replace=False)
        return [found[place] for place in sorted(chosen)]


def mine_negatives(
    index: Any,
    queries: Any,
    qrels: Mapping[str, Mapping[str, int]],
    depth: int = 100,
    *,
    query_ids: Sequence[str] | None = None,
    skip: int = 0,
    exclude_positives: bool = True,
    teacher: Any = None,
    below: float = 0.95,
) -> Negatives:
    """The ``depth`` best documents of each query from one retriever or several, without what may be an answer.

    Of several retrievers the lists are merged rank by rank, each document once (Formal et al., 2022, mine with an
    ensemble of them).

    Parameters
    ----------
    index : an ``ImpactIndex``, or anything with ``search(Q, k)`` that gives ``ids`` per query; or a sequence of them.
    queries : the queries as that index takes them; a sequence of such, one per index, for several.
    qrels : judgements by query and document. A judgement of 1 and more is a positive.
    depth : of each list.
    query_ids : one per row of ``queries``; by default the keys of ``qrels``.
    skip : so many first ranks of each list are passed over.
    exclude_positives : leave out documents judged relevant.
    teacher : a callable of a query's id and documents' ids that gives their scores. A candidate whose score exceeds
        ``below`` times that of the query's weakest positive is left out: an unjudged answer, it may be (for scores
        below 0, that of the positive itself). Queries without a positive keep all.

    Raises
    ------
    InputError : numbers of queries or indexes that do not fit, ``depth`` below 1, ``below`` outside (0, 1].
    """
    several = isinstance(index, Sequence)
    indexes, asked = (list(index), list(queries)) if several else ([index], [queries])
    if not indexes or len(indexes) != len(asked):
        raise InputError(f"queries: got {len(asked)} sets for {len(indexes)} indexes, want one for each")
    check_integer("depth", depth, at_least=1)
    check_integer("skip", skip, at_least=0)
    check("below", below, above=0, at_most=1)
    names = [str(name) for name in (qrels if query_ids is None else query_ids)]
    lists = [held.search(rows, skip + depth).ids for held, rows in zip(indexes, asked)]
    for found in lists:
        if len(found) != len(names):
            raise InputError(f"query_ids: got {len(names)}, want one for each of the {len(found)} queries")
    kept, known, doubtful = {}, 0, 0
    for place, name in enumerate(names):
        good = {document for document, value in qrels.get(name, {}).items() if value >= 1}
        merged = _merged([found[place][skip:].tolist() for found in lists])
        candidates = [d for d in merged if str(d) not in good] if exclude_positives else merged
        known += len(merged) - len(candidates)
        sure = candidates if teacher is None or not good else _surely(teacher, name, candidates, sorted(good), below)
        doubtful += len(candidates) - len(sure)
        kept[name] = sure
    return Negatives(kept, known, doubtful)


def _merged(lists: Sequence[list[Any]]) -> list[Any]:
    """Rank by rank, each document where it stands first."""
    found: dict[Any, None] = {}
    for rank in range(max(map(len, lists), default=0)):
        for each in lists:
            if rank < len(each):
                found.setdefault(each[rank])
    return list(found)


def _surely(teacher: Any, query: str, candidates: list[Any], good: list[str], below: float) -> list[Any]:
    if not candidates:
        return []
    scores = np.asarray(teacher(query, [*candidates, *good]), np.float64)
    if scores.shape != (len(candidates) + len(good),):
        raise InputError(f"teacher: gave shape {scores.shape} for {len(candidates) + len(good)} documents")
    weakest = scores[len(candidates) :].min()
    most = below * weakest if weakest > 0 else weakest
    return [document for document, score in zip(candidates, scores) if score <= most]

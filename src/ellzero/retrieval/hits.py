"""What a search gives back.

Lives here: ``Hits`` and how one batch of a search ran. Does not live here: the search (``index``), files of runs
(``runs``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ellzero.errors import InputError

__all__ = ["Hits"]


@dataclass(frozen=True)
class Hits:
    """The best documents of each query, by score descending, then by id ascending.

    Attributes
    ----------
    ids, scores : one array per query; fewer than k entries where fewer documents match.
    algorithm, why : which one ran, and for what reason.
    exact : whether the list is the exhaustive one (``alpha = beta = 1``).
    windows_scored, windows_left, postings : totals over the batch; a window is 64 blocks of documents.
    """

    ids: list[np.ndarray]
    scores: list[np.ndarray]
    algorithm: str
    why: str
    exact: bool = True
    windows_scored: int = 0
    windows_left: int = 0
    postings: int = 0
    k: int = field(default=0)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[query], self.scores[query]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter(zip(self.ids, self.scores))

    def as_run(self, query_ids: Sequence[Any] | None = None) -> dict[str, dict[str, float]]:
        """``{query: {document: score}}`` with ids as text, as evaluation tools take it."""
        names = range(len(self)) if query_ids is None else query_ids
        if len(names) != len(self):
            raise InputError(f"query_ids: got {len(names)}, want one for each of the {len(self)} queries")
        return {
            str(name): dict(zip(map(str, ids.tolist()), scores.tolist()))
            for name, ids, scores in zip(names, self.ids, self.scores)
        }

    def recall_of(self, exact: Hits) -> float:
        """Mean share of another search's hits that are among these; queries without hits are left out."""
        shares = [len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(self.ids, exact.ids) if len(b)]
        return float(np.mean(shares)) if shares else 1.0

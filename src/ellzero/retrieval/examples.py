"""What a retriever is trained on: queries, documents, and which documents are candidates of which query.

Lives here: ``Examples`` (pairs, triples, lists), the sources that they take batches from, and queries that are cut out
of the documents where there are none. Does not live here: the training (``trainer``), mining (``mining``).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ellzero.errors import InputError, check_integer
from ellzero.retrieval.backbone import Backbone, checked_texts
from ellzero.retrieval.mining import Negatives
from ellzero.retrieval.states import TokenBatch, TokenStates
from ellzero.rng import rng

__all__ = ["Examples", "Texts", "dense_vectors", "sentences", "spans"]

_END = re.compile(r"(?<=[.!?;])\s+")


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts that are run through a backbone whenever a batch of them is taken: ``TokenStates`` without a cache.

    Parameters
    ----------
    states : whether heads need the states at all; without, only the tokenizer runs.
    """

    backbone: Backbone
    texts: Sequence[str]
    states: bool = True

    def __post_init__(self):
        object.__setattr__(self, "texts", checked_texts(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | np.ndarray | Tensor) -> TokenBatch:
        """The batch of some texts, differentiable in the backbone."""
        return self.backbone.batch([self.texts[int(row)] for row in rows], states=self.states)


@dataclass(frozen=True, eq=False)
class Examples:
    """Each example is a query with its candidates, the first of which answers it.

    Parameters
    ----------
    queries, documents : sources with ``take(rows)`` and a length: ``TokenStates`` or ``Texts``.
    asked : ``[n]``, a row of ``queries`` for each example.
    candidates : ``[n, c]``, rows of ``documents``, the positive in column 0 and -1 where a list is shorter. With c = 1
        there are pairs, whose negatives are the other examples of the batch.
    answers : which documents are known to answer which query, boolean CSR ``[queries, documents]``: never taken for
        negatives. By default the positives of the examples.

    Raises
    ------
    InputError : no example, rows that are not there, an example without a positive.
    """

    queries: Any
    documents: Any
    asked: np.ndarray
    candidates: np.ndarray
    answers: Any = None

    def __post_init__(self):
        asked, candidates = np.asarray(self.asked, np.int64), np.asarray(self.candidates, np.int64)
        candidates = candidates[:, None] if candidates.ndim == 1 else candidates
        if asked.ndim != 1 or candidates.ndim != 2 or len(asked) != len(candidates) or not len(asked):
            raise InputError(f"candidates: got {candidates.shape} for {asked.shape}, want [n, c] and [n], n at least 1")
        for name, rows, most, least in (("asked", asked, len(self.queries), 0),
                                        ("candidates", candidates, len(self.documents), -1)):  # fmt: skip
            if rows.size and not least <= rows.min() <= rows.max() < most:
                raise InputError(f"{name}: got rows {rows.min()} to {rows.max()}, want {least} to {most - 1}")
        if (candidates[:, 0] < 0).any():
            raise InputError("candidates: want a positive in column 0 of every example")
        answers = self.answers
        shape = (len(self.queries), len(self.documents))
        if answers is None:
            answers = sparse.csr_array((np.ones(len(asked), bool), (asked, candidates[:, 0])), shape=shape)
        if answers.shape != shape:
            raise InputError(f"answers: got shape {answers.shape}, want {shape}")
        for name, value in (("asked", asked), ("candidates", candidates), ("answers", sparse.csr_array(answers))):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.asked)

    @classmethod
    def from_qrels(
        cls,
        queries: Any,
        documents: Any,
        query_ids: Sequence[str],
        document_ids: Sequence[str],
        qrels: Mapping[str, Mapping[str, int]],
        *,
        negatives: Negatives | None = None,
        count: int = 1,
        seed: int = 0,
    ) -> Examples:
        """One example for each judgement of at least 1, with ``count`` mined negatives of the query if there are any.

        Raises
        ------
        InputError : no judgement of a query and a document that are there.
        """
        column = {str(name): place for place, name in enumerate(document_ids)}
        asked, rows, pairs = [], [], []
        for place, query in enumerate(map(str, query_ids)):
            good = [column[d] for d, value in qrels.get(query, {}).items() if value >= 1 and d in column]
            pairs += [(place, document) for document in good]
            for number, document in enumerate(good):
                drawn: list[Any] = []
                if negatives is not None:
                    drawn = negatives.draw(query, check_integer("count", count, at_least=1), seed + number)
                asked.append(place)
                found = [column[str(name)] for name in drawn]
                rows.append([document, *found, *[-1] * ((count if negatives is not None else 0) - len(found))])
        if not rows:
            raise InputError("qrels: judge no document of these as answering one of these queries")
        shape = (len(query_ids), len(document_ids))
        answers = sparse.csr_array((np.ones(len(pairs), bool), tuple(np.array(pairs).T)), shape=shape)
        return cls(queries, documents, np.array(asked), np.array(rows), answers)


def sentences(
    texts: Sequence[str], per_text: int = 4, *, fewest: int = 4, most: int = 32, seed: int = 0
) -> tuple[list[str], np.ndarray]:
    """Queries without labels: up to ``per_text`` sentences drawn from each text, and the row of the text each is from.

    Parameters
    ----------
    fewest, most : words of a sentence; a longer one is cut, and a text without a sentence of ``fewest`` words gives its
        first words.
    """
    check_integer("per_text", per_text, at_least=1)
    check_integer("most", most, at_least=check_integer("fewest", fewest, at_least=1))
    found: list[str] = []
    rows: list[int] = []
    for row, text in enumerate(checked_texts(texts)):
        parts = [part.split()[:most] for part in _END.split(text)]
        parts = [part for part in parts if len(part) >= fewest] or [text.split()[:most]]
        if not parts[0]:
            continue
        draw = rng(seed, "sentences", row)
        for place in sorted(draw.permutation(len(parts))[:per_text]):
            found.append(" ".join(parts[place]))
            rows.append(row)
    if not found:
        raise InputError("texts: got none with a word, want documents to draw sentences from")
    return found, np.array(rows)


def spans(
    states: TokenStates, ends: Sequence[int], per_text: int = 4, *, fewest: int = 4, most: int = 32, seed: int = 0
) -> tuple[TokenStates, np.ndarray]:
    """As ``sentences``, of cached states: runs of a text's own tokens, whose states know the rest of their text.

    Parameters
    ----------
    ends : pieces that end a sentence. fewest, most : tokens; a text without a run of ``fewest`` gives its first tokens.

    Returns
    -------
    The runs as token states, from which ``dense_vectors`` makes a teacher's queries at no cost, and the row of the text
    that each is from.
    """
    check_integer("per_text", per_text, at_least=1)
    check_integer("most", most, at_least=check_integer("fewest", fewest, at_least=1))
    pieces, own = states.pieces.numpy(), ~states.special.numpy()
    stop = np.isin(pieces, np.asarray(list(ends), np.int64)) | ~own
    taken: list[np.ndarray] = []
    rows: list[int] = []
    for row in range(len(states)):
        first, last = int(states.starts[row]), int(states.starts[row + 1])
        cuts = [first - 1, *(first + np.flatnonzero(stop[first:last])).tolist(), last]
        parts = [np.arange(a + 1, min(b, a + 1 + most)) for a, b in itertools.pairwise(cuts) if b - a > fewest]
        if not parts:
            parts = [first + np.flatnonzero(own[first:last])[:most]]
        if not len(parts[0]):
            continue
        draw = rng(seed, "spans", row)
        for place in sorted(draw.permutation(len(parts))[:per_text]):
            taken.append(parts[place])
            rows.append(row)
    if not taken:
        raise InputError("states: of texts without a token of their own, want documents to draw queries from")
    place = torch.from_numpy(np.concatenate(taken))
    starts = torch.tensor([0, *map(len, taken)]).cumsum(0)
    return TokenStates(states.states[place], states.pieces[place], states.special[place], starts), np.array(rows)


def dense_vectors(source: Any, batch_size: int = 64) -> Tensor:
    """The mean token state of each text, scaled to length 1: ``[texts, d]``, as mean-pooling sentence encoders do."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(source), check_integer("batch_size", batch_size, at_least=1)):
            batch = source.take(np.arange(start, min(start + batch_size, len(source))))
            counted = (batch.mask if batch.echo is None else batch.echo)[..., None]
            parts.append((batch.states * counted).sum(1) / counted.sum(1).clamp_min(1))
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)

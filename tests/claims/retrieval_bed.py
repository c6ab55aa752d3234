"""The bed on which claims about learned sparse retrieval are checked: a frozen sentence encoder's token states.

Whole: MED (1,033 documents, 30 queries) and Cranfield (1,400, 225) in ``ELLZERO_DATA``, texts cut to 128 tokens. Small:
240 documents of MED cut to 48 tokens, half of them answers. States are computed once, which takes minutes for the whole
ones, and kept beside pytest's own cache. Tests reach it through the fixture ``bed``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from ellzero.data import sets
from ellzero.retrieval import BM25Vectorizer, ImpactIndex, evaluate
from ellzero.retrieval.examples import Examples, dense_vectors, sentences
from ellzero.retrieval.states import TokenStates
from ellzero.retrieval.teachers import DenseTeacher
from ellzero.rng import rng
from tests.claims.minilm_bed import minilm_folder

LENGTH, SHORT, FEW, SENTENCES = 128, 48, 240, 700


@dataclass(frozen=True, eq=False)
class Bed:
    """A collection with judgements, and the token states of its documents and queries."""

    name: str
    backbone: Any
    ids: list[str]
    texts: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: dict[str, dict[str, int]]
    states: Any
    query_states: Any
    kept: Path | None = None
    told: tuple[Any, np.ndarray] | None = None

    @cached_property
    def sentences(self) -> tuple[TokenStates, np.ndarray]:
        """Queries that nobody judged: at most 700 sentences, of a document each, and the row of that document."""
        if self.told is not None:
            return self.told
        drawn, rows = sentences(self.texts, 1, seed=0, most=20)
        chosen = rng(0, "sentences of", self.name).permutation(len(rows))[:SENTENCES]
        texts = [drawn[place] for place in chosen]
        return _states(self.kept, f"{self.name}-sentence", texts, self.backbone.max_length), rows[chosen]

    def taught(self) -> tuple[Examples, DenseTeacher]:
        """The sentences, each with the document it is from, and the backbone's own cosines times 20 as the teacher."""
        asked, rows = self.sentences
        teacher = DenseTeacher(20 * dense_vectors(asked), dense_vectors(self.states))
        return Examples(asked, self.states, np.arange(len(rows)), rows), teacher

    def cut(self, tokens: int) -> Bed:
        """The same texts, cut to fewer tokens."""
        asked, rows = self.sentences
        return replace(self, states=first_tokens(self.states, range(len(self.ids)), tokens), told=(asked, rows))

    def of_sentences(self, few: int, tokens: int) -> Bed:
        """The bed on which settings are chosen, without a judged query: the documents of the first ``few`` sentences.

        Half of those sentences train; the others are its queries, each answered by the document that it is from.
        """
        asked, rows = self.sentences
        rows, half = rows[:few], few // 2
        states, ids = first_tokens(self.states, rows, tokens), [self.ids[row] for row in rows]
        held = [f"s{place}" for place in range(half, few)]
        return replace(
            self, ids=ids, texts=[self.texts[row] for row in rows], states=states, query_ids=held, queries=[],
            query_states=first_tokens(asked, range(half, few), tokens),
            qrels={f"s{place}": {ids[place]: 1} for place in range(half, few)},
            told=(first_tokens(asked, range(half), tokens), np.arange(half)),
        )  # fmt: skip

    def ndcg(self, Q: Any, X: Any) -> np.ndarray:
        """nDCG@10 of each query, searched through an index of 8 bits."""
        run = ImpactIndex.build(sparse.csr_array(X), self.ids).search(sparse.csr_array(Q), 100).as_run(self.query_ids)
        found = evaluate(run, self.qrels, ["nDCG@10"])["nDCG@10"]
        return np.array([found[query] for query in self.query_ids])

    def bm25(self) -> np.ndarray:
        """nDCG@10 of BM25, by query."""
        model = BM25Vectorizer()
        rows = model.fit_transform(self.texts)
        return self.ndcg(model.transform_queries(self.queries), rows)

    def rows(self, encoder: Any) -> tuple[Any, Any]:
        """Queries and documents as an encoder writes them."""
        return encoder.encode_states(self.query_states, "query"), encoder.encode_states(self.states)


def interval(gains: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The paired bootstrap's 95 % interval of a mean gain over queries."""
    chosen = rng(0, "bootstrap").integers(0, len(gains), (draws, len(gains)))
    low, high = np.quantile(gains[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def thinned(X, mean):
    """The largest weights of all, so many that documents have that mean number of terms."""
    X = sparse.csr_array(X)
    keep = int(mean * X.shape[0])
    if keep >= X.nnz:
        return X
    cut = np.partition(X.data, -keep)[-keep]
    out = X.copy()
    out.data[out.data < cut] = 0
    out.eliminate_zeros()
    return out


@cache
def backbone(length: int) -> Any:
    """The sentence encoder, or a skip that says what is missing."""
    folder = minilm_folder()
    pytest.importorskip("transformers")
    pytest.importorskip("Stemmer", reason="the extra `retrieval`")
    from ellzero.retrieval.backbone import Backbone

    return Backbone.load(folder, length)


def first_tokens(states: TokenStates, rows: Any, tokens: int) -> TokenStates:
    """The states of some texts, each cut to so many tokens."""
    starts = states.starts.tolist()
    lines = [torch.arange(starts[row], min(starts[row + 1], starts[row] + tokens)) for row in rows]
    flat, ends = torch.cat(lines), torch.tensor([0, *map(len, lines)]).cumsum(0)
    return TokenStates(states.states[flat], states.pieces[flat], states.special[flat], ends)


def _states(kept: Path | None, label: str, texts: list[str], length: int) -> TokenStates:
    path = None if kept is None else kept / f"{label}-{length}.safetensors"
    if path is not None and path.is_file():
        return TokenStates.load(path)
    made = TokenStates.of(backbone(length), texts, dtype="float16")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    return made


@cache
def load(name: str, kept: Path | None = None, few: bool = False) -> Bed:
    """The bed of a collection, or a small part of it; ``kept`` is a folder for the states."""
    from tests.claims.test_retrieval import CRANFIELD, MED, cranfield, med

    if (reason := sets.missing(*(MED if name == "med" else CRANFIELD))) is not None:
        pytest.skip(reason)
    length = SHORT if few else LENGTH
    body = backbone(length)
    docs, queries, qrels = (med if name == "med" else cranfield)()
    if few:
        queries = queries[:10]
        answers = {d for query, _ in queries for d, value in qrels[query].items() if value >= 1}
        good = [place for place, (doc, _) in enumerate(docs) if doc in answers][: FEW // 2]
        rest = rng(0, "few").permutation([place for place, (doc, _) in enumerate(docs) if doc not in answers])
        docs = [docs[place] for place in sorted([*good, *rest[: FEW - len(good)].tolist()])]
    ids, texts = [doc for doc, _ in docs], [text for _, text in docs]
    qrels = {query: {d: v for d, v in qrels[query].items() if d in set(ids)} for query, _ in queries}
    asked = [text for _, text in queries]
    label = f"{name}-few" if few else name
    held = _states(kept, f"{label}-documents", texts, length), _states(kept, f"{label}-questions", asked, length)
    return Bed(label, body, ids, texts, [query for query, _ in queries], asked, qrels, *held, kept)

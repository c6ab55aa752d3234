"""Ways to search a collection with few terms per document, as methods of the comparison: nDCG@10 against terms.

Lives here: ``Weighed`` (BM25), ``TrainedRetriever`` (any recipe), what they fit, and the parts of the data they see.
Does not live here: the split or the report (``compare``), the training (``from_corpus``). Every method searches through
the same index of 8-bit impacts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import check, check_integer
from ellzero.io.atomic import write_json
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.retrieval.bm25 import BM25Vectorizer
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.measures import evaluate, means
from ellzero.rng import rng

__all__ = ["Asked", "Documents", "FittedRetriever", "TrainedRetriever", "Weighed", "largest_terms", "methods"]

INDEX, FACTS = "index", "retrieval.json"


@dataclass(frozen=True, eq=False)
class Asked:
    """A part of the queries with their judgements; rows of a part are its queries."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, int]]

    @property
    def shape(self) -> tuple[int]:
        """``(queries,)``."""
        return (len(self.ids),)


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents, which all parts share, and the encoder below the learned methods."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    model: str | None = None
    length: int = 256
    steps: int = 160
    cache: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def backbone(self) -> Any:
        """The encoder's model."""
        from ellzero.retrieval.backbone import Backbone

        return Backbone.load(self.model, self.length)

    @cached_property
    def states(self) -> Any:
        """Token states of the documents, computed once for all methods."""
        from ellzero.retrieval.from_corpus import document_states

        return document_states(self.backbone, self.texts)


def largest_terms(X: Any, k: int) -> sparse.csr_array:
    """The k largest weights of each row; equal ones by column."""
    X = sparse.csr_array(X)
    check_integer("k", k, at_least=1)
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    order = np.lexsort((X.indices, -X.data, row))
    kept = np.sort(order[np.arange(X.nnz) - X.indptr[row] < k])
    starts = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=X.shape[0]))])
    return sparse.csr_array((X.data[kept], X.indices[kept], starts), shape=X.shape)


class FittedRetriever:
    """An encoder with the index of its documents; ``realised`` is the mean number of terms of a document.

    Parameters
    ----------
    encoder : with ``encode_query``, ``vocabulary`` and ``save``. rows : documents as it writes them. ids : theirs.
    """

    def __init__(self, encoder: Any, rows: Any, ids: Sequence[str]):
        self.encoder, self.rows, self.ids = encoder, rows, list(ids)
        self.index = ImpactIndex.build(rows, self.ids)
        self.realised = rows.nnz / max(rows.shape[0], 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        return self.index.nbytes

    def score(self, part: Asked) -> float:
        """Mean nDCG@10 of a part's queries."""
        found = self.index.search(self.encoder.encode_query(list(part.texts)), 10).as_run(part.ids)
        return means(evaluate(found, part.qrels, ["nDCG@10"]))["nDCG@10"]

    def time(self, part: Asked, repeats: int = 3) -> float:
        """Median seconds from a query's text to its ten hits, one at a time on one thread, after a warm-up."""
        found = []
        for place in range(repeats + 1):
            for text in part.texts[:50]:
                start = time.perf_counter()
                self.index.search(self.encoder.encode_query([text]), 10, n_threads=1)
                found += [time.perf_counter() - start] if place else []
        return float(np.median(found))

    def facts(self, part: Asked) -> dict[str, float]:
        """Postings that a query's terms have in all, of this part's queries; and what the index holds."""
        Q = sparse.csr_array(self.encoder.encode_query(list(part.texts)))
        lengths = np.bincount(self.rows.indices, minlength=self.rows.shape[1])
        touched = float(lengths[Q.indices].sum() / max(Q.shape[0], 1))
        return {"postings_touched": touched, "query_terms": Q.nnz / max(Q.shape[0], 1), "terms": self.realised,
                "postings": int(self.rows.nnz), "nbytes": self.nbytes}  # fmt: skip

    def save(self, directory: Path) -> None:
        """``index/`` with its encoder, as ``ellzero search`` and ``ellzero serve`` read it, and ``retrieval.json``."""
        from ellzero.retrieval.encoders import BM25_FILE, FOLDER

        home = Path(directory) / INDEX
        ImpactIndex.build(self.rows, self.ids, vocabulary=self.encoder.vocabulary, path=home)
        self.encoder.save(home / (BM25_FILE if isinstance(self.encoder, BM25Vectorizer) else FOLDER))
        write_json(Path(directory) / FACTS, {"documents": len(self.ids), "terms": self.realised, "nbytes": self.nbytes})


@register(kind="method", wing="retrieval", source="Robertson & Zaragoza (2009)")
@dataclass(frozen=True)
class Weighed:
    """BM25, each document cut to its largest weights; uncut, it is the baseline of every comparison."""

    name: str = "bm25-cut"
    k1: float = 1.2
    b: float = 0.75
    dense: bool = False

    def candidates(self, trials: int, seed: int) -> Sequence[Weighed]:
        """Itself, then k1 within 0.6..2 and b within 0.3..0.9."""
        check_integer("trials", trials, at_least=1)
        stream = rng(seed, "candidates", self.name)
        drawn = zip(stream.uniform(0.6, 2.0, trials - 1), stream.uniform(0.3, 0.9, trials - 1))
        return [self, *(replace(self, k1=round(float(k1), 2), b=round(float(b), 2)) for k1, b in drawn)]

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedRetriever]:
        """One weighting, cut at each budget."""
        documents = data.info["documents"]
        model = BM25Vectorizer(k1=self.k1, b=self.b)
        rows = model.fit_transform(documents.texts)
        for budget in (None,) if self.dense else budgets:
            kept = rows if budget is None else largest_terms(rows, int(budget))
            yield FittedRetriever(model, kept, documents.ids)


@register(kind="method", wing="retrieval", id="S054", source="arXiv:2107.05720; arXiv:2303.13416", extra="hf",
          example=lambda: TrainedRetriever("label-free"))  # fmt: skip
@dataclass(frozen=True)
class TrainedRetriever:
    """A recipe's encoder, trained once and cut at each budget to the largest weights of each document.

    Parameters
    ----------
    name : of a recipe, with hyphens. penalty : factor on the weights of its penalties, what is tuned.
    """

    name: str
    penalty: float = 1.0
    dense: bool = False

    def __post_init__(self):
        check("penalty", self.penalty, at_least=0)

    def candidates(self, trials: int, seed: int) -> Sequence[TrainedRetriever]:
        """Itself, then penalties drawn log-uniformly between a tenth and ten times the recipe's."""
        check_integer("trials", trials, at_least=1)
        drawn = 10 ** rng(seed, "candidates", self.name).uniform(-1, 1, trials - 1)
        return [self, *(replace(self, penalty=float(f"{factor:.3g}")) for factor in drawn)]

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedRetriever]:
        """One training, whatever the budgets."""
        encoder, rows = self._trained(data, seed)
        for budget in budgets:
            cut = copy.copy(encoder)
            cut.document_terms = int(budget)
            yield FittedRetriever(cut, largest_terms(rows, int(budget)), data.info["documents"].ids)

    def _trained(self, data: Data, seed: int) -> tuple[Any, sparse.csr_array]:
        from ellzero.retrieval.from_corpus import train_on_corpus
        from ellzero.retrieval.recipes import recipe

        documents, made = data.info["documents"], recipe(self.name).penalised(self.penalty)
        given = () if self.name == "label-free" else (list(data.train.texts), answers(data.train, documents.ids))
        trained = train_on_corpus(
            replace(made, steps=documents.steps), documents.backbone, documents.texts, *given,
            states=documents.states, seed=seed,
        ).encoder  # fmt: skip
        return trained, trained.encode_states(documents.states)


def answers(part: Asked, ids: Sequence[str]) -> sparse.csr_array:
    """Which documents are judged relevant to which query."""
    column = {name: place for place, name in enumerate(ids)}
    pairs = [(row, column[document]) for row, query in enumerate(part.ids)
             for document, value in part.qrels.get(query, {}).items() if value >= 1 and document in column]  # fmt: skip
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return sparse.csr_array((np.ones(len(pairs), bool), (rows, columns)), shape=(len(part.ids), len(ids)))


def methods(learned: bool) -> dict[str, Any]:
    """The methods of the comparison by name: BM25, whole and cut, and every recipe where there is a model for them."""
    found: dict[str, Any] = {"bm25": Weighed("bm25", dense=True), "bm25-cut": Weighed()}
    if learned:
        from ellzero.retrieval.recipes import RECIPES

        found |= {name.replace("_", "-"): TrainedRetriever(name.replace("_", "-")) for name in RECIPES}
    return found

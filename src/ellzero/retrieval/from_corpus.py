"""A recipe run over a collection: token states, teachers, mined negatives, rounds of training, an encoder at the end.

Lives here: ``train_on_corpus`` and ``Sides``, what a collection's queries and documents are to each kind of retriever.
Does not live here: recipes (``recipes``), the training of one round (``trainer``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ellzero.errors import InputError, check_integer
from ellzero.retrieval.backbone import Backbone, checked_texts
from ellzero.retrieval.bm25 import BM25Vectorizer
from ellzero.retrieval.dense import DenseIndex
from ellzero.retrieval.encoder import SparseEncoder
from ellzero.retrieval.examples import Examples, Texts, dense_vectors, sentences, spans
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.mining import mine_negatives
from ellzero.retrieval.recipes import TrainingRecipe
from ellzero.retrieval.states import TokenStates
from ellzero.retrieval.teachers import DenseTeacher, SparseTeacher, TeacherEnsemble
from ellzero.retrieval.trainer import SparseTrainer
from ellzero.rng import rng

__all__ = ["Sides", "TrainedOnCorpus", "document_states", "train_on_corpus"]

STATES = "states.safetensors"
_ENDS = (".", "!", "?", ";")


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides of a training set, as each kind of retriever and teacher wants them.

    Parameters
    ----------
    documents : texts. states : their cached token states, or None where the body is trained too.
    queries : texts. query_states : their cached token states, or None.
    answers : boolean CSR ``[queries, documents]``.
    """

    backbone: Backbone
    documents: Sequence[str]
    states: TokenStates | None
    queries: Sequence[str]
    query_states: TokenStates | None
    answers: Any

    @cached_property
    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries and documents as the body's mean states, of length 1."""
        found = []
        for cached, texts in ((self.query_states, self.queries), (self.states, self.documents)):
            with torch.no_grad():
                found.append(dense_vectors(Texts(self.backbone, texts) if cached is None else cached).numpy())
        return found[0], found[1]

    @cached_property
    def bm25(self) -> tuple[Any, Any]:
        """Queries and documents as BM25 has them."""
        model = BM25Vectorizer()
        rows = model.fit_transform(self.documents)
        return model.transform_queries(self.queries), rows

    def retriever(self, name: str, encoder: SparseEncoder, seed: int) -> tuple[Any, Any]:
        """Something that searches, and the queries as it takes them; documents by row."""
        if name == "random":
            return _Random(len(self.documents), seed), self.queries
        if name == "dense":
            return DenseIndex(self.dense[1]), self.dense[0]
        if name == "bm25":
            return ImpactIndex.build(self.bm25[1]), self.bm25[0]
        rows = encoder.encode_document(self.documents) if self.states is None else encoder.encode_states(self.states)
        return ImpactIndex.build(rows), self.asked(encoder)

    def asked(self, encoder: SparseEncoder) -> Any:
        """The queries as an encoder's rows."""
        if self.query_states is None:
            return encoder.encode_query(self.queries)
        return encoder.encode_states(self.query_states, "query")

    def teacher(
        self, names: Sequence[str], shares: Sequence[float] | None = None, scale: float = 1.0
    ) -> TeacherEnsemble | None:
        """The teachers of these names as one, or None."""
        made = {"dense": lambda: DenseTeacher(*self.dense), "bm25": lambda: SparseTeacher(*self.bm25)}
        return TeacherEnsemble([made[name]() for name in names], shares, scale) if names else None


class _Random:
    """Documents at random, as if they had been found."""

    def __init__(self, documents: int, seed: int):
        self.documents, self.seed = documents, seed

    def search(self, Q: Sequence[Any], k: int) -> Hits:
        k = min(k, self.documents)
        found = [rng(self.seed, "random", place).choice(self.documents, k, replace=False) for place in range(len(Q))]
        return Hits(found, [np.zeros(k)] * len(found), "random", "drawn evenly")


@dataclass(frozen=True, eq=False)
class TrainedOnCorpus:
    """A trained encoder, and per round the first and last losses and how many candidates were mined."""

    encoder: SparseEncoder
    rounds: tuple[dict[str, float], ...]


def train_on_corpus(
    recipe: TrainingRecipe,
    backbone: Backbone,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    answers: Any = None,
    *,
    states: TokenStates | None = None,
    query_states: TokenStates | None = None,
    body: bool = False,
    per_text: int = 2,
    cut: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> TrainedOnCorpus:
    """Train an encoder on documents, with queries and their answers or with queries cut out of the documents.

    Parameters
    ----------
    recipe : of ``recipes``.
    documents, queries : texts. answers : boolean sparse ``[queries, documents]``; given with ``queries`` or not at all.
    states, query_states : cached token states of them, computed where they are needed and not given.
    body : whether the backbone is trained too, a copy of it in each round; then nothing is cached.
    per_text : queries cut out of each document.
    cut : whether the vocabulary is cut to the documents' pieces.
    checkpoint : a folder to go on from after an interruption: it keeps the states and the training's own checkpoints.

    Raises
    ------
    InputError : queries without answers, answers of another shape, no documents; a recipe that needs a teacher of
        positives where none are judged.
    """
    documents = checked_texts(documents)
    if not documents:
        raise InputError("documents: got none, want at least one")
    if (queries is None) != (answers is None):
        raise InputError("answers: want queries and their answers together, or neither")
    check_integer("per_text", per_text, at_least=1)
    if queries is None and recipe.positive and recipe.negatives == ():
        raise InputError(
            "queries: got none, want some with answers: this recipe has no teacher and no mined candidates"
        )
    home = None if checkpoint is None else Path(checkpoint)
    if not body and states is None:
        states = document_states(backbone, documents, None if home is None else home / STATES)
    sides = _sides(
        backbone, documents, None if body else states, queries, query_states, answers, recipe, per_text, seed
    )
    before, rounds = _fresh(recipe, backbone, documents, cut), []
    for number in range(recipe.rounds):
        encoder = _fresh(recipe, copy.deepcopy(backbone) if body else backbone, documents, cut)
        examples, mined = _examples(recipe, sides, before, encoder, seed + number)
        teacher = sides.teacher(recipe.teachers, recipe.shares, recipe.scale)
        trainer = SparseTrainer(
            encoder, recipe.loss, teacher=teacher, body=body, lr=recipe.lr, rates=recipe.rates, steps=recipe.steps,
            batch_size=recipe.batch_size, columns=recipe.columns, candidates=recipe.candidates, seed=seed + number,
        )  # fmt: skip
        folder = None if home is None else home / f"round-{number + 1}"
        found = trainer.fit(examples, progress=progress, checkpoint=folder)
        losses = list(found.losses.values()) or [float("nan")]
        before = encoder
        rounds.append({"examples": len(examples), **mined, "first": losses[0], "last": losses[-1]})
    return TrainedOnCorpus(encoder, tuple(rounds))


def document_states(backbone: Backbone, documents: Sequence[str], path: Path | None = None) -> TokenStates:
    """Token states of documents, kept in a file where one is named; half precision, which heads do not notice."""
    if path is not None and path.is_file():
        held = TokenStates.load(path)
        if len(held) == len(documents):
            return held
        raise InputError(f"checkpoint: {path} holds {len(held)} texts, want the {len(documents)} documents")
    made = TokenStates.of(backbone, documents, dtype="float16")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    return made


def _fresh(recipe: TrainingRecipe, backbone: Backbone, documents: Sequence[str], cut: bool) -> SparseEncoder:
    """An encoder before training, on the backbone as it is."""
    return recipe.method.encoder(backbone, texts=documents, cut=cut)


def _sides(
    backbone: Backbone, documents: list[str], states: TokenStates | None, queries: Sequence[str] | None,
    query_states: TokenStates | None, answers: Any, recipe: TrainingRecipe, per_text: int, seed: int,
) -> Sides:  # fmt: skip
    """Queries as given, or cut out of the documents: of their cached states, where there are some."""
    if queries is not None:
        queries = checked_texts(queries)
        rows = sparse.csr_array(answers)
        if rows.shape != (len(queries), len(documents)) or not rows.nnz:
            raise InputError(f"answers: got shape {rows.shape} with {rows.nnz} answers, want some of "
                             f"{(len(queries), len(documents))}")  # fmt: skip
        if states is not None and query_states is None:
            query_states = TokenStates.of(backbone, queries)
        return Sides(backbone, documents, states, queries, query_states, rows.astype(bool))
    if states is None:
        asked, own, cached = *sentences(documents, per_text, seed=seed), None
    else:
        known = {piece: number for number, piece in enumerate(backbone.vocabulary)}
        cached, own = spans(states, [known[end] for end in _ENDS if end in known], per_text, seed=seed)
        pieces = cached.pieces.split(cached.starts.diff().tolist())
        asked = [backbone.tokenizer.decode(part.tolist()) for part in pieces]
    shape = (len(asked), len(documents))
    rows = sparse.csr_array((np.ones(len(own), bool), (np.arange(len(own)), own)), shape=shape)
    return Sides(backbone, documents, states, asked, cached, rows)


def _examples(
    recipe: TrainingRecipe, sides: Sides, before: SparseEncoder, encoder: SparseEncoder, seed: int
) -> tuple[Examples, dict[str, float]]:
    """Every answer of every query with mined negatives, or, without the positive, the mined candidates alone."""
    asked, own = sides.answers.tocoo().coords
    states, table = sides.query_states, not encoder.query_head.needs_states
    queries = Texts(encoder.backbone, sides.queries, states=not table) if states is None else states
    documents = Texts(encoder.backbone, sides.documents) if sides.states is None else sides.states
    if not recipe.hard:
        return Examples(queries, documents, asked, own, sides.answers), {}
    mined = _mined(recipe, sides, before, seed)
    drawn = [mined.draw(str(query), recipe.hard, seed + place) for place, query in enumerate(asked.tolist())]
    wide = np.full((len(asked), recipe.hard), -1)
    for place, found in enumerate(drawn):
        wide[place, : len(found)] = found
    if recipe.positive:
        wide = np.concatenate([own[:, None], wide], 1)
    else:
        some = (wide >= 0).sum(1) > 1
        asked, wide = asked[some], wide[some]
    counts = {"mined": float(np.mean([len(found) for found in mined.ids.values()])), "doubtful": float(mined.doubtful)}
    return Examples(queries, documents, asked, wide, sides.answers), counts


def _mined(recipe: TrainingRecipe, sides: Sides, encoder: SparseEncoder, seed: int) -> Any:
    pairs = [sides.retriever(name, encoder, seed) for name in recipe.negatives]
    ptr, columns = sides.answers.indptr, sides.answers.indices
    qrels: Mapping[str, Mapping[str, int]] = {
        str(query): {str(document): 1 for document in columns[ptr[query] : ptr[query + 1]].tolist()}
        for query in range(len(sides.queries))
    }
    told = None
    if recipe.below is not None and recipe.teachers:
        teacher = sides.teacher(recipe.teachers, recipe.shares)

        def told(query: str, candidates: Sequence[Any]) -> np.ndarray:
            return teacher.scores([int(query)], [[int(document) for document in candidates]])[0].numpy()

    return mine_negatives(
        [index for index, _ in pairs], [rows for _, rows in pairs], qrels, recipe.depth, teacher=told,
        below=recipe.below or 1.0,
    )  # fmt: skip

"""The task ``retrieval``: how well is a collection searched with few terms per document?

Lives here: the question, the split of the queries, and ``apply``. Does not live here: the methods
(``ellzero.retrieval.frontier``), reading of files (``ellzero.retrieval.collections``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.retrieval import frontier
from ellzero.retrieval.collections import read_jsonl, read_topics
from ellzero.retrieval.encoders import find_encoder
from ellzero.retrieval.frontier import Asked, Documents
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.runs import read_qrels
from ellzero.rng import rng

__all__ = ["Retrieval"]

FEWEST = 5
"""Judged queries below which no part of them would say anything."""
K = 10


@register(
    kind="task", wing="retrieval", source="none", name="retrieval",
    example=lambda: Retrieval("corpus.jsonl", "queries.tsv", "qrels.txt"),
)  # fmt: skip
@dataclass(frozen=True)
class Retrieval:
    """A collection searched with few terms per document: nDCG@10 of queries not seen, against terms per document.

    The size is the index's, the time one query's from text to hits. ``BM25`` is always there as the baseline.

    Parameters
    ----------
    corpus : JSON lines of documents. queries : JSON lines, or lines of an id, a tab and the text. qrels : TREC's or
        BEIR's judgements.
    model : a folder of a sentence encoder of Hugging Face, for the learned methods; without one there is BM25 alone.
    steps, length : of each training, and tokens at which a text is cut.

    The documents are known to all parts; the queries with judgements are split: three tenths, the same for every seed,
    are the test part, of the rest half is for training (methods without labels do not look at it) and half for
    validation.
    """

    corpus: str
    queries: str
    qrels: str
    model: str | None = None
    steps: int = 160
    length: int = 256

    name: ClassVar[str] = "retrieval"
    fidelity: ClassVar[str] = "nDCG@10"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "terms per document"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = "one query, text to hits, one thread"

    def __post_init__(self):
        check_integer("steps", self.steps, at_least=1)
        check_integer("length", self.length, at_least=8)
        if self.model is not None and not Path(self.model).is_dir():
            raise InputError(f"model: {self.model} is no folder, want one with a sentence encoder")

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, extra: Mapping[str, Any] | None = None, **others: Any
    ) -> Retrieval:  # fmt: skip
        """The task from the command line's options."""
        for option, given in others.items():
            if given is not None:
                raise InputError(f"{option}: the task retrieval takes none, want a collection, --queries and --qrels")
        settings = dict(extra or {})
        queries, qrels = settings.pop("queries", None), settings.pop("qrels", None)
        for option, given in (("data", data), ("queries", queries), ("qrels", qrels)):
            if given is None:
                raise InputError(f"{option}: got none; want a collection, --queries and --qrels")
        known = ("steps", "length")
        for option, value in settings.items():
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task retrieval takes none, want one of {', '.join(known)}{near}")
            if not str(value).isdecimal():
                raise InputError(f"{option}: got {value!r}, want a whole number")
            settings[option] = int(value)
        task = cls(data, queries, qrels, model, **settings)
        task._asked()  # what cannot be read is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Retrieval:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings, a digest of the files, and whose entries the unit counts."""
        total = hashlib.sha256()
        for path in (self.corpus, self.queries, self.qrels):
            with open(path, "rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        entries = {"entry": "posting", "entries_of": len(self._asked()[0].ids)}
        return {**asdict(self), "digest": total.hexdigest()[:16], **entries}

    # -- data

    def _asked(self) -> tuple[Documents, list[tuple[str, str]], dict[str, dict[str, int]]]:
        return _read(self.corpus, self.queries, self.qrels, self.model, self.length, self.steps)

    def _part(self, rows: np.ndarray) -> Asked:
        _, queries, qrels = self._asked()
        chosen = [queries[row] for row in sorted(rows.tolist())]
        return Asked(tuple(name for name, _ in chosen), tuple(text for _, text in chosen),
                     {name: qrels[name] for name, _ in chosen})  # fmt: skip

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries for training, validation and test."""
        count = len(self._asked()[1])
        shuffled = rng(0, "retrieval", "test").permutation(count)
        test, rest = shuffled[: round(0.3 * count)], shuffled[round(0.3 * count) :]
        rest = rest[rng(seed, "retrieval", "validation").permutation(len(rest))]
        return rest[: len(rest) // 2], rest[len(rest) // 2 :], test

    def data(self, seed: int) -> Data:
        """The training and validation queries for one seed, and the documents."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation queries in the training part too."""
        check_choice("which", which, ("train", "all"))
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        return Data(self._part(used), self._part(validation), {"documents": self._asked()[0]})

    def test(self) -> Asked:
        """The test queries."""
        return self._part(self._split(0)[2])

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """BM25 whole and cut to its largest weights, and every recipe where there is a model."""
        return frontier.methods(self.model is not None)

    @property
    def default_methods(self) -> Sequence[str]:
        """BM25, and with a model the recipes whose queries need none."""
        return ("bm25", "bm25-cut", *(("label-free", "inference-free") if self.model is not None else ()))

    def budgets(self, data: Data) -> Sequence[float]:
        """16, 32, 64 and 128 terms."""
        return (16, 32, 64, 128)

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers of terms from 1 on."""
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of terms")
            check("budgets", budget, at_least=1)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """The ten best documents of each query of a file (.jsonl or .tsv), from the taken index."""
        home = Path(directory) / frontier.INDEX
        queries = read_topics(source)
        if not queries:
            raise InputError(f"{source}: has no queries")
        held, encoder = ImpactIndex.load(home), find_encoder(home)
        found = held.search(encoder.encode_query([text for _, text in queries]), K)
        ids = [row.tolist() + [""] * (K - len(row)) for row in found.ids]
        scores = np.array([row.tolist() + [0.0] * (K - len(row)) for row in found.scores])
        columns = {"query": np.array([name for name, _ in queries]), "documents": np.array(ids), "scores": scores}
        return Output(columns, f"the {K} best of {held.documents} documents for each query, best first")


@cache
def _read(
    corpus: str, queries: str, qrels: str, model: str | None, length: int, steps: int
) -> tuple[Documents, list[tuple[str, str]], dict[str, dict[str, int]]]:
    """Documents, and the queries that have judgements, each read once in a process."""
    documents = list(read_jsonl(corpus))
    if not documents:
        raise InputError(f"{corpus}: has no documents")
    ids = [name for name, _ in documents]
    if len(set(ids)) < len(ids):
        raise InputError(f"{corpus}: has an id twice")
    judged, there = read_qrels(qrels), set(ids)
    asked = [(name, text) for name, text in read_topics(queries)
             if any(value >= 1 and document in there for document, value in judged.get(name, {}).items())]  # fmt: skip
    if len(asked) < FEWEST:
        raise InputError(
            f"{qrels}: judges {len(asked)} of the queries with documents that are there, want at least {FEWEST}"
        )
    held = Documents(tuple(ids), tuple(text for _, text in documents), model, length, steps)
    return held, asked, {name: judged[name] for name, _ in asked}

"""BM25 in its five usual forms, as sparse rows for any index.

Lives here: ``BM25Vectorizer``. Does not live here: cutting texts into terms (``tokens``), search (``index``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check, check_choice
from ellzero.io import artefacts
from ellzero.registry import register
from ellzero.retrieval.tokens import WordPieces, Words, tokenizer_from

__all__ = ["BM25Vectorizer"]

KIND, VERSION = "bm25", 1
VARIANTS = ("lucene", "robertson", "atire", "bm25l", "bm25+")


@register(
    kind="method", wing="retrieval", source="Robertson & Zaragoza (2009); Kamphuis et al. (2020)",
    example=lambda: BM25Vectorizer(tokenizer=Words(stemmer=None)),
)  # fmt: skip
class BM25Vectorizer:
    """Weights of terms in documents, so that the BM25 score is the product of a query's counts with a document's row.

    With ``tf`` a term's count, ``L = 1 - b + b |d| / avgdl``, N documents of which n hold the term:

    ========== ======================================== ==================================================
    variant    idf                                      weight / idf
    ========== ======================================== ==================================================
    lucene     ``log(1 + (N - n + 0.5) / (n + 0.5))``   ``tf / (tf + k1 L)``
    robertson  ``log((N - n + 0.5) / (n + 0.5))``, >= 0 ``tf / (tf + k1 L)``
    atire      ``log(N / n)``                           ``tf (k1 + 1) / (tf + k1 L)``
    bm25l      ``log((N + 1) / (n + 0.5))``             ``(k1 + 1) (c + delta) / (k1 + c + delta)``, c = tf / L
    bm25+      ``log((N + 1) / n)``                     ``tf (k1 + 1) / (tf + k1 L) + delta``
    ========== ======================================== ==================================================

    The last two give a term that does not occur a score too; it is the same for every document, so it is taken off
    the rows, and ``constant(queries)`` says how much it was. Forms and names after Kamphuis et al. (2020).

    Parameters
    ----------
    variant : one of the five. k1, b, delta : the saturation, the share of length, and the floor of bm25l and bm25+.
    tokenizer : a callable from text to terms; default ``Words()``: Lucene's stop words, Snowball's English stems.

    Attributes
    ----------
    vocabulary_ : the terms, sorted. idf_ : float64 per term. length_ : mean number of terms of a document.

    Raises
    ------
    InputError : an unknown variant, k1 or delta below 0, b outside [0, 1], no documents.
    """

    def __init__(
        self,
        variant: str = "lucene",
        *,
        k1: float = 1.2,
        b: float = 0.75,
        delta: float = 0.5,
        tokenizer: Callable[[str], list[str]] | None = None,
    ):
        self.variant = check_choice("variant", variant, VARIANTS)
        self.k1 = check("k1", k1, at_least=0, below=np.inf)
        self.b = check("b", b, at_least=0, at_most=1)
        self.delta = check("delta", delta, at_least=0, below=np.inf)
        self.tokenizer = Words() if tokenizer is None else tokenizer

    def fit(self, texts: Iterable[str]) -> BM25Vectorizer:
        """Learn terms, their idf and the mean length from documents, which may be more than memory holds."""
        frequency: Counter[str] = Counter()
        documents = total = 0
        for text in _checked(texts):
            terms = self.tokenizer(text)
            frequency.update(set(terms))
            documents, total = documents + 1, total + len(terms)
        self._learn(sorted(frequency), documents, total)
        self.idf_ = self._idf(np.array([frequency[term] for term in self.vocabulary_], np.float64))
        return self

    def fit_transform(self, texts: Iterable[str]) -> sparse.csr_array:
        """``fit`` and ``transform`` of the same documents, whose texts are read once."""
        return self._weights(*self._fit(texts))

    def transform(self, texts: Iterable[str]) -> sparse.csr_array:
        """Rows of documents, float64 ``[documents, terms]``; terms that ``fit`` did not see count for length only."""
        return self._weights(*self._counts(texts))

    def transform_queries(self, texts: Iterable[str]) -> sparse.csr_array:
        """Rows of queries: how often each known term stands in them."""
        return self._counts(texts)[0]

    @property
    def vocabulary(self) -> list[str]:
        """The terms by column."""
        self._check_fitted()
        return self.vocabulary_

    def encode_document(self, texts: Iterable[str]) -> sparse.csr_array:
        """``transform``, by the name that every encoder has."""
        return self.transform(texts)

    def encode_query(self, texts: Iterable[str]) -> sparse.csr_array:
        """``transform_queries``, by the name that every encoder has."""
        return self.transform_queries(texts)

    def constant(self, queries: Any) -> np.ndarray:
        """What every document's score lacks, by query: nonzero for bm25l and bm25+ only."""
        self._check_fitted()
        if self.variant not in ("bm25l", "bm25+"):
            return np.zeros(queries.shape[0])
        return queries @ (self.idf_ * self._saturated(np.zeros(1), np.ones(1)))

    def _fit(self, texts: Iterable[str]) -> tuple[sparse.csr_array, np.ndarray]:
        columns: dict[str, int] = {}
        flat, lengths = [], []
        for text in _checked(texts):
            terms = self.tokenizer(text)
            flat += [columns.setdefault(term, len(columns)) for term in terms]
            lengths.append(len(terms))
        self._learn(sorted(columns), len(lengths), sum(lengths))
        place = np.array([self._columns[term] for term in columns], np.int64)
        counts = _count(place[np.array(flat, np.int64)], lengths, len(columns))
        self.idf_ = self._idf(np.bincount(counts.indices, minlength=len(columns)).astype(np.float64))
        return counts, np.array(lengths, np.float64)

    def _learn(self, terms: list[str], documents: int, total: int) -> None:
        if not documents:
            raise InputError("texts: got none, want at least one document")
        self.vocabulary_ = terms
        self._columns = {term: column for column, term in enumerate(terms)}
        self.length_ = total / documents or 1.0
        self.documents_ = documents

    def _counts(self, texts: Iterable[str]) -> tuple[sparse.csr_array, np.ndarray]:
        self._check_fitted()
        flat, known, lengths = [], [], []
        for text in _checked(texts):
            terms = self.tokenizer(text)
            found = [self._columns[term] for term in terms if term in self._columns]
            flat += found
            known.append(len(found))
            lengths.append(len(terms))
        return _count(np.array(flat, np.int64), known, len(self.vocabulary_)), np.array(lengths, np.float64)

    def _idf(self, n: np.ndarray) -> np.ndarray:
        N = self.documents_
        odds = (N - n + 0.5) / (n + 0.5)
        return np.log({
            "lucene": 1 + odds, "robertson": np.maximum(odds, 1), "atire": N / n, "bm25l": (N + 1) / (n + 0.5),
            "bm25+": (N + 1) / n,
        }[self.variant])  # fmt: skip

    def _saturated(self, tf: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """The last column of the table; ``relative`` is L."""
        k1 = self.k1
        if self.variant == "bm25l":
            c = tf / relative + self.delta
            return (k1 + 1) * c / (k1 + c) if k1 or self.delta else np.sign(tf)
        ratio = np.divide(tf, tf + k1 * relative, out=np.zeros(len(tf)), where=tf > 0)
        if self.variant in ("lucene", "robertson"):
            return ratio
        return ratio * (k1 + 1) + (self.delta if self.variant == "bm25+" else 0)

    def _weights(self, counts: sparse.csr_array, lengths: np.ndarray) -> sparse.csr_array:
        relative = 1 - self.b + self.b * lengths / self.length_
        each = np.repeat(relative, np.diff(counts.indptr))
        gain = self._saturated(counts.data, each)
        if self.variant in ("bm25l", "bm25+"):
            gain = gain - self._saturated(np.zeros(1), np.ones(1))
        made = sparse.csr_array((gain * self.idf_[counts.indices], counts.indices, counts.indptr), shape=counts.shape)
        made.eliminate_zeros()
        return made

    def _check_fitted(self) -> None:
        if not hasattr(self, "idf_"):
            raise InputError("BM25Vectorizer: is not fitted yet; call fit with the documents")

    def save(self, path: str | os.PathLike) -> None:
        """One file, from which the same weights come back in any process.

        Raises
        ------
        InputError : not fitted, or a tokenizer that has no settings to be made again from.
        """
        self._check_fitted()
        if not isinstance(self.tokenizer, Words | WordPieces):
            raise InputError(f"tokenizer: a {type(self.tokenizer).__name__} cannot be saved; want Words or WordPieces")
        meta = {"variant": self.variant, "k1": self.k1, "b": self.b, "delta": self.delta, "length": self.length_,
                "documents": self.documents_, "tokenizer": self.tokenizer.settings(),
                "terms": self.vocabulary_}  # fmt: skip
        artefacts.save(path, {"idf": self.idf_}, meta, KIND, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> BM25Vectorizer:
        """What ``save`` wrote.

        Raises
        ------
        InputError : a torn, foreign or newer file.
        """
        tensors, meta = artefacts.load(path, KIND, version=VERSION)
        made = cls(meta["variant"], k1=meta["k1"], b=meta["b"], delta=meta["delta"],
                   tokenizer=tokenizer_from(meta["tokenizer"]))  # fmt: skip
        made.vocabulary_, made.idf_, made.length_ = list(meta["terms"]), tensors["idf"], meta["length"]
        made.documents_ = meta["documents"]
        made._columns = {term: column for column, term in enumerate(made.vocabulary_)}
        return made


def _checked(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str):
        raise InputError("texts: got one text, want a list of texts")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts: got {type(text).__name__} at place {place}, want text")
        yield text


def _count(columns: np.ndarray, lengths: list[int], terms: int) -> sparse.csr_array:
    """Counts of terms by document, from the terms of all documents one after another."""
    ptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    made = sparse.csr_array((np.ones(len(columns)), columns, ptr), shape=(len(lengths), terms))
    made.sum_duplicates()
    return made

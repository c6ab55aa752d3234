"""Sparse encoders: a head for queries, a head for documents, and the backbone below both.

Lives here: ``SparseEncoder``, from texts to sparse rows and back to words. Does not live here: the heads (``heads``),
files (``encoder_files``), training (``trainer``), search (``index``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor, nn

from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.parts.constraints import TopK
from ellzero.retrieval.backbone import Backbone, checked_texts
from ellzero.retrieval.heads import Head
from ellzero.retrieval.states import TokenBatch

__all__ = ["SparseEncoder"]


class SparseEncoder(nn.Module):
    """Queries and documents as sparse non-negative rows over one vocabulary; the score is their product.

    Parameters
    ----------
    query_head, document_head : heads of ``heads``; the same object where the two sides share one.
    backbone : what gives the states. query_backbone : another one for queries, where the sides share no body.
    query_terms, document_terms : keep that many of the largest weights of each row, or None for all.

    Raises
    ------
    InputError : heads whose columns are not the same pieces, or a head for another vocabulary.
    """

    def __init__(
        self,
        query_head: Head,
        document_head: Head,
        backbone: Backbone,
        *,
        query_backbone: Backbone | None = None,
        query_terms: int | None = None,
        document_terms: int | None = None,
    ):
        super().__init__()
        self.query_head, self.document_head, self.backbone = query_head, document_head, backbone
        self.query_backbone = query_backbone
        for name, terms in (("query_terms", query_terms), ("document_terms", document_terms)):
            if terms is not None:
                check_integer(name, terms, at_least=1)
        self.query_terms, self.document_terms = query_terms, document_terms
        self.vocabulary = document_head.names(backbone.vocabulary)
        if query_head.names(backbone.vocabulary) != self.vocabulary:
            raise InputError(
                f"query_head: its {query_head.size} columns are not the {document_head.size} of the document head"
            )
        self.eval()

    @classmethod
    def from_backbone(
        cls,
        path: str | os.PathLike | Backbone,
        *,
        query_head: str = "mlm",
        document_head: str = "mlm",
        pooling: str = "max",
        saturation: str = "log1p",
        texts: Iterable[str] | None = None,
        idf: Any = None,
        cut: bool = False,
        max_length: int = 256,
        **options: Any,
    ) -> SparseEncoder:
        """Heads by name on the model of a folder; where both are the same MLM head, the sides share it.

        Parameters
        ----------
        path : a folder that ``save_pretrained`` wrote, or a ``Backbone``.
        query_head, document_head : ``"mlm"``, ``"cls_mlm"``, ``"mlp"``, ``"exp_mlp"``, ``"binary"`` or ``"idf"``. An
            MLM head is the checkpoint's own, or begins from cosines with the input embeddings.
        pooling, saturation : of MLM heads.
        texts : documents, to count an IDF table from (or give one as ``idf``) and to ``cut`` the vocabulary to.
        max_length : where texts are cut. options : of the class, such as ``document_terms``.
        """
        from ellzero.retrieval.presets import build_head, pieces_of

        backbone = path if isinstance(path, Backbone) else Backbone.load(path, max_length)
        texts = None if texts is None else checked_texts(texts)
        shared = {"columns": pieces_of(backbone, texts) if cut else None, "texts": texts, "idf": idf,
                  "pooling": pooling, "saturation": saturation}  # fmt: skip
        document = build_head(document_head, "document", backbone, **shared)
        same = query_head == document_head and query_head in ("mlm", "cls_mlm") and "query_backbone" not in options
        body = options.get("query_backbone") or backbone
        query = document if same else build_head(query_head, "query", body, **shared)
        return cls(query, document, backbone, **options)

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.model.get_input_embeddings().weight.device

    def query_vectors(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        """Weights of a batch of queries, differentiable."""
        return _kept(self.query_head(batch), self.query_terms)

    def document_vectors(self, batch: TokenBatch) -> Float[Tensor, "b size"]:
        """Weights of a batch of documents, differentiable."""
        return _kept(self.document_head(batch), self.document_terms)

    def encode_query(self, texts: Iterable[str], *, batch_size: int = 32) -> sparse.csr_array:
        """Rows of queries, float32 ``[queries, size]``; a head that is a table needs the tokenizer alone."""
        return self._encode(self.query_head, self.query_terms, self.query_backbone, texts, batch_size)

    def encode_document(self, texts: Iterable[str], *, batch_size: int = 32) -> sparse.csr_array:
        """Rows of documents, float32 ``[documents, size]``."""
        return self._encode(self.document_head, self.document_terms, None, texts, batch_size)

    def encode_states(self, states: Any, side: str = "document", *, batch_size: int = 32) -> sparse.csr_array:
        """Rows of cached ``TokenStates``, as ``encode_document`` (or ``side="query"``) gives them for the texts."""
        vectors = {"document": self.document_vectors, "query": self.query_vectors}[
            check_choice("side", side, ("document", "query"))
        ]
        check_integer("batch_size", batch_size, at_least=1)
        with torch.no_grad():
            parts = [_rows(vectors(states.take(range(start, min(start + batch_size, len(states))))))
                     for start in range(0, len(states), batch_size)]  # fmt: skip
        return sparse.csr_array(sparse.vstack(parts, format="csr"))

    def _encode(
        self, head: Head, terms: int | None, backbone: Backbone | None, texts: Iterable[str], batch_size: int
    ) -> sparse.csr_array:
        backbone = self.backbone if backbone is None else backbone
        texts = checked_texts(texts)
        check_integer("batch_size", batch_size, at_least=1)
        if getattr(head, "expand", None) is not None:
            texts = checked_texts(head.expand(texts))
        if not texts:
            return sparse.csr_array((0, head.size), dtype=np.float32)
        if hasattr(head, "lookup") and terms is None and not backbone.echo:
            return _looked_up(head, backbone, texts)
        found, places = [], []
        with torch.no_grad():
            for rows, batch in backbone.batches(texts, batch_size=batch_size, states=head.needs_states):
                found.append(_rows(_kept(head(batch), terms)))
                places += rows
        return sparse.csr_array(sparse.vstack(found, format="csr")[np.argsort(places)])

    def decode(
        self, rows: Any, k: int | None = 20, *, texts: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        """The ``k`` largest terms of each row (None for all) with their weights, largest first.

        Parameters
        ----------
        texts : the texts of the rows: pieces that make up one of a text's words are then shown as that word, with the
            largest of their weights. Other continuations such as ``##ing`` stand as ``-ing``.

        Raises
        ------
        InputError : rows of another width, or not one text for each.
        """
        rows = sparse.csr_array(rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows)
        check_array("rows", rows, shape=(None, len(self.vocabulary)), finite=False, allow_empty=True)
        k = len(self.vocabulary) if k is None else check_integer("k", k, at_least=1)
        texts = None if texts is None else checked_texts(texts)
        if texts is not None and len(texts) != rows.shape[0]:
            raise InputError(f"texts: got {len(texts)} for {rows.shape[0]} rows, want one for each")
        found = []
        for row, (start, stop) in enumerate(zip(rows.indptr[:-1], rows.indptr[1:])):
            terms = {self.vocabulary[c]: float(w) for c, w in zip(rows.indices[start:stop], rows.data[start:stop])}
            if texts is not None:
                terms = _joined(terms, self.backbone.vocabulary, self.backbone.own_pieces([texts[row]])[0])
            ranked = sorted((item for item in terms.items() if item[1] > 0), key=lambda item: -item[1])
            found.append([(readable(term), weight) for term, weight in ranked[:k]])
        return found

    @staticmethod
    def sparsity(rows: Any) -> dict[str, float]:
        """What share of the entries is zero, and how many terms a row has: mean, smallest, median and largest."""
        rows = sparse.csr_array(rows)
        terms = np.diff(rows.indptr) if rows.shape[0] else np.zeros(1)
        return {"sparsity": 1 - rows.nnz / max(rows.shape[0] * rows.shape[1], 1), "mean": float(terms.mean()),
                "min": float(terms.min()), "median": float(np.median(terms)), "max": float(terms.max())}  # fmt: skip

    def save(self, path: str | os.PathLike, format: str = "ellzero") -> None:
        """Write a new folder: ours, or one that sentence-transformers loads; see ``encoder_files.save``."""
        from ellzero.retrieval import encoder_files

        encoder_files.save(self, path, format)

    @classmethod
    def load(cls, path: str | os.PathLike, format: str = "auto") -> SparseEncoder:
        """From a folder of ours or of sentence-transformers; see ``encoder_files.load``."""
        from ellzero.retrieval import encoder_files

        return encoder_files.load(path, format)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """``save`` as sentence-transformers reads it."""
        self.save(path, "sentence_transformers")

    from_pretrained = load


def readable(piece: str) -> str:
    """A piece as a reader sees it: ``##ing`` as ``-ing``, the mark of a word's beginning taken off."""
    if piece.startswith("##"):
        return "-" + piece[2:]
    return piece.lstrip("Ġ▁") or piece


def _joined(terms: dict[str, float], vocabulary: Sequence[str], pieces: Sequence[int]) -> dict[str, float]:
    """Terms with the pieces of a text's own words put together."""
    words: list[list[str]] = []
    for piece in (vocabulary[number] for number in pieces):
        if piece.startswith("##") and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    used: set[str] = set()
    whole: dict[str, float] = {}
    for parts in words:
        weight = max(terms.get(part, 0.0) for part in parts)
        if weight > 0:
            whole["".join(part.removeprefix("##") for part in parts)] = weight
            used.update(parts)
    return {**whole, **{term: weight for term, weight in terms.items() if term not in used and term not in whole}}


def _kept(weights: Tensor, terms: int | None) -> Tensor:
    if terms is None or terms >= weights.shape[1]:
        return weights
    return weights.where(TopK(terms).support(weights.detach()), 0)


def _rows(weights: Tensor) -> sparse.csr_array:
    return sparse.csr_array(weights.detach().cpu().numpy().astype(np.float32))


def _looked_up(head: Head, backbone: Backbone, texts: Sequence[str]) -> sparse.csr_array:
    """Rows of a head that is a table: each distinct piece of a text with its weight."""
    weights, place = head.lookup.detach().cpu().numpy(), head._place.cpu().numpy()
    flat, starts = [], [0]
    for ids in backbone.own_pieces(list(texts)):
        flat += sorted(set(ids))
        starts.append(len(flat))
    pieces = np.array(flat, np.int64)
    columns, data = place[pieces], weights[pieces]
    on = (columns >= 0) & (data > 0)
    kept = np.concatenate([[0], np.cumsum(on)])[starts]
    return sparse.csr_array((data[on], columns[on], kept), shape=(len(texts), head.size))

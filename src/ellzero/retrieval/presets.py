"""The learned sparse retrievers as one table: which heads, which penalty, which supervision.

Lives here: ``RetrievalMethod``, a row of that table, one registered function for each published row, ``METHODS``,
``build_head`` and ``describe_retriever``. Does not live here: the heads (``heads``), training (``recipes``).
Nguyen et al. (2023) trained them all alike and found that these four columns are where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ellzero.errors import InputError, check_choice
from ellzero.registry import register
from ellzero.retrieval.backbone import Backbone, checked_texts
from ellzero.retrieval.encoder import SparseEncoder
from ellzero.retrieval.heads import (
    BinaryHead,
    ClsMLMHead,
    Expansion,
    ExpMLPHead,
    Head,
    IDFHead,
    MLMHead,
    MLPHead,
    idf_of,
)
from ellzero.retrieval.pretrained import has_mlm_head, mlm_head, unit_head

__all__ = ["HEADS", "METHODS", "Place", "RetrievalMethod", "build_head", "describe_retriever", "pieces_of"]

HEADS = ("mlm", "cls_mlm", "mlp", "exp_mlp", "binary", "idf")


@dataclass(frozen=True)
class RetrievalMethod:
    """A row of the table: who writes queries and documents, what makes them sparse, what they learn from.

    Parameters
    ----------
    query_head, document_head : of ``HEADS``.
    shared : whether the two sides are one head.
    pooling, saturation : of MLM heads. quality : whether an MLM document is multiplied by its quality.
    query_penalty, document_penalty : ``"flops"``, ``"l1"`` or None.
    document_terms : how many of a document's largest terms stay, or None for all.
    supervision : ``"contrastive"``, ``"distillation"``, ``"term recall"`` or ``"likelihood"``.
    """

    query_head: str
    document_head: str
    shared: bool = False
    pooling: str = "max"
    saturation: str = "log1p"
    quality: bool = False
    query_penalty: str | None = None
    document_penalty: str | None = None
    document_terms: int | None = None
    supervision: str = "contrastive"

    def __post_init__(self):
        for side in ("query_head", "document_head"):
            check_choice(side, getattr(self, side), HEADS)
        if self.shared and self.query_head != self.document_head:
            raise InputError(
                f"shared: got heads {self.query_head!r} and {self.document_head!r}, want the same for both"
            )

    def encoder(
        self,
        backbone: Backbone,
        *,
        texts: Iterable[str] | None = None,
        cut: bool = False,
        expand: Expansion | None = None,
        query_backbone: Backbone | None = None,
    ) -> SparseEncoder:
        """An encoder of this kind, untrained where its heads are not the backbone's own.

        Parameters
        ----------
        texts : documents, from which an IDF table is counted.
        cut : whether the vocabulary is cut to the pieces of ``texts``, which makes training faster.
        expand : of ``ExpMLPHead``. query_backbone : where the sides share no body.
        """
        texts = None if texts is None else checked_texts(texts)
        options = {"columns": pieces_of(backbone, texts) if cut else None, "texts": texts, "expand": expand,
                   "pooling": self.pooling, "saturation": self.saturation}  # fmt: skip
        document = build_head(self.document_head, "document", backbone, quality=self.quality, **options)
        if self.shared:
            query = document
        else:
            query = build_head(self.query_head, "query", query_backbone or backbone, **options)
        return SparseEncoder(
            query, document, backbone, query_backbone=query_backbone, document_terms=self.document_terms
        )  # fmt: skip


def build_head(
    kind: str,
    side: str,
    backbone: Backbone,
    *,
    columns: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    idf: Any = None,
    pooling: str = "max",
    saturation: str = "log1p",
    quality: bool = False,
    expand: Expansion | None = None,
) -> Head:
    """A head by its name; an MLM head is the checkpoint's own where there is one.

    Parameters
    ----------
    side : ``"query"`` or ``"document"``: repeated pieces of a query add up, of a document the largest counts.
    texts : documents to count an IDF table from; idf : the table itself, one weight for each piece.

    Raises
    ------
    InputError : an unknown name or side, or an IDF head with nothing to count.
    """
    check_choice("head", kind, HEADS)
    check_choice("side", side, ("query", "document"))
    size = len(backbone.vocabulary)
    if kind in ("mlm", "cls_mlm"):
        make = MLMHead if kind == "mlm" else ClsMLMHead
        borrow = mlm_head if has_mlm_head(backbone.model) else unit_head
        return borrow(backbone, make, columns=columns, pooling=pooling, saturation=saturation, quality=quality)
    if kind == "binary":
        return BinaryHead(size, columns)
    if kind == "idf":
        table = idf_of(backbone.own_pieces(_wanted(texts)), size) if idf is None else idf
        return IDFHead(table, columns=columns)
    repeats = "sum" if side == "query" else "max"
    if kind == "mlp":
        return MLPHead(backbone.width, size, repeats=repeats, columns=columns)
    return ExpMLPHead(backbone.width, size, repeats=repeats, columns=columns, expand=expand)


def pieces_of(backbone: Backbone, texts: Sequence[str] | None) -> list[int]:
    """The pieces that stand in some of the texts, ascending."""
    return sorted({piece for ids in backbone.own_pieces(_wanted(texts)) for piece in ids})


def _wanted(texts: Sequence[str] | None) -> list[str]:
    if not texts:
        raise InputError("texts: got none, want documents to count the pieces of")
    return list(texts)


def _row(**about: Any) -> Callable[[Callable[[], RetrievalMethod]], Callable[[], RetrievalMethod]]:
    """Register a row of the table and list it."""

    def add(make: Callable[[], RetrievalMethod]) -> Callable[[], RetrievalMethod]:
        METHODS[make.__name__] = make()
        return register(kind="preset", wing="retrieval", extra="hf", example=make, **about)(make)

    return add


METHODS: dict[str, RetrievalMethod] = {}


@_row(id="S054", source="arXiv:2107.05720", claim="a penalty of activity leaves a seventh of the terms and most of the "
      "quality")  # fmt: skip
def splade() -> RetrievalMethod:
    """Both sides expanded by one MLM head, summed over tokens, FLOPs on both. Formal et al. (2021a).

    The penalty, with the maximum and IDF queries, heads on a frozen all-MiniLM-L6-v2, MED, two seeds: nDCG@10 0.714 and
    0.733 at 720 and 748 terms without it, 0.668 and 0.669 at 97 and 95 with it. Without labels such a head reaches
    0.752, 0.725 and 0.717 on MED at about 105 terms (BM25 0.700; settings were chosen on those queries), and does not
    reach BM25 on Cranfield (0.318 against 0.370).
    """
    return RetrievalMethod("mlm", "mlm", shared=True, pooling="sum", query_penalty="flops", document_penalty="flops")


@_row(id="S144", source="arXiv:2109.10086", claim="at as many terms, the maximum over tokens is not behind their sum")
def splade_v2() -> RetrievalMethod:
    """SPLADE with the maximum over tokens, taught by a cross-encoder's margins. Formal et al. (2021b).

    Pooling alone, heads on a frozen all-MiniLM-L6-v2, IDF queries, no labels, MED at 60 terms a document, one seed:
    nDCG@10 0.707 by the maximum, 0.650 by the sum; the interval of the gain over 30 queries is -0.016 to 0.134.
    """
    return RetrievalMethod(
        "mlm", "mlm", shared=True, query_penalty="flops", document_penalty="flops", supervision="distillation"
    )


@_row(id="S144", source="arXiv:2109.10086", claim="queries that need no transformer are encoded 50 times as fast")
def splade_doc() -> RetrievalMethod:
    """Documents expanded, queries the set of their pieces. Formal et al. (2021b), section 3.2."""
    return RetrievalMethod("binary", "mlm", document_penalty="flops")


@_row(id="S069", source="arXiv:2106.14807", claim="one learned weight a token beats a binary match")
def unicoil() -> RetrievalMethod:
    """One weight for each token of either side, no terms beside them. Lin and Ma (2021)."""
    return RetrievalMethod("mlp", "mlp")


@_row(id="S073", source="arXiv:2411.04403", claim="idf in the score beats unit weights of queries")
def inference_free() -> RetrievalMethod:
    """Documents expanded, queries looked up in a table of IDF. Geng et al. (2024)."""
    return RetrievalMethod("idf", "mlm", document_penalty="flops", supervision="distillation")


@_row(id="S111", source="arXiv:2408.11119", claim="a decoder must see the text twice")
def decoder_splade() -> RetrievalMethod:
    """SPLADE on a decoder, whose head reads the second copy of the text. Doshi et al. (2024)."""
    return RetrievalMethod("mlm", "mlm", shared=True, query_penalty="flops", document_penalty="flops")


@_row(id="S167", source="arXiv:2004.14245; arXiv:2303.13416")
def epic() -> RetrievalMethod:
    """Weighted queries, expanded documents times their quality, cut to the largest terms. MacAvaney et al. (2020)."""
    return RetrievalMethod("mlp", "mlm", quality=True, document_terms=1000)


@_row(id="S167", source="arXiv:1910.10687; arXiv:2303.13416")
def deepct() -> RetrievalMethod:
    """Documents weighted by how often queries ask for a term, binary queries. Dai and Callan (2019)."""
    return RetrievalMethod("binary", "mlp", supervision="term recall")


@_row(id="S167", source="arXiv:2104.12016; arXiv:2303.13416")
def deepimpact() -> RetrievalMethod:
    """Weighted documents after an outside expansion, binary queries. Mallia et al. (2021)."""
    return RetrievalMethod("binary", "exp_mlp")


@_row(id="S167", source="Zhuang and Zuccon (2021a); arXiv:2303.13416")
def tilde() -> RetrievalMethod:
    """Documents expanded from their first token, by the likelihood of queries; binary queries."""
    return RetrievalMethod("binary", "cls_mlm", supervision="likelihood")


@_row(id="S167", source="arXiv:2108.08513; arXiv:2303.13416")
def tildev2() -> RetrievalMethod:
    """Weighted documents after an expansion by TILDE, binary queries. Zhuang and Zuccon (2021b)."""
    return RetrievalMethod("binary", "exp_mlp")


@_row(id="S167", source="arXiv:2009.13013; arXiv:2303.13416")
def sparta() -> RetrievalMethod:
    """Expanded documents cut to the largest terms, binary queries. Zhao et al. (2020)."""
    return RetrievalMethod("binary", "mlm", document_terms=2000)


@_row(id="S167", source="arXiv:2303.13416", claim="without expansion of queries a fraction of the postings is touched; "
      "weights of documents matter most")  # fmt: skip
def splade_without_query_expansion() -> RetrievalMethod:
    """Weighted queries, expanded documents: the authors' own row.

    Against queries that are expanded too, heads on a frozen all-MiniLM-L6-v2, no labels, 80 steps, one seed: on MED 34
    times fewer postings a query at nDCG@10 0.716 and 0.740, on Cranfield 12 times fewer at 0.318 and 0.308; both
    differences are inside the noise of the queries. Weights of documents add 0.059 and 0.040 of nDCG@10 over the other
    factors, weights of queries 0.018 and 0.027, expansion of documents -0.027 and 0.011. That expansion of one side
    makes up for that of the other was not told by so short a training.
    """
    return RetrievalMethod("mlp", "mlm", document_penalty="flops", supervision="distillation")


class Place(NamedTuple):
    """Where a retriever stands in the two-by-two map of S069, and what each side does."""

    representation: str
    learned: bool
    query: str
    document: str

    def __str__(self) -> str:
        kind = f"{'learned' if self.learned else 'unsupervised'} {self.representation}"
        return f"{kind}; queries: {self.query}; documents: {self.document}"


_DOES = {
    "mlm": "expanded and weighted", "cls_mlm": "expanded and weighted", "mlp": "weighted",
    "exp_mlp": "expanded outside, weighted", "binary": "bag of pieces", "idf": "weights of a table",
    "dictionary": "latents of a dictionary",
}  # fmt: skip


def describe_retriever(model: Any) -> Place:
    """The cell of the map {sparse, dense} x {unsupervised, learned}. Lin and Ma (2021), table 1.

    Parameters
    ----------
    model : a ``SparseEncoder``, ``BM25Vectorizer`` or ``RetrievalMethod``; a dense model with ``.encode``, as
        sentence-transformers', or a projection with ``components_``, as scikit-learn's.

    Raises
    ------
    InputError : something else.
    """
    if isinstance(model, RetrievalMethod | SparseEncoder):
        heads = model.query_head, model.document_head
        query, document = heads if isinstance(model, RetrievalMethod) else (head.kind for head in heads)
        return Place("sparse", {query, document} - {"binary", "idf"} != set(), _DOES[query], _DOES[document])
    if type(model).__name__ == "BM25Vectorizer":
        return Place("sparse", False, "counts", "weights of a formula")
    if hasattr(model, "components_"):
        return Place("dense", False, "projected", "projected")
    if callable(getattr(model, "encode", None)) or isinstance(model, Backbone):
        return Place("dense", True, "embedded", "embedded")
    raise InputError(f"model: got {type(model).__name__}, want a retriever: sparse rows, or a dense .encode")

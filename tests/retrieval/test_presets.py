"""The table of retrievers: every row is built and encodes; the two-by-two map."""

from pathlib import Path

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.retrieval import METHODS, BM25Vectorizer, RetrievalMethod, SparseEncoder, Words, describe_retriever
from ellzero.retrieval.heads import ExpMLPHead, IDFHead
from ellzero.retrieval.presets import HEADS, build_head, pieces_of

tiny = pytest.importorskip("tests.retrieval.tiny", reason="the extra `hf`")
TEXTS = tiny.TEXTS


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mlm", [True, False])
def test_every_row_is_built_and_encodes(tmp_path, name, mlm):
    backbone = tiny.bert(tmp_path, mlm=mlm)
    row = METHODS[name]
    for cut in (False, True):
        one = row.encoder(backbone, texts=TEXTS, cut=cut)
        rows, asked = one.encode_document(TEXTS), one.encode_query(TEXTS)
        assert rows.shape == asked.shape == (len(TEXTS), len(pieces_of(backbone, TEXTS)) if cut else 70)
        assert rows.min() >= 0
        assert asked.nnz
        assert (one.query_head is one.document_head) == row.shared
        assert (one.query_head.kind, one.document_head.kind) == (row.query_head, row.document_head)
    assert describe_retriever(one) == describe_retriever(row)
    assert one.vocabulary == [backbone.vocabulary[piece] for piece in pieces_of(backbone, TEXTS)]


def test_the_page_lists_every_row():
    """In the order of the table, as ``describe_retriever`` has it."""
    found = []
    for name, row in METHODS.items():
        place = describe_retriever(row)
        penalties = (row.query_penalty, row.document_penalty)
        thinned = {(None, None): "nothing", (None, "flops"): "FLOPs of documents", ("flops", "flops"): "FLOPs of both"}
        by = thinned[penalties] if row.document_terms is None else f"the {row.document_terms} largest"
        found.append(f"| `{name}` | {place.query} | {place.document} | {by} |")
    page = Path(__file__).resolve().parents[2] / "docs" / "retrieval.md"
    assert "\n".join(["| method | queries | documents | thinned by |", "|---|---|---|---|", *found]) in page.read_text()


def test_from_a_folder(tmp_path):
    tiny.bert(tmp_path).save(tmp_path / "it")
    one = SparseEncoder.from_backbone(tmp_path / "it", query_head="idf", texts=TEXTS, pooling="sum", document_terms=4)
    assert isinstance(one.query_head, IDFHead)
    assert one.document_head.tied
    assert one.document_head.pooling == "sum"
    assert np.diff(one.encode_document(TEXTS).indptr).max() == 4
    shared = SparseEncoder.from_backbone(tmp_path / "it")
    assert shared.query_head is shared.document_head
    table = SparseEncoder.from_backbone(tmp_path / "it", query_head="idf", idf=np.full(70, 2.0), cut=True, texts=TEXTS)
    assert set(table.encode_query(TEXTS).data) == {2.0}


def test_an_outside_expansion_is_called_first(tmp_path):
    backbone = tiny.bert(tmp_path)
    one = METHODS["tildev2"].encoder(backbone, expand=lambda texts: [f"{text} drag" for text in texts])
    assert isinstance(one.document_head, ExpMLPHead)
    assert (one.encode_document(TEXTS)[:, [backbone.vocabulary.index("drag")]].toarray() > 0).all()
    assert one.encode_query(["lift"]).nnz == 1


def test_the_map(tmp_path):
    backbone = tiny.bert(tmp_path)
    assert str(describe_retriever(METHODS["splade"])) == (
        "learned sparse; queries: expanded and weighted; documents: expanded and weighted"
    )
    assert not describe_retriever(RetrievalMethod("idf", "binary")).learned
    assert not describe_retriever(BM25Vectorizer(tokenizer=Words(stemmer=None))).learned
    assert describe_retriever(backbone)[:2] == ("dense", True)
    from sklearn.decomposition import TruncatedSVD

    fitted = TruncatedSVD(2).fit(np.eye(5))
    assert describe_retriever(fitted)[:2] == ("dense", False)


def test_bad_input_is_named(tmp_path):
    backbone = tiny.bert(tmp_path)
    for call, message in (
        (lambda: RetrievalMethod("mlm", "mlq"), "document_head: got 'mlq'"),
        (lambda: RetrievalMethod("mlp", "mlm", shared=True), "shared: got heads 'mlp' and 'mlm'"),
        (lambda: build_head("mlm", "left", backbone), "side: got 'left'"),
        (lambda: build_head("idf", "query", backbone), "texts: got none"),
        (lambda: METHODS["splade"].encoder(backbone, cut=True), "texts: got none"),
        (lambda: describe_retriever(3), "model: got int"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert {row.query_head for row in METHODS.values()} | {row.document_head for row in METHODS.values()} == set(HEADS)

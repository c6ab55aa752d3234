"""Folders of sentence-transformers' SparseEncoder, both ways, against the library itself."""

import json

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.retrieval import SparseEncoder
from ellzero.retrieval.heads import BinaryHead, MLPHead
from ellzero.retrieval.pretrained import mlm_head

peer = pytest.importorskip("sentence_transformers", reason="the peer of the extra `bench`")
modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules", reason="sentence-transformers 6")
tiny = pytest.importorskip("tests.retrieval.tiny", reason="the extra `hf`")
Router, SpladePooling, Transformer = modules.Router, modules.SpladePooling, modules.Transformer

TEXTS = [text for text in tiny.TEXTS if text] + ["drag " * 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlm")
    tiny.bert(folder).save(folder / "it")
    tiny.bert(folder, mlm=False).save(folder / "body")
    return folder


def theirs(kind, folder):
    """One of their encoders of each kind."""
    mlm, tokenizer = (
        (lambda: Transformer(str(folder / "it"), transformer_task="fill-mask")),
        tiny.bert(folder).tokenizer,
    )
    table = torch.linspace(0, 2, len(tokenizer))
    if kind == "csr":
        from sentence_transformers.sentence_transformer.modules import Pooling

        code = modules.SparseAutoEncoder(16, 40, k=5, k_aux=5, normalize=True)
        with torch.no_grad():
            code.pre_bias.copy_(torch.linspace(-1, 1, 16))
            code.latent_bias.copy_(torch.linspace(-1, 1, 40))
        parts = [Transformer(str(folder / "body")), Pooling(16, "mean"), code]
    elif kind == "inference-free":
        parts = [Router.for_query_document(
            query_modules=[modules.SparseStaticEmbedding(tokenizer=tokenizer, weight=table, frozen=True)],
            document_modules=[mlm(), SpladePooling("max", activation_function="log1p_relu")],
        )]  # fmt: skip
    elif kind == "two bodies":
        parts = [Router.for_query_document(query_modules=[mlm(), SpladePooling("sum")],
                                             document_modules=[mlm(), SpladePooling("max")])]  # fmt: skip
    else:
        parts = [mlm(), SpladePooling(kind)]
    return peer.SparseEncoder(modules=parts, device="cpu")


def vectors(model, call):
    return getattr(model, call)(TEXTS, convert_to_sparse_tensor=False, convert_to_tensor=True).cpu().numpy()


@pytest.mark.parametrize("kind", ["max", "sum", "inference-free", "two bodies", "csr"])
def test_their_folders_are_read_and_ours_by_them(checkpoint, tmp_path, kind):
    """Their folder in ours, ours in theirs again: vectors equal to 1e-5 on both sides each time."""
    model = theirs(kind, checkpoint)
    model.save_pretrained(str(tmp_path / "theirs"))
    ours = SparseEncoder.load(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = peer.SparseEncoder(str(tmp_path / "ours"), device="cpu")
    for call in ("encode_query", "encode_document"):
        wanted = vectors(model, call)
        assert (wanted != 0).any(1).all()
        np.testing.assert_allclose(getattr(ours, call)(TEXTS).toarray(), wanted, atol=1e-5)
        np.testing.assert_allclose(vectors(again, call), wanted, atol=1e-5)
    same = SparseEncoder.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(same.encode_document(TEXTS).toarray(), ours.encode_document(TEXTS).toarray(), atol=1e-6)


def test_an_idf_file_of_theirs(checkpoint, tmp_path):
    model = theirs("inference-free", checkpoint)
    model.save_pretrained(str(tmp_path / "it"))
    table = next((tmp_path / "it").glob("query_0_*"))
    (table / "model.safetensors").unlink()
    (table / "idf.json").write_text(json.dumps({"wing": 3.0, "the": 0.5, "nowhere": 9.0}))
    (table / "config.json").write_text(json.dumps({"path": "idf.json", "frozen": True}))
    found = SparseEncoder.load(tmp_path / "it").encode_query(["the wing of", "drag"])
    assert sorted(found.data.tolist()) == [0.5, 3.0]


def test_what_has_no_place_there_is_named(checkpoint, tmp_path):
    backbone = tiny.bert(checkpoint)
    V = len(backbone.vocabulary)
    mlp = SparseEncoder(BinaryHead(V), MLPHead(16, V), backbone)
    with pytest.raises(InputError, match="no place for this MLPHead"):
        mlp.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    relu = mlm_head(backbone, saturation="relu")
    with pytest.raises(InputError, match="no place for this MLMHead"):
        SparseEncoder(relu, relu, backbone).save_pretrained(tmp_path / "a")
    theirs("max", checkpoint).save_pretrained(str(tmp_path / "it"))
    listed = json.loads((tmp_path / "it" / "modules.json").read_text())
    for changed, message in (
        ([listed[0]], "is made of Transformer, want"),
        ([{**listed[0], "type": "someone.else.Code"}, listed[1]], "is made of Code, SpladePooling"),
    ):
        (tmp_path / "it" / "modules.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            SparseEncoder.load(tmp_path / "it")
    (tmp_path / "it" / "modules.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        SparseEncoder.load(tmp_path / "it")

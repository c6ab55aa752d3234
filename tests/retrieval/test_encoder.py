"""Backbones, caches and encoders: batches change nothing, decoders see texts twice, folders come back as they were."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the extra `hf`")

from ellzero.errors import InputError
from ellzero.retrieval import SparseEncoder, TokenStates
from ellzero.retrieval.backbone import Backbone
from ellzero.retrieval.heads import BinaryHead, DictionaryHead, IDFHead, MLMHead, MLPHead, TopKCode, idf_of
from ellzero.retrieval.pretrained import mlm_head, unit_head
from tests.retrieval import tiny

TEXTS = tiny.TEXTS


def same(a, b, atol=1e-5):
    assert a.shape == b.shape
    np.testing.assert_allclose(a.toarray(), b.toarray(), atol=atol)


def test_batches_and_caches_change_nothing(tmp_path):
    backbone = tiny.bert(tmp_path)
    one = SparseEncoder(head := mlm_head(backbone), head, backbone)
    rows = one.encode_document(TEXTS)
    assert rows.dtype == np.float32
    assert rows.min() >= 0
    same(one.encode_document(TEXTS, batch_size=1), rows)
    same(one.encode_query(TEXTS), rows)
    cache = TokenStates.of(backbone, TEXTS, batch_size=2)
    same(one.encode_states(cache), rows)
    cache.save(tmp_path / "states")
    again = TokenStates.load(tmp_path / "states")
    same(one.encode_states(again, batch_size=2), rows)
    assert again.nbytes == cache.nbytes
    half = TokenStates.of(backbone, TEXTS, dtype="float16")
    assert half.states.dtype == torch.float16
    same(one.encode_states(half), rows, atol=0.02)
    with torch.no_grad():
        same_as = one.document_vectors(backbone.batch(TEXTS))
    np.testing.assert_allclose(same_as, rows.toarray(), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "electra"])
def test_a_checkpoints_own_head_gives_its_logits(tmp_path, family):
    import transformers as hf

    tokenizer = tiny.bert_tokenizer(tmp_path)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 40}
    distilled = {**size, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    usual = {**size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = {
        "bert": lambda: (hf.BertForMaskedLM, hf.BertConfig(**usual)),
        "distilbert": lambda: (hf.DistilBertForMaskedLM, hf.DistilBertConfig(**distilled)),
        "roberta": lambda: (hf.RobertaForMaskedLM, hf.RobertaConfig(**usual, pad_token_id=0)),
        "modernbert": lambda: (hf.ModernBertForMaskedLM, hf.ModernBertConfig(**usual, pad_token_id=0)),
        "electra": lambda: (hf.ElectraForMaskedLM, hf.ElectraConfig(**usual, embedding_size=8)),
    }[family]()  # fmt: skip
    backbone = Backbone(tiny.seeded(*model), tokenizer, 32)
    batch = backbone.batch(TEXTS)
    with torch.no_grad():
        logits = backbone.model(input_ids=batch.pieces, attention_mask=batch.mask.long()).logits
        ours = mlm_head(backbone, pooling="sum", saturation="relu")(batch)
    torch.testing.assert_close(ours, (logits.relu() * batch.mask[..., None]).sum(1), atol=2e-4, rtol=1e-4)


def test_gradients_reach_the_body(tmp_path):
    backbone = tiny.bert(tmp_path)
    mlm_head(backbone)(backbone.batch(TEXTS)).sum().backward()
    assert backbone.model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    assert backbone.model.cls.predictions.transform.dense.weight.grad.abs().sum() > 0


def test_tables_are_looked_up_as_the_head_says(tmp_path):
    """The short way through the tokenizer against the head on a batch; words are remembered."""
    backbone = tiny.bert(tmp_path, max_length=6)
    texts = [*TEXTS, "wing\twings\nwing", "Wing [MASK] [SEP]zz", "a" * 40, "lift " * 9, " é  ,,the"]
    idf = idf_of(backbone.own_pieces(texts[:4]), len(backbone.vocabulary))
    for columns in (None, [5, 7, 60, 61, 62]):
        for head in (IDFHead(idf, columns=columns), BinaryHead(len(backbone.vocabulary), columns)):
            found = SparseEncoder(head, head, backbone).encode_query(texts)
            cut = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"][:4] for text in texts]
            assert backbone.own_pieces(texts) == cut
            wanted = np.zeros((len(texts), len(backbone.vocabulary)), np.float32)
            for row, ids in zip(wanted, cut):
                row[ids] = head.lookup.detach().numpy()[ids]
            wanted = wanted if columns is None else wanted[:, columns]
            np.testing.assert_array_equal(found.toarray(), wanted)


def test_words_are_forgotten_when_they_are_too_many(tmp_path, monkeypatch):
    backbone = tiny.bert(tmp_path, max_length=64)
    before = [backbone.own_pieces([text])[0] for text in TEXTS]
    monkeypatch.setattr("ellzero.retrieval.backbone.WORDS", 3)
    assert [backbone.own_pieces([text])[0] for text in TEXTS] == before == backbone.own_pieces(TEXTS)
    assert len(backbone._words) <= len(set(" ".join(TEXTS).split()))


def _csr(rows):
    from scipy import sparse

    return sparse.csr_array(rows.detach().numpy())


WORDS = ["?", "<s>", "|", *(f"w{i}" for i in range(20))]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_decoder_reads_the_second_copy(padding):
    """Against each text run alone; separator and start are special; places count from a text's own start."""
    backbone = tiny.llama(WORDS, separator="|", padding=padding)
    assert backbone.causal
    assert backbone.echo
    head = mlm_head(backbone)
    assert head.positions == "echo"
    texts = ["w1 w2 w3 w4", "w5", "w7 w6"]
    batch = backbone.batch(texts)
    assert batch.own.sum(1).tolist() == [8, 2, 4]
    found = head(batch)
    for row, text in zip(found, texts):
        ids = [WORDS.index(word) for word in text.split()]
        whole = torch.tensor([[1, *ids, 2, *ids]])
        logits = backbone.model(input_ids=whole).logits[0, -len(ids) :]
        torch.testing.assert_close(row, logits.relu().log1p().amax(0), atol=1e-5, rtol=1e-4)
    once = tiny.llama(WORDS, echo=False, padding=padding)
    assert mlm_head(once).positions == "all"
    assert once.batch(texts).echo is None
    changed = head(backbone.batch(["w1 w2 w3 w9"]))  # the last word reaches what the first one says
    first = [[backbone.batch([text]).states[0, place] for text in ("w1 w2 w3 w4", "w1 w2 w3 w9")] for place in (1, 6)]
    assert torch.equal(*first[0])
    assert not torch.allclose(*first[1])
    assert not torch.allclose(changed[0], found[0])
    cache = TokenStates.of(backbone, texts)
    same(SparseEncoder(head, head, backbone).encode_states(cache), _csr(found))
    same(SparseEncoder(head, head, backbone).encode_document(texts), _csr(found))


def encoders(tmp_path):
    """Of every kind that a folder can hold."""
    backbone, plain = tiny.bert(tmp_path), tiny.bert(tmp_path, mlm=False, seed=1)
    V, keep = len(backbone.vocabulary), [5, 7, 60, 61, 62]
    shared = mlm_head(backbone)
    code = TopKCode(16, 30, 4, normalise=True)
    torch.nn.init.normal_(code.weight, generator=torch.Generator().manual_seed(0))
    yield SparseEncoder(shared, shared, backbone)
    yield SparseEncoder(IDFHead(torch.linspace(0, 3, V)), mlm_head(backbone, saturation="log1p_log1p"), backbone)
    yield SparseEncoder(IDFHead(torch.ones(V), columns=keep), unit_head(plain, columns=keep), plain, document_terms=3)
    yield SparseEncoder(MLPHead(16, V, repeats="sum"), mlm_head(backbone, quality=True), backbone, query_backbone=plain)
    yield SparseEncoder(head := DictionaryHead(code, 30), head, plain)
    decoder = tiny.llama([*WORDS, *tiny.LETTERS], separator="|")
    yield SparseEncoder(BinaryHead(len(decoder.vocabulary)), mlm_head(decoder), decoder)


def test_folders_come_back_as_they_were(tmp_path):
    for number, one in enumerate(encoders(tmp_path)):
        one.save(tmp_path / f"{number}")
        again = SparseEncoder.load(tmp_path / f"{number}")
        assert again.vocabulary == one.vocabulary
        assert (again.query_head is again.document_head) == (one.query_head is one.document_head)
        same(again.encode_document(TEXTS), one.encode_document(TEXTS), atol=1e-6)
        same(again.encode_query(TEXTS), one.encode_query(TEXTS), atol=1e-6)
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in one.parameters()]
    with pytest.raises(InputError, match="there already"):
        one.save(tmp_path / "0")


def test_a_folder_that_was_changed_is_refused(tmp_path):
    one = next(encoders(tmp_path))
    one.save(tmp_path / "it")
    config = tmp_path / "it" / "backbone" / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))
    with pytest.raises(InputError, match="backbone is damaged or was changed"):
        SparseEncoder.load(tmp_path / "it")
    (tmp_path / "it" / "heads.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="heads"):
        SparseEncoder.load(tmp_path / "it")
    with pytest.raises(InputError, match="neither heads"):
        SparseEncoder.load(tmp_path)
    other = SparseEncoder(head := DictionaryHead(_Plain(), 3), head, one.backbone)
    with pytest.raises(InputError, match="_Plain is not saved"):
        other.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


class _Plain:
    def encode(self, x):
        return x[:, :3]


def test_terms_are_read_as_words(tmp_path):
    backbone = tiny.bert(tmp_path)
    one = SparseEncoder(head := BinaryHead(len(backbone.vocabulary)), head, backbone)
    rows = one.encode_document(TEXTS[:3]) * 2
    assert one.decode(rows, 3)[0] == [("-s", 2.0), ("wing", 2.0), ("super", 2.0)]
    assert one.decode(rows)[2] == []
    joined = one.decode(rows, 3, texts=TEXTS[:3])
    assert joined[0] == [("supersonic", 2.0), ("wings", 2.0), (",", 2.0)]
    assert one.sparsity(rows) == {
        "sparsity": 1 - rows.nnz / (3 * rows.shape[1]), "mean": rows.nnz / 3, "min": 0, "median": 5, "max": 8,
    }  # fmt: skip
    with pytest.raises(InputError, match="rows: got shape"):
        one.decode(rows[:, :4])


def test_bad_input_is_named(tmp_path):
    backbone, plain = tiny.bert(tmp_path), tiny.bert(tmp_path, mlm=False)
    V = len(backbone.vocabulary)
    head = BinaryHead(V)
    one = SparseEncoder(head, head, backbone)
    for call, message in (
        (lambda: Backbone(torch.nn.Linear(2, 2), backbone.tokenizer), "model: got Linear"),
        (lambda: Backbone(backbone.model, None), "tokenizer: got NoneType"),
        (lambda: Backbone(backbone.model, backbone.tokenizer, padding="left"), "padding: got 'left' for an encoder"),
        (lambda: Backbone(backbone.model, backbone.tokenizer, 2), "max_length: got 2"),
        (lambda: mlm_head(plain), "model: got BertModel, which has no logits"),
        (lambda: SparseEncoder(BinaryHead(V, [1, 2]), head, backbone), "query_head: its 2 columns"),
        (lambda: SparseEncoder(head, head, backbone, document_terms=0), "document_terms: got 0"),
        (lambda: one.encode_document("text"), "texts: got one text"),
        (lambda: one.encode_query(["a", 3]), "texts: got int at place 1"),
        (lambda: one.encode_document(["a"], batch_size=0), "batch_size: got 0"),
        (lambda: TokenStates.of(backbone, []), "texts: got none"),
        (lambda: TokenStates.of(backbone, ["a"]).take([1]), "rows: got 1 to 1"),
        (lambda: MLMHead(torch.zeros(3, 2))(backbone.batch(["a"], states=False)), "batch: has no token states"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert one.encode_document([]).shape == (0, V)

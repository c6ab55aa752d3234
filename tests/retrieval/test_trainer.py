"""Training sparse encoders: which candidates count, the same numbers after a stop, what stays frozen, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.parts.activity import Flops
from ellzero.parts.schedules import Constant

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from ellzero.retrieval.backbone import Backbone  # noqa: E402
from ellzero.retrieval.encoder import SparseEncoder  # noqa: E402
from ellzero.retrieval.examples import Examples, Texts, dense_vectors, sentences  # noqa: E402
from ellzero.retrieval.heads import BinaryHead, MLMHead, UnitTransform  # noqa: E402
from ellzero.retrieval.losses import DistilKL, InfoNCE, MarginMSE, SpladeLoss, Total  # noqa: E402
from ellzero.retrieval.mining import Negatives  # noqa: E402
from ellzero.retrieval.states import TokenStates  # noqa: E402
from ellzero.retrieval.teachers import DenseTeacher  # noqa: E402
from ellzero.retrieval.trainer import SparseTrainer  # noqa: E402

WORDS = ["sun", "moon", "star", "sky", "sea", "river", "lake", "rain", "bread", "milk", "salt", "rice"]
TEXTS = [f"{a} {b} {c} and {a}" for a, b, c in zip(WORDS, WORDS[1:] + WORDS[:1], WORDS[5:] + WORDS[:5])]
QUERIES = WORDS[:]


@pytest.fixture(scope="module")
def backbone():
    """A BERT of two small layers with its own word pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", *WORDS]
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    coder = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, hidden_dropout_prob=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config)
    return Backbone(model.eval(), coder, 32)


def encoder(backbone, query=None):
    """Binary queries and an MLM head on unit embeddings."""
    E = torch.nn.functional.normalize(backbone.model.get_input_embeddings().weight.detach(), dim=1)
    head = MLMHead(E, 0.1, transform=UnitTransform(16))
    return SparseEncoder(BinaryHead(len(E)) if query is None else head, head, backbone)


def examples(backbone, width=1, cached=True):
    """Each word asks for the text that begins with it; further columns are negatives."""
    n = len(TEXTS)
    candidates = (np.arange(n)[:, None] + 3 * np.arange(width)) % n
    documents = TokenStates.of(backbone, TEXTS) if cached else Texts(backbone, TEXTS)
    return Examples(Texts(backbone, QUERIES, states=False), documents, np.arange(n), candidates)


@pytest.mark.parametrize("candidates", ["own", "positives", "all"])
def test_scores_reach_the_loss_in_the_columns_that_are_told(backbone, candidates):
    """Against every score written out: the loss sees exactly the wanted candidates of each query, once each."""
    held, enc = examples(backbone, 3), encoder(backbone)
    S = (enc.encode_query(QUERIES) @ enc.encode_document(TEXTS).T).toarray()
    rows, seen = np.array([0, 3, 7, 8]), []

    class Spy:
        def __call__(self, scores, teacher, *, positive):
            seen.append((scores.detach().numpy(), teacher.numpy(), positive.numpy()))
            return scores.masked_fill(scores == -torch.inf, 0).sum()

    teacher = DenseTeacher(np.eye(12), S.T)
    SparseTrainer(enc, SpladeLoss(Spy()), teacher=teacher, candidates=candidates).batch_loss(held, rows)
    (scores, taught, positive), own = seen[0], held.candidates[rows]
    for i, row in enumerate(rows):
        wanted = {
            "own": own[i].tolist(),
            "positives": [*rows.tolist(), *own[i, 1:].tolist()],
            "all": sorted(set(own.ravel().tolist())),
        }[candidates]
        unlike = [d for d in wanted if d != row]
        counted = np.isfinite(scores[i])
        assert counted[positive[i]]
        assert scores[i, positive[i]] == pytest.approx(S[row, row], rel=1e-5)
        assert sorted(scores[i][counted]) == pytest.approx(sorted([S[row, row], *S[row, unlike]]), rel=1e-5)
        np.testing.assert_allclose(taught[i][counted], scores[i][counted], rtol=1e-5)


def test_known_answers_and_missing_places_are_no_negatives(backbone):
    held = Examples(Texts(backbone, ["sun", "moon"], states=False), TokenStates.of(backbone, TEXTS[:4]),
                    np.array([0, 0, 1]), np.array([[0, 3, -1], [1, 3, 2], [2, 3, -1]]))  # fmt: skip
    seen = []

    class Spy:
        def __call__(self, scores, teacher, *, positive):
            seen.append(torch.isfinite(scores).tolist())
            return scores.masked_fill(scores == -torch.inf, 0).sum()

    SparseTrainer(encoder(backbone), SpladeLoss(Spy())).batch_loss(held, np.arange(3))
    # columns: positives 0, 1, 2 of the batch, then the own negatives; documents 0 and 1 both answer query 0
    assert seen[0] == [
        [True, False, True, True, False], [False, True, True, True, True], [True, True, True, True, False]
    ]  # fmt: skip


def quality(enc):
    scores = (enc.encode_query(QUERIES) @ enc.encode_document(TEXTS).T).toarray()
    return np.mean(scores.argmax(1) == np.arange(len(TEXTS)))


@pytest.mark.parametrize("cached", [True, False])
def test_training_finds_the_texts_and_a_penalty_thins_them(backbone, cached):
    enc = encoder(backbone)
    before, terms = quality(enc), enc.encode_document(TEXTS).nnz
    loss = SpladeLoss(InfoNCE(), document_penalty=Flops(), document_weight=0.05)
    found = SparseTrainer(enc, loss, lr=0.02, steps=60, batch_size=6, seed=1).fit(examples(backbone, cached=cached))
    assert min(found.losses) == 1
    assert len(found.losses) == 60
    assert quality(enc) >= max(before, 0.9)
    assert enc.encode_document(TEXTS).nnz < terms / 2
    assert not enc.training


def test_cached_states_and_texts_train_to_the_same_numbers(backbone):
    ends = []
    for cached in (True, False):
        enc = encoder(backbone)
        SparseTrainer(enc, SpladeLoss(InfoNCE()), steps=5, batch_size=4).fit(examples(backbone, 2, cached))
        ends.append(enc.encode_document(TEXTS).toarray())
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", [False, True])
def test_a_run_that_was_stopped_ends_with_the_same_bits(backbone, body, tmp_path):
    import copy

    class Stop(Exception):
        pass

    def run(folder, stop=None):
        enc = encoder(copy.deepcopy(backbone))
        held = examples(enc.backbone, 2, cached=not body)
        teacher = DenseTeacher(np.eye(12), np.eye(12)[:, ::-1].copy())
        loss = SpladeLoss(Total(InfoNCE(), (0.1, DistilKL())), document_penalty=Flops(), document_weight=0.02)
        trainer = SparseTrainer(enc, loss, teacher=teacher, body=body, lr=1e-2, steps=8, batch_size=4, seed=3)
        if stop is not None:
            whole, count = trainer.batch_loss, [0]

            def broken(*arguments):
                count[0] += 1
                if count[0] > stop:
                    raise Stop
                return whole(*arguments)

            trainer.batch_loss = broken
        trainer.fit(held, checkpoint=folder, every=2)
        return {name: value.clone() for name, value in enc.state_dict().items()}

    want = run(None)
    with pytest.raises(Stop):
        run(tmp_path, stop=5)
    found = run(tmp_path)
    assert all(torch.equal(found[name], want[name]) for name in want)
    moved = any(not torch.equal(value, encoder(backbone).state_dict()[name]) for name, value in want.items()
                if name.startswith("backbone."))  # fmt: skip
    assert moved == body


def test_rates_freeze_by_pattern_and_shared_weights_of_a_frozen_body_stay(backbone):
    enc = encoder(backbone)
    before = {name: value.clone() for name, value in enc.document_head.state_dict().items()}
    SparseTrainer(enc, SpladeLoss(InfoNCE()), rates={"*embeddings": 0, "*gain": 0}, steps=2).fit(examples(backbone))
    after = enc.document_head.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"bias", "transform.weight"}
    assert all(parameter.requires_grad for parameter in enc.document_head.parameters())
    own = backbone.model.get_input_embeddings().weight
    tied = SparseEncoder(BinaryHead(len(own)), MLMHead(own, 0.1, transform=UnitTransform(16)), backbone)
    held = own.detach().clone()
    SparseTrainer(tied, SpladeLoss(InfoNCE()), steps=2).fit(examples(backbone))
    assert torch.equal(own, held)


def test_examples_of_judgements_bring_negatives_and_all_answers():
    qrels = {"a": {"x": 1, "y": 2, "z": 0}, "b": {"z": 1, "unknown": 1}, "c": {}}
    mined = Negatives({"a": ["w", "z"], "b": ["x"]})
    held = Examples.from_qrels("qqq", "dddd", "abc", "wxyz", qrels, negatives=mined, count=2)
    assert held.asked.tolist() == [0, 0, 1]
    assert held.candidates.tolist() == [[1, 0, 3], [2, 0, 3], [3, 1, -1]]
    assert held.answers.toarray().tolist() == [[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert Examples.from_qrels("qqq", "dddd", "abc", "wxyz", qrels).candidates.tolist() == [[1], [2], [3]]


def test_sentences_are_cut_from_their_texts_and_repeat():
    texts = ["One two three four. Five six seven eight nine! Short.", "", "Only three words"]
    found, rows = sentences(texts, 4, most=4)
    assert found == ["One two three four.", "Five six seven eight", "Only three words"]
    assert rows.tolist() == [0, 0, 2]
    assert {sentences(texts, 1, seed=s)[0][0] for s in range(20)} == {
        "One two three four.",
        "Five six seven eight nine!",
    }


def test_dense_vectors_are_means_of_states_of_unit_length(backbone):
    states = TokenStates.of(backbone, TEXTS)
    found = dense_vectors(states, batch_size=5)
    one = backbone.batch(TEXTS[3:4]).states[0].mean(0)
    torch.testing.assert_close(found[3], (one / one.norm()).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, dense_vectors(Texts(backbone, TEXTS)).detach(), rtol=1e-4, atol=1e-5)


def test_refusals(backbone):
    enc, held = encoder(backbone), examples(backbone)
    good = SpladeLoss(InfoNCE(), ramp=Constant(1.0))
    for build, words in (
        (lambda: SparseTrainer(3, good), "encoder: got int"),
        (lambda: SparseTrainer(enc, InfoNCE()), "loss: got InfoNCE"),
        (lambda: SparseTrainer(enc, good, teacher=3), "teacher: got int"),
        (lambda: SparseTrainer(enc, good, candidates="some"), "candidates: got 'some'"),
        (lambda: SparseTrainer(enc, good, steps=0), "steps: got 0"),
        (lambda: SparseTrainer(enc, good, rates={"*": 0}).fit(held), "rates: leave nothing to train"),
        (lambda: SparseTrainer(enc, SpladeLoss(MarginMSE()), steps=1).fit(held), "teacher: got none"),
        (lambda: Examples("q", "d", [0], [-1]), "candidates: want a positive"),
        (lambda: Examples("q", "d", [1], [0]), "asked: got rows 1 to 1"),
        (lambda: Examples("q", "d", [], np.zeros((0, 1))), "candidates: got"),
        (lambda: Examples.from_qrels("q", "d", "a", "b", {"a": {"b": 0}}), "qrels: judge no document"),
        (lambda: sentences(["", " "]), "texts: got none"),
    ):
        with pytest.raises(InputError, match=words):
            build()

"""Recipes run over a small collection: every one trains, searches well, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from ellzero.errors import InputError

pytest.importorskip("transformers")
pytest.importorskip("Stemmer", reason="the extra `retrieval`")

from dataclasses import replace

from ellzero.parts.activity import Flops, L0Mask
from ellzero.registry import entries
from ellzero.retrieval.examples import spans
from ellzero.retrieval.from_corpus import train_on_corpus
from ellzero.retrieval.losses import DistilKL, InfoNCE, MarginMSE, SpladeLoss
from ellzero.retrieval.presets import METHODS, RetrievalMethod
from ellzero.retrieval.recipes import RECIPES, TrainingRecipe, recipe
from ellzero.retrieval.states import TokenStates
from tests.retrieval.test_trainer import QUERIES, TEXTS, backbone  # noqa: F401

ANSWERS = sparse.eye_array(len(TEXTS), dtype=bool).tocsr()


def short(name, **options):
    made = recipe(name, **options)
    return replace(made, steps=6, batch_size=4, depth=max(6, made.hard), hard=min(made.hard, 3), lr=5e-3,
                   columns=None if made.columns is None else 5)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_repeats_itself(name, backbone):  # noqa: F811
    given = () if name == "label_free" else (QUERIES, ANSWERS)
    made = train_on_corpus(short(name), backbone, TEXTS, *given, seed=1)
    again = train_on_corpus(short(name), backbone, TEXTS, *given, seed=1)
    rows = made.encoder.encode_document(TEXTS)
    assert (rows != again.encoder.encode_document(TEXTS)).nnz == 0
    assert rows.nnz > 0
    assert made.encoder.encode_query(QUERIES).nnz > 0
    assert len(made.rounds) == RECIPES[name]().rounds
    assert made.rounds == again.rounds
    assert all(np.isfinite([each["first"], each["last"]]).all() for each in made.rounds)


def test_recipes_are_what_the_papers_say():
    assert {entry.target for entry in entries(kind="recipe", wing="retrieval")} == set(RECIPES.values())
    splade, second, plus = recipe("splade"), recipe("splade-v2"), recipe("splade_pp")
    assert (splade.method, splade.negatives, splade.hard) == (METHODS["splade"], ("bm25",), 1)
    assert isinstance(splade.loss.main, InfoNCE)
    assert isinstance(second.loss.main, MarginMSE)
    assert second.rounds == plus.rounds == 2
    assert set(plus.negatives) == {"bm25", "dense", "self"}
    assert recipe("unicoil").loss.parts() == []
    free = recipe("inference_free")
    assert (free.method.query_head, set(free.teachers)) == ("idf", {"dense", "bm25"})
    assert isinstance(free.loss.main, DistilKL)
    masked = recipe("l0_mask", threshold=64).loss.document_penalty
    assert isinstance(masked, L0Mask)
    assert masked.threshold == 64
    assert isinstance(masked.penalty, Flops)
    assert recipe("l0_both").method.saturation == recipe("l0_activation").method.saturation == "log1p_log1p"
    assert free.penalised(3).loss.document_weight == pytest.approx(3 * free.loss.document_weight)
    with pytest.raises(InputError, match="did you mean 'splade'"):
        recipe("splad")


def test_a_penalty_thins_documents_the_more_it_weighs(backbone):  # noqa: F811
    counts = []
    for factor in (0, 30, 300):
        made = replace(short("label_free").penalised(factor), steps=40, lr=0.02)
        counts.append(train_on_corpus(made, backbone, TEXTS, seed=0).encoder.encode_document(TEXTS).nnz)
    assert counts[0] > counts[1] > counts[2]


def test_a_run_goes_on_from_its_folder(backbone, tmp_path):  # noqa: F811
    want = train_on_corpus(short("splade_v2"), backbone, TEXTS, QUERIES, ANSWERS, seed=2)
    first = train_on_corpus(short("splade_v2"), backbone, TEXTS, QUERIES, ANSWERS, seed=2, checkpoint=tmp_path)
    for path in (tmp_path / "round-2").iterdir():  # as if it had been killed after the first round
        path.unlink()
    found = train_on_corpus(short("splade_v2"), backbone, TEXTS, QUERIES, ANSWERS, seed=2, checkpoint=tmp_path)
    rows = [made.encoder.encode_document(TEXTS).toarray() for made in (first, found)]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(rows[0], want.encoder.encode_document(TEXTS).toarray())
    with pytest.raises(InputError, match="holds 12 texts"):
        train_on_corpus(short("label_free"), backbone, TEXTS[:5], checkpoint=tmp_path)


@pytest.mark.parametrize("name", ["splade", "label_free"])
def test_the_whole_model_trains_too(name, backbone):  # noqa: F811
    given = () if name == "label_free" else (QUERIES, ANSWERS)
    kept = {key: value.clone() for key, value in backbone.state_dict().items()}
    made = train_on_corpus(short(name), backbone, TEXTS, *given, body=True, seed=0)
    after = made.encoder.backbone.state_dict()
    assert any(not (kept[key] == after[key]).all() for key in kept)
    assert all((kept[key] == value).all() for key, value in backbone.state_dict().items())


def test_spans_are_runs_of_a_texts_own_tokens(backbone):  # noqa: F811
    texts = ["sun moon star and sky sea river lake", "", "rain bread"]
    states = TokenStates.of(backbone, texts)
    found, rows = spans(states, [backbone.vocabulary.index("and")], 4, fewest=2, most=3)
    words = [
        [backbone.vocabulary[p] for p in part.tolist()] for part in found.pieces.split(found.starts.diff().tolist())
    ]
    assert words == [["sun", "moon", "star"], ["sky", "sea", "river"], ["rain", "bread"]]
    assert rows.tolist() == [0, 0, 2]
    assert (found.states[0] == states.states[1]).all()
    with pytest.raises(InputError, match="without a token"):
        spans(TokenStates.of(backbone, [""]), [])


def test_left_out_columns_change_no_score_and_the_penalty_on_average_not(backbone):  # noqa: F811
    from ellzero.retrieval.trainer import SparseTrainer
    from tests.retrieval.test_trainer import encoder, examples

    enc, held = encoder(backbone), examples(backbone, 2)
    loss = SpladeLoss(InfoNCE(), document_penalty=Flops())
    rows = np.arange(3)
    whole = SparseTrainer(enc, loss).batch_loss(held, rows, 1.0).item()
    bare = SparseTrainer(enc, loss, columns=3).batch_loss(held, rows, 0.0).item()
    assert bare == pytest.approx(SparseTrainer(enc, loss).batch_loss(held, rows, 0.0).item(), rel=1e-5)
    drawn = [SparseTrainer(enc, loss, columns=3, seed=s).batch_loss(held, rows, 1.0).item() for s in range(300)]
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(whole, abs=4 * np.std(drawn) / 300**0.5)
    with pytest.raises(InputError, match="columns: document_terms"):
        SparseTrainer(enc, SpladeLoss(InfoNCE(), document_penalty=L0Mask(threshold=3)), columns=3)


def test_learned_queries_of_their_own_terms_leave_columns_out_too(backbone):  # noqa: F811
    """Loss and derivatives, of the query's head too."""
    from ellzero.retrieval.trainer import SparseTrainer
    from tests.retrieval.test_trainer import examples

    enc, loss, found = RetrievalMethod("mlp", "mlm").encoder(backbone), SpladeLoss(InfoNCE()), []
    held = replace(examples(backbone, 2), queries=TokenStates.of(backbone, QUERIES))
    with torch.no_grad():
        enc.query_head.linear.weight.copy_(torch.linspace(-1, 1, backbone.width))
    for columns in (None, 3):
        enc.zero_grad()
        value = SparseTrainer(enc, loss, columns=columns).batch_loss(held, np.arange(3))
        value.backward()
        found.append([value.detach(), enc.query_head.linear.weight.grad, enc.document_head.bias.grad])
    for whole, some in zip(*found):
        torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-6)
    assert found[0][1].abs().sum() > 0
    with pytest.raises(InputError, match="columns: some can be left out"):
        SparseTrainer(RetrievalMethod("mlm", "mlm", shared=True).encoder(backbone), loss, columns=3)


def test_refusals(backbone):  # noqa: F811
    for build, words in (
        (lambda: train_on_corpus(recipe("splade"), backbone, []), "documents: got none"),
        (lambda: train_on_corpus(recipe("splade"), backbone, TEXTS, QUERIES), "answers: want queries"),
        (lambda: train_on_corpus(recipe("splade"), backbone, TEXTS, QUERIES, ANSWERS[:2]), "answers: got shape"),
        (lambda: TrainingRecipe(METHODS["splade"], SpladeLoss(InfoNCE()), hard=2), "hard: got 2 of nobody"),
        (lambda: TrainingRecipe(METHODS["splade"], SpladeLoss(InfoNCE()), ("google",), hard=2), "negatives: got"),
        (lambda: replace(recipe("splade"), positive=False), "positive: without it"),
        (lambda: replace(recipe("splade_v2"), teachers=("me",)), "teachers: got 'me'"),
    ):
        with pytest.raises(InputError, match=words):
            build()

"""Training on a model's activations: what is held out stays out, records tell the truth, bad input is named."""

import json

import pytest
import torch

from ellzero.autoencoder import SparseAutoencoder, evaluate, sources
from ellzero.autoencoder import from_model as module
from ellzero.autoencoder.from_model import held_out, read_record, train_on_model
from ellzero.errors import InputError
from ellzero.models import ActivationStream, TransformerConfig, reference_language_model, reference_texts, save

SMALL = {"d_sae": 96, "k": 4, "steps": 12, "batch_size": 128, "lr": 0.005}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("\n\n".join(reference_texts("validation")[:12]), encoding="utf-8")
    return path


def test_what_is_held_out_is_not_trained_on_and_what_is_scored(book, monkeypatch):
    seen = []
    fit = module.SAETrainer.fit
    monkeypatch.setattr(module.SAETrainer, "fit", lambda self, acts, **k: seen.append(acts) or fit(self, acts, **k))
    done = train_on_model("reference", "layers.1", book, **SMALL)
    documents, rest = sources.read_documents(str(book)), held_out(book)
    assert len(rest) == round(0.1 * len(documents)) == done.record["documents"][1]
    assert set(rest) < set(documents)
    model, tokenizer = reference_language_model()
    train = [text for text in documents if text not in rest]
    rows = ActivationStream(model, hook="layers.1", texts=train, tokenizer=tokenizer).collect()
    assert seen[0].shape == rows.shape
    assert float(seen[0].sum()) == pytest.approx(float(rows.sum()), rel=1e-4)
    found = evaluate(done.sae, ActivationStream(model, hook="layers.1", texts=rest, tokenizer=tokenizer))
    assert found == pytest.approx(done.scores, rel=1e-5)
    assert done.loss.ablation == "mean"
    assert held_out(book, seed=5) != rest


def test_the_same_seed_gives_the_same_bits_in_memory_and_streamed_another_order(book, monkeypatch, tmp_path):
    one = train_on_model("reference", "layers.1", book, **SMALL, out=tmp_path / "sae")
    again = train_on_model("reference", "layers.1", book, **SMALL)
    assert torch.equal(one.sae.W_dec, again.sae.W_dec)
    monkeypatch.setattr(module, "_MEMORY", 0)
    streamed = train_on_model("reference", "layers.1", book, **SMALL)
    assert not torch.equal(one.sae.W_dec, streamed.sae.W_dec)
    assert streamed.scores["explained_variance"] == pytest.approx(one.scores["explained_variance"], abs=0.15)
    loaded = SparseAutoencoder.load(tmp_path / "sae")
    assert torch.equal(loaded.W_dec, one.sae.W_dec)
    assert read_record(tmp_path / "sae") == json.loads(json.dumps(one.record))


def test_dead_latents_are_called_so_after_a_share_of_the_run():
    build = module.find_preset("topk")
    assert module._options(build, "topk", {}, 1_000_000, 100)["dead_after"] == 50_000
    assert module._options(build, "topk", {}, 1000, 100)["dead_after"] == 4000
    assert module._options(build, "topk", {}, 10**10, 100)["dead_after"] == 10_000_000
    assert module._options(build, "topk", {"dead_after": 7}, 1000, 100)["dead_after"] == 7
    assert "dead_after" not in module._options(module.find_preset("relu_l1"), "relu_l1", {}, 1000, 100)


def test_a_model_without_tokenizer_or_words_is_refused(tmp_path, book):
    save(tmp_path / "model.safetensors", TransformerConfig(vocabulary=300, width=8, heads=2, depth=1).build())
    with pytest.raises(InputError, match="no tokenizer"):
        train_on_model(tmp_path / "model.safetensors", "layers.0", book, **SMALL)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(InputError, match="want at least 10"):
        train_on_model("reference", "layers.1", tmp_path / "short.txt", **SMALL)


@pytest.mark.parametrize(("settings", "words"), [
    ({"preset": "topkk"}, "did you mean 'topk'"), ({"hook": "layers.9"}, "has 4 layers"), ({"k": 0}, "k: got 0"),
    ({"options": {"deadafter": 3}}, "did you mean 'dead_after'"), ({"steps": 0}, "steps: got 0"),
    ({"ablation": "men"}, "did you mean 'mean'"), ({"d_sae": 0}, "d_sae: got 0"),
])  # fmt: skip
def test_bad_settings_are_named_before_anything_is_written(settings, words, book, tmp_path):
    given = {"hook": "layers.1", **SMALL, **settings}
    with pytest.raises(InputError, match=words):
        train_on_model("reference", given.pop("hook"), book, out=tmp_path / "sae", **given)
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_records_that_are_torn_or_newer_are_refused(tmp_path):
    assert read_record(tmp_path) is None
    for content, words in [
        ("{", "torn"), ("[]", "no record"), ('{"format": "other"}', "no record"),
        ('{"format": "ellzero autoencoder training", "version": 99}', "version: got 99"),
    ]:  # fmt: skip
        (tmp_path / "training.json").write_text(content)
        with pytest.raises(InputError, match=words):
            read_record(tmp_path)
    with pytest.raises(InputError, match="not empty"):
        train_on_model("reference", "layers.1", out=tmp_path)

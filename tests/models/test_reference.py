"""The language model that ships: what its card says is what is measured, and its script repeats."""

import json
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.models import reference_card, reference_language_model, reference_texts
from ellzero.models import train_reference as script
from ellzero.models.reference import HELD_OUT, TEXTS, WEIGHTS, held_out_loss, raw_text, split_text
from ellzero.models.tokenizer import train_tokenizer
from ellzero.models.transformer import TransformerConfig


@pytest.fixture(scope="module")
def shipped():
    return reference_language_model()


def stream_of(tokenizer, name, n=None):
    return np.array(tokenizer.encode(split_text(raw_text(name), HELD_OUT)[1]))[:n]


@pytest.mark.parametrize("name", TEXTS)
def test_the_card_is_true(shipped, name):
    """A slice of the held-out text, measured token by token with no batching, agrees with the card's figure."""
    model, tokenizer = shipped
    stream = stream_of(tokenizer, name)
    card = reference_card()["validation"][name]
    assert len(stream) == card["tokens"]
    losses = []
    with torch.no_grad():
        for low in range(0, len(stream) - 128, len(stream) // 40 // 128 * 128):
            part = torch.from_numpy(stream[low : low + 128])[None]
            logits = model(torch.cat([torch.tensor([[tokenizer.bos]]), part[:, :-1]], 1))
            chance = logits.double().log_softmax(-1).gather(-1, part[..., None])
            losses.append(-float(chance.mean()))
    losses = np.array(losses)
    error = 4 * losses.std() / math.sqrt(len(losses))
    assert error < 0.5
    assert abs(losses.mean() - card["nats_per_token"]) < error


def test_the_card_is_true_to_the_last_digit(shipped):
    model, tokenizer = shipped
    stream = stream_of(tokenizer, "wikitext2")
    card = reference_card()["validation"]["wikitext2"]
    n = len(stream)
    nats = held_out_loss(model, stream, tokenizer.bos)
    assert nats == pytest.approx(card["nats_per_token"], abs=2e-3)
    n_bytes = len(split_text(raw_text("wikitext2"), HELD_OUT)[1].encode())
    assert n_bytes == card["bytes"]
    assert nats * n / n_bytes / math.log(2) == pytest.approx(card["bits_per_byte"], abs=2e-3)


def test_it_is_far_below_the_unigram_baseline(shipped):
    """The baseline is computed here, from counts of the training part, not taken from the card."""
    _, tokenizer = shipped
    parts = {name: split_text(raw_text(name), HELD_OUT) for name in TEXTS}
    counts = Counter(token for first, _ in parts.values() for token in tokenizer.encode(first))
    total = sum(counts.values()) + tokenizer.vocabulary
    for name, (_, last) in parts.items():
        row = reference_card()["validation"][name]
        unigram = -np.mean([math.log((counts[token] + 1) / total) for token in tokenizer.encode(last)])
        assert unigram == pytest.approx(row["unigram_nats_per_token"], abs=1e-3)
        assert row["nats_per_token"] < unigram - 2.0


def test_context_helps_it(shipped):
    """With the tokens before a position shuffled, it guesses worse by far: it reads, it does not count."""
    model, tokenizer = shipped
    stream = stream_of(tokenizer, "tinyshakespeare", 64 * 128).reshape(64, 128)
    draw = np.random.default_rng(0)
    targets = torch.from_numpy(stream[:, -1])

    def loss(before):
        tokens = np.concatenate([np.full((64, 1), tokenizer.bos), before], 1)
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(torch.from_numpy(tokens))[:, -1], targets))

    assert loss(stream[:, :-1]) < loss(draw.permuted(stream[:, :-1], axis=1)) - 0.5


def test_file_and_card(shipped):
    model, tokenizer = shipped
    card = reference_card()
    assert WEIGHTS.stat().st_size <= 8 * 2**20
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["recipe"]["steps"] == card["steps"]
    assert tokenizer.vocabulary == model.config.vocabulary == card["recipe"]["vocabulary"]
    assert "CC BY-SA 3.0" in card["data"]["wikitext2"]
    assert "public domain" in card["data"]["tinyshakespeare"]
    assert not model.training
    assert script.ReferenceRecipe(**card["recipe"]) == script.ReferenceRecipe()


def test_each_call_gives_a_fresh_model(shipped):
    one, _ = reference_language_model()
    with torch.no_grad():
        one.embedding.weight.zero_()
    assert not torch.equal(one.embedding.weight, reference_language_model()[0].embedding.weight)


def test_texts_are_the_parts_and_nothing_is_in_both():
    train, validation = reference_texts(), reference_texts("validation")
    assert all(isinstance(text, str) and text.strip() for text in train + validation)
    assert not set(train) & set(validation)
    words = sum(len(text.split()) for text in train + validation)
    assert words == sum(len(raw_text(name).split()) for name in TEXTS)
    share = sum(map(len, validation)) / sum(map(len, train + validation))
    assert share == pytest.approx(HELD_OUT, abs=0.005)
    with pytest.raises(InputError, match="part"):
        reference_texts("test")


def test_split_text():
    text = "one\ntwo\nthree\nfour\n"
    first, last = split_text(text, 0.3)
    assert first + last == text
    assert (first, last) == ("one\ntwo\n", "three\nfour\n")
    for wrong in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match="held_out"):
            split_text(text, wrong)
    with pytest.raises(InputError, match="no line break"):
        split_text("a text without lines", 0.1)


def test_the_loss_is_the_mean_over_all_tokens():
    """Lengths that leave a short last window and a short last batch, against one window at a time."""
    model = TransformerConfig(20, width=8, depth=1, heads=2, key_heads=1, hidden=8, context=5).build()
    for n in (1, 4, 5, 23, 40):
        stream = np.random.default_rng(n).integers(20, size=n)
        total = 0.0
        for low in range(0, n, 5):
            part = stream[low : low + 5]
            logits = model(torch.tensor([[1, *part[:-1]]])).detach().double()[0]
            total -= sum(float(logits[i].log_softmax(-1)[t]) for i, t in enumerate(part))
        assert held_out_loss(model, stream, 1, batch=2) == pytest.approx(total / n, rel=1e-5)


# The script ----------------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_repeats():
    recipe = script.ReferenceRecipe(
        vocabulary=40, width=16, depth=1, heads=2, key_heads=1, hidden=24, context=8, batch=8, steps=60, warmup=5,
        rate=1e-2,
    )  # fmt: skip
    stream = np.tile(np.random.default_rng(0).integers(2, 40, size=30), 20)
    losses = []
    state = torch.get_rng_state()
    model = script.train(recipe, stream, 1, watch=lambda step, loss, model: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(40), abs=0.2)
    assert losses[-1] < 0.6 * losses[0]
    again = script.train(recipe, stream, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_the_rate_rises_and_falls():
    recipe = script.ReferenceRecipe(steps=100, warmup=10, rate=1.0, last_rate=0.1)
    rates = [recipe.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[100] == pytest.approx(0.1)


def test_unigram_by_hand():
    got = script.unigram_loss(np.array([0, 0, 1]), np.array([0, 2]), 3)
    assert got == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


@dataclass(frozen=True)
class Tiny(script.ReferenceRecipe):
    vocabulary: int = 270
    width: int = 8
    depth: int = 1
    heads: int = 2
    key_heads: int = 1
    hidden: int = 8
    context: int = 16
    batch: int = 2


def test_the_command_writes_weights_and_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "ReferenceRecipe", Tiny)
    for file in TEXTS.values():
        (tmp_path / file).write_text("".join(f"line {i} of {file}\n" for i in range(60)))
    out = tmp_path / "m.safetensors"
    script.main(["--texts", str(tmp_path), "--out", str(out), "--steps", "2", "--save-every", "1"])
    assert "step 1: loss" in capsys.readouterr().out
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["steps"] == 2
    assert card["tokens_seen"] == 2 * 2 * 16
    assert 0 < card["validation"]["all"]["nats_per_token"] < 6
    all_tokens = sum(card["validation"][name]["tokens"] for name in TEXTS)
    assert card["validation"]["all"]["tokens"] == all_tokens
    with pytest.raises(InputError, match="--texts"):
        script.main(["--texts", str(tmp_path / "absent"), "--out", str(out)])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"held_out": 1.0}, {"last_rate": 2.0}, {"clip": -1.0}])
def test_bad_recipes(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        script.ReferenceRecipe(**wrong)


def test_too_short_a_stream():
    with pytest.raises(InputError, match="stream: got 5 tokens"):
        script.train(script.ReferenceRecipe(steps=1), np.arange(5), 1)


def test_the_tokenizer_is_the_scripts(shipped):
    """Learnt from the training part alone, by the same call."""
    parts = [split_text(raw_text(name), HELD_OUT)[0] for name in TEXTS]
    assert train_tokenizer(parts, 400).merges == shipped[1].merges[: 400 - 258]

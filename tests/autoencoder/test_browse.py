"""The page of latents: its examples by brute force, its numbers against the codes, its text as text, its size."""

import base64
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from ellzero.autoencoder import SparseAutoencoder
from ellzero.autoencoder.browse import Activity, activity, browse, examples, histograms, promoted
from ellzero.errors import InputError
from ellzero.models import ActivationStream, TransformerConfig, reference_language_model, train_tokenizer

TEXTS = ["to be or not to be, that is the question <b>& so on</b>", "</script><script>alert(1)</script>", "be " * 40]


def world(d=16, m=40, k=3):
    tokenizer = train_tokenizer(TEXTS, 280)
    model = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=d, depth=2, heads=2, key_heads=1, hidden=24, context=32
    ).build(0)
    sae = SparseAutoencoder.from_preset("topk", d_in=d, d_sae=m, k=k).eval()
    return model.eval(), tokenizer, sae


@given(n=st.integers(1, 40), m=st.integers(1, 5), seed=st.integers(0, 400), data=st.data())
def test_examples_are_the_strongest_of_each_window(n, m, seed, data):
    draw = np.random.default_rng(seed)
    codes = np.round(draw.standard_normal((n, m)), 1) * (draw.random((n, m)) < 0.4)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=5))) if n > 1 else []
    starts = np.array([0, *cuts, n])
    per, before, after = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
    shown = examples(
        Activity(np.arange(n), starts, sparse.csc_array(codes)), per_latent=per, before=before, after=after
    )
    wanted = []
    for latent in range(m):
        best = []
        for low, high in pairwise(starts):
            part = abs(codes[low:high, latent])
            if part.any():
                best.append((-part.max(), low + int(part.argmax()), low, high))
        for _, place, low, high in sorted(best)[:per]:
            start, end = max(low, place - before), min(high, place + after + 1)
            wanted.append((latent, start, codes[start:end, latent].tolist()))
    ends = np.cumsum(shown.length)
    found = [
        (int(latent), int(start), shown.values[end - length : end].astype(float).round(6).tolist())
        for latent, start, length, end in zip(shown.latent, shown.start, shown.length, ends)
    ]
    assert found == wanted
    counts, largest = histograms(sparse.csc_array(codes), 7)
    np.testing.assert_array_equal(counts.sum(1), (codes != 0).sum(0))
    np.testing.assert_allclose(largest, abs(codes).max(0), rtol=1e-6)
    assert all(counts[i, -1] > 0 for i in range(m) if largest[i] > 0)


def test_activity_is_the_codes_of_the_stream():
    model, tokenizer, sae = world()
    found = activity(model, "layers.1", sae, texts=TEXTS, tokenizer=tokenizer, context=20)
    stream = ActivationStream(model, hook="layers.1", texts=TEXTS, tokenizer=tokenizer, context=20)
    with torch.no_grad():
        codes = sae.encode(torch.from_numpy(stream.collect())).numpy()
    assert found.codes.shape == codes.shape
    # the stream is shuffled: compare as sets of rows
    ours = found.codes.toarray()
    for one, other in ((ours, codes), (codes, ours)):
        assert max(abs(other - row).max(1).min() for row in one) < 1e-4
    text = b"".join(tokenizer.decode_bytes([t]) for t in found.tokens)
    assert sorted(text) == sorted(b"".join(t.encode() for t in TEXTS))
    assert found.starts[0] == 0
    assert found.starts[-1] == len(found.tokens)
    assert np.diff(found.starts).max() <= 19
    short = activity(model, "layers.1", sae, texts=TEXTS, tokenizer=tokenizer, context=20, most=25)
    assert len(short.tokens) == short.codes.shape[0] == short.starts[-1] == 25
    assert np.array_equal(short.codes.toarray(), ours[:25])


def read(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_what_it_shows_and_text_stays_text(tmp_path):
    model, tokenizer, sae = world()
    scores = browse(
        sae, model, "layers.1", TEXTS, tokenizer, tmp_path / "page.html", title="<i>mine</i> & yours", per_latent=2
    )
    page = (tmp_path / "page.html").read_text()
    assert scores["bytes"] == len(page.encode())
    assert "<i>mine" not in page
    assert "&lt;i&gt;mine&lt;/i&gt; &amp; yours" in page
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    for name in ("explained variance", "L0", "dead latents", "cross-entropy"):
        assert f"<dt>{name}</dt>" in page
    assert f"{scores['ce_recovered']:.4f} of the cross-entropy recovered against the mean" in page
    data = read(page)
    fires = np.frombuffer(base64.b64decode(data["fires"]), "<i4")
    tokens = np.frombuffer(base64.b64decode(data["tokens"]), "<i4")
    found = activity(model, "layers.1", sae, texts=TEXTS, tokenizer=tokenizer)
    np.testing.assert_array_equal(fires, (found.codes.toarray() != 0).sum(0))
    assert scores["l0"] == pytest.approx(fires.sum() / len(tokens))
    assert scores["dead"] == (fires == 0).mean()
    assert "".join(data["words"][t] for t in tokens) == tokenizer.decode(found.tokens)


def test_promoted_tokens_are_those_of_the_logits():
    """Adding a lot of a direction before the final norm raises just these logits."""
    model, _, sae = world()
    tokens, values = promoted(model, sae, 3)
    assert tokens.shape == values.shape == (40, 6)
    with torch.no_grad():
        for latent in (0, 7):
            hook = model.layers[1].register_forward_hook(lambda m, i, out, w=sae.W_dec[latent]: out + 1e6 * w)
            logits = model(torch.tensor([[1, 5]]))[0, -1]
            hook.remove()
            assert tokens[latent, :3].tolist() == logits.topk(3).indices.tolist()
            assert tokens[latent, 3:].tolist() == logits.topk(3, largest=False).indices.tolist()
    assert promoted(model, SparseAutoencoder.from_preset("topk", d_in=8, d_sae=9, k=2), 3) is None


def test_a_model_without_logits_is_shown_without_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(TEXTS, 280)
    sizes = {"vocab_size": 280, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        model = transformers.BertModel(transformers.BertConfig(intermediate_size=8, **sizes)).eval()
    sae = SparseAutoencoder.from_preset("topk", d_in=16, d_sae=40, k=3).eval()
    scores = browse(sae, model, "layers.1", TEXTS, tokenizer, tmp_path / "page.html")
    assert "ce_recovered" not in scores
    page = (tmp_path / "page.html").read_text()
    assert "not measured" in page
    assert read(page)["promoted"] is None


def test_thousands_of_latents_stay_a_few_megabytes(tmp_path):
    model, tokenizer = reference_language_model()
    sae = SparseAutoencoder.from_preset("topk", d_in=128, d_sae=4096, k=32).eval()
    texts = [" ".join(f"word{(i * j) % 997}" for i in range(300)) for j in range(1, 5)]
    scores = browse(sae, model, "layers.2", texts, tokenizer, tmp_path / "page.html", tokens=3000)
    assert scores["bytes"] < 4_000_000
    assert scores["dead"] < 0.9


def test_what_cannot_be_shown_is_refused(tmp_path):
    model, tokenizer, sae = world()
    with pytest.raises(InputError, match="most: got 0"):
        browse(sae, model, "layers.1", TEXTS, tokenizer, tmp_path / "page.html", tokens=0)
    with pytest.raises(InputError, match="gives 16 features"):
        browse(
            SparseAutoencoder.from_preset("topk", d_in=8, d_sae=9, k=2), model, "layers.1", TEXTS, tokenizer,
            tmp_path / "page.html",
        )  # fmt: skip
    with pytest.raises(InputError, match="cannot be written"):
        browse(sae, model, "layers.1", TEXTS, tokenizer, tmp_path / "no" / "page.html")
    assert not list(tmp_path.iterdir())

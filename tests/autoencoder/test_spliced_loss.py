"""Cross-entropy recovered: autoencoders whose answer is known, one loss by hand, and what is counted."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ellzero.autoencoder import SparseAutoencoder
from ellzero.autoencoder.spliced_loss import cross_entropy_recovered
from ellzero.errors import InputError
from ellzero.models import ActivationStream, reference_language_model, reference_texts

HOOK = "layers.2"


@pytest.fixture(scope="module")
def world():
    model, tokenizer = reference_language_model()
    return model, tokenizer, [text[:400] for text in reference_texts("validation")[:6]]


class Same:
    d_in = 128

    def encode(self, x):
        return x

    def decode(self, z):
        return z


class Constant(Same):
    def __init__(self, value):
        self.value = torch.as_tensor(value)

    def decode(self, z):
        return self.value.expand(len(z), -1)


def score(world, sae, **options):
    model, tokenizer, texts = world
    return cross_entropy_recovered(model, HOOK, sae, texts=texts, tokenizer=tokenizer, **options)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_a_perfect_one_recovers_all_and_the_ablation_itself_nothing(world, ablation):
    model, tokenizer, texts = world
    found = score(world, Same(), ablation=ablation)
    assert found.recovered == 1
    assert found.delta == found.kl == 0
    assert found.ablated > found.cross_entropy + 0.5
    mean = ActivationStream(model, hook=HOOK, texts=texts, tokenizer=tokenizer).collect().mean(0, dtype=np.float64)
    value = mean.astype(np.float32) if ablation == "mean" else np.zeros(128, np.float32)
    nothing = score(world, Constant(value), ablation=ablation)
    assert nothing.recovered == pytest.approx(0, abs=1e-4)
    assert nothing.cross_entropy == found.cross_entropy
    assert nothing.spliced == pytest.approx(nothing.ablated, abs=1e-4)


def test_the_losses_are_those_of_each_text_alone(world):
    """No batch, no padding, a hook of torch's own."""
    model, tokenizer, texts = world
    sae = SparseAutoencoder.from_preset("topk", d_in=128, d_sae=64, k=8).eval()
    found = score(world, sae, context=64, sequences=5)
    total, count, split = np.zeros(3), 0, 0.0
    for text in texts:
        tokens = tokenizer.encode(text)
        for low in range(0, len(tokens), 63):
            window = torch.tensor([[tokenizer.bos, *tokens[low : low + 63]]])
            if window.shape[1] < 3:
                continue
            targets = window[0, 2:]
            with torch.no_grad():
                outs = []
                for function in (None, sae, torch.zeros_like):
                    hook = model.layers[2].register_forward_hook(
                        lambda m, i, out, f=function: (
                            None if f is None else torch.cat([out[:, :1], f(out[0, 1:])[None]], dim=1)
                        )
                    )
                    outs.append(model(window)[0, 1:-1])
                    hook.remove()
            total += [float(F.cross_entropy(out, targets, reduction="sum")) for out in outs]
            split += float(F.kl_div(outs[1].log_softmax(-1), outs[0].log_softmax(-1), reduction="sum", log_target=True))
            count += len(targets)
    zero = score(world, sae, context=64, sequences=5, ablation="zero")
    assert found.tokens == zero.tokens == count
    np.testing.assert_allclose([zero.cross_entropy, zero.spliced, zero.ablated], total / count, rtol=1e-4)
    assert zero.kl == pytest.approx(split / count, rel=1e-4)
    assert zero.recovered == pytest.approx((zero.ablated - zero.spliced) / (zero.ablated - zero.cross_entropy))
    assert zero.delta == zero.spliced - zero.cross_entropy
    assert found.spliced == zero.spliced
    assert found.ablated != zero.ablated


def test_it_says_what_was_measured(world):
    found = score(world, Same(), ablation="zero", drop_bos=False)
    assert found.special_tokens
    assert found.tokens > score(world, Same()).tokens
    assert "against zeros" in found.statement
    assert "special tokens included" in found.statement
    assert f"{found.tokens} predictions" in found.statement


def test_tokens_do_as_well_as_texts_and_the_model_is_left_as_it_was(world):
    model, tokenizer, texts = world
    model.train()
    found = cross_entropy_recovered(
        model, HOOK, Same(), tokens=[tokenizer.encode(t, bos=True) for t in texts], tokenizer=tokenizer
    )
    assert model.training
    assert model.layers[0].training
    model.eval()
    assert not model.layers[2]._forward_hooks
    assert found.cross_entropy == pytest.approx(score(world, Same()).cross_entropy, rel=0.05)


def test_what_has_no_next_token_is_refused(world):
    model = world[0]
    with pytest.raises(InputError, match="did you mean 'mean'"):
        score(world, Same(), ablation="men")
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(intermediate_size=8, **sizes)
    with torch.random.fork_rng():
        bare, masked = transformers.BertModel(config), transformers.BertForMaskedLM(config)
    small = SparseAutoencoder.from_preset("topk", d_in=8, d_sae=8, k=2)
    for headless in (bare, masked):
        with pytest.raises(InputError, match="predicts the next token"):
            cross_entropy_recovered(headless, "layers.0", small, tokens=[[1, 2, 3]])

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(9, 8)

        def forward(self, tokens):
            return self.embedding(tokens).mean(1)

    with pytest.raises(InputError, match="gives no logits"):
        cross_entropy_recovered(Pooled(), "embedding", small, tokens=[[1, 2, 3]])
    with pytest.raises(InputError, match="no two tokens"):
        cross_entropy_recovered(model, HOOK, Same(), tokens=[[5], [6]])
    with pytest.raises(InputError, match="takes 64"):
        score(world, SparseAutoencoder.from_preset("topk", d_in=64, d_sae=64, k=8))

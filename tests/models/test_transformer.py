"""The transformer: causal, the same with and without a cache or padding, and equal to another implementation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.models.transformer import Cache, TransformerConfig

CONFIG = TransformerConfig(vocabulary=50, width=24, depth=3, heads=6, key_heads=2, hidden=40, context=24)


def sharp(seed=0):
    """A model whose attention is far from even, so that a wrong position shows."""
    model = CONFIG.build(seed).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2:
                value.mul_(12.0 if "attention" in name else 4.0)
    return model


MODEL = sharp()


def tokens(n, time, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(50, size=(n, time)))


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@torch.no_grad()
def test_a_cache_changes_nothing(cuts):
    x = tokens(3, sum(cuts))
    cache, parts = Cache(), []
    for part in x.split(cuts, dim=1):
        parts.append(MODEL(part, cache=cache))
    assert cache.length == sum(cuts)
    torch.testing.assert_close(torch.cat(parts, 1), MODEL(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_later_tokens_do_not_matter():
    x, y = tokens(2, 12), tokens(2, 12, seed=1)
    y[:, :7] = x[:, :7]
    a, b = MODEL(x), MODEL(y)
    torch.testing.assert_close(a[:, :7], b[:, :7], atol=1e-5, rtol=1e-5)
    assert (a[:, 7:] - b[:, 7:]).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_matter(side):
    x, lengths = tokens(3, 10), [10, 6, 1]
    mask = torch.zeros(3, 10, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 10 - n :] = 1
        if side == "right":
            mask[row] = mask[row].flip(0)
    out = MODEL(x, mask)
    assert out.isfinite().all()
    for row, n in enumerate(lengths):
        alone = MODEL(x[row : row + 1, mask[row].bool()])
        assert alone.shape[1] == n
        torch.testing.assert_close(out[row, mask[row].bool()], alone[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_padded_prompt_continues_in_the_cache():
    x, more = tokens(2, 6), tokens(2, 3, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    cache = Cache()
    MODEL(x, mask, cache)
    out = MODEL(more, torch.ones(2, 3, dtype=torch.long), cache)
    for row, start in ((0, 0), (1, 3)):
        alone = MODEL(torch.cat([x[row, start:], more[row]])[None])
        torch.testing.assert_close(out[row], alone[0, -3:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_the_llama_of_transformers():
    """The same weights in the other implementation give the same logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=24, rms_norm_eps=CONFIG.epsilon, tie_word_embeddings=True,
        rope_theta=CONFIG.rope_base, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    other = transformers.LlamaForCausalLM(config).eval()
    names = {
        "embedding.": "model.embed_tokens.", "layers.": "model.layers.", "norm.": "model.norm.",
        "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
        "feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj",
        "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
    }  # fmt: skip
    state = {}
    for key, value in MODEL.state_dict().items():
        start = next(old for old in ("embedding.", "layers.", "norm.") if key.startswith(old))
        new = names[start] + key[len(start) :]
        for old in sorted(names, key=len, reverse=True)[: len(names)]:
            if old not in ("embedding.", "layers.", "norm.") and old in new:
                new = new.replace(old, names[old])
                break
        state[new] = value
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"])
    assert not unexpected
    other.tie_weights()
    x = tokens(2, 20)
    torch.testing.assert_close(MODEL(x), other(x).logits, atol=2e-4, rtol=1e-4)


def test_generation_follows_the_logits():
    prompt = tokens(1, 4)[0].tolist()
    greedy = MODEL.generate(prompt, 8, temperature=0)
    so_far = list(prompt)
    for token in greedy:
        assert token == int(MODEL(torch.tensor([so_far]))[0, -1].argmax())
        so_far.append(token)
    assert MODEL.generate(prompt, 8, top_k=1, temperature=3.0) == greedy
    assert MODEL.generate(prompt, 0) == []


def test_sampling_is_seeded_and_has_the_right_frequencies():
    prompt = [3, 1]
    assert MODEL.generate(prompt, 6, seed=5) == MODEL.generate(prompt, 6, seed=5)
    drawn = np.array([MODEL.generate(prompt, 1, seed=s, temperature=2.0, top_k=5)[0] for s in range(200)])
    logits = MODEL(torch.tensor([prompt]))[0, -1].detach().double().numpy() / 2.0
    best = np.argsort(-logits)[:5]
    chance = np.exp(logits[best]) / np.exp(logits[best]).sum()
    assert set(drawn) <= set(best.tolist())
    found = np.array([(drawn == token).mean() for token in best])
    assert np.abs(found - chance).max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        (([], 3), {}, "tokens"),
        (([50], 3), {}, "tokens"),
        (([-1], 3), {}, "tokens"),
        (([0.5], 3), {}, "tokens"),
        (([1], 24), {}, "length"),
        (([1], -1), {}, "length"),
        (([1], 3), {"temperature": -1}, "temperature"),
        (([1], 3), {"top_k": 0}, "top_k"),
        (([1], 3), {"top_k": 51}, "top_k"),
        (([1], 3), {"seed": -1}, "seed"),
    ],
)
def test_bad_generation(arguments, options, name):
    with pytest.raises(InputError, match=name):
        MODEL.generate(*arguments, **options)


def test_too_long_is_refused():
    with pytest.raises(InputError, match="at most context = 24"):
        MODEL(tokens(1, 25))
    cache = Cache()
    MODEL(tokens(1, 20), cache=cache)
    with pytest.raises(InputError, match="got 25 positions"):
        MODEL(tokens(1, 5), cache=cache)

"""The language model that ships as a folder of Hugging Face: the same weights in a Llama, the same tokens."""

import re
from pathlib import Path


def write(folder: Path) -> None:
    """Write model and tokenizer; their logits and tokens equal those of ``reference_language_model``."""
    import torch
    import transformers

    from ellzero.models import reference_language_model

    model, tokenizer = reference_language_model()
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocabulary, hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads,
        num_key_value_heads=c.key_heads, intermediate_size=c.hidden, max_position_embeddings=c.context,
        rms_norm_eps=c.epsilon, rope_theta=c.rope_base, tie_word_embeddings=True, bos_token_id=1, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        llama = transformers.LlamaForCausalLM(config)
    names = {
        "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm", "query": "q_proj",
        "key": "k_proj", "value": "v_proj", "output": "o_proj", "gate": "gate_proj", "up": "up_proj",
        "down": "down_proj", "attention": "self_attn", "feed_forward": "mlp", "embedding": "embed_tokens",
    }  # fmt: skip
    weights = {
        "model." + ".".join(names.get(part, part) for part in name.split(".")): tensor
        for name, tensor in model.state_dict().items()
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    llama.load_state_dict(weights)
    llama.save_pretrained(folder)
    _tokenizer(tokenizer).save_pretrained(folder)


def _tokenizer(ours):
    """Byte pair encoding over the letters that stand for bytes, cut as ours cuts."""
    import tokenizers
    import transformers

    letters = _letters()
    words = [b""] * 2 + [bytes([b]) for b in range(256)]
    merges = []
    for left, right in ours.merges:
        merges.append(tuple("".join(letters[b] for b in words[side]) for side in (left, right)))
        words.append(words[left] + words[right])
    vocabulary = {"<pad>": 0, "<bos>": 1}
    vocabulary |= {"".join(letters[b] for b in word): i for i, word in enumerate(words) if i > 1}
    assert len(vocabulary) == ours.vocabulary
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    space, high = r" \t\n\r\x0b\x0c", "\x80-\U0010ffff"
    chunk = rf" ?[A-Za-z{high}]+| ?[0-9]| ?[^{space}A-Za-z0-9{high}]+|[{space}]+(?![^{space}])|[{space}]"
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(chunk), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", pad_token="<pad>")


def _letters() -> dict[int, str]:
    """The letter of each byte in byte-level encodings: itself where it can be printed, else one above 255."""
    printed = [b for b in range(256) if re.match(r"[!-~¡-¬®-ÿ]", chr(b))]
    return {b: chr(b) for b in printed} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in printed)
    }

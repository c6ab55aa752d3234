"""Small random transformers with tokenizers, made here and now."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ellzero.retrieval.backbone import Backbone

LETTERS = list("abcdefghijklmnopqrstuvwxyz")
WORDS = ["wing", "flow", "lift", "##ing", "drag", "boundary", "layer", "super", "##sonic", "of", "the", ",", "."]
TEXTS = ["supersonic wings, wings", "the drag of a lifting wing.", "", "boundary layer flow of the unknown", "lift"]


def bert_tokenizer(folder, max_length=32):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=max_length)


def seeded(make, config, seed=0, noise=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases too, so that a forgotten one shows
                parameter.add_(noise * torch.randn(parameter.shape))
    return model


def bert_config(tokenizer, **options):
    return BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.5, **options,
    )  # fmt: skip


def bert(folder, mlm=True, seed=0, max_length=32):
    """A backbone of two layers; ``folder`` takes the vocabulary."""
    tokenizer = bert_tokenizer(folder)
    model = seeded(BertForMaskedLM if mlm else BertModel, bert_config(tokenizer), seed)
    return Backbone(model, tokenizer, max_length)


def word_tokenizer(words, **special):
    known = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(known, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=words[0], **special)


def llama(words, width=16, seed=0, *, spread=0.3, noise=0.1, **options):
    """A decoder whose pieces are words; the first is unknown, the second begins a text."""
    tokenizer = word_tokenizer(words, bos_token=words[1], pad_token=words[0])
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=64, initializer_range=spread, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return Backbone(seeded(LlamaForCausalLM, config, seed, noise), tokenizer, **options)

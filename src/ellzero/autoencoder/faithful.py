"""Autoencoders trained on text that the model itself wrote.

Lives here: ``sample_tokens`` (sampled from a model, from the first token on) and ``fake_feature_ratio``. Does not live
here: training (``trainer``), the share of latents that seeds have in common (``stability``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.autoencoder.metrics import firing_shares
from ellzero.autoencoder.spliced_loss import logits as next_logits
from ellzero.autoencoder.spliced_loss import predicts_next
from ellzero.errors import InputError, check, check_integer
from ellzero.models.activations import ActivationStream, evaluating
from ellzero.models.transformer import Cache, Transformer
from ellzero.models.windows import bos_token
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["fake_feature_ratio", "sample_tokens"]


@torch.no_grad()
def sample_tokens(
    model: nn.Module, bos: int, tokens: int, *, length: int | None = None, temperature: float = 1.0, top_p: float = 1.0,
    batch: int = 64, seed: int = 0,
) -> list[list[int]]:  # fmt: skip
    """Sequences that a language model writes when given nothing but its first token. FaithfulSAE (2025), section 3.

    Parameters
    ----------
    model : gives logits ``[batch, time, vocabulary]`` of the next token, or an output with ``logits``.
    bos : the token that begins each sequence; it is part of them, and not counted.
    tokens : the budget: exactly so many tokens are sampled, the last sequence being shorter if need be.
    length : of a sequence with its ``bos``; by default the model's context.
    temperature : divides the logits.
    top_p : sample among the most likely tokens whose probabilities sum to this much (nucleus). Below 1 the text is less
        varied than what the model knows.
    batch : sequences at a time.
    seed : of the draws. A sequence depends on its number and the seed, not on ``batch``, but for rounding.

    Returns
    -------
    list : the sequences, for ``ActivationStream(model, tokens=...)``.

    Raises
    ------
    InputError : a model without such logits, a token that it does not know, a temperature of zero or less.
    """
    if not isinstance(model, nn.Module) or not predicts_next(model):
        raise InputError(f"model: got {type(model).__name__}, want a model that predicts the next token")
    context = getattr(getattr(model, "config", None), "context", None)
    length = (context or 128) if length is None else length
    check_integer("length", length, at_least=2, at_most=context)
    check_integer("tokens", tokens, at_least=1)
    check_integer("batch", batch, at_least=1)
    check_integer("bos", bos, at_least=0)
    check("temperature", temperature, above=0, below=float("inf"))
    check("top_p", top_p, above=0, at_most=1)
    count, found = -(-tokens // (length - 1)), []
    with evaluating(model):
        for low in range(0, count, batch):
            streams = [rng(seed, "sample", number) for number in range(low, min(low + batch, count))]
            uniform = np.stack([stream.random(length - 1) for stream in streams])
            found += _written(model, bos, torch.from_numpy(uniform), temperature, top_p).tolist()
    short = count * (length - 1) - tokens
    if short:
        found[-1] = found[-1][:-short]
    return found


def _written(model: nn.Module, bos: int, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sequences ``[batch, 1 + time]`` by inversion of the distribution function at ``uniform [batch, time]``."""
    device = next(model.parameters()).device
    sequences = torch.full((len(uniform), 1), bos, device=device)
    cache = Cache() if isinstance(model, Transformer) else None
    for column in uniform.to(device).T:
        given = sequences if cache is None else sequences[:, -1:]
        last = next_logits(model, given, {} if cache is None else {"cache": cache})[:, -1]
        chance, order = torch.softmax(last.double() / temperature, -1).sort(dim=-1, descending=True, stable=True)
        below = chance.cumsum(-1)
        # a token is in while those above it do not yet make up top_p: the first one always
        inside = (below - chance < top_p).sum(-1, keepdim=True)
        total = below.gather(1, inside - 1)
        place = torch.searchsorted(below, column[:, None] * total, right=True).minimum(inside - 1)
        sequences = torch.cat([sequences, order.gather(1, place)], 1)
    return sequences


@register(
    kind="metric", wing="autoencoder", source="arXiv:2506.17673", id="S132", extra="torch",
    claim="fewer latents that fire on noise when trained on the model's own text",
)  # fmt: skip
def fake_feature_ratio(
    model: nn.Module, hook: str, sae: Any, *, above: float = 0.1, tokens: int = 10_000, context: int | None = None,
    vocabulary: int | None = None, tokenizer: Any = None, seed: int = 0,
) -> float:  # fmt: skip
    """The share of latents that fire on more than ``above`` of the positions of tokens drawn at random.

    Such tokens mean nothing to the model, so latents that are dense there stand for no feature of language.
    FaithfulSAE (2025), section 4.3.

    Parameters
    ----------
    model, hook : the language model and the module, as for ``ActivationStream``.
    sae : anything with ``encode`` and ``decode``, in the mode it is in.
    above : share of positions.
    tokens : how many are drawn, uniformly.
    context : their number in a sequence, by default that of ``ActivationStream``.
    vocabulary : number of tokens to draw from; by default the model's.
    tokenizer : the model's; the token with which it begins a text, if it has one, is put before each sequence and not
        counted.

    Raises
    ------
    InputError : a model that does not say its vocabulary, where it is not given.

    Measured at ``layers.2`` of the reference language model (512 latents, TopK 16, 12,000 tokens, 300 steps of 256,
    two seeds): trained on the model's own samples and on as many tokens of plays, the spliced model lost 0.51 and 1.44
    nats on new samples; the fake feature ratio was 0.031 and 0.034, and seeds shared 1.4 % and 0.2 % of their latents,
    which is too little, after so short a training, to tell one from the other.
    """
    check("above", above, at_least=0, below=1)
    check_integer("tokens", tokens, at_least=1)
    config = getattr(model, "config", None)
    if vocabulary is None:
        names = ("vocabulary", "vocab_size")
        vocabulary = next((getattr(config, name) for name in names if hasattr(config, name)), None)
        if vocabulary is None:
            raise InputError("vocabulary: got none, and the model does not say its own, want a number of tokens")
    check_integer("vocabulary", vocabulary, at_least=2)
    context = check_integer("context", 128 if context is None else context, at_least=2)
    bos = None if tokenizer is None else bos_token(tokenizer)
    length = context - (bos is not None)
    drawn = rng(seed, "random tokens").integers(0, vocabulary, -(-tokens // length) * length).reshape(-1, length)
    rows = drawn if bos is None else np.concatenate([np.full((len(drawn), 1), bos), drawn], 1)
    stream = ActivationStream(model, hook=hook, tokens=rows.tolist(), tokenizer=tokenizer, context=context)
    return float((firing_shares(sae, stream) > above).mean())

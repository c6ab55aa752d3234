"""Train the reference language model: ``python -m ellzero.models.train_reference``.

Lives here: the exact recipe of the weights that ship, its evaluation and the card beside them. Does not live here:
the loop for the user's own models (``ellzero.training``), and the reading of the weights (``reference``).
One core of a small machine trains it in about a quarter of an hour; the same command gives the same weights on the
same machine and thread count.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ellzero.data.sets import raw_text
from ellzero.errors import InputError, check, check_integer
from ellzero.io.atomic import write_text
from ellzero.models import storage
from ellzero.models.reference import HELD_OUT, TEXTS, WEIGHTS, held_out_loss, split_text, token_stream
from ellzero.models.tokenizer import Tokenizer, train_tokenizer
from ellzero.models.transformer import Transformer, TransformerConfig
from ellzero.rng import rng

__all__ = ["ReferenceRecipe", "card", "main", "train", "unigram_loss"]

DATA = {
    "wikitext2": "validation part of WikiText-2, text of Wikipedia's contributors (arXiv:1609.07843), CC BY-SA 3.0",
    "tinyshakespeare": "plays of William Shakespeare as collected for char-rnn by Andrej Karpathy, public domain",
}


@dataclass(frozen=True)
class ReferenceRecipe:
    """Everything that decides the reference weights."""

    vocabulary: int = 2048
    width: int = 128
    depth: int = 4
    heads: int = 4
    key_heads: int = 2
    hidden: int = 352
    context: int = 128
    batch: int = 32
    steps: int = 1600
    rate: float = 3e-3
    """Peak learning rate: risen to linearly, left along a cosine."""
    last_rate: float = 0.03
    """The last learning rate as a share of the peak."""
    warmup: int = 100
    decay: float = 0.1
    """AdamW's weight decay, on matrices alone."""
    clip: float = 1.0
    held_out: float = HELD_OUT
    """Share of each text's end that is kept for validation."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "steps"):
            check_integer(name, getattr(self, name), at_least=1)
        check_integer("warmup", self.warmup, at_least=0)
        check("rate", self.rate, above=0)
        check("last_rate", self.last_rate, at_least=0, at_most=1)
        check("decay", self.decay, at_least=0)
        check("clip", self.clip, above=0)
        check("held_out", self.held_out, above=0, below=1)

    def model(self) -> TransformerConfig:
        """The model's part of the recipe."""
        return TransformerConfig(
            self.vocabulary, self.width, self.depth, self.heads, self.key_heads, self.hidden, self.context
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * progress)) / 2)


def _optimizer(model: Transformer, decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(
    recipe: ReferenceRecipe,
    stream: np.ndarray,
    bos: int,
    *,
    watch: Callable[[int, float, Transformer], None] | None = None,
) -> Transformer:
    """Train on windows drawn evenly from one stream of tokens; each begins with ``bos``."""
    if len(stream) < recipe.context + 1:
        raise InputError(f"stream: got {len(stream)} tokens, want more than context = {recipe.context}")
    model = recipe.model().build(recipe.seed).train()
    optimizer = _optimizer(model, recipe.decay)
    windows = rng(recipe.seed, "windows")
    for step in range(recipe.steps):
        starts = windows.integers(len(stream) - recipe.context + 1, size=recipe.batch)
        targets = torch.from_numpy(stream[starts[:, None] + np.arange(recipe.context)])
        tokens = torch.cat([torch.full((recipe.batch, 1), bos), targets[:, :-1]], dim=1)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if watch is not None:
            watch(step, float(loss.detach()), model)
    return model.eval()


def unigram_loss(train_stream: np.ndarray, held_out: np.ndarray, vocabulary: int) -> float:
    """Nats per token of the best guess without context: training frequencies, one added to every count."""
    count = np.bincount(train_stream, minlength=vocabulary) + 1.0
    return float(-np.log(count / count.sum())[held_out].mean())


def _parts(texts: dict[str, str], recipe: ReferenceRecipe) -> dict[str, tuple[str, str]]:
    return {name: split_text(text, recipe.held_out) for name, text in texts.items()}


def _evaluate(model: Transformer, tokenizer: Tokenizer, parts: dict[str, tuple[str, str]]) -> dict[str, dict]:
    """Per text and over all: tokens, nats per token, bits per byte, and the unigram baseline in the same units."""
    train_stream = token_stream(tokenizer, [first for first, _ in parts.values()])
    sizes = tokenizer.token_bytes()
    result, total = {}, {"tokens": 0, "bytes": 0, "nats": 0.0, "unigram": 0.0}
    for name, (_, last) in parts.items():
        stream = token_stream(tokenizer, [last])
        nats, unigram = (
            held_out_loss(model, stream, tokenizer.bos),
            unigram_loss(train_stream, stream, tokenizer.vocabulary),
        )
        n_bytes = int(sizes[stream].sum())
        result[name] = _row(len(stream), n_bytes, nats, unigram)
        total["tokens"] += len(stream)
        total["bytes"] += n_bytes
        total["nats"] += nats * len(stream)
        total["unigram"] += unigram * len(stream)
    n = total["tokens"]
    return {**result, "all": _row(n, total["bytes"], total["nats"] / n, total["unigram"] / n)}


def _row(tokens: int, n_bytes: int, nats: float, unigram: float) -> dict[str, float]:
    to_bits = tokens / n_bytes / math.log(2)
    return {
        "tokens": tokens,
        "bytes": n_bytes,
        "nats_per_token": round(nats, 4),
        "bits_per_byte": round(nats * to_bits, 4),
        "unigram_nats_per_token": round(unigram, 4),
        "unigram_bits_per_byte": round(unigram * to_bits, 4),
    }


def _read(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {name: raw_text(name) for name in TEXTS}
    texts = {}
    for name, file in TEXTS.items():
        try:
            texts[name] = (folder / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--texts: cannot read {folder / file} ({error})") from error
    return texts


def card(
    recipe: ReferenceRecipe, model: Transformer, tokenizer: Tokenizer, texts: dict[str, str], run: dict[str, Any]
) -> dict[str, Any]:
    """What stands beside the weights; ``run`` is what only the run knows: steps, seconds, threads."""
    parts = _parts(texts, recipe)
    command = f"python -m ellzero.models.train_reference --steps {recipe.steps} --seed {recipe.seed}"
    return {
        "model": "reference language model",
        "licence": "CC BY-SA 3.0, as the text from Wikipedia that it was trained on",
        "data": DATA,
        "held_out": "the last 8 % of each text; neither weights nor tokenizer saw it",
        "tokenizer": f"byte-level BPE of {tokenizer.vocabulary} tokens, learnt from the training part",
        "parameters": sum(p.numel() for p in model.parameters()),
        "storage": "float32",
        "recipe": asdict(recipe),
        "training_tokens": len(token_stream(tokenizer, [first for first, _ in parts.values()])),
        "tokens_seen": run["steps"] * recipe.batch * recipe.context,
        **run,
        "validation": _evaluate(model, tokenizer, parts),
        "command": command,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, and write weights and card."""
    parser = argparse.ArgumentParser(description="Train the reference language model.")
    parser.add_argument("--texts", type=Path, help="folder of the two texts as .txt; default: those that ship")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="weight file; the card is written beside it")
    parser.add_argument("--steps", type=int, default=ReferenceRecipe.steps)
    parser.add_argument("--seed", type=int, default=ReferenceRecipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0, help="also write the weights every so many steps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(check_integer("--threads", options.threads, at_least=1))
    recipe = ReferenceRecipe(steps=options.steps, seed=options.seed)
    texts = _read(options.texts)
    training = [first for first, _ in _parts(texts, recipe).values()]
    tokenizer = train_tokenizer(training, recipe.vocabulary)
    stream = token_stream(tokenizer, training)
    print(f"{len(stream)} training tokens, {tokenizer.vocabulary} in the vocabulary", flush=True)
    began = time.perf_counter()

    def finish(model: Transformer, steps: int) -> None:
        run = {
            "steps": steps,
            "seconds": round(time.perf_counter() - began),
            "threads": options.threads,
            "torch": torch.__version__,
        }
        note = card(recipe, model, tokenizer, texts, run)
        storage.save(options.out, model, {"tokenizer": tokenizer.to_json()})
        write_text(options.out.with_suffix(".json"), json.dumps(note, indent=2) + "\n")
        print(json.dumps(note["validation"]["all"]), flush=True)

    def watch(step: int, loss: float, model: Transformer) -> None:
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"step {step}: loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
        if options.save_every and (step + 1) % options.save_every == 0:
            finish(model, step + 1)

    finish(train(recipe, stream, tokenizer.bos, watch=watch), recipe.steps)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")

"""The reference language model that ships: real weights with logits, for every wing and test to work on.

Lives here: ``reference_language_model``, ``reference_texts``, and how a loss on held-out text is measured.
Does not live here: its training (``train_reference``), the texts themselves (``ellzero.data.sets``).
The card beside the weights states data, licences, steps and validation loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ellzero.data.sets import raw_text
from ellzero.errors import InputError, check, check_choice
from ellzero.io.readers import paragraphs
from ellzero.models import storage
from ellzero.models.tokenizer import Tokenizer
from ellzero.models.transformer import Transformer

__all__ = ["documents", "held_out_loss", "reference_card", "reference_language_model", "reference_texts", "split_text"]

WEIGHTS = Path(str(resources.files("ellzero.models"))) / "weights" / "reference_lm.safetensors"
CARD = WEIGHTS.with_suffix(".json")
TEXTS = {"wikitext2": "wikitext2_valid.txt", "tinyshakespeare": "tinyshakespeare.txt"}
"""The texts that it was trained on, and what their files are called outside the package."""
HELD_OUT = 0.08
"""Share of each text, at its end, that no weight has seen."""
_DOCUMENT = 1500


def split_text(text: str, held_out: float) -> tuple[str, str]:
    """Cut a text in two at the line break nearest before its last ``held_out`` share (of characters)."""
    check("held_out", held_out, above=0, below=1)
    cut = text.rfind("\n", 0, round(len(text) * (1 - held_out))) + 1
    if cut == 0:
        raise InputError("text: got no line break before the held-out part, want lines")
    return text[:cut], text[cut:]


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """The tokens of all texts, one after the other, int64 ``[n]``."""
    return np.concatenate([np.array(tokenizer.encode(text), dtype=np.int64) for text in texts])


def reference_language_model() -> tuple[Transformer, Tokenizer]:
    """The language model that ships, in evaluation mode, and its tokenizer.

    A four-layer Llama-style ``Transformer`` of width 128 (``layers.0`` to ``layers.3``). Each call reads it afresh,
    so that what one caller changes no other sees.
    """
    model, extra = storage.load(WEIGHTS)
    return model, Tokenizer.from_json(extra["tokenizer"])


def reference_card() -> dict[str, Any]:
    """How it was trained, on what under which licence, and its loss on held-out text beside the unigram baseline."""
    return json.loads(CARD.read_text(encoding="utf-8"))


def reference_texts(part: str = "train") -> list[str]:
    """Documents of the shipped texts: ``"train"``, what the model was trained on, or ``"validation"``.

    A document is a run of whole paragraphs of about 1,500 characters or more, never across two texts.
    """
    check_choice("part", part, ("train", "validation"))
    halves = [split_text(raw_text(name), HELD_OUT) for name in TEXTS]
    return [document for first, last in halves for document in documents(first if part == "train" else last)]


def documents(text: str) -> list[str]:
    """Runs of whole paragraphs of about 1,500 characters or more each."""
    found, open_parts, size = [], [], 0
    for paragraph in paragraphs(text):
        open_parts.append(paragraph)
        size += len(paragraph)
        if size >= _DOCUMENT:
            found.append("\n\n".join(open_parts))
            open_parts, size = [], 0
    return found + (["\n\n".join(open_parts)] if open_parts else [])


@torch.no_grad()
def held_out_loss(model: Transformer, stream: np.ndarray, bos: int, *, batch: int = 32) -> float:
    """Nats per token over a stream, cut into windows of the model's context that each begin with ``bos``.

    Every token is predicted once, from at most ``context`` before it (so early tokens of a window have less).
    """
    context, total = model.config.context, 0.0
    for low in range(0, len(stream), context * batch):
        block = stream[low : low + context * batch]
        whole = len(block) // context * context
        rows = [block[:whole].reshape(-1, context), block[None, whole:]]
        for targets in (torch.from_numpy(part) for part in rows if part.size):
            tokens = torch.cat([torch.full((len(targets), 1), bos), targets[:, :-1]], dim=1)
            total += float(F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum"))
    return total / len(stream)

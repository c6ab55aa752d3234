"""Backbones: a transformer with its tokenizer, from texts to token states.

Lives here: ``Backbone`` for encoders and for decoders, which see every text twice. Does not live here: the states
(``states``), what is made of them (``heads``), reading of model folders (``models.huggingface``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check_choice, check_integer, require
from ellzero.models.huggingface import load_model, no_progress_bar
from ellzero.retrieval.states import TokenBatch

__all__ = ["Backbone", "checked_texts"]

WORDS = 1_000_000  # remembered with their pieces
_BLANK, _WORD = re.compile(r"[ \t\n\r]").search, re.compile(r"[^ \t\n\r]+").findall


class Backbone(nn.Module):
    """A Hugging Face model and its tokenizer.

    A decoder sees no token to the right, so its texts are given twice, ``text separator text``, and heads with
    ``positions="echo"`` read the second copy alone, each token of which has seen the whole
    text. Springer et al. (2024).

    Parameters
    ----------
    model : a ``PreTrainedModel``, with or without a head of its own. tokenizer : its fast tokenizer.
    max_length : where a text is cut, special tokens included, before it is doubled.
    echo : whether texts are given twice; default: for decoders.
    separator : what stands between the copies. padding : the side that is filled up; either gives the same states.

    Raises
    ------
    InputError : no tokenizer, or one without pieces of its own, or a bad argument.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_length: int = 256,
        *,
        echo: bool | None = None,
        separator: str = "\n",
        padding: str = "right",
    ):
        super().__init__()
        if not hasattr(getattr(model, "config", None), "hidden_size"):
            raise InputError(f"model: got {type(model).__name__}, want a Hugging Face transformer")
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise InputError(f"tokenizer: got {type(tokenizer).__name__}, want a Hugging Face tokenizer")
        self.model, self.tokenizer = model, tokenizer
        self.max_length = check_integer("max_length", max_length, at_least=3)
        self.causal = is_causal(model)
        self.echo = self.causal if echo is None else bool(echo)
        self.separator, self.padding = separator, check_choice("padding", padding, ("right", "left"))
        if padding == "left" and not self.causal:
            raise InputError("padding: got 'left' for an encoder, want 'right'; its places count from the left")
        self._words: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike, max_length: int = 256, **options: Any) -> Backbone:
        """From a folder that ``save_pretrained`` wrote, weights from safetensors alone; ``options`` as above."""
        model, tokenizer = load_model(path)
        if tokenizer is None:
            raise InputError(f"path: {str(path)!r} has no tokenizer, want one beside the model")
        return cls(model, tokenizer, max_length, **options)

    def save(self, folder: str | os.PathLike) -> None:
        """Model and tokenizer, as ``save_pretrained`` writes them, into a folder."""
        with no_progress_bar(require("transformers", "hf", "to write models").utils.logging):
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def settings(self) -> dict[str, Any]:
        """What makes it again beside model and tokenizer, as JSON."""
        return {"max_length": self.max_length, "echo": self.echo, "separator": self.separator, "padding": self.padding}

    @property
    def width(self) -> int:
        """The number of entries of a token state."""
        return self.model.config.hidden_size

    @cached_property
    def vocabulary(self) -> list[str]:
        """The pieces by number, as many as the model embeds."""
        known = {number: piece for piece, number in self.tokenizer.get_vocab().items()}
        size = max(self.model.get_input_embeddings().weight.shape[0], max(known) + 1)
        return [known.get(number, f"<{number}>") for number in range(size)]

    def pieces(self, texts: list[str], max_length: int | None = None) -> list[dict[str, list]]:
        """Numbers, special tokens and echoes of each text, without padding."""
        limit = check_integer("max_length", max_length or self.max_length, at_least=3)
        if not texts:
            return []
        cut = self.tokenizer(
            texts, truncation=True, padding=False, max_length=limit, return_special_tokens_mask=not self.echo,
            add_special_tokens=not self.echo, return_attention_mask=False, return_token_type_ids=False,
        )  # fmt: skip
        if not self.echo:
            both = zip(cut["input_ids"], cut["special_tokens_mask"])
            return [{"pieces": ids, "special": special} for ids, special in both]
        between = self.tokenizer(self.separator, add_special_tokens=False)["input_ids"]
        first = self.tokenizer.bos_token_id
        return [echoed(ids, between, [] if first is None else [first]) for ids in cut["input_ids"]]

    def own_pieces(self, texts: list[str]) -> list[list[int]]:
        """The numbers of each text's own pieces, cut as ``pieces`` cuts them: all that a table of weights needs."""
        room = self.max_length - (0 if self.echo else self.tokenizer.num_special_tokens_to_add())
        if not self._by_word:
            return [ids[:room] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        split = [_WORD(text) for text in texts]
        known = self._learned(split)
        return [[piece for word in words for piece in known[word]][:room] for words in split]

    @cached_property
    def _by_word(self) -> bool:
        """Whether a tokenizer cuts words at blanks first, so that each word's pieces can be remembered: BERT's does."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        parts = [] if fast is None else [fast.pre_tokenizer, fast.normalizer]
        named = [type(part).__name__ for part in parts]
        return named == ["BertPreTokenizer", "BertNormalizer"] and not any(
            _BLANK(token) for token in self.tokenizer.get_added_vocab()
        )

    def _learned(self, split: list[list[str]]) -> dict[str, list[int]]:
        """The pieces of all these words: one call for the new ones, as one for each takes longer than the rest."""
        wanted = dict.fromkeys(word for words in split for word in words)
        known = self._words
        new = [word for word in wanted if word not in known]
        if len(known) + len(new) > WORDS:
            known = self._words = {}  # not cleared: another thread may still be reading
            new = list(wanted)
        if new:
            known.update(zip(new, self.tokenizer(new, add_special_tokens=False)["input_ids"]))
        return known

    def batch(self, texts: Iterable[str], *, max_length: int | None = None, states: bool = True) -> TokenBatch:
        """Texts as one batch, differentiable where the model's parameters are; without ``states`` nothing is run."""
        return self._batch(self.pieces(checked_texts(texts), max_length), states)

    def batches(
        self, texts: Iterable[str], *, batch_size: int = 32, max_length: int | None = None, states: bool = True
    ) -> Iterator[tuple[list[int], TokenBatch]]:
        """``(rows, batch)`` over all texts, those of like length together, the longest first."""
        cut = self.pieces(checked_texts(texts), max_length)
        order = sorted(range(len(cut)), key=lambda row: -len(cut[row]["pieces"]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, self._batch([cut[row] for row in rows], states)

    def _batch(self, cut: list[dict[str, list]], states: bool) -> TokenBatch:
        device = self.model.get_input_embeddings().weight.device
        longest = max((len(one["pieces"]) for one in cut), default=0)
        filled = {"pieces": self.tokenizer.pad_token_id or 0, "special": 1, "echo": 0}
        names = ("pieces", "special", "echo") if self.echo else ("pieces", "special")
        made = {name: _padded([one[name] for one in cut], longest, filled[name], self.padding) for name in names}
        mask = _padded([[1] * len(one["pieces"]) for one in cut], longest, 0, self.padding)
        batch = TokenBatch(
            None, made["pieces"], mask.bool(), made["special"].bool(), made["echo"].bool() if self.echo else None
        ).to(device)
        return TokenBatch(**{**vars(batch), "states": self.states(batch)}) if states else batch

    def states(self, batch: TokenBatch) -> Tensor:
        """The last hidden states ``[b, L, d]`` of a batch, float32, zero on padding."""
        if 0 in batch.pieces.shape:
            return torch.zeros(*batch.pieces.shape, self.width, device=batch.pieces.device)
        body = getattr(self.model, "base_model", self.model)
        options = {}
        if self.causal and self.padding == "left":  # else the first token of a short text would not stand at place 0
            options["position_ids"] = (batch.mask.cumsum(1) - 1).clamp_min(0)
        out = body(input_ids=batch.pieces, attention_mask=batch.mask.long(), **options).last_hidden_state
        return out.float() * batch.mask[..., None]


def is_causal(model: nn.Module) -> bool:
    """Whether a model's tokens see nothing to their right."""
    named = [type(model).__name__, *(model.config.architectures or [])]
    return bool(getattr(model.config, "is_decoder", False)) or any(
        name.endswith(("ForCausalLM", "LMHeadModel")) for name in named
    )


def echoed(ids: list[int], separator: list[int], before: list[int]) -> dict[str, list]:
    """A text twice: the start token and the separator are special, the second copy is the echo."""
    template = len(before) + len(ids) + len(separator)
    return {
        "pieces": [*before, *ids, *separator, *ids],
        "special": [1] * len(before) + [0] * len(ids) + [1] * len(separator) + [0] * len(ids),
        "echo": [0] * template + [1] * len(ids),
    }


def checked_texts(texts: Iterable[str]) -> list[str]:
    """A list of texts, or the ``InputError`` that says what it is instead."""
    if isinstance(texts, str):
        raise InputError("texts: got one text, want a list of texts")
    texts = list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts: got {type(text).__name__} at place {place}, want text")
    return texts


def _padded(rows: list[list[int]], longest: int, fill: int, side: str) -> Tensor:
    out = torch.full((len(rows), longest), fill, dtype=torch.int64)
    for place, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        out[place, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    return out

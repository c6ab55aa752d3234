"""Documents cut into windows of tokens, padded into batches, with every position's origin kept.

Lives here: ``Window``, the cuts from texts and from tokens, ``padded``. Does not live here: any model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array
from ellzero.models.tokenizer import Tokenizer

__all__ = ["Window", "cut_texts", "cut_tokens", "padded"]


@dataclass(frozen=True)
class Window:
    """One sequence for the model: its tokens, which of them count, and the document they are from."""

    tokens: np.ndarray
    counts: np.ndarray
    document: int


@dataclass(frozen=True)
class _Coder:
    encode: Callable[[str], Sequence[int]]
    before: tuple[int, ...]
    after: tuple[int, ...]


def _coder(tokenizer: Any) -> _Coder:
    """How a tokenizer encodes, and the special tokens that its models expect around a sequence."""
    if isinstance(tokenizer, Tokenizer):
        return _Coder(tokenizer.encode, (tokenizer.bos,), ())
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise InputError(f"tokenizer: got {type(tokenizer).__name__}, want ours or one of Hugging Face")
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    last = tokenizer.sep_token_id if tokenizer.cls_token_id is not None else None

    def encode(text: str) -> Sequence[int]:
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)

    return _Coder(encode, () if first is None else (first,), () if last is None else (last,))


def bos_token(tokenizer: Any) -> int | None:
    """The token that begins a sequence, if the tokenizer has one."""
    before = _coder(tokenizer).before
    return before[0] if before else None


def cut_texts(texts: Iterable[str], tokenizer: Any, context: int, drop_bos: bool) -> list[Window]:
    """Each text in windows of at most ``context`` tokens; the special tokens stand around each window."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(f"texts: got {type(texts).__name__}, want a list of texts")
    coder = _coder(tokenizer)
    room = context - len(coder.before) - len(coder.after)
    if room < 1:
        raise InputError(f"context: got {context}, want room for a token beside the special ones")
    windows = []
    for document, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts[{document}]: got {type(text).__name__}, want text")
        tokens = coder.encode(text)
        for low in range(0, len(tokens), room):
            inner = tokens[low : low + room]
            whole = np.array([*coder.before, *inner, *coder.after], dtype=np.int64)
            counts = np.ones(len(whole), dtype=bool)
            if drop_bos:
                counts[: len(coder.before)] = False
                counts[len(coder.before) + len(inner) :] = False
            windows.append(Window(whole, counts, document))
    return windows


def cut_tokens(documents: Iterable[Any], context: int, bos: int | None) -> list[Window]:
    """Each document, a sequence of tokens, in windows as it is; a first token equal to ``bos`` does not count."""
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise InputError(f"tokens: got {type(documents).__name__}, want a list of token sequences")
    windows = []
    for document, tokens in enumerate(documents):
        name = f"tokens[{document}]"
        tokens = check_array(name, np.asarray(tokens), ndim=1, dtypes="iu", allow_empty=len(np.shape(tokens)) == 1)
        tokens = tokens.astype(np.int64)
        for low in range(0, len(tokens), context):
            part = tokens[low : low + context]
            counts = np.ones(len(part), dtype=bool)
            counts[0] = not (low == 0 and bos is not None and part[0] == bos)
            windows.append(Window(part, counts, document))
    return windows


def padded(windows: Sequence[Window]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, which positions are real, and which count: ``[window, longest]``, padding (token 0) at the end."""
    longest = max(len(window.tokens) for window in windows)
    tokens = np.zeros((len(windows), longest), dtype=np.int64)
    real, counts = np.zeros(tokens.shape, dtype=bool), np.zeros(tokens.shape, dtype=bool)
    for row, window in enumerate(windows):
        n = len(window.tokens)
        tokens[row, :n], real[row, :n], counts[row, :n] = window.tokens, True, window.counts
    return tokens, real, counts

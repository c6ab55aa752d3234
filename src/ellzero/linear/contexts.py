"""What stands before a word: contexts of any shape as whole numbers, and their counts with the word that follows.

Lives here: ``Shape`` (which earlier words a context holds), ``Contexts`` (their numbers), ``PairCounts``.
Does not live here: the models that use them (``language_model``, ``kneser_ney``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array, check_integer

__all__ = ["Contexts", "PairCounts", "Shape", "as_stream", "ngram_shapes", "skip_shapes"]


@dataclass(frozen=True)
class Shape:
    """``adjacent`` words just before, then ``skipped`` words that are not looked at, then ``remote`` ones."""

    adjacent: int
    skipped: int = 0
    remote: int = 0

    @property
    def offsets(self) -> tuple[int, ...]:
        """How far back each word of the context stands, nearest first."""
        far = self.adjacent + self.skipped
        return (*range(1, self.adjacent + 1), *range(far + 1, far + self.remote + 1))


def ngram_shapes(order: int) -> tuple[Shape, ...]:
    """The contexts of n-grams up to ``order``: 0 to ``order - 1`` adjacent words."""
    return tuple(Shape(n) for n in range(check_integer("order", order, at_least=1)))


def skip_shapes(words: int, skipped: int) -> tuple[Shape, ...]:
    """Every (remote, skipped, adjacent) with at most ``words`` words in all and 1 to ``skipped`` skipped between."""
    check_integer("words", words, at_least=1)
    check_integer("skipped", skipped, at_least=0)
    return tuple(
        Shape(adjacent, s, remote)
        for remote in range(1, words + 1)
        for adjacent in range(words - remote + 1)
        for s in range(1, skipped + 1)
    )


def as_stream(documents: Sequence[Any], vocabulary: int) -> np.ndarray:
    """All documents as one array of tokens, each closed by the token ``vocabulary``, which no document may hold.

    Raises
    ------
    InputError : no document, or a token outside 0 to ``vocabulary - 1``.
    """
    check_integer("vocabulary", vocabulary, at_least=1)
    if not isinstance(documents, Sequence) or isinstance(documents, str) or not len(documents):
        raise InputError("documents: got none, want a list of sequences of tokens")
    parts = []
    for i, document in enumerate(documents):
        tokens = np.asarray(document)
        tokens = tokens.astype(np.int64) if not tokens.size else tokens
        check_array(f"documents[{i}]", tokens, ndim=1, dtypes="iu", allow_empty=True)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise InputError(f"documents[{i}]: got tokens {tokens.min()} to {tokens.max()}, want 0 to {vocabulary - 1}")
        parts.append(np.append(tokens, vocabulary).astype(np.int64))
    return np.concatenate(parts)


class Contexts:
    """Numbers 0, 1, ... for the contexts of one shape that a stream holds.

    Words are paired one by one with the number of the context so far, so numbers are exact at any length. What is
    before the stream counts as its closing token.
    """

    def __init__(self, shape: Shape, stream: np.ndarray, tokens: int):
        self.shape, self.tokens, self.stages = shape, tokens, []
        numbers = np.zeros(len(stream), dtype=np.int64)
        for offset in shape.offsets:
            keys = numbers * tokens + self._earlier(stream, offset)
            stage, numbers = np.unique(keys, return_inverse=True)
            self.stages.append(stage)
        self.numbers, self.count = numbers, len(self.stages[-1]) if self.stages else 1

    def _earlier(self, stream: np.ndarray, offset: int) -> np.ndarray:
        return np.concatenate([np.full(min(offset, len(stream)), self.tokens - 1), stream[:-offset]])

    def lookup(self, stream: np.ndarray) -> np.ndarray:
        """The number of each position's context, -1 where it is new."""
        numbers = np.zeros(len(stream), dtype=np.int64)
        for offset, stage in zip(self.shape.offsets, self.stages):
            keys = numbers * self.tokens + self._earlier(stream, offset)
            place = np.minimum(np.searchsorted(stage, keys), len(stage) - 1)
            numbers = np.where((numbers >= 0) & (stage[place] == keys), place, -1)
        return numbers


class PairCounts:
    """How often each word follows each context: pairs sorted by context, then word.

    ``context, word, count`` are ``[pairs]``; ``start [contexts + 1]`` bounds a context's pairs; ``total [contexts]``;
    ``place [n]`` is the pair of each position of the stream.
    """

    def __init__(self, numbers: np.ndarray, words: np.ndarray, contexts: int, tokens: int):
        self.tokens = tokens
        self.keys, self.place, self.count = np.unique(numbers * tokens + words, return_inverse=True, return_counts=True)
        self.context, self.word = np.divmod(self.keys, tokens)
        self.start = np.searchsorted(self.context, np.arange(contexts + 1))
        self.total = np.bincount(numbers, minlength=contexts)

    def lookup(self, numbers: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The pair of each context and word, -1 where it was not seen (or the context is -1)."""
        keys = numbers * self.tokens + words
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((numbers >= 0) & (self.keys[place] == keys), place, -1)

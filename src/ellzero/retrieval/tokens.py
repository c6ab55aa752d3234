"""From text to terms: words with stop words and stems, or word pieces.

Lives here: ``Words`` and ``WordPieces``, both callables from a text to a list of terms, with what a file must say to
make them again. Does not live here: weights (``bm25``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ellzero.errors import InputError, MissingExtraError, check_choice, require

__all__ = ["ENGLISH", "WordPieces", "Words", "tokenizer_from"]

_STOP = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this"
)
ENGLISH = (*_STOP.split(), "to", "was", "will", "with")
"""The 33 stop words of Lucene's English analyser."""


@dataclass(frozen=True)
class Words:
    """Lower-case words of two characters and more, without stop words, stemmed.

    Parameters
    ----------
    stop_words : ``"english"`` (Lucene's 33), none, or a list.
    stemmer : a Snowball language such as ``"english"`` (needs the extra ``retrieval``), or None.
    pattern : what a word is. lower : whether case is folded first.

    Raises
    ------
    InputError : an unknown language or a pattern that is none.
    """

    stop_words: str | tuple[str, ...] | None = "english"
    stemmer: str | None = "english"
    pattern: str = r"(?u)\b\w\w+\b"
    lower: bool = True
    _terms: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if isinstance(self.stop_words, str):
            check_choice("stop_words", self.stop_words, ["english"])
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"pattern: got {self.pattern!r}, want a regular expression ({error})") from error
        if self.stemmer is not None:
            self._stem(["words"])

    @cached_property
    def _find(self) -> Callable[[str], list[str]]:
        return re.compile(self.pattern).findall

    def _stem(self, words: list[str]) -> list[str]:
        try:
            make = require("Stemmer", "retrieval", "to stem words").Stemmer
        except MissingExtraError:
            make = require("snowballstemmer", "retrieval", "to stem words").stemmer
        try:
            return make(self.stemmer).stemWords(words)
        except KeyError as error:
            raise InputError(f"stemmer: got {self.stemmer!r}, want a Snowball language such as 'english'") from error

    def __call__(self, text: str) -> list[str]:
        """The terms of one text, in order, repeated as they stand."""
        found = self._find(text.lower() if self.lower else text)
        try:
            terms = [self._terms[word] for word in found]
        except KeyError:
            self._learn({word for word in found if word not in self._terms})
            terms = [self._terms[word] for word in found]
        return [term for term in terms if term is not None]

    def _learn(self, words: set[str]) -> None:
        """Each word's term is found once: a stem, or None for a stop word."""
        stop = ENGLISH if self.stop_words == "english" else self.stop_words or ()
        kept = sorted(words - set(stop))
        self._terms.update(dict.fromkeys(words))
        self._terms.update(zip(kept, kept if self.stemmer is None else self._stem(kept)))

    def settings(self) -> dict[str, Any]:
        """What makes it again, as JSON."""
        stop = list(self.stop_words) if isinstance(self.stop_words, tuple | list) else self.stop_words
        return {
            "kind": "words",
            "stop_words": stop,
            "stemmer": self.stemmer,
            "pattern": self.pattern,
            "lower": self.lower,
        }


@dataclass(frozen=True)
class WordPieces:
    """BERT's word pieces: lower-cased, accents stripped, greedy longest match; needs the extra ``hf``.

    Parameters
    ----------
    vocabulary : the pieces in order; continuations begin with ``##``, and ``[UNK]`` must be among them.
    lower : whether case is folded and accents are stripped.
    """

    vocabulary: Sequence[str]
    lower: bool = True

    def __post_init__(self):
        if "[UNK]" not in self.vocabulary:
            raise InputError("vocabulary: got pieces without '[UNK]', want a vocabulary of word pieces")

    @cached_property
    def _tokenizer(self) -> Any:
        library = require("tokenizers", "hf", "to cut texts into word pieces")
        pieces = {piece: place for place, piece in enumerate(self.vocabulary)}
        made = library.Tokenizer(library.models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        made.normalizer = library.normalizers.BertNormalizer(lowercase=self.lower)
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        return made

    def __call__(self, text: str) -> list[str]:
        """The pieces of one text, in order, without unknown ones."""
        return [piece for piece in self._tokenizer.encode(text, add_special_tokens=False).tokens if piece != "[UNK]"]

    def settings(self) -> dict[str, Any]:
        """What makes it again, as JSON."""
        return {"kind": "word pieces", "vocabulary": list(self.vocabulary), "lower": self.lower}


def tokenizer_from(settings: Mapping[str, Any]) -> Words | WordPieces:
    """The inverse of ``settings``."""
    settings = dict(settings)
    kind = check_choice("kind", settings.pop("kind", None), ["words", "word pieces"])
    if kind == "word pieces":
        return WordPieces(tuple(settings["vocabulary"]), settings["lower"])
    if isinstance(settings["stop_words"], list):
        settings["stop_words"] = tuple(settings["stop_words"])
    return Words(**settings)

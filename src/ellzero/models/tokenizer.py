"""A byte-level BPE tokenizer: trained, saved and used with NumPy and the standard library alone.

Lives here: ``Tokenizer`` and ``train_tokenizer``. Does not live here: the tokenizers of other libraries' models,
which come with the model (see ``ellzero.models.huggingface``).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import numpy as np

from ellzero.errors import InputError, check_integer
from ellzero.io.atomic import write_text

__all__ = ["Tokenizer", "train_tokenizer"]

# Words with the space before them, single digits, runs of signs, white space. Every byte falls into one of the four,
# so cutting and joining loses nothing; bytes above 127 count as letters, so no character of UTF-8 is cut.
_CHUNK = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]| ?[^\sA-Za-z0-9\x80-\xff]+|\s+(?!\S)|\s")
_SPECIAL = ("<pad>", "<bos>")
_FIRST_BYTE = len(_SPECIAL)
_FIRST_MERGE = _FIRST_BYTE + 256
_FORMAT, _VERSION = "ellzero.tokenizer", 1


@dataclass(frozen=True)
class Tokenizer:
    """Byte pair encoding over bytes: any text, and any bytes, survive the round trip. Sennrich et al. (2016).

    Token 0 pads, token 1 begins a sequence, tokens 2 to 257 are the bytes, and token ``258 + i`` joins the two
    tokens ``merges[i]``.
    """

    merges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for i, merge in enumerate(self.merges):
            if len(merge) != 2 or not all(isinstance(t, int) and _FIRST_BYTE <= t < _FIRST_MERGE + i for t in merge):
                raise InputError(
                    f"merges: entry {i} is {merge!r}, want two tokens from {_FIRST_BYTE} to {_FIRST_MERGE + i - 1}"
                )
        if len(set(self.merges)) != len(self.merges):
            raise InputError("merges: a pair is listed twice, want each pair once")

    @property
    def pad(self) -> int:
        """The token that fills a batch of unequal lengths."""
        return 0

    @property
    def bos(self) -> int:
        """The token that begins a sequence."""
        return 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, the two special ones included."""
        return _FIRST_MERGE + len(self.merges)

    @cached_property
    def _rank(self) -> dict[tuple[int, int], int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @cached_property
    def _bytes(self) -> list[bytes]:
        table = [b""] * _FIRST_BYTE + [bytes([b]) for b in range(256)]
        for left, right in self.merges:
            table.append(table[left] + table[right])
        return table

    @cached_property
    def _known(self) -> dict[bytes, tuple[int, ...]]:
        return {}

    def encode(self, text: str | bytes, *, bos: bool = False) -> list[int]:
        """The tokens of a text (as UTF-8) or of raw bytes, with the token ``bos`` before them if asked."""
        if isinstance(text, str):
            text = text.encode("utf-8", errors="surrogatepass")
        if not isinstance(text, bytes):
            raise InputError(f"text: got {type(text).__name__}, want str or bytes")
        tokens = [self.bos] if bos else []
        known = self._known
        for chunk in _CHUNK.findall(text):
            piece = known.get(chunk)
            if piece is None:
                piece = self._merge(chunk)
                if len(known) < 100_000:  # words repeat; the bound keeps memory flat on endless text
                    known[chunk] = piece
            tokens.extend(piece)
        return tokens

    def _merge(self, chunk: bytes) -> tuple[int, ...]:
        tokens = [_FIRST_BYTE + b for b in chunk]
        rank, last = self._rank, len(self.merges)
        while len(tokens) > 1:
            best = min(pairwise(tokens), key=lambda pair: rank.get(pair, last))
            if best not in rank:
                break
            tokens = _joined(tokens, best, _FIRST_MERGE + rank[best])
        return tuple(tokens)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the tokens; special tokens have none."""
        tokens = [int(t) for t in tokens]
        for t in tokens:
            if not 0 <= t < self.vocabulary:
                raise InputError(f"tokens: got {t}, want tokens from 0 to {self.vocabulary - 1}")
        return b"".join(self._bytes[t] for t in tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the tokens; bytes that are no UTF-8 become the replacement character."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """The number of bytes behind each token, int64 ``[vocabulary]``: turns nats per token into bits per byte."""
        return np.array([len(b) for b in self._bytes], dtype=np.int64)

    def to_json(self) -> str:
        """The whole tokenizer as one JSON text."""
        return json.dumps({"format": _FORMAT, "version": _VERSION, "merges": [list(pair) for pair in self.merges]})

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The inverse of ``to_json``; ``InputError`` for anything else."""
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"tokenizer: not JSON ({error}), want what Tokenizer.to_json writes") from error
        if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
            raise InputError("tokenizer: a JSON text of another kind, want what Tokenizer.to_json writes")
        if raw.get("version") != _VERSION:
            raise InputError(f"tokenizer: format version {raw.get('version')!r}, this release reads {_VERSION}")
        merges = raw.get("merges")
        if not isinstance(merges, list) or not all(isinstance(pair, list) for pair in merges):
            raise InputError("tokenizer: 'merges' is no list of pairs")
        return cls(tuple(tuple(pair) for pair in merges))

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as JSON; an older file is replaced at once or not at all."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"path: cannot read {str(path)!r} ({error}), want a file that Tokenizer.save wrote"
            ) from error


def _joined(tokens: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """The tokens with every occurrence of the pair, from the left, replaced."""
    out, i, n = [], 0, len(tokens)
    while i < n:
        if i + 1 < n and tokens[i] == pair[0] and tokens[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out


def train_tokenizer(texts: Iterable[str | bytes], vocabulary: int) -> Tokenizer:
    """Learn the merges: again and again join the most frequent pair inside chunks. Sennrich et al. (2016).

    Parameters
    ----------
    texts : any number of texts; their order does not matter.
    vocabulary : wanted number of tokens, at least 258. Fewer come out when no pair occurs twice.

    Ties go to the pair of lowest tokens, so the same texts always give the same tokenizer.
    """
    vocabulary = check_integer("vocabulary", vocabulary, at_least=_FIRST_MERGE)
    if isinstance(texts, str | bytes):
        raise InputError("texts: got one string, want a list of texts")
    chunks: Counter[bytes] = Counter()
    for text in texts:
        chunks.update(_CHUNK.findall(text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text))
    words = [[_FIRST_BYTE + b for b in chunk] for chunk in chunks]
    weight = list(chunks.values())

    count: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for w, tokens in enumerate(words):
        for pair in pairwise(tokens):
            count[pair] += weight[w]
            where[pair].add(w)
    queue = [(-n, pair) for pair, n in count.items()]  # entries with a stale count are skipped when they surface
    heapify(queue)

    merges: list[tuple[int, int]] = []
    while len(merges) + _FIRST_MERGE < vocabulary and queue:
        negative, pair = heappop(queue)
        if -negative != count[pair]:
            continue
        if -negative < 2:
            break
        new = _FIRST_MERGE + len(merges)
        merges.append(pair)
        touched = set()
        for w in where.pop(pair):
            before, after = words[w], _joined(words[w], pair, new)
            for old in pairwise(before):
                count[old] -= weight[w]
                touched.add(old)
            for now in pairwise(after):
                count[now] += weight[w]
                where[now].add(w)
                touched.add(now)
            words[w] = after
        count.pop(pair, None)
        for changed in touched - {pair}:
            if count[changed] > 0:
                heappush(queue, (-count[changed], changed))
    return Tokenizer(tuple(merges))

"""Strings of a grammar whose next symbols are known: Reber's, plain and embedded.

Lives here: ``reber``. Does not live here: networks that learn it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ellzero.errors import check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["SYMBOLS", "Strings", "reber"]

SYMBOLS = "BTSXPVE"
_GRAPH = {1: {"T": 2, "P": 3}, 2: {"S": 2, "X": 4}, 3: {"T": 3, "V": 5}, 4: {"X": 3, "S": 6}, 5: {"P": 4, "V": 6}}
"""From each state the two symbols that may come, and where they lead; 6 is the end."""


class Strings(NamedTuple):
    """Strings that follow a grammar, filled up to the longest.

    ``symbols`` int64 ``[strings, length]`` are places in ``SYMBOLS``, -1 behind the end; ``legal`` bool
    ``[strings, length, 7]`` says which symbols may follow each one, none after the last.
    """

    symbols: np.ndarray
    legal: np.ndarray

    def text(self, row: int) -> str:
        """One string as letters."""
        return "".join(SYMBOLS[place] for place in self.symbols[row] if place >= 0)


def _walk(draw: np.random.Generator) -> tuple[str, list[str]]:
    """A string of the plain grammar, and the symbols that may follow each of its symbols."""
    text, following, state = "B", [], 1
    while state != 6:
        following.append("".join(_GRAPH[state]))
        symbol = following[-1][int(draw.integers(2))]
        text, state = text + symbol, _GRAPH[state][symbol]
    return text + "E", [*following, "E"]


@register(
    kind="generator", source="Reber (1967); arXiv:2107.12917", id="S046", example=lambda: reber(5),
)  # fmt: skip
def reber(n: int, *, embedded: bool = True, most: int = 40, seed: int = 0) -> Strings:
    """Strings of Reber's grammar; embedded, the second symbol comes again before the last, and must be remembered.

    The plain grammar draws one of two symbols at each of five states. Embedded: ``B x`` plain ``x E`` with ``x`` one of
    ``T`` and ``P``, each half of the time.

    Parameters
    ----------
    n : strings. most : of their symbols; longer ones are drawn again.

    Raises
    ------
    InputError : ``n`` below 1, or ``most`` below 9, which hardly any string keeps to.
    """
    check_integer("n", n, at_least=1)
    check_integer("most", most, at_least=9)
    draw, found = rng(seed, "reber"), []
    while len(found) < n:
        text, following = _walk(draw)
        if embedded:
            x = "TP"[int(draw.integers(2))]
            text, following = f"B{x}{text}{x}E", ["TP", "B", *following, x, "E"]
        if len(text) <= most:
            found.append((text, following))
    length = max(len(text) for text, _ in found)
    symbols, legal = np.full((n, length), -1, dtype=np.int64), np.zeros((n, length, len(SYMBOLS)), dtype=bool)
    for row, (text, following) in enumerate(found):
        symbols[row, : len(text)] = [SYMBOLS.index(symbol) for symbol in text]
        for place, allowed in enumerate(following):
            legal[row, place, [SYMBOLS.index(symbol) for symbol in allowed]] = True
    return Strings(symbols, legal)

"""Document ids, sorted: whole numbers or texts, looked up by rank and found by bisection.

Lives here: ``Ids`` and the order that decides ties. Does not live here: the documents' numbers within an index.
Whole numbers ascend as numbers, texts by their code points; texts are kept as one array of bytes and can be a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ellzero.errors import InputError

__all__ = ["Ids", "as_ids"]


def as_ids(name: str, ids: Iterable[Any], count: int | None = None) -> np.ndarray:
    """Ids as int64 or as an object array of text; mixed, repeated or of another number than ``count`` are refused."""
    values = ids if isinstance(ids, np.ndarray) else np.array(list(ids), dtype=object)
    if values.ndim != 1:
        raise InputError(f"{name}: got an array with {values.ndim} axes, want one id per document")
    if count is not None and len(values) != count:
        raise InputError(f"{name}: got {len(values)} ids for {count} documents, want one each")
    if values.dtype.kind in "iu":
        if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
            raise InputError(f"{name}: got {values.max()}, want whole numbers of 64 bits, or text")
        return values.astype(np.int64)
    listed = values.tolist()
    if all(type(i) is int or isinstance(i, np.integer) for i in listed) and len(listed):
        try:
            return np.array([int(i) for i in listed], dtype=np.int64)
        except OverflowError:
            raise InputError(f"{name}: want whole numbers of 64 bits, or text") from None
    for i in listed:
        if not isinstance(i, str):
            raise InputError(f"{name}: got {i!r} ({type(i).__name__}), want all text or all whole numbers")
    found = np.empty(len(listed), dtype=object)
    found[:] = [str(i) for i in listed]
    return found


class Ids:
    """Sorted ids.

    Parameters
    ----------
    numbers : int64, ascending; or None for texts.
    starts, text : int64 ``[count + 1]`` and uint8: texts in UTF-8 (whose bytes sort as code points do), ascending.
    """

    def __init__(
        self, numbers: np.ndarray | None = None, starts: np.ndarray | None = None, text: np.ndarray | None = None
    ):
        self.numbers, self.starts, self.text = numbers, starts, text

    @classmethod
    def sorted_from(cls, ids: np.ndarray) -> tuple[Ids, np.ndarray]:
        """The sorted ids, and the rank of each given one.

        Raises
        ------
        InputError : an id that stands twice.
        """
        if ids.dtype.kind == "i":
            order = np.argsort(ids, kind="stable")
            made = cls(numbers=ids[order])
            twice = np.flatnonzero(np.diff(made.numbers) == 0)
        else:
            encoded = [i.encode() for i in ids]
            order = np.array(sorted(range(len(ids)), key=encoded.__getitem__), dtype=np.int64)
            ordered = [encoded[i] for i in order]
            starts = np.concatenate([[0], np.cumsum([len(i) for i in ordered], dtype=np.int64)]).astype(np.int64)
            made = cls(starts=starts, text=np.frombuffer(b"".join(ordered), np.uint8))
            twice = [r for r in range(1, len(ordered)) if ordered[r] == ordered[r - 1]][:1]
        if len(twice):
            raise InputError(f"ids: {made[int(twice[0])]!r} stands twice, want every id once")
        rank = np.empty(len(ids), np.int64)
        rank[order] = np.arange(len(ids))
        return made, rank

    @property
    def kind(self) -> str:
        """``"number"`` or ``"text"``."""
        return "text" if self.numbers is None else "number"

    def __len__(self) -> int:
        return len(self.starts) - 1 if self.numbers is None else len(self.numbers)

    def _raw(self, rank: int) -> bytes:
        return self.text[int(self.starts[rank]) : int(self.starts[rank + 1])].tobytes()

    def __getitem__(self, rank: int) -> int | str:
        return self._raw(rank).decode() if self.numbers is None else int(self.numbers[rank])

    def take(self, ranks: np.ndarray) -> np.ndarray:
        """The ids of these ranks, int64 or text in an object array."""
        if self.numbers is not None:
            return np.asarray(self.numbers)[ranks]
        found = np.empty(len(ranks), dtype=object)
        found[:] = [self[int(rank)] for rank in ranks]
        return found

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """The rank of each id, -1 where it is not there."""
        if self.numbers is not None:
            wanted = np.asarray([i if isinstance(i, int | np.integer) else -1 for i in ids], dtype=np.int64)
            real = np.asarray([isinstance(i, int | np.integer) for i in ids], dtype=bool)
            at = np.searchsorted(self.numbers, wanted)
            there = real & (at < len(self)) & (np.asarray(self.numbers)[np.minimum(at, len(self) - 1)] == wanted) \
                if len(self) else np.zeros(len(wanted), bool)  # fmt: skip
            return np.where(there, at, -1)
        return np.array([self._find_text(i.encode()) if isinstance(i, str) else -1 for i in ids], dtype=np.int64)

    def _find_text(self, wanted: bytes) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._raw(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._raw(low) == wanted else -1

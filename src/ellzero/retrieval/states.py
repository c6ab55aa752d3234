"""Token states: what a backbone says of each token of a text, in batches and as a cache of a whole collection.

Lives here: ``TokenBatch`` and ``TokenStates``. Does not live here: where they come from (``backbone``), or what is made
of them (``heads``). A frozen backbone needs to see each text once; heads are then trained on the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.io import artefacts

if TYPE_CHECKING:
    from ellzero.retrieval.backbone import Backbone

__all__ = ["TokenBatch", "TokenStates"]

KIND, VERSION = "token-states", 1
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class TokenBatch:
    """Texts as tokens, padded to the longest.

    Parameters
    ----------
    states : ``[b, L, d]`` float32, or None where no head asks for them.
    pieces : ``[b, L]`` numbers of word pieces. mask : ``[b, L]`` true where there is a token.
    special : ``[b, L]`` true for tokens that are not of the text: [CLS], [SEP], a separator; and for padding.
    echo : ``[b, L]`` true for the second copy of a text that stands there twice, or None.
    """

    states: Float[Tensor, "b L d"] | None
    pieces: Int64[Tensor, "b L"]
    mask: Bool[Tensor, "b L"]
    special: Bool[Tensor, "b L"]
    echo: Bool[Tensor, "b L"] | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def own(self) -> Bool[Tensor, "b L"]:
        """The tokens of the text itself."""
        return self.mask & ~self.special

    def to(self, device: Any) -> TokenBatch:
        """The same on another device."""
        return TokenBatch(**{name: None if one is None else one.to(device) for name, one in vars(self).items()})


class TokenStates:
    """The token states of a collection, one text after another without padding.

    Parameters
    ----------
    states : ``[tokens, d]`` float16 or float32. pieces, special : ``[tokens]``. echo : ``[tokens]`` or None.
    starts : ``[texts + 1]``, where each text begins.
    """

    def __init__(
        self,
        states: Float[Tensor, "tokens d"],
        pieces: Int64[Tensor, " tokens"],
        special: Bool[Tensor, " tokens"],
        starts: Int64[Tensor, " texts1"],
        echo: Bool[Tensor, " tokens"] | None = None,
    ):
        if not len(states) == len(pieces) == len(special) == int(starts[-1]):
            raise InputError(
                f"states: got {len(states)} rows for {len(pieces)} pieces and {int(starts[-1])} tokens, want one each"
            )
        self.states, self.pieces, self.special, self.starts, self.echo = states, pieces, special, starts, echo

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def width(self) -> int:
        """The number of entries of a state."""
        return self.states.shape[1]

    @property
    def nbytes(self) -> int:
        """What the cache takes in memory."""
        return sum(one.nbytes for one in self._tensors().values())

    def take(self, rows: Sequence[int] | np.ndarray | Tensor) -> TokenBatch:
        """The batch of some texts, states as float32, padded on the right.

        Raises
        ------
        InputError : a row that is not there.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64).reshape(-1)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise InputError(f"rows: got {int(rows.min())} to {int(rows.max())}, want 0 to {len(self) - 1}")
        first = self.starts[rows]
        lengths = self.starts[rows + 1] - first
        steps = torch.arange(int(lengths.max()) if len(rows) else 0)
        mask = steps[None] < lengths[:, None]
        place = (first[:, None] + steps).where(mask, torch.zeros(1, dtype=torch.int64))
        gathered = self.states[place.reshape(-1)].float().reshape(*place.shape, self.width)
        return TokenBatch(
            gathered * mask[..., None], self.pieces[place] * mask, mask, self.special[place] | ~mask,
            None if self.echo is None else self.echo[place] & mask,
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        texts: Iterable[str],
        *,
        max_length: int | None = None,
        batch_size: int = 32,
        dtype: str = "float32",
    ) -> TokenStates:
        """What a backbone says of each text; texts of like length are run together.

        Parameters
        ----------
        max_length : where texts are cut, special tokens included; default: the backbone's own.
        dtype : ``"float32"``, or ``"float16"`` for half the memory.
        """
        check_integer("batch_size", batch_size, at_least=1)
        kept = _DTYPES[check_choice("dtype", dtype, _DTYPES)]
        found: dict[int, tuple[Tensor | None, ...]] = {}
        with torch.no_grad():
            for rows, batch in backbone.batches(texts, batch_size=batch_size, max_length=max_length):
                for place, row in enumerate(rows):
                    on = batch.mask[place]
                    echo = None if batch.echo is None else batch.echo[place][on]
                    found[row] = (batch.states[place][on].to(kept).cpu(), batch.pieces[place][on].cpu(),
                                  batch.special[place][on].cpu(), None if echo is None else echo.cpu())  # fmt: skip
        if not found:
            raise InputError("texts: got none, want at least one")
        in_order = [found[row] for row in range(len(found))]
        starts = torch.tensor([0, *(len(one[1]) for one in in_order)]).cumsum(0)
        states, pieces, special = (torch.cat([one[part] for one in in_order]) for part in range(3))
        echo = None if in_order[0][3] is None else torch.cat([one[3] for one in in_order])
        return cls(states, pieces, special, starts, echo)

    def _tensors(self) -> dict[str, Tensor]:
        named = {"states": self.states, "pieces": self.pieces, "special": self.special, "starts": self.starts}
        return named if self.echo is None else {**named, "echo": self.echo}

    def save(self, path: str | os.PathLike) -> None:
        """One file, whole or not at all."""
        artefacts.save(path, self._tensors(), {}, KIND, VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TokenStates:
        """What ``save`` wrote; a torn or foreign file is an ``InputError``."""
        return cls(**artefacts.load(path, KIND, version=VERSION, backend="torch")[0])

"""What flows through several modules of a model at once, from one forward pass.

Lives here: ``JointStream``. Does not live here: the stream of one module (``activations``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.errors import InputError, check_array
from ellzero.models.activations import ActivationStream, Reached, evaluating
from ellzero.models.attach import attach
from ellzero.models.shuffling import shuffled
from ellzero.models.windows import Window
from ellzero.rng import rng

__all__ = ["JointStream"]

# What two streams must share for their rows to come in the same order.
_SHARED = ("sequences", "batch_size", "buffer", "seed", "dtype", "drop_bos", "context")


class JointStream:
    """The rows of several streams side by side, ``[batch_size, d_1 + d_2 + ...]``, from one forward pass for all.

    Each stream's columns are, bit for bit and in the same order, the rows that it would give alone.

    Parameters
    ----------
    streams : over the same model and texts (or tokens), alike but for the module, without ``cache``.

    Attributes
    ----------
    widths : columns of each stream, known once rows came.

    Raises
    ------
    InputError : streams that differ in more than the module, name one twice, or are over inputs or from a cache.
    """

    def __init__(self, streams: Sequence[ActivationStream]):
        first = streams[0]
        for stream in streams:
            if stream.rows is None or stream.cached:
                raise InputError("streams: got one over inputs or from a cache, want texts or tokens and no cache")
            if stream.model is not first.model:
                raise InputError("streams: got streams of different models, want one model")
            for name in _SHARED:
                if getattr(stream, name) != getattr(first, name):
                    raise InputError(f"streams: differ in {name}, want streams that differ in the module alone")
            if not _same(stream.plan, first.plan):
                raise InputError("streams: got different texts, want the same for every module")
        self.names = [stream.name for stream in streams]
        if len(set(self.names)) < len(streams):
            raise InputError(f"streams: got {', '.join(self.names)}, want each module once")
        self.streams, self.rows, self.widths = tuple(streams), first.rows, None

    def __iter__(self) -> Iterator[Float[Tensor, "rows d"]]:
        return (rows for rows, _ in self.batches())

    def batches(self, epoch: int = 0) -> Iterator[tuple[Float[Tensor, "rows d"], np.ndarray]]:
        """One pass as pairs of rows and their documents' numbers, as ``ActivationStream.batches``."""
        one = self.streams[0]
        capacity = max(one.batch_size, min(one.buffer, self.rows))
        return shuffled(map(self._rows, one.plan), capacity, one.batch_size, rng(one.seed, "buffer", epoch))

    @torch.no_grad()
    def _rows(self, batch: Sequence[Window]) -> tuple[Tensor, np.ndarray]:
        one = self.streams[0]
        tokens, keywords, counts, documents = one.forward_pass(batch)
        found: dict[str, Tensor] = {}

        def keep(name: str, x: Tensor) -> None:
            found[name] = x
            if len(found) == len(self.names):
                raise Reached

        hooks = {name: lambda x, name=name: keep(name, x) for name in self.names}
        with suppress(Reached), evaluating(one.model), attach(one.model, hooks):
            one.model(tokens, **keywords)
        parts = []
        for name in self.names:
            out = found.get(name)
            if out is None or out.ndim != 3 or out.shape[:2] != tokens.shape:
                came = "nothing" if out is None else f"shape {tuple(out.shape)}"
                raise InputError(f"hook: {name!r} gives {came} for tokens {tuple(tokens.shape)}, want (batch, time, d)")
            rows = out[torch.from_numpy(counts).to(out.device)].to("cpu", one.dtype)
            parts.append(check_array(f"activations of {name!r}", rows, ndim=2, dtypes="f", allow_empty=True))
        self.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, 1), np.broadcast_to(documents[:, None], counts.shape)[counts]


def _same(one: Sequence[Sequence[Window]], other: Sequence[Sequence[Window]]) -> bool:
    """Whether two plans have the same windows in the same order."""
    if one is other:
        return True
    if [len(batch) for batch in one] != [len(batch) for batch in other]:
        return False
    return all(
        a.document == b.document and np.array_equal(a.tokens, b.tokens) and np.array_equal(a.counts, b.counts)
        for first, second in zip(one, other)
        for a, b in zip(first, second)
    )

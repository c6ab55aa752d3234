"""Shuffling a stream of rows in bounded memory.

Lives here: ``shuffled``. Does not live here: where the rows come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["shuffled"]


def shuffled(
    source: Iterable[tuple[Tensor, np.ndarray]], capacity: int, batch: int, stream: np.random.Generator
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Batches of rows drawn at random from a buffer that is kept full while the source lasts.

    Every row comes out exactly once; only the last batch may be shorter. At most ``capacity`` rows are held, beside
    what the source gives at once and the batch that goes out.

    Parameters
    ----------
    source : pairs of rows ``[n, d]`` and their labels ``[n]``, any ``n``.
    capacity : rows of the buffer, at least ``batch``.
    """
    rows: Tensor | None = None
    labels = np.empty(capacity, dtype=np.int64)
    held = 0
    for new, new_labels in source:
        if rows is None:
            rows = torch.empty((capacity, new.shape[1]), dtype=new.dtype)
        low = 0
        while low < len(new):
            taken = min(capacity - held, len(new) - low)
            rows[held : held + taken] = new[low : low + taken]
            labels[held : held + taken] = new_labels[low : low + taken]
            held, low = held + taken, low + taken
            if held == capacity:
                yield _draw(rows, labels, held, batch, stream)
                held -= batch
    while rows is not None and held:
        size = min(batch, held)
        yield _draw(rows, labels, held, size, stream)
        held -= size


def _draw(
    rows: Tensor, labels: np.ndarray, held: int, size: int, stream: np.random.Generator
) -> tuple[Tensor, np.ndarray]:
    """Take ``size`` of the first ``held`` rows out; the last ones move into the gaps."""
    picked = stream.choice(held, size, replace=False)
    out, out_labels = rows[torch.from_numpy(picked)], labels[picked]
    gaps = picked[picked < held - size]
    movers = np.setdiff1d(np.arange(held - size, held), picked)
    rows[torch.from_numpy(gaps)] = rows[torch.from_numpy(movers)]
    labels[gaps] = labels[movers]
    return out, out_labels

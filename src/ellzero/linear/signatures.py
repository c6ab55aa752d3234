"""Signatures of paths: the iterated integrals that make functions of a path linear, for batches and all prefixes.

Lives here: ``signature``, the names of its terms, and paths that are irregular and of unequal length.
Does not live here: the regression on them (``sig_lasso``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array, check_integer

__all__ = ["level_sizes", "prefix_signatures", "signature", "words"]

_MOST = 50_000_000  # numbers of a signature's output


def level_sizes(channels: int, depth: int) -> list[int]:
    """How many terms each level has: ``channels ** k`` for k from 1 to ``depth``."""
    check_integer("channels", channels, at_least=1)
    return [channels**k for k in range(1, check_integer("depth", depth, at_least=1) + 1)]


def words(channels: int, depth: int) -> list[tuple[int, ...]]:
    """The word of each term, in order: letters are channels, the latest increment is the last letter."""
    level_sizes(channels, depth)
    return [word for k in range(1, depth + 1) for word in product(range(channels), repeat=k)]


def _extend(levels: list[np.ndarray], step: np.ndarray) -> None:
    """Chen's relation for one more straight segment: ``S <- S * exp(step)``, in place.

    Level n is ``sum_k S_k step^(n - k) / (n - k)!``, by Horner's rule, so powers of the step are never formed.
    """
    for n in range(len(levels), 0, -1):
        carried = step / n
        for k in range(1, n):
            carried = ((levels[k - 1] + carried)[:, :, None] * (step / (n - k))[:, None, :]).reshape(levels[k].shape)
        levels[n - 1] += carried


def signature(paths: Any, depth: int, *, stream: bool = False) -> np.ndarray:
    """The signature of piecewise linear paths up to a level, without the constant 1 of level 0.

    The term of the word ``i1 ... ik`` is the integral of ``dx_i1(t1) ... dx_ik(tk)`` over ``t1 < ... < tk``.

    Parameters
    ----------
    paths : ``[points, channels]`` or ``[batch, points, channels]``, at least one point. A shorter path of a batch is
        filled up by its last point: a segment of length 0 changes nothing.
    depth : highest level, at least 1.
    stream : the signatures of all prefixes, from one pass.

    Returns
    -------
    ``[batch, terms]`` (``[terms]`` for one path), ``terms = channels + ... + channels ** depth`` in the order of
    ``words``; with ``stream`` ``[batch, points, terms]``, the first row being 0.

    Raises
    ------
    InputError : another number of axes, entries that are not finite, an output of more than fifty million numbers.

    Source: Chen (1957); Kidger and Lyons (2021) for the order of multiplications.
    """
    paths = check_array("paths", np.asarray(paths), ndim=(2, 3), dtypes="fiu")
    x = (paths if paths.ndim == 3 else paths[None]).astype(np.float64)
    batch, points, channels = x.shape
    sizes = level_sizes(channels, depth)
    if batch * (points if stream else 1) * sum(sizes) > _MOST:
        rows = batch * (points if stream else 1)
        raise InputError(
            f"depth: {depth} levels of {channels} channels give {sum(sizes)} terms in {rows} rows, want fewer"
        )
    levels = [np.zeros((batch, size)) for size in sizes]
    out = np.zeros((batch, points, sum(sizes))) if stream else None
    for t, step in enumerate(np.moveaxis(np.diff(x, axis=1), 1, 0), start=1):
        _extend(levels, step)
        if stream:
            np.concatenate(levels, axis=1, out=out[:, t])
    found = out if stream else np.concatenate(levels, axis=1)
    return found if paths.ndim == 3 else found[0]


def prefix_signatures(
    times: Sequence[np.ndarray], values: Sequence[np.ndarray], at: Sequence[np.ndarray], depth: int, *,
    origin: bool = False, scale: float = 1.0,
) -> list[np.ndarray]:  # fmt: skip
    """Signatures of sampled paths, with time as their first channel, on ``[0, t]`` for every t of ``at``.

    Between two samples a path is straight; after the last sample not later than t it keeps its value and only time
    goes on, so that nothing after t is read. The sample at t itself counts.

    Parameters
    ----------
    times, values : per path ``[n_i]``, rising, and ``[n_i, channels]``.
    at : per path ``[m_i]`` times, none before the first sample.
    origin : let every path begin at 0 in all channels but time, so that first values count.
    scale : what all increments are multiplied by.

    Returns
    -------
    per path ``[m_i, terms]``, for ``channels + 1`` channels.
    """
    longest, width = max(len(t) for t in times), values[0].shape[1] + 1
    x = np.empty((len(times), longest + 1, width))
    for own, t, value in zip(x, times, values):
        rows = np.column_stack([t, value]) * scale
        own[0] = np.append(rows[0, 0], np.zeros(width - 1)) if origin else rows[0]
        own[1 : len(rows) + 1], own[len(rows) + 1 :] = rows, rows[-1]
    streamed = signature(x, depth, stream=True)
    cuts, found = np.cumsum(level_sizes(width, depth))[:-1], []
    for own, t, wanted in zip(streamed, times, at):
        last = np.searchsorted(t, wanted, side="right")  # rows are shifted by the first point
        levels = np.split(own[last], cuts, axis=1)
        step = np.zeros((len(wanted), width))
        step[:, 0] = (wanted - t[last - 1]) * scale
        _extend(levels, step)
        found.append(np.concatenate(levels, axis=1))
    return found

"""From scores to a list of items, and how good the list is.

Lives here: ``top_items`` (scores by batches of users, seen items masked, exact top-k) and two ranking metrics.
Does not live here: any model; a model is whatever has ``predict``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_integer
from ellzero.kernels import top_k
from ellzero.registry import register

__all__ = ["Recommendations", "as_interactions", "ndcg_at_k", "recall_at_k", "top_items"]

BATCH_ENTRIES = 1 << 22  # scores held at a time: 16 MiB of float32


class Recommendations(NamedTuple):
    """Items by descending score: both ``[users, k]``; where a user has fewer items left, item -1 with score -inf."""

    items: np.ndarray
    scores: np.ndarray


def as_interactions(name: str, x: Any, *, dtype: Any = None, n_items: int | None = None) -> sparse.csr_array:
    """``x`` as CSR (users, items) with finite entries, each given once; no copy where it already is.

    Raises
    ------
    InputError : not two axes, not numbers, NaN or infinite, or another number of items than ``n_items``.
    """
    if not sparse.issparse(x):
        x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise InputError(f"{name}: got {x.dtype} of shape {tuple(x.shape)}, want numbers of shape (users, items)")
    if n_items is not None and x.shape[1] != n_items:
        raise InputError(f"{name}: got {x.shape[1]} items, want {n_items}, as in fit")
    rows = sparse.csr_array(x)
    if not rows.has_canonical_format:  # an interaction listed twice is one entry, the sum
        rows = rows.copy()  # it may share memory with the caller's
        rows.sum_duplicates()
    if rows.data.dtype.kind == "f" and not np.isfinite(rows.data).all():
        raise InputError(f"{name}: {np.count_nonzero(~np.isfinite(rows.data))} entries are NaN or infinite")
    return rows if dtype is None else rows.astype(dtype, copy=False)


def top_items(
    predict: Callable[[Any], np.ndarray], interactions: Any, k: int, *, exclude_seen: bool = True
) -> Recommendations:
    """The ``k`` items with the largest scores for each user, in batches, so that scores of all users never stand.

    Parameters
    ----------
    predict : scores ``[users, items]`` of a CSR batch of users.
    interactions : (users, items), sparse or dense; what each user has taken so far.
    k : items per user; ties keep the lowest item.
    exclude_seen : leave out what the user has taken (any stored entry other than zero).

    Raises
    ------
    InputError : k outside 1 to the number of items.
    """
    rows = as_interactions("interactions", interactions)
    users, n_items = rows.shape
    k = check_integer("k", k, at_least=1, at_most=n_items)
    items, values = np.empty((users, k), dtype=np.int64), None
    batch = max(1, BATCH_ENTRIES // n_items)
    for start in range(0, users, batch):
        part = rows[start : start + batch]
        scores = np.asarray(predict(part))
        if exclude_seen:
            scores = scores if scores.flags.writeable else scores.copy()
            who, what = part.nonzero()
            scores[who, what] = -np.inf
        best = top_k(scores, k)
        values = np.empty((users, k), dtype=scores.dtype) if values is None else values
        values[start : start + batch] = best.values
        items[start : start + batch] = np.where(best.values == -np.inf, -1, best.indices)
    return Recommendations(items, np.empty((0, k), dtype=np.float32) if values is None else values)


def _hits(items: Any, held_out: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of the first ``k`` items is held out ``[users, k]``, and how many items each user holds out."""
    items = np.asarray(items)
    truth = as_interactions("held_out", held_out)
    if items.ndim != 2 or items.dtype.kind not in "iu" or len(items) != truth.shape[0]:
        raise InputError(
            f"items: got {items.dtype} of shape {items.shape}, want whole numbers of shape ({truth.shape[0]}, k)"
        )
    k = check_integer("k", k, at_least=1, at_most=items.shape[1])
    if items.size and (items.max() >= truth.shape[1] or items.min() < -1):
        raise InputError(f"items: got {items.min()} to {items.max()}, want -1 (none) to {truth.shape[1] - 1}")
    first = np.sort(items[:, :k], axis=1)
    if ((first[:, 1:] == first[:, :-1]) & (first[:, 1:] >= 0)).any():
        raise InputError("items: a user has the same item twice, want each once")
    relevant = sparse.csr_array((truth.data != 0, truth.indices, truth.indptr), shape=truth.shape)
    wanted = relevant.sum(axis=1)
    if not wanted.all():
        raise InputError(f"held_out: user {int(np.argmin(wanted > 0))} holds out nothing, want at least one item each")
    users = np.repeat(np.arange(len(items)), k)
    hits = np.asarray(relevant[users, np.maximum(items[:, :k], 0).ravel()]).reshape(-1, k)
    return hits & (items[:, :k] >= 0), wanted


@register(kind="metric", wing="recommend", source="arXiv:1802.05814")
def recall_at_k(items: Any, held_out: Any, k: int) -> np.ndarray:
    """Share of a user's held-out items among the first ``k``, over the most that ``k`` places can hold.

    ``|first k & held out| / min(k, |held out|)``, so that a perfect list has recall 1 for every k.
    Liang, Krishnan, Hoffman and Jebara (2018), section 4.2.

    Parameters
    ----------
    items : ``[users, at least k]`` recommended items, best first; -1 for no item.
    held_out : (users, items), sparse or dense; entries other than zero are wanted.

    Returns
    -------
    ``[users]``, each in 0 to 1.

    Raises
    ------
    InputError : an item twice for a user, or outside the range; a user with nothing held out; k out of range.
    """
    hits, wanted = _hits(items, held_out, k)
    return hits.sum(axis=1) / np.minimum(wanted, k)


@register(kind="metric", wing="recommend", source="arXiv:1802.05814")
def ndcg_at_k(items: Any, held_out: Any, k: int) -> np.ndarray:
    """Discounted gain of the first ``k`` items over that of the best possible list of ``k``.

    ``sum_r hit_r / log2(r + 1)`` over ranks ``r = 1..k``, divided by the same sum with ``min(k, |held out|)`` hits
    first. Liang, Krishnan, Hoffman and Jebara (2018), section 4.2. Arguments, result and errors as ``recall_at_k``.
    """
    hits, wanted = _hits(items, held_out, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    return (hits @ discount) / np.cumsum(discount)[np.minimum(wanted, k) - 1]

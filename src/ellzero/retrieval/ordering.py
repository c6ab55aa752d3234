"""An order of documents in which those that share terms stand together, so that they share tight bounds.

Lives here: ``graph_bisection``. Does not live here: what an index does with an order (``building``, ``index``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import check_integer
from ellzero.registry import register
from ellzero.retrieval.quantise import as_matrix

__all__ = ["graph_bisection"]


@register(
    kind="method", wing="retrieval", source="arXiv:1602.08820",
    claim="documents in an order by their terms let bounds leave out windows that a random order cannot",
)  # fmt: skip
def graph_bisection(X: Any, *, leaf: int = 64, iterations: int = 10) -> np.ndarray:
    """A permutation of the rows of ``X`` by recursive graph bisection. Dhulipala et al. (2016), algorithm 1.

    The rows are cut in two halves, and pairs of rows change sides as long as that lowers
    ``sum_t l log2(n_1 / (l + 1)) + r log2(n_2 / (r + 1))``, the size of the gaps of all lists, where ``l`` and ``r`` of
    a term's ``n_1`` and ``n_2`` documents stand left and right; then each half is cut in the same way.

    Parameters
    ----------
    X : sparse ``[documents, terms]``; only where it is not zero counts. Starts from the order it has.
    leaf : parts of at most so many documents stay as they are: an index's block.
    iterations : rounds of changes of one cut, at most.

    Returns
    -------
    ``[documents]`` row numbers, for ``order=`` of ``ImpactIndex.build`` (which calls this for ``order="bp"``). Takes
    about ``3 iterations log2(documents / leaf)`` looks at each entry of ``X``.
    """
    check_integer("leaf", leaf, at_least=1)
    check_integer("iterations", iterations, at_least=1)
    X = as_matrix("X", X)
    frequency = np.bincount(X.indices, minlength=X.shape[1])
    used = (frequency > 1) & (frequency < X.shape[0])  # others cost the same wherever their documents stand
    columns = np.cumsum(used) - 1
    keep = used[X.indices]
    ones = sparse.csr_array(
        (np.ones(int(keep.sum()), np.float32), columns[X.indices[keep]].astype(np.int32),
         np.concatenate([[0], np.cumsum(keep)])[X.indptr]), shape=(X.shape[0], int(used.sum())),
    )  # fmt: skip
    order = np.arange(X.shape[0])
    _bisect(ones, order, leaf, iterations)
    return order


def _bisect(X: sparse.csr_array, order: np.ndarray, leaf: int, iterations: int) -> None:
    """Rearrange ``order`` (a view of the whole one) and the rows of ``X`` with it, depth first."""
    n = X.shape[0]
    if n <= leaf:
        return
    half = (n // 2 + leaf - 1) // leaf * leaf if n // 2 >= leaf else n // 2  # cuts between leaves where that can be
    right = np.arange(n) >= half
    for _ in range(iterations):
        gain = _gains(X, right, half)
        left_rows, right_rows = np.flatnonzero(~right), np.flatnonzero(right)
        left_rows = left_rows[np.argsort(-gain[left_rows], kind="stable")]
        right_rows = right_rows[np.argsort(-gain[right_rows], kind="stable")]
        pairs = min(len(left_rows), len(right_rows))
        count = int(np.count_nonzero(gain[left_rows[:pairs]] + gain[right_rows[:pairs]] > 0))
        if not count:
            break
        right[left_rows[:count]], right[right_rows[:count]] = True, False
    sides = [np.flatnonzero(~right), np.flatnonzero(right)]
    order[:] = order[np.concatenate(sides)]
    for rows, part in zip(sides, (order[:half], order[half:])):
        _bisect(_compact(X[rows]), part, leaf, iterations)


def _gains(X: sparse.csr_array, right: np.ndarray, half: int) -> np.ndarray:
    """What each row's change of side would lower the cost by, as if it were the only one."""
    sizes = half, len(right) - half
    row = np.repeat(right, np.diff(X.indptr))
    counts = [np.bincount(X.indices[row == side], minlength=X.shape[1]) for side in (False, True)]
    there = [_cost(count, size) for count, size in zip(counts, sizes)]
    fewer = [_cost(np.maximum(count - 1, 0), size) for count, size in zip(counts, sizes)]
    more = [_cost(count + 1, size) for count, size in zip(counts, sizes)]
    leave_left = there[0] + there[1] - fewer[0] - more[1]
    leave_right = there[0] + there[1] - more[0] - fewer[1]
    return np.where(right, X @ leave_right, X @ leave_left)


def _cost(count: np.ndarray, size: int) -> np.ndarray:
    return (count * np.log2(size / (count + 1.0))).astype(np.float32)


def _compact(X: sparse.csr_array) -> sparse.csr_array:
    """Without the columns that one row has, or none."""
    frequency = np.bincount(X.indices, minlength=X.shape[1])
    used = frequency > 1
    if 2 * np.count_nonzero(used) > X.shape[1]:
        return X
    keep = used[X.indices]
    columns = (np.cumsum(used) - 1).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(keep)])[X.indptr]
    return sparse.csr_array((X.data[keep], columns[X.indices[keep]], indptr), shape=(X.shape[0], int(used.sum())))

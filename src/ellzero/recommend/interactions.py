"""Who took what: reading ratings, and holding out users.

Lives here: ``read_ratings``, ``hold_out_users`` and the values they give. Does not live here: metrics and models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check, check_integer
from ellzero.io.readers import read_matrix
from ellzero.recommend.ranking import as_interactions
from ellzero.rng import rng

__all__ = ["HeldOutUsers", "Interactions", "hold_out_users", "read_ratings"]


@dataclass(frozen=True)
class Interactions:
    """A binary matrix (users, items) of float32 in CSR, and the file's own ids of its rows and columns."""

    matrix: sparse.csr_array
    users: np.ndarray
    items: np.ndarray

    def __post_init__(self):
        if self.matrix.shape != (len(self.users), len(self.items)):
            wanted = (len(self.users), len(self.items))
            raise InputError(f"matrix: got shape {self.matrix.shape}, want {wanted}, one row per user id")


def read_ratings(
    path: str | os.PathLike,
    *,
    at_least: float = 4.0,
    per_user: int = 5,
    user: str = "userId",
    item: str = "movieId",
    rating: str = "rating",
) -> Interactions:
    """Ratings in long form (one row per user and item) as binary interactions.

    Parameters
    ----------
    path : a table that ``ellzero.io.read_matrix`` reads, with named columns.
    at_least : a rating from here on is an interaction, a lower one is dropped.
    per_user : users with fewer interactions are left out; items that nobody took are too.
    user, item, rating : the names of the three columns; the ids are whole numbers.

    Raises
    ------
    InputError : a column that is not there, ids that are not whole numbers, or nothing left.
    """
    check("at_least", at_least)
    per_user = check_integer("per_user", per_user, at_least=1)
    values, names = read_matrix(path)
    names = names or ()
    lacking = [name for name in (user, item, rating) if name not in names]
    if lacking:
        raise InputError(f"{path}: has the columns {', '.join(names)}, want one called {lacking[0]!r}")
    who, what, liking = (np.asarray(values[:, names.index(name)]) for name in (user, item, rating))
    for name, ids in ((user, who), (item, what)):
        if (ids != np.round(ids)).any():
            raise InputError(f"{path}: the column {name!r} has {ids[ids != np.round(ids)][0]}, want whole numbers")
    kept = liking >= at_least
    pairs = np.unique(np.stack([who[kept], what[kept]], axis=1).astype(np.int64), axis=0)
    users, first, count = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    pairs = pairs[count[first] >= per_user] if len(pairs) else pairs
    if not len(pairs):
        raise InputError(f"{path}: no user has {per_user} ratings of at least {at_least}")
    users, rows = np.unique(pairs[:, 0], return_inverse=True)
    items, columns = np.unique(pairs[:, 1], return_inverse=True)
    ones = np.ones(len(pairs), dtype=np.float32)
    return Interactions(sparse.csr_array((ones, (rows, columns)), shape=(len(users), len(items))), users, items)


@dataclass(frozen=True)
class HeldOutUsers:
    """``train`` has the users to learn from; of each other user ``fold_in`` is shown and ``held_out`` is asked for."""

    train: sparse.csr_array
    fold_in: sparse.csr_array
    held_out: sparse.csr_array


def hold_out_users(
    interactions: sparse.csr_array, *, users: float = 0.2, items: float = 0.2, seed: int = 0
) -> HeldOutUsers:
    """Hold out a share of the users, and of each of them a share of what they took (strong generalisation).

    Parameters
    ----------
    interactions : (users, items), sparse or dense; stored zeros do not count.
    users, items : shares held out, each above 0 and below 1; at least one user and, per user, one item.
    seed : a split per seed; the order of the users in each part is kept.

    Raises
    ------
    InputError : a share out of range, fewer than two users, or a held-out user with fewer than two interactions.
    """
    check("users", users, above=0, below=1)
    check("items", items, above=0, below=1)
    rows = as_interactions("interactions", interactions)
    if (rows.data == 0).any():
        rows = rows.copy()
        rows.eliminate_zeros()
    n_users = rows.shape[0]
    if n_users < 2:
        raise InputError(f"interactions: got {n_users} users, want at least two")
    generator = rng(seed, "hold out users")
    aside = np.zeros(n_users, dtype=bool)
    aside[generator.permutation(n_users)[: max(1, min(n_users - 1, round(users * n_users)))]] = True
    shown = rows[aside].tocoo()
    order = np.lexsort((generator.random(shown.nnz), shown.row))  # each user's interactions, shuffled
    count = np.bincount(shown.row, minlength=int(aside.sum()))
    if (count < 2).any():
        raise InputError(f"interactions: user {int(np.flatnonzero(aside)[np.argmin(count)])} has {count.min()} "
                         "interactions and was held out, want at least two")  # fmt: skip
    rank = np.empty(shown.nnz, dtype=np.int64)
    rank[order] = np.arange(shown.nnz) - np.repeat(np.cumsum(count) - count, count)
    asked = rank < np.maximum(1, np.minimum(count - 1, np.round(items * count))).astype(np.int64)[shown.row]
    part = [sparse.csr_array((shown.data[m], (shown.row[m], shown.col[m])), shape=shown.shape) for m in (~asked, asked)]
    return HeldOutUsers(rows[~aside], *part)

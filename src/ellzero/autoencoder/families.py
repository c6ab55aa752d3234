"""Families of latents, from which fire together: general ones with their special ones below.

Lives here: ``feature_families``. Does not live here: matching two autoencoders (``dictionaries``), planted trees
(``ellzero.data``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree

from ellzero.errors import InputError, check, check_integer
from ellzero.registry import register

__all__ = ["Family", "coactivation", "feature_families"]


@dataclass(frozen=True)
class Family:
    """A latent, all below it, and the edges from each parent to each child."""

    parent: int
    members: frozenset[int]
    edges: tuple[tuple[int, int], ...]


def coactivation(z: Any) -> tuple[sparse.csr_array, np.ndarray]:
    """On how many rows each pair of latents fires together, without the diagonal, and how often each fires.

    Parameters
    ----------
    z : codes ``[rows, latents]``, sparse or dense (arrays or tensors); active where not zero.
    """
    z = z.detach().cpu().numpy() if hasattr(z, "detach") else z
    if not sparse.issparse(z) and np.ndim(z) != 2:
        raise InputError(f"z: got {np.ndim(z)} axes, want rows of latents")
    fires = sparse.csr_array(z).astype(bool).astype(np.int64)
    together = sparse.coo_array(fires.T @ fires)
    apart = together.row != together.col
    pairs = (together.data[apart], (together.row[apart], together.col[apart]))
    return sparse.csr_array(pairs, shape=together.shape), np.asarray(fires.sum(0))


@register(
    id="S095", kind="metric", wing="autoencoder", source="arXiv:2408.00657", extra="torch",
    claim="latents that fire with a more general one are found as its family",
)  # fmt: skip
def feature_families(z: Any, *, threshold: float = 0.1, rounds: int = 3, overlap: float = 0.6) -> list[Family]:
    """Trees of latents, parent before child. O'Neill et al. (2024), section 4.3.

    Pairs are weighed by ``C_ij / min(n_i, n_j)``, the share of the rarer one's rows on which the other fires too, and
    kept above ``threshold``. Of a maximum spanning forest each edge points from the more frequent latent to the rarer;
    of equal weights the one with the rarer parent goes first, so that a child hangs below its nearest ancestor and not
    below one that always fires. Each latent without a parent starts a family; they are taken out, and what is left is
    looked at again.

    Parameters
    ----------
    z : codes ``[rows, latents]``, sparse or dense; active where not zero.
    rounds : how often. overlap : families whose members agree by more than this (of their union) are one.

    Returns
    -------
    list : families of two or more, the larger first, then by parent.

    Raises
    ------
    InputError : codes that are no matrix, a threshold or an overlap outside [0, 1].
    """
    check("threshold", threshold, at_least=0, at_most=1)
    check("overlap", overlap, at_least=0, at_most=1)
    check_integer("rounds", rounds, at_least=1)
    together, counts = coactivation(z)
    pairs = sparse.coo_array(sparse.triu(together, 1))
    one, other = pairs.row, pairs.col
    first = (counts[one] > counts[other]) | ((counts[one] == counts[other]) & (one < other))
    parent, child = np.where(first, one, other), np.where(first, other, one)
    weight = pairs.data / counts[child]
    strong = weight > threshold
    parent, child, weight = parent[strong], child[strong], weight[strong]
    found: list[Family] = []
    left = np.ones(len(counts), bool)
    for _ in range(rounds):
        inside = left[parent] & left[child]
        if not inside.any():
            break
        trees = _trees(parent[inside], child[inside], weight[inside], counts)
        found += trees
        left[[tree.parent for tree in trees]] = False
    return sorted(_merged(found, overlap), key=lambda family: (-len(family.members), family.parent))


def _trees(parent: np.ndarray, child: np.ndarray, weight: np.ndarray, counts: np.ndarray) -> list[Family]:
    """Families of one round: everything below each latent without a parent in the forest."""
    order = np.lexsort((child, parent, counts[parent], -weight))
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1)  # distinct, so that the forest is one and not one of several
    forest = minimum_spanning_tree(sparse.csr_array((rank, (parent, child)), shape=(len(counts),) * 2))
    forest = sparse.coo_array(forest)
    below: dict[int, list[int]] = {}
    for up, down in sorted(zip(forest.row.tolist(), forest.col.tolist())):
        below.setdefault(up, []).append(down)
    roots = sorted(set(forest.row.tolist()) - set(forest.col.tolist()))
    return [_family(root, below) for root in roots]


def _family(root: int, below: dict[int, list[int]]) -> Family:
    members, edges, waiting = {root}, [], [root]
    while waiting:
        up = waiting.pop()
        for down in below.get(up, ()):
            edges.append((up, down))
            if down not in members:
                members.add(down)
                waiting.append(down)
    return Family(root, frozenset(members), tuple(sorted(edges)))


def _merged(families: list[Family], overlap: float) -> list[Family]:
    """Families that agree become one, under the parent of the first."""
    kept: list[Family] = []
    for family in families:
        for place, other in enumerate(kept):
            shared = len(family.members & other.members) / len(family.members | other.members)
            if shared > overlap:
                edges = tuple(sorted({*family.edges, *other.edges}))
                kept[place] = Family(other.parent, family.members | other.members, edges)
                break
        else:
            kept.append(family)
    return kept

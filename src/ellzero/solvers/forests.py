"""Blocks without cycles: a linear system on a forest is solved from the leaves to the roots, without fill.

Lives here: the choice of nodes that induce a forest, its elimination order, and the solver. Does not live here: descent
over such blocks (``block_descent``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.sparse.linalg import splu

from ellzero.errors import InputError

__all__ = ["Forest", "Neighbours", "forest_partition"]


class Neighbours:
    """The graph of a symmetric sparse matrix (its nonzeros off the diagonal), for choosing forests in it."""

    def __init__(self, A: Any):
        if not sparse.issparse(A):
            raise InputError(f"A: got {type(A).__name__}, want a scipy sparse matrix, for forests live on its graph")
        A = sparse.csr_array(A)
        starts, ends = A.indptr.tolist(), A.indices.tolist()
        self.of = [[u for u in ends[starts[v] : starts[v + 1]] if u != v] for v in range(A.shape[0])]

    def forest(self, order: Sequence[int]) -> list[int]:
        """The nodes that, taken in this order, close no cycle with those taken before (union-find)."""
        root, taken, nodes = list(range(len(self.of))), [False] * len(self.of), []
        for v in order:
            trees = []
            for u in self.of[v]:
                if taken[u]:
                    while root[u] != u:
                        root[u] = root[root[u]]
                        u = root[u]
                    if u in trees:  # two neighbours in one tree: v would close a cycle
                        break
                    trees.append(u)
            else:
                taken[v] = True
                nodes.append(v)
                for u in trees:
                    root[u] = v
        return nodes


class Forest:
    """``A_bb`` for nodes b that induce a forest: ordered from the leaves to the roots and factored without fill.

    Elimination in this order is message passing: each node sends its parent one number of the matrix and one of the
    right side, and back. The cost is linear in the number of nodes.
    """

    def __init__(self, A: sparse.csr_array, nodes: Sequence[int]):
        nodes = np.asarray(nodes)
        inner = A[nodes][:, nodes]
        count, tree = connected_components(inner, directed=False)
        roots = np.unique(tree, return_index=True)[1]
        # One more node joins the roots, so that a single search orders all trees.
        link = sparse.csr_array((np.ones(count), (roots, np.zeros(count, dtype=int))), shape=(len(nodes), 1))
        joined = sparse.block_array([[inner != 0, link], [link.T, None]], format="csr", dtype=np.float64)
        search = breadth_first_order(joined, len(nodes), directed=False, return_predecessors=False)
        order = search[:0:-1]
        self.nodes = nodes[order]
        self.factor = splu(
            A[self.nodes][:, self.nodes].tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )  # fmt: skip

    def solve(self, wanted: np.ndarray) -> np.ndarray:
        """``A_bb^{-1} v`` for v in the order of ``nodes``."""
        return self.factor.solve(wanted)


def forest_partition(A: Any) -> list[np.ndarray]:
    """All nodes in parts that each induce a forest, the largest first, each as large as nodes in order allow."""
    neighbours, left, parts = Neighbours(A), list(range(A.shape[0])), []
    while left:
        part = neighbours.forest(left)
        parts.append(np.array(part))
        taken = set(part)
        left = [v for v in left if v not in taken]
    return parts

"""Sparse rows as short dense ones: the largest weight of each slice of the vocabulary, and where it stood.

Lives here: ``densify``, the gated inner product ``gip_scores`` and the exact search ``DensifiedIndex``. Does not live
here: what writes the sparse rows, mixing lists that were searched apart (``hybrid``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.kernels import top_k
from ellzero.registry import register
from ellzero.retrieval.dense import as_queries
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.ids import Ids, as_ids
from ellzero.retrieval.quantise import as_matrix

__all__ = ["Densified", "DensifiedIndex", "densify", "gip_scores"]

STRATEGIES = ("stride", "contiguous")


@dataclass(frozen=True, eq=False)
class Densified:
    """Rows of M slices: ``values`` ``[n, M]`` float32, 0 for an empty slice, and ``positions`` within the slice.

    ``positions`` are uint8 where a slice has at most 256 columns, else uint16 or uint32. ``columns`` and ``strategy``
    say how the vocabulary was cut; only rows that were cut alike have a product.
    """

    values: np.ndarray
    positions: np.ndarray
    columns: int
    strategy: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def slices(self) -> int:
        """The number of slices M."""
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of values and positions."""
        return self.values.nbytes + self.positions.nbytes


@register(
    id="S110", kind="method", wing="retrieval", source="arXiv:2112.04666",
    claim="768 slices keep nearly all of what the sparse vectors rank",
)  # fmt: skip
def densify(X: Any, slices: int = 768, *, strategy: str = "stride", drop: Iterable[int] = ()) -> Densified:
    """Keep the largest weight of each of M slices of the columns. Lin and Lin (2021), section 3.

    A row of V weights becomes M weights and M small integers; what stands in a slice beside its largest is lost. Of n
    terms spread at random ``M (1 - (1 - 1/M)^n)`` survive.

    Parameters
    ----------
    X : sparse or dense ``[n, V]``, zero or more.
    slices : M, from 1 to V; slices hold ``ceil(V / M)`` columns, or one less.
    strategy : ``"stride"``, column c in slice ``c mod M`` at place ``c div M``, which spreads neighbours;
        ``"contiguous"``, slice ``c div N`` at place ``c mod N`` with ``N = ceil(V / M)``.
    drop : columns to leave out before slicing, such as those of special tokens; the rest move together.

    Raises
    ------
    InputError : negative or infinite weights, more slices than columns, an unknown strategy or column.
    """
    check_choice("strategy", strategy, STRATEGIES)
    X = as_matrix("X", X)
    columns = _renumbered(X.shape[1], drop)
    V = int((columns >= 0).sum())
    M = check_integer("slices", slices, at_least=1, at_most=V)
    N = -(-V // M)
    where = columns[X.indices]
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    left = where >= 0
    where, rows, data = where[left], rows[left], X.data[left].astype(np.float32)
    piece, position = (where % M, where // M) if strategy == "stride" else (where // N, where % N)
    cell = rows * M + piece
    values = np.zeros(X.shape[0] * M, np.float32)
    np.maximum.at(values, cell, data)
    top = np.flatnonzero(data == values[cell])[::-1]  # backwards: of several writes to a cell the last one stays
    positions = np.zeros(X.shape[0] * M, np.min_scalar_type(max(N - 1, 0)))
    positions[cell[top]] = position[top]
    return Densified(values.reshape(-1, M), positions.reshape(-1, M), V, strategy)


def _renumbered(columns: int, drop: Iterable[int]) -> np.ndarray:
    """The new number of each column, -1 for those left out."""
    kept = np.ones(columns, bool)
    for column in drop:
        kept[check_integer("drop", column, at_least=0, at_most=columns - 1)] = False
    return np.where(kept, np.cumsum(kept) - 1, -1)


def gip_scores(Q: Densified, D: Densified) -> np.ndarray:
    """Gated inner products ``sum_m [i_m^q = i_m^d] v_m^q v_m^d``, float32 ``[queries, documents]``.

    Lin and Lin (2021), equation 5. For weights of zero or more, up to rounding, at most the inner product of the sparse
    rows (a matching largest weight is one of its terms), and never above the ungated ``sum_m v_m^q v_m^d``.

    Raises
    ------
    InputError : rows that were cut otherwise.
    """
    return DensifiedIndex(D).scores(Q)


class DensifiedIndex:
    """Exact top-k by the gated inner product, optionally with ``weight`` times a dense one.

    Values stand slice by slice, so a query reads only the slices of its own terms, and of them only what stands at its
    positions: all documents are scored. With ``candidates`` the ungated product, which bounds the gated one, chooses
    which are, as on hardware whose only fast product is the dense one. Lin and Lin (2021), section 3.2. Scores are
    float32 sums, ordered by score descending, then by id ascending; without a dense part documents with score 0 are no
    hits.

    Parameters
    ----------
    D : densified documents. ids : one each; default 0, 1, ...
    dense : vectors ``[n, d]``, whose product with the query's times ``weight`` is added.

    Raises
    ------
    InputError : ids or vectors of another number, a weight below 0.
    """

    def __init__(self, D: Densified, ids: Iterable[Any] | None = None, *, dense: Any = None, weight: float = 1.0):
        if not isinstance(D, Densified):
            raise InputError(f"D: got {type(D).__name__}, want what densify gives")
        self.weight = check("weight", weight, at_least=0, below=np.inf)
        given = as_ids("ids", range(len(D)) if ids is None else ids, len(D))
        self.ids, rank = Ids.sorted_from(given)
        self._order = np.argsort(rank)
        self.values = np.ascontiguousarray(D.values[self._order].T)
        self.positions = np.ascontiguousarray(D.positions[self._order].T)
        self.columns, self.strategy = D.columns, D.strategy
        self.dense = None
        if dense is not None:
            dense = check_array("dense", np.asarray(dense), ndim=2, dtypes="f", shape=(len(D), None), allow_empty=True)
            self.dense = dense[self._order].astype(np.float32)

    def __len__(self) -> int:
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of values, positions and vectors."""
        return self.values.nbytes + self.positions.nbytes + (0 if self.dense is None else self.dense.nbytes)

    def scores(self, Q: Densified, dense: Any = None) -> np.ndarray:
        """All scores, float32 ``[queries, documents]``, documents as they were given."""
        vectors = self._checked(Q, dense)
        found = np.empty((len(Q), len(self)), np.float32)
        for q in range(len(Q)):
            found[q, self._order] = self._gated(Q, q, slice(None)) + self._side(vectors, q)
        return found

    def search(
        self, Q: Densified, k: int = 10, *, dense: Any = None, threshold: float = 0.0, candidates: int | None = None
    ) -> Hits:
        """The k best documents of each query.

        Parameters
        ----------
        Q : densified queries. dense : their vectors ``[q, d]``, if the index has a dense part.
        candidates : only so many documents, those with the best ungated products, are scored; default all.
        threshold : with ``candidates``, slices in which the query's value is at most this are left out of the bounds.

        Returns
        -------
        Hits : ``exact`` says whether the bounds prove that no other document belongs into a list; it is always so
            without ``candidates``.
        """
        k = check_integer("k", k, at_least=1)
        check("threshold", threshold, at_least=0, below=np.inf)
        if candidates is not None:
            candidates = check_integer("candidates", candidates, at_least=k)
        vectors, exact = self._checked(Q, dense), True
        ids, scores = [], []
        for q in range(len(Q)):
            side = self._side(vectors, q)
            places, found, proven = self._scored(Q, q, side, k, candidates, threshold)
            exact &= proven
            best = top_k(found, min(k, len(found)))
            hit = slice(None) if self.dense is not None else best.values > 0
            ids.append(self.ids.take(places[best.indices[hit]]))
            scores.append(best.values[hit].astype(np.float64))
        return Hits(
            ids,
            scores,
            "gated",
            "gated products" if candidates is None else "ungated bounds, then gated products",
            exact,
            k=k,
        )

    def _scored(
        self, Q: Densified, q: int, side: Any, k: int, candidates: int | None, threshold: float
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Places ascending and their scores, and whether no other document can belong among the k."""
        if candidates is None or candidates >= len(self):
            return np.arange(len(self)), self._gated(Q, q, slice(None)) + side, True
        bound, missing = self._bound(Q, q, threshold)
        bound += side
        places = np.sort(np.argpartition(-bound, candidates - 1)[:candidates])
        found = self._gated(Q, q, places) + (side if np.isscalar(side) else side[places])
        reached = np.partition(found, candidates - k)[candidates - k]
        rest = bound + np.float32(missing)
        rest[places] = -np.inf
        no_hit = 0.0 if self.dense is None else -np.inf
        return places, found, not ((rest >= reached) & (rest > no_hit)).any()

    def _gated(self, Q: Densified, q: int, places: Any) -> np.ndarray:
        """Gated sums over the query's slices in their order, so that a bound in the same order is never below."""
        total = np.zeros(len(self) if isinstance(places, slice) else len(places), np.float32)
        for m in np.flatnonzero(Q.values[q]):
            held = np.flatnonzero(self.positions[m][places] == Q.positions[q, m])  # few: one place in N
            total[held] += self.values[m][places][held] * Q.values[q, m]
        return total

    def _bound(self, Q: Densified, q: int, threshold: float) -> tuple[np.ndarray, float]:
        """Ungated sums over slices above the threshold, and the most that the others can add."""
        total, missing = np.zeros(len(self), np.float32), 0.0
        for m in np.flatnonzero(Q.values[q]):
            value = Q.values[q, m]
            if value > threshold:
                total += self.values[m] * value
            else:
                missing += float(value) * float(self.values[m].max(initial=0))
        rounded = 1e-5 * (missing + float(total.max(initial=0)))  # sums in another order than the gated ones
        return total, missing + rounded if missing else 0.0

    def _side(self, vectors: np.ndarray | None, q: int) -> Any:
        return np.float32(0) if vectors is None else np.float32(self.weight) * (self.dense @ vectors[q])

    def _checked(self, Q: Densified, dense: Any) -> np.ndarray | None:
        if not isinstance(Q, Densified):
            raise InputError(f"Q: got {type(Q).__name__}, want what densify gives")
        ours = (self.columns, self.values.shape[0], self.strategy)
        if (Q.columns, Q.slices, Q.strategy) != ours:
            raise InputError(f"Q: was cut by {Q.columns} columns, {Q.slices} slices, {Q.strategy}, want {ours}")
        if (dense is None) != (self.dense is None):
            wanted = "none, as the index has no dense part" if self.dense is None else "the queries' vectors"
            raise InputError(f"dense: got {'none' if dense is None else 'vectors'}, want {wanted}")
        if dense is None:
            return None
        vectors = as_queries(dense, self.dense.shape[1])
        if len(vectors) != len(Q):
            raise InputError(f"dense: got {len(vectors)} vectors for {len(Q)} queries, want one each")
        return vectors

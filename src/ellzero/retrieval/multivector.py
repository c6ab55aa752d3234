"""Several vectors of one document, searched by the largest inner product.

Lives here: ``MultiVectorScorer`` and ``first_states``, which takes a document's vectors from token states. Does not
live here: the encoder, one vector a document (``dense``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array, check_integer
from ellzero.registry import register
from ellzero.retrieval.dense import as_queries, candidates_of, first_by_score, rounding, row_products, unit_rows
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.ids import Ids, as_ids

__all__ = ["MultiVectorScorer", "first_states"]


def first_states(batch: Any, m: int = 8, *, projection: np.ndarray | None = None, normalize: bool = True) -> list:
    """The first m token states of each text, one array ``[up to m, d]`` a text, of a ``TokenBatch``.

    Luan et al. (2021), section 3.3: a document keeps the states of its first m tokens, the special one among them.

    Parameters
    ----------
    projection : ``[states' width, d]``, put behind the states.
    normalize : scale each to length 1.
    """
    m = check_integer("m", m, at_least=1)
    states, mask = batch.states.detach().float().cpu().numpy(), batch.mask.cpu().numpy()
    found = []
    for text, there in zip(states, mask):
        rows = text[there][:m]
        rows = rows if projection is None else rows @ projection
        found.append(unit_rows(rows) if normalize else rows)
    return found


@register(
    id="S115", kind="method", wing="retrieval", source="arXiv:2005.00181",
    claim="mixed with a sparse model, several vectors a document beat either part",
    example=lambda: MultiVectorScorer([np.eye(3), np.eye(3)[:1]]),
)  # fmt: skip
class MultiVectorScorer:
    """Exact top-k of ``s(q, d) = max_r <q, x_dr>`` over the vectors ``x_d1, ..., x_dm`` of a document.

    ME-BERT of Luan et al. (2021), equation 3: one vector a query, up to m a document. Ties, order and exactness are
    those of ``DenseIndex``.

    Parameters
    ----------
    vectors : one array ``[m_d, d]`` a document, at least one vector each, or one array ``[documents, m, d]``.
    ids : one per document; default 0, 1, ...

    Raises
    ------
    InputError : a document without vectors, vectors of different widths, numbers that are not finite.
    """

    def __init__(self, vectors: Sequence[np.ndarray] | np.ndarray, ids: Iterable[Any] | None = None):
        arrays = [check_array(f"vectors[{d}]", np.asarray(rows), ndim=2, dtypes="fiu")
                  for d, rows in enumerate(vectors)]  # fmt: skip
        if not arrays:
            raise InputError("vectors: got none, want at least one document")
        if len({rows.shape[1] for rows in arrays}) > 1:
            raise InputError(f"vectors: got widths {sorted({rows.shape[1] for rows in arrays})}, want one")
        given = as_ids("ids", range(len(arrays)) if ids is None else ids, len(arrays))
        self.ids, rank = Ids.sorted_from(given)
        order = np.argsort(rank, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum([len(arrays[d]) for d in order])]).astype(np.int64)
        self.rows = np.concatenate([arrays[d] for d in order]).astype(np.float32)

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.rows.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.starts) - 1

    def scores(self, Q: Any) -> np.ndarray:
        """All scores, float32 ``[queries, documents]``, documents by ascending id."""
        return self._block(as_queries(Q, self.width), 0, len(self))

    def _block(self, queries: np.ndarray, low: int, high: int) -> np.ndarray:
        first, last = self.starts[low], self.starts[high]
        products = queries @ self.rows[first:last].T
        return np.maximum.reduceat(products, self.starts[low:high] - first, axis=1)

    def search(self, Q: Any, k: int = 10) -> Hits:
        """The k best documents of each query ``[queries, d]``.

        Raises
        ------
        InputError : k below 1, or queries of another width.
        """
        k = check_integer("k", k, at_least=1)
        Q = as_queries(Q, self.width)
        slack = rounding(self.width) * np.linalg.norm(Q, axis=1) * np.linalg.norm(self.rows, axis=1).max(initial=0)
        ids, scores = [], []
        for q, candidates in enumerate(candidates_of(self._block, Q, len(self), k, slack)):
            exact = np.array([row_products(self.rows[self.starts[d] : self.starts[d + 1]], Q[q]).max()
                              for d in candidates])  # fmt: skip
            best = first_by_score(exact, k)
            ids.append(self.ids.take(candidates[best]))
            scores.append(exact[best])
        return Hits(ids, scores, "multi-vector", "exact maxima of inner products", k=k)

"""Retrieval with sparse representations: weights of terms, inverted indexes, exact top-k, measures.

Lives here: ``ImpactIndex`` and its segments, BM25 weights, formats of collections, runs and measures. Does not live
here: the inverted lists themselves (``layouts.inverted``), loops (``kernels``), recommending items (``recommend``).
Documents and queries are scipy CSR, non-negative. ``import ellzero.retrieval`` loads nothing.
"""

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Hits": "hits",
        "ImpactIndex": "index",
    },
    ["hits", "ids", "index", "quantise", "segments"],
)

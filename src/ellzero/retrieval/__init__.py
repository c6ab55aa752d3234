"""Retrieval with sparse representations: weights of terms, inverted indexes, exact top-k, measures.

Lives here: ``ImpactIndex`` and its segments, BM25 weights, formats of collections, runs and measures. Does not live
here: the inverted lists themselves (``layouts.inverted``), loops (``kernels``), recommending items (``recommend``).
Documents and queries are scipy CSR, non-negative. ``import ellzero.retrieval`` loads nothing.
"""

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "BM25Vectorizer": "bm25",
        "Backbone": "backbone",
        "BeirFolder": "beir",
        "Encoded": "encoded",
        "Hits": "hits",
        "ImpactIndex": "index",
        "JsonVectors": "vectors",
        "METHODS": "presets",
        "RetrievalMethod": "presets",
        "SparseEncoder": "encoder",
        "TokenBatch": "states",
        "TokenStates": "states",
        "WordPieces": "tokens",
        "Words": "tokens",
        "describe_retriever": "presets",
        "encode_corpus": "encoding",
        "evaluate": "measures",
        "export": "exporting",
        "load_encoder": "encoders",
        "means": "measures",
        "read_ciff": "ciff",
        "read_jsonl": "collections",
        "read_opensearch": "engines",
        "read_pisa": "pisa",
        "read_qdrant": "engines",
        "read_qrels": "runs",
        "read_run": "runs",
        "read_smart": "collections",
        "read_topics": "collections",
        "rows": "exporting",
        "write_beir": "beir",
        "write_ciff": "ciff",
        "write_json_vectors": "vectors",
        "write_opensearch": "engines",
        "write_pisa": "pisa",
        "write_qdrant": "engines",
        "write_qrels": "runs",
        "write_run": "runs",
    },
    ["backbone", "beir", "bm25", "building", "ciff", "collections", "encoded", "encoder", "encoders", "encoding",
     "engines", "exporting", "heads", "hits", "ids", "index", "measures", "pisa", "presets", "pretrained",
     "quantise", "runs", "segments", "states", "tokens", "vectors"],
)  # fmt: skip

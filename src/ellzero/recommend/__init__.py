"""Recommending items from sparse interactions: who took what, and what each may want next.

Lives here: EASE and the baselines it is measured against, ranking metrics, splits by user, and a reader of ratings.
Does not live here: row top-k (``kernels``), file formats (``io``), text retrieval, nor any neural net.
Interactions are scipy CSR, users by items, and are never made dense. ``import ellzero.recommend`` loads nothing.
"""

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "EASE": "ease",
        "HeldOutUsers": "interactions",
        "Interactions": "interactions",
        "ItemKNN": "baselines",
        "Popularity": "baselines",
        "Recommendations": "ranking",
        "ease_path": "ease",
        "hold_out_users": "interactions",
        "ndcg_at_k": "ranking",
        "read_ratings": "interactions",
        "recall_at_k": "ranking",
    },
    ["baselines", "ease", "interactions", "ranking"],
)

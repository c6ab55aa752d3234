"""Data: generators whose ground truth is known, and real sets that ship with ellzero or lie under ``ELLZERO_DATA``.

Lives here: ``generators`` (sparse linear systems, sparse codes, feature trees, superposition), ``features`` (a world
of planted features to sample from), ``dynamics`` (systems driven by paths), ``multitask`` (related regression tasks),
``bandits`` (actions and their rewards), ``audio`` (speech, gliding harmonics), ``grammar`` (strings) and ``sets``
(tables, images and texts by name). Does not live here: readers of the user's files (``io``), splits (``compare``), the
stream of a model's activations (``models``).
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FeatureModel": "features",
        "data_root": "sets",
        "driven_systems": "dynamics",
        "gliding_harmonics": "audio",
        "hidden_codeword_bandit": "bandits",
        "load": "sets",
        "misspecified_bandit": "bandits",
        "planted_features": "generators",
        "planted_regression": "generators",
        "reber": "grammar",
        "shared_subspace_tasks": "multitask",
        "sparse_signals": "generators",
        "speech": "audio",
        "superposed_features": "generators",
        "texts": "sets",
    },
    ("audio", "bandits", "dynamics", "features", "generators", "grammar", "multitask", "sets"),
)

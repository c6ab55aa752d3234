"""Networks with sparse weights: pruned while they train, or sparse from the start.

Lives here: ``Sparsifier`` (masks on the user's model), ``recipes`` (what to keep, where, when), ``frontier`` (methods
for the comparison), ``packed`` (the artefact). Does not live here: scores, allocations and schedules (``parts``), the
loop (``training``), sparse activations (another wing).
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Recipe": "recipes",
        "Report": "sparsifier",
        "Sparsifier": "sparsifier",
        "dense": "recipes",
        "gmp": "recipes",
        "one_shot": "recipes",
        "rigl": "recipes",
        "set_": "recipes",
        "static": "recipes",
    },
    ("frontier", "net_trim", "packed", "recipes", "sparsifier"),
)

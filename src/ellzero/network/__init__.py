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
        "ac_dc": "dynamic",
        "dense": "recipes",
        "dst_ee": "dynamic",
        "gmp": "recipes",
        "masks_of": "initial",
        "one_shot": "recipes",
        "random_search": "initial",
        "ratios_of": "initial",
        "required_width": "initial",
        "rigl": "recipes",
        "set_": "recipes",
        "sketch_bound": "initial",
        "sketch_error": "initial",
        "snip": "initial",
        "sparse_momentum": "dynamic",
        "srigl": "dynamic",
        "static": "recipes",
        "synflow": "initial",
        "undertraining_report": "dynamic",
    },
    ("dynamic", "frontier", "initial", "net_trim", "packed", "recipes", "sparsifier"),
)

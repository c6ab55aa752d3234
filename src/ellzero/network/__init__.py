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
        "autosparse": "learned",
        "decaying_mask": "patterns",
        "dense": "recipes",
        "dst_ee": "dynamic",
        "gmp": "recipes",
        "masks_of": "initial",
        "one_shot": "recipes",
        "pattern_staircase": "patterns",
        "pst": "learned",
        "random_search": "initial",
        "ratios_of": "initial",
        "required_width": "initial",
        "rigl": "recipes",
        "set_": "recipes",
        "sketch_bound": "initial",
        "sketch_error": "initial",
        "snip": "initial",
        "sparse_momentum": "dynamic",
        "sr_ste": "patterns",
        "srigl": "dynamic",
        "static": "recipes",
        "synflow": "initial",
        "undertraining_report": "dynamic",
    },
    ("dynamic", "frontier", "initial", "learned", "net_trim", "packed", "patterns", "recipes", "sparsifier"),
)

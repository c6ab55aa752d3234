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
        "HyperSparse": "pulls",
        "Irrelevance": "pulls",
        "Recipe": "recipes",
        "Report": "sparsifier",
        "Sparsifier": "sparsifier",
        "abrupt_sparsification": "knee",
        "ac_dc": "dynamic",
        "adaptive_training": "adaptive",
        "anytime_progressive_pruning": "cycles",
        "autosparse": "learned",
        "average_of": "cycles",
        "cut": "cycles",
        "decaying_mask": "patterns",
        "dense": "recipes",
        "dst_ee": "dynamic",
        "epochs_of": "adaptive",
        "essential_sparsity": "knee",
        "fitter": "cycles",
        "geometric_densities": "cycles",
        "gmp": "recipes",
        "hyper_sparse": "pulls",
        "irrelevance": "pulls",
        "iterative_magnitude_pruning": "cycles",
        "masks_of": "initial",
        "one_shot": "recipes",
        "pattern_staircase": "patterns",
        "prune_to_tolerance": "cycles",
        "pst": "learned",
        "random_search": "initial",
        "ratios_of": "initial",
        "refresh_norms": "cycles",
        "required_width": "initial",
        "rigl": "recipes",
        "set_": "recipes",
        "sketch_bound": "initial",
        "sketch_error": "initial",
        "snip": "initial",
        "sparse_momentum": "dynamic",
        "sparse_soup": "cycles",
        "sr_ste": "patterns",
        "sparse_iso_flop": "iso_flop",
        "srigl": "dynamic",
        "static": "recipes",
        "swamp": "cycles",
        "synflow": "initial",
        "undertraining_report": "dynamic",
    },
    (
        "adaptive",
        "cycles",
        "dynamic",
        "frontier",
        "initial",
        "iso_flop",
        "knee",
        "learned",
        "net_trim",
        "packed",
        "patterns",
        "pulls",
        "recipes",
        "sparsifier",
    ),
)

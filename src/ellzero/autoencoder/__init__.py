"""Sparse autoencoders: few active latents for each activation of a model.

Lives here: ``model`` (the autoencoder and its codes), ``objective`` (loss terms), ``presets``, ``trainer``,
``metrics``, ``recovery`` (of known features), ``splice`` (into a running model), ``spliced_loss`` (what it loses by
it), ``browse`` (latents as a page), ``from_model`` (training on one), ``storage`` (SAELens' file names), ``pca`` (the
dense baseline), ``frontier`` (the methods compared) and ``sources`` (activations by the name of a file or model). Does
not live here: selections and gradient rules (``parts``), hooks into models (``models``), the task.
Importing this package loads no torch.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PCA": "pca",
        "SAETrainer": "trainer",
        "SparseAutoencoder": "model",
        "SparseCode": "model",
        "attach": "splice",
        "cross_entropy_recovered": "spliced_loss",
        "evaluate": "metrics",
    },
    (
        "browse",
        "from_model",
        "frontier",
        "metrics",
        "model",
        "objective",
        "pca",
        "presets",
        "recovery",
        "sources",
        "splice",
        "spliced_loss",
        "storage",
        "trainer",
    ),
)

"""Sparse autoencoders: few active latents for each activation of a model.

Lives here: ``model`` (the autoencoder and its codes), ``objective`` (loss terms), ``presets``, ``trainer``, ``many``
(in one pass), ``distributed``, ``end_to_end`` (on the model's output), ``mutual`` (made to agree), ``ensemble``,
``subspace`` (first weights), ``faithful`` (the model's own text), ``estimators`` (for scikit-learn); parts of one
variant: ``pursuit``, ``adaptive``, ``afa``, ``choice``, ``gradient_aware``, ``contrastive``; ``bilinear``;
``metrics``, ``recovery`` (of known features), ``stability`` (over seeds), ``families`` (of latents that fire
together), ``dictionaries`` (small against large), ``steering``, ``splice`` (into a running model), ``spliced_loss``
(what it loses by it), ``browse`` (latents as a page), ``from_model`` (training on one), ``storage`` and ``formats``
(our files and those of other libraries), ``inputs`` (normalisation), ``pca`` (the dense baseline), ``frontier`` (the
methods compared) and ``sources`` (activations by the name of a file or model). Does not live here:
selections and gradient rules (``parts``), hooks into models (``models``), the task.
Importing this package loads no torch.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Bagging": "ensemble",
        "BilinearAutoencoder": "bilinear",
        "Boosting": "ensemble",
        "DistributedTrainer": "distributed",
        "EndToEndTrainer": "end_to_end",
        "PCA": "pca",
        "SAETrainer": "trainer",
        "SAETransformer": "estimators",
        "Shard": "distributed",
        "SparseAutoencoder": "model",
        "SparseCode": "model",
        "attach": "splice",
        "cross_entropy_recovered": "spliced_loss",
        "evaluate": "metrics",
        "fake_feature_ratio": "faithful",
        "feature_families": "families",
        "fit_probe": "adaptive",
        "initialize_in_subspace": "subspace",
        "match_dictionaries": "dictionaries",
        "rank_report": "subspace",
        "sample_tokens": "faithful",
        "shared_features": "stability",
        "steer": "steering",
        "train_many": "many",
        "train_mutually": "mutual",
        "with_gradients": "gradient_aware",
        "zf_plot": "afa",
    },
    (
        "adaptive",
        "afa",
        "bilinear",
        "browse",
        "choice",
        "contrastive",
        "dictionaries",
        "distributed",
        "end_to_end",
        "ensemble",
        "estimators",
        "faithful",
        "families",
        "formats",
        "from_model",
        "frontier",
        "gradient_aware",
        "inputs",
        "many",
        "metrics",
        "model",
        "mutual",
        "objective",
        "pca",
        "presets",
        "pursuit",
        "recovery",
        "sources",
        "splice",
        "spliced_loss",
        "stability",
        "steering",
        "storage",
        "subspace",
        "trainer",
    ),
)

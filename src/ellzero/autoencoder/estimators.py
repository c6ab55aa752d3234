"""Sparse codes as scikit-learn features.

Lives here: ``SAETransformer``. Does not live here: the autoencoder (``model``), its training (``trainer``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ellzero.autoencoder.inputs import check_inputs
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.presets import preset as find_preset
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError, check_integer
from ellzero.registry import register

__all__ = ["SAETransformer"]

# Entries of the codes of one block of rows: 64 MB of float64.
_BLOCK = 2**23


@register(
    kind="estimator", wing="autoencoder", source="arXiv:2406.04093", extra="torch", example=lambda: SAETransformer(),
)  # fmt: skip
class SAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A sparse autoencoder as a transformer: rows become codes with few active latents, and codes rows again.

    Parameters
    ----------
    preset : name of a variant of ``ellzero.autoencoder.presets``, such as ``"topk"``, ``"batchtopk"``,
        ``"matryoshka"``.
    n_components : number of latents.
    k : how many are active on a row, on average at least; as many as there are latents where that is fewer.
    inputs : how rows are normalised, one of ``ellzero.autoencoder.inputs``, or None.
    options : further settings of the preset.
    lr, batch_size, steps : of ``SAETrainer``; by default its rate for the width, and 4096 rows (all of them where there
        are fewer) for 2000 steps.
    sparse_output : codes as CSR arrays of scipy.
    seed : of first weights and order of rows.

    Attributes
    ----------
    autoencoder_ : the trained ``SparseAutoencoder``.
    components_ : its directions ``[n_components, n_features]``, float32.
    loss_ : the last loss of training, as a share of the variance.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    Codes are float32 whatever the input. They are formed in float64 from the float32 weights, so a row's code does not
    depend on the rows beside it.

    Raises
    ------
    InputError : an unknown preset or option, sizes below 1; rows that are all equal.

    Gao et al. (2024) for the default variant.
    """

    def __init__(
        self,
        preset: str = "topk",
        n_components: int = 512,
        k: int = 16,
        *,
        inputs: Any = None,
        options: Mapping[str, Any] | None = None,
        lr: float | None = None,
        batch_size: int = 4096,
        steps: int = 2000,
        sparse_output: bool = False,
        seed: int = 0,
    ):
        self.preset = preset
        self.n_components = n_components
        self.k = k
        self.inputs = inputs
        self.options = options
        self.lr = lr
        self.batch_size = batch_size
        self.steps = steps
        self.sparse_output = sparse_output
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> SAETransformer:
        """Train on rows ``X`` ``[rows, n_features]``; ``y`` is not used."""
        build = find_preset(self.preset)
        check_integer("n_components", self.n_components, at_least=1)
        check_integer("k", self.k, at_least=1)
        check_integer("batch_size", self.batch_size, at_least=1)
        check_inputs(self.inputs)
        X = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)
        given = {"inputs": self.inputs, "seed": self.seed, **(self.options or {})}
        k = min(self.k, self.n_components)
        try:
            sae = build(X.shape[1], self.n_components, k, **given)
        except TypeError as error:
            raise InputError(f"options: got {self.options!r}, which {self.preset} does not take ({error})") from error
        trainer = SAETrainer(
            sae, lr=self.lr, batch_size=min(self.batch_size, len(X)), steps=self.steps, seed=self.seed
        )  # fmt: skip
        self.loss_ = trainer.fit(X).losses[self.steps]
        self.autoencoder_ = sae
        self.components_ = sae.W_dec.detach().numpy().copy()
        return self

    def transform(self, X: Any) -> np.ndarray | sparse.csr_array:
        """Codes ``[rows, n_components]``, float32: an array, or CSR with ``sparse_output``."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        sae = _doubled(self.autoencoder_)
        blocks = []
        with torch.inference_mode():
            for rows in _blocks(X, self.n_components):
                z = sae.encode(torch.from_numpy(rows.astype(np.float64))).float().numpy()
                blocks.append(sparse.csr_array(z) if self.sparse_output else z)
        return sparse.vstack(blocks, format="csr") if self.sparse_output else np.concatenate(blocks)

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Rows ``[rows, n_features]`` of codes, an array or CSR; float32.

        Raises
        ------
        InputError : codes of another width, or a normalisation row by row, which codes alone cannot undo.
        """
        check_is_fitted(self)
        Z = check_array(Z, dtype=[np.float32, np.float64], accept_sparse="csr")
        if Z.shape[1] != self.n_components:
            raise InputError(f"Z: got {Z.shape[1]} columns, want {self.n_components}, one for each latent")
        found = []
        with torch.inference_mode():
            for rows in _blocks(Z, self.n_components):
                z = rows.toarray() if sparse.issparse(rows) else rows
                found.append(self.autoencoder_.decode(torch.from_numpy(z.astype(np.float32))).numpy())
        return np.concatenate(found)

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _blocks(X: Any, width: int) -> list[Any]:
    size = max(_BLOCK // width, 1)
    return [X[low : low + size] for low in range(0, X.shape[0], size)]


def _doubled(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same weights in float64."""
    return copy.deepcopy(sae).double()

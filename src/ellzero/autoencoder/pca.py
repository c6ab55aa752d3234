"""Principal components as codes: the dense baseline of every sparse autoencoder.

Lives here: ``PCA``. Does not live here: anything trained by gradient. Its code of width k has all k entries active on
every row, so its L0 is k; no linear code of that width has a smaller error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.errors import InputError, check_array, check_integer
from ellzero.io import artefacts

__all__ = ["PCA"]

FILE, KIND, VERSION = "pca.safetensors", "principal-components", 1


@dataclass(frozen=True, eq=False)
class PCA:
    """``z = (x - mean) components^T``, ``x_hat = z components + mean``. Components are orthonormal rows."""

    components: Float[Tensor, "k d_in"]
    mean: Float[Tensor, " d_in"]

    @classmethod
    def fit(cls, x: np.ndarray, k: int) -> PCA:
        """The ``k`` leading eigenvectors of the covariance of ``x`` ``[rows, d_in]``, found in float64.

        Signs make the largest entry of each component positive.
        """
        check_array("x", x, ndim=2, dtypes="f")
        check_integer("k", k, at_least=1, at_most=x.shape[1])
        mean = x.mean(0, dtype=np.float64)
        centred = x.astype(np.float64) - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        rows = vectors.T[::-1][:k]
        rows = rows * np.sign(np.take_along_axis(rows, abs(rows).argmax(1)[:, None], 1))
        return cls(torch.tensor(rows.copy(), dtype=torch.float32), torch.tensor(mean, dtype=torch.float32))

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows k"]:
        """Coordinates along the components."""
        check_array("x", x, ndim=2, shape=(None, len(self.mean)), dtypes="f", allow_empty=True)
        return (x - self.mean) @ self.components.T

    def decode(self, z: Float[Tensor, "rows k"]) -> Float[Tensor, "rows d_in"]:
        """The point with those coordinates."""
        return z @ self.components + self.mean

    def save(self, directory: str | Path) -> None:
        """Write ``pca.safetensors`` into an existing folder."""
        parts = {"components": self.components, "mean": self.mean}
        artefacts.save(Path(directory) / FILE, parts, {}, kind=KIND, version=VERSION)

    @classmethod
    def load(cls, directory: str | Path) -> PCA:
        """Read what ``save`` wrote."""
        found, _ = artefacts.load(Path(directory) / FILE, KIND, version=VERSION, backend="torch")
        if set(found) != {"components", "mean"} or found["components"].shape[1:] != found["mean"].shape:
            raise InputError(f"{directory}: {FILE} does not hold components [k, d_in] and mean [d_in]")
        return cls(found["components"], found["mean"])

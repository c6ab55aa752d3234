"""The sparse autoencoder: encoder, selection, gradient rule and decoder, joined by composition.

Lives here: ``SparseAutoencoder``, ``SparseCode``, ``UnitNorm`` and ``CalibratedThreshold``. Does not live here: loss
terms (``objective``), training (``trainer``), files (``storage``), or any variant's settings (``presets``).
``pre = (x - b_dec) W_enc + b_enc``, ``z = relu(pre)`` on the selected entries, ``x_hat = z W_dec + b_dec``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check_array, check_integer
from ellzero.kernels import torch_ops
from ellzero.parts.constraints import BatchTopK
from ellzero.parts.gradients import Masked
from ellzero.rng import rng

__all__ = ["CalibratedThreshold", "SparseAutoencoder", "SparseCode", "UnitNorm"]

# Entries of the activation matrix that a threshold is calibrated on: 32 MB of float32.
_CALIBRATION = 2**23


class SparseCode(NamedTuple):
    """Codes as they are stored: per row the active latents, largest first, padded with zeros of latent 0."""

    values: Float[Tensor, "rows k"]
    indices: Int64[Tensor, "rows k"]

    def dense(self, d_sae: int) -> Float[Tensor, "rows d_sae"]:
        """The codes with their zeros."""
        out = self.values.new_zeros(len(self.values), d_sae)
        return out.scatter_add(1, self.indices, self.values)


@dataclass(frozen=True)
class UnitNorm:
    """Rows of the decoder have norm 1; the derivative along a row is taken out before the optimiser sees it."""

    def project(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """The nearest matrix with unit rows (a zero row stays zero)."""
        return F.normalize(W_dec, dim=1)

    def tangent(self, W_dec: Tensor, gradient: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """The part of the gradient that does not change the norms, for rows of norm 1."""
        return gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec


@dataclass(frozen=True)
class CalibratedThreshold:
    """At inference a latent is active above a threshold, set so that ``k`` are active on average over a sample.

    What a selection over the batch needs, since one activation must not depend on the others beside it.
    """

    k: int

    def find(self, activations: Float[Tensor, "rows d_sae"]) -> float:
        """Halfway between the last activation that ``BatchTopK(k)`` keeps and the next one below it; at least zero."""
        kept = BatchTopK(self.k).support(activations)
        last = activations[kept].min() if bool(kept.any()) else activations.max()
        below = activations[~kept].max() if not bool(kept.all()) else torch.zeros(())
        return max(float(last + below) / 2, 0.0)


class SparseAutoencoder(nn.Module):
    """An autoencoder whose code has few entries.

    In training mode the codes follow ``select``; in evaluation mode ``threshold`` where ``infer`` has set it, else
    ``select``. One that was loaded with a threshold keeps to it in both modes.

    Parameters
    ----------
    d_in, d_sae : width of the input and number of latents.
    select : constraint on the rectified activations.
    gradient : what the derivative sees of the selection.
    infer : ``CalibratedThreshold`` where the selection needs the whole batch.
    decoder : constraint on ``W_dec``, or None.
    objective : loss terms, summed; see ``ellzero.autoencoder.objective``.
    architecture : the name in ``cfg.json``: ``"standard"``, ``"topk"`` or ``"jumprelu"``.
    seed : of the first weights: random unit rows, the encoder being the decoder's transpose.

    Attributes
    ----------
    W_enc, b_enc, W_dec, b_dec : ``[d_in, d_sae]``, ``[d_sae]``, ``[d_sae, d_in]``, ``[d_in]``.
    threshold : ``[d_sae]`` once calibrated, else None.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        select: Any,
        gradient: Any = Masked(),  # noqa: B008 (a frozen value)
        infer: CalibratedThreshold | None = None,
        decoder: UnitNorm | None = UnitNorm(),
        objective: Sequence[Any] = (),
        architecture: str = "standard",
        seed: int = 0,
    ):
        super().__init__()
        self.d_in = check_integer("d_in", d_in, at_least=1)
        self.d_sae = check_integer("d_sae", d_sae, at_least=1)
        k = getattr(select, "k", None)
        if k is not None and not 1 <= k <= self.d_sae:
            raise InputError(f"k: got {k}, want 1 to {self.d_sae}, the number of latents")
        self.select, self.gradient, self.infer, self.decoder = select, gradient, infer, decoder
        self.objective, self.architecture = tuple(objective), architecture
        rows = torch.from_numpy(rng(seed, "autoencoder", "W_dec").standard_normal((d_sae, d_in), dtype=np.float32))
        rows = F.normalize(rows, dim=1)
        self.W_enc = nn.Parameter(rows.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("threshold", None)

    @classmethod
    def from_preset(cls, name: str, *, d_in: int, d_sae: int, k: int = 32, **options: Any) -> SparseAutoencoder:
        """One of ``ellzero.autoencoder.presets`` by name: ``"relu_l1"``, ``"topk"``, ``"batchtopk"``."""
        from ellzero.autoencoder.presets import preset

        return preset(name)(d_in, d_sae, k, **options)

    # -- forward

    def activations(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """``relu((x - b_dec) W_enc + b_enc)``, before anything is selected."""
        return self.pre(x).relu()

    def pre(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """``(x - b_dec) W_enc + b_enc``."""
        return F.linear(x, self.W_enc.T, self.b_enc - self.b_dec @ self.W_enc)

    def keep(self, activations: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_sae"]:
        """The codes: the activations that the rule of the present mode keeps."""
        if self.infer is not None and self.training:
            support = self.select.support(activations.detach())
        elif self.threshold is not None:
            support = activations.detach() > self.threshold
        elif self.infer is None:
            support = self.select.support(activations.detach())
        else:
            raise InputError("threshold: not calibrated yet; train the autoencoder, or call calibrate(activations)")
        return self.gradient.apply(activations, support)

    def encode(self, x: Float[Tensor, "rows d_in"], *, sparse: bool = False) -> Tensor | SparseCode:
        """Codes ``[rows, d_sae]``, or as ``SparseCode`` with as many columns as the fullest row needs.

        Raises
        ------
        InputError : not rows of ``d_in`` finite floating-point numbers, or a threshold that is not calibrated yet.
        """
        z = self.keep(self.activations(self._checked(x)))
        if not sparse:
            return z
        width = int((z > 0).sum(1).max()) if len(z) else 0
        return _padded(torch_ops.top_k(z, width))

    def decode(self, z: Tensor | SparseCode) -> Float[Tensor, "rows d_in"]:
        """``z W_dec + b_dec``; for a ``SparseCode`` from the active rows of ``W_dec`` alone."""
        if not isinstance(z, SparseCode):
            check_array("z", z, ndim=2, shape=(None, self.d_sae), dtypes="f", finite=False, allow_empty=True)
            return z @ self.W_dec + self.b_dec
        if z.values.shape[1] == 0:
            return self.b_dec.expand(len(z.values), -1)
        return F.embedding_bag(z.indices, self.W_dec, per_sample_weights=z.values, mode="sum") + self.b_dec

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """The reconstruction ``decode(encode(x))``."""
        return self.decode(self.encode(x))

    def _checked(self, x: Any) -> Tensor:
        """Rows in the dtype and on the device of the weights."""
        check_array("x", x, ndim=2, shape=(None, self.d_in), dtypes="f", allow_empty=True)
        return (x if isinstance(x, Tensor) else torch.as_tensor(np.array(x, dtype=np.float32))).to(self.W_dec)

    # -- constraints and calibration

    @torch.no_grad()
    def normalize(self) -> None:
        """Put the decoder back onto its constraint."""
        if self.decoder is not None:
            self.W_dec.copy_(self.decoder.project(self.W_dec))

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Make it the autoencoder of ``factor * x``: codes and reconstructions grow by the factor, the weights stay."""
        for tensor in (self.b_enc, self.b_dec, self.threshold):
            if tensor is not None:
                tensor.mul_(factor)

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Set the inference threshold on a sample of activations (a long one is thinned evenly)."""
        if self.infer is None:
            raise InputError("calibrate: this autoencoder selects each row by itself and has no threshold")
        x = self._checked(x)
        if len(x) == 0:
            raise InputError("x: got no rows, want a sample of activations")
        most = max(_CALIBRATION // self.d_sae, 256)
        found = self.infer.find(self.activations(x[:: -(-len(x) // most)]))
        self.threshold = torch.full((self.d_sae,), found, dtype=self.W_dec.dtype, device=self.W_dec.device)

    # -- files

    def save(self, directory: str | Path) -> None:
        """Write ``cfg.json`` and ``sae_weights.safetensors``; a calibrated selection is saved as a JumpReLU."""
        from ellzero.autoencoder import storage

        storage.save(self, directory)

    @classmethod
    def load(cls, directory: str | Path) -> SparseAutoencoder:
        """Read what ``save`` wrote, or an autoencoder of SAELens with the same file names, in evaluation mode."""
        from ellzero.autoencoder import storage

        return storage.load(directory)


def _padded(found: Any) -> SparseCode:
    """Entries that are zero point to latent 0, so that equal codes are equal arrays."""
    return SparseCode(found.values, found.indices.where(found.values > 0, torch.zeros_like(found.indices)))

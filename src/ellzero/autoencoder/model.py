"""The sparse autoencoder: encoder, selection, gradient rule and decoder, joined by composition.

Lives here: ``SparseAutoencoder`` and ``UnitNorm``. Does not live here: encoders, selections, codes and loss terms
(modules of those names), training (``trainer``), files (``storage``), or any variant's settings (``presets``).
``pre = (x - b_dec) W_enc + b_enc``, ``z = relu(pre)`` on the selected entries, ``x_hat = z W_dec + b_dec``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.autoencoder.codes import SparseCode, ranked
from ellzero.autoencoder.encoders import Linear
from ellzero.autoencoder.inputs import check_inputs
from ellzero.autoencoder.selectors import Jump
from ellzero.errors import InputError, check_array, check_integer
from ellzero.kernels import torch_latents
from ellzero.parts.constraints import BatchTopK, TopK
from ellzero.parts.gradients import Masked
from ellzero.rng import rng

__all__ = ["SparseAutoencoder", "UnitNorm"]

# Entries of the activation matrix that a threshold is calibrated on: 32 MB of float32.
_CALIBRATION = 2**23


@dataclass(frozen=True)
class UnitNorm:
    """Rows of the decoder have norm 1; the derivative along a row is taken out before the optimiser sees it."""

    def project(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """The nearest matrix with unit rows (a zero row stays zero)."""
        return F.normalize(W_dec, dim=1)

    def tangent(self, W_dec: Tensor, gradient: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """The part of the gradient that does not change the norms, for rows of norm 1."""
        return gradient - (gradient * W_dec).sum(1, keepdim=True) * W_dec


class SparseAutoencoder(nn.Module):
    """An autoencoder whose code has few entries.

    In training mode the codes follow ``select``. In evaluation mode they follow ``threshold`` where ``infer`` has set
    it, else ``infer`` where that is a selection, else ``select``. One that was loaded with a threshold keeps to it in
    both modes.

    Parameters
    ----------
    d_in, d_sae : width of the input and number of latents.
    select : selection among the encoder's scores.
    encoder : ``Linear`` or another of ``ellzero.autoencoder.encoders``.
    score : reweighs the scores before the selection, called as ``score(sae, scores, beside)``, or None.
    gradient : what the derivative sees of the selection.
    infer : what holds in evaluation mode: ``CalibratedThreshold`` or ``LatentThresholds`` where the selection needs the
        whole batch, a selection where it is another one, or None.
    decoder : constraint on ``W_dec``, or None.
    objective : loss terms, summed; see ``ellzero.autoencoder.objective``.
    inputs : how inputs are normalised, one of ``ellzero.autoencoder.inputs``, or None. Encoder and loss see normalised
        rows; reconstructions are in the units of the input.
    architecture : the name in ``cfg.json``: ``"standard"``, ``"gated"``, ``"topk"`` or ``"jumprelu"``.
    recommended : settings of ``SAETrainer`` where the caller gives none.
    seed : of the first weights: random unit rows, the encoder being the decoder's transpose; None for zeros, where
        weights from a file follow.

    Attributes
    ----------
    W_enc, b_enc, W_dec, b_dec : ``[d_in, d_sae]``, ``[d_sae]``, ``[d_sae, d_in]``, ``[d_in]``. ``W_enc`` lies in memory
        latent by latent, as ``W_dec`` does.
    threshold : ``[d_sae]`` once calibrated or where it is learnt, else None.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        select: Any,
        encoder: Any = Linear(),  # noqa: B008 (a frozen value)
        score: Any = None,
        gradient: Any = Masked(),  # noqa: B008 (a frozen value)
        infer: Any = None,
        decoder: UnitNorm | None = UnitNorm(),
        objective: Sequence[Any] = (),
        inputs: Any = None,
        architecture: str = "standard",
        recommended: Mapping[str, Any] | None = None,
        seed: int | None = 0,
    ):
        super().__init__()
        self.d_in = check_integer("d_in", d_in, at_least=1)
        self.d_sae = check_integer("d_sae", d_sae, at_least=1)
        k = getattr(select, "k", None)
        if isinstance(k, int) and not 1 <= k <= self.d_sae:
            raise InputError(f"k: got {k}, want 1 to {self.d_sae}, the number of latents")
        self.select, self.encoder, self.score, self.gradient = select, encoder, score, gradient
        self.infer, self.decoder, self.objective = infer, decoder, tuple(objective)
        self.inputs = check_inputs(inputs)
        self.architecture, self.recommended = architecture, dict(recommended or {})
        self.preset: str | None = None
        self.progress: float | None = None
        rows = torch.zeros(d_sae, d_in)
        if seed is not None:
            drawn = rng(seed, "autoencoder", "W_dec").standard_normal((d_sae, d_in), dtype=np.float32)
            rows = F.normalize(torch.from_numpy(drawn), dim=1)
        if not encoder.tied:
            self.W_enc = nn.Parameter(rows.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        for part in (encoder, select):
            for name, start in part.extra(d_in, d_sae).items() if hasattr(part, "extra") else ():
                setattr(self, name, start if isinstance(start, nn.Buffer) else nn.Parameter(start))
        self.register_buffer("threshold", None)
        if isinstance(select, Jump):
            start = torch.full((d_sae,), float(select.initial))
            if select.log:
                self.log_threshold = nn.Parameter(start.log())
            else:
                del self.threshold
                self.threshold = nn.Parameter(start)

    @classmethod
    def from_preset(cls, name: str, *, d_in: int, d_sae: int, k: int = 32, **options: Any) -> SparseAutoencoder:
        """One of ``ellzero.autoencoder.presets`` by name, such as ``"topk"`` or ``"batchtopk"``."""
        from ellzero.autoencoder.presets import preset

        return preset(name)(d_in, d_sae, k, **options)

    # -- forward

    def activations(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """What the selection chooses among: ``relu((x - b_dec) W_enc + b_enc)`` of a linear encoder."""
        return self.encoder(self, x).values

    def pre(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """``(x - b_dec) W_enc + b_enc``."""
        return self.encoder.pre(self, x)

    def thresholds(self) -> Float[Tensor, " d_sae"] | None:
        """The threshold of each latent, learnt or calibrated; None where there is none."""
        return self.log_threshold.exp() if hasattr(self, "log_threshold") else self.threshold

    def selection(self, x: Float[Tensor, "rows d_in"] | None = None, beside: Any = None) -> Any:
        """The selection of the present mode, for these rows, or None where the calibrated threshold decides."""
        if not self.training or self.infer is None:
            if self.threshold is not None and not isinstance(self.select, Jump):
                return None
            if self.calibrates:
                raise InputError("threshold: not calibrated yet; train the autoencoder, or call calibrate(activations)")
        select = self.select if self.training or self.infer is None else self.infer
        if self.training and self.progress is not None and hasattr(select, "at"):
            select = select.at(self.progress)
        return select.for_rows(self, x, beside) if hasattr(select, "for_rows") else select

    def codes(self, x: Float[Tensor, "rows d_in"], beside: Any = None) -> tuple[Tensor, Tensor]:
        """Dense codes and the pre-activations they were chosen from; ``x`` is not checked."""
        if hasattr(self.encoder, "pursue"):
            return self.encoder.pursue(self, x), None
        pre, values, scores = self.encoder(self, x)
        select, threshold = self.selection(x, beside), self.thresholds()
        if self.score is not None and beside is not None:
            scores = self.score(self, scores, beside)
        if select is None:
            support = scores > threshold
        elif isinstance(select, Jump):
            support = select.support(scores, threshold.detach())
        else:
            support = select.support(scores)
        return self.gradient.apply(values, support, threshold if isinstance(select, Jump) else None), pre

    def sparsely(self, x: Float[Tensor, "rows d_in"], least: int = 0) -> SparseCode | None:
        """The code with at least so many columns, without the matrix of all activations; None where that cannot be.

        It can be for a linear encoder under ``TopK`` or ``BatchTopK``. Columns beyond the selection's own ``k`` hold
        what would come next; they are given by ``TopK`` alone.
        """
        if type(self.encoder) is not Linear or self.score is not None or type(self.gradient) is not Masked:
            return None
        select = self.selection(x)
        rows, center = self.encoder.rows(self), self.b_dec if self.encoder.centred else None
        if type(select) is TopK and select.axis == -1:
            k = max(select.k, min(least, self.d_sae))
            found = torch_latents.encode_top_k(x, rows, self.b_enc, k, self.encoder.rule, center=center)
            return SparseCode(*found)
        if type(select) is BatchTopK and select.axis == -1 and self.encoder.rule == "relu" and least == 0:
            found = torch_latents.encode_batch_top_k(x, rows, self.b_enc, select.k, center=center)
            return SparseCode(found.values, found.indices)
        return None

    def encode(self, x: Float[Tensor, "rows d_in"], *, sparse: bool = False, beside: Any = None) -> Tensor | SparseCode:
        """Codes ``[rows, d_sae]``, or as ``SparseCode`` with as many columns as the fullest row needs.

        ``beside`` is what the score or the selection wants of each row beside ``x``, such as a gradient.

        Raises
        ------
        InputError : not rows of ``d_in`` finite floating-point numbers, or a threshold that is not calibrated yet.
        """
        x = self.normalized(self._checked(x))
        code = self.sparsely(x) if sparse and beside is None else None
        if code is not None:
            width = int((code.values != 0).sum(1).max()) if len(x) else 0
            return code.first(width)
        z, _ = self.codes(x, beside)
        if not sparse:
            return z
        return ranked(z, int((z != 0).sum(1).max()) if len(z) else 0)

    def decode(self, z: Tensor | SparseCode, x: Float[Tensor, "rows d_in"] | None = None) -> Float[Tensor, "rows d_in"]:
        """``z W_dec + b_dec``, with the normalisation undone; of a ``SparseCode`` from active rows of ``W_dec`` alone.

        Raises
        ------
        InputError : codes that are not ``[rows, d_sae]``; no ``x`` where it is normalised row by row.
        """
        x_hat = self.reconstruct(z)
        return x_hat if self.inputs is None else self.inputs.undo(self, x_hat, None if x is None else self._checked(x))

    def reconstruct(self, z: Tensor | SparseCode) -> Float[Tensor, "rows d_in"]:
        """``z W_dec + b_dec``: the reconstruction of normalised rows."""
        if not isinstance(z, SparseCode):
            check_array("z", z, ndim=2, shape=(None, self.d_sae), dtypes="f", finite=False, allow_empty=True)
        return self.combine(z) + self.b_dec

    def combine(self, z: Tensor | SparseCode) -> Float[Tensor, "rows d_in"]:
        """``z W_dec``, without ``b_dec``."""
        if not isinstance(z, SparseCode):
            return z @ self.W_dec
        if z.values.shape[1] == 0:
            return self.W_dec.new_zeros(len(z.values), self.d_in)
        return torch_latents.decode_rows(z.values, z.indices, self.W_dec)

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """The reconstruction ``decode(encode(x))``."""
        return self.decode(self.encode(x), x)

    def at(self, k: int) -> SparseAutoencoder:
        """The same weights with ``k`` active latents in evaluation mode: what a nested autoencoder is for.

        Raises
        ------
        InputError : a selection that has no ``k`` of its own.
        """
        if not isinstance(getattr(self.select, "k", None), int) or self.calibrates:
            raise InputError(f"k: a selection by {type(self.select).__name__} has no k to set, want TopK")
        twin = copy.copy(self)
        twin.infer = replace(self.select if self.infer is None else self.infer, k=check_integer("k", k, at_least=1))
        if k > self.d_sae:
            raise InputError(f"k: got {k}, want at most {self.d_sae}, the number of latents")
        return twin.eval()

    def _checked(self, x: Any) -> Tensor:
        """Rows in the dtype and on the device of the weights."""
        check_array("x", x, ndim=2, shape=(None, self.d_in), dtypes="f", allow_empty=True)
        return (x if isinstance(x, Tensor) else torch.as_tensor(np.array(x, dtype=np.float32))).to(self.W_dec)

    # -- constraints and calibration

    @property
    def calibrates(self) -> bool:
        """Whether evaluation needs a threshold that ``calibrate`` finds."""
        return hasattr(self.infer, "find")

    @torch.no_grad()
    def normalize(self) -> None:
        """Put the decoder back onto its constraint, and learnt thresholds to zero or above."""
        if self.decoder is not None:
            self.W_dec.copy_(self.decoder.project(self.W_dec))
        if isinstance(self.threshold, nn.Parameter):
            self.threshold.clamp_(min=0)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Make it the autoencoder of ``factor * x``: codes and reconstructions grow by the factor, the weights stay."""
        for tensor in (self.b_enc, self.b_dec, self.threshold, getattr(self, "b_mag", None)):
            if tensor is not None:
                tensor.mul_(factor)
        if hasattr(self, "log_threshold"):
            self.log_threshold.add_(float(np.log(factor)))
        if hasattr(self.select, "rescale"):
            self.select.rescale(self, factor)

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Set the inference threshold on a sample of activations (a long one is thinned evenly)."""
        if not self.calibrates:
            raise InputError("calibrate: this autoencoder selects each row by itself and has no threshold")
        self.set_threshold(self.normalized(self._sample(x)))

    @torch.no_grad()
    def set_threshold(self, x: Float[Tensor, "rows d_in"]) -> None:
        """``calibrate`` on rows that are normalised already."""
        most = max(_CALIBRATION // self.d_sae, 256)
        x = x[:: -(-len(x) // most)]
        infer = self.infer.for_rows(self, x) if hasattr(self.infer, "for_rows") else self.infer
        self.threshold = infer.find(self.encoder(self, x).scores).to(self.W_dec)

    def _sample(self, x: Any) -> Tensor:
        x = self._checked(x)
        if len(x) == 0:
            raise InputError("x: got no rows, want a sample of activations")
        return x

    # -- normalisation of the input

    def normalized(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """What the encoder sees of rows."""
        return x if self.inputs is None else self.inputs.apply(self, x)

    @torch.no_grad()
    def fit_inputs(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Find from a sample what ``inputs`` needs, such as the scale of ``ExpectedNorm``. Training does it by itself.

        Raises
        ------
        InputError : no rows; zeros alone; a covariance without inverse.
        """
        for name, tensor in (self.inputs.fit(self._sample(x)) if self.inputs is not None else {}).items():
            self.register_buffer(name, tensor)

    # -- files

    def save(self, path: str | Path, *, format: str = "ellzero") -> None:
        """Write it for evaluation: a calibrated selection over the batch becomes a JumpReLU.

        Parameters
        ----------
        path : a folder, made if it is not there; a ``.pt`` or ``.npz`` file too where the format is one file.
        format : ``"ellzero"``, which holds every autoencoder (``cfg.json`` and ``sae_weights.safetensors``, which
            SAELens reads too where it has that architecture and normalisation), or that of another library:
            ``"saelens"``, ``"dictionary_learning"``, ``"sparsify"``, ``"gemma_scope"``, ``"openai"``.

        Raises
        ------
        InputError : not calibrated; an architecture or normalisation that the format cannot hold.
        """
        from ellzero.autoencoder import storage

        storage.save(self, path, format)

    @classmethod
    def load(cls, path: str | Path, *, format: str = "auto") -> SparseAutoencoder:
        """Read what ``save`` or the library of that format wrote, in evaluation mode.

        Raises
        ------
        InputError : files that are missing, torn, foreign, of a newer version, or hold what has no equal here.
        """
        from ellzero.autoencoder import storage

        return storage.load(path, format)

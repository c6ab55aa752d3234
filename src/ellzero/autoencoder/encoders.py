"""Encoders: from activations to what the selection chooses among.

Lives here: ``Linear`` and ``Gated``, frozen values that work on an autoencoder's weights, and ``Candidates``. Does not
live here: which candidates are kept (``selectors``) or the weights (``model``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ellzero.errors import check_choice

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["Candidates", "Gated", "Linear"]


class Candidates(NamedTuple):
    """What an encoder offers: pre-activations, the values that would be kept, and the scores that choose."""

    pre: Float[Tensor, "rows d_sae"]
    values: Float[Tensor, "rows d_sae"]
    scores: Float[Tensor, "rows d_sae"]


@dataclass(frozen=True)
class Linear:
    """``pre = (x - b_dec) W_enc + b_enc``.

    Parameters
    ----------
    rule : ``"relu"`` offers ``relu(pre)``; ``"signed"`` offers ``pre``, the largest first; ``"absolute"`` offers
        ``pre``, the largest magnitude first.
    centred : whether ``b_dec`` is taken from the input.
    tied : the encoder is the decoder's transpose, and there is no ``W_enc``.
    """

    rule: Literal["relu", "signed", "absolute"] = "relu"
    centred: bool = True
    tied: bool = False

    def __post_init__(self):
        check_choice("rule", self.rule, ("relu", "signed", "absolute"))

    def extra(self, d_in: int, d_sae: int) -> Mapping[str, Tensor]:
        """No parameters beside the autoencoder's four."""
        return {}

    def rows(self, sae: SparseAutoencoder) -> Float[Tensor, "d_sae d_in"]:
        """The encoder with a row for each latent."""
        return sae.W_dec if self.tied else sae.W_enc.T

    def bias(self, sae: SparseAutoencoder) -> Float[Tensor, " d_sae"]:
        """What is added to ``x W_enc``."""
        return sae.b_enc - self.rows(sae) @ sae.b_dec if self.centred else sae.b_enc

    def pre(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """The pre-activations."""
        return F.linear(x, self.rows(sae), self.bias(sae))

    def some(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], columns: Tensor) -> Float[Tensor, "rows n"]:
        """The pre-activations of some latents alone."""
        return F.linear(x - sae.b_dec if self.centred else x, self.rows(sae)[columns], sae.b_enc[columns])

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Candidates:
        pre = self.pre(sae, x)
        if self.rule == "relu":
            values = pre.relu()
            return Candidates(pre, values, values.detach())
        return Candidates(pre, pre, pre.detach() if self.rule == "signed" else pre.detach().abs())


@dataclass(frozen=True)
class Gated:
    """One set of directions says which latents are on, and a rescaled copy of it how strongly. Rajamanoharan (2024).

    ``pre = (x - b_dec) W_enc + b_gate`` chooses, ``relu((x - b_dec) W_enc * exp(r_mag) + b_mag)`` is kept. ``b_enc``
    of the autoencoder is ``b_gate``.
    """

    rule: Literal["relu"] = "relu"
    centred: Literal[True] = True
    tied: Literal[False] = False

    def extra(self, d_in: int, d_sae: int) -> Mapping[str, Tensor]:
        """The rescaling and the bias of the magnitudes."""
        return {"r_mag": torch.zeros(d_sae), "b_mag": torch.zeros(d_sae)}

    def pre(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """The gate's pre-activations."""
        return (x - sae.b_dec) @ sae.W_enc + sae.b_enc

    def some(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], columns: Tensor) -> Float[Tensor, "rows n"]:
        """The gate's pre-activations of some latents alone."""
        return (x - sae.b_dec) @ sae.W_enc[:, columns] + sae.b_enc[columns]

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Candidates:
        product = (x - sae.b_dec) @ sae.W_enc
        pre = product + sae.b_enc
        return Candidates(pre, (product * sae.r_mag.exp() + sae.b_mag).relu(), pre.detach())

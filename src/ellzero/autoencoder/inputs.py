"""Normalisation of what an autoencoder reads: done before the encoder, undone after the decoder.

Lives here: ``ExpectedNorm``, ``RowNorm``, ``LayerNorm`` and ``Whitening``, frozen values; ``decoded`` and
``directions``, for what reads any autoencoder. Does not live here: the trainer's own scale, which is gone from the
weights when training ends. The loss is of normalised rows, which is what the encoder sees; what ``sae(x)`` gives and
every metric are in the units of ``x``. Where a value is found from data (``shapes`` names it), it is a buffer of the
autoencoder, set by ``fit_inputs`` or by training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.errors import InputError, check, check_choice

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["ExpectedNorm", "LayerNorm", "RowNorm", "Whitening", "check_inputs", "decoded", "directions"]

Rows = Float[Tensor, "rows d_in"]
# Rows whose outer products are summed at a time.
_BLOCK = 8192


def decoded(sae: Any, z: Any, x: Rows) -> Tensor:
    """``sae.decode(z)``, told which rows the codes are of where their scale is undone row by row."""
    inputs = getattr(sae, "inputs", None)
    return sae.decode(z) if inputs is None or not inputs.by_row else sae.decode(z, x)


def check_inputs(inputs: Any) -> Any:
    """The value, if it is a normalisation or None."""
    if inputs is not None and (isinstance(inputs, type) or not hasattr(inputs, "by_row")):
        raise InputError(
            f"inputs: got {inputs!r}, want None or one of ExpectedNorm(), RowNorm(), LayerNorm(), Whitening()"
        )
    return inputs


def directions(sae: Any) -> Tensor:
    """What one unit of each latent adds to the reconstruction, ``[d_sae, d_in]``, in the input's units.

    Where rows are normalised one by one, each row's own scale comes on top, and these are the rows of ``W_dec``.
    """
    inputs = getattr(sae, "inputs", None)
    return sae.W_dec if inputs is None or inputs.by_row else inputs.turn(sae, sae.W_dec)


class _Fitted:
    """One map for all rows, found from a sample."""

    by_row = False

    def fitted(self, sae: SparseAutoencoder) -> bool:
        """Whether its buffers are there."""
        return all(getattr(sae, name, None) is not None for name in self.shapes(sae.d_in))

    def _check(self, sae: SparseAutoencoder) -> None:
        if not self.fitted(sae):
            raise InputError(
                f"inputs: {type(self).__name__} is not fitted yet; train the autoencoder, or call fit_inputs(x)"
            )


class _ByRow:
    """Each row by itself: nothing to find, and the rows are needed to undo it."""

    by_row = True

    def shapes(self, d_in: int) -> Mapping[str, tuple[int, ...]]:
        """No buffers."""
        return {}

    def fit(self, x: Rows) -> Mapping[str, Tensor]:
        """Nothing to find."""
        return {}

    def fitted(self, sae: SparseAutoencoder) -> bool:
        """Always."""
        return True

    def _rows(self, x: Rows | None) -> Rows:
        if x is None:
            raise InputError(f"x: {type(self).__name__} is undone row by row, want decode(z, x) with the rows encoded")
        return x


@dataclass(frozen=True)
class ExpectedNorm(_Fitted):
    """One factor, ``input_scale``, so that the mean norm of a row is the square root of its length."""

    def shapes(self, d_in: int) -> Mapping[str, tuple[int, ...]]:
        """The factor."""
        return {"input_scale": ()}

    def fit(self, x: Rows) -> Mapping[str, Tensor]:
        """``sqrt(d_in) / mean ||x||``."""
        size = x.double().norm(dim=1).mean()
        if not size > 0:
            raise InputError("x: all rows are zero, want rows with a norm to scale by")
        return {"input_scale": (math.sqrt(x.shape[1]) / size).to(x)}

    def apply(self, sae: SparseAutoencoder, x: Rows) -> Rows:
        """What the encoder sees."""
        self._check(sae)
        return x * sae.input_scale

    def turn(self, sae: SparseAutoencoder, rows: Rows) -> Rows:
        """Directions in the units of ``x``."""
        self._check(sae)
        return rows / sae.input_scale

    def undo(self, sae: SparseAutoencoder, x_hat: Rows, x: Rows | None) -> Rows:
        """In the units of ``x`` again."""
        return self.turn(sae, x_hat)


@dataclass(frozen=True)
class Whitening(_Fitted):
    """``(x - input_mean) input_matrix``: no mean, and a covariance that is the identity.

    The matrix is the symmetric root of the inverse covariance, which moves rows as little as a whitening can.

    Parameters
    ----------
    ridge : added to each eigenvalue of the covariance, as a part of their mean; directions that hardly vary are not
        blown up.
    """

    ridge: float = 1e-3

    def __post_init__(self):
        check("ridge", self.ridge, at_least=0)

    def shapes(self, d_in: int) -> Mapping[str, tuple[int, ...]]:
        """Mean, matrix, and the matrix's inverse."""
        return {"input_mean": (d_in,), "input_matrix": (d_in, d_in), "input_inverse": (d_in, d_in)}

    def fit(self, x: Rows) -> Mapping[str, Tensor]:
        """From the covariance, in float64."""
        mean = x.double().mean(0)
        outer = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
        for block in x.split(_BLOCK):
            centred = block.double() - mean
            outer += centred.T @ centred
        values, vectors = torch.linalg.eigh(outer / len(x))
        values = values.clamp_min(0)
        values = values + self.ridge * values.mean()
        if not values.min() > 1e-12 * values.max():
            raise InputError(f"x: its covariance has no inverse with a ridge of {self.ridge}, want a larger one")
        found = {
            "input_mean": mean,
            "input_matrix": (vectors * values.rsqrt()) @ vectors.T,
            "input_inverse": (vectors * values.sqrt()) @ vectors.T,
        }
        return {name: tensor.to(x) for name, tensor in found.items()}

    def apply(self, sae: SparseAutoencoder, x: Rows) -> Rows:
        """What the encoder sees."""
        self._check(sae)
        return (x - sae.input_mean) @ sae.input_matrix

    def turn(self, sae: SparseAutoencoder, rows: Rows) -> Rows:
        """Directions in the units of ``x``."""
        self._check(sae)
        return rows @ sae.input_inverse

    def undo(self, sae: SparseAutoencoder, x_hat: Rows, x: Rows | None) -> Rows:
        """In the units of ``x`` again."""
        return self.turn(sae, x_hat) + sae.input_mean


@dataclass(frozen=True)
class RowNorm(_ByRow):
    """Every row has the same norm: 1, or the square root of its length with ``length="root"``. A zero row stays."""

    length: Literal["one", "root"] = "one"

    def __post_init__(self):
        check_choice("length", self.length, ("one", "root"))

    def _scale(self, x: Rows) -> Float[Tensor, "rows 1"]:
        size = x.norm(dim=1, keepdim=True)
        return size / math.sqrt(x.shape[1]) if self.length == "root" else size

    def apply(self, sae: SparseAutoencoder, x: Rows) -> Rows:
        """What the encoder sees."""
        return x / self._scale(x).clamp_min(torch.finfo(x.dtype).tiny)

    def undo(self, sae: SparseAutoencoder, x_hat: Rows, x: Rows | None) -> Rows:
        """In the units of ``x`` again."""
        return x_hat * self._scale(self._rows(x))


@dataclass(frozen=True)
class LayerNorm(_ByRow):
    """Each row minus its mean, over its deviation (with one degree of freedom less) plus ``eps``. Gao et al. (2024).

    As in the authors' code, and in SAELens, ``eps`` is not undone.
    """

    eps: float = 1e-5

    def __post_init__(self):
        check("eps", self.eps, at_least=0)

    def _told(self, x: Rows) -> tuple[Tensor, Tensor]:
        if x.shape[1] < 2:
            raise InputError("x: got rows of one number, which have no deviation; want at least 2")
        mean = x.mean(1, keepdim=True)
        return mean, (x - mean).std(1, keepdim=True)

    def apply(self, sae: SparseAutoencoder, x: Rows) -> Rows:
        """What the encoder sees."""
        mean, deviation = self._told(x)
        return (x - mean) / (deviation + self.eps).clamp_min(torch.finfo(x.dtype).tiny)

    def undo(self, sae: SparseAutoencoder, x_hat: Rows, x: Rows | None) -> Rows:
        """In the units of ``x`` again."""
        mean, deviation = self._told(self._rows(x))
        return x_hat * deviation + mean

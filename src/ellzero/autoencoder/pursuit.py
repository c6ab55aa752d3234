"""Matching pursuit as an encoder: latents are chosen one after another, each for what the others left.

Lives here: ``MatchingPursuit`` and the op behind it, ``matching_pursuit``, with its derivative. Does not live here:
pursuits with a least-squares fit (``ellzero.solvers``), encoders that choose in one go (``encoders``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ellzero.autoencoder.encoders import Candidates
from ellzero.errors import InputError, check, check_integer

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["MatchingPursuit", "Pursuit", "matching_pursuit"]

# Correlations held at a time, and entries of a Gram matrix at most: 128 and 256 MB of float32.
_HELD, _GRAM = 2**25, 2**26
# What one update of a correlation by a row of the Gram matrix costs, in multiply-adds of a matrix product.
_UPDATE = 48


class Pursuit(NamedTuple):
    """Per row the latents in the order chosen (one may come again), how much each took, and what was left."""

    values: Float[Tensor, "rows steps"]
    indices: Int64[Tensor, "rows steps"]
    rest: Float[Tensor, "rows d_in"]


def matching_pursuit(
    x: Float[Tensor, "rows d_in"], atoms: Float[Tensor, "d_sae d_in"], steps: int, *, tolerance: float = 0.0,
    absolute: bool = False,
) -> Pursuit:  # fmt: skip
    """``a_t = max_j <w_j, r_{t-1}>``, ``r_t = r_{t-1} - a_t w_j``, from ``r_0 = x``. Mallat and Zhang (1993).

    With unit atoms ``||r_{t-1}||^2 = ||r_t||^2 + a_t^2``, so what is left never grows. A row stops once nothing
    correlates positively (by more than rounding; values are 0 from there), or once ``||r|| <= tolerance ||x||``. Ties
    keep the lowest index.

    The derivative is that of the values for fixed choices, and exact. Its backward pass runs the pursuit in reverse
    from what was left, so it keeps ``rows x (steps + d_in)`` numbers, and never ``rows x d_sae`` or ``rows x d_in`` of
    them per step.

    Parameters
    ----------
    atoms : unit rows.
    steps : latents chosen at most.
    tolerance : relative to each row's norm.
    absolute : choose by magnitude; values are signed then.
    """
    check_integer("steps", steps, at_least=1)
    check("tolerance", tolerance, at_least=0, below=1)
    return Pursuit(*_pursuit(x, atoms, steps, float(tolerance), bool(absolute)))


@torch.library.custom_op("ellzero::matching_pursuit", mutates_args=())
def _pursuit(
    x: Tensor, atoms: Tensor, steps: int, tolerance: float, absolute: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    values = x.new_zeros(len(x), steps)
    indices = torch.zeros(len(x), steps, dtype=torch.int64, device=x.device)
    rest = x.clone()
    gram = atoms @ atoms.T if _gram_pays(len(x), *atoms.shape, steps) else None
    size = max(_HELD // max(len(atoms), 1), 1)
    for low in range(0, len(x), size):
        rows = slice(low, low + size)
        _rows(rest[rows], atoms, gram, values[rows], indices[rows], tolerance, absolute)
    return values, indices, rest


def _gram_pays(rows: int, d_sae: int, d_in: int, steps: int) -> bool:
    """Whether updating correlations by rows of the Gram matrix beats a product with the residual at each step."""
    direct = (steps - 1) * rows * d_sae * d_in
    return d_sae**2 <= _GRAM and d_sae**2 * d_in + (steps - 1) * rows * d_sae * _UPDATE < direct


def _rows(rest, atoms, gram, values, indices, tolerance, absolute) -> None:
    """The pursuit of some rows; fills ``values`` and ``indices``, and leaves in ``rest`` what is left."""
    size = rest.norm(dim=1)
    enough, rounding = tolerance * size, 16 * torch.finfo(rest.dtype).eps * size
    going = torch.ones_like(enough, dtype=torch.bool)
    correlations = rest @ atoms.T
    for step in range(values.shape[1]):
        chosen = (correlations.abs() if absolute else correlations).argmax(1)
        row = atoms[chosen]
        # the value is that of the residual itself: updates of the correlations only choose, so no error adds up in it
        value = (rest * row).sum(1)
        going &= (value.abs() if absolute else value) > rounding  # no latent is on for what rounding left
        if not bool(going.any()):
            return
        value = value.where(going, torch.zeros_like(value))
        values[:, step], indices[:, step] = value, chosen.where(going, torch.zeros_like(chosen))
        rest.addcmul_(row, value[:, None], value=-1)
        if gram is None:
            torch.mm(rest, atoms.T, out=correlations)
        else:
            correlations.addcmul_(gram[chosen], value[:, None], value=-1)
        going &= rest.norm(dim=1) > enough


@_pursuit.register_fake
def _(x: Tensor, atoms: Tensor, steps: int, tolerance: float, absolute: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(len(x), steps), x.new_empty((len(x), steps), dtype=torch.int64), torch.empty_like(x)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1], *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, of_values: Tensor, _, of_rest: Tensor) -> tuple[Tensor | None, ...]:
    atoms, values, indices, rest = ctx.saved_tensors
    of_atoms = torch.zeros_like(atoms)
    for step in reversed(range(values.shape[1])):
        chosen, value = indices[:, step], values[:, step, None]
        row = atoms[chosen]
        rest = rest + value * row  # as it was before this step
        of_value = (of_values[:, step, None] - (of_rest * row).sum(1, keepdim=True)) * (value != 0)
        of_atoms.index_add_(0, chosen, of_value * rest - value * of_rest)
        of_rest = of_rest + of_value * row
    return of_rest, of_atoms, None, None, None


_pursuit.register_autograd(_backward, setup_context=_setup)


@dataclass(frozen=True)
class MatchingPursuit:
    """Matching pursuit unrolled: the latent that fits what is left best is taken, ``k`` times. MP-SAE (2025).

    There are no encoder weights. The steps are the ``k`` of the autoencoder's selection, so ``sae.at(k)`` sets another
    number, and what is left never grows with it. A latent that is chosen twice has the sum of both values.

    Parameters
    ----------
    tolerance : a row stops once what is left is that small, relative to ``||x - b_dec||``.
    absolute : choose by magnitude, with signed codes; else codes are positive.
    """

    tolerance: float = 0.0
    absolute: bool = False

    centred: ClassVar[bool] = True
    tied: ClassVar[bool] = True

    def __post_init__(self):
        check("tolerance", self.tolerance, at_least=0, below=1)

    @property
    def rule(self) -> str:
        """As of a linear encoder: what the correlations with the whole input mean."""
        return "absolute" if self.absolute else "relu"

    def extra(self, d_in: int, d_sae: int) -> Mapping[str, Tensor]:
        """No parameters beside the decoder's."""
        return {}

    def pre(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Correlations with the whole input, before anything is taken."""
        return F.linear(x - sae.b_dec, sae.W_dec)

    def some(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], columns: Tensor) -> Float[Tensor, "rows n"]:
        """Those of some latents alone."""
        return F.linear(x - sae.b_dec, sae.W_dec[columns])

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Candidates:
        pre = self.pre(sae, x)
        if self.absolute:
            return Candidates(pre, pre, pre.detach().abs())
        values = pre.relu()
        return Candidates(pre, values, values.detach())

    def pursue(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """The codes.

        Raises
        ------
        InputError : a selection without ``k``, or a decoder that is not held to unit rows.
        """
        if sae.decoder is None:
            raise InputError("decoder: got None, want UnitNorm: matching pursuit needs atoms of norm 1")
        steps = getattr(sae.selection(x), "k", None)
        if not isinstance(steps, int):
            raise InputError(f"select: got {type(sae.select).__name__}, want TopK, whose k is the number of steps")
        found = matching_pursuit(
            x - sae.b_dec, sae.W_dec, steps, tolerance=self.tolerance, absolute=self.absolute
        )  # fmt: skip
        return x.new_zeros(len(x), sae.d_sae).scatter_add(1, found.indices, found.values)

"""How well few latents do: the share of variance explained, how many were active, and how sizes compare.

Lives here: ``evaluate``, ``explained_variance``, ``firing_shares``, ``density_histogram`` and ``coherence_bound``, for
anything with ``encode`` and ``decode``. Does not live here: losses (``objective``), scores against known features
(``recovery``) or of a model that reads the reconstruction (``splice``). Sums run over all rows, in float64, before
anything is divided; a code is active where it is not zero, whatever its sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.autoencoder.inputs import decoded
from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.registry import register

__all__ = ["coherence_bound", "density_histogram", "evaluate", "explained_variance", "firing_shares"]

_ROWS = 2048
# Entries of the codes of one block of rows: 256 MB of float32.
_BLOCK = 2**26


@register(kind="metric", wing="autoencoder", source="arXiv:2406.04093", extra="torch")
@torch.no_grad()
def evaluate(sae: Any, x: Any, *, dense_above: float = 0.1) -> dict[str, float]:
    """Fidelity and sparsity over all rows of ``x``, in the mode the autoencoder is in.

    Parameters
    ----------
    x : ``[rows, d_in]`` as an array, a memory map or a tensor, or an iterable of such batches (an
        ``ActivationStream``), which is gone through once.
    dense_above : a latent is dense when it is active on more than this share of rows.

    Returns
    -------
    dict : ``fvu`` (``sum ||x - x_hat||^2 / sum ||x - mean(x)||^2``, the mean being per feature over all rows),
        ``explained_variance`` (1 - fvu), ``l0`` (mean number of active latents), ``dead`` (share of latents that are
        active on no row), ``dense`` (share of latents that are dense), ``cosine`` (mean of the cosine between x and
        x_hat), ``shrinkage`` (mean of ``||x_hat|| / ||x||``; both over rows that are not zero), and ``norm_match``
        (slope through the origin of ``||z||`` over ``||x - b_dec||``, codes counted in units of their atoms: 1 where
        atoms are orthogonal and x is reconstructed. arXiv:2503.24277, section 3; of normalised
        rows where ``sae.inputs`` normalises). All else is in the units of ``x``.

    Raises
    ------
    InputError : no rows, or rows that are not ``d_in`` finite floating-point numbers.
    """
    check("dense_above", dense_above, at_least=0, at_most=1)
    sums = _Sums(sae)
    for rows in batches(sae, x):
        sums.add(rows)
    return sums.result(dense_above)


def explained_variance(sae: Any, x: Any) -> float:
    """``1 - FVU`` over all rows of ``x``."""
    return evaluate(sae, x)["explained_variance"]


@register(kind="metric", wing="autoencoder", source="arXiv:2406.04093", extra="torch")
@torch.no_grad()
def firing_shares(sae: Any, x: Any) -> np.ndarray:
    """On which share of the rows each latent is active, ``[d_sae]`` float64; ``x`` as for ``evaluate``."""
    counts, rows = None, 0
    for batch in batches(sae, x):
        on = (sae.encode(batch) != 0).sum(0).cpu().numpy()
        counts, rows = on if counts is None else counts + on, rows + len(batch)
    return counts / rows


@register(kind="metric", wing="autoencoder", source="arXiv:2406.04093", extra="torch")
def density_histogram(shares: Any, bins: int = 40, lowest: float = 1e-6) -> dict[str, np.ndarray | int]:
    """How many latents are active how often, on a logarithmic scale.

    Parameters
    ----------
    shares : ``[d_sae]`` between 0 and 1, as from ``firing_shares``.
    bins, lowest : so many bins of equal ratio from ``lowest`` to 1; rarer latents count in the first bin.

    Returns
    -------
    dict : ``edges [bins + 1]``, ``counts [bins]`` and ``dead``, the number of latents that are never active.
    """
    shares = check_array("shares", np.asarray(shares, dtype=np.float64), ndim=1)
    check_integer("bins", bins, at_least=1)
    check("lowest", lowest, above=0, below=1)
    if shares.min() < 0 or shares.max() > 1:
        raise InputError(f"shares: got {shares.min():.4g} to {shares.max():.4g}, want shares from 0 to 1")
    edges = np.geomspace(lowest, 1.0, bins + 1)
    edges[-1] = 1.0
    alive = shares[shares > 0]
    counts, _ = np.histogram(np.maximum(alive, lowest), edges)
    return {"edges": edges, "counts": counts, "dead": int(len(shares) - len(alive))}


@register(kind="metric", wing="autoencoder", source="arXiv:2503.24277", id="S107", extra="torch")
@torch.no_grad()
def coherence_bound(z: Float[Tensor, "rows d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> float:
    """What the codes alone say about how far from orthogonal the atoms are: a lower bound on their coherence.

    With unit atoms ``|  ||z W||^2 - ||z||^2  | <= eps (||z||_1^2 - ||z||^2)``, eps being the largest absolute cosine
    between two atoms; the largest ratio over the rows is returned, 0 where no row has two active latents. Codes are
    counted in units of their atoms.
    """
    check_array("z", z, ndim=2, shape=(None, len(W_dec)), dtypes="f")
    size = W_dec.double().norm(dim=1)
    z = z.double() * size
    sum_whole = (z @ torch.nn.functional.normalize(W_dec.double(), dim=1)).square().sum(1)
    squares = z.square().sum(1)
    cross = z.abs().sum(1).square() - squares
    some = cross > 1e-9 * squares
    return float(((sum_whole - squares).abs()[some] / cross[some]).max()) if bool(some.any()) else 0.0


class _Sums:
    """What ``evaluate`` adds up; rows are counted from the first batch's mean, so that a large mean costs no digits."""

    def __init__(self, sae: Any):
        self.sae, self.rows, self.active = sae, 0, 0
        self.error = self.square = self.cosine = self.ratio = self.cross = self.centred = 0.0
        self.told = 0
        self.centre = self.total = self.fired = self.origin = self.sizes = None

    def _begin(self, rows: Tensor, z: Tensor) -> None:
        self.centre = rows.double().mean(0)
        self.total = torch.zeros_like(self.centre)
        self.fired = torch.zeros(z.shape[1], dtype=torch.int64, device=z.device)
        tell = getattr(self.sae, "reconstruct", self.sae.decode)  # b_dec, of rows as they are normalised
        self.origin = tell(torch.zeros_like(z[:1])).double()
        atoms = getattr(self.sae, "W_dec", None)
        squares = atoms.square().sum(1) if atoms is not None else torch.ones_like(z[0])
        self.sizes = squares.to(z.dtype)

    def add(self, rows: Tensor) -> None:
        """One batch of rows."""
        z = self.sae.encode(rows)
        if self.centre is None:
            self._begin(rows, z)
        x, x_hat = rows.double(), decoded(self.sae, z, rows).double()
        on = z != 0
        self.rows += len(rows)
        self.active += int(on.sum())
        self.fired += on.sum(0)
        self.error += float((x - x_hat).square().sum())
        shifted = x - self.centre
        self.total += shifted.sum(0)
        self.square += float(shifted.square().sum())
        size, size_hat = x.norm(dim=1), x_hat.norm(dim=1)
        some = size > 0
        self.told += int(some.sum())
        self.ratio += float((size_hat[some] / size[some]).sum())
        self.cosine += float(((x * x_hat).sum(1)[some] / (size * size_hat.clamp_min(1e-300))[some]).sum())
        seen = self.sae.normalized(rows).double() if hasattr(self.sae, "normalized") else x
        away = (seen - self.origin).norm(dim=1)
        self.cross += float((away * (z.square() @ self.sizes).double().sqrt()).sum())
        self.centred += float(away.square().sum())

    def result(self, dense_above: float) -> dict[str, float]:
        """The figures over everything that was added."""
        spread = max(self.square - float(self.total.square().sum()) / self.rows, 0.0)
        fvu = self.error / spread if spread > 0 else float("inf") if self.error > 0 else 0.0
        shares = self.fired.double() / self.rows
        return {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "l0": self.active / self.rows,
            "dead": float((self.fired == 0).double().mean()),
            "dense": float((shares > dense_above).double().mean()),
            "cosine": self.cosine / self.told if self.told else 0.0,
            "shrinkage": self.ratio / self.told if self.told else 0.0,
            "norm_match": self.cross / self.centred if self.centred > 0 else 0.0,
        }


def batches(sae: Any, x: Any) -> Iterator[Tensor]:
    """Rows in blocks whose codes fit into memory, where the weights are."""
    width, latents = getattr(sae, "d_in", None), getattr(sae, "d_sae", None)
    device = getattr(getattr(sae, "W_dec", None), "device", None)
    size = _ROWS if latents is None else min(_ROWS, max(_BLOCK // latents, 1))
    some = False
    for part in _parts(x):
        check_array("x", part, ndim=2, shape=(None, width), dtypes="f", allow_empty=part is not x)
        for low in range(0, len(part), size):
            rows = part[low : low + size]
            rows = rows if isinstance(rows, Tensor) else torch.as_tensor(np.array(rows, dtype=np.float32))
            some = True
            yield rows.to(device) if device is not None else rows
    if not some:
        raise InputError("x: got no rows, want some activations")


def _parts(x: Any) -> Iterable[Any]:
    if hasattr(x, "shape") or isinstance(x, list | str) or not isinstance(x, Iterable):
        check_array("x", x, ndim=2, dtypes="f")
        return [x]
    return x

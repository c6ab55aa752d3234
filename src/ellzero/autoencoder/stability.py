"""How far autoencoders of the same data agree: matched pairs of latents.

Lives here: ``shared_features`` and ``matched``. Does not live here: matching with known features (``recovery``), the
training that makes them agree (``mutual``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ellzero.errors import InputError, check
from ellzero.registry import register

__all__ = ["SharedFeatures", "cosines", "matched", "shared_features"]


@dataclass(frozen=True, eq=False)
class SharedFeatures:
    """What ``shared_features`` found, means over pairs of autoencoders."""

    share: float
    """Latents shared: the same partner in both pairings, at cosines of at least the threshold in both."""
    decoder: float
    """Mean cosine of the one-to-one pairing by decoder directions."""
    encoder: float
    """The same by encoder directions."""
    by_pair: dict[tuple[int, int], float]
    """The share for each pair, by their places."""


def cosines(one: Any, other: Any) -> np.ndarray:
    """Cosines between rows, ``[n, m]`` in float64; a row of zeros has the cosine 0 with everything."""
    sides = []
    for rows in (one, other):
        rows = rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
        rows = rows.astype(np.float64)
        size = np.linalg.norm(rows, axis=1, keepdims=True)
        sides.append(rows / np.where(size > 0, size, 1))
    if sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(f"saes: have {sides[0].shape[1]} and {sides[1].shape[1]} features, want equal")
    return sides[0] @ sides[1].T


def matched(cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one pairing with the largest sum: rows and columns. Kuhn (1955)."""
    return linear_sum_assignment(cosine, maximize=True)


@register(
    kind="metric", wing="autoencoder", source="arXiv:2501.16615", id="S102", extra="torch",
    claim="autoencoders of the same data share few latents",
)  # fmt: skip
def shared_features(saes: Sequence[Any], *, threshold: float = 0.7) -> SharedFeatures:
    """The share of latents that autoencoders, of several seeds say, have in common.

    Latents of a pair are matched one to one, once by decoder and once by encoder directions; a latent is shared if both
    matchings give it the same partner, with a cosine of at least ``threshold`` in each. Paulo and Belrose (2025).

    Parameters
    ----------
    saes : two or more, with ``W_dec`` and an encoder that has rows; of one width in features.

    Raises
    ------
    InputError : fewer than two, or of different widths.
    """
    check("threshold", threshold, at_least=-1, at_most=1)
    if len(saes) < 2:
        raise InputError(f"saes: got {len(saes)}, want two or more to compare")
    share, decoder, encoder = {}, [], []
    for i, j in itertools.combinations(range(len(saes)), 2):
        one, other = saes[i], saes[j]
        by_dec = cosines(one.W_dec, other.W_dec)
        by_enc = cosines(one.encoder.rows(one), other.encoder.rows(other))
        rows, columns = matched(by_dec)
        again, partners = matched(by_enc)
        partner = np.full(len(by_enc), -1)
        partner[again] = partners
        agree = partner[rows] == columns
        strong = (by_dec[rows, columns] >= threshold) & (by_enc[rows, columns] >= threshold)
        share[i, j] = float((agree & strong).sum() / max(by_dec.shape))
        decoder.append(by_dec[rows, columns].mean())
        encoder.append(by_enc[again, partners].mean())
    mean = float(np.mean(list(share.values())))
    return SharedFeatures(mean, float(np.mean(decoder)), float(np.mean(encoder)), share)

"""Against known features: which latent stands for which, how many were found, and whether they fire when they should.

Lives here: ``match``, ``mean_correlation``, ``recovered``, ``uniqueness``, ``firing`` and ``recovery``, all of them
together. Does not live here: worlds with known features (``ellzero.data``), scores without them (``metrics``).
Directions are compared by the absolute cosine, so a latent of the opposite sign stands for a feature as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ellzero.autoencoder.inputs import directions
from ellzero.autoencoder.metrics import batches
from ellzero.errors import InputError, check, check_array
from ellzero.registry import register

__all__ = [
    "Firing",
    "Match",
    "absolute_cosines",
    "firing",
    "match",
    "mean_correlation",
    "recovered",
    "recovery",
    "uniqueness",
]


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs of one latent and one feature each, and the absolute cosine of each pair, in the order of features."""

    latents: np.ndarray
    features: np.ndarray
    cosines: np.ndarray


@register(kind="metric", wing="autoencoder", source="Kuhn (1955)", extra="torch", name="feature_match")
def match(W_dec: Any, atoms: Any) -> Match:
    """The one-to-one pairing of latents and features with the largest sum of absolute cosines.

    Parameters
    ----------
    W_dec, atoms : rows of any length in ``d`` dimensions: ``[d_sae, d]`` and ``[features, d]``.

    The smaller side is matched in full.
    """
    cosines = absolute_cosines(W_dec, atoms)
    latents, features = linear_sum_assignment(cosines, maximize=True)
    order = np.argsort(features)
    return Match(latents[order], features[order], cosines[latents, features][order])


@register(kind="metric", wing="autoencoder", source="Hyvärinen and Morioka (2016)", extra="torch")
def mean_correlation(W_dec: Any, atoms: Any) -> float:
    """MCC: the mean absolute cosine over the pairs of ``match``."""
    return float(match(W_dec, atoms).cosines.mean())


@register(kind="metric", wing="autoencoder", source="arXiv:2309.08600", extra="torch")
def recovered(W_dec: Any, atoms: Any, above: float = 0.9) -> float:
    """The share of all features whose latent in ``match`` has an absolute cosine of more than ``above``."""
    check("above", above, at_least=0, below=1)
    return float((match(W_dec, atoms).cosines > above).sum() / len(atoms))


@register(kind="metric", wing="autoencoder", source="arXiv:2506.17673", extra="torch")
def uniqueness(W_dec: Any, atoms: Any) -> float:
    """The number of different features that latents are nearest to, over the number of latents.

    Below 1 where several latents crowd around one feature. Not a count over a one-to-one pairing, which would be 1.
    """
    nearest = absolute_cosines(W_dec, atoms).argmax(1)
    return len(np.unique(nearest)) / len(nearest)


@dataclass(frozen=True, eq=False)
class Firing:
    """Of each feature ``[features]``: ``precision``, ``recall`` and ``f1`` of its latent as a detector.

    A feature without a latent, or whose latent never fires, scores 0; one that never fires itself is NaN.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


@register(kind="metric", wing="autoencoder", source="arXiv:2409.14507", extra="torch")
def firing(z: Any, f: Any, latents: Any) -> Firing:
    """Does the latent fire when its feature does?

    Parameters
    ----------
    z, f : codes ``[rows, d_sae]`` and true features ``[rows, features]`` of the same rows; active where not zero.
    latents : ``[features]``, the latent of each feature, or -1 for none: a one-to-one pairing, or the best of each
        (``absolute_cosines(W_dec, atoms).argmax(0)``).
    """
    z, f = _numpy("z", z), _numpy("f", f)
    if len(z) != len(f):
        raise InputError(f"f: has {len(f)} rows and z has {len(z)}, want equal")
    return _Counts(_paired(latents, z.shape[1], f.shape[1])).add(z, f).firing()


@register(kind="metric", wing="autoencoder", source="arXiv:2309.08600", extra="torch", name="feature_recovery")
@torch.no_grad()
def recovery(sae: Any, atoms: Any, x: Any, f: Any, *, above: float = 0.9) -> dict[str, float]:
    """All scores against known features: of the decoder's directions, and of when latents fire.

    Parameters
    ----------
    sae : anything with ``encode`` and ``W_dec``.
    atoms, x, f : true directions ``[features, d]``, rows ``[rows, d]`` and features ``[rows, features]``, as a
        ``FeatureModel`` gives them.
    above : absolute cosine from which a feature counts as recovered.

    Returns
    -------
    dict : ``mcc``, ``recovered``, ``uniqueness``, and the means over the features that fire of ``precision``,
        ``recall`` and ``f1``, each feature by its latent in the one-to-one pairing.
    """
    check("above", above, at_least=0, below=1)
    f = _numpy("f", f)
    cosines = absolute_cosines(directions(sae), atoms)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    latents = np.full(len(atoms), -1)
    latents[columns] = rows
    counts, seen = _Counts(_paired(latents, len(cosines), f.shape[1])), 0
    for batch in batches(sae, x):
        z = sae.encode(batch).cpu().numpy()
        if seen + len(z) > len(f):
            break
        counts.add(z, f[seen : seen + len(z)])
        seen += len(z)
    if seen != len(f) or seen != len(x):
        raise InputError(f"f: has {len(f)} rows and x has {len(x)}, want equal")
    found, fires = counts.firing(), counts.true > 0
    return {
        "mcc": float(cosines[rows, columns].mean()),
        "recovered": float((cosines[rows, columns] > above).sum() / len(atoms)),
        "uniqueness": len(np.unique(cosines.argmax(1))) / len(cosines),
        **{name: float(getattr(found, name)[fires].mean()) for name in ("precision", "recall", "f1")},
    }


def absolute_cosines(W_dec: Any, atoms: Any) -> np.ndarray:
    """``[d_sae, features]`` in float64; a row of zeros has the cosine 0 with everything."""
    sides = []
    for name, rows in (("W_dec", W_dec), ("atoms", atoms)):
        rows = _numpy(name, rows).astype(np.float64)
        size = np.linalg.norm(rows, axis=1, keepdims=True)
        sides.append(rows / np.where(size > 0, size, 1))
    if sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(f"atoms: have {sides[1].shape[1]} dimensions and W_dec {sides[0].shape[1]}, want equal")
    return abs(sides[0] @ sides[1].T)


class _Counts:
    """Rows on which a feature fires, its latent fires, and both do."""

    def __init__(self, latents: np.ndarray):
        self.latents = latents
        self.true, self.told, self.both = (np.zeros(len(latents), dtype=np.int64) for _ in range(3))

    def add(self, z: np.ndarray, f: np.ndarray) -> _Counts:
        """Some rows of codes and features."""
        fires = f != 0
        tells = (z[:, self.latents] != 0) & (self.latents >= 0)
        self.true += fires.sum(0)
        self.told += tells.sum(0)
        self.both += (fires & tells).sum(0)
        return self

    def firing(self) -> Firing:
        """The scores of all rows so far."""
        silent = np.where(self.true > 0, 0.0, np.nan)
        precision = np.where((self.told > 0) & (self.true > 0), self.both / np.maximum(self.told, 1), silent)
        recall = np.where(self.true > 0, self.both / np.maximum(self.true, 1), np.nan)
        f1 = np.where(self.true > 0, 2 * self.both / np.maximum(self.told + self.true, 1), np.nan)
        return Firing(precision, recall, f1)


def _paired(latents: Any, d_sae: int, features: int) -> np.ndarray:
    latents = check_array("latents", np.asarray(latents), ndim=1, dtypes="iu")
    if len(latents) != features:
        raise InputError(f"latents: names {len(latents)} latents, want {features}, one for each feature")
    if latents.min() < -1 or latents.max() >= d_sae:
        raise InputError(f"latents: got {latents.min()} to {latents.max()}, want -1 to {d_sae - 1}")
    return latents


def _numpy(name: str, rows: Any) -> np.ndarray:
    rows = rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
    return check_array(name, rows, ndim=2, dtypes="f")

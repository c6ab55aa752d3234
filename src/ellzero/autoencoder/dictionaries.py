"""What becomes of latents in a larger autoencoder: kept, split into several, or new.

Lives here: ``match_dictionaries``. Does not live here: one-to-one pairings (``stability``, ``recovery``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.autoencoder.stability import cosines
from ellzero.errors import check
from ellzero.registry import register

__all__ = ["DictionaryMatch", "match_dictionaries"]


@dataclass(frozen=True, eq=False)
class DictionaryMatch:
    """Of each latent of the larger autoencoder the nearest of the smaller one.

    Attributes
    ----------
    nearest, cosine : ``[large]``. matches : ``{small: [large, ...]}`` of those with a cosine of at least the threshold.
    split : those of ``matches`` with two or more. novel : latents of the larger one that are near to none.
    lost : latents of the smaller one that no other comes from.
    """

    nearest: np.ndarray
    cosine: np.ndarray
    matches: dict[int, list[int]]
    split: dict[int, list[int]]
    novel: np.ndarray
    lost: np.ndarray


@register(
    kind="metric", wing="autoencoder", source="arXiv:2408.00657, section 4.2", extra="torch", name="match_dictionaries"
)
def match_dictionaries(small: Any, large: Any, *, threshold: float = 0.7) -> DictionaryMatch:
    """Which latents of a larger autoencoder stand for which of a smaller one, by cosines of decoder directions.

    Parameters
    ----------
    small, large : autoencoders (their ``W_dec``), or directions ``[latents, d]``.
    threshold : cosine from which a latent counts as a version of another.

    Raises
    ------
    InputError : directions of different widths, a threshold outside [-1, 1].
    """
    check("threshold", threshold, at_least=-1, at_most=1)
    table = cosines(getattr(small, "W_dec", small), getattr(large, "W_dec", large))
    nearest = table.argmax(0)
    cosine = table[nearest, np.arange(table.shape[1])]
    near = cosine >= threshold
    matches: dict[int, list[int]] = {}
    for latent in np.flatnonzero(near).tolist():
        matches.setdefault(int(nearest[latent]), []).append(latent)
    split = {one: found for one, found in matches.items() if len(found) > 1}
    lost = np.setdiff1d(np.arange(len(table)), list(matches))
    return DictionaryMatch(nearest, cosine, dict(sorted(matches.items())), dict(sorted(split.items())),
                           np.flatnonzero(~near), lost)  # fmt: skip

"""How well few latents do: the share of variance explained, and how many were active.

Lives here: ``evaluate`` and ``explained_variance``, for anything with ``encode`` and ``decode``. Does not live here:
losses (``objective``). Numerator and denominator are summed over all rows, in float64, before they are divided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import check_array
from ellzero.registry import register

__all__ = ["evaluate", "explained_variance"]

_ROWS = 2048


@register(kind="metric", wing="autoencoder", source="arXiv:2406.04093", extra="torch")
@torch.no_grad()
def evaluate(sae: Any, x: Any) -> dict[str, float]:
    """Fidelity and sparsity over all rows of ``x`` ``[rows, d_in]``, in the mode the autoencoder is in.

    Returns
    -------
    dict : ``fvu`` (``sum ||x - x_hat||^2 / sum ||x - mean(x)||^2``, the mean being per feature over all rows),
        ``explained_variance`` (1 - fvu), ``l0`` (mean number of active latents), ``dead`` (share of latents that are
        active on no row).
    """
    x = check_array("x", x, ndim=2, dtypes="f")
    x = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x, dtype=np.float32))
    mean = x.double().mean(0)
    error = spread = active = 0.0
    fired: Tensor | None = None
    for rows in x.split(_ROWS):
        z = sae.encode(rows)
        error += float((rows - sae.decode(z)).double().square().sum())
        spread += float((rows.double() - mean).square().sum())
        on = z != 0
        active += int(on.sum())
        fired = on.any(0) if fired is None else fired | on.any(0)
    fvu = error / spread if spread > 0 else float("inf") if error > 0 else 0.0
    dead = float((~fired).double().mean())
    return {"fvu": fvu, "explained_variance": 1 - fvu, "l0": active / len(x), "dead": dead}


def explained_variance(sae: Any, x: Any) -> float:
    """``1 - FVU`` over all rows of ``x``."""
    return evaluate(sae, x)["explained_variance"]

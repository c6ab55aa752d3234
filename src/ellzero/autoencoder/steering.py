"""Moving an input along chosen latents, with what the autoencoder does not explain left in place.

Lives here: ``steer``. Does not live here: search with what comes out, editing a running model (``splice``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.registry import register

__all__ = ["steer"]


@register(
    id="S095", kind="method", wing="autoencoder", source="arXiv:2408.00657, section 5", extra="torch", name="steer",
)  # fmt: skip
@torch.no_grad()
def steer(sae: Any, x: Any, latents: Mapping[int, float], *, how: str = "set") -> Float[Tensor, "rows d_in"]:
    """``decode(z') + (x - decode(z))``, scaled to the length of x, where ``z'`` is ``z`` with some latents changed.

    The residual ``x - decode(z)`` is added back, so that nothing changes but what was asked for. O'Neill et al. (2024).

    Measured on sentence embeddings of 2400 abstracts (768 latents, k 16, 40 queries): five times a latent's mean
    activation added, the share of the first 20 documents that have it went from 0.33 to 0.66, and from 0.15 to 0.41
    where fewer had it, at cosines of 0.87 and 0.86 with the query.

    Parameters
    ----------
    sae : with ``encode``, ``decode`` and ``d_sae``. x : rows ``[rows, d_in]``.
    latents : ``{latent: value}``; ``how="set"`` makes it the activation (0 turns it off), ``"add"`` adds it.

    Raises
    ------
    InputError : a latent that is not there, no latents, a value that is not finite.
    """
    check_choice("how", how, ("set", "add"))
    if not latents:
        raise InputError("latents: got none, want at least one latent and its value")
    for latent, value in latents.items():
        check_integer("latents", latent, at_least=0, at_most=sae.d_sae - 1)
        check(f"latents[{latent}]", value, above=-torch.inf, below=torch.inf)
    x = sae._checked(x)
    z = sae.encode(x)
    changed = z.clone()
    for latent, value in latents.items():
        changed[:, latent] = value if how == "set" else changed[:, latent] + value
    moved = sae.decode(changed, x) + (x - sae.decode(z, x))
    size = moved.norm(dim=1, keepdim=True)
    return moved * (x.norm(dim=1, keepdim=True) / torch.where(size > 0, size, torch.ones_like(size)))

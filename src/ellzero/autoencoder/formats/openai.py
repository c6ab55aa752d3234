"""Files of the autoencoders of Gao et al. (2024): one ``.pt`` of weights, with the name of the activation in it.

Lives here: ``load`` and ``save``. Does not live here: the tied ones, which their own library does not load either.
With the activation ``TopK`` each row is normalised by mean and deviation; with ``ReLU`` none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ellzero.autoencoder.formats.files import entry, read_torch, tensor, whole, write_torch
from ellzero.autoencoder.formats.plain import Plain, plain, refuse
from ellzero.autoencoder.inputs import LayerNorm
from ellzero.errors import InputError, check_choice

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["WEIGHTS", "load", "save"]

WEIGHTS = "autoencoder.pt"
_AFTER = {"ReLU": "topk", "Identity": "signed_topk"}
# kind: what normalises its rows there
_HOLDS = {"standard": None, "topk": LayerNorm(1e-5), "signed_topk": LayerNorm(1e-5)}


def save(sae: SparseAutoencoder, path: Path) -> None:
    """Write an autoencoder as its authors' library reads it; ``path`` is the ``.pt`` file, or a folder for it."""
    told = plain(sae, "openai").centring(True)
    wanted = ["standard without normalisation", "topk with LayerNorm(1e-5)"]
    if told.kind not in _HOLDS:
        raise refuse("openai", f"{told.name}, which is {told.kind}", wanted)
    if told.inputs != _HOLDS[told.kind]:
        raise refuse("openai", f"{told.name}, which is {told.kind}, with {told.inputs or 'rows as they are'}", wanted)
    d_sae = told.size[1]
    content = {
        "pre_bias": told.tensors["b_dec"], "latent_bias": told.tensors["b_enc"],
        "encoder.weight": told.tensors["W_enc"].T, "decoder.weight": told.tensors["W_dec"].T,
        "stats_last_nonzero": torch.zeros(d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.ones(d_sae), "latents_mean_square": torch.zeros(d_sae),
        "activation": "ReLU", "activation_state_dict": {},
    }  # fmt: skip
    if told.k is not None:
        after = next(name for name, kind in _AFTER.items() if kind == told.kind)
        content |= {"activation": "TopK", "activation_state_dict": {"k": told.k, "postact_fn": after}}
    file = path if path.suffix == ".pt" else path / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_torch(file, content)


def load(path: Path) -> SparseAutoencoder:
    """The autoencoder in a ``.pt`` file of that library, or in a folder with ``autoencoder.pt``."""
    file = path / WEIGHTS if path.is_dir() else path
    found = read_torch(file)
    weight = entry(file, found, "encoder.weight")
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"{file}: encoder.weight has shape {tuple(weight.shape)}, want [d_sae, d_in]")
    d_sae, d_in = map(int, weight.shape)
    told = {
        "W_enc": tensor(file, found, "encoder.weight", shape=(d_sae, d_in)).T,
        "W_dec": tensor(file, found, "decoder.weight", shape=(d_in, d_sae)).T,
        "b_enc": tensor(file, found, "latent_bias", shape=(d_sae,)),
        "b_dec": tensor(file, found, "pre_bias", shape=(d_in,)),
    }
    if check_choice(f"{file}: activation", found.get("activation", "ReLU"), ("ReLU", "TopK")) == "ReLU":
        return Plain("standard", told).build()
    state = found.get("activation_state_dict")
    if not isinstance(state, Mapping):
        raise InputError(f"{file}: activation_state_dict is {type(state).__name__}, want k and postact_fn")
    k = whole(file, "k", state.get("k"), at_most=d_sae)
    kind = _AFTER[check_choice(f"{file}: postact_fn", state.get("postact_fn", "ReLU"), _AFTER)]
    return Plain(kind, told, k, inputs=_HOLDS[kind]).build()

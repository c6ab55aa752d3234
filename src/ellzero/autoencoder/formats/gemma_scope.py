"""Files of Gemma Scope: ``params.npz`` of JumpReLU autoencoders whose encoder does not subtract ``b_dec``.

Lives here: ``load`` and ``save``. Does not live here: which layer of which model they are of.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.autoencoder.formats.files import entry, read_npz, tensor, write_npz
from ellzero.autoencoder.formats.plain import Plain, plain, refuse
from ellzero.errors import InputError

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["WEIGHTS", "load", "save"]

WEIGHTS = "params.npz"


def save(sae: SparseAutoencoder, path: Path) -> None:
    """Write an autoencoder as Gemma Scope does; rectified codes are those above a threshold of zero."""
    told = plain(sae, "gemma_scope")
    if told.kind not in ("jumprelu", "standard"):
        raise refuse("gemma_scope", f"{told.name}, which is {told.kind}", ["jumprelu"])
    if told.inputs is not None:
        raise refuse(
            "gemma_scope", f"{told.name} with {told.inputs or 'rows as they are'}", ["none", "one map for all rows"]
        )
    tensors = told.centring(False).tensors
    tensors = {"threshold": tensors["b_enc"].new_zeros(tensors["b_enc"].shape), **tensors}
    file = path if path.suffix == ".npz" else path / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_npz(file, {name: tensors[name].contiguous() for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})


def load(path: Path) -> SparseAutoencoder:
    """The autoencoder in a folder with ``params.npz``, or in that file."""
    file = path / WEIGHTS if path.is_dir() or path.suffix != ".npz" else path
    found = {"W" + name[1:] if name.startswith("w_") else name: one for name, one in read_npz(file).items()}
    weight = entry(file, found, "W_enc")
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"{file}: W_enc has shape {tuple(weight.shape)}, want [d_in, d_sae]")
    d_in, d_sae = map(int, weight.shape)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
              "threshold": (d_sae,)}  # fmt: skip
    told = {name: tensor(file, found, name, shape=shape) for name, shape in shapes.items()}
    if "scaling_factor" in found:  # of the codes, on their way into the decoder
        told["W_dec"] = told["W_dec"] * tensor(file, found, "scaling_factor", shape=(d_sae,))[:, None]
    return Plain("jumprelu", told, centred=False).build()

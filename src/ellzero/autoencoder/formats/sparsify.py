"""Folders of sparsify: ``cfg.json`` and ``sae.safetensors``, whose ``W_dec`` has a row for each latent.

Lives here: ``load`` and ``save``. Does not live here: transcoders and grouped maxima, which have no equal here. Older
releases had ``signed``, the largest magnitudes; newer ones ignore it, so it is read and never written. Nor is
``multi_topk``, with which that library's forward pass tells what ``4 k`` latents reconstruct.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.autoencoder.formats.files import read_json, read_safetensors, tensor, whole, write_safetensors
from ellzero.autoencoder.formats.plain import Plain, plain, refuse
from ellzero.errors import InputError
from ellzero.io import atomic

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["CONFIG", "WEIGHTS", "load", "save"]

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def save(sae: SparseAutoencoder, path: Path) -> None:
    """Write an autoencoder as sparsify reads it."""
    told = plain(sae, "sparsify")
    if told.kind != "topk":
        raise refuse("sparsify", f"{told.name}, which is {told.kind}", ["topk of rectified codes"])
    if told.inputs is not None:
        raise refuse(
            "sparsify", f"{told.name} with {told.inputs or 'rows as they are'}", ["none", "one map for all rows"]
        )
    told = told.centring(True)
    d_in, d_sae = told.size
    tensors = {
        "encoder.weight": told.tensors["W_enc"].T, "encoder.bias": told.tensors["b_enc"],
        "W_dec": told.tensors["W_dec"], "b_dec": told.tensors["b_dec"],
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    write_safetensors(path / WEIGHTS, tensors)
    config = {
        "activation": "topk", "expansion_factor": max(d_sae // d_in, 1), "normalize_decoder": sae.decoder is not None,
        "num_latents": d_sae, "k": told.k, "multi_topk": False, "skip_connection": False, "transcode": False,
        "d_in": d_in,
    }  # fmt: skip
    atomic.write_json(path / CONFIG, config)


def load(path: Path) -> SparseAutoencoder:
    """The autoencoder in a folder of sparsify."""
    place, file = path / CONFIG, path / WEIGHTS
    config = read_json(place)
    for name, wanted in (("activation", "topk"), ("transcode", False), ("skip_connection", False)):
        if config.get(name, wanted) != wanted:
            raise InputError(f"{place}: {name} is {config[name]!r}, want {wanted!r}")
    d_in = whole(place, "d_in", config.get("d_in"))
    d_sae = config.get("num_latents") or whole(place, "expansion_factor", config.get("expansion_factor", 32)) * d_in
    d_sae = whole(place, "num_latents", d_sae)
    k = whole(place, "k", config.get("k"), at_most=d_sae)
    found = read_safetensors(file)
    told = {
        "W_enc": tensor(file, found, "encoder.weight", shape=(d_sae, d_in)).T,
        "b_enc": tensor(file, found, "encoder.bias", shape=(d_sae,)),
        "W_dec": tensor(file, found, "W_dec", shape=(d_sae, d_in)),
        "b_dec": tensor(file, found, "b_dec", shape=(d_in,)),
    }
    kind = "abstopk" if config.get("signed", False) is True else "topk"
    return Plain(kind, told, k, multi=config.get("multi_topk", False) is True).build()

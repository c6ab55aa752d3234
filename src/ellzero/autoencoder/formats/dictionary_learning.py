"""Folders of dictionary_learning: ``ae.pt`` and ``config.json``.

Lives here: ``load`` and ``save``. Does not live here: anything that trains them. Read are ``AutoEncoder`` (also with
its bias under an older name), ``AutoEncoderNew``, ``GatedAutoEncoder``, ``AutoEncoderTopK``, ``BatchTopKSAE``,
``MatryoshkaBatchTopKSAE`` and ``JumpReluAutoEncoder``; the file may stand alone where its names tell which one it is.
The format has no normalisation of single rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.autoencoder.formats.files import entry, read_json, read_torch, tensor, whole, write_torch
from ellzero.autoencoder.formats.plain import Plain, plain, refuse
from ellzero.errors import InputError, check_choice
from ellzero.io import atomic

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["CONFIG", "WEIGHTS", "load", "save"]

CONFIG, WEIGHTS = "config.json", "ae.pt"
_CLASSES = {
    "standard": "AutoEncoder", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"
}  # fmt: skip
_BATCHWISE = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def save(sae: SparseAutoencoder, path: Path) -> None:
    """Write an autoencoder as dictionary_learning reads it; ``path`` is a folder, or the ``.pt`` file."""
    told = plain(sae, "dictionary_learning")
    if told.kind not in _CLASSES:
        raise refuse("dictionary_learning", f"{told.name}: codes with signs", _CLASSES)
    if told.inputs is not None:
        raise refuse(
            "dictionary_learning",
            f"{told.name} with {told.inputs or 'rows as they are'}",
            ["none", "one map for all rows"],
        )
    told = told.centring(told.kind != "jumprelu")
    d_in, d_sae = told.size
    trainer: dict[str, Any] = {"dict_class": _CLASSES[told.kind], "activation_dim": d_in, "dict_size": d_sae}
    if told.k is not None:
        trainer["k"] = told.k
    file = path if path.suffix == ".pt" else path / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_torch(file, _content(told))
    atomic.write_json(file.parent / CONFIG, {"trainer": trainer})


def _content(told: Plain) -> dict[str, Tensor]:
    """The tensors under their names there; linear maps are stored output first."""
    t = told.tensors
    if told.kind == "jumprelu":
        return {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
    content = {"encoder.weight": t["W_enc"].T, "decoder.weight": t["W_dec"].T}
    if told.kind == "gated":
        return content | {"gate_bias": t["b_enc"], "mag_bias": t["b_mag"], "r_mag": t["r_mag"],
                          "decoder_bias": t["b_dec"]}  # fmt: skip
    content["encoder.bias"] = t["b_enc"]
    if told.kind == "standard":
        return content | {"bias": t["b_dec"]}
    k = torch.tensor(told.k, dtype=torch.int)
    return content | {"b_dec": t["b_dec"], "k": k, "threshold": torch.tensor(-1.0)}


def load(path: Path) -> SparseAutoencoder:
    """The autoencoder in a folder of dictionary_learning, or in its ``.pt`` file."""
    file = path / WEIGHTS if path.is_dir() or path.suffix != ".pt" else path
    place = file.parent / CONFIG
    found = read_torch(file)
    trainer = _trainer(place) if place.is_file() else {}
    known = trainer["dict_class"] if "dict_class" in trainer else _guess(file, found)
    check_choice(f"{place}: dict_class", known, [*_CLASSES.values(), "AutoEncoderNew", *_BATCHWISE])
    if known in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        d_in, d_sae = _size(file, found, "W_enc")
        shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        told = {name: tensor(file, found, name, shape=shape) for name, shape in shapes.items()}
    else:
        d_sae, d_in = _size(file, found, "encoder.weight")
        told = {
            "W_enc": tensor(file, found, "encoder.weight", shape=(d_sae, d_in)).T,
            "W_dec": tensor(file, found, "decoder.weight", shape=(d_in, d_sae)).T,
            "b_dec": tensor(file, found, "b_dec", "bias", "decoder_bias", "decoder.bias", shape=(d_in,)),
        }
        bias = "gate_bias" if known == "GatedAutoEncoder" else "encoder.bias"
        told["b_enc"] = tensor(file, found, bias, shape=(d_sae,))
    return _build(known, told, file, found, trainer, d_sae)


def _build(
    known: str, told: dict[str, Tensor], file: Path, found: dict[str, Any], trainer: dict[str, Any], d_sae: int
) -> SparseAutoencoder:
    """What the class does with its weights."""
    if known == "GatedAutoEncoder":
        told |= {"b_mag": tensor(file, found, "mag_bias", shape=(d_sae,)),
                 "r_mag": tensor(file, found, "r_mag", shape=(d_sae,))}  # fmt: skip
        return Plain("gated", told).build()
    if known in ("AutoEncoder", "AutoEncoderNew"):
        return Plain("standard", told, centred=known == "AutoEncoder").build()
    if known == "JumpReluAutoEncoder":
        told["threshold"] = tensor(file, found, "threshold", shape=(d_sae,))
        return Plain("jumprelu", told, centred=False).build()
    k = whole(file, "k", found.get("k", trainer.get("k")), at_most=d_sae)
    if known == "AutoEncoderTopK":
        return Plain("topk", told, k).build()
    threshold = tensor(file, found, "threshold", shape=())
    if threshold < 0:
        raise InputError(f"{file}: threshold is {float(threshold)}: {known} was not trained long enough to set it")
    return Plain("jumprelu", told | {"threshold": threshold.expand(d_sae)}).build()


def _trainer(place: Path) -> dict[str, Any]:
    trainer = read_json(place).get("trainer")
    if not isinstance(trainer, dict):
        raise InputError(f"{place}: trainer is {type(trainer).__name__}, want an object with dict_class")
    return trainer


def _guess(file: Path, found: dict[str, Any]) -> str:
    """The class by the names of its tensors, where no settings say it."""
    if "gate_bias" in found:
        return "GatedAutoEncoder"
    if "group_sizes" in found:
        return "MatryoshkaBatchTopKSAE"
    if "W_enc" in found and "threshold" in found:
        return "JumpReluAutoEncoder"
    if "decoder.bias" in found:
        return "AutoEncoderNew"
    if "encoder.weight" in found and "k" not in found:
        return "AutoEncoder"
    raise InputError(f"{file.parent / CONFIG}: is missing, and the names in {file.name} fit several classes or none")


def _size(file: Path, found: dict[str, Any], name: str) -> tuple[int, int]:
    weight = entry(file, found, name)
    if weight.ndim != 2 or 0 in weight.shape:
        raise InputError(f"{file}: {name} has shape {tuple(weight.shape)}, want two axes")
    return int(weight.shape[0]), int(weight.shape[1])

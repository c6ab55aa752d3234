"""Autoencoders as files: ``cfg.json`` and ``sae_weights.safetensors``, with the names that SAELens uses.

Lives here: ``save`` and ``load``. Does not live here: what the tensors do (``model``). The weights are written first
and ``cfg.json``, which holds their digest, last: a folder of two halves is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors import torch as container

from ellzero.autoencoder.objective import SquaredError
from ellzero.errors import InputError, check_array, check_choice
from ellzero.io import atomic
from ellzero.parts.constraints import Threshold, TopK

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["load", "save"]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = 1
_SHAPES = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
_ARCHITECTURES = ("standard", "topk", "jumprelu")


def tensors(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    """What is stored of it, by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}


def save(sae: SparseAutoencoder, directory: str | Path) -> None:
    """Write an autoencoder into a folder, which is made if it is not there."""
    if sae.calibrates and sae.threshold is None:
        raise InputError("threshold: not calibrated yet; train the autoencoder, or call calibrate(activations)")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = container.save(tensors(sae))
    config = {
        "architecture": sae.architecture, "d_in": sae.d_in, "d_sae": sae.d_sae,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "ellzero": {"version": VERSION, "weights": hashlib.sha256(content).hexdigest()},
    }  # fmt: skip
    if sae.architecture == "topk":
        config["k"] = sae.select.k
    atomic.write_bytes(directory / WEIGHTS, content)
    atomic.write_json(directory / CONFIG, config)


def load(directory: str | Path) -> SparseAutoencoder:
    """The autoencoder in a folder, in evaluation mode.

    Raises
    ------
    InputError : files that are missing, torn, of a newer version, of another architecture, or with wrong shapes.
    """
    from ellzero.autoencoder.model import SparseAutoencoder

    directory = Path(directory)
    config = _config(directory / CONFIG)
    found = _weights(directory / WEIGHTS, config)
    kind, k = config["architecture"], config.get("k")
    if kind == "topk" and not (isinstance(k, int) and 1 <= k <= config["d_sae"]):
        raise InputError(f"{directory / CONFIG}: k is {k!r}, want a whole number from 1 to d_sae")
    select = TopK(k) if kind == "topk" else Threshold(0.0)
    sae = SparseAutoencoder(
        config["d_in"], config["d_sae"], select=select, objective=[SquaredError()], architecture=kind
    )
    if kind == "jumprelu":
        sae.threshold = found["threshold"]
    sae.load_state_dict(found)
    with torch.no_grad():
        if config.get("rescale_acts_by_decoder_norm"):  # codes grow by the rows' norms, the decoder is divided by them
            norms = sae.W_dec.norm(dim=1)
            for tensor, factor in ((sae.W_enc, norms), (sae.b_enc, norms), (sae.W_dec, 1 / norms[:, None])):
                tensor.mul_(factor)
        if not config.get("apply_b_dec_to_input", True):  # x W + b = (x - b_dec) W + (b + b_dec W)
            sae.b_enc.add_(sae.b_dec @ sae.W_enc)
    return sae.eval()


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as an autoencoder's settings ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, want an object with architecture, d_in and d_sae")
    check_choice(f"{path}: architecture", config.get("architecture"), _ARCHITECTURES)
    for name in ("d_in", "d_sae"):
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise InputError(f"{path}: {name} is {config.get(name)!r}, want a whole number above 0")
    if config.get("normalize_activations", "none") not in ("none", None):
        raise InputError(f"{path}: normalize_activations is {config['normalize_activations']!r}, want 'none'")
    own = config.setdefault("ellzero", {"version": 0})
    version = own.get("version") if isinstance(own, dict) else own
    if not isinstance(version, int) or version > VERSION:
        raise InputError(f"{path}: has format version {version!r}, this release reads up to {VERSION}")
    return config


def _weights(path: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    try:
        content = path.read_bytes()
        found = container.load(content)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from error
    digest = config["ellzero"].get("weights")
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise InputError(f"{path}: does not belong to the {CONFIG} beside it (its digest differs)")
    shapes = dict(_SHAPES)
    if config["architecture"] == "jumprelu":
        shapes["threshold"] = ("d_sae",)
    for name, axes in shapes.items():
        wanted = tuple(config[axis] for axis in axes)
        if name not in found:
            raise InputError(f"{path}: lacks the tensor {name}")
        if tuple(found[name].shape) != wanted:
            raise InputError(f"{path}: {name} has shape {tuple(found[name].shape)}, want {wanted}")
        check_array(f"{path}: {name}", found[name], dtypes="f")
    return {name: found[name].float() for name in shapes}

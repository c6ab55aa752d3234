"""Folders of SAELens: ``cfg.json`` and ``sae_weights.safetensors``.

Lives here: ``load``, ``save``, and the names that our own folder shares with it. Does not live here: our own folder
(``storage``). Settings of releases before 6 are read too. A scale or whitening that was not folded into the weights is
read from ``activation_scaler.json`` and ``activation_whitening.safetensors`` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.autoencoder.formats.files import read_json, read_safetensors, tensor, whole, write_safetensors
from ellzero.autoencoder.formats.plain import Plain, plain, refuse
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm, RowNorm, Whitening
from ellzero.errors import InputError, check, check_choice
from ellzero.io import atomic

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["CONFIG", "WEIGHTS", "load", "normalisation", "renamed", "save", "settings"]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_SCALER, _WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
_NAMES = {
    "standard": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "abstopk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "gated": ("W_enc", "b_gate", "W_dec", "b_dec", "b_mag", "r_mag"),
}
_BY_ROW = {"none": None, "layer_norm": LayerNorm(1e-5), "constant_norm_rescale": RowNorm("root")}
_FOR_ALL = {"expected_average_only_in": ExpectedNorm(), "covariance_whitening": Whitening()}


def normalisation(inputs: Any) -> str | None:
    """Its name in ``cfg.json``; None for what has none."""
    return next((name for name, known in _BY_ROW.items() if known == inputs), None)


def names(kind: str) -> tuple[str, ...] | None:
    """The tensors of an architecture; None for one that SAELens does not have."""
    return _NAMES.get(kind)


def renamed(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """With the bias of a gate under its own name."""
    return {"b_gate" if kind == "gated" and name == "b_enc" else name: one for name, one in tensors.items()}


def settings(kind: str, d_in: int, d_sae: int, k: int | None, centred: bool, normalised: str) -> dict[str, Any]:
    """What ``cfg.json`` says."""
    config = {
        "architecture": kind, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": centred, "normalize_activations": normalised, "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0"},
    }  # fmt: skip
    if kind in ("topk", "abstopk"):
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    if kind == "matching_pursuit":
        config |= {"max_iterations": k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    return config


def save(sae: SparseAutoencoder, path: Path) -> None:
    """Write an autoencoder as SAELens reads it; a factor or whitening of all rows is folded into the weights."""
    told = plain(sae, "saelens").rooted()
    if told.kind not in _NAMES:
        raise refuse("saelens", f"{told.name}: the largest codes whatever their sign", _NAMES)
    normalised = normalisation(told.inputs)
    if normalised is None:
        raise refuse(
            "saelens", f"{told.name} with {told.inputs or 'rows as they are'}", [*_BY_ROW, "one map for all rows"]
        )
    tensors = renamed(told.tensors, told.kind)
    path.mkdir(parents=True, exist_ok=True)
    write_safetensors(path / WEIGHTS, {name: tensors[name] for name in _NAMES[told.kind]})
    atomic.write_json(path / CONFIG, settings(told.kind, *told.size, told.k, told.centred, normalised))


def load(path: Path) -> SparseAutoencoder:
    """The autoencoder in a folder of SAELens."""
    return read(path, read_json(path / CONFIG))


def read(path: Path, config: dict[str, Any], digest: str | None = None) -> SparseAutoencoder:
    """The same with settings that were read already, and the digest of the weights if it is known."""
    place = path / CONFIG
    config = _today(place, config)
    kind = check_choice(f"{place}: architecture", config["architecture"], _NAMES)
    d_in, d_sae = (whole(place, name, config.get(name)) for name in ("d_in", "d_sae"))
    k = _count(place, config, kind, d_in, d_sae)
    normalised = config["normalize_activations"]
    check_choice(f"{place}: normalize_activations", normalised, [*_BY_ROW, *_FOR_ALL])
    found = read_safetensors(path / WEIGHTS, digest, CONFIG)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    told = {
        "b_enc" if name == "b_gate" else name: tensor(path / WEIGHTS, found, name, shape=shapes.get(name, (d_sae,)))
        for name in _NAMES[kind]
    }
    factor = [name for name in ("finetuning_scaling_factor", "scaling_factor") if name in found]
    if factor:  # of the codes, on their way into the decoder
        told["W_dec"] = told["W_dec"] * tensor(path / WEIGHTS, found, *factor, shape=(d_sae,))[:, None]
    if kind == "matching_pursuit":
        size = told["W_dec"].norm(dim=1)
        if not torch.allclose(size, torch.ones(d_sae), atol=1e-3):
            raise InputError(f"{path / WEIGHTS}: W_dec has rows of norm {float(size.min()):.4g}, want unit rows")
        told |= {"W_enc": told["W_dec"].T, "b_enc": torch.zeros(d_sae)}
    elif k is not None and config.get("rescale_acts_by_decoder_norm"):
        # codes grow by the rows' norms, which the decoder is divided by
        size = told["W_dec"].norm(dim=1)
        told |= {"W_enc": told["W_enc"] * size, "b_enc": told["b_enc"] * size, "W_dec": told["W_dec"] / size[:, None]}
        if not bool((size > 0).all()):
            raise InputError(f"{path / WEIGHTS}: W_dec has rows of zeros, want rows with a norm to divide by")
    inputs = _FOR_ALL.get(normalised, _BY_ROW.get(normalised))
    sae = Plain(kind, told, k, bool(config["apply_b_dec_to_input"]), inputs).build()
    if normalised in _FOR_ALL:
        _scaler(path, sae)
    return sae


def _count(place: Path, config: dict[str, Any], kind: str, d_in: int, d_sae: int) -> int | None:
    """How many are active, of the architectures that say so."""
    if kind in ("topk", "abstopk"):
        return whole(place, "k", config.get("k"), at_most=d_sae)
    if kind != "matching_pursuit":
        return None
    for name, default in (("residual_threshold", 0.01), ("stop_on_duplicate_support", True)):
        if config.get(name, default) not in (0, False):
            raise InputError(f"{place}: {name} is {config.get(name, default)!r}, want none: steps stop by number alone")
    steps = config.get("max_iterations")
    return whole(place, "max_iterations", d_in if steps is None else steps, at_most=d_sae)


def _today(place: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names and values of release 6."""
    config = {"architecture": "standard", "apply_b_dec_to_input": True, **config}
    activation = config.get("activation_fn", config.get("activation_fn_str")) or "relu"
    if activation == "topk":
        options = config.get("activation_fn_kwargs")
        config = {**config, "architecture": "topk"}
        if "k" not in config and isinstance(options, dict):
            config["k"] = options.get("k")
    elif activation != "relu":
        raise InputError(f"{place}: activation_fn is {activation!r}, want 'relu' or 'topk'")
    normalised = config.get("normalize_activations")
    if normalised is None or isinstance(normalised, bool):
        normalised = "expected_average_only_in" if normalised else "none"
    return {**config, "normalize_activations": normalised}


def _scaler(path: Path, sae: SparseAutoencoder) -> None:
    """Scale or whitening from the files beside; without them ``fit_inputs`` is the user's to call."""
    d_in = sae.d_in
    if isinstance(sae.inputs, ExpectedNorm) and (path / _SCALER).is_file():
        factor = read_json(path / _SCALER).get("scaling_factor")
        factor = check(f"{path / _SCALER}: scaling_factor", factor, above=0, below=float("inf"))
        sae.register_buffer("input_scale", torch.tensor(float(factor)))
    if isinstance(sae.inputs, Whitening) and (path / _WHITENING).is_file():
        place = path / _WHITENING
        found = read_safetensors(place)
        for ours, theirs in (("mean", "mean"), ("matrix", "matrix"), ("inverse", "inverse_matrix")):
            shape = (d_in,) if ours == "mean" else (d_in, d_in)
            sae.register_buffer(f"input_{ours}", tensor(place, found, theirs, shape=shape))

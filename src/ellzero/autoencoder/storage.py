"""Autoencoders as files: our own folder, which holds every one, and the choice among the formats of others.

Lives here: ``save``, ``load``, and our folder: ``cfg.json`` and ``sae_weights.safetensors``, with the names that
SAELens uses and, where that library has the architecture, as it reads them. Does not live here: files of other
libraries (``formats``), what the tensors do (``model``). The weights are written first and ``cfg.json``, which holds
their digest and lists the parts by name, last: a folder of two halves is refused.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.autoencoder.formats import saelens
from ellzero.autoencoder.formats.files import read_json, read_safetensors, read_torch, tensor, whole, write_safetensors
from ellzero.autoencoder.formats.parts import from_json, to_json
from ellzero.autoencoder.formats.plain import affine, foldable, name_of, rule
from ellzero.autoencoder.formats.saelens import CONFIG, WEIGHTS
from ellzero.autoencoder.inputs import ExpectedNorm
from ellzero.errors import InputError, check_array, check_choice
from ellzero.io import atomic
from ellzero.parts.constraints import Threshold

if TYPE_CHECKING:
    from ellzero.autoencoder.model import SparseAutoencoder

__all__ = ["FORMATS", "load", "save", "tensors"]

VERSION = 2
FORMATS = ("ellzero", "saelens", "dictionary_learning", "sparsify", "gemma_scope", "openai")
# What a part of each kind has, one of these at least.
_ROLES = {
    "select": ("support", "for_rows"), "infer": ("support", "for_rows", "find"), "encoder": ("pre",),
    "score": ("__call__",), "gradient": ("apply",), "decoder": ("tangent",), "inputs": ("by_row",),
}  # fmt: skip
# Which files tell which format, the first that fits.
_TOLD_BY = (
    ("sae_weights.safetensors", "saelens"), ("sae.safetensors", "sparsify"), ("ae.pt", "dictionary_learning"),
    ("params.npz", "gemma_scope"), ("autoencoder.pt", "openai"),
)  # fmt: skip


def tensors(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """What is stored of it, by name."""
    return {name: one.detach().cpu().contiguous() for name, one in sae.state_dict().items()}


def save(sae: SparseAutoencoder, path: str | Path, format: str = "ellzero") -> None:
    """Write an autoencoder; see ``SparseAutoencoder.save``."""
    check_choice("format", format, FORMATS)
    path = Path(path)
    if format == "ellzero":
        _save(sae, path)
    else:
        importlib.import_module(f"ellzero.autoencoder.formats.{format}").save(sae, path)


def load(path: str | Path, format: str = "auto") -> SparseAutoencoder:
    """Read an autoencoder; see ``SparseAutoencoder.load``."""
    check_choice("format", format, ("auto", *FORMATS))
    path = Path(path)
    format = _detect(path) if format == "auto" else format
    if format == "ellzero":
        return _load(path)
    return importlib.import_module(f"ellzero.autoencoder.formats.{format}").load(path)


def _detect(path: Path) -> str:
    """The format by the names of files, and by what they say where those are shared."""
    if path.is_file():
        if path.suffix == ".npz":
            return "gemma_scope"
        if path.suffix in (".pt", ".pth"):
            return "openai" if "pre_bias" in read_torch(path) else "dictionary_learning"
        raise InputError(f"{path}: got a {path.suffix or 'nameless'} file, want a folder, .npz or .pt")
    for name, format in _TOLD_BY:
        if (path / name).is_file():
            if format == "saelens" and (path / CONFIG).is_file():
                return "ellzero" if "ellzero" in read_json(path / CONFIG) else "saelens"
            return format
    wanted = f"{CONFIG} with {WEIGHTS} or sae.safetensors, ae.pt, params.npz, autoencoder.pt"
    raise InputError(f"{path}: holds no autoencoder, want one of {wanted}")


# -- our own folder


def _save(sae: SparseAutoencoder, path: Path) -> None:
    if sae.calibrates and sae.threshold is None:
        raise InputError("threshold: not calibrated yet; train the autoencoder, or call calibrate(activations)")
    if sae.inputs is not None and not sae.inputs.fitted(sae):
        raise InputError("inputs: not fitted yet; train the autoencoder, or call fit_inputs(activations)")
    parts, content = {slot: getattr(sae, slot) for slot in _slots()}, tensors(sae)
    if sae.calibrates:  # a selection over the batch goes as the JumpReLU that it is in evaluation mode
        parts |= {"select": Threshold(0.0), "infer": None, "architecture": "jumprelu"}
        for name in sae.select.extra(sae.d_in, sae.d_sae) if hasattr(sae.select, "extra") else ():
            content.pop(name)
    if isinstance(sae.inputs, ExpectedNorm) and foldable(sae):
        content = affine(content, sae.encoder.centred, content.pop("input_scale"))
        parts |= {"inputs": None, "decoder": None}
    written = {slot: to_json(part, f"{slot} of {name_of(sae)}") for slot, part in parts.items()}
    config, content = _settings(sae, parts["inputs"], content)
    for name, one in content.items():
        check_array(f"{name} of {name_of(sae)}", one)
    path.mkdir(parents=True, exist_ok=True)
    digest = write_safetensors(path / WEIGHTS, content)
    config["ellzero"] = {"version": VERSION, "weights": digest, "preset": sae.preset, "parts": written}
    atomic.write_json(path / CONFIG, config)


def _slots() -> list[str]:
    """The parts an autoencoder is made of: what its constructor takes beside sizes and seed."""
    from ellzero.autoencoder.model import SparseAutoencoder

    return [name for name in inspect.signature(SparseAutoencoder).parameters if name not in ("d_in", "d_sae", "seed")]


def _settings(sae: SparseAutoencoder, inputs: Any, content: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """``cfg.json`` as SAELens has it where it reads these tensors so, and the tensors under its names.

    Otherwise the architecture is ``"ellzero"``, which SAELens refuses.
    """
    try:
        kind, k, _ = rule(sae, "saelens")
    except InputError:
        kind, k = "ellzero", None
    content = saelens.renamed(content, kind)
    normalised = saelens.normalisation(inputs)
    if normalised is None or set(content) != set(saelens.names(kind) or ()):
        kind, normalised = "ellzero", "none" if normalised is None else normalised
    config = saelens.settings(kind, sae.d_in, sae.d_sae, k, getattr(sae.encoder, "centred", True), normalised)
    config["dtype"] = str(sae.W_dec.dtype).removeprefix("torch.")
    return config, content


def _load(path: Path) -> SparseAutoencoder:
    place = path / CONFIG
    config = read_json(place)
    own = config.get("ellzero")
    version = own.get("version") if isinstance(own, dict) else own
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise InputError(f"{place}: has format version {version!r}, this release reads up to {VERSION}")
    digest = own.get("weights")
    if version == 1:  # nothing beyond what SAELens has
        return saelens.read(path, config, digest)
    d_in, d_sae = (whole(place, name, config.get(name)) for name in ("d_in", "d_sae"))
    found = read_safetensors(path / WEIGHTS, str(digest), CONFIG)
    if "b_gate" in found:
        found["b_enc"] = found.pop("b_gate")
    tensor(path / WEIGHTS, found, "W_dec", shape=(d_sae, d_in))  # before anything of that size is made
    sae = _made(place, d_in, d_sae, own.get("parts"))
    sae.preset = own.get("preset") if isinstance(own.get("preset"), str) else None
    _fill(sae, path / WEIGHTS, found)
    return sae.eval()


def _made(place: Path, d_in: int, d_sae: int, parts: Any) -> SparseAutoencoder:
    """The autoencoder of the parts listed, without its weights."""
    from ellzero.autoencoder.model import SparseAutoencoder

    if not isinstance(parts, dict) or "select" not in parts:
        raise InputError(f"{place}: parts is {parts!r:.80}, want an object with encoder, select and others")
    options = {}
    for slot, part in parts.items():
        check_choice(f"{place}: parts", slot, _slots())
        options[slot] = from_json(part, f"{place}: {slot}")
        _check_role(f"{place}: {slot}", slot, options[slot])
    try:
        return SparseAutoencoder(d_in, d_sae, seed=None, **options)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{place}: its parts make no autoencoder ({error})") from error


def _check_role(where: str, slot: str, part: Any) -> None:
    """Whether a part can stand in that place: a value of another kind would fail only when rows come."""
    if slot == "recommended":
        fits = isinstance(part, dict)
    elif slot == "architecture":
        fits = isinstance(part, str)
    elif slot == "objective":
        fits = isinstance(part, tuple) and all(callable(term) for term in part)
    else:
        optional = slot not in ("select", "encoder", "gradient")
        fits = (part is None and optional) or any(hasattr(part, name) for name in _ROLES.get(slot, ("__class__",)))
    if not fits:
        raise InputError(f"{where}: got {type(part).__name__}, which is no part for that place")


def _fill(sae: SparseAutoencoder, file: Path, found: dict[str, Tensor]) -> None:
    """Weights and buffers from the file, each of which must be there and be known."""
    if "threshold" in found and sae.threshold is None:
        sae.threshold = sae.b_enc.detach().clone()
    for name, shape in (sae.inputs.shapes(sae.d_in) if sae.inputs is not None else {}).items():
        sae.register_buffer(name, torch.zeros(shape))
    known = sae.state_dict(keep_vars=True)
    for name in found:
        check_choice(f"{file}: a tensor", name, known)
    with torch.no_grad():
        for name, one in known.items():
            if one.is_floating_point():
                one.copy_(tensor(file, found, name, shape=tuple(one.shape)))
            elif name not in found or found[name].shape != one.shape or found[name].dtype != one.dtype:
                raise InputError(f"{file}: lacks the tensor {name} of {one.dtype} {tuple(one.shape)}")
            else:
                one.copy_(found[name])

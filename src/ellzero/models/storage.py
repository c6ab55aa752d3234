"""Models on disk: one safetensors file with the configuration in its metadata.

Lives here: ``save`` and ``load``. Does not live here: folders of Hugging Face (``huggingface``), checkpoints of a
training run (``ellzero.training``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ellzero.errors import InputError, check_choice
from ellzero.io import artefacts

__all__ = ["load", "save"]

_KIND, _VERSION = "model", 1
_CONFIGS = {
    "MLP": "ellzero.models.mlp:MLPConfig",
    "CNN": "ellzero.models.cnn:CNNConfig",
    "Residual": "ellzero.models.residual:ResidualConfig",
    "Transformer": "ellzero.models.transformer:TransformerConfig",
    "WaveRNN": "ellzero.models.wavernn:WaveRNNConfig",
}


def save(path: str | os.PathLike, model: nn.Module, extra: Mapping[str, Any] | None = None) -> None:
    """Write a model of this package; ``extra`` is anything JSON holds, and comes back from ``load``."""
    name = type(model).__name__
    if name not in _CONFIGS:
        raise InputError(f"model: got {name}, want one of {', '.join(_CONFIGS)}")
    meta = {"model": name, "config": asdict(model.config), "extra": dict(extra or {})}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    artefacts.save(path, tensors, meta, kind=_KIND, version=_VERSION)


def load(path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """The model and the ``extra`` that ``save`` wrote, in evaluation mode and in the dtype of the file."""
    tensors, meta = artefacts.load(path, _KIND, version=_VERSION, backend="torch")
    name = check_choice(f"{path}: model", meta.get("model"), _CONFIGS)
    module, config = _CONFIGS[name].split(":")
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in meta["config"].items()}
    model = getattr(import_module(module), config)(**sizes).build()
    wanted, found = {k: tuple(v.shape) for k, v in model.state_dict().items()}, {}
    for key, value in tensors.items():
        found[key] = tuple(value.shape)
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))[0]
        raise InputError(f"{path}: the tensors do not fit the configuration, first at {wrong[0]!r}")
    dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    model.load_state_dict({key: torch.as_tensor(value) for key, value in tensors.items()})
    return model.eval(), meta["extra"]

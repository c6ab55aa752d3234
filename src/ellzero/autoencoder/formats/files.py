"""Reading and writing of settings and tensors, with errors that name the file.

Lives here: ``read_json``, ``read_safetensors``, ``read_torch``, ``read_npz``, ``whole``, ``tensor`` and the writers.
Does not live here: what any of it means. Nothing that is read is ever executed: torch files are opened for weights
only, NumPy archives without objects.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as container
from torch import Tensor

from ellzero.errors import InputError, check_array
from ellzero.io import atomic

__all__ = [
    "entry", "read_json", "read_npz", "read_safetensors", "read_torch", "tensor", "whole", "write_npz",
    "write_safetensors", "write_torch",
]  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of settings."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as an autoencoder's settings ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, want an object with the autoencoder's settings")
    return config


def read_safetensors(path: Path, digest: str | None = None, beside: str = "") -> dict[str, Tensor]:
    """The tensors of a file; its SHA-256 must be ``digest`` if one is given in the file ``beside`` it."""
    try:
        content = path.read_bytes()
        found = container.load(content)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from error
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise InputError(f"{path}: does not belong to the {beside} beside it (its digest differs)")
    return found


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors, and return the SHA-256 of the file."""
    content = container.save({name: _apart(one) for name, one in tensors.items()})
    atomic.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _apart(one: Tensor) -> Tensor:
    """With memory of its own, in order: tied weights share theirs."""
    return one.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a file of torch, opened for weights only: a file that holds code is refused."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged file makes torch raise nearly anything
        if type(error).__name__ == "UnpicklingError":
            raise InputError(f"{path}: holds more than weights, or is damaged; it is not opened ({error})") from error
        raise InputError(f"{path}: cannot be read as weights of torch ({type(error).__name__}: {error})") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path}: holds {type(found).__name__}, want a dictionary of tensors by name")
    return dict(found)


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors, numbers and texts as torch does."""
    buffer = io.BytesIO()
    torch.save({name: _apart(one) if isinstance(one, Tensor) else one for name, one in content.items()}, buffer)
    atomic.write_bytes(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of numbers in a NumPy archive."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except (OSError, ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as arrays of NumPy ({error})") from error
    except Exception as error:  # zlib, struct and tokenize errors of a damaged archive
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error})") from error


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a NumPy archive."""
    with atomic.writing(path) as file:
        np.savez(file, **{name: one.detach().cpu().numpy() for name, one in tensors.items()})


def whole(path: Path, name: str, value: Any, *, at_most: int | None = None) -> int:
    """A setting that must be a whole number above 0."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point() and not value.is_complex():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: {name} is {value!r}, want a whole number above 0")
    if at_most is not None and value > at_most:
        raise InputError(f"{path}: {name} is {value}, want a whole number from 1 to {at_most}")
    return value


def entry(path: Path, found: Mapping[str, Any], *names: str) -> Tensor:
    """The tensor under the first of these names that is there."""
    for name in names:
        if name in found:
            if not isinstance(found[name], Tensor):
                raise InputError(f"{path}: {name} is {type(found[name]).__name__}, want a tensor")
            return found[name]
    raise InputError(f"{path}: lacks the tensor {' or '.join(names)}")


def tensor(path: Path, found: Mapping[str, Any], *names: str, shape: tuple[int, ...]) -> Tensor:
    """That tensor in float32, if it has this shape and finite numbers."""
    one = entry(path, found, *names)
    name = next(name for name in names if name in found)
    if tuple(one.shape) != tuple(shape):
        raise InputError(f"{path}: {name} has shape {tuple(one.shape)}, want {tuple(shape)}")
    if one.is_floating_point() and one.element_size() == 1:  # float8 has no test for NaN
        one = one.float()
    check_array(f"{path}: {name}", one, dtypes="f")
    return one.float()

"""Checkpoints: the whole state of a training run in one file, and the newest complete one of a folder.

Lives here: ``pack`` and ``unpack`` (a tree of tensors, generators and numbers as tensors and JSON), ``save`` and
``latest``. Does not live here: which state a run has (``loop``), nor models to hand on (``models.storage``).
Files are written whole or not at all and carry hashes, so a kill in mid-write leaves the checkpoint before it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ellzero.errors import InputError, check_integer
from ellzero.io import artefacts
from ellzero.io.atomic import TEMPORARY

__all__ = ["drop_after", "latest", "pack", "restore_generator", "save", "unpack"]

KIND, VERSION = "training-checkpoint", 1
_NAME = re.compile(r"step-(\d{9})\.safetensors")


def pack(tree: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """A tree of mappings, lists, tensors, generators and plain values, as named tensors and a JSON skeleton.

    Keys may be text or whole numbers. Tuples come back as tuples.

    Raises
    ------
    InputError : a value that is none of these, with its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _pack(tree, "state", tensors)


def _pack(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": _put(value.detach().cpu().contiguous().clone(), place, tensors)}
    if isinstance(value, torch.Generator):
        return {"torch_generator": _put(value.get_state(), place, tensors)}
    if isinstance(value, np.random.Generator):  # some keep arrays, which their setters take as lists
        return {"numpy_generator": json.loads(json.dumps(value.bit_generator.state, default=np.ndarray.tolist))}
    if isinstance(value, Mapping):
        rows = []
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise InputError(f"{place}: got the key {key!r}, want text or a whole number")
            rows.append([key, _pack(item, f"{place}.{key}", tensors)])
        return {"mapping": rows}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, float):
        return {"float": value.hex()}  # exact, infinities and NaN included
    if value is None or isinstance(value, str | bool | int):
        return {"plain": value}
    raise InputError(f"{place}: got {type(value).__name__}, want tensors, generators, numbers, text, lists, mappings")


def _put(tensor: torch.Tensor, place: str, tensors: dict[str, torch.Tensor]) -> str:
    """Store a tensor under its place, or a longer name where ``{"a": {"b": ...}, "a.b": ...}`` gives a place twice."""
    while place in tensors:
        place += "'"
    tensors[place] = tensor
    return place


def unpack(tensors: Mapping[str, torch.Tensor], skeleton: Any) -> Any:
    """The inverse of ``pack``; generators come back as their state, for ``restore_generator``."""
    ((kind, value),) = skeleton.items()
    if kind in ("tensor", "torch_generator"):
        return tensors[value]
    if kind == "mapping":
        return {key: unpack(tensors, item) for key, item in value}
    if kind in ("list", "tuple"):
        items = [unpack(tensors, item) for item in value]
        return tuple(items) if kind == "tuple" else items
    return float.fromhex(value) if kind == "float" else value


def restore_generator(generator: torch.Generator | np.random.Generator, state: Any) -> None:
    """Put a generator back where it stood."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def save(folder: str | os.PathLike, step: int, tree: Any, *, keep: int = 2) -> Path:
    """Write ``step-000000042.safetensors`` and remove all but the newest ``keep`` checkpoints.

    Raises
    ------
    InputError : a tree that cannot be stored, or a folder that cannot be written; older checkpoints stay.
    """
    check_integer("step", step, at_least=0)
    check_integer("keep", keep, at_least=1)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"checkpoints: {folder} cannot be made ({error.strerror}), want a writable folder") from error
    tensors, skeleton = pack(tree)
    path = folder / f"step-{step:09d}.safetensors"
    artefacts.save(path, tensors, {"step": step, "skeleton": skeleton}, kind=KIND, version=VERSION)
    for _, old in _found(folder)[keep:]:
        old.unlink(missing_ok=True)
    for torn in folder.glob(f".step-*{TEMPORARY}"):  # left by a process killed while writing
        with contextlib.suppress(OSError):
            torn.unlink()
    return path


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint files by step, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def drop_after(folder: str | os.PathLike, step: int) -> None:
    """Remove checkpoints of later steps, as where another process of a run has none of them."""
    for found, path in _found(Path(folder)):
        if found > step:
            path.unlink(missing_ok=True)


def latest(folder: str | os.PathLike) -> tuple[int, Any] | None:
    """Step and state of the newest complete checkpoint; None where the folder has none.

    A damaged file is passed over for the one before it.

    Raises
    ------
    InputError : there are checkpoints and all are damaged or foreign; the newest one's trouble is named.
    """
    trouble: InputError | None = None
    for step, path in _found(Path(folder)):
        try:
            tensors, meta = artefacts.load(path, KIND, version=VERSION, backend="torch")
        except InputError as error:
            trouble = trouble or error
            continue
        return step, unpack(tensors, meta["skeleton"])
    if trouble is not None:
        raise trouble
    return None

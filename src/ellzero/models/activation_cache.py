"""Activations kept on disk: one safetensors shard after the other, each written whole or not at all.

Lives here: ``ActivationCache`` and ``fingerprint``. Does not live here: how activations are computed.
``activations.json`` says what they are of; a folder that holds others is refused by the field that differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.io.atomic import write_json

__all__ = ["ActivationCache", "fingerprint"]

_KIND, _VERSION = "activation-shard", 1
_SHARD_ENTRIES = 1 << 21  # 8 MiB of float32 per shard, whatever the width


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """One hash over names, dtypes, shapes and all values of NumPy arrays or tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in arrays.items():
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


class ActivationCache:
    """A folder of shards for one model, module and sequence of windows.

    Parameters
    ----------
    folder : made if missing.
    state : what the activations are of; a folder made for another state is refused.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any]):
        self.folder, self.state = folder, {"kind": _KIND, "version": _VERSION, **state}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cache: cannot make the folder {str(folder)!r} ({error.strerror})") from error
        note = folder / "activations.json"
        if note.exists():
            self._compare(note)
        elif any(folder.iterdir()):
            raise InputError(f"cache: {str(folder)!r} holds other files, want an empty or new folder")
        else:
            write_json(note, self.state)

    def _compare(self, note: Path) -> None:
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cache: {note} cannot be read ({error}), want a folder of this cache") from error
        for key, want in self.state.items():
            came = found.get(key) if isinstance(found, dict) else None
            if came != want:
                raise InputError(
                    f"cache: {str(self.folder)!r} was made with {key} {came!r}, now it is {want!r}; want another folder"
                )

    def through(
        self, plan: Sequence[Any], compute: Callable[[Any], tuple[Tensor, np.ndarray]]
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """What ``compute`` gives for every step of the plan, in order: read where it is stored, else stored."""
        step = shard = 0
        while step < len(plan):
            path = self.folder / f"shard-{shard:06d}.safetensors"
            if path.exists():
                tensors, meta = artefacts.load(path, _KIND, version=_VERSION, backend="torch")
                if meta.get("first") != step or not isinstance(meta.get("steps"), int) or meta["steps"] < 1:
                    raise InputError(f"cache: {path} belongs elsewhere, want the shard that starts at step {step}")
                step += meta["steps"]
                yield tensors["rows"], tensors["documents"].numpy()
            else:
                first, parts = step, []
                while step < len(plan) and sum(part[0].numel() for part in parts) < _SHARD_ENTRIES:
                    parts.append(compute(plan[step]))
                    step += 1
                rows, documents = torch.cat([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
                content = {"rows": rows, "documents": documents}
                artefacts.save(path, content, {"first": first, "steps": step - first}, _KIND, _VERSION)
                yield rows, documents
            shard += 1

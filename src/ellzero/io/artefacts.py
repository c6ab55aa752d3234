"""One-file artefacts: safetensors with JSON in its metadata, a format version, and a hash per tensor.

Lives here: ``save``, ``load`` and ``inspect``. Does not live here: what a kind of artefact holds (its wing knows),
nor artefacts of many files (``manifest``). Equal content gives equal bytes; nothing is pickled.
Any safetensors reader opens the files; ours also notices a single changed byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_choice, check_integer, suggestion
from ellzero.io import container
from ellzero.io.atomic import writing
from ellzero.io.versions import bring_forward, check_version

__all__ = ["inspect", "load", "save"]

FORMAT = 1
_KEY = "ellzero"


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def canonical_json(name: str, value: Any) -> str:
    """``value`` as JSON with sorted keys; refuses what would not come back the same (tuples come back as lists)."""
    _check_json(name, value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{name}: got the key {key!r} ({type(key).__name__}), want text")
            _check_json(f"{name}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _check_json(f"{name}[{place}]", item)
    elif isinstance(value, float):
        if not np.isfinite(value):
            raise InputError(f"{name}: got {value}, want a finite number")
    elif value is not None and not isinstance(value, str | bool | int):
        raise InputError(f"{name}: got {type(value).__name__}, want text, numbers, lists and dictionaries (JSON)")


def save(
    path: str | os.PathLike, tensors: Mapping[str, Any], meta: Mapping[str, Any], kind: str, version: int = 1
) -> None:
    """Write tensors and a dictionary to one file, whole or not at all.

    Parameters
    ----------
    tensors : NumPy arrays or torch tensors by name; any shape, bfloat16 and float8 included, values as they are.
    meta : whatever JSON holds; tuples come back as lists.
    kind : what the file is, such as ``"sparse-autoencoder"``; ``load`` asks for it.
    version : the kind's format version, from 1.
    """
    check_integer("version", version, at_least=1)
    if not isinstance(kind, str) or not kind:
        raise InputError(f"kind: got {kind!r}, want a word such as 'sparse-autoencoder'")
    if not isinstance(meta, Mapping):
        raise InputError(f"meta: got {type(meta).__name__}, want a dictionary")
    if not isinstance(tensors, Mapping):
        raise InputError(f"tensors: got {type(tensors).__name__}, want a dictionary of arrays by name")
    for name in tensors:
        if not isinstance(name, str) or not name or name == "__metadata__":
            raise InputError(f"tensors: got the name {name!r}, want text other than '' and '__metadata__'")
    raw = {name: container.as_bytes(f"tensors[{name!r}]", tensor) for name, tensor in tensors.items()}
    places = container.layout({name: (dtype, shape) for name, (dtype, shape, _) in raw.items()})
    record = {
        "format": FORMAT,
        "kind": kind,
        "version": int(version),
        "meta": json.loads(canonical_json("meta", dict(meta))),
        "hashes": {name: _digest(content) for name, (_, _, content) in raw.items()},
    }
    header = _encode(places, record)
    with writing(path) as file:
        file.write(header)
        for name in places:
            file.write(raw[name][2])


def _encode(places: Mapping[str, container.Place], record: dict[str, Any]) -> bytes:
    """The header, which carries a hash of itself."""
    body = {key: value for key, value in record.items() if key != "check"}
    check = _digest(container.encode_header(places, {_KEY: json.dumps(body, sort_keys=True)}))
    return container.encode_header(places, {_KEY: json.dumps({**body, "check": check}, sort_keys=True)})


def _open(path: str | os.PathLike, kind: str | None) -> tuple[container.Header, dict[str, Any]]:
    header = container.parse(path)
    if set(header.metadata) != {_KEY}:
        raise InputError(f"{path}: is a safetensors file that ellzero did not write, or its header is damaged")
    try:
        record = json.loads(header.metadata[_KEY])
        newest, own, version = record["format"], record["kind"], record["version"]
        if type(newest) is not int or type(version) is not int:
            raise ValueError("versions that are not whole numbers")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: the header is damaged ({error})") from error
    if newest > FORMAT:
        raise InputError(
            f"{path}: has file format {newest}, written by a newer ellzero; this one reads up to {FORMAT}: update it"
        )
    # Whatever changed in the header, its length included, shows here: there is one encoding, and it holds its own hash.
    if _encode(header.places, record)[8:] != header.raw or set(record.get("hashes", ())) != set(header.places):
        raise InputError(f"{path}: the header is damaged (its hash does not match)")
    if kind is not None and own != kind:
        raise InputError(f"{path}: holds {own!r}, want {kind!r}{suggestion(own, [kind])}")
    return header, record


def inspect(path: str | os.PathLike) -> dict[str, Any]:
    """Kind, version, meta, and dtype and shape per tensor, read from the header alone."""
    header, record = _open(path, None)
    shapes = {name: (place.dtype, place.shape) for name, place in header.places.items()}
    return {"kind": record["kind"], "version": record["version"], "meta": record["meta"], "tensors": shapes}


def load(
    path: str | os.PathLike, kind: str, *, version: int = 1, backend: str = "numpy"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read ``(tensors, meta)`` from one file, with every hash checked.

    Parameters
    ----------
    kind : what the file must be.
    version : the newest version that the caller understands; older ones are brought to it step by step.
    backend : ``"numpy"`` or ``"torch"``; bfloat16 and float8 need torch.

    Raises
    ------
    InputError : a missing, torn, changed or foreign file, another kind, or a newer version.
    """
    check_choice("backend", backend, ("numpy", "torch"))
    check_integer("version", version, at_least=1)
    header, record = _open(path, kind)
    check_version(path, kind, record["version"], version)
    tensors: dict[str, Any] = {}
    with open(path, "rb") as file:
        for name, place in header.places.items():
            array = container.read(file, header, name)
            if _digest(array.reshape(-1).view(np.uint8)) != record["hashes"][name]:
                raise InputError(f"{path}: tensor {name!r} is damaged (its hash does not match)")
            if backend == "torch":
                tensors[name] = container.to_torch(array, place)
            elif place.dtype in container.TORCH_ONLY:
                raise InputError(
                    f"{path}: tensor {name!r} is {place.dtype}, which NumPy cannot hold; use backend='torch'"
                )
            else:
                tensors[name] = array
    return bring_forward(path, kind, record["version"], version, tensors, record["meta"])

"""The safetensors layout: eight bytes of header length, a JSON header, then the raw tensors.

Lives here: ``parse``, ``read`` and ``write`` for NumPy and torch, bfloat16 and float8 included, one tensor in memory
at a time. Does not live here: what a file means (``artefacts``), or a reader of a user's matrix (``readers``).
Written out rather than called, because artefacts hash each tensor as it passes, and NumPy has no bfloat16.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ellzero.errors import InputError, require

__all__ = ["Header", "Place", "as_bytes", "layout", "parse", "read", "regular_file"]

NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
TORCH_ONLY = {"BF16": ("bfloat16", "<i2"), "F8_E4M3": ("float8_e4m3fn", "u1"), "F8_E5M2": ("float8_e5m2", "u1")}
"""Names in the file to names in torch, with the integer dtype of the same width that carries the bits."""

_FROM_NUMPY = {np.dtype(code).newbyteorder("="): name for name, code in NUMPY.items()}
_HEADER_LIMIT = 100_000_000  # the format's own bound; a longer one is a foreign or damaged file


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: its dtype by the format's name, its shape, and its bytes within the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def raw_dtype(self) -> np.dtype:
        """The NumPy dtype that carries the bits."""
        return np.dtype(NUMPY[self.dtype] if self.dtype in NUMPY else TORCH_ONLY[self.dtype][1])


@dataclass(frozen=True)
class Header:
    """A parsed header: the tensors' places by name, the free metadata, and where the data part starts."""

    places: Mapping[str, Place]
    metadata: Mapping[str, str]
    start: int
    raw: bytes


def as_bytes(name: str, tensor: Any) -> tuple[str, tuple[int, ...], np.ndarray]:
    """``(dtype name, shape, bytes)`` of a NumPy array or torch tensor, on the CPU and in C order."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.layout != torch.strided:
            raise InputError(
                f"{name}: got a tensor of layout {tensor.layout}, want a dense one; save its parts by name"
            )
        tensor = tensor.detach().cpu().contiguous()
        for label, (own, carrier) in TORCH_ONLY.items():
            if str(tensor.dtype) == f"torch.{own}":
                integers = torch.int16 if carrier == "<i2" else torch.uint8
                flat = tensor.reshape(-1).view(integers).numpy()
                return label, tuple(tensor.shape), flat.view(np.uint8)
        if tensor.is_complex():
            raise InputError(f"{name}: got dtype {tensor.dtype}, which the format does not hold; save real and imag")
        tensor = tensor.numpy()
    if not isinstance(tensor, np.ndarray | np.generic):
        raise InputError(f"{name}: got {type(tensor).__name__}, want a NumPy array or a torch tensor")
    array = np.asarray(tensor)
    label = _FROM_NUMPY.get(array.dtype.newbyteorder("="))
    if label is None:
        raise InputError(f"{name}: got dtype {array.dtype}, want boolean, integer or floating point")
    flat = np.ascontiguousarray(array, dtype=NUMPY[label]).reshape(-1)
    return label, array.shape, flat.view(np.uint8)


def layout(sizes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Place]:
    """Places for tensors given as ``name: (dtype name, shape)``: wide dtypes first, so that each is aligned."""
    widths = {name: np.dtype(NUMPY.get(d) or TORCH_ONLY[d][1]).itemsize for name, (d, _) in sizes.items()}
    places, stop = {}, 0
    for name in sorted(sizes, key=lambda name: (-widths[name], name)):
        dtype, shape = sizes[name]
        start, stop = stop, stop + widths[name] * math.prod(shape)
        places[name] = Place(dtype, tuple(shape), start, stop)
    return places


def encode_header(places: Mapping[str, Place], metadata: Mapping[str, str]) -> bytes:
    """The one header that we write for these places and metadata: sorted, without spaces, padded to eight bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, place in places.items():
        entries[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [place.start, place.stop]}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def regular_file(path: str | os.PathLike) -> Path:
    """The path, if it names a readable regular file."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, want a file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is not a regular file")
    return path


def parse(path: str | os.PathLike) -> Header:
    """Read and check the header: every offset lies in the file, and the tensors fill it without gap or overlap."""
    path = regular_file(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise InputError(f"{path}: is not a safetensors file, or is cut short ({size} bytes)")
            raw = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        entries = json.loads(raw, object_pairs_hook=_unique)
        metadata = entries.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        places = {name: _place(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: the header of the safetensors file is damaged ({error})") from error
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)):
        if place.start != end:
            raise InputError(f"{path}: tensor {name!r} starts at byte {place.start} of the data, want {end}: damaged")
        end = place.stop
    if 8 + length + end != size:
        raise InputError(f"{path}: has {size} bytes, its header describes {8 + length + end}: cut short or damaged")
    return Header(places, metadata, 8 + length, raw)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _place(entry: dict[str, Any]) -> Place:
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(entry) != 3 or (dtype not in NUMPY and dtype not in TORCH_ONLY):
        raise ValueError(f"unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError("sizes that are not whole numbers")
    place = Place(dtype, tuple(shape), start, stop)
    if math.prod(shape) * place.raw_dtype().itemsize != stop - start:
        raise ValueError(f"shape {shape} of {dtype} does not take {stop - start} bytes")
    return place


def read(file: BinaryIO, header: Header, name: str) -> np.ndarray:
    """The bits of one tensor as a fresh array of ``place.raw_dtype()``."""
    place = header.places[name]
    array = np.empty(place.shape, place.raw_dtype())
    file.seek(header.start + place.start)
    view = memoryview(array.reshape(-1).view(np.uint8))
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise InputError(f"{getattr(file, 'name', 'file')}: ends within tensor {name!r}: cut short")
        done += count
    return array


def to_torch(array: np.ndarray, place: Place) -> Any:
    """A torch tensor over the array's memory, with the dtype that the file names."""
    torch = require("torch", "torch")
    tensor = torch.from_numpy(array)
    if place.dtype in TORCH_ONLY:
        return tensor.view(getattr(torch, TORCH_ONLY[place.dtype][0]))
    return tensor


def widen(array: np.ndarray, place: Place, name: str) -> np.ndarray:
    """The array, with bfloat16 bits widened to float32 (exact: it is float32 with the low half cut off)."""
    if place.dtype == "BF16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(place.shape)
    if place.dtype in TORCH_ONLY:
        raise InputError(f"{name}: has dtype {place.dtype}, which NumPy cannot hold; convert it to float32 first")
    return array

"""Sparse weights on disk: compressed rows where they are smaller, and the network rebuilt from them.

Lives here: ``pack``, ``unpack``, ``nbytes`` of the stored tensors. Does not live here: layouts that run fast, the file
format (``io.artefacts``), which weights are sparse (``sparsifier``).
A packed weight is three tensors, ``NAME:values``, ``NAME:columns`` (int16 or int32) and ``NAME:rows`` (int32 pointers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ellzero.errors import InputError

__all__ = ["nbytes", "pack", "unpack"]

_PARTS = ("values", "columns", "rows")


def _compress(weight: Tensor) -> dict[str, Tensor]:
    """The nonzero entries by row, further axes flattened into the columns."""
    rows = weight.reshape(weight.shape[0], -1)
    place, column = rows.nonzero(as_tuple=True)
    pointers = torch.zeros(rows.shape[0] + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(place, minlength=rows.shape[0]).cumsum(0)
    small = torch.int16 if rows.shape[1] <= 2**15 else torch.int32
    return {"values": rows[place, column].contiguous(), "columns": column.to(small), "rows": pointers}


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors as stored, without file headers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """A state dict with each weight in compressed rows where that is smaller, and the shapes of those.

    A tensor stored under several names (tied weights) is stored under each.
    """
    tensors, shapes = {}, {}
    for name, value in state.items():
        plain = value.detach().cpu().contiguous()
        compressed = _compress(plain) if plain.ndim >= 2 and plain.is_floating_point() else {}
        if compressed and nbytes(compressed) < nbytes({name: plain}):
            shapes[name] = list(plain.shape)
            tensors |= {f"{name}:{part}": compressed[part] for part in _PARTS}
        else:
            tensors[name] = plain.clone()
    return tensors, shapes


def unpack(tensors: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The inverse of ``pack``, to the bit (a negative zero comes back as zero).

    Raises
    ------
    InputError : a part that is missing, or indices that do not fit the shape.
    """
    packed = {f"{name}:{part}" for name in shapes for part in _PARTS}
    state = {name: value for name, value in tensors.items() if name not in packed}
    for name, shape in shapes.items():
        missing = [part for part in _PARTS if f"{name}:{part}" not in tensors]
        if missing:
            raise InputError(f"{name}: {missing[0]} is missing, want {', '.join(_PARTS)}")
        values, columns, pointers = (tensors[f"{name}:{part}"] for part in _PARTS)
        counts, width = pointers.long().diff(), math.prod(shape[1:])
        wrong = len(counts) != shape[0] or int(pointers[0]) != 0 or bool((counts < 0).any())
        wrong = wrong or not len(values) == len(columns) == int(pointers[-1])
        if wrong or (len(columns) and (int(columns.min()) < 0 or int(columns.max()) >= width)):
            raise InputError(f"{name}: its compressed rows do not fit the shape {tuple(shape)}")
        dense = torch.zeros(shape[0], width, dtype=values.dtype)
        dense[torch.arange(shape[0]).repeat_interleave(counts), columns.long()] = values
        state[name] = dense.reshape(shape)
    return state

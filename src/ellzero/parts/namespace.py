"""The array library behind an array: parts are written once for NumPy and torch.

Lives here: ``namespace``, and the few functions whose names differ between the two. Does not live here: any part.
torch is never imported here unless the caller's array is already a tensor.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from ellzero.errors import check_array

__all__ = ["floating", "is_torch", "like", "namespace", "sort_descending", "unwrap"]


def is_torch(x: Any) -> bool:
    """Whether ``x`` is a torch tensor (false, without importing torch, if torch is not loaded)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(*arrays: Any) -> ModuleType:
    """``torch`` if any argument is a tensor, else ``numpy``; dtype and device follow the input.

    Only functions that both spell alike are used on it: ``where``, ``sign``, ``clip``, ``sqrt``, ``exp``, ``log``,
    ``log1p``, ``abs``, ``zeros_like``, ``ones_like``, ``cumsum(x, axis)``, ``sum(axis=)``, ``isfinite``, ...
    """
    return sys.modules["torch"] if any(is_torch(x) for x in arrays) else np


def floating(name: str, x: Any) -> Any:
    """``x`` as a floating-point array: tensors and arrays as they are, Python numbers as float64, others refused."""
    if isinstance(x, float | int) and not isinstance(x, bool):
        return np.asarray(x, dtype=np.float64)
    return check_array(name, x, dtypes="f", finite=False, allow_empty=True)


def like(x: Any, value: Any) -> Any:
    """``value`` in the library, dtype and device of ``x``; no copy where it already is."""
    if not is_torch(x):
        return np.asarray(value.detach().cpu() if is_torch(value) else value, dtype=x.dtype)
    torch = sys.modules["torch"]
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = value.copy()  # torch warns about tensors that share read-only memory
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def unwrap(x: Any) -> Any:
    """A zero-dimensional NumPy array as a NumPy scalar; anything else as it is."""
    return x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x


def sort_descending(x: Any, axis: int = -1) -> Any:
    """The entries along ``axis`` from largest to smallest."""
    if is_torch(x):
        return x.sort(dim=axis, descending=True).values
    return np.flip(np.sort(x, axis=axis), axis=axis)

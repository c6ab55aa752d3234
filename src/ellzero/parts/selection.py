"""The largest entries as boolean masks, exact and with ties to the lowest index, for NumPy and torch.

Lives here: what the constraints share: checks of scores and axes, and the masks by row and over a whole array.
Does not live here: any constraint, nor the row top-k itself (``ellzero.kernels``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ellzero import kernels
from ellzero.errors import InputError, check_array
from ellzero.parts.namespace import is_torch, namespace

__all__ = ["check_axis", "check_scores", "largest", "largest_of_all"]


def check_scores(name: str, x: Any, *, scalars: bool = False) -> Any:
    """``x`` if it is a floating-point array with an axis and without NaN (infinities pass), else ``InputError``.

    One pass: the maximum is NaN exactly if an entry is. Under ``torch.compile`` values cannot be looked at.
    """
    check_array(name, x, dtypes="f", finite=False, allow_empty=True)
    if x.ndim == 0 and not scalars:
        raise InputError(f"{name}: got a scalar, want an array with at least one axis")
    if math.prod(x.shape) and not (is_torch(x) and namespace(x).compiler.is_compiling()):
        top = x.detach().max() if is_torch(x) else x.max()
        if top != top:
            raise InputError(f"{name}: {int((x != x).sum())} of {math.prod(x.shape)} entries are NaN, want numbers")
    return x


def check_axis(axis: int, ndim: int, name: str = "axis") -> int:
    """``axis`` counted from the front."""
    if not -ndim <= axis < ndim:
        raise InputError(f"{name}: got {axis} for an array of {ndim} axes, want {-ndim} to {ndim - 1}")
    return axis % ndim


def largest(rows: Any, k: int | tuple[int, ...]) -> Any:
    """True at the ``k`` largest of each row (last axis). A tuple gives each row of ``[rows, n]`` its own count."""
    top = max(k, default=0) if isinstance(k, tuple) else k
    if is_torch(rows):
        from ellzero.kernels import torch_ops

        torch = namespace(rows)
        indices = torch_ops.top_k(rows.detach(), top).indices
        counts = torch.as_tensor(k, device=rows.device)[..., None]
        true = (torch.arange(top, device=rows.device) < counts).expand(indices.shape)
        return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device).scatter(-1, indices, true)
    indices = kernels.top_k(rows, top).indices
    kept = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(kept, indices, np.arange(top) < np.asarray(k)[..., None], axis=-1)
    return kept


def largest_of_all(x: Any, count: int) -> Any:
    """True at the ``count`` largest entries of the whole array; ties keep the entry that comes first in C order.

    Goes by the value of the last one kept: everything above it, then as many of its equals as are still missing.
    """
    flat = (x.detach() if is_torch(x) else x).reshape(-1)
    if count == 0 or count == flat.shape[0]:
        full = abs(flat) >= 0 if count else flat != flat
        return full.reshape(x.shape)
    bound = _last_kept(flat, count)
    above = flat > bound
    equal = namespace(x).where(flat == bound)[0]
    above[equal[: count - int(above.sum())]] = True
    return above.reshape(x.shape)


def _last_kept(flat: Any, count: int) -> Any:
    """The ``count``-th largest value. On the CPU NumPy's quickselect is ten times as fast as torch's topk."""
    if is_torch(flat):
        if flat.device.type != "cpu":
            return flat.topk(count, sorted=False).values.min()
        wide = flat.float() if flat.element_size() < 4 else flat  # bfloat16 is unknown to NumPy; widening is exact
        flat = wide.numpy()
    above = flat[flat > flat.min()]  # a crowd of equals, as rectified scores have, slows the quickselect twentyfold
    flat = above if above.size >= count else flat
    return np.partition(flat, flat.size - count)[flat.size - count].item()

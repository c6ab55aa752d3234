"""Plain NumPy references of the compiled kernels.

Lives here: for each kernel, the shortest code that is obviously right; it is the oracle of the tests and the path
taken where no compiled module is live. Does not live here: anything tuned, argument checks, or torch.
"""

from __future__ import annotations

import numpy as np

__all__ = ["top_k"]


def top_k(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest entries of each row (last axis) by a stable sort.

    Values descend; equal values keep the order of their indices (``-0.0`` equals ``0.0``); NaN comes after every
    number, also after ``-inf``. Integers of any sign and width are ordered without overflow.

    Returns
    -------
    values, indices : ``[..., k]`` of the dtype of ``x`` and int64.
    """
    x = np.asarray(x)
    key = -x if x.dtype.kind == "f" else ~x  # ~x = -1 - x reverses integers and booleans without overflow
    indices = np.argsort(key, axis=-1, kind="stable")[..., :k].astype(np.int64)
    return np.take_along_axis(x, indices, axis=-1), indices

"""From weights to whole numbers: documents to 1..255, queries to 15 bits, each with its unit.

Lives here: the checks of a matrix of weights, and both roundings. Does not live here: what is stored (``segments``).
A weight above zero never becomes zero: a posting that vanished would change which documents match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check

__all__ = ["Queries", "as_matrix", "as_queries", "impact_scale", "quantise"]

LARGEST_WEIGHT = 32767
LARGEST_SCORE = 2**31 - 1


def as_matrix(name: str, X: Any, terms: int | None = None) -> sparse.csr_array:
    """A CSR matrix of finite weights, zero or more, without stored zeros or duplicates; a copy where it must change."""
    if isinstance(X, np.ndarray) and X.ndim == 2:
        X = sparse.csr_array(X)
    if not sparse.issparse(X) or X.ndim != 2:
        raise InputError(f"{name}: got {type(X).__name__}, want a sparse or dense matrix with a row per text")
    if X.dtype.kind not in "biuf":
        raise InputError(f"{name}: got dtype {X.dtype}, want numbers")
    if terms is not None and X.shape[1] != terms:
        raise InputError(f"{name}: got {X.shape[1]} columns, want the {terms} terms of the index")
    given, X = X, sparse.csr_array(X)
    if not X.has_canonical_format or (X.data == 0).any():
        X = X.copy() if X is given or np.shares_memory(X.data, getattr(given, "data", X.data)) else X
        X.sum_duplicates()
        X.eliminate_zeros()
    if len(X.data):
        low = X.data.min()
        if not (low >= 0 and np.isfinite(X.data.max())):
            kind = "is negative" if low < 0 else "is not finite"
            bad = np.flatnonzero(~((X.data >= 0) & np.isfinite(X.data)))[0]
            row = int(np.searchsorted(X.indptr, bad, side="right")) - 1
            raise InputError(f"{name}: row {row}, column {X.indices[bad]} {kind} ({X.data[bad]}), want finite weights "
                             "of zero or more")  # fmt: skip
    return X


def impact_scale(X: sparse.csr_array, levels: int) -> float:
    """The weight of one level: 1 where all are whole numbers up to ``levels``, else the largest over ``levels``."""
    if not len(X.data):
        return 1.0
    top = float(X.data.max())
    if top <= levels and (X.dtype.kind in "biu" or not np.any(X.data != np.rint(X.data))):
        return 1.0
    return top / levels


def quantise(name: str, X: sparse.csr_array, scale: float, levels: int) -> sparse.csr_array:
    """Weights in units of ``scale``, rounded to 1..levels.

    Raises
    ------
    InputError : a weight that is more than ``levels`` units; it names the scale that would do.
    """
    top = float(X.data.max(initial=0))
    if top > scale * (levels + 0.5):
        raise InputError(
            f"{name}: got a weight of {top:.6g}, and the index holds up to {levels * scale:.6g}; "
            f"want an index that was built with scale={top / levels:.6g} or more"
        )
    if X.dtype == np.uint8 and scale == 1:
        return X
    step = np.float64(1 / scale) if X.dtype == np.float64 else np.float32(1 / scale)
    whole = np.rint(X.data * step)
    data = np.clip(whole, 1, levels, out=whole).astype(np.uint8)
    return sparse.csr_array((data, X.indices, X.indptr), shape=X.shape)


class Queries(NamedTuple):
    """A batch of queries in whole numbers; a score times ``unit`` of its query is in units of the documents' levels."""

    ptr: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    unit: np.ndarray

    def __len__(self) -> int:
        return len(self.unit)


def as_queries(Q: Any, terms: int, columns: Mapping[str, int] | None, beta: float = 1.0) -> Queries:
    """Queries from a matrix ``[queries, terms]``, or from dictionaries of weights by term; unknown terms are dropped.

    Whole numbers up to 32767 are taken as they are; other weights are scaled so that the largest is 32767, or what
    keeps a score within 31 bits. ``beta`` keeps the share of a query's terms with the largest weights.
    """
    check("beta", beta, above=0, at_most=1)
    if isinstance(Q, Mapping):
        raise InputError("Q: got one dictionary, want a list of queries")
    if isinstance(Q, Sequence) and not isinstance(Q, str) and all(isinstance(query, Mapping) for query in Q):
        Q = _from_dictionaries(Q, terms, columns)
    Q = as_matrix("Q", Q)
    row, term, value = np.repeat(np.arange(Q.shape[0]), np.diff(Q.indptr)), Q.indices, Q.data.astype(np.float64)
    known = term < terms
    if beta < 1:
        known &= _strongest(row, term, value, known, beta)
    if not known.all():
        row, term, value = row[known], term[known], value[known]
    ptr = np.searchsorted(row, np.arange(Q.shape[0] + 1)).astype(np.int64)
    weights, unit = _whole(ptr, row, value)
    return Queries(ptr, term.astype(np.int32), weights.astype(np.int32), unit)


def _strongest(row: np.ndarray, term: np.ndarray, value: np.ndarray, known: np.ndarray, beta: float) -> np.ndarray:
    """Which entries are among the share ``beta`` of their row's known terms with the largest weights."""
    order = np.lexsort((term, -value, ~known, row))
    place = np.arange(len(row)) - np.searchsorted(row, row)  # rows stand side by side before and after sorting
    count = np.bincount(row[known], minlength=int(row.max(initial=-1)) + 1)
    kept = np.zeros(len(row), bool)
    kept[order] = place < np.ceil(beta * count)[row]
    return kept


def _whole(ptr: np.ndarray, row: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole weights, and what one of them stands for in each query."""
    unit = np.ones(len(ptr) - 1)
    filled = np.flatnonzero(np.diff(ptr))
    if not len(filled):
        return value, unit
    count = np.diff(ptr)[filled]
    top, total = np.maximum.reduceat(value, ptr[filled]), np.bincount(row, value)[filled]
    broken = np.add.reduceat(value != np.rint(value), ptr[filled], dtype=np.int64) > 0
    fits = LARGEST_SCORE // 255
    scaled = broken | (top > LARGEST_WEIGHT) | (total > fits)
    if not scaled.any():
        return value, unit
    steps = np.minimum(LARGEST_WEIGHT, (fits - count) * top / total)
    if (scaled & (steps < 1)).any():
        raise InputError(f"Q: a query has {count[scaled & (steps < 1)][0]} terms, want at most {fits // 2}")
    unit[filled[scaled]] = (top / steps)[scaled]
    by, changes = np.ones(len(unit)), np.zeros(len(unit), bool)
    by[filled], changes[filled] = steps / top, scaled
    return np.where(changes[row], np.maximum(np.floor(value * by[row] + 0.5), 1), value), unit


def _from_dictionaries(Q: Sequence[Mapping], terms: int, columns: Mapping[str, int] | None) -> sparse.csr_array:
    ptr, found, weights = [0], [], []
    for query in Q:
        for term, weight in query.items():
            column = term if isinstance(term, int) else (columns or {}).get(term)
            if isinstance(term, str) and columns is None:
                raise InputError(f"Q: got the term {term!r}, and the index has no vocabulary; want column numbers")
            if column is not None and 0 <= column < terms:
                found.append(column)
                weights.append(weight)
        ptr.append(len(found))
    data = np.array(weights, np.float64)
    return sparse.csr_array((data, np.array(found, np.int64), np.array(ptr, np.int64)), shape=(len(Q), terms))

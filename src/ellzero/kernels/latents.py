"""Sparse codes and the rows of a dictionary that they use: the compiled kernels where they are live, else references.

Lives here: the face on NumPy arrays and the plain references. Does not live here: tensors and derivatives
(``torch_latents``), the loops (``csrc/latents.hpp``), autoencoders.
A code is ``values [B, k]`` and ``indices [B, k]``; the dictionary is ``W [m, d]``, one row per latent. An entry whose
value is zero is absent: its row is not read. Results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.kernels import reference
from ellzero.kernels._dispatch import CHOICE

__all__ = [
    "RULES", "Code", "accumulate_rows", "decode_rows", "nested_errors", "nested_gradient", "rows_dot", "select_rows",
]  # fmt: skip

RULES = ("relu", "signed", "absolute")
"""What a selection ranks and keeps: the largest, rectified; the largest, as they are; the largest in size, signed."""


class Code(NamedTuple):
    """The entries of each row in use and the latents they belong to (int64); absent ones are zeros of latent 0."""

    values: np.ndarray
    indices: np.ndarray


def select_rows(
    pre: np.ndarray, k: int, rule: str = "relu", *, bias: np.ndarray | None = None, counts: np.ndarray | None = None,
    n_threads: int | None = None,
) -> Code:  # fmt: skip
    """The ``k`` entries of each row of ``pre + bias`` that the rule wants, best first; ties keep the lowest index.

    Parameters
    ----------
    pre : ``[B, m]`` float32 or float64.
    rule : ``"relu"``: the largest, of which those that are not positive become zeros of latent 0; ``"signed"``: the
        largest; ``"absolute"``: the largest in size, with their signs.
    bias : ``[m]``, added first.
    counts : int64 ``[B]``: of each row only so many (at most k) are kept.

    Raises
    ------
    InputError : wrong kinds or shapes; k outside ``[0, m]``; counts outside ``[0, k]``; an unknown rule.
    """
    pre = _floating("pre", pre)
    k = check_integer("k", k, at_least=0, at_most=pre.shape[1])
    check_choice("rule", rule, RULES)
    bias = None if bias is None else _like("bias", bias, pre, (pre.shape[1],))
    counts = None if counts is None else _counts(counts, len(pre), k)
    if CHOICE.module is None:
        return _select(pre, k, rule, bias, counts)
    values, indices = np.empty((len(pre), k), pre.dtype), np.empty((len(pre), k), np.int64)
    CHOICE.module.select_rows(pre, bias, counts, values, indices, RULES.index(rule), _threads(n_threads))
    return Code(values, indices)


def decode_rows(values: np.ndarray, indices: np.ndarray, W: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
    """``out[b] = sum_j values[b, j] W[indices[b, j]]``, shape ``[B, d]``.

    Raises
    ------
    InputError : wrong kinds or shapes, or an index that is no row of ``W``.
    """
    W = _floating("W", W)
    values, indices = _code("values", values, indices, W, len(W))
    if CHOICE.module is None:
        return _decode(values, indices, W)
    out = np.empty((len(values), W.shape[1]), W.dtype)
    CHOICE.module.decode_rows(values, indices, W, out, _threads(n_threads))
    return out


def rows_dot(indices: np.ndarray, W: np.ndarray, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
    """``out[b, j] = <W[indices[b, j]], x[b]>``: the derivative of the decoded rows by the values.

    Raises
    ------
    InputError : wrong kinds or shapes, or an index that is no row of ``W``.
    """
    W = _floating("W", W)
    indices = _indices(indices, len(W))
    x = _like("x", x, W, (len(indices), W.shape[1]))
    if CHOICE.module is None:
        return _rows_dot(indices, W, x)
    out = np.empty(indices.shape, W.dtype)
    CHOICE.module.rows_dot(indices, W, x, out, _threads(n_threads))
    return out


def accumulate_rows(
    coefficients: np.ndarray, indices: np.ndarray, x: np.ndarray, m: int, *, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``out[i] = sum of coefficients[b, j] x[b]`` over the entries of latent i, ``[m, d]``; and the sums of these.

    The derivative of decoded rows by the dictionary, and of pre-activations by an encoder and its bias. The entries
    are sorted by latent once (a counting sort), then each latent is summed by one thread in the order of the rows.

    Raises
    ------
    InputError : wrong kinds or shapes, or an index outside ``[0, m)``.
    """
    x = _floating("x", x)
    m = check_integer("m", m, at_least=0)
    coefficients, indices = _code("coefficients", coefficients, indices, x, m)
    x = _like("x", x, x, (len(indices), x.shape[1]))
    if CHOICE.module is None:
        return _accumulate(coefficients, indices, x, m)
    out, sums = np.empty((m, x.shape[1]), x.dtype), np.empty(m, x.dtype)
    CHOICE.module.accumulate_rows(coefficients, indices, x, out, sums, _threads(n_threads))
    return out, sums


def nested_errors(
    values: np.ndarray, indices: np.ndarray, W: np.ndarray, target: np.ndarray, ends: np.ndarray, *,
    n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """``errors[b, l] = ||target[b] - sum_{j < ends[b, l]} values[b, j] W[indices[b, j]]||^2``, and what all leave.

    One decoding and a running residual, whatever the number of levels.

    Parameters
    ----------
    target : ``[B, d]``.
    ends : int64 ``[B, L]``: how many entries each level holds; they rise along a row.

    Raises
    ------
    InputError : wrong kinds or shapes, an index that is no row of ``W``, or ends that do not rise from 0 to k.
    """
    W = _floating("W", W)
    values, indices = _code("values", values, indices, W, len(W))
    target = _like("target", target, W, (len(values), W.shape[1]))
    ends = _ends(ends, *values.shape)
    if CHOICE.module is None:
        return _nested_errors(values, indices, W, target, ends)
    errors, residual = np.empty(ends.shape, W.dtype), target.copy()
    CHOICE.module.nested_errors(values, indices, W, ends, errors, residual, _threads(n_threads))
    return errors, residual


def nested_gradient(
    values: np.ndarray, indices: np.ndarray, W: np.ndarray, residual: np.ndarray, ends: np.ndarray,
    weights: np.ndarray, *, n_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The derivative of ``sum weights[b, l] errors[b, l]`` by values, ``W`` and target.

    With ``s_i`` the sum of ``2 weights r`` over the levels that hold entry i (a sum over suffixes), that by its row of
    ``W`` is ``-value s_i`` and by its value ``-<W[index], s_i>``. ``residual`` is what ``nested_errors`` returned:
    residuals are taken back from it entry by entry, so nothing of ``B k d`` numbers is kept.

    Raises
    ------
    InputError : as for ``nested_errors``.
    """
    W = _floating("W", W)
    values, indices = _code("values", values, indices, W, len(W))
    residual = _like("residual", residual, W, (len(values), W.shape[1]))
    ends = _ends(ends, *values.shape)
    weights = _like("weights", weights, W, ends.shape)
    if CHOICE.module is None:
        return _nested_gradient(values, indices, W, residual, ends, weights)
    by_values, by_W, by_target = (np.empty(shape, W.dtype) for shape in (values.shape, W.shape, residual.shape))
    CHOICE.module.nested_gradient(
        values, indices, W, residual, ends, weights, by_values, by_W, by_target, _threads(n_threads)
    )
    return by_values, by_W, by_target


# -- plain references


def _select(pre, k, rule, bias, counts) -> Code:
    pre = pre if bias is None else pre + bias
    indices = reference.top_k(abs(pre) if rule == "absolute" else pre, k)[1]
    values = np.take_along_axis(pre, indices, axis=1)
    absent = values <= 0 if rule == "relu" else np.zeros(values.shape, bool)
    if counts is not None:
        absent |= np.arange(k) >= counts[:, None]
    return Code(np.where(absent, 0, values).astype(pre.dtype), np.where(absent, 0, indices))


def _decode(values, indices, W) -> np.ndarray:
    out = np.zeros((len(values), W.shape[1]), W.dtype)
    for j in range(values.shape[1]):
        on = values[:, j] != 0
        out[on] += values[on, j, None] * W[indices[on, j]]
    return out


def _rows_dot(indices, W, x) -> np.ndarray:
    out = np.empty(indices.shape, W.dtype)
    for j in range(indices.shape[1]):
        out[:, j] = (W[indices[:, j]] * x).sum(1)
    return out


def _accumulate(coefficients, indices, x, m) -> tuple[np.ndarray, np.ndarray]:
    out, sums = np.zeros((m, x.shape[1]), x.dtype), np.zeros(m, x.dtype)
    b, j = np.nonzero(coefficients)
    np.add.at(out, indices[b, j], coefficients[b, j, None] * x[b])
    np.add.at(sums, indices[b, j], coefficients[b, j])
    return out, sums


def _nested_errors(values, indices, W, target, ends) -> tuple[np.ndarray, np.ndarray]:
    residual, errors = target.copy(), np.empty(ends.shape, W.dtype)
    for i in range(values.shape[1] + 1):
        errors = np.where(ends == i, (residual * residual).sum(1)[:, None], errors)
        if i < values.shape[1]:
            residual -= _decode(values[:, i, None], indices[:, i, None], W)
    return errors, residual


def _nested_gradient(values, indices, W, residual, ends, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    by_values, by_W, suffix = np.empty_like(values), np.zeros_like(W), np.zeros_like(residual)
    residual = residual.copy()
    for i in range(values.shape[1], -1, -1):
        suffix += 2 * (weights * (ends == i)).sum(1)[:, None] * residual
        if i:
            at, value = indices[:, i - 1, None], values[:, i - 1, None]
            by_values[:, i - 1, None] = -_rows_dot(at, W, suffix)
            by_W -= _accumulate(value, at, suffix, len(W))[0]
            residual += _decode(value, at, W)
    return by_values, by_W, suffix


# -- checks


def _threads(n_threads: int | None) -> int:
    return 0 if n_threads is None else check_integer("n_threads", n_threads, at_least=1)


def _floating(name: str, given: Any) -> np.ndarray:
    array = check_array(name, given, ndim=2, dtypes="f", finite=False, allow_empty=True)
    if array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name}: got {array.dtype}, want float32 or float64")
    return np.ascontiguousarray(array)


def _like(name: str, given: Any, other: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(given)
    if array.dtype != other.dtype or array.shape != shape:
        raise InputError(f"{name}: got {array.dtype} {array.shape}, want {other.dtype} {shape}")
    return np.ascontiguousarray(array)


def _indices(given: Any, m: int) -> np.ndarray:
    indices = np.asarray(given)
    if indices.dtype != np.int64 or indices.ndim != 2:
        raise InputError(f"indices: got {indices.dtype} with {indices.ndim} axes, want int64 [B, k]")
    if indices.size and not (indices.min() >= 0 and indices.max() < m):
        raise InputError(f"indices: got {indices.min()} to {indices.max()}, want latents from 0 to {m - 1}")
    return np.ascontiguousarray(indices)


def _code(name: str, values: Any, indices: Any, W: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    indices = _indices(indices, m)
    return _like(name, values, W, indices.shape), indices


def _counts(given: Any, rows: int, k: int) -> np.ndarray:
    counts = np.asarray(given)
    if counts.dtype != np.int64 or counts.shape != (rows,):
        raise InputError(f"counts: got {counts.dtype} {counts.shape}, want int64 ({rows},)")
    if counts.size and not (counts.min() >= 0 and counts.max() <= k):
        raise InputError(f"counts: got {counts.min()} to {counts.max()}, want 0 to {k}")
    return np.ascontiguousarray(counts)


def _ends(given: Any, rows: int, k: int) -> np.ndarray:
    ends = np.asarray(given)
    if ends.dtype != np.int64 or ends.ndim != 2 or len(ends) != rows:
        raise InputError(f"ends: got {ends.dtype} {ends.shape}, want int64 [{rows}, levels]")
    if ends.size and not (ends.min() >= 0 and ends.max() <= k and (np.diff(ends, axis=1) >= 0).all()):
        raise InputError(f"ends: got {ends.min()} to {ends.max()}, want numbers that rise within 0 to {k}")
    return np.ascontiguousarray(ends)

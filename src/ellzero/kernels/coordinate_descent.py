"""Coordinate descent in Gram space, or on sparse columns: the compiled loops where they are live, else references.

Lives here: the checks, and the plain loops that the compiled ones are held to. Does not live here: working sets, paths
and certificates (``solvers.coordinate_descent``), penalties (``parts``; any object with ``prox`` and ``compiled``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.kernels._dispatch import CHOICE

__all__ = ["Descent", "column_descent", "column_reference", "coordinate_descent", "reference"]


class Descent(NamedTuple):
    """How many sweeps were run, and the largest ``|step| * G_jj`` of the last full one."""

    sweeps: int
    change: float


def coordinate_descent(
    gram: np.ndarray,
    w: np.ndarray,
    gradient: np.ndarray,
    penalty: Any,
    *,
    weights: np.ndarray | None = None,
    tol: float = 1e-8,
    max_sweeps: int = 1000,
) -> Descent:
    """Minimise ``w' G w / 2 - c' w + sum_j weight_j p(w_j)`` cyclically, in place.

    Parameters
    ----------
    gram : ``[m, m]`` C-contiguous, symmetric; its upper left block of the size of ``w`` is G.
    w : ``[size]`` the start; holds the answer afterwards.
    gradient : ``[size]`` ``G w - c`` at the start; kept up to date.
    penalty : has ``prox(x, step, weights)`` and ``compiled``; without a compiled twin the plain loop runs.
    weights : ``[size]`` factor of the penalty per coordinate; 0 leaves it free, infinity forces it to 0.
    tol : ends after a full sweep in which no ``|step| * G_jj`` exceeds it.
    max_sweeps : an upper bound on sweeps, those over the nonzero coordinates included.

    Raises
    ------
    InputError : shapes or dtypes that disagree, a negative ``tol``.
    """
    size = w.shape[0]
    if gram.ndim != 2 or gram.shape[0] < size or gram.shape[1] < size or gradient.shape != w.shape:
        raise InputError(f"gram: got shape {gram.shape} beside w {w.shape} and gradient {gradient.shape}")
    if not gram.dtype == w.dtype == gradient.dtype or w.dtype not in (np.float32, np.float64):
        raise InputError(f"gram: got dtypes {gram.dtype}, {w.dtype}, {gradient.dtype}, want all float32 or all float64")
    check("tol", tol, at_least=0)
    check_integer("max_sweeps", max_sweeps, at_least=0)
    if weights is not None:
        if np.shape(weights) != w.shape:
            raise InputError(f"weights: got shape {np.shape(weights)}, want {w.shape}")
        weights = np.ascontiguousarray(weights, dtype=w.dtype)
    compiled = getattr(penalty, "compiled", None)
    native = CHOICE.module
    if native is None or compiled is None:
        return reference(gram, w, gradient, penalty, weights, tol, max_sweeps)
    name, params = compiled
    positive = bool(getattr(penalty, "positive", False))
    done = native.coordinate_descent(gram, w, gradient, weights, name, list(params), positive, tol, max_sweeps)
    return Descent(*done)


def reference(
    gram: np.ndarray,
    w: np.ndarray,
    gradient: np.ndarray,
    penalty: Any,
    weights: np.ndarray | None,
    tol: float,
    max_sweeps: int,
) -> Descent:
    """The same loop in plain NumPy: full sweeps alternate with sweeps over the nonzero coordinates."""
    size = w.shape[0]
    block = gram[:size, :size]
    curvature = block.diagonal()

    def update(j: int) -> float:
        old = w[j]
        free = curvature[j] > 0
        step = 1 / curvature[j] if free else w.dtype.type(1)
        x = old - gradient[j] / curvature[j] if free else w.dtype.type(0)
        now = penalty.prox(x, float(step)) if weights is None else penalty.prox(x, float(step), weights=weights[j])
        move = now - old
        if move == 0:
            return 0.0
        w[j] = now
        gradient[:] += move * block[j]
        return float(abs(move) * curvature[j])

    return _cyclic(update, w, tol, max_sweeps)


def column_descent(
    columns: Any,
    index: np.ndarray,
    curvature: np.ndarray,
    centring: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    w: np.ndarray,
    residual: np.ndarray,
    penalty: Any,
    *,
    weights: np.ndarray | None = None,
    tol: float = 1e-8,
    max_sweeps: int = 1000,
) -> Descent:
    """Minimise ``|y - X w|^2 / (2 n) + sum_j weights_j p(w_j)`` over some columns of a sparse X, in place.

    Parameters
    ----------
    columns : ``[n, p]`` scipy matrix by columns (CSC); ``index`` ``[size]`` are the columns that take part.
    curvature : ``[size]`` ``|x_j|^2 / n`` (centred where they are).
    centring : ``None``, or ``(means [size], sums [size], ones [n])``: the columns are ``x_j - means_j ones``, which are
        orthogonal to ``ones``, and ``sums`` are ``x_j . ones``.
    w, residual : ``[size]`` the start and ``[n]`` ``y - X w`` there, orthogonal to ``ones``; both in place.
    penalty, weights, tol, max_sweeps : as ``coordinate_descent``.
    """
    if not w.shape == index.shape == curvature.shape or residual.shape != (columns.shape[0],):
        raise InputError(f"index: got shape {index.shape} beside w {w.shape} and residual {residual.shape}")
    weights = None if weights is None else np.ascontiguousarray(weights, dtype=w.dtype)
    compiled = getattr(penalty, "compiled", None)
    native = CHOICE.module
    if native is None or compiled is None:
        return column_reference(columns, index, curvature, centring, w, residual, penalty, weights, tol, max_sweeps)
    name, params = compiled
    positive = bool(getattr(penalty, "positive", False))
    matrix = (columns.data, columns.indices, columns.indptr)
    done = native.column_descent(
        matrix, index, curvature, centring, w, residual, weights, name, list(params), positive, tol, max_sweeps
    )
    return Descent(*done)


def column_reference(columns, index, curvature, centring, w, residual, penalty, weights, tol, max_sweeps) -> Descent:
    """The same loop in plain NumPy, on dense copies of the columns."""
    block = columns[:, index].toarray()
    if centring is not None:
        block = block - np.multiply.outer(centring[2], centring[0])

    def update(j: int) -> float:
        old = w[j]
        gradient = -(block[:, j] @ residual) / len(residual)
        free = curvature[j] > 0
        step = 1 / curvature[j] if free else w.dtype.type(1)
        x = old - gradient / curvature[j] if free else w.dtype.type(0)
        now = penalty.prox(x, float(step)) if weights is None else penalty.prox(x, float(step), weights=weights[j])
        move = now - old
        if move == 0:
            return 0.0
        w[j] = now
        residual[:] -= move * block[:, j]
        return float(abs(move) * curvature[j])

    return _cyclic(update, w, tol, max_sweeps)


def _cyclic(update: Callable[[int], float], w: np.ndarray, tol: float, max_sweeps: int) -> Descent:
    """Full sweeps alternate with sweeps over the nonzero coordinates until a full one changes at most ``tol``."""
    sweeps, change = 0, np.inf
    while sweeps < max_sweeps:
        change = max((update(j) for j in range(len(w))), default=0.0)
        sweeps += 1
        if not change > tol:
            break
        support = np.flatnonzero(w)
        inner = np.inf
        while inner > tol and sweeps < max_sweeps:
            inner = max((update(j) for j in support), default=0.0)
            sweeps += 1
    return Descent(sweeps, float(change))

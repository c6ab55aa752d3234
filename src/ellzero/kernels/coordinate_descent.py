"""Coordinate descent in Gram space on NumPy arrays: the compiled loop where it is live, else the reference.

Lives here: the checks, and the plain loop that the compiled one is held to. Does not live here: working sets, paths
and certificates (``solvers.coordinate_descent``), penalties (``parts``; any object with ``prox`` and ``compiled``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_integer
from ellzero.kernels._dispatch import CHOICE

__all__ = ["Descent", "coordinate_descent", "reference"]


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

    sweeps, change = 0, np.inf
    while sweeps < max_sweeps:
        change = max((update(j) for j in range(size)), default=0.0)
        sweeps += 1
        if not change > tol:
            break
        support = np.flatnonzero(w)
        inner = np.inf
        while inner > tol and sweeps < max_sweeps:
            inner = max((update(j) for j in support), default=0.0)
            sweeps += 1
    return Descent(sweeps, float(change))

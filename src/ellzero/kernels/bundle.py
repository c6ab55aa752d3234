"""Model steps of many L1 problems at once: the compiled loop where it is live, else the reference.

Lives here: the face of the loop and its plain reference. Does not live here: outer steps, certificates and the
choice of columns (``solvers.bundle``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ellzero.errors import InputError
from ellzero.kernels._dispatch import CHOICE

__all__ = ["Metric", "bundle_step", "reference"]


class Metric(NamedTuple):
    """A quadratic model's curvature, shared by problems: ``H = X_J' diag(h) X_J`` with the intercept solved out.

    ``gram`` and ``inverse`` (of H + l2 I, or None) are float32 ``[>= m, >= m]`` in C order, ``columns`` int64 ``[m]``
    positions in a row of w, ``tilt`` float64 ``[m]`` is ``X_J' h`` and ``mass`` is ``sum(h)`` (0: no intercept).
    """

    gram: np.ndarray
    inverse: np.ndarray | None
    columns: np.ndarray
    tilt: np.ndarray
    mass: float


def bundle_step(
    metrics: list[Metric],
    which: np.ndarray,
    own: np.ndarray,
    gradient: np.ndarray,
    gradient0: np.ndarray,
    scale: np.ndarray,
    l1: np.ndarray,
    l2: np.ndarray,
    w: np.ndarray,
    intercept: np.ndarray,
    *,
    accuracy: float = 1e-3,
    max_sweeps: int = 200,
    n_threads: int | None = None,
) -> np.ndarray:
    """Minimise ``g'd + d'Hd / 2 + l2 |w|^2 / 2 + l1 |w|_1`` over w = w0 + d for every row of ``w``, in place.

    Parameters
    ----------
    which : ``[B]`` int64, the metric of each problem.
    own : ``[B, W]`` bool, the columns that each problem uses besides its nonzero ones. Where they are most of the
        metric's, all of those are used, and the inverse if there is one.
    gradient, gradient0 : ``[B, W]`` and ``[B]`` of the losses at ``w``, by w and by the intercept.
    scale : ``[B]`` each problem's curvature in units of its metric's: H is ``scale * gram``.
    w, intercept : ``[B, W]`` and ``[B]`` the start; hold the answer afterwards.
    accuracy : ends when no coordinate moves its slope by more than this share of the first distance to stationarity.
    n_threads : default all; the result does not depend on it.

    Returns
    -------
    ``[B]`` int64 sweeps.

    Raises
    ------
    InputError : shapes that do not fit.
    """
    if (
        not w.shape == own.shape == gradient.shape
        or not which.shape == gradient0.shape == intercept.shape == w.shape[:1]
    ):
        raise InputError(f"w: got shape {w.shape} beside own {own.shape} and gradient {gradient.shape}")
    sweeps = np.zeros(len(w), dtype=np.int64)
    native = CHOICE.module
    if native is None:
        for b in range(len(w)):
            sweeps[b], intercept[b] = reference(
                metrics[which[b]], own[b], gradient[b], gradient0[b], scale[b], l1[b], l2[b], w[b], intercept[b],
                accuracy, max_sweeps,
            )  # fmt: skip
        return sweeps
    native.bundle_step(
        [tuple(metric) for metric in metrics], which, own, gradient, gradient0, scale, l1, l2, accuracy, max_sweeps, w,
        intercept, sweeps, n_threads or 0,
    )  # fmt: skip
    return sweeps


def reference(
    metric: Metric,
    own: np.ndarray,
    gradient: np.ndarray,
    gradient0: float,
    scale: float,
    l1: float,
    l2: float,
    w: np.ndarray,
    intercept: float,
    accuracy: float,
    max_sweeps: int,
) -> tuple[int, float]:
    """One problem in plain NumPy; ``w`` is changed in place. Returns sweeps and the new intercept."""
    picks = np.flatnonzero(own[metric.columns] | (w[metric.columns] != 0))
    if 10 * len(picks) >= 7 * len(metric.columns):
        picks = np.arange(len(metric.columns))
    columns, tilt, mass = metric.columns[picks], scale * metric.tilt[picks], scale * metric.mass
    start = w[columns]
    slope = gradient[columns] + l2 * start - (tilt * (gradient0 / mass) if mass > 0 else 0)
    far = np.where(start != 0, abs(slope + l1 * np.sign(start)), abs(slope) - l1)
    sweeps, tol = 0, accuracy * float(far.max(initial=0.0))
    if tol > 0:
        block = np.ix_(picks, picks)
        if metric.inverse is not None and len(picks) == len(metric.columns):
            inverse = metric.inverse[block] / np.float32(scale)
            sweeps, w[columns] = _box(inverse, start, slope, l1, tol, max_sweeps)
        else:
            gram = metric.gram[block] * np.float32(scale)
            sweeps, w[columns] = _descend(gram, start, slope, l1, l2, tol, max_sweeps)
    if mass > 0:
        intercept -= (gradient0 + tilt @ (w[columns] - start)) / mass
    return sweeps, intercept


def _descend(gram, start, slope, l1, l2, tol, max_sweeps):
    """Coordinate descent; sweeps over the nonzero coordinates alternate with full ones."""
    w, moved = start.copy(), np.zeros(len(start), np.float32)

    def update(j: int) -> float:
        curvature = float(gram[j, j]) + l2
        if not curvature > 0:
            return 0.0
        target = w[j] * curvature - (slope[j] + float(moved[j]) + l2 * (w[j] - start[j]))
        now = np.sign(target) * max(abs(target) - l1, 0.0) / curvature
        step = now - w[j]
        w[j] = now
        moved[:] += np.float32(step) * gram[j]
        return abs(step) * curvature

    sweeps = 0
    while sweeps < max_sweeps:
        change = max(update(j) for j in range(len(w)))
        sweeps += 1
        if not change > tol:
            break
        support, change = np.flatnonzero(w), 2 * tol
        while change > tol and sweeps < max_sweeps:
            change = max((update(j) for j in support), default=0.0)
            sweeps += 1
    return sweeps, w


def _box(inverse, start, slope, l1, tol, max_sweeps):
    """Coordinate descent on the dual ``w = start - M (slope + q)``, ``|q_j| <= l1``, q in the subdifferential of w."""
    q = np.where(start != 0, l1 * np.sign(start), np.clip(-slope, -l1, l1))
    moved = -(inverse @ (slope + q).astype(np.float32))
    sweeps, change = 0, 2 * tol
    while change > tol and sweeps < max_sweeps:
        change = 0.0
        for j in range(len(q)):
            now = start[j] + float(moved[j])
            if abs(q[j]) == l1 and now * q[j] >= 0:
                continue
            target = min(max(q[j] + now / float(inverse[j, j]), -l1), l1)
            step, q[j] = target - q[j], target
            moved -= np.float32(step) * inverse[j]
            change = max(change, abs(step))
        sweeps += 1
    w = start + moved
    return sweeps, np.where((abs(q) == l1) & (w * q > 0), w, 0.0)

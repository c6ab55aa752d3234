"""Descent in Gram space for group penalties: accelerated proximal steps find the groups, Newton steps the values.

Lives here: ``group_descent``, for a quadratic given by its Gram matrix. Does not live here: designs, datafits and
working sets (``prox_newton``), the group penalties (``parts.penalties_group``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigvalsh
from scipy.sparse.linalg import eigsh

from ellzero.errors import InputError, check, check_integer
from ellzero.registry import register

__all__ = ["group_descent"]

_ROUND = 30  # proximal steps between two attempts of Newton's


@register(kind="solver", source="Beck and Teboulle (2009); O'Donoghue and Candes (2015)")
def group_descent(
    gram: np.ndarray, w: np.ndarray, gradient: np.ndarray, penalty: Any, *, tol: float = 1e-8, max_rounds: int = 100
) -> float:
    """Minimise ``w' G w / 2 - c' w + penalty(w)`` in place and return the last distance to optimality.

    Parameters
    ----------
    gram : ``[m, m]`` symmetric, positive semidefinite.
    w : ``[m]`` the start; holds the answer afterwards.
    gradient : ``[m]`` ``G w - c`` at the start; kept up to date.
    penalty : ``GroupL2`` or ``SparseGroup`` on ``[m]``.
    tol : ends when no group's distance to the subdifferential exceeds it.
    max_rounds : of 30 accelerated proximal steps and up to ten Newton steps each.

    Raises
    ------
    InputError : shapes that disagree, a bad ``tol``.
    """
    check("tol", tol, at_least=0)
    check_integer("max_rounds", max_rounds, at_least=1)
    if gram.shape != (len(w), len(w)) or gradient.shape != w.shape:
        raise InputError(f"gram: got shape {gram.shape} beside w {w.shape} and gradient {gradient.shape}")
    lipschitz = _largest_eigenvalue(gram)
    if lipschitz <= 0:
        return 0.0
    for _ in range(max_rounds):
        _accelerated(gram, w, gradient, penalty, lipschitz)
        distance = _distance(w, gradient, penalty)
        if distance <= tol:
            break
        distance = _newton(gram, w, gradient, penalty, tol)
        if distance <= tol:
            break
    return distance


def _distance(w, gradient, penalty) -> float:
    return float(np.max(penalty.subdifferential_distance(w, gradient)))


def _accelerated(gram, w, gradient, penalty, lipschitz) -> None:
    """Proximal steps with momentum that starts again whenever it points uphill."""
    linear = gradient - gram @ w
    ahead, momentum = w.copy(), 1.0
    for _ in range(_ROUND):
        moved = penalty.prox(ahead - (gram @ ahead + linear) / lipschitz, 1 / lipschitz)
        uphill = (ahead - moved) @ (moved - w) > 0
        grown = 1.0 if uphill else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved if uphill else moved + (momentum - 1) / grown * (moved - w)
        w[:], momentum = moved, grown
    gradient[:] = gram @ w + linear


def _newton(gram, w, gradient, penalty, tol) -> float:
    """Newton steps on the groups in use, where the penalty is smooth; the signs of an L1 part are held."""
    ratio = getattr(penalty, "l1_ratio", 0.0)
    labels = np.asarray(penalty._labels(len(w)))
    weights = np.ones(int(labels.max()) + 1) if penalty.weights is None else penalty.weights
    strength = penalty.alpha * (1 - ratio) * np.broadcast_to(weights, (int(labels.max()) + 1,))[labels]
    signed = ratio > 0 or penalty.positive
    each = getattr(penalty, "feature_weights", None)
    each = penalty.alpha * ratio * np.broadcast_to(1.0 if each is None else each, w.shape)
    distance = _distance(w, gradient, penalty)
    for _ in range(10):
        norms = penalty.norms(w)[labels]
        support = np.flatnonzero((w != 0) if signed else (norms > 0) | (strength == 0))
        if distance <= tol or not len(support):
            break
        safe = np.where(norms > 0, norms, 1)[support]
        push, unit = strength[support] / safe, w[support] / safe
        slope = gradient[support] + push * w[support] + each[support] * np.sign(w[support])
        curvature = gram[np.ix_(support, support)]
        curvature[np.diag_indices(len(support))] += push
        for block in _places(labels[support]):
            curvature[np.ix_(block, block)] -= push[block[0]] * np.outer(unit[block], unit[block])
        try:
            step = -cho_solve(cho_factor(curvature, check_finite=False), slope, check_finite=False)
        except LinAlgError:
            break
        if not _moved(gram, w, gradient, penalty, support, step, signed):
            break
        distance = _distance(w, gradient, penalty)
    return distance


def _places(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _moved(gram, w, gradient, penalty, support, step, signed) -> bool:
    """The longest of the steps 1, 1/2, 1/4, ... that keeps the signs, where they are held, and lowers the objective."""
    if not np.isfinite(step).all():
        return False
    before, image = float(penalty.value(w)), step @ gram[support]
    for share in 0.5 ** np.arange(12):
        target = w.copy()
        target[support] += share * step
        if signed and (np.sign(target[support]) != np.sign(w[support])).any():
            continue
        change = (
            share * (step @ (gradient[support] + share / 2 * image[support])) + float(penalty.value(target)) - before
        )
        if change < 0:
            w[:] = target
            gradient += share * image
            return True
    return False


def _largest_eigenvalue(gram: np.ndarray) -> float:
    size = len(gram)
    if size <= 200:
        return float(eigvalsh(gram, subset_by_index=[size - 1, size - 1])[0])
    found = eigsh(gram, k=1, v0=np.ones(size), tol=1e-3, return_eigenvectors=False)
    return 1.002 * float(found[0])

"""Sparse phase retrieval: k-sparse vectors from the sizes of their measurements, ``y = |A x|``.

Lives here: the spectral start, the Newton step on a support chosen by a gradient step, and the solver that joins
them. Real measurements only; x and -x give the same y. Does not live here: recovery from signed measurements
(``hard_thresholding``, ``null_space``), the estimator (``ellzero.linear.recovery_phase``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh, eigvalsh

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.kernels import top_k
from ellzero.registry import register

__all__ = ["PhaseRecovery", "newton_hard_thresholding", "spectral_start"]


@dataclass(frozen=True)
class PhaseRecovery:
    """A k-sparse ``coef`` ``[p]`` with ``|A coef|`` near y; its largest entry is positive, for the sign is not known.

    ``history`` are the relative residuals ``| |A x| - y | / |y|`` from the start on; ``n_iter`` the steps taken;
    ``converged``: x has stopped moving. ``residual`` is the relative residual of ``coef``, the least of them all:
    without noise it says whether the answer is right.
    """

    coef: np.ndarray
    residual: float
    history: np.ndarray
    n_iter: int
    converged: bool


def spectral_start(A: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """The start: ``[p]``, k nonzeros, of length ``sqrt(mean y^2)`` (columns of mean square 1 are assumed).

    The k columns with the largest ``sum_i y_i^2 a_ij^2``, on them the leading eigenvector of ``sum_i y_i^2 a_i a_i'``.
    """
    power = y**2
    support = np.sort(top_k(power @ A**2, k).indices)
    chosen = A[:, support]
    x = np.zeros(A.shape[1])
    x[support] = eigh((chosen.T * power) @ chosen, subset_by_index=(k - 1, k - 1))[1][:, 0]
    return x * np.sqrt(power.mean())


@register(
    id="S055",
    kind="solver",
    source="arXiv:2309.02046",
    wing="linear",
    claim="quadratic convergence: about 6 steps where first-order methods take tens to hundreds",
    example=lambda: newton_hard_thresholding(np.eye(4), np.array([0.0, 2.0, 0.0, 1.0]), 2),
)
def newton_hard_thresholding(
    A: Any, y: Any, k: int, *, step: float = 0.95, tol: float = 1e-8, max_iter: int = 100, start: Any = None
) -> PhaseRecovery:
    """Find a k-sparse x with ``|A x| = y`` by Newton steps on supports chosen by a gradient step.

    With ``z = A x``, repeat: T = the k largest of ``|x - step * g|``, g the gradient of the amplitude loss
    ``f_A = sum (|z_i| - y_i)^2 / (2 m)``; then one Newton step of the intensity loss ``f_I = sum (z_i^2 - y_i^2)^2 /
    (4 m)`` on T, in whose model the entries that leave, J, go to zero: ``H_TT d = H_TJ x_J - grad_T f_I``.

    Parameters
    ----------
    A : ``[m, p]``. Columns are brought to mean square 1 inside; the theory is for independent Gaussian entries.
    y : ``[m]``, at least 0, not all 0.
    k : nonzeros, 1 to p. Ties keep the lowest index.
    step : of the gradient that chooses the support.
    tol : ends when x moves by at most this share of its length. The convergence is quadratic, so that the error then
        is far smaller.
    max_iter : most steps.
    start : ``[p]`` where to begin, in the units of A as given; ``None`` for ``spectral_start``.

    Raises
    ------
    InputError : shapes that do not match, entries that are not finite, negative sizes, numbers out of range.

    Notes
    -----
    Cai, Long, Wen and Ying (2024), "A fast and provable algorithm for sparse phase retrieval", arXiv:2309.02046,
    algorithm 1. Where the Hessian on T is not positive definite we shift it until it is. A start on a poor support is
    not always repaired; look at ``residual``.
    """
    A, y, dtype = _measurements(A, y)
    k = check_integer("k", k, at_least=1, at_most=A.shape[1])
    check("step", step, above=0)
    check("tol", tol, at_least=0)
    max_iter = check_integer("max_iter", max_iter, at_least=1)
    lengths = np.sqrt(np.mean(A**2, axis=0))
    lengths[lengths == 0] = 1
    A = A / lengths
    if start is None:
        x = spectral_start(A, y, k)
    else:
        x = lengths * check_array("start", np.asarray(start, dtype=np.float64), shape=(A.shape[1],))
    z, size = A @ x, np.linalg.norm(y)
    best, history, converged = x, [float(np.linalg.norm(abs(z) - y) / size)], False
    while len(history) <= max_iter and not converged:
        moved = _newton_step(A, y, x, z, k, step)
        converged = bool(np.linalg.norm(moved - x) <= tol * np.linalg.norm(moved))
        x, support = moved, np.flatnonzero(moved)
        z = A[:, support] @ x[support]
        history.append(float(np.linalg.norm(abs(z) - y) / size))
        if history[-1] <= min(history):
            best = x
    coef = best / lengths
    if coef[np.argmax(abs(coef))] < 0:
        coef = -coef
    return PhaseRecovery(coef.astype(dtype), min(history), np.array(history), len(history) - 1, converged)


def _newton_step(A: np.ndarray, y: np.ndarray, x: np.ndarray, z: np.ndarray, k: int, step: float) -> np.ndarray:
    m = len(y)
    gradient = (z - np.copysign(y, z)) @ A / m
    support = np.sort(top_k(abs(x - step * gradient), k).indices)
    chosen = A[:, support]
    leaving = np.setdiff1d(np.flatnonzero(x), support)
    curvature = 3 * z**2 - y**2
    hessian = (chosen.T * curvature) @ chosen / m
    # Of the step's two parts only products by A are needed: H_TJ x_J = A_T' (curvature * A_J x_J) / m.
    wanted = chosen.T @ (curvature * (A[:, leaving] @ x[leaving]) - (z**2 - y**2) * z) / m
    moved = np.zeros_like(x)
    moved[support] = x[support] + _solve_positive(hessian, wanted)
    return moved


def _solve_positive(hessian: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``H^{-1} v``; an indefinite or nearly singular H is shifted to a thousandth of its largest eigenvalue first."""
    try:
        factor = cho_factor(hessian, lower=True)
        pivots = np.diag(factor[0])
        if pivots.min() > 1e-6 * pivots.max():
            return cho_solve(factor, wanted)
    except LinAlgError:
        pass
    values = eigvalsh(hessian)
    largest = abs(values).max()
    if largest == 0:
        return np.zeros_like(wanted)
    shift = max(0.0, -values[0]) + 1e-3 * largest
    return np.linalg.solve(hessian + shift * np.eye(len(hessian)), wanted)


def _measurements(A: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    A, y = np.asarray(A), np.asarray(y)
    check_array("A", A, ndim=2, dtypes="fiu")
    check_array("y", y, dtypes="fiu", shape=(A.shape[0],))
    if y.min() < 0:
        raise InputError(f"y: got {y.min()} at {int(y.argmin())}, want sizes of measurements, at least 0")
    if not y.any():
        raise InputError("y: got zeros only, want a measurement above 0")
    dtype = A.dtype if A.dtype == np.float32 else np.dtype(np.float64)
    return A.astype(np.float64, copy=False), y.astype(np.float64, copy=False), dtype

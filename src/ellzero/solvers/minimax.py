"""Chebyshev's fit: the coefficients whose largest error is least.

Lives here: one fit, exactly, by a linear program. Does not live here: the simplex method (SciPy's HiGHS), other losses
(``least_absolute``, ``prox_newton``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linprog

from ellzero.errors import InputError, check_array
from ellzero.registry import register

__all__ = ["minimax_fit"]


@register(kind="solver", source="Watson (1980)", name="minimax")
def minimax_fit(x: Any, y: Any) -> tuple[np.ndarray, float]:
    """Minimise ``max_i |y_i - x_i' w|`` over w.

    Solved through its dual, ``max <y, u - v>`` with ``X' (u - v) = 0``, ``sum(u + v) = 1`` and ``u, v >= 0``, whose p +
    1 rows make each simplex step cheap for many samples; w and the error are the prices of its rows.

    Parameters
    ----------
    x : ``[n, p]``. y : ``[n]``.

    Returns
    -------
    ``w [p]`` and the largest error at it.

    Raises
    ------
    InputError : shapes that do not fit, entries that are not finite, a program that HiGHS does not solve.
    """
    x = check_array("x", np.asarray(x, dtype=np.float64), ndim=2)
    y = check_array("y", np.asarray(y, dtype=np.float64), shape=(len(x),))
    scale = abs(x).max(0)
    scale[scale == 0] = 1.0
    size = abs(y).max() or 1.0
    both = np.vstack([x, -x]) / scale
    rows = np.column_stack([both, np.ones(len(both))]).T
    right = np.append(np.zeros(x.shape[1]), 1.0)
    found = linprog(-np.concatenate([y, -y]) / size, A_eq=rows, b_eq=right, method="highs")
    if found.status != 0:
        raise InputError(f"x: its linear program was not solved ({found.message})")
    w = -found.eqlin.marginals[:-1] / scale * size
    return w, float(abs(y - x @ w).max())

"""What first-order solvers share: ``f(X w + b) + penalty(w)`` by value and gradient alone, and the loop over alphas.

Lives here: ``State`` (coefficients, intercept, gradients), ``Composite`` (a smooth part with a soft threshold over
one flat vector), ``begin`` and ``along``. Does not live here: any step (``fista``, ``accelerated``,
``conjugate_gradient``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.penalty_split import split
from ellzero.rng import rng
from ellzero.solvers.coordinate_descent import grid
from ellzero.solvers.operators import aslinear, need
from ellzero.solvers.prox_newton import Path, Solution

__all__ = ["Composite", "State", "along", "begin", "curvature_bound"]

_ROUND = 100  # gradients that one of ``max_iter`` stands for


class State:
    """Coefficients, and the intercept in a unit that suits the columns: ``b = unit * c`` with c a coefficient."""

    def __init__(self, solver, x, y, datafit, penalty, fit_intercept, sample_weight):
        self.operator = aslinear(x)
        need(solver, self.operator, "shape", "dtype", "matmat", "rmatmat", "column_norms")
        need(solver, datafit, "value", "gradient", "outputs", "constants")
        need(solver, penalty, "prox", "value")
        n, p = self.operator.shape
        self.datafit, self.sample_weight = datafit, sample_weight
        self.y = datafit.check_targets(np.ascontiguousarray(y, dtype=np.float64))
        if len(self.y) != n:
            raise InputError(f"y: got shape {self.y.shape}, want {n} rows as X has")
        self.outputs = datafit.outputs(self.y)
        self.w = np.zeros(p if self.outputs is None else (p, self.outputs))
        self.unit = float(np.mean(self.operator.column_norms())) / np.sqrt(n) or 1.0
        self.fit_intercept = fit_intercept and datafit.takes_intercept
        self.b = np.zeros(() if self.outputs is None else self.outputs)
        if self.fit_intercept:
            self.b[...] = datafit.constants(self.y, sample_weight)
        self.at_zero = self.gradient(self.w, self.b)
        self.scale = float(abs(self.at_zero[0]).max()) or 1.0

    def begin(self, start: tuple[np.ndarray, Any] | None) -> None:
        """Take coefficients and an intercept to begin at."""
        if start is not None:
            self.w[:] = check_array("start", np.asarray(start[0], dtype=np.float64)).reshape(self.w.shape)
            self.b[...] = start[1] if self.fit_intercept else 0

    def predicted(self, w: np.ndarray, b: Any) -> np.ndarray:
        """``X w + b``."""
        dtype = self.operator.dtype
        product = self.operator.matmat(w.reshape(len(w), -1).astype(dtype)).astype(np.float64)
        return (product[:, 0] if self.outputs is None else product) + b

    def pull(self, u: np.ndarray) -> np.ndarray:
        """``X' u``, in the shape of the coefficients."""
        pull = self.operator.rmatmat(u.reshape(len(u), -1).astype(self.operator.dtype)).astype(np.float64)
        return pull[:, 0] if self.outputs is None else pull

    def gradient(self, w: np.ndarray, b: Any) -> tuple[np.ndarray, Any, float, np.ndarray]:
        """By coefficients, by the intercept in its unit, the value, and the slopes at the predictions."""
        z = self.predicted(w, b)
        u = self.datafit.gradient(self.y, z, self.sample_weight)
        value = float(self.datafit.value(self.y, z, self.sample_weight))
        return self.pull(u), self.unit * u.sum(axis=0) * self.fit_intercept, value, u

    def solution(self, rest: float, n_iter: int, converged: bool) -> Solution:
        """The fit as it stands."""
        dtype = self.operator.dtype
        b = float(self.b) if self.outputs is None else self.b.astype(dtype)
        return Solution(self.w.astype(dtype), b, float(rest), n_iter, bool(converged))


def begin(
    solver: str, x: Any, y: Any, datafit: Any, penalty: Any, fit_intercept: bool, sample_weight: Any, tol: float,
    max_iter: int,
) -> tuple[State, float, float, int]:  # fmt: skip
    """The state, the bound of the datafit's curvature, ``tol``, and the most gradients; all checked."""
    need(solver, datafit, "lipschitz")
    state = State(solver, x, y, datafit, penalty, fit_intercept, sample_weight)
    check("tol", tol, at_least=0)
    return state, curvature_bound(state), tol, _ROUND * check_integer("max_iter", max_iter, at_least=1)


def along(
    state: State, penalty: Any, descend: Callable[[Any], Solution], alphas: Any, n_alphas: int, eps: float | None
) -> Path:
    """Fits by ``descend(penalty)`` along falling alphas, each from where the one before ended."""
    need("path", penalty, "alpha")
    if alphas is None:
        need("path", penalty, "alpha_max")
        alphas = grid(penalty.alpha_max(state.at_zero[0]), state.operator.shape, n_alphas, eps)
    else:
        alphas = np.sort(check_array("alphas", np.asarray(alphas, dtype=np.float64), ndim=1))[::-1]
    coefs, intercepts, gaps, n_iters, converged = zip(
        *(descend(replace(penalty, alpha=float(alpha))) for alpha in alphas)
    )
    return Path(
        np.array(alphas), np.stack(coefs, axis=-1), np.stack(intercepts, axis=-1), np.array(gaps), np.array(n_iters),
        np.array(converged),
    )  # fmt: skip


class Composite:
    """A smooth part and a soft threshold over one flat vector v: the coefficients, then the intercepts in their unit.

    The smooth part is the datafit, what ``split`` leaves of the penalty, and ``ridge`` ``[p]``:
    ``sum_j ridge_j w_j^2 / 2``. ``bound`` is at least its Lipschitz constant, ``gradients`` counts calls of ``smooth``.
    """

    def __init__(self, state: State, penalty: Any, bound: float, ridge: np.ndarray | None = None):
        self.state, self.penalty, self.size = state, penalty, state.w.size
        self.kink, self.rest = split(penalty)
        self.ridge = np.zeros(self.size) if ridge is None else ridge
        self.bound = bound + self.rest.lipschitz() + float(self.ridge.max(initial=0.0))
        self.gradients = 0

    def vector(self) -> np.ndarray:
        """The state as a flat vector."""
        return np.concatenate([self.state.w.reshape(-1), np.reshape(self.state.b, -1) / self.state.unit])

    def keep(self, v: np.ndarray) -> None:
        """Put a flat vector into the state."""
        self.state.w[...] = self.coef(v)
        self.state.b[...] = np.reshape(v[self.size :] * self.state.unit, self.state.b.shape)

    def coef(self, v: np.ndarray) -> np.ndarray:
        """The coefficients of a flat vector, in their shape."""
        return v[: self.size].reshape(self.state.w.shape)

    def image(self, v: np.ndarray) -> np.ndarray:
        """The predictions at v: linear in v."""
        b = np.reshape(v[self.size :] * self.state.unit, self.state.b.shape)
        return self.state.predicted(self.coef(v), b)

    def smooth_value(self, v: np.ndarray, z: np.ndarray) -> float:
        """The smooth part at v, whose predictions are z."""
        state, w = self.state, self.coef(v)
        fit = float(state.datafit.value(state.y, z, state.sample_weight))
        return fit + float(self.rest.value(w)) + float(self.ridge @ v[: self.size] ** 2) / 2

    def smooth(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The gradient of the smooth part at v, whose predictions are z."""
        self.gradients += 1
        state = self.state
        u = state.datafit.gradient(state.y, z, state.sample_weight)
        by_coef = state.pull(u) + self.rest.gradient(self.coef(v))
        offset = np.reshape(state.unit * u.sum(axis=0) * state.fit_intercept, -1)
        return np.concatenate([by_coef.reshape(-1) + self.ridge * v[: self.size], offset])

    def slope(self, v: np.ndarray, z: np.ndarray, direction: np.ndarray, change: np.ndarray) -> float:
        """The smooth part's derivative along ``direction``, by which predictions change by ``change``: no products."""
        state, w, d = self.state, v[: self.size], direction[: self.size]
        by_fit = float((state.datafit.gradient(state.y, z, state.sample_weight) * change).sum())
        return by_fit + float((self.rest.gradient(self.coef(v)).reshape(-1) + self.ridge * w) @ d)

    def value(self, v: np.ndarray, z: np.ndarray) -> float:
        """The objective."""
        return self.smooth_value(v, z) + float(self.kink.value(self.coef(v)))

    def prox(self, v: np.ndarray, step: float) -> np.ndarray:
        """Soft thresholding of the coefficients; the intercept is free."""
        return np.concatenate([np.reshape(self.kink.prox(self.coef(v), step), -1), v[self.size :]])

    def stationarity(self, v: np.ndarray, gradient: np.ndarray) -> float:
        """The largest entry of the smallest subgradient, relative to that of the datafit's gradient at w = 0."""
        far = self.kink.subdifferential_distance(self.coef(v), self.coef(gradient))
        return max(float(np.max(far)), float(abs(gradient[self.size :]).max())) / self.state.scale


def curvature_bound(state: State) -> float:
    """A bound of the datafit's curvature by the coefficients and the intercept in its unit.

    ``lipschitz |[X, unit]|_2^2``, the norm by the power method with a margin of 2 % on its square.
    """
    v = rng(0, "spectral norm").standard_normal(len(state.w) + 1)
    size = 0.0
    for _ in range(500):
        v /= np.linalg.norm(v)
        z = state.operator.matmat(v[:-1, None].astype(state.operator.dtype))[:, 0].astype(np.float64)
        z += v[-1] * state.unit * state.fit_intercept
        before, size = size, float(z @ z)
        if size == 0 or abs(size - before) <= 1e-4 * size:
            break
        back = state.operator.rmatmat(z[:, None].astype(state.operator.dtype))[:, 0].astype(np.float64)
        v = np.append(back, state.unit * z.sum() * state.fit_intercept)
    return 1.02 * size * float(state.datafit.lipschitz(state.y, state.sample_weight))

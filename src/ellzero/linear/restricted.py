"""Ridge-logistic models on given columns of one matrix: many small fits as one bundle.

Lives here: the damped Newton method of a bundle, with gathered columns for small supports and shared products for
large ones. Does not live here: who chooses the supports (``neurons``, ``best_subset``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["RestrictedFits", "fit_restricted"]

_CHUNK = 2_000_000  # numbers gathered at a time
_GATHER = 24  # above this size columns are not gathered: products with the whole matrix serve all problems


@dataclass(frozen=True)
class RestrictedFits:
    """``B`` logistic fits: ``coef [B, k]`` on their supports, ``intercept [B]``, the objective ``value [B]``, and
    ``dual [B, n]``: minus the derivative of the loss by the prediction, feasible for every support."""

    coef: np.ndarray
    intercept: np.ndarray
    value: np.ndarray
    dual: np.ndarray


def fit_restricted(
    X: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    supports: np.ndarray,
    which: np.ndarray,
    alpha: np.ndarray | float,
    *,
    gram: np.ndarray | None = None,
    tol: float = 1e-12,
) -> RestrictedFits:
    """Fit ``B`` ridge-logistic models, each on its own ``k`` columns of the one matrix ``X``.

    Solves ``min_{w, b} sum_i s_i log(1 + exp(-y_i (x_i' w + b))) + alpha / 2 |w|^2`` with w free on the support.

    Parameters
    ----------
    X : ``[n, d]`` float64. ``labels, weights : [L, n]``, -1 and 1, and shares that sum to 1 by row.
    supports : ``[B, k]`` columns. ``which : [B]``, the row of labels. ``alpha`` : one, or ``[B]``, above 0.
    gram : ``[L, d, d]``, ``X' diag(s) X`` per row of labels, shared by all problems as the preconditioner of large
        supports; without it each makes its own block.
    tol : stop when the Newton decrement is below ``tol`` (the objective is then right to about that).
    """
    size, k = supports.shape
    alpha = np.broadcast_to(np.asarray(alpha, dtype=float), (size,))
    step, rows, parts = max(1, _CHUNK // (len(X) * (k + 1))), np.ascontiguousarray(X.T), []
    for i in range(0, size, step):
        here = slice(i, i + step)
        s = weights[which[here]]
        if k <= _GATHER:
            design = _Columns(X, supports[here], rows)
        else:
            grams = None if gram is None else [gram[row] for row in which[here]]
            design = _Shared(X, supports[here], s, grams)
        parts.append(_fit_chunk(design, labels[which[here]], s, alpha[here], k, tol))
    return RestrictedFits(*(np.concatenate(column) for column in zip(*parts)))


class _Columns:
    """The supports of a bundle as gathered columns ``[B, k + 1, n]``, a row of ones last; for small supports."""

    def __init__(self, X, supports, rows):
        size, k = supports.shape
        self.z = np.ones((size, k + 1, len(X)))
        self.z[:, :k] = rows[supports]

    def predict(self, theta, at):
        return (theta[:, None, :] @ self.z[at])[:, 0]

    def correlate(self, u, at):
        return (self.z[at] @ u[:, :, None])[:, :, 0]

    def newton(self, slope, curve, ridge, at):
        z = self.z[at]
        H = (z * curve[:, None, :]) @ z.transpose(0, 2, 1)
        index = np.arange(H.shape[1])
        H[:, index, index] += ridge + 1e-14
        return np.linalg.solve(H, slope[:, :, None])[:, :, 0]


class _Shared:
    """The supports as index sets into the one matrix: every product is one matrix product for the whole bundle.

    Newton directions come from conjugate gradients; the preconditioner is the Gram under the samples' weights, scaled
    to the mean curvature, which is exact at the start.
    """

    def __init__(self, X, supports, s, grams):
        self.X, self.supports = X, supports
        size, k = supports.shape
        self.base = np.empty((size, k + 1, k + 1))
        for i, index in enumerate(supports):
            if grams is not None:
                self.base[i, :k, :k] = grams[i][np.ix_(index, index)]
            else:
                columns = X[:, index]
                self.base[i, :k, :k] = columns.T @ (s[i][:, None] * columns)
        means = np.take_along_axis(s @ X, supports, 1)
        self.base[:, k, :k] = self.base[:, :k, k] = means
        self.base[:, k, k] = 1

    def predict(self, theta, at):
        spread = np.zeros((len(theta), self.X.shape[1]))
        np.put_along_axis(spread, self.supports[at], theta[:, :-1], 1)
        return spread @ self.X.T + theta[:, -1:]

    def correlate(self, u, at):
        found = np.take_along_axis(u @ self.X, self.supports[at], 1)
        return np.concatenate([found, u.sum(1, keepdims=True)], axis=1)

    def newton(self, slope, curve, ridge, at):
        index = np.arange(slope.shape[1])
        M = curve.sum(1)[:, None, None] * self.base[at]
        M[:, index, index] += ridge + 1e-10
        inverse = np.linalg.inv(M)
        x, r = np.zeros_like(slope), slope.copy()
        p = h = (inverse @ r[:, :, None])[:, :, 0]
        first = before = (r * h).sum(1)
        for _ in range(2 * slope.shape[1]):
            Hp = self.correlate(curve * self.predict(p, at), at) + (ridge + 1e-14) * p
            rate = before / np.maximum((p * Hp).sum(1), 1e-300)
            x, r = x + rate[:, None] * p, r - rate[:, None] * Hp
            h = (inverse @ r[:, :, None])[:, :, 0]
            now = (r * h).sum(1)
            if (now <= 1e-2 * first + 1e-30).all():  # an inexact direction is enough: the steps correct each other
                break
            p, before = h + (now / np.maximum(before, 1e-300))[:, None] * p, now
        return x


def _fit_chunk(design, y, s, alpha, k, tol):
    """Damped Newton for all problems of a chunk; a problem leaves when it has converged."""
    size = len(y)
    ridge = np.repeat(alpha[:, None], k + 1, axis=1)
    ridge[:, k] = 0
    theta, margin = np.zeros((size, k + 1)), np.zeros(y.shape)
    value, q = s.sum(1) * math.log(2), np.full(y.shape, 0.5)
    live = np.arange(size)
    for _ in range(100):
        at = slice(None) if len(live) == size else live
        pull = s[at] * q[at]
        slope = design.correlate(pull * y[at], at) - ridge[at] * theta[at]  # minus the gradient
        move = design.newton(slope, pull * (1 - q[at]), ridge[at], at)
        decrement = (slope * move).sum(1)
        go = decrement > tol
        if not go.any():
            break
        live, move, decrement = live[go], move[go], decrement[go]
        shift = y[live] * design.predict(move, live)
        _advance(s, ridge, theta, margin, q, value, live, move, shift, decrement)
    return theta[:, :k], theta[:, k], value, s * y * q


def _advance(s, ridge, theta, margin, q, value, live, move, shift, decrement):
    """Take the Newton steps, halved where the objective would not fall; one exponential per sample and try."""
    pending, length = np.arange(len(live)), 1.0
    while len(pending) and length > 1e-8:
        at = live[pending]
        new, seen = theta[at] + length * move[pending], margin[at] + length * shift[pending]
        decay = np.exp(-abs(seen))
        cost = np.einsum("ij,ij->i", s[at], np.log1p(decay) - np.minimum(seen, 0)) + 0.5 * (ridge[at] * new**2).sum(1)
        good = cost <= value[at] - 1e-4 * length * decrement[pending] + 1e-15
        done = at[good]
        theta[done], margin[done], value[done] = new[good], seen[good], cost[good]
        q[done] = (np.where(seen > 0, decay, 1) / (1 + decay))[good]
        pending, length = pending[~good], length / 2

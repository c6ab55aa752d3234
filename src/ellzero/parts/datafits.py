"""Datafits: how far a prediction z = X w + b is from the targets y, with derivatives and the dual.

Lives here: losses averaged over samples, as values with ``value``, ``gradient``, ``dual``, ``constant`` and, where they
exist, ``hessian_diagonal`` and ``lipschitz``. Does not live here: the design matrix, penalties, nor any solver.
All derivatives are with respect to the prediction. Samples are the first axis; ``weights`` weigh samples: with
s_i = v_i / sum(v) (1 / n without weights) a datafit is ``f(z) = sum_i s_i l(y_i, z_i)`` unless it says otherwise.

Duality. ``min_w f(X w) + g(w)`` has the dual ``max_theta dual(y, theta) - g*(X^T theta)`` with
``dual(y, theta) = -f*(-theta)``, and theta = -gradient at the optimum. For an L1 penalty g* is 0 where every
``|X_j^T theta| <= alpha_j``, so a scaled ``-gradient`` certifies the gap ``f(X w) + g(w) - dual(y, theta)``. With a
free intercept theta must also sum to zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array
from ellzero.parts.namespace import floating, is_torch, like, namespace
from ellzero.parts.penalty_shapes import frozen_weights
from ellzero.registry import register

__all__ = ["Absolute", "Huber", "Logistic", "Poisson", "Quadratic", "SquareRoot", "SquaredHinge"]


class Datafit:
    """What all datafits share: the checks.

    ``centring`` says that a free intercept can be had by centring y and the columns of X; otherwise a solver fits
    it beside w, starting from ``constant(y)``. ``labels`` says that y holds two labels, not numbers.
    ``takes_intercept`` is false where a constant changes nothing, ``invariant`` is true where the same number added
    to all outputs does not.

    A Hessian that is not diagonal is ``diag(d) - R R'``: such a datafit has ``curvature`` in place of
    ``hessian_diagonal``. One that is not smooth has ``smoothed(mu)``: another whose conjugate has the same domain
    and which differs by at most ``mu / 2``, so that its gradient is feasible in the dual of both.
    """

    centring = False
    labels = False
    takes_intercept = True
    invariant = False

    def outputs(self, y: Any) -> int | None:
        """Predictions per sample: ``None`` for a vector of them, else the width of the ``[n, outputs]`` prediction."""
        return None if y.ndim == 1 else y.shape[1]

    def constants(self, y: Any, weights: Any = None) -> Any:
        """``constant`` for each column of ``y``: a number, or ``[outputs]``."""
        return self.constant(y, weights) if y.ndim == 1 else np.array([self.constant(each, weights) for each in y.T])

    def mean(self, z: Any) -> Any:
        """What is expected of y at the prediction z (the inverse link)."""
        return z

    def check_targets(self, y: Any) -> Any:
        """Return ``y`` if it is finite and in the domain of the loss."""
        y = floating("y", y)
        return check_array("y", y)

    def _column(self, y: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
        y = self.check_targets(y)
        y = (y.detach().cpu().numpy() if is_torch(y) else np.asarray(y)).astype(np.float64)
        check_array("y", y, ndim=1)
        return y, np.broadcast_to(_shares(y, weights), y.shape)

    def _inputs(self, y: Any, z: Any, weights: Any) -> tuple[Any, Any, Any]:
        z = floating("prediction", z)
        y = like(z, y)
        if tuple(y.shape) != tuple(z.shape):
            raise InputError(f"prediction: got shape {tuple(z.shape)}, want {tuple(y.shape)}, the shape of y")
        return y, z, _shares(z, weights)


class Mean(Datafit, ABC):
    """A loss averaged over samples; the frame of the datafits."""

    @abstractmethod
    def _each(self, y: Any, z: Any) -> Any:
        """l(y, z) of each sample."""

    @abstractmethod
    def _slope(self, y: Any, z: Any) -> Any:
        """The derivative of l by z (a subgradient at a kink)."""

    @abstractmethod
    def _conjugate(self, y: Any, a: Any) -> Any:
        """sup_z a z - l(y, z), infinite outside its domain."""

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The mean loss."""
        y, z, s = self._inputs(self.check_targets(y), z, weights)
        return (s * self._each(y, z)).sum()

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s * self._slope(y, z)

    def dual(self, y: Any, theta: Any, weights: Any = None) -> Any:
        """``-f*(-theta)``, the datafit's part of the dual objective; -infinity outside its domain."""
        y, theta, s = self._inputs(self.check_targets(y), theta, weights)
        xp = namespace(theta)
        used = s > 0
        share = xp.where(used, s, xp.ones_like(s))
        cost = share * self._conjugate(y, -theta / share)
        cost = xp.where(used, cost, xp.where(theta == 0, xp.zeros_like(theta), math.inf))
        return -cost.sum()


@register(kind="datafit", source="Tibshirani (1996)", example=lambda: Quadratic())
@dataclass(frozen=True)
class Quadratic(Mean):
    """Half the mean squared error, ``l = (y - z)^2 / 2``: ``|y - z|^2 / (2 n)`` without weights."""

    centring = True

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d^2 value / d z_i^2, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s + 0 * z

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The weighted mean of y."""
        y, s = self._column(y, weights)
        return float((s * y).sum())

    def _each(self, y, z):
        return (y - z) ** 2 / 2

    def _slope(self, y, z):
        return z - y

    def _conjugate(self, y, a):
        return a * y + a**2 / 2


class Margin(Mean):
    """Losses of the margin y z, for labels -1 and +1."""

    labels = True

    def check_targets(self, y: Any) -> Any:
        """Return ``y`` if every label is -1 or +1."""
        y = check_array("y", floating("y", y))
        if not bool((abs(y) == 1).all()):
            wrong = float(y[abs(y) != 1].reshape(-1)[0])
            raise InputError(f"y: got the label {wrong}, want -1 and +1 (2 y - 1 turns 0 and 1 into them)")
        return y

    def _two_classes(self, y: np.ndarray, s: np.ndarray) -> tuple[float, float]:
        above, below = float(s[y > 0].sum()), float(s[y < 0].sum())
        if above == 0 or below == 0:
            raise InputError(f"y: got only the label {1 if above else -1}, want both classes")
        return above, below


@register(kind="datafit", source="Koh, Kim and Boyd (2007)", example=lambda: Logistic())
@dataclass(frozen=True)
class Logistic(Margin):
    """Logistic loss ``l = log(1 + exp(-y z))`` for labels -1 and +1: minus the log-likelihood of z as log-odds."""

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d^2 value / d z_i^2, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s * _sigmoid(z) * _sigmoid(-z)

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights) / 4

    def constant(self, y: Any, weights: Any = None) -> float:
        """The log-odds of +1."""
        above, below = self._two_classes(*self._column(y, weights))
        return math.log(above / below)

    def _each(self, y, z):
        xp, margin = namespace(z), y * z
        return xp.log1p(xp.exp(-abs(margin))) + xp.clip(-margin, 0, None)

    def _slope(self, y, z):
        return -y * _sigmoid(-y * z)

    def _conjugate(self, y, a):
        xp, b = namespace(a), -a * y
        inside = (b >= 0) & (b <= 1)
        return xp.where(inside, _xlogx(b) + _xlogx(1 - b), math.inf)


@register(kind="datafit", source="Nelder and Wedderburn (1972)", example=lambda: Poisson())
@dataclass(frozen=True)
class Poisson(Mean):
    """Poisson loss with the log link, ``l = exp(z) - y z``, for y >= 0; log(y!) is left out.

    Its derivative has no Lipschitz constant, so there is no ``lipschitz``.
    """

    def check_targets(self, y: Any) -> Any:
        """Return ``y`` if it is finite and at least 0."""
        y = check_array("y", floating("y", y))
        if bool((y < 0).any()):
            raise InputError(f"y: got {float(y.min())}, want counts at least 0")
        return y

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d^2 value / d z_i^2, in the shape of z."""
        y, z, s = self._inputs(y, z, weights)
        return s * namespace(z).exp(z)

    def mean(self, z: Any) -> Any:
        """``exp(z)``, the rate."""
        return namespace(z).exp(z)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The logarithm of the weighted mean of y."""
        y, s = self._column(y, weights)
        mean = float((s * y).sum())
        if mean == 0:
            raise InputError("y: got only zeros, want at least one positive count")
        return math.log(mean)

    def _each(self, y, z):
        return namespace(z).exp(z) - y * z

    def _slope(self, y, z):
        return namespace(z).exp(z) - y

    def _conjugate(self, y, a):
        rate = a + y
        return namespace(a).where(rate >= 0, _xlogx(rate) - rate, math.inf)


@register(kind="datafit", source="Huber (1964)", example=lambda: Huber(1.35))
@dataclass(frozen=True)
class Huber(Mean):
    """``l = r^2 / 2`` for ``|r| <= delta`` and ``delta |r| - delta^2 / 2`` beyond, r = y - z. Huber (1964)."""

    delta: float = 1.35

    def __post_init__(self):
        check("delta", self.delta, above=0, below=math.inf)

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The second derivative: s_i inside the quadratic zone, 0 outside."""
        y, z, s = self._inputs(y, z, weights)
        return s * like(z, abs(y - z) <= self.delta)

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return _largest(y, weights)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The constant prediction of least value, by bisection: the slope rises with the prediction."""
        y, s = self._column(y, weights)
        low, high = float(y[s > 0].min()), float(y[s > 0].max())
        while low < (middle := (low + high) / 2) < high:
            if (s * self._slope(y, middle)).sum() >= 0:
                high = middle
            else:
                low = middle
        return high if high == low else middle

    def _each(self, y, z):
        size = abs(y - z)
        return namespace(z).where(size <= self.delta, size**2 / 2, self.delta * size - self.delta**2 / 2)

    def _slope(self, y, z):
        return namespace(z).clip(z - y, -self.delta, self.delta)

    def _conjugate(self, y, a):
        return namespace(a).where(abs(a) <= self.delta * _slack(a), a * y + a**2 / 2, math.inf)


@register(kind="datafit", source="Chang, Hsieh and Lin (2008)", example=lambda: SquaredHinge())
@dataclass(frozen=True)
class SquaredHinge(Margin):
    """Squared hinge ``l = max(0, 1 - y z)^2`` for labels -1 and +1, as in scikit-learn's LinearSVC."""

    def hessian_diagonal(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The (generalised) second derivative: 2 s_i where the margin is below 1."""
        y, z, s = self._inputs(y, z, weights)
        return 2 * s * like(z, y * z < 1)

    def lipschitz(self, y: Any, weights: Any = None) -> float:
        """A bound of the second derivative: times ``|X|_2^2`` it bounds the curvature of f(X w)."""
        return 2 * _largest(y, weights)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The share of +1 minus the share of -1."""
        above, below = self._two_classes(*self._column(y, weights))
        return above - below

    def _each(self, y, z):
        return namespace(z).clip(1 - y * z, 0, None) ** 2

    def _slope(self, y, z):
        return -2 * y * namespace(z).clip(1 - y * z, 0, None)

    def _conjugate(self, y, a):
        b = -a * y
        return namespace(a).where(b >= 0, b**2 / 4 - b, math.inf)


@register(kind="datafit", source="Wang, Li and Jiang (2007)", example=lambda: Absolute())
@dataclass(frozen=True)
class Absolute(Mean):
    """Mean absolute error, ``l = |y - z|``: the median's loss. Not smooth: the gradient is sign(z - y), 0 at a fit."""

    def smoothed(self, mu: float) -> Any:
        """Its Moreau envelope: quadratic where ``|y - z| <= mu``."""
        from ellzero.parts.datafits_smoothed import SmoothedAbsolute

        return SmoothedAbsolute(mu)

    def constant(self, y: Any, weights: Any = None) -> float:
        """The (lower) weighted median of y."""
        y, s = self._column(y, weights)
        order = np.argsort(y, kind="stable")
        reached = np.cumsum(s[order]) >= 0.5 - 1e-12
        return float(y[order][reached.argmax()])

    def _each(self, y, z):
        return abs(y - z)

    def _slope(self, y, z):
        return namespace(z).sign(z - y)

    def _conjugate(self, y, a):
        return namespace(a).where(abs(a) <= _slack(a), a * y, math.inf)


@register(kind="datafit", source="Belloni, Chernozhukov and Wang (2011)", example=lambda: SquareRoot())
@dataclass(frozen=True)
class SquareRoot(Datafit):
    """The root of the mean squared error, ``f = |y - z|_2 / sqrt(n)``: the best alpha ignores the noise level.

    Not a mean of losses: ``f = sqrt(sum_i s_i (y_i - z_i)^2)``, not smooth at a perfect fit (gradient 0 there).
    Belloni, Chernozhukov and Wang (2011).
    """

    centring = True

    def smoothed(self, mu: float) -> Any:
        """The same where it exceeds ``mu``, quadratic below."""
        from ellzero.parts.datafits_smoothed import SmoothedSquareRoot

        return SmoothedSquareRoot(mu)

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The root of the mean squared error."""
        y, z, s = self._inputs(self.check_targets(y), z, weights)
        return _length(s**0.5 * (y - z))

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, in the shape of z; 0 at a perfect fit, where it is one of many subgradients."""
        y, z, s = self._inputs(y, z, weights)
        length = _length(s**0.5 * (y - z))
        return s * (z - y) / namespace(z).where(length > 0, length, namespace(z).ones_like(length))

    def dual(self, y: Any, theta: Any, weights: Any = None) -> Any:
        """``<y, theta>`` where ``sum_i theta_i^2 / s_i <= 1``; -infinity elsewhere."""
        y, theta, s = self._inputs(self.check_targets(y), theta, weights)
        xp = namespace(theta)
        used = s > 0
        size = _length(theta / xp.where(used, s, xp.ones_like(s)) ** 0.5)
        barred = bool((~used & (theta != 0)).any())
        return like(theta, -math.inf)[()] if barred or not size <= _slack(theta) else (y * theta).sum()

    def constant(self, y: Any, weights: Any = None) -> float:
        """The weighted mean of y."""
        return Quadratic().constant(y, weights)


def _shares(z: Any, weights: Any) -> Any:
    """s, which sums to 1, in a shape that broadcasts against z."""
    n = z.shape[0] if z.ndim else 1
    if weights is None:
        return namespace(z).ones_like(z) / max(n, 1)
    weights = frozen_weights("weights", weights)
    if tuple(weights.shape) != (n,):
        raise InputError(f"weights: got shape {tuple(weights.shape)}, want ({n},), one for each sample")
    total = float(weights.sum())
    if not 0 < total < math.inf:
        raise InputError(f"weights: got a sum of {total}, want finite weights, at least one above 0")
    shares = like(z, weights / total).reshape(n, *(1,) * (z.ndim - 1))
    return shares + namespace(z).zeros_like(z)


def _largest(y: Any, weights: Any) -> float:
    return float(_shares(floating("y", y), weights).max())


def _sigmoid(t: Any) -> Any:
    xp = namespace(t)
    small = xp.exp(-abs(t))
    return xp.where(t >= 0, xp.ones_like(t), small) / (1 + small)


def _xlogx(x: Any) -> Any:
    xp = namespace(x)
    return x * xp.log(xp.where(x > 0, x, xp.ones_like(x)))


def _length(x: Any) -> Any:
    squares = (x**2).sum()
    xp = namespace(squares)
    return xp.where(squares > 0, squares, xp.ones_like(squares)) ** 0.5 * like(squares, squares > 0)


def _slack(x: Any) -> float:
    """1, and a few roundings: the edge of a domain that a gradient may touch."""
    return 1 + 8 * float(namespace(x).finfo(x.dtype).eps)

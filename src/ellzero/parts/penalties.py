"""Penalties: what a coefficient, code or weight costs, and the proximal map that shrinks or kills it.

Lives here: the separable penalties, as values with ``value``, ``each``, ``prox``, ``subdifferential_distance``,
``alpha_max``, ``support`` and ``compiled``; and the names of the group and matrix penalties.
Does not live here: projections by count (``constraints``), nor any loop that uses a penalty (``solvers``).
Throughout, p is the penalty of one coordinate and s = step * weight in the prox.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check
from ellzero.parts.namespace import floating, like, namespace, unwrap
from ellzero.parts.penalties_group import L21, GroupL2, SparseGroup
from ellzero.parts.penalties_matrix import FLOPs, Nuclear, Simplex, idf, idf_flops
from ellzero.parts.penalty_shapes import Separable, Value, check_penalty, check_step
from ellzero.registry import register

__all__ = [
    "CEL0", "L0", "L1", "L21", "MCP", "SCAD", "Box", "ElasticNet", "FLOPs", "GroupL2", "LogSum", "Lq", "NonNegative",
    "Nuclear", "Simplex", "SparseGroup", "idf", "idf_flops",
]  # fmt: skip


@register(kind="penalty", source="Tibshirani (1996)", example=lambda: L1(1.0))
@dataclass(frozen=True, eq=False)
class L1(Separable):
    """The Lasso's penalty, ``p(w) = alpha |w|``; its prox is the soft threshold at ``s alpha``. Tibshirani (1996)."""

    alpha: float
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)

    @property
    def compiled(self):
        return "L1", (float(self.alpha),)

    def _each(self, size):
        return self.alpha * size

    def _prox(self, size, step):
        return _soft(size, self.alpha * step)

    def _slope(self, size):
        return self.alpha + 0 * size

    def _kink(self):
        return self.alpha


@register(kind="penalty", source="Blumensath and Davies (2008)", example=lambda: L0(1.0))
@dataclass(frozen=True, eq=False)
class L0(Separable):
    """A price per nonzero, ``p(w) = alpha [w != 0]``; its prox is the hard threshold at ``sqrt(2 s alpha)``.

    Blumensath and Davies (2008). Zero is a local minimum for every alpha > 0, so there is no ``alpha_max``.
    """

    alpha: float
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)

    @property
    def compiled(self):
        return "L0", (float(self.alpha),)

    def _each(self, size):
        return self.alpha * like(size, size != 0)

    def _prox(self, size, step):
        return _kept(size > (2 * self.alpha * step) ** 0.5, size)

    def _slope(self, size):
        return 0 * size

    def _kink(self):
        return math.inf if self.alpha > 0 else 0.0

    def _alpha_at(self, kink):
        raise _no_alpha_max("L0")


@register(kind="penalty", source="Zou and Hastie (2005)", example=lambda: ElasticNet(1.0, 0.5))
@dataclass(frozen=True, eq=False)
class ElasticNet(Separable):
    """``p(w) = alpha (r |w| + (1 - r) w^2 / 2)`` with r = ``l1_ratio``; prox: soft threshold, then a shrinkage.

    Zou and Hastie (2005), in scikit-learn's parametrisation.
    """

    alpha: float
    l1_ratio: float = 0.5
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("l1_ratio", self.l1_ratio, at_least=0, at_most=1)

    @property
    def compiled(self):
        return "ElasticNet", (float(self.alpha), float(self.l1_ratio))

    def _each(self, size):
        return self.alpha * (self.l1_ratio * size + (1 - self.l1_ratio) * size**2 / 2)

    def _prox(self, size, step):
        return _soft(size, self.alpha * self.l1_ratio * step) / (1 + self.alpha * (1 - self.l1_ratio) * step)

    def _slope(self, size):
        return self.alpha * (self.l1_ratio + (1 - self.l1_ratio) * size)

    def _kink(self):
        return self.alpha * self.l1_ratio

    def _unit_kink(self):
        return self.l1_ratio


@register(kind="penalty", source="Zhang (2010)", example=lambda: MCP(1.0))
@dataclass(frozen=True, eq=False)
class MCP(Separable):
    """Minimax concave penalty: slope ``alpha`` at zero, flat beyond ``alpha * gamma``. Zhang (2010).

    ``p(w) = alpha |w| - w^2 / (2 gamma)`` up to the knee. The prox is firm thresholding for s < gamma and the hard
    threshold at ``alpha sqrt(s gamma)`` from there on.
    """

    alpha: float
    gamma: float = 3.0
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("gamma", self.gamma, above=1, below=math.inf)

    @property
    def compiled(self):
        return "MCP", (float(self.alpha), float(self.gamma))

    def _each(self, size):
        return _mcp(size, self.alpha, self.gamma)

    def _prox(self, size, step):
        return _mcp_prox(size, step, self.alpha, self.gamma)

    def _slope(self, size):
        return namespace(size).clip(self.alpha - size / self.gamma, 0, None)

    def _kink(self):
        return self.alpha


@register(kind="penalty", source="Fan and Li (2001)", example=lambda: SCAD(1.0))
@dataclass(frozen=True, eq=False)
class SCAD(Separable):
    """Smoothly clipped absolute deviation: ``alpha |w|`` up to alpha, flat beyond ``alpha * gamma``. Fan and Li (2001).

    ``p(w) = (2 alpha gamma |w| - w^2 - alpha^2) / (2 (gamma - 1))`` between, ``alpha^2 (gamma + 1) / 2`` beyond.
    The prox has three pieces for s < gamma - 1; from there on the middle one is concave, and the soft threshold
    gives way to ``x`` itself at ``alpha (s + gamma + 1) / 2`` or, for s > gamma + 1, ``alpha sqrt(s (gamma + 1))``.
    """

    alpha: float
    gamma: float = 3.7
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("gamma", self.gamma, above=2, below=math.inf)

    @property
    def compiled(self):
        return "SCAD", (float(self.alpha), float(self.gamma))

    def _each(self, size):
        xp, a, g = namespace(size), self.alpha, self.gamma
        middle = (2 * a * g * size - size**2 - a**2) / (2 * (g - 1))
        return xp.where(size <= a, a * size, xp.where(size < a * g, middle, a**2 * (g + 1) / 2))

    def _prox(self, size, step):
        xp, a, g = namespace(size), self.alpha, self.gamma
        shrunk = _soft(size, a * step)
        late = step >= g - 1
        gap = xp.where(late, xp.ones_like(step), g - 1 - step)
        middle = ((g - 1) * size - a * g * step) / gap
        early = xp.where(size <= a * (1 + step), shrunk, xp.where(size >= a * g, size, middle))
        draw = a * xp.where(step >= g + 1, (step * (g + 1)) ** 0.5, (step + g + 1) / 2)
        return xp.where(late, xp.where(size > draw, size, shrunk), early)

    def _slope(self, size):
        xp, a, g = namespace(size), self.alpha, self.gamma
        return xp.where(size <= a, a, xp.clip(a * g - size, 0, None) / (g - 1))

    def _kink(self):
        return self.alpha


@register(kind="penalty", source="Candes, Wakin and Boyd (2008)", example=lambda: LogSum(1.0, 0.5))
@dataclass(frozen=True, eq=False)
class LogSum(Separable):
    """``p(w) = alpha log(1 + |w| / epsilon)``: the penalty behind reweighted L1. Candes, Wakin and Boyd (2008).

    The prox is 0 or the larger root of ``w^2 + (epsilon - |x|) w + s alpha - |x| epsilon``, whichever costs less.
    """

    alpha: float
    epsilon: float = 1.0
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("epsilon", self.epsilon, above=0, below=math.inf)

    @property
    def compiled(self):
        return "LogSum", (float(self.alpha), float(self.epsilon))

    def _each(self, size):
        return self.alpha * namespace(size).log1p(size / self.epsilon)

    def _prox(self, size, step):
        xp, e = namespace(size), self.epsilon
        weight = self.alpha * step
        root = 2 * weight**0.5
        split = xp.clip(size + e - root, 0, None) ** 0.5 * (size + e + root) ** 0.5  # apart, against overflow
        below = xp.where(size < e, e - size + split, xp.ones_like(size + split))
        w = xp.where(size < e, 2 * (size * e - weight) / below, (size - e + split) / 2)  # no cancellation in either
        real = (size + e >= root) & (w > 0)
        w = _kept(real, w)
        gain = w / 2 - size + weight * xp.log1p(w / e) / xp.where(w > 0, w, xp.ones_like(w))  # per unit of w
        return _kept((weight <= e**2) | (gain < 0), w)

    def _slope(self, size):
        return self.alpha / (self.epsilon + size)

    def _kink(self):
        return self.alpha / self.epsilon

    def _unit_kink(self):
        return 1 / self.epsilon


@register(kind="penalty", source="Xu et al. (2012); Cao et al. (2013)", example=lambda: Lq(1.0, 0.5))
@dataclass(frozen=True, eq=False)
class Lq(Separable):
    """``p(w) = alpha |w|^q`` with 0 < q < 1: half thresholding and its relatives.

    The prox is 0 up to ``|x| = w0 + s alpha q w0^(q-1)`` with ``w0 = (2 s alpha (1 - q))^(1/(2-q))``, then the larger
    root of ``w + s alpha q w^(q-1) = |x|``: in closed form for q = 1/2 (Xu et al., 2012) and q = 2/3 (Cao et al.,
    2013), by Newton's method otherwise. Zero is always a local minimum, so there is no ``alpha_max``.
    """

    alpha: float
    q: float = 0.5
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("q", self.q, above=0, below=1)

    @property
    def compiled(self):
        return "Lq", (float(self.alpha), float(self.q))

    def _each(self, size):
        return self.alpha * _kept(size > 0, namespace(size).where(size > 0, size, 1.0) ** self.q)

    def _prox(self, size, step):
        xp, q = namespace(size), self.q
        weight = self.alpha * step
        free = weight == 0
        kept = (2 * (1 - q)) ** (1 / (2 - q))
        jump = kept + q * kept ** (q - 1)  # the threshold at weight 1; everything else is a function of |x| / threshold
        t = size / (jump * xp.where(free, xp.ones_like(weight), weight) ** (1 / (2 - q)))
        ratio = _lq_ratio(xp.clip(t, 1.0, 1e13), q, jump)
        return xp.where(free, size, _kept(t > 1, size * ratio))

    def _slope(self, size):
        return self.alpha * self.q * size ** (self.q - 1)

    def _kink(self):
        return math.inf if self.alpha > 0 else 0.0

    def _alpha_at(self, kink):
        raise _no_alpha_max("Lq")


@register(kind="penalty", source="Soubies, Blanc-Feraud and Aubert (2015)", example=lambda: CEL0(1.0, 0.8))
@dataclass(frozen=True, eq=False)
class CEL0(Separable):
    """The continuous exact relaxation of ``alpha [w != 0]`` beside a least-squares fit with columns of length ``norm``.

    ``p(w) = alpha - norm^2 / 2 (|w| - sqrt(2 alpha) / norm)^2`` up to ``|w| = sqrt(2 alpha) / norm``, alpha beyond: the
    same global minimisers as L0, fewer local ones. It is the MCP of slope ``norm sqrt(2 alpha)`` and
    gamma = ``1 / norm^2``. Soubies, Blanc-Feraud and Aubert (2015), equation 2.7.
    """

    alpha: float
    norm: float = 1.0
    weights: Any = None
    positive: bool = False

    def __post_init__(self):
        check_penalty(self)
        check("norm", self.norm, above=0, below=math.inf)

    @property
    def compiled(self):
        return "CEL0", (float(self.alpha), float(self.norm))

    def _each(self, size):
        return _mcp(size, self._kink(), self.norm**-2)

    def _prox(self, size, step):
        return _mcp_prox(size, step, self._kink(), self.norm**-2)

    def _slope(self, size):
        return namespace(size).clip(self._kink() - size * self.norm**2, 0, None)

    def _kink(self):
        return self.norm * math.sqrt(2 * self.alpha)

    def _alpha_at(self, kink):
        return (kink / self.norm) ** 2 / 2


@register(kind="penalty", source="Parikh and Boyd (2014)", example=lambda: Box(-1.0, 2.0))
@dataclass(frozen=True, eq=False)
class Box(Value):
    """The indicator of ``low <= w <= high``: 0 inside, infinity outside; the prox clips. Bounds broadcast.

    A step scales the penalty, which leaves an indicator as it is.
    """

    low: Any = -math.inf
    high: Any = math.inf

    weights = None
    positive = False

    def __post_init__(self):
        for name in ("low", "high"):
            bound = getattr(self, name)
            if np.ndim(bound):
                bound = np.array(bound, dtype=np.float64)
                check("bounds", float(bound.min()))  # NaN
                bound.setflags(write=False)
                object.__setattr__(self, name, bound)
            else:
                check(name, bound)
        if not np.all(np.asarray(self.low) <= np.asarray(self.high)):
            raise InputError(f"high: got {self.high} below low {self.low}, want low <= high")

    @property
    def compiled(self):
        """Name and parameters of the compiled twin; ``None`` where the bounds are arrays."""
        return None if np.ndim(self.low) or np.ndim(self.high) else ("Box", (float(self.low), float(self.high)))

    def each(self, x: Any) -> Any:
        """0 inside, infinity outside, for each coordinate."""
        x = floating("x", x)
        outside = (x < like(x, self.low)) | (x > like(x, self.high))
        return unwrap(like(x, namespace(x).where(outside, math.inf, 0.0)))

    def value(self, x: Any) -> Any:
        """0 if every coordinate is inside, else infinity."""
        return self.each(x).sum()

    def prox(self, x: Any, step: Any = 1.0) -> Any:
        """The nearest point inside."""
        check_step(step)
        x = floating("x", x)
        xp = namespace(x)
        return unwrap(xp.minimum(xp.maximum(x, like(x, self.low)), like(x, self.high)))

    def subdifferential_distance(self, w: Any, gradient: Any) -> Any:
        """How far ``-gradient`` is from the normal cone at ``w`` (inside), per coordinate."""
        w, gradient = floating("w", w), floating("gradient", gradient)
        xp = namespace(w)
        down = xp.where(w <= like(w, self.low), xp.zeros_like(w), xp.clip(gradient, 0, None))
        up = xp.where(w >= like(w, self.high), xp.zeros_like(w), xp.clip(-gradient, 0, None))
        return unwrap(down + up)

    def support(self, w: Any) -> Any:
        """Where ``w`` is not zero."""
        return w != 0


@register(kind="penalty", source="Parikh and Boyd (2014)", example=lambda: NonNegative())
def NonNegative() -> Box:
    """The indicator of w >= 0, the box from 0 to infinity."""
    return Box(0.0, math.inf)


def _soft(size: Any, threshold: Any) -> Any:
    return namespace(size).clip(size - threshold, 0, None)


def _kept(condition: Any, x: Any) -> Any:
    return namespace(x).where(condition, x, namespace(x).zeros_like(x))


def _mcp(size: Any, alpha: float, gamma: float) -> Any:
    rising = alpha * size - size**2 / (2 * gamma)
    return namespace(size).where(size < alpha * gamma, rising, gamma * alpha**2 / 2)


def _mcp_prox(size: Any, step: Any, alpha: float, gamma: float) -> Any:
    xp = namespace(size)
    late = step >= gamma  # the sum is concave up to the knee, so an end point wins; a draw goes to zero
    gap = xp.where(late, xp.ones_like(step), 1 - step / gamma)
    early = xp.where(size < alpha * gamma, _soft(size, alpha * step) / gap, size)
    return xp.where(late, _kept(size > alpha * (step * gamma) ** 0.5, size), early)


def _lq_ratio(t: Any, q: float, jump: float) -> Any:
    """w / |x| at ``|x| = t * threshold``, t >= 1."""
    xp = namespace(t)
    if q == 0.5:
        angle = xp.arccos(math.sqrt(0.5) / (t * t**0.5))
        return 2 / 3 * (1 + xp.cos(2 * math.pi / 3 - 2 / 3 * angle))
    if abs(q - 2 / 3) < 1e-12:
        third = xp.arccosh(0.75 * math.sqrt(3) * t * t) / 3
        square = 4 / math.sqrt(3) * 2 ** (-2 / 3) * xp.cosh(third)
        a = square**0.5
        return ((a + xp.clip(2 * t / a - square, 0, None) ** 0.5) / 2) ** 3 / t
    # r - 1 + c r^(q-1) is convex, and increasing right of its larger root: Newton's steps from 1 only fall.
    c = q * jump ** (q - 2) * t ** (q - 2)
    r = xp.ones_like(t)
    for _ in range(12):
        power = c * r ** (q - 2)
        r = r - (r - 1 + power * r) / (1 - (1 - q) * power)
    return r


def _no_alpha_max(name: str) -> InputError:
    return InputError(f"alpha_max: got {name}, for which zero is a local minimum at every alpha; want a penalty "
                      "with a finite slope at zero")  # fmt: skip

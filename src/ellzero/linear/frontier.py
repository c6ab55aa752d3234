"""Penalised methods of the task ``regression``, from a budget of k coefficients to a fitted model; the list of all.

Lives here: ridge, and the Lasso, elastic net, adaptive Lasso, MCP and SCAD: how a budget becomes a point on a path, and
the tuning space of each. Does not live here: methods that count (``frontier_greedy``), the fitted point and scaling
(``frontier_base``), data and splits (the task), the algorithms (``solvers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ellzero.errors import check
from ellzero.linear.frontier_base import BATCH, FittedLinear, Standard, Tuned, count, r_squared
from ellzero.linear.frontier_greedy import HTP, IHT, NST, OMP, SBL, SquareRootOMP
from ellzero.parts import penalties
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.solvers import coordinate_descent

__all__ = [
    "BATCH", "HTP", "IHT", "MCP", "NST", "OMP", "SBL", "SCAD", "AdaptiveLasso", "ElasticNet", "FittedLinear", "Lasso",
    "Ridge", "SquareRootOMP", "methods", "r_squared",
]  # fmt: skip


@register(kind="method", wing="linear", name="ridge", source="Hoerl and Kennard (1970)", example=lambda: Ridge())
@dataclass(frozen=True)
class Ridge(Tuned):
    """All coefficients, shrunk: ``|y - X w|^2 / (2 n) + alpha |w|^2 / 2``. The dense reference."""

    alpha: float = 0.01
    standardise: bool = True

    name: ClassVar[str] = "ridge"
    dense: ClassVar[bool] = True

    def __post_init__(self):
        check("alpha", self.alpha, above=0)

    def _draw(self, place, generator):
        return {"alpha": 10 ** (-4 + 5.5 * place)}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """One fit, whatever the budgets; by the smaller of the two Gram matrices."""
        standard = Standard.of(data, self.standardise)
        yield standard.fitted(_ridge(standard, self.alpha))


@dataclass(frozen=True)
class Penalised(Tuned):
    """The densest point of a path with at most k coefficients, blended with a refit on its support.

    ``blend`` 1 keeps the path's coefficients, 0 takes the refit; ``l2`` shrinks the refit.
    """

    blend: float = 1.0
    l2: float = 0.0
    standardise: bool = True
    n_alphas: int = 100
    eps: float = 1e-3
    tol: float = 1e-6

    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("blend", self.blend, at_least=0, at_most=1)
        check("l2", self.l2, at_least=0)

    def _penalty(self, standard: Standard) -> Any:
        raise NotImplementedError

    def _blends(self, place: float, generator: np.random.Generator) -> dict[str, float]:
        """A blend, and a shrinkage of the refit where there is one."""
        blend = float(generator.choice([0.0, 0.25, 0.5, 0.75, 1.0]))
        return {"blend": blend, "l2": 10 ** (-5 + 5 * place) if blend < 1 else 0.0}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """Walk down the path as far as each budget allows; between two alphas search for the one that fits k."""
        standard = Standard.of(data, self.standardise)
        counts = [count(budget, standard.X.shape[1]) for budget in budgets]
        penalty = self._penalty(standard)
        walk = coordinate_descent.iterate(
            standard.X, standard.y, penalty, n_alphas=self.n_alphas, eps=self.eps, fit_intercept=False, tol=self.tol
        )  # fmt: skip
        seen: list[tuple[float, np.ndarray]] = []
        for k in counts:
            while not seen or all(np.count_nonzero(coef) <= k for _, coef in seen):
                step = next(walk, None)
                if step is None:
                    break
                seen.append((step[0], step[1].coef))
            coef = self._densest(standard, penalty, seen, k)
            if self.blend < 1:
                coef = self.blend * coef + (1 - self.blend) * standard.refit(np.flatnonzero(coef), self.l2)
            yield standard.fitted(coef)

    def _densest(self, standard: Standard, penalty: Any, seen: list[tuple[float, np.ndarray]], k: int) -> np.ndarray:
        first = next((i for i, (_, coef) in enumerate(seen) if np.count_nonzero(coef) > k), len(seen))
        best = max(range(first), key=lambda i: (np.count_nonzero(seen[i][1]), i))
        coef = seen[best][1]
        if first == len(seen):
            return coef
        high, low = seen[first - 1][0], seen[first][0]
        start = seen[first - 1][1]
        for _ in range(12):
            if np.count_nonzero(coef) == k:
                break
            middle = float(np.sqrt(high * low))
            found = coordinate_descent.solve(
                standard.X, standard.y, replace(penalty, alpha=middle), fit_intercept=False, tol=self.tol, start=start
            ).coef
            if np.count_nonzero(found) > k:
                low = middle
            else:
                high, start = middle, found
                coef = found if np.count_nonzero(found) >= np.count_nonzero(coef) else coef
        return coef


@register(kind="method", wing="linear", name="lasso", source="Meinshausen (2007)", example=lambda: Lasso())
@dataclass(frozen=True)
class Lasso(Penalised):
    """The densest point of the Lasso path with at most k coefficients, blended with a refit on its support.

    ``blend`` 1 keeps the Lasso's shrunk coefficients, 0 takes the refit (the relaxed Lasso of Meinshausen, 2007, as
    simplified by Hastie, Tibshirani and Tibshirani, 2020); ``l2`` shrinks the refit.
    """

    name: ClassVar[str] = "lasso"

    def _draw(self, place, generator):
        # Without a refit there is nothing to tune, and the first candidate is that already.
        return {"blend": float(generator.choice([0.0, 0.25, 0.5, 0.75])), "l2": 10 ** (-5 + 5 * place)}

    def _penalty(self, standard):
        return penalties.L1(1.0)


@register(kind="method", wing="linear", name="elastic net", source="Zou and Hastie (2005)",
          example=lambda: ElasticNet())  # fmt: skip
@dataclass(frozen=True)
class ElasticNet(Penalised):
    """The elastic net's path in place of the Lasso's: columns that go together come together. Zou and Hastie (2005).

    Its coefficients are shrunk twice, so that a refit is the default here.
    """

    blend: float = 0.0
    l1_ratio: float = 0.5

    name: ClassVar[str] = "elastic net"

    def __post_init__(self):
        super().__post_init__()
        check("l1_ratio", self.l1_ratio, above=0, at_most=1)

    def _draw(self, place, generator):
        return {"l1_ratio": 10 ** (-1.5 + 1.49 * place), **self._blends(generator.random(), generator)}

    def _penalty(self, standard):
        return penalties.ElasticNet(1.0, self.l1_ratio)


@register(kind="method", wing="linear", name="adaptive lasso", source="Zou (2006)", example=lambda: AdaptiveLasso())
@dataclass(frozen=True)
class AdaptiveLasso(Penalised):
    """The Lasso whose penalty on a column falls with its ridge coefficient, ``weight = |ridge|^-power``. Zou (2006)."""

    power: float = 1.0
    ridge: float = 0.1
    eps: float = 1e-6  # weights spread over decades, and so does the path

    name: ClassVar[str] = "adaptive lasso"

    def __post_init__(self):
        super().__post_init__()
        check("power", self.power, above=0)
        check("ridge", self.ridge, above=0)

    def _draw(self, place, generator):
        power = float(generator.choice([0.5, 1.0, 2.0]))
        return {"power": power, "ridge": 10 ** (-3 + 4 * place), **self._blends(generator.random(), generator)}

    def _penalty(self, standard):
        size = abs(_ridge(standard, self.ridge))
        size = size / (size.max() or 1.0)
        return penalties.L1(1.0, weights=np.where(size > 0, np.where(size > 0, size, 1.0) ** -self.power, np.inf))


@register(kind="method", wing="linear", name="mcp", source="Zhang (2010)", example=lambda: MCP())
@dataclass(frozen=True)
class MCP(Penalised):
    """The path of the minimax concave penalty, which does not shrink what is large. Zhang (2010)."""

    gamma: float = 3.0

    name: ClassVar[str] = "mcp"

    def __post_init__(self):
        super().__post_init__()
        check("gamma", self.gamma, above=1)

    def _draw(self, place, generator):
        return {"gamma": 1 + 10 ** (-0.3 + 1.8 * place), **self._blends(generator.random(), generator)}

    def _penalty(self, standard):
        return penalties.MCP(1.0, self.gamma)


@register(kind="method", wing="linear", name="scad", source="Fan and Li (2001)", example=lambda: SCAD())
@dataclass(frozen=True)
class SCAD(Penalised):
    """The path of the smoothly clipped absolute deviation: as ``MCP``, the Lasso for small ones. Fan and Li (2001)."""

    gamma: float = 3.7

    name: ClassVar[str] = "scad"

    def __post_init__(self):
        super().__post_init__()
        check("gamma", self.gamma, above=2)

    def _draw(self, place, generator):
        return {"gamma": 2 + 10 ** (-0.3 + 1.8 * place), **self._blends(generator.random(), generator)}

    def _penalty(self, standard):
        return penalties.SCAD(1.0, self.gamma)


def _ridge(standard: Standard, alpha: float) -> np.ndarray:
    """``[p]`` by the smaller of the two Gram matrices."""
    X, y, shift = standard.X, standard.y, len(standard.y) * alpha
    if X.shape[1] <= len(X):
        return np.linalg.solve(X.T @ X + shift * np.eye(X.shape[1]), X.T @ y)
    return X.T @ np.linalg.solve(X @ X.T + shift * np.eye(len(X)), y)


def methods() -> dict[str, Any]:
    """The methods that the task ``regression`` compares, by name."""
    every = (
        Ridge(), Lasso(), OMP(), IHT(), ElasticNet(), AdaptiveLasso(), MCP(), SCAD(), SquareRootOMP(), HTP(), NST(),
        SBL(),
    )  # fmt: skip
    return {method.name: method for method in every}

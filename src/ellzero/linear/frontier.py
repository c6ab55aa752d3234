"""Ridge, Lasso, OMP and IHT as methods of the comparison: from a budget of k coefficients to a fitted model.

Lives here: how a budget becomes a point on a path or a count, the tuning space of each method, and the fitted point.
Does not live here: data and splits (the task), the algorithms (``solvers``). Scaling is learned on the training part
alone, and the model that comes out is in the units of the columns as given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ellzero.errors import InputError, check
from ellzero.linear.artefact import LinearModel
from ellzero.parts import penalties
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent, pursuit, thresholding

__all__ = ["IHT", "OMP", "FittedLinear", "Lasso", "Ridge", "methods", "r_squared"]

BATCH = 1000


@dataclass(frozen=True, eq=False)
class FittedLinear:
    """A linear model with what the comparison asks of it; ``realised`` counts its coefficients."""

    model: LinearModel

    @property
    def realised(self) -> float:
        return float(len(self.model.support))

    @property
    def nbytes(self) -> int:
        return self.model.nbytes

    def score(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """R^2 on ``(X, y)``."""
        X, y = part
        return r_squared(y, self.model.predict(X))

    def time(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """Median seconds to predict 1000 rows (those of the part, repeated)."""
        X = np.ascontiguousarray(np.resize(part[0], (BATCH, part[0].shape[1])))
        spans = []
        for _ in range(12):
            start = time.perf_counter()
            self.model.predict(X)
            spans.append(time.perf_counter() - start)
        return float(np.median(spans[2:]))

    def save(self, directory: Path) -> None:
        """``model.safetensors`` and ``coefficients.csv``."""
        self.model.save(directory)


def r_squared(y: np.ndarray, prediction: np.ndarray) -> float:
    """``1 - |y - prediction|^2 / |y - mean(y)|^2``."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        raise InputError(f"y: all {len(y)} targets of this part are equal, so R^2 is not defined; want others")
    return 1 - float(((y - prediction) ** 2).sum()) / total


@dataclass(frozen=True, eq=False)
class _Standard:
    """The training part with columns of mean 0 and (if wanted) mean square 1, and the way back."""

    X: np.ndarray
    y: np.ndarray
    means: np.ndarray
    scale: np.ndarray
    y_mean: float
    info: Any

    @classmethod
    def of(cls, data: Data, standardise: bool) -> _Standard:
        X, y = (np.asarray(part, dtype=np.float64) for part in data.train)
        means, y_mean = X.mean(axis=0), float(y.mean())
        X = np.subtract(X, means, order="F")
        spread = np.sqrt(np.einsum("ij,ij->j", X, X) / len(X))
        # A column that is constant up to rounding carries nothing; left alone it would be blown up to noise.
        constant = spread <= 1e-12 * abs(means)
        X[:, constant] = 0
        scale = np.where((spread > 0) & ~constant & standardise, spread, 1.0)
        X /= scale
        return cls(X, y - y_mean, means, scale, y_mean, data.info)

    def refit(self, support: np.ndarray, l2: float) -> np.ndarray:
        """``[p]`` least squares on the support with ``n l2 |w|^2`` added."""
        coef = np.zeros(self.X.shape[1])
        if len(support):
            A = self.X[:, support]
            if l2 > 0:
                rows = np.sqrt(len(A) * l2) * np.eye(len(support))
                coef[support] = np.linalg.lstsq(np.vstack([A, rows]), np.r_[self.y, np.zeros(len(support))])[0]
            else:
                coef[support] = np.linalg.lstsq(A, self.y)[0]
        return coef

    def fitted(self, coef: np.ndarray) -> FittedLinear:
        raw = coef / self.scale
        names = self.info.get("columns")
        model = LinearModel.of(raw, self.y_mean - float(self.means @ raw), names, self.info.get("target", "y"))
        return FittedLinear(model)


def _count(budget: float, columns: int) -> int:
    if budget != int(budget):
        raise InputError(f"budgets: got {budget:g}, want whole numbers of coefficients")
    return int(check("budgets", int(budget), at_least=1, at_most=columns))


class _Tuned:
    """Random search over a method's own settings; the first candidate is the method as it is."""

    def candidates(self, trials: int, seed: int) -> Sequence[Any]:
        """``trials`` variants of the settings, drawn by seed; the first is this method itself.

        The main dial is stratified: of m draws one falls into each m-th of its range.
        """
        generator, more = rng(seed, "linear", self.name), trials - 1
        strata = (generator.permutation(more) + generator.random(more)) / max(more, 1)
        return [self, *(replace(self, **self._draw(float(place), generator)) for place in strata)]


@register(kind="method", wing="linear", name="ridge", source="Hoerl and Kennard (1970)", example=lambda: Ridge())
@dataclass(frozen=True)
class Ridge(_Tuned):
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
        standard = _Standard.of(data, self.standardise)
        X, y, shift = standard.X, standard.y, len(standard.y) * self.alpha
        if X.shape[1] <= len(X):
            coef = np.linalg.solve(X.T @ X + shift * np.eye(X.shape[1]), X.T @ y)
        else:
            coef = X.T @ np.linalg.solve(X @ X.T + shift * np.eye(len(X)), y)
        yield standard.fitted(coef)


@register(kind="method", wing="linear", name="lasso", source="Meinshausen (2007)", example=lambda: Lasso())
@dataclass(frozen=True)
class Lasso(_Tuned):
    """The densest point of the Lasso path with at most k coefficients, blended with a refit on its support.

    ``blend`` 1 keeps the Lasso's shrunk coefficients, 0 takes the refit (the relaxed Lasso of Meinshausen, 2007, as
    simplified by Hastie, Tibshirani and Tibshirani, 2020); ``l2`` shrinks the refit.
    """

    blend: float = 1.0
    l2: float = 0.0
    standardise: bool = True
    n_alphas: int = 100
    eps: float = 1e-3
    tol: float = 1e-6

    name: ClassVar[str] = "lasso"
    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("blend", self.blend, at_least=0, at_most=1)
        check("l2", self.l2, at_least=0)

    def _draw(self, place, generator):
        # Without a refit there is nothing to tune, and the first candidate is that already.
        return {"blend": float(generator.choice([0.0, 0.25, 0.5, 0.75])), "l2": 10 ** (-5 + 5 * place)}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """Walk down the path as far as each budget allows; between two alphas search for the one that fits k."""
        standard = _Standard.of(data, self.standardise)
        counts = [_count(budget, standard.X.shape[1]) for budget in budgets]
        walk = coordinate_descent.iterate(
            standard.X, standard.y, penalties.L1(1.0), n_alphas=self.n_alphas, eps=self.eps, fit_intercept=False,
            tol=self.tol,
        )  # fmt: skip
        seen: list[tuple[float, np.ndarray]] = []
        for k in counts:
            while not seen or all(np.count_nonzero(coef) <= k for _, coef in seen):
                step = next(walk, None)
                if step is None:
                    break
                seen.append((step[0], step[1].coef))
            coef = self._densest(standard, seen, k)
            if self.blend < 1:
                coef = self.blend * coef + (1 - self.blend) * standard.refit(np.flatnonzero(coef), self.l2)
            yield standard.fitted(coef)

    def _densest(self, standard: _Standard, seen: list[tuple[float, np.ndarray]], k: int) -> np.ndarray:
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
                standard.X, standard.y, penalties.L1(middle), fit_intercept=False, tol=self.tol, start=start
            ).coef
            if np.count_nonzero(found) > k:
                low = middle
            else:
                high, start = middle, found
                coef = found if np.count_nonzero(found) >= np.count_nonzero(coef) else coef
        return coef


@register(
    kind="method", wing="linear", name="omp", source="Pati, Rezaiifar and Krishnaprasad (1993)", example=lambda: OMP()
)
@dataclass(frozen=True)
class OMP(_Tuned):
    """Orthogonal matching pursuit: the supports of all budgets from one run; ``l2`` shrinks the fit on each."""

    l2: float = 0.0
    standardise: bool = True

    name: ClassVar[str] = "omp"
    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("l2", self.l2, at_least=0)

    def _draw(self, place, generator):
        return {"l2": 10 ** (-5 + 5.5 * place)}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """One run to the largest budget, then a refit per budget."""
        standard = _Standard.of(data, self.standardise)
        counts = [_count(budget, standard.X.shape[1]) for budget in budgets]
        order = pursuit.omp(standard.X, standard.y, min(max(counts, default=1), *standard.X.shape)).support
        for k in counts:
            yield standard.fitted(standard.refit(order[:k], self.l2))


@register(kind="method", wing="linear", name="iht", source="Blumensath and Davies (2010)", example=lambda: IHT())
@dataclass(frozen=True)
class IHT(_Tuned):
    """Normalised iterative hard thresholding at each k; ``l2`` shrinks the fit on the support it finds.

    With ``warm`` a larger budget starts from the solution of the one before it.
    """

    l2: float = 0.0
    warm: bool = True
    standardise: bool = True
    max_iter: int = 300

    name: ClassVar[str] = "iht"
    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("l2", self.l2, at_least=0)

    def _draw(self, place, generator):
        return {"l2": 10 ** (-5 + 5.5 * place), "warm": bool(generator.integers(2))}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """A run per budget."""
        standard = _Standard.of(data, self.standardise)
        start = None
        for k in [_count(budget, standard.X.shape[1]) for budget in budgets]:
            found = thresholding.iht(standard.X, standard.y, k, start=start, tol=1e-6, max_iter=self.max_iter)
            start = found.coef if self.warm else None
            yield standard.fitted(standard.refit(np.flatnonzero(found.coef), self.l2))


def methods() -> dict[str, Any]:
    """The methods that the task ``regression`` compares, by name."""
    return {method.name: method for method in (Ridge(), Lasso(), OMP(), IHT())}

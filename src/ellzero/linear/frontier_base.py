"""What the methods of the task ``regression`` share: the fitted point, the standardised training part, random search.

Lives here: ``FittedLinear``, ``Standard``, ``Tuned``, ``count``. Does not live here: the methods (``frontier``,
``frontier_greedy``), data and splits (the task). Scaling is learned on the training part alone, and the model that
comes out is in the units of the columns as given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, check
from ellzero.linear.artefact import LinearModel
from ellzero.protocol import Data
from ellzero.rng import rng

__all__ = ["BATCH", "FittedLinear", "Standard", "Tuned", "count", "r_squared"]

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
class Standard:
    """The training part with columns of mean 0 and (if wanted) mean square 1, and the way back."""

    X: np.ndarray
    y: np.ndarray
    means: np.ndarray
    scale: np.ndarray
    y_mean: float
    info: Any

    @classmethod
    def of(cls, data: Data, standardise: bool) -> Standard:
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


def count(budget: float, columns: int) -> int:
    if budget != int(budget):
        raise InputError(f"budgets: got {budget:g}, want whole numbers of coefficients")
    return int(check("budgets", int(budget), at_least=1, at_most=columns))


class Tuned:
    """Random search over a method's own settings; the first candidate is the method as it is."""

    def candidates(self, trials: int, seed: int) -> Sequence[Any]:
        """``trials`` variants of the settings, drawn by seed; the first is this method itself.

        The main dial is stratified: of m draws one falls into each m-th of its range.
        """
        generator, more = rng(seed, "linear", self.name), trials - 1
        strata = (generator.permutation(more) + generator.random(more)) / max(more, 1)
        return [self, *(replace(self, **self._draw(float(place), generator)) for place in strata)]

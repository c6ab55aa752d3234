"""A small real task: scikit-learn's diabetes set, least squares and the ridge with its k largest coefficients."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ellzero.errors import InputError, check_choice
from ellzero.protocol import Data, Output
from ellzero.rng import rng


@dataclass(frozen=True)
class Linear:
    coef: Any
    intercept: float

    @property
    def realised(self):
        return int(np.count_nonzero(self.coef))

    @property
    def nbytes(self):
        return 12 * self.realised

    def predict(self, X):
        return X @ self.coef + self.intercept

    def score(self, part):
        X, y = part
        return float(1 - np.mean((y - self.predict(X)) ** 2) / np.var(y))

    def time(self, part):
        return 1e-6

    def save(self, directory):
        np.save(Path(directory) / "coef.npy", self.coef)
        (Path(directory) / "model.json").write_text(json.dumps({"intercept": self.intercept}))


def ridge(X, y, alpha):
    mean, level = X.mean(axis=0), y.mean()
    Z = X - mean
    coef = np.linalg.solve(Z.T @ Z + alpha * np.eye(X.shape[1]), Z.T @ (y - level))
    return coef, mean, level


@dataclass(frozen=True)
class LeastSquares:
    name: ClassVar[str] = "least_squares"
    dense: ClassVar[bool] = True

    def candidates(self, trials, seed):
        return [self]

    def frontier(self, data, budgets, seed):
        X, y = data.train
        coef, mean, level = ridge(X, y, 0.0)
        yield Linear(coef, float(level - mean @ coef))


@dataclass(frozen=True)
class Largest:
    """The k largest coefficients of a ridge, refitted."""

    alpha: float = 1e-3
    name: str = "largest"
    dense: ClassVar[bool] = False

    def candidates(self, trials, seed):
        draw = rng(seed, self.name)
        return [self, *(replace(self, alpha=float(10 ** draw.uniform(-4, 1))) for _ in range(trials - 1))]

    def frontier(self, data, budgets, seed):
        X, y = data.train
        full, _, _ = ridge(X, y, self.alpha)
        for k in budgets:
            kept = np.argsort(-abs(full), kind="stable")[: int(k)]
            coef = np.zeros(X.shape[1])
            part, mean, level = ridge(X[:, kept], y, self.alpha)
            coef[kept] = part
            yield Linear(coef, float(level - mean @ part))


@dataclass(frozen=True)
class AtRandom(Largest):
    """k coefficients at random: what choosing must beat."""

    name: str = "at_random"

    def frontier(self, data, budgets, seed):
        X, y = data.train
        order = rng(seed, "order").permutation(X.shape[1])
        for k in budgets:
            kept, coef = order[: int(k)], np.zeros(X.shape[1])
            part, mean, level = ridge(X[:, kept], y, self.alpha)
            coef[kept] = part
            yield Linear(coef, float(level - mean @ part))


@dataclass(frozen=True)
class Diabetes:
    """Predict the progression of diabetes from few of ten measurements."""

    sealed: bool = False
    shuffle: int = 0
    name: ClassVar[str] = "diabetes"
    fidelity: ClassVar[str] = "R2"
    better: ClassVar[str] = "higher"
    bound: ClassVar[float] = 1.0
    unit: ClassVar[str] = "coefficients"
    of: ClassVar[str] = "kept"
    batch: ClassVar[str] = "all validation rows"
    extra: Mapping = field(default_factory=dict)

    def describe(self):
        return {"name": self.name, "shuffle": self.shuffle}

    def to_spec(self):
        return asdict(self)

    @classmethod
    def from_spec(cls, spec):
        return cls(**spec)

    @classmethod
    def from_options(cls, *, data=None, model=None, hook=None, texts=None, eval=None, target=None, extra=None):
        for name in extra or {}:
            check_choice("option", name, ["shuffle"])
        if data or model or hook or texts or eval or target:
            raise InputError("data: this task has its own")
        return cls(shuffle=int((extra or {}).get("shuffle", 0)))

    def _parts(self, seed):
        from sklearn.datasets import load_diabetes

        X, y = load_diabetes(return_X_y=True)
        order = rng(self.shuffle, "test").permutation(len(y))
        rest, test = order[:340], order[340:]
        rest = rng(seed, "split").permutation(rest)
        return [(X[rows] * 20, y[rows]) for rows in (rest[:240], rest[240:], test)]

    def data(self, seed):
        train, validation, _ = self._parts(seed)
        return Data(train, validation)

    def refit_data(self, seed, which):
        train, validation, _ = self._parts(seed)
        if which == "all":
            train = tuple(np.concatenate(pair) for pair in zip(train, validation))
        return Data(train, validation)

    def test(self):
        if self.sealed:
            raise AssertionError("the test part was read")
        return self._parts(0)[2]

    def methods(self):
        return {m.name: m for m in (LeastSquares(), Largest(), AtRandom())}

    def budgets(self, data):
        return [1, 3, 10]

    def check_budgets(self, budgets):
        for k in budgets:
            if k != int(k) or not 1 <= k <= 10:
                raise InputError(f"budgets: got {k}, want a whole number from 1 to 10")

    def apply(self, directory, source):
        coef = np.load(Path(directory) / "coef.npy")
        intercept = json.loads((Path(directory) / "model.json").read_text())["intercept"]
        try:
            X = np.load(source)
        except OSError as error:
            raise InputError(f"{source}: no such file") from error
        if X.ndim != 2 or X.shape[1] != len(coef):
            raise InputError(f"data: got shape {X.shape}, want [rows, {len(coef)}]")
        return Output({"prediction": X @ coef + intercept}, "progression after one year")


@dataclass(frozen=True)
class Noise(Diabetes):
    """Labels that have nothing to do with the columns."""

    def _parts(self, seed):
        X, y = rng(5, "X").normal(size=(600, 300)), rng(5, "y").normal(size=600)
        rows = rng(seed, "split").permutation(200)
        return [(X[r], y[r]) for r in (rows[:140], rows[140:], np.arange(200, 600))]

    def methods(self):
        return {m.name: m for m in (Largest(), AtRandom())}

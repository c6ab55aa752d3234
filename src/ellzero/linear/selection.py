"""Ways to choose columns, as methods of the comparison: accuracy of one fixed judge against columns kept.

Lives here: random choice, one-shot scores, greedy least squares, the Lasso's order of entry (also against knockoffs,
and over half-samples) and sequential attention, each from a budget of k columns to a judged choice. Does not live here:
the judge (``judge``), the selectors themselves (``screening``, ``knockoffs``, ``stability``, ``sequential_attention``),
data and splits (the task). Columns are standardised on the training part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.linear.information import KernelDensity
from ellzero.linear.judge import Judge
from ellzero.linear.screening import mutual_information
from ellzero.parts import penalties
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent

__all__ = ["FittedSelection", "forward_columns", "methods"]

BATCH = 1000


@dataclass(frozen=True, eq=False)
class FittedSelection:
    """A judge on the chosen columns; ``realised`` counts them."""

    judge: Judge

    @property
    def realised(self) -> float:
        return float(len(self.judge.support))

    @property
    def nbytes(self) -> int:
        return self.judge.nbytes

    def score(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """Share of rows ``(X, y)`` whose likeliest class is theirs."""
        X, y = part
        return float((self.judge.probabilities(X).argmax(1) == y).mean())

    def time(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """Median seconds to judge 1000 rows (those of the part, repeated)."""
        X = np.ascontiguousarray(np.resize(part[0], (BATCH, part[0].shape[1])))
        spans = []
        for _ in range(12):
            start = time.perf_counter()
            self.judge.probabilities(X)
            spans.append(time.perf_counter() - start)
        return float(np.median(spans[2:]))

    def save(self, directory: Path) -> None:
        """``model.safetensors``, which names the columns that it reads."""
        self.judge.save(directory)


class _Selector:
    """From a choice of columns to judged fits; a subclass says how it chooses."""

    dense: ClassVar[bool] = False

    def candidates(self, trials: int, seed: int) -> Sequence[Any]:
        """``trials`` variants of the settings, drawn by seed; the first is this method itself."""
        stream = rng(check_integer("seed", seed, at_least=0), "selection", self.name)
        return [self, *(replace(self, **self._draw(stream)) for _ in range(trials - 1))]

    def _draw(self, stream: np.random.Generator) -> Mapping[str, Any]:
        return {}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedSelection]:
        """Choose for each budget, and train the judge on the choice."""
        X, y = data.train
        mean, spread = X.mean(0), X.std(0)
        Z = (X - mean) / np.where(spread > 1e-12 * np.maximum(abs(mean), 1e-300), spread, 1)
        info = {name: data.info[name] for name in ("columns", "classes", "target")}
        counts = [_count(budget, X.shape[1]) for budget in budgets]
        for chosen in self._choices(Z, y, counts, seed):
            yield FittedSelection(Judge.train(X, y, chosen, seed, **info))

    def _choices(self, Z: np.ndarray, y: np.ndarray, counts: Sequence[int], seed: int) -> Iterator[np.ndarray]:
        order = self._order(Z, y, max(counts, default=1), seed)
        return (order[:k] for k in counts)


def _count(budget: float, columns: int) -> int:
    if budget != int(budget):
        raise InputError(f"budgets: got {budget:g}, want whole numbers of columns")
    return int(check("budgets", int(budget), at_least=1, at_most=columns))


def _descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


def _indicators(y: np.ndarray) -> np.ndarray:
    """One centred column per class; of two classes one says it all."""
    classes = np.unique(y)
    Y = (y[:, None] == (classes[1:] if len(classes) == 2 else classes)).astype(np.float64)
    return Y - Y.mean(0)


@register(kind="method", wing="linear", name="all columns", source="none", example=lambda: AllColumns())
@dataclass(frozen=True)
class AllColumns(_Selector):
    """Every column: the reference line."""

    name: ClassVar[str] = "all columns"
    dense: ClassVar[bool] = True

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedSelection]:
        """One fit, whatever the budgets."""
        yield from super().frontier(data, (data.train[0].shape[1],), seed)

    def _order(self, Z, y, k, seed):
        return np.arange(Z.shape[1])


@register(kind="method", wing="linear", name="random columns", source="none", example=lambda: RandomColumns())
@dataclass(frozen=True)
class RandomColumns(_Selector):
    """Columns by chance: what a choice must beat, and where columns repeat one another that is not easy."""

    name: ClassVar[str] = "random"

    def _order(self, Z, y, k, seed):
        return rng(seed, "random columns").permutation(Z.shape[1])


@register(kind="method", wing="linear", name="anova", source="Fisher (1925)", example=lambda: Anova())
@dataclass(frozen=True)
class Anova(_Selector):
    """The largest F statistics of the classes' means."""

    name: ClassVar[str] = "anova"

    def _order(self, Z, y, k, seed):
        Y = _indicators(y)
        explained = ((np.linalg.qr(Y)[0].T @ (Z - Z.mean(0))) ** 2).sum(0)
        return _descending(explained / np.maximum(((Z - Z.mean(0)) ** 2).sum(0), 1e-300))


@register(id="S104", kind="method", wing="linear", name="information",
          source="Contributions to high-dimensional data analysis (2025)", example=lambda: Information())  # fmt: skip
@dataclass(frozen=True)
class Information(_Selector):
    """The largest mutual information with the class, by kernel densities (``screening``)."""

    bandwidth: float | None = None
    scale: str = "normal"

    name: ClassVar[str] = "information"

    def __post_init__(self):
        KernelDensity(bandwidth=self.bandwidth, scale=self.scale)

    def _draw(self, stream):
        return {"bandwidth": float(10 ** stream.uniform(-1.5, 0)), "scale": str(stream.choice(["normal", "range"]))}

    def _order(self, Z, y, k, seed):
        estimate = KernelDensity(bandwidth=self.bandwidth, scale=self.scale)
        return _descending(mutual_information(Z, y, estimate=estimate, discrete=True))


def forward_columns(Z: np.ndarray, Y: np.ndarray, k: int) -> np.ndarray:
    """Forward selection for many targets: k times the column joins whose least-squares fit with the chosen is best.

    ``Z [n, p]`` and ``Y [n, targets]`` centred. Fewer than k come out where the rank of Z runs out.
    Source: Chen, Billings and Luo (1989), orthogonal least squares, summed over targets.
    """
    norms = left = np.einsum("ij,ij->j", Z, Z)
    residual, basis, chosen = Y.copy(), np.zeros((len(Z), 0)), []
    for _ in range(min(k, *Z.shape)):
        score = np.where(left > 1e-9 * norms, ((residual.T @ Z) ** 2).sum(0) / np.maximum(left, 1e-300), -1)
        score[chosen] = -1
        best = int(score.argmax())
        if score[best] < 0:
            break
        unit = Z[:, best] - basis @ (basis.T @ Z[:, best])
        unit /= np.linalg.norm(unit)
        chosen.append(best)
        basis = np.column_stack([basis, unit])
        residual -= np.outer(unit, unit @ residual)
        left = left - (unit @ Z) ** 2
    return np.array(chosen, dtype=np.int64)


@register(kind="method", wing="linear", name="forward columns", source="Chen, Billings and Luo (1989)",
          example=lambda: Forward())  # fmt: skip
@dataclass(frozen=True)
class Forward(_Selector):
    """Greedy least squares on the classes' indicators (``forward_columns``); what it leaves out is filled by ANOVA."""

    name: ClassVar[str] = "forward"

    def _order(self, Z, y, k, seed):
        chosen = forward_columns(Z - Z.mean(0), _indicators(y), k)
        rest = Anova()._order(Z, y, k, seed)
        return np.append(chosen, rest[~np.isin(rest, chosen)])


@register(kind="method", wing="linear", name="lasso columns", source="Tibshirani (1996)",
          example=lambda: LassoColumns())  # fmt: skip
@dataclass(frozen=True)
class LassoColumns(_Selector):
    """The order in which columns enter the Lasso paths of the classes' indicators.

    A column's score is the largest alpha at which it is in use, by the ``"first"`` class that takes it or by the
    ``"sum"`` over classes.
    """

    by: str = "first"
    n_alphas: int = 60

    name: ClassVar[str] = "lasso"

    def __post_init__(self):
        check_choice("by", self.by, ("first", "sum"))
        check_integer("n_alphas", self.n_alphas, at_least=2)

    def _draw(self, stream):
        return {"by": str(stream.choice(["first", "sum"]))}

    def _order(self, Z, y, k, seed):
        Y = _indicators(y)
        entered = _entries(Z, Y, self.n_alphas, 4 * k)
        return _descending((entered.max(0) if self.by == "first" else entered.sum(0)) + _tie(Z, Y))


def _entries(Z: np.ndarray, Y: np.ndarray, n_alphas: int, enough: int) -> np.ndarray:
    """The largest alpha at which each column is in use, ``[targets, p]``; a path ends after ``enough`` columns."""
    penalty = penalties.L1(1.0)
    alphas = max(coordinate_descent.alpha_max(Z, target, penalty) for target in Y.T) * np.geomspace(1, 1e-2, n_alphas)
    entered = np.zeros((Y.shape[1], Z.shape[1]))
    for own, target in zip(entered, Y.T):
        for alpha, fit in coordinate_descent.iterate(Z, target, penalty, alphas=alphas, tol=1e-4):
            own[(fit.coef != 0) & (own == 0)] = alpha
            if np.count_nonzero(own) > enough:
                break
    return entered


def _tie(Z: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """What orders columns that no path reached: their largest correlation, too small to change any other order."""
    return 1e-9 * abs(Y.T @ Z).max(0) / len(Z)


@register(kind="method", wing="linear", name="stable columns", source="Meinshausen and Buehlmann (2010)",
          example=lambda: StableColumns())  # fmt: skip
@dataclass(frozen=True)
class StableColumns(_Selector):
    """The columns that most half-samples choose: of the k first to enter, by any class, their share of half-samples.

    The Lasso paths of the classes' indicators on ``n_pairs`` complementary pairs (``stability``), all solved together.
    """

    n_pairs: int = 10
    l1_ratio: float = 1.0

    name: ClassVar[str] = "stability"

    def __post_init__(self):
        check_integer("n_pairs", self.n_pairs, at_least=1)
        check("l1_ratio", self.l1_ratio, above=0, at_most=1)

    def _draw(self, stream):
        return {"l1_ratio": float(stream.choice([0.5, 0.8, 1.0]))}

    def _choices(self, Z, y, counts, seed):
        from ellzero.linear.stability import complementary_pairs, selection_counts

        halves = complementary_pairs(y, "logistic", self.n_pairs, rng(seed, "stable columns"))
        Y = _indicators(y)
        paths = {"l1_ratio": self.l1_ratio, "n_alphas": 40, "eps": 0.01}
        for k in counts:
            chosen = sum(selection_counts(Z, target, halves, k, **paths) for target in Y.T)
            yield _descending(chosen / halves.shape[1] + _tie(Z, Y))[:k]


@register(kind="method", wing="linear", name="knockoff columns", source="arXiv:1610.02351",
          example=lambda: KnockoffColumns())  # fmt: skip
@dataclass(frozen=True)
class KnockoffColumns(_Selector):
    """The columns that enter Lasso paths of the classes' indicators well before their knockoffs do.

    A column's score is the largest difference, over classes, of the alphas at which it and its knockoff come in use.
    """

    n_alphas: int = 60

    name: ClassVar[str] = "knockoffs"

    def __post_init__(self):
        check_integer("n_alphas", self.n_alphas, at_least=2)

    def _draw(self, stream):
        return {"n_alphas": int(stream.choice([30, 60, 120]))}

    def _order(self, Z, y, k, seed):
        from ellzero.linear.knockoffs import estimated_covariance, gaussian_knockoffs

        used = Z.std(0) > 0.5  # it is 1 unless the column is constant
        # The best diagonal takes time of order p^3 with a large constant: wide tables get the plain one.
        method = "mvr" if used.sum() <= 1000 else "equicorrelated"
        X, Y, p = Z[:, used], _indicators(y), int(used.sum())
        copies = gaussian_knockoffs(X, X.mean(0), estimated_covariance(X), method=method, seed=seed)
        entered = _entries(np.concatenate([X, copies], axis=1), Y, self.n_alphas, 8 * k)
        scores = np.full(Z.shape[1], -np.inf)
        scores[used] = (entered[:, :p] - entered[:, p:]).max(0) + _tie(X, Y)
        return _descending(scores)


@register(id="S050", kind="method", wing="linear", name="sequential attention", source="arXiv:2209.14881",
          extra="torch", claim="one training run chooses columns that a network uses better than one-shot scores do",
          example=lambda: Sequential())  # fmt: skip
@dataclass(frozen=True)
class Sequential(_Selector):
    """``sequential_attention``: one training run per budget."""

    lr: float = 1e-3
    weight_decay: float = 1e-3
    steps: int = 2000

    name: ClassVar[str] = "sequential attention"

    def __post_init__(self):
        check("lr", self.lr, above=0)
        check("weight_decay", self.weight_decay, at_least=0)
        check_integer("steps", self.steps, at_least=1)

    def _draw(self, stream):
        return {"lr": float(10 ** stream.uniform(-3.3, -2.3)), "weight_decay": float(10 ** stream.uniform(-4, -2))}

    def _choices(self, Z, y, counts, seed):
        from ellzero.linear.sequential_attention import SequentialAttention

        for k in counts:
            steps = max(self.steps, 8 * k)
            options = {"lr": self.lr, "weight_decay": self.weight_decay, "steps": steps, "seed": seed}
            yield SequentialAttention(k, **options).fit(Z, y.astype(str)).order_


def methods() -> dict[str, Any]:
    """The methods that the task ``selection`` compares, by name."""
    own = (AllColumns(), RandomColumns(), Anova(), Information(), LassoColumns(), StableColumns(), KnockoffColumns(),
           Forward(), Sequential())  # fmt: skip
    return {method.name: method for method in own}

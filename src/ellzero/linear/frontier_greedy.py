"""Methods of the task ``regression`` that count: greedy pursuit, thresholding, null-space tuning, sparse Bayes.

Lives here: from a budget of k coefficients to a support, and a fit on it; the tuning space of each method. Does not
live here: penalised methods (``frontier``), what all share (``frontier_base``), the algorithms (``solvers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ellzero.errors import check
from ellzero.kernels import top_k
from ellzero.linear.frontier_base import FittedLinear, Standard, Tuned, count
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.solvers import hard_thresholding, loss_pursuit, null_space, pursuit, sparse_bayes, thresholding

__all__ = ["HTP", "IHT", "NST", "OMP", "SBL", "SquareRootOMP"]


@register(
    kind="method", wing="linear", name="omp", source="Pati, Rezaiifar and Krishnaprasad (1993)", example=lambda: OMP()
)
@dataclass(frozen=True)
class OMP(Tuned):
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
        standard = Standard.of(data, self.standardise)
        counts = [count(budget, standard.X.shape[1]) for budget in budgets]
        order = pursuit.omp(standard.X, standard.y, min(max(counts, default=1), *standard.X.shape)).support
        for k in counts:
            yield standard.fitted(standard.refit(order[:k], self.l2))


@register(kind="method", wing="linear", name="iht", source="Blumensath and Davies (2010)", example=lambda: IHT())
@dataclass(frozen=True)
class IHT(Tuned):
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
        standard = Standard.of(data, self.standardise)
        start = None
        for k in [count(budget, standard.X.shape[1]) for budget in budgets]:
            found = thresholding.iht(standard.X, standard.y, k, start=start, tol=1e-6, max_iter=self.max_iter)
            start = found.coef if self.warm else None
            yield standard.fitted(standard.refit(np.flatnonzero(found.coef), self.l2))


@register(kind="method", wing="linear", name="square-root omp", source="arXiv:2303.00844", id="S037",
          claim="the square-root loss is tuned once for all noise levels", example=lambda: SquareRootOMP())  # fmt: skip
@dataclass(frozen=True)
class SquareRootOMP(Tuned):
    """Pursuit by the exact decrease of ``|r|_2 / sqrt(n) + alpha |w|_1``, which ends by itself where nothing gains.

    The supports of all budgets come from one run; ``l2`` shrinks the fit on each. Mohammad-Taheri and Adcock (2023).
    """

    alpha: float = 0.01
    l2: float = 0.0
    standardise: bool = True

    name: ClassVar[str] = "square-root omp"
    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("alpha", self.alpha, above=0)
        check("l2", self.l2, at_least=0)

    def _draw(self, place, generator):
        return {"alpha": 10 ** (-3 + 2.5 * place), "l2": float(10 ** generator.uniform(-5, 0))}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """One run to the largest budget, then a refit per budget."""
        standard = Standard.of(data, self.standardise)
        counts = [count(budget, standard.X.shape[1]) for budget in budgets]
        most = min(max(counts, default=1), *standard.X.shape)
        found = loss_pursuit.loss_pursuit(standard.X, standard.y, most, loss="square_root", alpha=self.alpha)
        for k in counts:
            yield standard.fitted(standard.refit(found.support[:k], self.l2))


class _Thresholded(Tuned):
    """A support of k columns from a run of its own for each budget; ``l2`` shrinks the fit on it."""

    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("l2", self.l2, at_least=0)

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """A run per budget."""
        standard = Standard.of(data, self.standardise)
        for k in [count(budget, standard.X.shape[1]) for budget in budgets]:
            yield standard.fitted(standard.refit(np.flatnonzero(self._coef(standard, k)), self.l2))


@register(kind="method", wing="linear", name="htp", source="Foucart (2011)", example=lambda: HTP())
@dataclass(frozen=True)
class HTP(_Thresholded):
    """Hard thresholding pursuit at each k; ``step`` is that of the gradient in units of 1 / n, 0 for a line search."""

    step: float = 0.0
    l2: float = 0.0
    standardise: bool = True

    name: ClassVar[str] = "htp"

    def __post_init__(self):
        super().__post_init__()
        check("step", self.step, at_least=0)

    def _draw(self, place, generator):
        return {"step": float(generator.choice([0.0, 0.1, 0.3, 1.0])), "l2": 10 ** (-5 + 5.5 * place)}

    def _coef(self, standard, k):
        step = self.step / len(standard.y) if self.step else None
        return hard_thresholding.hard_thresholding_pursuit(standard.X, standard.y, k, step=step).coef


@register(kind="method", wing="linear", name="nst", source="arXiv:1204.3700", id="S101",
          claim="ends after finitely many steps, often fewer than 10", example=lambda: NST())  # fmt: skip
@dataclass(frozen=True)
class NST(_Thresholded):
    """Null-space tuning with hard thresholding and feedback at each k; ``ridge`` gives up exact solutions for noise."""

    ridge: float = 1.0
    l2: float = 0.0
    standardise: bool = True

    name: ClassVar[str] = "nst"

    def __post_init__(self):
        super().__post_init__()
        check("ridge", self.ridge, at_least=0)

    def _draw(self, place, generator):
        return {"ridge": 10 ** (-3 + 5 * place), "l2": float(10 ** generator.uniform(-5, 0.5))}

    def _coef(self, standard, k):
        return null_space.null_space_tuning(standard.X, standard.y, k, ridge=self.ridge, restart=False).coef


@register(kind="method", wing="linear", name="sbl", source="Tipping (2001)", example=lambda: SBL())
@dataclass(frozen=True)
class SBL(Tuned):
    """Sparse Bayesian learning once; of the columns that stay in, the k of largest prior variance, refitted.

    ``noise`` is its variance as a share of that of y, 0 to learn it. Fewer than k columns may stay in.
    """

    noise: float = 0.3
    l2: float = 0.0
    standardise: bool = True
    max_iter: int = 500

    name: ClassVar[str] = "sbl"
    dense: ClassVar[bool] = False

    def __post_init__(self):
        check("noise", self.noise, at_least=0)
        check("l2", self.l2, at_least=0)

    def _draw(self, place, generator):
        return {"noise": 10 ** (-2.5 + 2.5 * place), "l2": float(10 ** generator.uniform(-5, 0))}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedLinear]:
        """One fit, then a refit per budget."""
        standard = Standard.of(data, self.standardise)
        counts = [count(budget, standard.X.shape[1]) for budget in budgets]
        noise = self.noise * float(standard.y @ standard.y) / len(standard.y) or None
        found = sparse_bayes.sparse_bayes(
            standard.X, standard.y, noise=noise, tol=1e-3, max_iter=self.max_iter, degrees=max(1, len(standard.y) - 1)
        )
        for k in counts:
            kept = np.sort(top_k(found.gamma, min(k, int(np.count_nonzero(found.gamma)))).indices)
            yield standard.fitted(standard.refit(kept, self.l2))

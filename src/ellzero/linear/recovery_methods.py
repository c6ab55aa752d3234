"""Ways to recover sparse vectors, as methods of the comparison: share recovered against measurements seen.

Lives here: planted systems, the Lasso (basis pursuit in the limit), OMP, IHT, HTP and null-space tuning from a budget
of m measurements to recovered signals, and the recovery that is taken home. Does not live here: the algorithms
(``solvers``), which measurements and signals (the task). Columns are brought to unit norm; coefficients are for them as
given.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.io import artefacts
from ellzero.kernels import top_k
from ellzero.parts import penalties
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent, hard_thresholding, null_space, pursuit, thresholding

__all__ = ["FittedRecovery", "Systems", "methods", "share_recovered"]

KIND, VERSION = "sparse-recovery", 1
_CLOSE = 1e-3  # a relative error that counts as recovered without noise
_ORACLE = 2.0  # with noise: times the error of least squares on the true support


@dataclass(frozen=True, eq=False)
class Systems:
    """Signals with a known answer, measured alike: ``b = A coefs + noise``.

    ``A`` ``[n, p]``, ``coefs`` ``[p, signals]`` with ``k`` nonzeros each, ``b`` ``[n, signals]``; ``noise_level`` is
    the root mean square of the noise.
    """

    A: np.ndarray
    coefs: np.ndarray
    b: np.ndarray
    k: int
    noise_level: float = 0.0

    def first(self, m: int) -> Systems:
        """What the first m measurements tell."""
        return replace(self, A=self.A[:m], b=self.b[:m])


def share_recovered(found: np.ndarray, systems: Systems) -> float:
    """Share of the signals within twice the error of least squares on their true support, or within 0.1 % of them."""
    errors = np.linalg.norm(found - systems.coefs, axis=0)
    limits = _CLOSE * np.linalg.norm(systems.coefs, axis=0)
    if systems.noise_level > 0:
        for t, truth in enumerate(systems.coefs.T):
            support = np.flatnonzero(truth)
            best = np.linalg.lstsq(systems.A[:, support], systems.b[:, t], rcond=None)[0]
            limits[t] = max(limits[t], _ORACLE * np.linalg.norm(best - truth[support]))
    return float((errors <= limits).mean())


@dataclass(frozen=True, eq=False)
class FittedRecovery:
    """A method with its measuring matrix ``[m, p]``: ``realised`` counts the measurements."""

    method: Any
    A: np.ndarray
    k: int
    noise_level: float

    @property
    def realised(self) -> float:
        return float(len(self.A))

    @property
    def nbytes(self) -> int:
        """Of the measuring matrix."""
        return self.A.nbytes

    def recover(self, b: np.ndarray) -> np.ndarray:
        """``[m, signals]`` measurements to ``[p, signals]`` coefficients."""
        norms = np.linalg.norm(self.A, axis=0)
        scale = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return scale[:, None] * self.method.solve(self.A * scale, b, min(self.k, *self.A.shape), self.noise_level)

    def score(self, part: Systems) -> float:
        """Share of the signals of a part that are recovered from as many measurements."""
        part = part.first(len(self.A))
        return share_recovered(self.recover(part.b), part)

    def time(self, part: Systems) -> float:
        """Median seconds to recover one signal."""
        b, spans = part.b[: len(self.A)], []
        for t in range(9):
            one = b[:, t % b.shape[1], None]
            start = time.perf_counter()
            self.recover(one)
            spans.append(time.perf_counter() - start)
        return float(np.median(spans[2:]))

    def save(self, directory: Path) -> None:
        """``recovery.safetensors``: the measuring matrix, the method and its settings."""
        meta = {
            "method": self.method.name,
            "settings": asdict(self.method),
            "k": self.k,
            "noise_level": self.noise_level,
        }
        artefacts.save(Path(directory) / "recovery.safetensors", {"A": self.A}, meta, KIND, VERSION)

    @classmethod
    def load(cls, directory: Path) -> FittedRecovery:
        """The inverse of ``save``; ``InputError`` for a missing, torn, foreign or newer file."""
        tensors, meta = artefacts.load(Path(directory) / "recovery.safetensors", KIND, version=VERSION)
        known = methods()
        check_choice("method", meta["method"], known)
        return cls(replace(known[meta["method"]], **meta["settings"]), tensors["A"], meta["k"], meta["noise_level"])


class _Recovering:
    """From measurements to recovered signals; a subclass says how it solves ``A x = b`` and what may be tuned."""

    dense: ClassVar[bool] = False

    def candidates(self, trials: int, seed: int) -> Sequence[Any]:
        """``trials`` variants of the settings, drawn by seed; the first is this method itself."""
        stream = rng(check_integer("seed", seed, at_least=0), "recovery", self.name)
        return [self, *(replace(self, **self._draw(stream)) for _ in range(trials - 1))]

    def _draw(self, stream: np.random.Generator) -> Mapping[str, Any]:
        return {}

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedRecovery]:
        """For each budget the training signals are recovered: what that takes is the time of the fit."""
        systems = data.train
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of measurements")
            m = int(check("budgets", int(budget), at_least=1, at_most=len(systems.A)))
            fitted = FittedRecovery(self, systems.A[:m].copy(), systems.k, systems.noise_level)
            fitted.recover(systems.b[:m])
            yield fitted


@register(kind="method", wing="linear", name="lasso recovery", source="Chen, Donoho and Saunders (1998)",
          example=lambda: LassoRecovery())  # fmt: skip
@dataclass(frozen=True)
class LassoRecovery(_Recovering):
    """The Lasso at a small alpha, which without noise is basis pursuit; least squares on its k largest entries.

    ``ratio`` is alpha as a share of the largest useful one; with noise at least ``noise_level sqrt(2 log p)``.
    """

    ratio: float = 1e-4
    refit: bool = True

    name: ClassVar[str] = "lasso"

    def __post_init__(self):
        check("ratio", self.ratio, above=0, at_most=1)

    def _draw(self, stream):
        return {"ratio": 10 ** stream.uniform(-5, -1), "refit": bool(stream.integers(2))}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        found = np.zeros((A.shape[1], b.shape[1]))
        rows = np.ascontiguousarray(A.T)
        for t in range(b.shape[1]):
            largest = abs(rows @ b[:, t]).max()
            if largest == 0:
                continue
            alpha = max(self.ratio * largest, noise_level * np.sqrt(2 * np.log(A.shape[1]))) / len(A)
            coef = coordinate_descent.solve(A, b[:, t], penalties.L1(alpha), fit_intercept=False, tol=1e-7).coef
            found[:, t] = _cut(rows, b[:, t], coef, k) if self.refit else coef
        return found


@register(kind="method", wing="linear", name="omp recovery", source="Tropp and Gilbert (2007)",
          example=lambda: OMPRecovery())  # fmt: skip
@dataclass(frozen=True)
class OMPRecovery(_Recovering):
    """Orthogonal matching pursuit for k steps and a share ``extra`` of k more, cut back to the k largest."""

    extra: float = 0.0

    name: ClassVar[str] = "omp"

    def __post_init__(self):
        check("extra", self.extra, at_least=0)

    def _draw(self, stream):
        return {"extra": float(stream.choice([0.25, 0.5, 1.0]))}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        steps = min(round((1 + self.extra) * k), *A.shape)
        found = np.stack([run.coef() for run in pursuit.omp(A, b, steps)], axis=1)
        rows = np.ascontiguousarray(A.T)
        if steps > k:
            found = np.stack([_cut(rows, b[:, t], found[:, t], k) for t in range(b.shape[1])], axis=1)
        return found


@register(kind="method", wing="linear", name="iht recovery", source="Blumensath and Davies (2010)",
          example=lambda: IHTRecovery())  # fmt: skip
@dataclass(frozen=True)
class IHTRecovery(_Recovering):
    """Normalised iterative hard thresholding, least squares on what it ends with."""

    max_iter: int = 300

    name: ClassVar[str] = "iht"

    def _draw(self, stream):
        return {"max_iter": int(stream.choice([100, 1000, 3000]))}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        runs = [thresholding.iht(A, column, k, tol=1e-7, max_iter=self.max_iter) for column in b.T]
        return np.stack([run.coef for run in runs], axis=1)


@register(kind="method", wing="linear", name="htp recovery", source="Foucart (2011)",
          example=lambda: HTPRecovery())  # fmt: skip
@dataclass(frozen=True)
class HTPRecovery(_Recovering):
    """Hard thresholding pursuit; ``step`` None stands for the exact line search."""

    step: float | None = None

    name: ClassVar[str] = "htp"

    def __post_init__(self):
        if self.step is not None:
            check("step", self.step, above=0)

    def _draw(self, stream):
        return {"step": float(stream.uniform(0.3, 1.2))}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        return hard_thresholding.hard_thresholding_pursuit(A, b, k, step=self.step, noise_level=noise_level).coef


@register(id="S101", kind="method", wing="linear", name="null-space tuning", source="arXiv:1204.3700",
          claim="ends after finitely many steps, often fewer than 10; finds more than plain OMP or basis pursuit",
          example=lambda: NSTRecovery())  # fmt: skip
@dataclass(frozen=True)
class NSTRecovery(_Recovering):
    """NST+HT+FB with k known; ``restart`` leaves a support that came back but explains too little."""

    restart: bool = True
    ridge: float = 0.0

    name: ClassVar[str] = "nst"

    def __post_init__(self):
        check("ridge", self.ridge, at_least=0)

    def _draw(self, stream):
        return {"ridge": 10 ** stream.uniform(-6, 0)}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        options = {"restart": self.restart, "ridge": self.ridge, "noise_level": noise_level}
        return null_space.null_space_tuning(A, b, k, **options).coef


@register(id="S101", kind="method", wing="linear", name="adaptive tuning", source="arXiv:1204.3700",
          claim="recovers without knowing how many entries there are, and finds how many",
          example=lambda: AdaptiveRecovery())  # fmt: skip
@dataclass(frozen=True)
class AdaptiveRecovery(_Recovering):
    """NST+HT+FB that is not told k: it keeps ``growth`` more entries each step until the measurements are explained."""

    growth: int = 1
    ridge: float = 0.0

    name: ClassVar[str] = "adaptive"

    def __post_init__(self):
        check_integer("growth", self.growth, at_least=1)
        check("ridge", self.ridge, at_least=0)

    def _draw(self, stream):
        return {"growth": int(stream.integers(1, 4)), "ridge": 10 ** stream.uniform(-6, 0)}

    def solve(self, A: np.ndarray, b: np.ndarray, k: int, noise_level: float) -> np.ndarray:
        """``[p, signals]`` from ``A`` with unit columns."""
        options = {"growth": self.growth, "ridge": self.ridge, "noise_level": noise_level}
        return null_space.null_space_tuning(A, b, **options).coef


def _cut(rows: np.ndarray, b: np.ndarray, coef: np.ndarray, k: int) -> np.ndarray:
    """Least squares on the k largest entries."""
    support = np.sort(top_k(abs(coef), k).indices)
    out = np.zeros_like(coef)
    out[support] = hard_thresholding.fit_support(rows, b, support)[0]
    return out


def methods() -> dict[str, Any]:
    """The methods that the task ``recovery`` compares, by name."""
    every = (LassoRecovery(), OMPRecovery(), IHTRecovery(), HTPRecovery(), NSTRecovery(), AdaptiveRecovery())
    return {method.name: method for method in every}

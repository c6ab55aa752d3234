"""The task ``recovery``: how many measurements does it take to find a vector with few entries?

Lives here: the measuring matrix (random, or the user's own), planted signals, and ``apply``. Does not live here: the
methods (``ellzero.linear.recovery_methods``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice, check_integer, suggestion
from ellzero.io.readers import read_matrix
from ellzero.linear import recovery_methods
from ellzero.linear.recovery_methods import FittedRecovery, Systems
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Recovery"]

_RANDOM = ("gaussian", "signs", "cosines")
_AMPLITUDES = ("normal", "signs", "decay")


@register(kind="task", wing="linear", source="Donoho and Tanner (2009)", name="recovery", example=lambda: Recovery())
@dataclass(frozen=True)
class Recovery:
    """Sparse vectors from few linear measurements: the share that is found, against how many measurements are seen.

    Signals with k nonzeros are planted and measured by the first m rows of one matrix. One is found where the error is
    at most 0.1 % of it, or, with noise, twice that of least squares on the true support.

    Parameters
    ----------
    dataset : the measuring matrix: ``"gaussian"`` (default), ``"signs"``, ``"cosines"`` (random rows of the discrete
        cosine transform), or a file that ``read_matrix`` reads, whose rows are put in random order.
    rows, columns : of a random matrix, default 200 and 400. A file brings its own.
    k : nonzeros of a signal.
    snr : sum of squares of the exact measurements over that of the noise; ``inf`` for none.
    amplitude : of the entries: ``"normal"``, ``"signs"`` (+1 and -1) or ``"decay"`` (1, 1/2, ..., 1/k).
    signals : in each part: training, validation, test.
    """

    dataset: str = "gaussian"
    rows: int | None = None
    columns: int | None = None
    k: int = 20
    snr: float = math.inf
    amplitude: str = "normal"
    signals: int = 50

    name: ClassVar[str] = "recovery"
    fidelity: ClassVar[str] = "share recovered"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "measurements"
    of: ClassVar[Literal["kept", "seen"]] = "seen"
    batch: ClassVar[str] = "one signal"

    def __post_init__(self):
        for option in ("rows", "columns"):
            size = getattr(self, option)
            if size is not None:
                check_integer(option, size, at_least=2)
                if self.dataset not in _RANDOM:
                    raise InputError(f"{option}: got {size} beside a file, want none, for the file brings its own")
        check_integer("k", self.k, at_least=1)
        check("snr", self.snr, above=0)
        check_choice("amplitude", self.amplitude, _AMPLITUDES)
        check_integer("signals", self.signals, at_least=1)

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Recovery:  # fmt: skip
        """The task from the command line's options."""
        given = {"model": model, "hook": hook, "texts": texts, "eval": eval, "target": target}
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option}: the task recovery takes none, want --data")
        known = ("rows", "columns", "k", "snr", "amplitude", "signals")
        settings = dict(extra or {})
        for option, value in settings.items():
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task recovery takes none, want one of {', '.join(known)}{near}")
            if isinstance(value, str) and option != "amplitude":
                settings[option] = _number(option, value)
        task = cls("gaussian" if data is None else str(data), **settings)
        task._matrix()  # an unreadable file is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {**asdict(self), "snr": None if math.isinf(self.snr) else self.snr}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Recovery:
        """The inverse of ``to_spec``."""
        return cls(**{**spec, "snr": math.inf if spec["snr"] is None else spec["snr"]})

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the matrix."""
        A = self._matrix()
        return {**self.to_spec(), "shape": list(A.shape), "digest": hashlib.sha256(A.tobytes()).hexdigest()[:16]}

    # -- data

    def _matrix(self) -> np.ndarray:
        if self.dataset in _RANDOM:
            A = _random(self.dataset, self.rows or 200, self.columns or 400)
        else:
            A = _read(self.dataset, Path(self.dataset).stat().st_mtime_ns if Path(self.dataset).is_file() else None)
        check("k", self.k, at_most=min(A.shape))
        return A

    def _systems(self, count: int, *names: Any) -> Systems:
        """``count`` planted signals; the same names plant the same ones."""
        A, generator = self._matrix(), rng(0, "recovery", *names)
        coefs = np.zeros((A.shape[1], count))
        for column in coefs.T:
            column[generator.choice(A.shape[1], self.k, replace=False)] = _entries(generator, self.k, self.amplitude)
        exact = A @ coefs
        level = 0.0 if math.isinf(self.snr) else float(np.sqrt(np.mean(exact**2) / self.snr))
        return Systems(A, coefs, exact + level * generator.standard_normal(exact.shape), self.k, level)

    def data(self, seed: int) -> Data:
        """The training and validation signals for one seed; all are measured by one matrix."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation signals in the training part too."""
        check_choice("which", which, ("train", "all"))
        train = self._systems(self.signals, "train", seed)
        validation = self._systems(self.signals, "validation", seed)
        if which == "all":
            both = (np.hstack([train.coefs, validation.coefs]), np.hstack([train.b, validation.b]))
            train = Systems(train.A, *both, self.k, train.noise_level)
        return Data(train, validation, {"shape": train.A.shape})

    def test(self) -> Systems:
        """The test signals."""
        return self._systems(self.signals, "test")

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """Lasso, OMP, IHT, HTP, and null-space tuning with k known and unknown."""
        return recovery_methods.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """Eight counts of measurements from 1.5 k to all rows, evenly on a log axis."""
        rows = data.train.A.shape[0]
        return tuple(sorted({round(m) for m in np.geomspace(min(1.5 * self.k, rows), rows, 8)}))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers from 2 to the rows of the matrix."""
        rows = len(self._matrix())
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of measurements")
            check("budgets", budget, at_least=2, at_most=rows)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """The entries of each signal, whose m measurements are a row of a file, in the order of the taken matrix."""
        fitted = FittedRecovery.load(directory)
        b, _ = read_matrix(source)
        b = b.toarray() if hasattr(b, "toarray") else np.asarray(b, dtype=np.float64)
        m = len(fitted.A)
        if b.shape[1] != m:
            raise InputError(f"{source}: has {b.shape[1]} columns, want {m}, the measurements of one signal in a row")
        found = fitted.recover(np.ascontiguousarray(b.T)).T
        signal, column = np.nonzero(found)
        columns = {"signal": signal, "column": column, "value": found[signal, column]}
        return Output(columns, f"{len(signal)} entries of {len(found)} signals, by their row and the matrix's column")


def _number(option: str, value: str) -> float | int:
    try:
        return float(value) if option == "snr" else int(value)
    except ValueError:
        raise InputError(f"{option}: got {value!r}, want a {'' if option == 'snr' else 'whole '}number") from None


def _entries(generator: np.random.Generator, k: int, amplitude: str) -> np.ndarray:
    if amplitude == "normal":
        return generator.standard_normal(k)
    signs = generator.choice([-1.0, 1.0], k)
    return signs if amplitude == "signs" else signs * generator.permutation(1 / np.arange(1, k + 1))


@lru_cache(maxsize=4)
def _random(kind: str, rows: int, columns: int) -> np.ndarray:
    generator = rng(0, "recovery", "matrix", kind)
    if kind == "cosines":
        check("rows", rows, at_most=columns)
        chosen = generator.permutation(columns)[:rows]
        A = np.cos(np.pi * np.outer(chosen, np.arange(columns) + 0.5) / columns)
    else:
        A = generator.standard_normal((rows, columns))
        A = np.sign(A) if kind == "signs" else A
    A.setflags(write=False)
    return A


@lru_cache(maxsize=2)
def _read(dataset: str, stamp: int | None) -> np.ndarray:
    if "." not in dataset:
        check_choice("data", dataset, _RANDOM)
    A, _ = read_matrix(dataset)
    A = A.toarray() if hasattr(A, "toarray") else np.asarray(A, dtype=np.float64)
    check_array("data", A, ndim=2)
    if min(A.shape) < 2:
        raise InputError(f"data: {dataset} has shape {A.shape}, want at least 2 rows and columns")
    A = A[rng(0, "recovery", "rows").permutation(len(A))]
    A.setflags(write=False)
    return A

"""The task ``selection``: how well can classes be told from few columns of a table, whatever reads them?

Lives here: the table, the split (by chance or by groups), and ``apply``. Does not live here: the methods
(``ellzero.linear.selection``) or their judge (``ellzero.linear.judge``). A taken model needs only the columns that it
kept, under their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.compare.tasks.tables import kept_columns, split_by_units
from ellzero.data import sets
from ellzero.errors import InputError, check, check_choice, suggestion
from ellzero.io.readers import read_table
from ellzero.linear import selection
from ellzero.linear.judge import Judge
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register

__all__ = ["Selection"]

_BUILT_IN = ("digits", "breast_cancer", "wine", "iris", "mnist", *sets.FEATURE_SELECTION)
_FEWEST_ROWS = 20


@register(kind="task", wing="linear", source="none", name="selection", example=lambda: Selection())
@dataclass(frozen=True)
class Selection:
    """Classes told from few columns: accuracy of one fixed small network on rows not seen, against columns kept.

    Parameters
    ----------
    dataset : a file that ``read_table`` reads, its target being classes, or a set by name: ``"digits"`` (default; 1797
        images of 64 pixels), ``"breast_cancer"``, ``"wine"``, ``"iris"``; and under ``ELLZERO_DATA`` ``"Isolet"``,
        ``"COIL20"``, ``"madelon"``, ``"BASEHOCK"``, ``"PCMAC"``, ``"colon"``, ``"mnist"``.
    target : the file's target column; default ``target``, ``y`` or the last.
    groups : a column whose equal values stay together in one part; it is not among the columns to choose from.
    """

    dataset: str = "digits"
    target: str | None = None
    groups: str | None = None

    name: ClassVar[str] = "selection"
    fidelity: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "columns"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = f"{selection.BATCH} rows"

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Selection:  # fmt: skip
        """The task from the command line's options."""
        for option, given in (("model", model), ("hook", hook), ("texts", texts), ("eval", eval)):
            if given is not None:
                raise InputError(f"{option}: the task selection takes none, want --data or --target")
        settings = dict(extra or {})
        for option in settings:
            if option != "groups":
                raise InputError(
                    f"{option}: the task selection takes none, want groups{suggestion(option, ['groups'])}"
                )
        task = cls("digits" if data is None else str(data), target, **settings)
        task._rows()  # an unreadable file or an unknown column is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Selection:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the rows."""
        rows = self._rows()
        content = hashlib.sha256(np.ascontiguousarray(rows.X).tobytes() + np.ascontiguousarray(rows.y).tobytes())
        sizes = {"rows": len(rows.y), "columns": len(rows.columns), "classes": len(rows.classes)}
        return {**asdict(self), **sizes, "digest": content.hexdigest()[:16]}

    # -- data

    def _rows(self) -> _Rows:
        stamp = Path(self.dataset).stat().st_mtime_ns if Path(self.dataset).is_file() else None
        return _read(self.dataset, self.target, self.groups, stamp)

    def _split(self, seed: int) -> tuple[np.ndarray, ...]:
        """Rows for training, validation and test: 60, 20 and 20 %, the test rows the same for every seed."""
        return split_by_units(self._rows().units, seed, self.name, self.groups)

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        check_choice("which", which, ("train", "all"))
        rows = self._rows()
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {"columns": rows.columns, "classes": rows.classes, "target": rows.target}
        return Data((rows.X[used], rows.y[used]), (rows.X[validation], rows.y[validation]), info)

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test rows."""
        rows = self._rows()
        chosen = self._split(0)[2]
        return rows.X[chosen], rows.y[chosen]

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """All columns, random, ANOVA, information, Lasso, stability, knockoffs, forward, sequential attention."""
        return selection.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """Counts from 2 to half the columns, about evenly on a log axis."""
        most = max(1, data.train[0].shape[1] // 2)
        return tuple(sorted({min(k, most) for k in (2, 4, 8, 16, 32)}))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers from 1 to the number of columns."""
        columns = len(self._rows().columns)
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of columns")
            check("budgets", budget, at_least=1, at_most=columns)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """Class and probability of each row of a file (or built-in set), which needs the kept columns."""
        model = Judge.load(directory)
        found = model.probabilities_kept(kept_columns(source, _BUILT_IN, model.columns, model.kept))
        best = found.argmax(1)
        columns = {"class": np.asarray(model.classes)[best], "probability": found[np.arange(len(best)), best]}
        return Output(columns, f"the likeliest {model.target} by {len(model.kept)} columns, one per row")


@dataclass(frozen=True, eq=False)
class _Rows:
    """Columns to choose from, classes 0, 1, ... and their names, and what stays together in a split."""

    X: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    target: str
    units: np.ndarray


@lru_cache(maxsize=4)
def _read(dataset: str, target: str | None, groups: str | None, stamp: int | None) -> _Rows:
    table = sets.load(dataset) if dataset in _BUILT_IN else read_table(dataset, target)
    if dataset in _BUILT_IN and target is not None and target != table.target:
        raise InputError(f"target: got {target!r}, but the target of {dataset} is {table.target!r}")
    X = table.X.toarray() if hasattr(table.X, "toarray") else np.array(table.X, dtype=np.float64)
    columns, units = list(table.columns), np.arange(len(X))
    values, y = np.unique(table.y, return_inverse=True)
    if len(y) < _FEWEST_ROWS:
        raise InputError(f"data: {dataset} has {len(y)} rows, want at least {_FEWEST_ROWS}")
    if len(values) < 2 or len(values) > max(len(y) // 5, 2) or (values != np.round(values)).any():
        raise InputError(f"target: {table.target!r} has {len(values)} different values in {len(y)} rows, want classes")
    if groups is not None:
        place = columns.index(check_choice("groups", groups, columns))
        units, X = np.unique(X[:, place], return_inverse=True)[1].ravel(), np.delete(X, place, axis=1)
        columns.pop(place)
    if len(set(columns)) < len(columns):
        twice = next(name for i, name in enumerate(columns) if name in columns[:i])
        raise InputError(f"data: {dataset} has the column {twice!r} twice, want different names")
    for array in (X, y):
        array.setflags(write=False)
    names = table.labels if table.labels is not None else tuple(f"{value:g}" for value in values)
    return _Rows(X, y, tuple(columns), tuple(names), table.target, units)

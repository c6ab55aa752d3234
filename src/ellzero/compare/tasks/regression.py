"""The task ``regression``: how much of a number can be predicted from few columns of a table?

Lives here: the table, the split (by chance, by groups, by time), and ``apply``. Does not live here: the methods
(``ellzero.linear.frontier``). A taken model needs only the columns that it kept, under their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.compare.tasks.tables import checked_parts, kept_columns, split_by_units
from ellzero.data import sets
from ellzero.errors import InputError, check, check_choice, suggestion
from ellzero.io.readers import Table, read_table
from ellzero.linear import frontier
from ellzero.linear.artefact import LinearModel
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register

__all__ = ["Regression"]

_BUILT_IN = ("diabetes", "breast_cancer", "wine", "digits", "iris")
_FEWEST_ROWS = 10
_MOST_PRODUCTS = 20_000


@register(kind="task", wing="linear", source="none", name="regression", example=lambda: Regression())
@dataclass(frozen=True)
class Regression:
    """A number predicted from a table: R^2 on rows not seen, against how many coefficients are kept.

    Parameters
    ----------
    dataset : a file that ``read_table`` reads (.csv, .parquet, .npz, ...), or one of scikit-learn's sets by name.
        Default ``"diabetes"``, where ``interactions`` is on: 442 patients, and of the 10 measurements all squares and
        products, 64 columns in all (the square of a column with two values is left out).
    target : the file's target column; default ``target``, ``y`` or the last.
    groups : a column whose equal values stay together in one part (patients, stores); it predicts nothing itself.
    time : a column that orders the rows: the last fifth is the test part, the fifth before it the validation part,
        the same for every seed.
    interactions : whether squares and products of the columns join them; default only for ``"diabetes"``.
    """

    dataset: str = "diabetes"
    target: str | None = None
    groups: str | None = None
    time: str | None = None
    interactions: bool | None = None

    name: ClassVar[str] = "regression"
    fidelity: ClassVar[str] = "R^2"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    bound: ClassVar[float | None] = 1.0
    unit: ClassVar[str] = "coefficients"
    of: ClassVar[Literal["kept", "seen"]] = "kept"
    batch: ClassVar[str] = f"{frontier.BATCH} rows"

    def __post_init__(self):
        check_choice("interactions", self.interactions, (None, False, True))
        if self.groups is not None and self.time is not None:
            raise InputError(f"time: got {self.time!r} beside groups {self.groups!r}, want one of the two")

    # -- options and specs

    @classmethod
    def from_options(
        cls, *, data: str | None = None, model: str | None = None, hook: str | None = None, texts: str | None = None,
        eval: str | None = None, target: str | None = None, extra: Mapping[str, Any] | None = None,
    ) -> Regression:  # fmt: skip
        """The task from the command line's options."""
        for option, given in (("model", model), ("hook", hook), ("texts", texts), ("eval", eval)):
            if given is not None:
                raise InputError(f"{option}: the task regression takes none, want --data or --target")
        settings = dict(extra or {})
        known = ("groups", "time", "interactions")
        for option in settings:
            if option not in known:
                near = suggestion(option, known)
                raise InputError(f"{option}: the task regression takes none, want one of {', '.join(known)}{near}")
        if isinstance(settings.get("interactions"), str):
            word = settings["interactions"].lower()
            settings["interactions"] = check_choice("interactions", word, ("true", "false")) == "true"
        task = cls("diabetes" if data is None else str(data), target, **settings)
        task._rows()  # an unreadable file or an unknown column is said before a run folder is made
        return task

    def to_spec(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Regression:
        """The inverse of ``to_spec``."""
        return cls(**spec)

    def describe(self) -> Mapping[str, Any]:
        """The settings and a digest of the rows."""
        rows = self._rows()
        content = hashlib.sha256(np.ascontiguousarray(rows.X).tobytes() + np.ascontiguousarray(rows.y).tobytes())
        return {**asdict(self), "rows": len(rows.y), "columns": len(rows.columns), "digest": content.hexdigest()[:16]}

    # -- data

    def _rows(self) -> _Rows:
        expand = self.dataset == "diabetes" if self.interactions is None else self.interactions
        stamp = Path(self.dataset).stat().st_mtime_ns if Path(self.dataset).is_file() else None
        return _read(self.dataset, self.target, self.groups, self.time, expand, stamp)

    def _split(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows for training, validation and test: 60, 20 and 20 %, the test rows the same for every seed."""
        rows = self._rows()
        n = len(rows.y)
        if self.time is not None:
            order = np.argsort(rows.order, kind="stable")
            cuts = [_edge(rows.order[order], n - 2 * (n // 5)), _edge(rows.order[order], n - n // 5)]
            return checked_parts("time", np.split(order, cuts))
        units = np.arange(n) if rows.order is None else np.unique(rows.order, return_inverse=True)[1].ravel()
        return split_by_units(units, seed, self.name, self.groups)

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed."""
        return self.refit_data(seed, "train")

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As ``data``, or with the validation rows in the training part too."""
        check_choice("which", which, ("train", "all"))
        rows = self._rows()
        train, validation, _ = self._split(seed)
        used = np.concatenate([train, validation]) if which == "all" else train
        info = {"columns": rows.columns, "target": rows.target}
        return Data((rows.X[used], rows.y[used]), (rows.X[validation], rows.y[validation]), info)

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The test rows."""
        rows = self._rows()
        chosen = self._split(0)[2]
        return rows.X[chosen], rows.y[chosen]

    # -- methods

    def methods(self) -> Mapping[str, Method]:
        """Ridge (dense); paths of penalties; pursuit, thresholding and sparse Bayes."""
        return frontier.methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """Counts from 1 to the columns or half the training rows, about evenly on a log axis."""
        n, p = data.train[0].shape
        most = max(1, min(p, n // 2, 64))
        return tuple(sorted({min(k, most) for k in (1, 2, 4, 8, 16, 32, 64)}))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Whole numbers from 1 to the number of columns."""
        columns = len(self._rows().columns)
        for budget in budgets:
            if budget != int(budget):
                raise InputError(f"budgets: got {budget:g}, want whole numbers of coefficients")
            check("budgets", budget, at_least=1, at_most=columns)

    # -- a taken model

    def apply(self, directory: Path, source: str) -> Output:
        """A prediction for each row of a file (or built-in set), which needs the kept columns under their names."""
        model = LinearModel.load(directory)
        columns = kept_columns(source, _BUILT_IN, model.columns, model.kept)
        return Output({"prediction": model.predict_kept(columns)}, f"predicted {model.target}, one per row")


@dataclass(frozen=True, eq=False)
class _Rows:
    """Columns that predict, the target, and what the split goes by (groups or time; None: by chance)."""

    X: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    target: str
    order: np.ndarray | None


@lru_cache(maxsize=4)
def _read(dataset, target, groups, time, expand, stamp) -> _Rows:
    table = _built_in(dataset, target) if dataset in _BUILT_IN else read_table(dataset, target)
    X = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X, dtype=np.float64)
    y, columns, order = np.asarray(table.y, dtype=np.float64), list(table.columns), None
    if len(y) < _FEWEST_ROWS:
        raise InputError(f"data: {dataset} has {len(y)} rows, want at least {_FEWEST_ROWS}")
    if (y == y[0]).all():
        raise InputError(f"target: {table.target!r} is {y[0]:g} in every row, want a column that varies")
    for option, name in (("groups", groups), ("time", time)):
        if name is not None:
            place = columns.index(check_choice(option, name, columns))
            order, X = X[:, place], np.delete(X, place, axis=1)
            columns.pop(place)
    if not columns:
        raise InputError(f"data: {dataset} has no column left to predict from")
    if len(set(columns)) < len(columns):
        twice = next(name for i, name in enumerate(columns) if name in columns[:i])
        raise InputError(f"data: {dataset} has the column {twice!r} twice, want different names")
    if expand:
        X, columns = _expanded(X, columns)
    for array in (X, y):
        array.setflags(write=False)
    return _Rows(X, y, tuple(columns), table.target, order)


def _built_in(name: str, target: str | None) -> Table:
    table = sets.load(name)
    if target is not None and target != table.target:
        raise InputError(f"target: got {target!r}, but the target of {name} is {table.target!r}")
    return table


def _expanded(X: np.ndarray, columns: list[str]) -> tuple[np.ndarray, list[str]]:
    """The columns, their squares (where that is no copy of the column itself) and their products."""
    p = len(columns)
    if p * (p + 1) // 2 > _MOST_PRODUCTS:
        raise InputError(f"interactions: {p} columns give {p * (p + 1) // 2} products, want at most {_MOST_PRODUCTS}")
    parts, names = [X], list(columns)
    for j in range(p):
        if len(np.unique(X[:, j])) > 2:
            parts.append(X[:, j : j + 1] ** 2)
            names.append(f"{columns[j]}^2")
    for j in range(p - 1):
        parts.append(X[:, j : j + 1] * X[:, j + 1 :])
        names += [f"{columns[j]}*{other}" for other in columns[j + 1 :]]
    return np.hstack(parts), names


def _edge(ordered: np.ndarray, cut: int) -> int:
    """The first place at or after ``cut`` where the time changes: equal times stay in one part."""
    while 0 < cut < len(ordered) and ordered[cut] == ordered[cut - 1]:
        cut += 1
    return cut

"""A pipeline with a sparse linear end as a small file: the few columns that count, in the units of the user's table.

Lives here: ``FrameModel``: what scaling, filling and one-hot coding come to for the columns that were kept, with
``predict``, ``save`` and ``load``. Does not live here: fitting, tables to read (``tables``), models without
preprocessing (``artefact``). Scikit-learn is needed to make one, not to use it; nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, suggestion
from ellzero.io import artefacts, frames
from ellzero.linear.tables import CoefficientTable, fitted_parts

__all__ = ["FrameModel"]

KIND, VERSION = "frame-model", 1


@dataclass(frozen=True)
class Term:
    """A column of the user's table, or an indicator of one of its categories, as ``scale * value + shift``."""

    column: str
    scale: float = 1.0
    shift: float = 0.0
    fill: float | str | None = None
    indicates: bool = False
    category: Any = None


@dataclass(frozen=True, eq=False)
class FrameModel:
    """``y = intercept + sum_t weight_t value_t``, a value being a number or whether a category is there.

    ``known`` holds the categories of columns in which any other is refused, as the encoder was told to.
    """

    terms: tuple[Term, ...]
    weights: np.ndarray
    intercept: float
    known: dict[str, list[Any]]
    target: str = "y"

    @classmethod
    def of(cls, model: Any, target: str = "y") -> FrameModel:
        """From a fitted pipeline that ends in a linear estimator.

        Its transformers may be ``ColumnTransformer``, ``Pipeline``, ``StandardScaler``, ``MinMaxScaler``,
        ``MaxAbsScaler``, ``RobustScaler``, ``SimpleImputer``, ``OneHotEncoder``, ``"passthrough"`` and selectors of
        columns (what has ``get_support``).

        Raises
        ------
        InputError : another transformer, by name, or one that was fitted without column names.
        """
        transformer, estimator = fitted_parts(model)
        first = model.steps[0][1] if transformer is not None else estimator
        names = getattr(first, "feature_names_in_", None)
        if names is None:
            raise InputError("model: was fitted without column names, want a fit on a data frame")
        known: dict[str, list[Any]] = {}
        terms = [Term(str(name)) for name in names]
        if transformer is not None:
            terms = _through(transformer, terms, known)
        coef = np.asarray(estimator.coef_, dtype=np.float64)
        used = np.flatnonzero(coef)
        intercept = float(estimator.intercept_) + sum(coef[j] * terms[j].shift for j in used)
        weights = np.array([coef[j] * terms[j].scale for j in used])
        kept = tuple(replace(terms[j], scale=1.0, shift=0.0) for j in used)
        needed = {term.column for term in kept}
        return cls(kept, weights, intercept, {k: v for k, v in known.items() if k in needed}, target)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table that ``predict`` needs."""
        return tuple(dict.fromkeys(term.column for term in self.terms))

    def predict(self, frame: Any) -> np.ndarray:
        """For a data frame (or a dictionary of columns) that has ``columns``, in any order: ``[n]``.

        Raises
        ------
        InputError : a column that is not there, or that holds what the model cannot use, by name.
        """
        values = {name: _column(frame, name) for name in self.columns}
        filled = {term.column for term in self.terms if term.fill is not None}
        for name, categories in self.known.items():
            _check_known(name, values[name], categories, name in filled)
        if not values:
            return np.full(len(next(iter(frame.values()))) if isinstance(frame, dict) else len(frame), self.intercept)
        total = np.full(len(next(iter(values.values()))), self.intercept)
        for term, weight in zip(self.terms, self.weights):
            total += weight * _value(term, values[term.column])
        return total

    def save(self, directory: Path) -> None:
        """Write ``model.safetensors`` and ``coefficients.csv`` into an existing folder."""
        fields = [{"column": t.column, "fill": t.fill, "indicates": t.indicates, "category": t.category}
                  for t in self.terms]  # fmt: skip
        meta = {"terms": fields, "known": self.known, "target": self.target}
        tensors = {"weights": self.weights, "intercept": np.array([self.intercept])}
        artefacts.save(Path(directory) / "model.safetensors", tensors, meta, KIND, VERSION)
        names = [f"{t.column}={t.category}" if t.indicates else t.column for t in self.terms]
        order = np.argsort(-abs(self.weights), kind="stable")
        table = CoefficientTable(tuple(names[i] for i in order), self.weights[order], self.intercept)
        table.save(Path(directory) / "coefficients.csv")

    @classmethod
    def load(cls, directory: Path) -> FrameModel:
        """The inverse of ``save``; ``InputError`` for a missing, torn, foreign or newer file."""
        tensors, meta = artefacts.load(Path(directory) / "model.safetensors", KIND, version=VERSION)
        terms = tuple(Term(**fields) for fields in meta["terms"])
        return cls(terms, tensors["weights"], float(tensors["intercept"][0]), meta["known"], meta["target"])


def _through(transformer: Any, terms: list[Term], known: dict[str, list[Any]]) -> list[Term]:
    """What a fitted transformer makes of its columns."""
    kind = type(transformer).__name__
    if transformer == "drop":
        return []
    if transformer == "passthrough" or (kind == "FunctionTransformer" and transformer.func is None):
        return terms
    if kind == "Pipeline":
        for _, step in transformer.steps:
            terms = _through(step, terms, known) if step is not None else terms
        return terms
    if kind == "ColumnTransformer":
        parts = [_through(part, _chosen(terms, columns), known) for _, part, columns in transformer.transformers_]
        return [term for part in parts for term in part]
    if hasattr(transformer, "get_support"):
        return [term for term, kept in zip(terms, transformer.get_support()) if kept]
    if kind == "OneHotEncoder":
        return _indicators(transformer, terms, known)
    if kind == "SimpleImputer" and not transformer.add_indicator:
        return [_filled(term, value) for term, value in zip(terms, transformer.statistics_, strict=True)]
    affine = _affine(transformer, kind, len(terms))
    if affine is None:
        raise InputError(
            f"model: got the transformer {kind}, want scalers, SimpleImputer, OneHotEncoder, ColumnTransformer, "
            "Pipeline or a selector of columns"
        )
    return [replace(t, scale=a * t.scale, shift=a * t.shift + b) for t, a, b in zip(terms, *affine, strict=True)]


def _affine(transformer: Any, kind: str, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """``(a, b)`` where a scaler gives ``a x + b``."""
    one, zero = np.ones(size), np.zeros(size)
    if kind == "MinMaxScaler" and not transformer.clip:
        return transformer.scale_, transformer.min_
    if kind == "MaxAbsScaler":
        return 1 / transformer.scale_, zero
    if kind in ("StandardScaler", "RobustScaler"):
        centre = transformer.mean_ if kind == "StandardScaler" else transformer.center_
        moved = transformer.with_mean if kind == "StandardScaler" else transformer.with_centering
        a = one if transformer.scale_ is None else 1 / transformer.scale_
        return a, -a * centre if moved else zero
    return None


def _chosen(terms: list[Term], columns: Any) -> list[Term]:
    if isinstance(columns, str):
        columns = [columns]
    if isinstance(columns, slice) or (np.size(columns) and np.asarray(columns).dtype.kind in "biu"):
        return list(
            np.array(terms, dtype=object)[np.atleast_1d(columns) if not isinstance(columns, slice) else columns]
        )
    place = {term.column: term for term in terms}
    return [place[str(name)] for name in columns]


def _filled(term: Term, value: Any) -> Term:
    if term.indicates or term.fill is not None:
        return term  # there are no gaps any more
    if not isinstance(value, str) and not math.isfinite(value):
        raise InputError(f"model: SimpleImputer drops {term.column!r}, which has no value at all, want it left out")
    return replace(term, fill=value if isinstance(value, str) else (float(value) - term.shift) / term.scale)


def _indicators(encoder: Any, terms: list[Term], known: dict[str, list[Any]]) -> list[Term]:
    if getattr(encoder, "infrequent_categories_", None) is not None and encoder._infrequent_enabled:
        raise InputError("model: OneHotEncoder pools infrequent categories, want min_frequency and max_categories None")
    found = []
    for place, (term, categories) in enumerate(zip(terms, encoder.categories_, strict=True)):
        if (term.scale, term.shift) != (1.0, 0.0):
            raise InputError(f"model: column {term.column!r} is scaled before OneHotEncoder, want it as it is")
        plain = [_plain(value) for value in categories]
        if encoder.handle_unknown == "error":
            known[term.column] = plain
        dropped = None if encoder.drop_idx_ is None else encoder.drop_idx_[place]
        kept = [value for i, value in enumerate(plain) if dropped is None or i != dropped]
        found += [replace(term, indicates=True, category=value) for value in kept]
    return found


def _plain(value: Any) -> Any:
    """A category as JSON holds it; a missing value is ``None``."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or value != value:
        return None
    if not isinstance(value, str | int | float | bool):
        raise InputError(f"model: got the category {value!r} ({type(value).__name__}), want text or numbers")
    return value


def _column(frame: Any, name: str) -> np.ndarray:
    names: Sequence[Any] = list(getattr(frame, "columns", frame.keys() if hasattr(frame, "keys") else ()))
    if name not in names:
        raise InputError(f"frame: lacks the column {name!r} that the model needs{suggestion(name, map(str, names))}")
    column = frame[name]
    return column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)


def _gaps(column: np.ndarray) -> np.ndarray:
    """Where a value is missing: NaN, None, or pandas' NA."""
    if column.dtype.kind in "iub":
        return np.zeros(len(column), dtype=bool)
    return np.isnan(column) if column.dtype.kind == "f" else np.array([_missing(value) for value in column], dtype=bool)


def _missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # NA is neither equal to itself nor not
        return True


def _check_known(name: str, column: np.ndarray, categories: list[Any], filled: bool) -> None:
    gaps = _gaps(column)
    if gaps.any() and None not in categories and not filled:
        raise frames.missing("frame", name, int(gaps.sum()), f"the first in row {int(gaps.argmax())}")
    for value in dict.fromkeys(column[~gaps].tolist()):
        if value not in categories:
            raise InputError(f"frame: column {name!r} holds {value!r}, which the model has not seen in training")


def _value(term: Term, column: np.ndarray) -> np.ndarray:
    gaps = _gaps(column)
    if term.indicates:
        if term.category is None:
            return gaps.astype(np.float64)
        there = np.full(len(column), float(term.fill == term.category))
        there[~gaps] = column[~gaps] == term.category
        return there
    try:
        numbers = np.where(gaps, np.nan, column).astype(np.float64)
    except (TypeError, ValueError):
        text = next(value for value in column if isinstance(value, str))
        raise frames.text("frame", term.column, text) from None
    if gaps.any():
        if term.fill is None:
            raise frames.missing("frame", term.column, int(gaps.sum()), f"the first in row {int(gaps.argmax())}")
        numbers[gaps] = term.fill
    if not np.isfinite(numbers).all():
        raise InputError(f"frame: column {term.column!r} holds an infinite value, want finite numbers")
    return numbers

"""What every reader gives: a matrix and its column names, and the checks that they share.

Lives here: ``Frame``, and the refusals by column (text, missing values, NaN, infinity, names). Does not live here:
any file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError

__all__ = ["Frame", "check_finite_columns", "check_names", "missing", "text"]

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-nan", "<na>", "missing"}


@dataclass(frozen=True)
class Frame:
    """A matrix (rows, columns), dense or scipy sparse, and the column names where the file has them."""

    values: Any
    columns: tuple[str, ...] | None = None

    def named(self) -> tuple[str, ...]:
        """The column names, or their indices as text."""
        return self.columns or tuple(str(i) for i in range(self.values.shape[1]))


def is_missing(cell: str) -> bool:
    """Whether a cell's text is one of the usual words for a missing value."""
    return cell.strip().lower() in _MISSING


def text(path: Any, column: str, value: object, what: str = "text") -> InputError:
    """The refusal of a column that holds something other than numbers."""
    shown = repr(value if len(str(value)) <= 30 else str(value)[:30] + "...")
    return InputError(
        f"{path}: column {column!r} holds {what} ({shown}): encode it as numbers first, e.g. with scikit-learn's "
        "OneHotEncoder, or drop it"
    )


def missing(path: Any, column: str, count: int, where: str) -> InputError:
    """The refusal of a column with missing values."""
    values = "1 missing value" if count == 1 else f"{count} missing values"
    return InputError(
        f"{path}: column {column!r} has {values} ({where}): fill them first, e.g. with scikit-learn's "
        "SimpleImputer, or drop the column or those rows"
    )


def check_names(path: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The names, if each is there and stands once."""
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name.strip() or name.startswith("__index_level_"):
            raise InputError(
                f"{path}: column {place} has no name ({name!r}), as a saved row index has none: write the table "
                "without its index (index=False), or name the column"
            )
        if name in seen:
            raise InputError(f"{path}: the column name {name!r} stands twice; want each name once")
        seen.add(name)
    return tuple(names)


def check_finite_columns(path: Any, values: np.ndarray, columns: Sequence[str] | None, first_row: int = 0) -> None:
    """Refuse NaN (as missing values) and infinity, by column; looks at a few rows at a time, so maps stay maps."""
    if values.dtype.kind != "f":
        return
    step = max(1, 2**22 // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        finite = np.isfinite(values[start : start + step])
        if finite.all():
            continue
        place = int(np.flatnonzero(~finite.all(axis=0))[0])
        name = columns[place] if columns is not None else str(place)
        column = np.asarray(values[:, place])
        if np.isnan(column).any():
            row = int(np.flatnonzero(np.isnan(column))[0]) + first_row
            raise missing(path, name, int(np.isnan(column).sum()), f"NaN, the first in row {row}")
        row = int(np.flatnonzero(~np.isfinite(column))[0])
        raise InputError(f"{path}: column {name!r} holds {column[row]} in row {row + first_row}; want finite numbers")

"""What tasks on tables share: splits by chance or by groups, and columns by name.

Lives here: functions that know rows and column names. Does not live here: any task, nor readers of files (``io``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ellzero.data import sets
from ellzero.errors import InputError, suggestion
from ellzero.io.readers import read_matrix
from ellzero.rng import rng

__all__ = ["checked_parts", "kept_columns", "matrix_of", "named_column", "split_by_units"]


def split_by_units(units: np.ndarray, seed: int, task: str, groups: str | None) -> tuple[np.ndarray, ...]:
    """Rows for training, validation and test: 60, 20 and 20 % of the units, the test units the same for every seed.

    ``units [n]`` numbers what stays together: rows (0 to n - 1), or the groups that the option ``groups`` named.
    """
    count = int(units.max()) + 1
    if count < 3:
        raise InputError(f"groups: {groups!r} has {count} different values, want at least 3")
    shuffled = rng(0, task, "test").permutation(count)
    part = max(count // 5, 1)
    test, rest = shuffled[:part], shuffled[part:]
    rest = rest[rng(seed, task, "validation").permutation(len(rest))]
    chosen = (rest[part:], rest[:part], test)
    return checked_parts("groups", [np.flatnonzero(np.isin(units, own)) for own in chosen])


def checked_parts(option: str, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Training, validation and test rows, each at least two."""
    train, validation, test = parts
    for word, part in (("training", train), ("validation", validation), ("test", test)):
        if len(part) < 2:
            raise InputError(f"{option}: leaves {len(part)} rows for the {word} part, want at least 2")
    return train, validation, test


def matrix_of(source: str, built_in: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The rows of a file or of a built-in set, and the names of its columns where it has some."""
    if source in built_in:
        table = sets.load(source)
        return np.asarray(table.X), table.columns
    X, names = read_matrix(source)
    X = X.toarray() if hasattr(X, "toarray") else np.asarray(X, dtype=np.float64)
    return X, names


def kept_columns(source: str, built_in: Sequence[str], columns: Sequence[str], kept: Sequence[str]) -> np.ndarray:
    """The ``kept`` columns of a source by name; a source without names must have all ``columns`` in their order."""
    X, names = matrix_of(source, built_in)
    if names is None:
        if X.shape[1] != len(columns):
            raise InputError(f"{source}: has {X.shape[1]} columns without names, want {len(columns)}")
        names = columns
    found = [named_column(X, names, name, source) for name in kept]
    return np.stack(found, axis=1) if found else np.empty((len(X), 0))


def named_column(X: np.ndarray, names: Sequence[str], name: str, source: str) -> np.ndarray:
    """A column by name; a square or product that the file lacks is made from its factors."""
    if name in names:
        return X[:, list(names).index(name)]
    if name.endswith("^2") and name[:-2] in names:
        return named_column(X, names, name[:-2], source) ** 2
    left, product, right = name.partition("*")
    if product and left in names and right in names:
        return named_column(X, names, left, source) * named_column(X, names, right, source)
    raise InputError(f"{source}: lacks the column {name!r} that the model needs{suggestion(name, names)}")

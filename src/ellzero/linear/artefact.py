"""A fitted linear model as a file: few named coefficients and an intercept, in the units of the columns as given.

Lives here: ``LinearModel`` with ``predict``, ``save`` and ``load``. Does not live here: fitting.
A folder holds ``model.safetensors`` (exact numbers) and ``coefficients.csv`` (the same, for reading).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError
from ellzero.io import artefacts, atomic

__all__ = ["KIND", "VERSION", "LinearModel"]

KIND, VERSION = "linear-model", 1


@dataclass(frozen=True, eq=False)
class LinearModel:
    """``y = X[:, support] @ values + intercept``; ``columns`` names all columns that it was fitted on."""

    support: np.ndarray
    values: np.ndarray
    intercept: float
    columns: tuple[str, ...]
    target: str = "y"

    @classmethod
    def of(cls, coef: np.ndarray, intercept: float, columns: Sequence[str] | None, target: str = "y") -> LinearModel:
        """From ``[p]`` coefficients; columns without names are called ``x0``, ``x1``, ..."""
        support = np.flatnonzero(coef)
        names = tuple(columns) if columns is not None else tuple(f"x{j}" for j in range(len(coef)))
        return cls(support, np.asarray(coef, np.float64)[support], float(intercept), names, target)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the columns that it uses."""
        return tuple(self.columns[j] for j in self.support)

    @property
    def nbytes(self) -> int:
        """Coefficients, their places and the intercept."""
        return self.values.nbytes + self.support.astype(np.int32).nbytes + 8

    def predict(self, X: np.ndarray) -> np.ndarray:
        """``[n, p]`` in the order of ``columns``: ``[n]``."""
        kept = X if len(self.support) == X.shape[1] else X[:, self.support]
        return self.predict_kept(np.ascontiguousarray(kept, dtype=np.float64))

    def predict_kept(self, X: np.ndarray) -> np.ndarray:
        """``[n, len(kept)]``, only the columns that it uses: ``[n]``."""
        return X @ self.values + self.intercept

    def save(self, directory: Path) -> None:
        """Write ``model.safetensors`` and ``coefficients.csv`` into an existing folder."""
        tensors = {
            "support": self.support.astype(np.int64),
            "values": self.values,
            "intercept": np.array([self.intercept]),
        }
        meta = {"columns": list(self.columns), "target": self.target}
        artefacts.save(Path(directory) / "model.safetensors", tensors, meta, KIND, VERSION)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["column", "coefficient"])
        writer.writerow(["(intercept)", repr(self.intercept)])
        writer.writerows([name, repr(float(value))] for name, value in zip(self.kept, self.values))
        atomic.write_text(Path(directory) / "coefficients.csv", text.getvalue())

    @classmethod
    def load(cls, directory: Path) -> LinearModel:
        """The inverse of ``save``; ``InputError`` for a missing, torn, foreign or newer file."""
        path = Path(directory) / "model.safetensors"
        tensors, meta = artefacts.load(path, KIND, version=VERSION)
        support, values = tensors["support"], tensors["values"]
        columns: Any = meta["columns"]
        if len(support) != len(values) or (len(support) and not 0 <= support.min() <= support.max() < len(columns)):
            raise InputError(f"{path}: its coefficients do not fit its {len(columns)} columns")
        return cls(support, values, float(tensors["intercept"][0]), tuple(columns), meta["target"])

"""From a fitted pipeline to what a person reads: a table of named coefficients, sorted and ready to save.

Lives here: ``coefficient_table``. Does not live here: fitting, the model that is taken along (``frame_model``).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, require
from ellzero.io import atomic

__all__ = ["CoefficientTable", "coefficient_table", "fitted_parts"]


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """Names and coefficients, the largest first; ``frequencies`` says how often each is selected, where known."""

    names: tuple[str, ...]
    coefficients: np.ndarray
    intercept: float
    frequencies: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per coefficient; the intercept is not among them."""
        plain = [{"column": name, "coefficient": float(value)} for name, value in zip(self.names, self.coefficients)]
        if self.frequencies is not None:
            for row, share in zip(plain, self.frequencies):
                row["frequency"] = float(share)
        return plain

    def to_frame(self) -> Any:
        """The rows as a pandas frame."""
        frame = require("pandas", "dev", "a table as a data frame").DataFrame
        return frame(self.rows(), columns=self._header())

    def save(self, path: str | os.PathLike) -> None:
        """Write a .csv file, the intercept in its first row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._header())
        writer.writerow(["(intercept)", repr(self.intercept), ""][: len(self._header())])
        for name, *numbers in map(dict.values, self.rows()):
            writer.writerow([name, *map(repr, numbers)])
        atomic.write_text(path, text.getvalue())

    def __str__(self) -> str:
        width = max(map(len, (*self.names, "(intercept)")))
        lines = [f"{'(intercept)':{width}}  {self.intercept:12.5g}"]
        for row in self.rows():
            share = f"  {row['frequency']:5.0%}" if "frequency" in row else ""
            lines.append(f"{row['column']:{width}}  {row['coefficient']:12.5g}{share}")
        return "\n".join(lines)

    def _header(self) -> list[str]:
        return ["column", "coefficient"] + ["frequency"] * (self.frequencies is not None)


def coefficient_table(
    model: Any, *, names: Sequence[str] | None = None, frequencies: Any = None, zeros: bool = False
) -> CoefficientTable:
    """The coefficients of a fitted linear estimator, or of a pipeline that ends in one, under their names.

    Parameters
    ----------
    names : of the estimator's columns; default those that the pipeline or the fit knows, else ``x0``, ``x1``, ...
    frequencies : ``[p]`` how often each column was selected on resampled rows, from 0 to 1.
    zeros : whether columns with coefficient 0 are listed too.

    Raises
    ------
    InputError : a model that is not fitted or has no vector of coefficients, names or frequencies of another length.
    """
    transformer, estimator = fitted_parts(model)
    coef = np.asarray(estimator.coef_, dtype=np.float64)
    if names is None and transformer is not None:
        names = transformer.get_feature_names_out()
    if names is None:
        names = getattr(estimator, "feature_names_in_", [f"x{j}" for j in range(len(coef))])
    if len(names) != len(coef):
        raise InputError(f"names: got {len(names)}, want {len(coef)}, one per column")
    shares = None if frequencies is None else np.asarray(frequencies, dtype=np.float64)
    if shares is not None and (shares.shape != coef.shape or not ((shares >= 0) & (shares <= 1)).all()):
        raise InputError(f"frequencies: got shape {shares.shape}, want ({len(coef)},) shares from 0 to 1")
    order = np.argsort(-abs(coef), kind="stable")
    order = order if zeros else order[coef[order] != 0]
    kept = None if shares is None else shares[order]
    return CoefficientTable(tuple(str(names[j]) for j in order), coef[order], float(estimator.intercept_), kept)


def fitted_parts(model: Any) -> tuple[Any, Any]:
    """What comes before the linear estimator (``None`` where nothing does), and the estimator."""
    steps = getattr(model, "steps", None)
    estimator = model if steps is None else steps[-1][1]
    if not hasattr(estimator, "coef_"):
        raise InputError(f"model: got {type(estimator).__name__} without coef_, want a fitted linear estimator")
    if np.ndim(estimator.coef_) != 1:
        raise InputError(f"model: got coefficients of shape {np.shape(estimator.coef_)}, want one vector")
    return (model[:-1] if steps is not None and len(steps) > 1 else None), estimator

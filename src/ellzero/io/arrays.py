"""Matrices in binary files: .npy, .npz (dense and scipy sparse), .parquet and .safetensors.

Lives here: their reading and checks. Does not live here: which column is the target (``readers``).
Object arrays would have to be unpickled and are refused; memory maps stay maps.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, require, suggestion
from ellzero.io import container
from ellzero.io.frames import Frame, check_finite_columns, check_names, missing, text

__all__ = ["as_float64", "names", "read_npy", "read_npz", "read_parquet", "read_safetensors", "read_vector"]

_SPARSE_KEYS = {"format", "shape", "data"}


def _said(error: Exception) -> str:
    """The error's text on one line; libraries quote whole headers."""
    return " ".join(str(error).split())[:200]


def _floating(path: Any, values: np.ndarray, what: str = "") -> np.ndarray:
    """Floating point as it is, booleans and integers as float64, anything else refused."""
    if values.dtype.kind == "f" and values.dtype.itemsize <= 8:
        return values
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    held = {"O": "Python objects", "U": "text", "S": "text", "V": "records", "c": "complex numbers"}
    found = held.get(values.dtype.kind, "dates")
    raise InputError(f"{path}: {what}holds {found} (dtype {values.dtype}), want numbers")


def as_float64(values: Any) -> Any:
    """A dense or sparse matrix as float64."""
    return values.astype(np.float64, copy=False) if sparse.issparse(values) else np.array(values, dtype=np.float64)


def _matrix(path: Any, values: np.ndarray, columns: tuple[str, ...] | None = None, what: str = "") -> np.ndarray:
    if values.ndim != 2:
        raise InputError(f"{path}: {what}has shape {values.shape} ({values.ndim} axes), want 2 axes: rows and columns")
    if 0 in values.shape:
        raise InputError(f"{path}: {what}has shape {values.shape}, which has no entries")
    values = _floating(path, values, what)
    check_finite_columns(path, values, columns)
    return values


def read_npy(path: Path) -> Frame:
    """The array of a .npy file, mapped read-only rather than read."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy and zipfile raise nearly anything
        if "pickle" in str(error) or "Python object" in str(error):
            _refuse_pickle(path, error)
        raise InputError(f"{path}: is not a .npy file, or is cut short ({_said(error)})") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise InputError(f"{path}: is an .npz file by content; give it that suffix")
    return Frame(_matrix(path, values))


def _refuse_pickle(path: Path, error: Exception) -> None:
    raise InputError(
        f"{path}: holds Python objects, or is no array file; objects would have to be unpickled, which can run code, "
        "and are never read: save numbers"
    ) from error


def _read_members(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file by name."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # damaged bytes make NumPy and zipfile raise nearly anything
        if "Object arrays" in str(error) or "pickle" in str(error):
            _refuse_pickle(path, error)
        raise InputError(f"{path}: is not an .npz file, or is damaged ({_said(error)})") from error


def names(path: str | os.PathLike) -> tuple[str, ...]:
    """The names of the arrays in an .npz or .safetensors file; of a scipy sparse .npz, none."""
    path = container.regular_file(path)
    if path.suffix.lower() == ".safetensors":
        return tuple(container.parse(path).places)
    try:
        with zipfile.ZipFile(path) as file:
            found = tuple(name.removesuffix(".npy") for name in file.namelist())
    except Exception as error:  # damaged bytes make NumPy and zipfile raise nearly anything
        raise InputError(f"{path}: is not an .npz file, or is damaged ({_said(error)})") from error
    return () if set(found) >= _SPARSE_KEYS else found


def _choose(path: Path, known: tuple[str, ...], name: str | None) -> str:
    if name is not None:
        if name not in known:
            raise InputError(f"{path}: has no array {name!r}, want one of {', '.join(known)}{suggestion(name, known)}")
        return name
    if "X" in known or len(known) == 1:
        return "X" if "X" in known else known[0]
    raise InputError(f"{path}: holds the arrays {', '.join(known) or '(none)'}; name one, or call one of them X")


def read_npz(path: Path, name: str | None = None) -> Frame:
    """One matrix of an .npz file; a scipy sparse one stays sparse. An array ``columns`` of text names the columns."""
    members = _read_members(path)
    if set(members) >= _SPARSE_KEYS:
        if name is not None:
            raise InputError(f"name: got {name!r}, but {path} holds one sparse matrix; want no name")
        return Frame(_sparse(path, members))
    chosen = _choose(path, tuple(key for key in members if key != "columns"), name)
    columns = None
    if "columns" in members and members["columns"].dtype.kind == "U":
        columns = check_names(path, [str(column) for column in members["columns"].ravel()])
    values = _matrix(path, members[chosen], None, f"array {chosen!r} ")
    if columns is not None and len(columns) != values.shape[1]:
        raise InputError(f"{path}: names {len(columns)} columns, and array {chosen!r} has {values.shape[1]}")
    return Frame(values, columns)


def _sparse(path: Path, members: dict[str, np.ndarray]) -> Any:
    """A matrix as ``scipy.sparse.save_npz`` writes it, as CSR or CSC, with its structure checked.

    ``scipy.sparse.load_npz`` does not look at the indices, and one out of range would crash a compiled loop.
    """
    try:
        layout = members["format"].item()
        layout = layout.decode() if isinstance(layout, bytes) else str(layout)
        shape = tuple(int(size) for size in members["shape"])
        data = _floating(path, members["data"])
        if layout in ("csr", "csc", "bsr"):
            build = {"csr": sparse.csr_array, "csc": sparse.csc_array, "bsr": sparse.bsr_array}[layout]
            matrix = build((data, members["indices"], members["indptr"]), shape=shape)
            matrix.check_format(full_check=True)
        elif layout == "coo":
            places = members["coords"] if "coords" in members else (members["row"], members["col"])
            matrix = sparse.coo_array((data, tuple(places)), shape=shape)
        elif layout == "dia":
            matrix = sparse.dia_array((data, members["offsets"]), shape=shape)
        else:
            raise ValueError(f"format {layout!r}")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path}: is not a valid sparse matrix ({_said(error)})") from error
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"{path}: the sparse matrix has shape {shape}, want rows and columns, both above 0")
    matrix = matrix if layout == "csc" else sparse.csr_array(matrix)
    matrix.sum_duplicates()
    bad = np.flatnonzero(~np.isfinite(matrix.data))
    if len(bad):
        row, column = (int(axis[bad[0]]) for axis in matrix.tocoo().coords)
        raise InputError(f"{path}: column '{column}' holds {matrix.data[bad[0]]} in row {row}; want finite numbers")
    return matrix


def read_safetensors(path: Path, name: str | None = None) -> Frame:
    """One matrix of a .safetensors file; bfloat16 is widened to float32."""
    header = container.parse(path)
    chosen = _choose(path, tuple(header.places), name)
    return Frame(_matrix(path, _tensor(path, header, chosen), None, f"tensor {chosen!r} "))


def _tensor(path: Path, header: container.Header, name: str) -> np.ndarray:
    with open(path, "rb") as file:
        return container.widen(container.read(file, header, name), header.places[name], f"{path}: tensor {name!r}")


def read_vector(path: Path, name: str) -> np.ndarray:
    """One array of an .npz or .safetensors file as a float64 vector; a single column counts as one."""
    chosen = _choose(path, names(path), name)
    if path.suffix.lower() == ".safetensors":
        values = _tensor(path, container.parse(path), chosen)
    else:
        values = _read_members(path)[chosen]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise InputError(f"{path}: array {chosen!r} has shape {values.shape}, want one number per row")
    return _matrix(path, values[:, None], (chosen,), f"array {chosen!r} ")[:, 0].astype(np.float64)


def read_parquet(path: Path) -> Frame:
    """A .parquet table of numbers; booleans become 1 and 0."""
    parquet = require("pyarrow.parquet", "data", "to read .parquet files")
    arrow = require("pyarrow", "data", "to read .parquet files")
    try:
        table = parquet.ParquetFile(path).read()
        found = table.column_names  # decoded only now
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise InputError(f"{path}: is not a .parquet file, or is damaged ({_said(error)})") from error
    columns = check_names(path, found)
    if not columns or not table.num_rows:
        raise InputError(f"{path}: has {table.num_rows} rows and {len(columns)} columns, which has no entries")
    values = np.empty((table.num_rows, len(columns)))
    for place, (name, column) in enumerate(zip(columns, table.columns)):
        values[:, place] = _arrow_column(path, arrow, name, column)
    check_finite_columns(path, values, columns)
    return Frame(values, columns)


def _arrow_column(path: Path, arrow: Any, name: str, column: Any) -> np.ndarray:
    kind = column.type
    numeric = arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_decimal(kind)
    if arrow.types.is_null(kind) or ((numeric or arrow.types.is_boolean(kind)) and column.null_count):
        first = next((row for row, value in enumerate(column) if not value.is_valid), 0)
        raise missing(path, name, column.null_count, f"the first in row {first}")
    if not numeric and not arrow.types.is_boolean(kind):
        value = next((value.as_py() for value in column if value.is_valid), None)
        what = "text" if isinstance(value, str) else f"values of type {kind}"
        raise text(path, name, value, "categories" if arrow.types.is_dictionary(kind) else what)
    if arrow.types.is_decimal(kind):
        return np.array([float(value) for value in column.to_pylist()])
    return column.to_numpy().astype(np.float64)

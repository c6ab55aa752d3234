"""What every layout promises, and the registries that join layouts, operators and sparsifiers.

Lives here: ``Layout``, ``from_dense``, ``convert``, ``operator``, ``sparsify``, files. Does not live here: any one
layout (its own module), loops (``kernels.sparse``), modules of torch (``nn``).
What nobody registered for a layout runs on the dense matrix, and says so once.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ellzero.errors import InputError, check_array, check_choice
from ellzero.io import artefacts
from ellzero.kernels.sparse import turn

__all__ = ["DenseFallbackWarning", "Layout", "convert", "layouts", "load", "operator", "register_operator",
           "register_sparsifier", "sparsify"]  # fmt: skip

KIND, VERSION = "layout", 1


class DenseFallbackWarning(UserWarning):
    """An operator has no implementation for a layout and ran on the dense matrix."""


class Layout(ABC):
    """A matrix ``[rows, columns]`` of which only some entries are stored.

    A subclass has a ``name``, is made by ``from_dense`` and gives back ``to_dense`` to the bit (entries that are
    stored, zeros elsewhere). ``tensors`` and ``facts`` are all that a file needs; ``from_parts`` is their inverse.
    """

    name: ClassVar[str]
    shape: tuple[int, int]

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            _LAYOUTS[cls.name] = cls

    @classmethod
    @abstractmethod
    def from_dense(cls, matrix: np.ndarray, **settings: Any) -> Layout:
        """Store the nonzero entries of ``matrix``, float32 or float64 ``[rows, columns]``.

        Raises
        ------
        InputError : the nonzeros do not have the layout's form.
        """

    @abstractmethod
    def to_dense(self) -> np.ndarray:
        """The matrix with its zeros."""

    @abstractmethod
    def tensors(self) -> dict[str, np.ndarray]:
        """The stored arrays by name."""

    def facts(self) -> dict[str, Any]:
        """What a file must say beside the arrays, as JSON; ``shape`` always."""
        return {"shape": list(self.shape)}

    @classmethod
    @abstractmethod
    def from_parts(cls, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Layout:
        """The inverse of ``tensors`` and ``facts``; refuses what does not fit together."""

    @abstractmethod
    def matmul(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        """``W x + bias`` for ``x`` ``[columns, batch]`` (or ``[columns]``): feature-major in and out."""

    def layer(self, x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
        """``x W' + bias`` for a batch of rows ``[batch, columns]``, as layers have it."""
        known = x.dtype in (np.float32, np.float64)
        columns = turn(x, n_threads=n_threads) if known and len(x) != 1 else np.ascontiguousarray(x.T)
        out = np.ascontiguousarray(self.matmul(columns, bias=bias, n_threads=n_threads))
        return out.T if len(x) == 1 else turn(out, n_threads=n_threads)

    def rmatmul(self, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        """``W' x`` for ``x`` ``[rows, batch]`` (or ``[rows]``)."""
        return operator("rmatmul", self)(x, n_threads=n_threads)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(array.nbytes for array in self.tensors().values())

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Numbers that are stored, zeros among them included."""

    @property
    def density(self) -> float:
        """Stored share of the entries."""
        return self.nnz / max(self.shape[0] * self.shape[1], 1)

    def __getitem__(self, rows: slice) -> Layout:
        """Some rows, in the same layout where that is possible."""
        if not isinstance(rows, slice):
            raise InputError(f"rows: got {rows!r}, want a slice")
        return self._slice(*rows.indices(self.shape[0]))

    def _slice(self, start: int, stop: int, step: int) -> Layout:
        return type(self).from_dense(self.to_dense()[start:stop:step], **self.settings())

    def settings(self) -> dict[str, Any]:
        """The arguments with which ``from_dense`` makes a layout of this kind."""
        return {}

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        return self.matmul(x)

    def save(self, path: str | os.PathLike) -> None:
        """One safetensors file; any tool can read its arrays."""
        artefacts.save(path, self.tensors(), {"layout": self.name, **self.facts()}, kind=KIND, version=VERSION)


_LAYOUTS: dict[str, type[Layout]] = {}
_OPERATORS: dict[tuple[str, str], Callable[..., Any]] = {}
_SPARSIFIERS: dict[tuple[type, str], Callable[..., Layout]] = {}
_WARNED: set[tuple[str, str]] = set()


def layouts() -> dict[str, type[Layout]]:
    """Every known layout by name, the user's own included."""
    from ellzero.layouts import bitmask, block, butterfly, condensed, grouped, nm, nmg  # noqa: F401 (they join by name)

    return dict(_LAYOUTS)


def load(path: str | os.PathLike) -> Layout:
    """The layout that ``save`` wrote.

    Raises
    ------
    InputError : a torn, foreign or newer file, or a layout that is not known here.
    """
    tensors, facts = artefacts.load(path, KIND, version=VERSION)
    known = layouts()
    name = check_choice(f"{path}: layout", facts.get("layout"), known)
    return known[name].from_parts(tensors, facts)


def checked_dense(matrix: Any) -> np.ndarray:
    """A matrix of float32 or float64 in C order; NaN and infinity are legal entries."""
    matrix = check_array("matrix", matrix, ndim=2, dtypes="f", finite=False, allow_empty=True)
    if matrix.dtype not in (np.float32, np.float64):
        raise InputError(f"matrix: got {matrix.dtype}, want float32 or float64")
    return np.ascontiguousarray(matrix)


def columns_first(name: str, x: np.ndarray, features: int, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """``x`` as ``[features, batch]`` of ``dtype``, and whether it came as a vector."""
    if type(x) is np.ndarray and x.dtype == dtype and x.flags.c_contiguous and 0 < x.ndim < 3 and len(x) == features:
        return (x, False) if x.ndim == 2 else (x[:, None], True)
    x = check_array(name, x, ndim=(1, 2), dtypes="f", finite=False, allow_empty=True)
    if x.shape[0] != features:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, want {features} along the first axis")
    return np.ascontiguousarray(x if x.ndim == 2 else x[:, None], dtype=dtype), x.ndim == 1


class Ways(NamedTuple):
    """How an operator runs on a layout: the function, and whether it is the dense fallback."""

    run: Callable[..., Any]
    dense: bool


def register_operator(operation: str, layout: type[Layout]) -> Callable[[Callable], Callable]:
    """Decorator: ``function(layout, *arguments, **options)`` is how ``operation`` runs on that layout."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _OPERATORS[operation, layout.name] = function
        return function

    return add


def operator(operation: str, of: Layout) -> Callable[..., Any]:
    """``operation`` bound to a layout: the registered function, else the same on the dense matrix, with a warning.

    Dense ways exist for ``"matmul"``, ``"rmatmul"`` and every method of ``numpy.ndarray``.
    """
    found = _OPERATORS.get((operation, type(of).name))
    if found is not None:
        return lambda *arguments, **options: found(of, *arguments, **options)
    if (operation, type(of).name) not in _WARNED:
        _WARNED.add((operation, type(of).name))
        note = f"{operation} has no implementation for the layout {type(of).name!r}: it runs on the dense matrix"
        warnings.warn(note, DenseFallbackWarning, stacklevel=3)
    dense = of.to_dense()
    if operation in ("matmul", "rmatmul"):
        matrix = dense if operation == "matmul" else dense.T

        def run(x: np.ndarray, *, bias: np.ndarray | None = None, n_threads: int | None = None) -> np.ndarray:
            x, vector = columns_first("x", x, matrix.shape[1], matrix.dtype)
            out = matrix @ x
            out = out if bias is None else out + bias[:, None]
            return out[:, 0] if vector else out

        return run
    if not hasattr(dense, operation):
        raise InputError(f"operation: got {operation!r}, which neither the layout nor a dense array has")
    return getattr(dense, operation)


def register_sparsifier(constraint: type, layout: type[Layout]) -> Callable[[Callable], Callable]:
    """Decorator: ``function(constraint, matrix, layout, **settings)`` is how that constraint fills that layout."""

    def add(function: Callable[..., Layout]) -> Callable[..., Layout]:
        _SPARSIFIERS[constraint, layout.name] = function
        return function

    return add


def sparsify(matrix: np.ndarray, constraint: Any, layout: type[Layout], **settings: Any) -> Layout:
    """Keep what ``constraint`` selects by magnitude, in that layout.

    A registered sparsifier may do both at once; otherwise the matrix is masked by ``constraint.support(|W|)`` first.
    """
    matrix = checked_dense(matrix)
    found = _SPARSIFIERS.get((type(constraint), layout.name))
    if found is not None:
        return found(constraint, matrix, layout, **settings)
    if not callable(getattr(constraint, "support", None)):
        raise InputError(f"constraint: got {type(constraint).__name__}, want one with support(scores), as TopK(8)")
    return layout.from_dense(np.where(constraint.support(np.abs(matrix)), matrix, 0), **settings)


def convert(of: Layout, to: type[Layout], **settings: Any) -> Layout:
    """The same matrix in another layout, without loss; through the dense matrix."""
    return of if type(of) is to and not settings else to.from_dense(of.to_dense(), **settings)

"""Products of sparse with dense matrices on NumPy arrays: the compiled kernels where they are live, else references.

Lives here: ``Pattern`` (which places are stored, by groups of rows) with its products. Does not live here: products of
n:m matrices (``nm``), how a dense matrix becomes sparse, files and modules (``ellzero.layouts``), the loops (``csrc``).
Dense operands are feature-major, ``[features, batch]``, so that the batch lies along the registers; those of ``layer``
and ``layer_gradient`` are ``[batch, features]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InputError, check_array, check_choice, check_integer
from ellzero.kernels._dispatch import CHOICE

__all__ = ["GROUPS", "PRODUCT_DTYPES", "Pattern", "narrowed", "turn", "widened"]

GROUPS = (1, 4, 8)
"""Rows that may share one pattern."""

# A slab of x that the rows read again and again: columns taken at a time, so that it stays in a core's L2 (512 KiB on
# many a CPU, with room left for the values that pass through).
_TILE_BYTES = 400 * 1024


# Per type of stored values, that of their products.
PRODUCT_DTYPES = {np.dtype(kind): np.dtype(np.float32) for kind in (np.float32, np.int8, np.uint16)}
PRODUCT_DTYPES[np.dtype(np.float64)] = np.dtype(np.float64)


def batch_tile(features: int, batch: int, itemsize: int) -> int:
    """Columns of the batch done at a time: all of them, or a multiple of 128 bytes' worth."""
    step = 128 // itemsize
    fits = max(_TILE_BYTES // max(features * itemsize, 1) // step, 1) * step
    return batch if batch <= fits else fits


def threads_asked(n_threads: int | None) -> int:
    """As the compiled kernels take it: 0 means all."""
    if type(n_threads) is int and n_threads > 0:
        return n_threads
    return 0 if n_threads is None else check_integer("n_threads", n_threads, at_least=1)


class Pattern:
    """The stored places of a matrix ``[rows, columns]``; ``group`` neighbouring rows share one pattern.

    Checked once when it is made and fixed from then on, so that products need not check again.

    Parameters
    ----------
    ptr : int64 ``[rows / group + 1]``; the entries of group g are ``ptr[g] .. ptr[g + 1]``.
    index : ``[entries]``, the column of each entry; columns of a group in any order, each at most once.
    group : 1, 4 or 8.
    columns : number of columns.
    order : ``[entries]``, groups of one only: entry k has the value at place ``order[k]`` of what products are given.

    Raises
    ------
    InputError : ptr does not rise from 0 to the number of entries, or an index is no column.
    """

    def __init__(
        self, ptr: np.ndarray, index: np.ndarray, *, group: int = 1, columns: int, order: np.ndarray | None = None
    ):  # fmt: skip
        self.group = check_choice("group", group, GROUPS)
        self.columns = check_integer("columns", columns, at_least=0)
        self.ptr = _whole("ptr", ptr)
        index = _whole("index", index)
        if len(self.ptr) < 1 or self.ptr[0] != 0 or self.ptr[-1] != len(index) or (np.diff(self.ptr) < 0).any():
            raise InputError(f"ptr: want numbers that rise from 0 to {len(index)}, the number of entries")
        if len(index) and not (index.min() >= 0 and index.max() < columns):
            raise InputError(f"index: got {index.min()} to {index.max()}, want columns from 0 to {columns - 1}")
        self.index = index.astype(np.uint16 if columns <= 65536 else np.uint32)
        for array in (self.ptr, self.index):
            array.setflags(write=False)
        self.order = None if order is None else _whole("order", order)
        if order is not None and (group != 1 or not np.array_equal(np.sort(self.order), np.arange(len(index)))):
            raise InputError("order: want each place once, of a pattern with groups of one")
        native = CHOICE.module
        self._native = None if native is None else native.Pattern(self.ptr, index, self.group, self.columns, self.order)
        self._rows = (len(self.ptr) - 1) * self.group

    def __deepcopy__(self, memo: Any) -> Pattern:
        return self  # nothing in it can change

    def __reduce__(self) -> Any:
        return _unpickled, (self.ptr, self.index, self.group, self.columns, self.order)

    @property
    def rows(self) -> int:
        """Number of rows of the matrix."""
        return self._rows

    @property
    def nnz(self) -> int:
        """Stored numbers: entries times group."""
        return len(self.index) * self.group

    def row_of(self) -> np.ndarray:
        """The group that each entry belongs to, int64 ``[entries]``."""
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))

    def transposed(self) -> tuple[Pattern, np.ndarray]:
        """The pattern of the transpose with groups of one, and for each of its entries the place of its value.

        ``value.reshape(-1)[order]`` are the values of the transpose.
        """
        rows = (self.row_of()[:, None] * self.group + np.arange(self.group)).ravel()
        columns = np.repeat(self.index, self.group)
        order = np.argsort(columns, kind="stable")  # rows rise already, so they rise within each column
        ptr = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=self.columns))])
        return Pattern(ptr, rows[order], columns=self.rows), order

    def turned(self) -> Pattern:
        """The pattern of the transpose, whose products take the values of this pattern as they lie here."""
        pattern, order = self.transposed()
        return Pattern(pattern.ptr, pattern.index, columns=pattern.columns, order=order)

    def product(
        self, value: np.ndarray, x: np.ndarray, *, bias: np.ndarray | None = None, scale: np.ndarray | None = None,
        out: np.ndarray | None = None, n_threads: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """``diag(scale) W x + bias``, ``[rows, batch]``.

        Parameters
        ----------
        value : ``[entries, group]`` float32, float64, int8, or bfloat16 as uint16. The last two are widened and summed
            in float32.
        x : ``[columns, batch]`` float32 or float64, C-contiguous; float64 exactly where ``value`` is.
        bias, scale : ``[rows]``, of the dtype of ``x``.
        out : where to write.
        n_threads : default all; the result does not depend on it.

        Raises
        ------
        InputError : shapes or dtypes that do not fit.
        """
        if out is None and type(x) is np.ndarray and x.ndim == 2:
            quick = self.quick(value, x, bias=bias, scale=scale, n_threads=n_threads)
            if quick is not None:
                return quick
        if value.dtype not in PRODUCT_DTYPES:
            check_choice("value.dtype", value.dtype.name, tuple(kind.name for kind in PRODUCT_DTYPES))
        x = operand("x", x, self.columns, PRODUCT_DTYPES[value.dtype])
        return self._run(value, x, x.shape[1], bias, scale, out, n_threads)

    def quick(
        self, value: np.ndarray, x: np.ndarray, *, bias: np.ndarray | None = None, scale: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> np.ndarray | None:  # fmt: skip
        """The product for arrays that are as ``product`` wants them, ``x`` also a vector; None for all others.

        Small products would spend most of their time in checks that name what is wrong.
        """
        if self._native is None or type(x) is not np.ndarray:
            return None
        shape = x.shape
        if len(shape) == 1:
            tile, size = 1, self._rows
        elif len(shape) == 2:
            tile, size = shape[1], (self._rows, shape[1])
        else:
            return None
        if self.columns * tile * x.itemsize > _TILE_BYTES:
            tile = batch_tile(self.columns, tile, x.itemsize)
        out = np.empty(size, x.dtype)
        return out if self._native.quick(value, x, out, scale, bias, tile, threads_asked(n_threads)) else None

    def layer(
        self, value: np.ndarray, x: np.ndarray, *, bias: np.ndarray | None = None, scale: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """``x W' diag(scale) + bias``, ``[batch, rows]``: the product for a batch of rows, as layers have it.

        Parameters
        ----------
        value, bias, scale : as for ``product``.
        x : ``[batch, columns]``. Tiles of it are turned in a near cache: cheaper than turning all before and after.

        Raises
        ------
        InputError : shapes or dtypes that do not fit.
        """
        if self.order is not None and value.shape[1:] != (1,):
            value = value.reshape(-1, 1)
        if self._native is not None and type(x) is np.ndarray and x.ndim == 2:
            out = np.empty((len(x), self._rows), x.dtype)
            if self._native.quick(value, x, out, scale, bias, 0, threads_asked(n_threads), True):
                return out
        return np.ascontiguousarray(
            self.product(value, np.ascontiguousarray(x.T), bias=bias, scale=scale, n_threads=n_threads).T
        )

    def slide(
        self, value: np.ndarray, x: np.ndarray, batch: int, *, bias: np.ndarray | None = None,
        n_threads: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """``out[i, p] = sum_k value[k] x[index[k] + p] + bias[i]``, ``[rows, batch]``: a convolution on flat input.

        Parameters
        ----------
        value : ``[entries, group]`` float32 or float64.
        x : ``[columns + batch - 1]``, of the dtype of ``value``; columns are offsets into it.
        """
        check_integer("batch", batch, at_least=1)
        x = check_array("x", x, ndim=1, shape=(self.columns + batch - 1,), finite=False, allow_empty=True)
        check_choice("value.dtype", value.dtype.name, ("float32", "float64"))
        if x.dtype != value.dtype:
            raise InputError(f"x: got {x.dtype}, want {value.dtype}, the kind of the values")
        return self._run(value, np.ascontiguousarray(x), batch, bias, None, None, n_threads)

    def _run(
        self, value: np.ndarray, x: np.ndarray, batch: int, bias: Any, scale: Any, out: Any, n_threads: int | None
    ) -> np.ndarray:  # fmt: skip
        kind = x.dtype
        if value.shape != (len(self.index), self.group):
            if self.order is None or value.size != len(self.index):
                raise InputError(f"value: got shape {value.shape}, want {(len(self.index), self.group)}")
            value = value.reshape(-1, 1)
        for name, row in (("bias", bias), ("scale", scale)):
            if row is not None and (row.shape != (self.rows,) or row.dtype != kind):
                raise InputError(f"{name}: got {row.dtype} {row.shape}, want {kind} {(self.rows,)}")
        threads = threads_asked(n_threads)
        if out is None:
            out = np.empty((self.rows, batch), kind)
        if self._native is None:
            rows = x if x.ndim == 2 else np.lib.stride_tricks.sliding_window_view(x, batch)
            value = widened(value if self.order is None else value[self.order])
            out[...] = self._reference(value, rows, bias, scale)
            return out
        # the windows of a convolution overlap: together they are as large as x itself
        features = self.columns if x.ndim == 2 else -(-len(x) // batch)
        tile = batch_tile(features, batch, kind.itemsize)
        if not value.flags.c_contiguous:
            value = np.ascontiguousarray(value)
        CHOICE.module.sparse_product(self._native, value, x, out, row_or_none(scale), row_or_none(bias), tile, threads)
        return out

    def _reference(self, value: np.ndarray, x: np.ndarray, bias: Any, scale: Any) -> np.ndarray:
        out = np.zeros((self.rows, x.shape[1]), x.dtype)
        groups = self.row_of()
        for r in range(self.group):
            np.add.at(out, groups * self.group + r, value[:, r, None] * x[self.index])
        out = out if scale is None else out * scale[:, None]
        return out if bias is None else out + bias[:, None]

    def values_gradient(self, grad: np.ndarray, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        """``[entries, group]``: the derivative of ``sum(grad * (W x))`` by the stored values, and by no other.

        Parameters
        ----------
        grad, x : ``[rows, batch]`` and ``[columns, batch]``, both float32 or both float64.
        """
        return self._gradient(grad, x, n_threads, by_rows=False)

    def layer_gradient(self, grad: np.ndarray, x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
        """``values_gradient`` for a batch of rows: ``grad`` ``[batch, rows]`` and ``x`` ``[batch, columns]``."""
        return self._gradient(grad, x, n_threads, by_rows=True)

    def _gradient(self, grad: np.ndarray, x: np.ndarray, n_threads: int | None, by_rows: bool) -> np.ndarray:
        if self.order is not None:
            raise InputError("pattern: got one whose values lie in another's order; take the gradient of that one")
        kind, axis = np.dtype(np.float64 if x.dtype == np.float64 else np.float32), int(by_rows)
        x, grad = operand("x", x, self.columns, kind, axis), operand("grad", grad, self.rows, kind, axis)
        if x.shape[1 - axis] != grad.shape[1 - axis]:
            raise InputError(f"grad: got a batch of {grad.shape[1 - axis]}, want {x.shape[1 - axis]} as x")
        threads = threads_asked(n_threads)
        out = np.empty((len(self.index), self.group), kind)
        if self._native is None:
            x, grad = (x.T, grad.T) if by_rows else (x, grad)
            groups = self.row_of()
            for r in range(self.group):
                out[:, r] = np.einsum("kb,kb->k", grad[groups * self.group + r], x[self.index])
            return out
        CHOICE.module.values_gradient(self._native, grad, x, out, threads, by_rows)
        return out


def _unpickled(ptr: np.ndarray, index: np.ndarray, group: int, columns: int, order: np.ndarray | None) -> Pattern:
    return Pattern(ptr, index, group=group, columns=columns, order=order)


def turn(x: np.ndarray, *, n_threads: int | None = None) -> np.ndarray:
    """The transpose of a float32 or float64 matrix, C-contiguous: a batch to feature-major and back."""
    x = operand("x", x, len(x), np.dtype(np.float64 if x.dtype == np.float64 else np.float32))
    if CHOICE.module is None:
        return np.ascontiguousarray(x.T)
    out = np.empty(x.shape[::-1], x.dtype)
    CHOICE.module.turn(x, out, threads_asked(n_threads))
    return out


def widened(value: np.ndarray) -> np.ndarray:
    """Stored values as floating point: bfloat16 (as uint16) and int8 become float32, exactly."""
    if value.dtype == np.uint16:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value.astype(np.float32) if value.dtype == np.int8 else value


def narrowed(value: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), rounded)


def _whole(name: str, given: Any) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: got {array.dtype} with {array.ndim} axes, want whole numbers along one axis")
    return np.array(array, dtype=np.int64)


def operand(name: str, x: np.ndarray, features: int, kind: np.dtype, axis: int = 0) -> np.ndarray:
    """A dense matrix of ``kind`` in C order, with so many features along ``axis``.

    Raises
    ------
    InputError : another shape or dtype.
    """
    if type(x) is np.ndarray and x.ndim == 2 and x.shape[axis] == features and x.dtype == kind and x.flags.c_contiguous:
        return x  # nothing to say: small products would spend most of their time in the checks
    x = check_array(name, x, ndim=2, shape=((features, None), (None, features))[axis], finite=False, allow_empty=True)
    if x.dtype != kind:
        raise InputError(f"{name}: got {x.dtype}, want {kind}, the kind of the values")
    return np.ascontiguousarray(x)


def row_or_none(array: np.ndarray | None) -> np.ndarray | None:
    """A row in C order, where there is one."""
    return None if array is None else np.ascontiguousarray(array)

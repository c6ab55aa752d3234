"""Errors a user can act on, and the checks that raise them.

Lives here: ``InputError`` and the small ``check*`` functions that every public entry calls before any work.
Does not live here: anything that knows a method, a file format or a framework.
Each message names the argument, what came, and what is wanted.
"""

from __future__ import annotations

import difflib
import importlib
import math
import numbers
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

__all__ = [
    "EllzeroDeprecationWarning",
    "InputError",
    "MissingExtraError",
    "check",
    "check_array",
    "check_choice",
    "check_integer",
    "require",
    "suggestion",
]


class InputError(ValueError):
    """An argument, option or file that cannot be used. The message names it, what came and what is wanted."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed. The message gives the install command."""


class EllzeroDeprecationWarning(FutureWarning):
    """Something of ours that will go; turned into an error in our own tests."""


def require(module: str, extra: str, purpose: str | None = None) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        why = f" ({purpose})" if purpose else ""
        raise MissingExtraError(f"{module} is not installed{why}: pip install 'ellzero[{extra}]' [{error}]") from error


def suggestion(value: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when a known name is close, else an empty string."""
    close = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``choices``, else raise with the nearest one."""
    choices = list(choices)
    if value not in choices:
        wanted = ", ".join(str(choice) for choice in choices)
        raise InputError(f"{name}: got {value!r}, want one of {wanted}{suggestion(value, map(str, choices))}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise InputError(f"{name}: got {value!r} ({type(value).__name__}), want a number")
    if math.isnan(value):
        raise InputError(f"{name}: got NaN, want a number")
    return value


def check(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Return ``value`` if it is a real number within the bounds, else raise ``InputError``.

    ``at_least`` and ``at_most`` include the bound, ``above`` and ``below`` do not. NaN is always refused.
    """
    _number(name, value)
    for bound, word, holds in (
        (at_least, "at least", lambda b: value >= b),
        (above, "above", lambda b: value > b),
        (at_most, "at most", lambda b: value <= b),
        (below, "below", lambda b: value < b),
    ):
        if bound is not None and not holds(bound):
            raise InputError(f"{name}: got {value}, want a number {word} {bound}")
    return value


def check_integer(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return ``value`` as an ``int`` if it is a whole number within the bounds, else raise ``InputError``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name}: got {value!r} ({type(value).__name__}), want a whole number")
    check(name, value, at_least=at_least, at_most=at_most)
    return int(value)


def check_array(
    name: str,
    x: Any,
    *,
    ndim: int | Sequence[int] | None = None,
    dtypes: str | None = None,
    finite: bool = True,
    allow_empty: bool = False,
    shape: Sequence[int | None] | None = None,
) -> Any:
    """Check an array (NumPy or torch) and return it unchanged.

    Parameters
    ----------
    ndim : allowed number of axes.
    dtypes : allowed dtype kinds as NumPy letters, such as ``"f"`` or ``"fiu"``.
    finite : refuse NaN and infinity, naming the first place.
    allow_empty : accept an array without entries.
    shape : wanted sizes, ``None`` for a free axis.
    """
    sizes = getattr(x, "shape", None)
    if sizes is None:
        raise InputError(f"{name}: got {type(x).__name__}, want an array")
    sizes = tuple(int(size) for size in sizes)
    if ndim is not None:
        allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
        if len(sizes) not in allowed:
            want = " or ".join(str(n) for n in allowed)
            raise InputError(f"{name}: got shape {sizes} ({len(sizes)} axes), want {want} axes")
    if shape is not None and (len(shape) != len(sizes) or any(w is not None and w != s for w, s in zip(shape, sizes))):
        want = "(" + ", ".join("any" if w is None else str(w) for w in shape) + ")"
        raise InputError(f"{name}: got shape {sizes}, want {want}")
    if not allow_empty and 0 in sizes:
        raise InputError(f"{name}: got shape {sizes}, which has no entries")
    kind = _kind(x)
    if dtypes is not None and kind not in dtypes:
        raise InputError(f"{name}: got dtype {x.dtype}, want {_dtype_words(dtypes)}")
    if finite and kind in "fc":
        _check_finite(name, x)
    return x


def _kind(x: Any) -> str:
    dtype = x.dtype
    if isinstance(dtype, np.dtype):
        return dtype.kind
    if dtype.is_floating_point:
        return "f"
    if dtype.is_complex:
        return "c"
    return "b" if str(dtype) == "torch.bool" else "i"


def _dtype_words(kinds: str) -> str:
    words = {"f": "floating point", "i": "integer", "u": "unsigned integer", "b": "boolean", "c": "complex"}
    return " or ".join(words.get(kind, kind) for kind in kinds)


def _check_finite(name: str, x: Any) -> None:
    if isinstance(x, np.ndarray):
        bad = ~np.isfinite(x)
        where = tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None
    else:
        bad = ~x.isfinite()
        where = tuple(int(i) for i in bad.nonzero()[0]) if bool(bad.any()) else None
    if where is not None:
        count = int(bad.sum())
        entries = "entry" if count == 1 else "entries"
        raise InputError(
            f"{name}: {count} {entries} not finite, the first ({float(x[where])}) at {where}; want finite numbers"
        )

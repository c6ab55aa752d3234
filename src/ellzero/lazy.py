"""Lazy faces: a package hands its names out on first touch, so that importing it loads nothing heavy.

Lives here: ``lazy``. Does not live here: any list of names; each package's ``__init__`` holds its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(
    package: str, names: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """What a package assigns to ``__getattr__``, ``__dir__`` and ``__all__`` (PEP 562).

    Parameters
    ----------
    package : the package's ``__name__``.
    names : public name to the module that defines it, relative to the package (``"Lasso": "estimators"``) or, with a
        leading ``"ellzero."``, in full.
    modules : submodules that are public themselves.
    """
    public = sorted({*names, *modules})
    home = sys.modules[package]

    def get(name: str) -> Any:
        if name in names:
            where = names[name]
            module = importlib.import_module(where if where.startswith("ellzero.") else f"{package}.{where}")
            value = getattr(module, name)
            setattr(home, name, value)
            return value
        if name in public:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted({*vars(home), *public}), public

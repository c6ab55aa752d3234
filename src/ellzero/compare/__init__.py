"""The comparison: fidelity against budget for every method of a task, and the road from a point to a result.

Lives here: ``compare`` (runner), run folders, frontiers, reports, ``take`` and ``apply``, and one file per task in
``tasks``. Does not live here: any method, fit or artefact format (the wings), nor the command line (``cli``).
The package can be called: ``ellzero.compare(task)`` is ``ellzero.compare.compare(task)``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_NAMES = {
    "Run": "ellzero.compare.runs",
    "apply": "ellzero.compare.applying",
    "compare": "ellzero.compare.runner",
    "take": "ellzero.compare.taking",
}

__all__ = ["Run", "apply", "compare", "take"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ellzero.compare' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Callable(ModuleType):
    """``ellzero.compare`` is a package and a verb, whichever was imported first."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return __getattr__("compare")(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

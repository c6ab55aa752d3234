"""The comparison: fidelity against budget for every method of a task, and the road from a point to a result.

Lives here: ``compare`` (runner), run folders, frontiers, reports, ``take`` and ``apply``, and one file per task in
``tasks``. Does not live here: any method, fit or artefact format (the wings), nor the command line (``cli``).
The package can be called: ``ellzero.compare(task)`` is ``ellzero.compare.compare(task)``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__, {"Run": "runs", "apply": "applying", "compare": "runner", "take": "taking"}, ("tasks",)
)


class _Callable(ModuleType):
    """``ellzero.compare`` is a package and a verb, whichever was imported first."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return __getattr__("compare")(*arguments, **options)


sys.modules[__name__].__class__ = _Callable

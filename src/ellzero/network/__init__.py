"""Networks with sparse weights: pruned while they train, or sparse from the start.

Lives here: ``Sparsifier`` (masks on the user's model), ``recipes`` (what to keep, where, when), ``frontier`` (methods
for the comparison), ``packed`` (the artefact). Does not live here: scores, allocations and schedules (``parts``), the
loop (``training``), sparse activations (another wing).
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Recipe": "ellzero.network.recipes",
    "Report": "ellzero.network.sparsifier",
    "Sparsifier": "ellzero.network.sparsifier",
    "dense": "ellzero.network.recipes",
    "gmp": "ellzero.network.recipes",
    "one_shot": "ellzero.network.recipes",
    "rigl": "ellzero.network.recipes",
    "set_": "ellzero.network.recipes",
    "static": "ellzero.network.recipes",
}
_MODULES = ("frontier", "packed", "recipes", "sparsifier")

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ellzero.network.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ellzero.network' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

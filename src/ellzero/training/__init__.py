"""Training: one loop for every wing that trains by gradient, and what it needs to be stopped and taken up again.

Lives here: ``loop`` (the loop, batches), ``losses``, ``checkpoints`` (model, optimiser, generators, position) and
``masks`` (which entries are kept, dropped and grown).
Does not live here: models (``models``), recipes (``network``), tasks.
Nothing here touches the global generators or pickles.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Batches": "ellzero.training.loop",
    "Trained": "ellzero.training.loop",
    "train": "ellzero.training.loop",
}
_MODULES = ("checkpoints", "loop", "losses", "masks")

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ellzero.training.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ellzero.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

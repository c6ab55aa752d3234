"""Training: one loop for every wing that trains by gradient, and what it needs to be stopped and taken up again.

Lives here: ``loop`` (the loop, batches), ``losses``, ``checkpoints`` (model, optimiser, generators, position),
``masks`` (which entries are kept, dropped and grown) and ``threads`` (one for small steps).
Does not live here: models (``models``), recipes (``network``), tasks.
Nothing here touches the global generators or pickles. Importing this package loads no torch.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"Batches": "loop", "Trained": "loop", "train": "loop"},
    ("checkpoints", "loop", "losses", "masks", "threads"),
)

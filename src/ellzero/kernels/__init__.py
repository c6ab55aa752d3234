"""Compiled loops on raw arrays and scalars, each with a plain reference that its tests hold it to.

Lives here: the NumPy face of each kernel, the choice of the compiled module (``native``, or None where the plain
references run; ``live`` says which), and ``show_config``. torch ops live in ``torch_ops`` and are not imported here.
Does not live here: methods, penalties, anything that keeps state. A wrapper elsewhere asks
``from ellzero.kernels import native`` and calls ``native.name(...)`` when it is not None, else its own reference.
"""

from __future__ import annotations

from ellzero.kernels._dispatch import CHOICE, show_config
from ellzero.kernels.topk import TopK, top_k

native = CHOICE.module
isa = CHOICE.isa
live = native is not None

__all__ = ["TopK", "isa", "live", "native", "show_config", "top_k"]

"""What the wings are made of: penalties, activity, datafits, constraints, gradients, scores, allocations, schedules.

Lives here: values (frozen dataclasses) with a formula in their docstring, written once for NumPy and torch.
Does not live here: loops over data (``solvers``, ``training``), compiled code (``kernels``), nor any method.
A part never knows which wing uses it; ``import ellzero.parts`` loads none of its modules.
"""

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {},
    ("activity", "allocations", "constraints", "datafits", "gradients", "namespace", "penalties", "schedules",
     "scores"),
)  # fmt: skip

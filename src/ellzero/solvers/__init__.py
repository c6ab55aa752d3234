"""Algorithms that find coefficients: operators, coordinate and block descent, pursuit, hard thresholding, recovery.

Lives here: loops over data, each with its certificate or stopping rule, for one problem, a path, or many targets.
Does not live here: penalties and datafits (``parts``), estimators with ``fit`` (the wings), compiled loops
(``kernels``). A solver asks its operator, datafit and penalty for capabilities and names the one it misses.
``import ellzero.solvers`` loads none of its modules.
"""

from __future__ import annotations

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {},
    (
        "accelerated",
        "block_descent",
        "block_problems",
        "blocks",
        "certificates",
        "conjugate_gradient",
        "coordinate_descent",
        "first_order",
        "fista",
        "forests",
        "generalized_problem",
        "group_descent",
        "hard_thresholding",
        "least_absolute",
        "loss_pursuit",
        "minimax",
        "neighbour_gp",
        "null_space",
        "operators",
        "phase_retrieval",
        "prox_newton",
        "pursuit",
        "thresholding",
    ),
)

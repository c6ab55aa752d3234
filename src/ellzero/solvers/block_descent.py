"""Block coordinate descent: rules for the block, steps of four kinds, with or without a penalty.

Lives here: ``block_descent``, its steps, and the trace of the active set. Does not live here: the functions that are
descended (``block_problems``), the rules (``block_rules``), forests (``forests``), Lasso paths for daily use
(``coordinate_descent``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.penalties import L1, Box
from ellzero.registry import register
from ellzero.solvers.block_problems import QuadraticForm
from ellzero.solvers.block_rules import (
    PARTITIONS,
    RULES,
    Block,
    FixedBlocks,
    ForestBlocks,
    VariableBlocks,
    inverse,
    partition,
)
from ellzero.solvers.forests import Forest, forest_partition
from ellzero.solvers.operators import need

__all__ = ["BlockDescent", "block_descent"]

UPDATES = ("gradient", "diagonal", "matrix", "newton")
_SUFFICIENT = 1e-4  # share of the predicted decrease that a step of the line search must keep
_HALVINGS = 20


@dataclass(frozen=True)
class BlockDescent:
    """``x`` ``[p]``. ``objective`` ``[n_iter + 1]``. ``distance``: the largest subgradient relative to the start's.

    ``active_set_trace`` ``[n_iter + 1]`` counts nonzeros; ``settled`` is the first step from which on the pattern of
    zeros stayed as it is at the end: the active-set complexity.
    """

    x: np.ndarray
    objective: np.ndarray
    distance: float
    n_iter: int
    converged: bool
    active_set_trace: np.ndarray
    settled: int


@register(
    id="S137",
    kind="solver",
    source="arXiv:1712.08859",
    wing="linear",
    claim="greedy variable blocks with matrix steps take far fewer steps than cyclic ones; forests solve huge blocks",
    example=lambda: block_descent(QuadraticForm(np.eye(4) + 1, np.arange(4.0)), 2),
)
def block_descent(
    problem: Any, size: int = 50, *, rule: str = "gsd", blocks: str | Sequence[Any] = "variable",
    update: str = "matrix", penalty: Any = None, tol: float = 1e-8, max_iter: int = 1000, seed: int = 0,
) -> BlockDescent:  # fmt: skip
    """Minimise ``f(x) + penalty(x)`` by steps on blocks of coordinates. The problem's own ``x`` moves along.

    Parameters
    ----------
    problem : of ``block_problems``, or anything with what is listed there.
    size : coordinates per block, 1 to p.
    rule : with g the gradient, L_i the curvature of a coordinate, L_b and H_b that of a block. ``"gs"``: largest
        ``|g_b|``. ``"gsl"``: ``|g_b|^2 / L_b`` (fixed blocks). ``"gsd"``: ``sum g_i^2 / L_i``, the best cheap one.
        ``"gsq"``: ``g_b' H_b^{-1} g_b`` (no penalty; over variable blocks grown greedily). ``"gsr"``: the longest step.
        ``"cyclic"`` and ``"random"`` are the baselines. With a penalty ``gs``, ``gsr``, ``gsd`` are the rules s, r, q:
        minimal subgradient, prox step, decrease of the model.
    blocks : ``"variable"``, a partition (``"order"``, ``"sorted"``, ``"average"``, ``"random"``; see
        ``block_rules.partition``), a sequence of index arrays, or, for a sparse ``QuadraticForm`` without a penalty,
        ``"forests"`` (a partition into forests) and ``"forest"`` (the best nodes that close no cycle, anew each step):
        those are solved exactly at linear cost, and ``size`` is not used.
    update : ``"gradient"`` (step 1 / L_b), ``"diagonal"`` (1 / (size L_i)), ``"matrix"`` (H_b, a bound of the
        Hessian), ``"newton"`` (the Hessian, line search). With a penalty the first two are prox steps and the last two
        project: Newton on the coordinates in use and those that should be, cut where a sign or bound is crossed.
    penalty : separable and convex, of ``ellzero.parts.penalties``; for ``"matrix"`` and ``"newton"`` L1 or Box.
    tol : ends when the largest (minimal) subgradient is at most this share of that at the start.
    max_iter : most blocks.

    Raises
    ------
    InputError : names and numbers out of range, combinations that have no meaning.

    Notes
    -----
    Nutini, Laradji and Schmidt (2022), "Let's make block coordinate descent converge faster", arXiv:1712.08859.

    Measured, blocks of 50 of 1000 columns, steps to a gap of 1e-8: least squares (sparse, columns of unlike norm) 488
    with variable ``gsd``, 765 with sorted fixed ``gsd``, 827 cyclic, over 1500 at random or with diagonal steps;
    logistic loss 302, 475, 1054. A greedy variable step costs 1.5 to 2 times a cyclic one, so that for least squares
    its lead in time is gone. ``gsq`` over fixed blocks gains nothing on ``gsd``; ``gs`` is as good here. Labels over a
    graph of 2500: forests reach 1e-8 in 1983 steps, while blocks of 50 given ten times their arithmetic stay at 1e-3.
    L1 least squares ends within one step after the pattern of zeros settles.
    """
    need("block_descent", problem, "x", "gradient", "curvature", "bound", "hessian", "change", "move", "value")
    check_choice("rule", rule, RULES)
    check_choice("update", update, UPDATES)
    check("tol", tol, at_least=0)
    max_iter = check_integer("max_iter", max_iter, at_least=1)
    if penalty is not None:
        _check_penalty(penalty, rule, update)
    chooser = _chooser(problem, size, rule, blocks, penalty, update, seed)
    start = distance = _distance(problem, penalty)
    objective = [problem.value() + (0.0 if penalty is None else float(penalty.value(problem.x)))]
    pattern, trace, settled = problem.x != 0, [int(np.count_nonzero(problem.x))], 0
    while distance > tol * start and len(objective) <= max_iter:
        block = chooser.next(problem, penalty)
        if penalty is None:
            change = _smooth_step(problem, block, update, abs(objective[-1]))
        else:
            change = _composite_step(problem, block, update, _restricted(penalty, block.index), abs(objective[-1]))
        objective.append(objective[-1] + change)
        now = problem.x[block.index] != 0
        if (now != pattern[block.index]).any():
            pattern[block.index], settled = now, len(trace)
        trace.append(int(np.count_nonzero(pattern)))
        distance = _distance(problem, penalty)
    relative = float(distance / start) if start > 0 else 0.0
    return BlockDescent(
        problem.x.copy(), np.array(objective), relative, len(objective) - 1, bool(distance <= tol * start),
        np.array(trace), settled,
    )  # fmt: skip


def _check_penalty(penalty: Any, rule: str, update: str) -> None:
    need("block_descent", penalty, "prox", "each", "value", "subdifferential_distance")
    if rule in ("gsl", "gsq"):
        raise InputError(f"rule: got {rule!r} with a penalty, want one of gs, gsd, gsr, cyclic, random")
    if update in ("matrix", "newton") and not isinstance(penalty, L1 | Box):
        raise InputError(f"penalty: got {type(penalty).__name__} with update {update!r}, want L1 or Box there")


def _chooser(problem: Any, size: int, rule: str, blocks: Any, penalty: Any, update: str, seed: int) -> Any:
    if isinstance(blocks, str):
        check_choice("blocks", blocks, ("variable", "forest", "forests", *PARTITIONS))
        if blocks == "variable":
            return VariableBlocks(rule, size, problem, seed)
        if blocks in PARTITIONS:
            return FixedBlocks(rule, partition(blocks, size, problem.curvature, seed), problem, seed)
        if not isinstance(problem, QuadraticForm) or penalty is not None or update != "matrix":
            raise InputError(f"blocks: got {blocks!r}, which need a QuadraticForm, no penalty and update 'matrix'")
        if blocks == "forest":
            return ForestBlocks(rule, problem)
        forests = [Forest(problem.A, nodes) for nodes in forest_partition(problem.A)]
        return FixedBlocks(rule, [f.nodes for f in forests], problem, seed, [f.solve for f in forests])
    blocks = [np.asarray(block) for block in blocks]
    together = np.sort(np.concatenate(blocks)) if blocks else np.empty(0)
    if not np.array_equal(together, np.arange(len(problem.x))):
        raise InputError(f"blocks: want index arrays that hold each of the {len(problem.x)} coordinates once")
    return FixedBlocks(rule, blocks, problem, seed)


def _distance(problem: Any, penalty: Any) -> float:
    far = abs(problem.gradient) if penalty is None else penalty.subdifferential_distance(problem.x, problem.gradient)
    return float(far.max())


def _smooth_step(problem: Any, block: Block, update: str, size: float) -> float:
    """Move the block; what that adds to the value."""
    index, g = block.index, problem.gradient[block.index]
    if update == "gradient":
        return problem.move(index, -g / _curvature(problem, index))
    if update == "diagonal":
        return problem.move(index, -g / _diagonal(problem, index))
    if update == "matrix":
        return problem.move(index, -(block.solve or inverse(problem.bound(index)))(g))
    d = -inverse(problem.hessian(index))(g)
    t = 1.0
    for _ in range(_HALVINGS):
        if problem.change(index, t * d) <= _SUFFICIENT * t * (g @ d) + _rounding(size):
            return problem.move(index, t * d)
        t /= 2
    return problem.move(index, -g / _curvature(problem, index))


def _composite_step(problem: Any, block: Block, update: str, penalty: Any, size: float) -> float:
    """Move the block; what that adds to the objective."""
    index, x, g = block.index, problem.x[block.index], problem.gradient[block.index]
    if update in ("matrix", "newton"):
        matrix = problem.bound(index) if update == "matrix" else problem.hessian(index)
        change = _projected_newton(problem, index, matrix, penalty, size)
        if change is not None:
            return change
    curvature = _diagonal(problem, index) if update == "diagonal" else _curvature(problem, index)
    moved = penalty.prox(x - g / curvature, 1 / curvature)
    return problem.move(index, moved - x) + float((penalty.each(moved) - penalty.each(x)).sum())


def _projected_newton(problem: Any, index: np.ndarray, matrix: np.ndarray, penalty: Any, size: float) -> float | None:
    """Newton on the coordinates in use and those that should be; ``None`` where the line search fails.

    Within a face (an orthant for L1, the box) the penalty is linear, so that its change is exact: ``(slope - g)' d``.
    """
    x, g, curvature = problem.x[index], problem.gradient[index], problem.curvature[index]
    curvature = np.maximum(curvature, np.finfo(float).tiny)
    far = penalty.subdifferential_distance(x, g)
    slope = -np.sign(penalty.prox(x - g / curvature, 1 / curvature) - x) * far
    in_use = x != 0 if isinstance(penalty, L1) else (x > penalty.low) & (x < penalty.high)
    free = np.flatnonzero(in_use | (slope != 0))
    if not len(free):  # the block rests
        return 0.0
    d = np.zeros(len(x))
    d[free] = -inverse(matrix[np.ix_(free, free)])(slope[free])
    face, t = np.where(x != 0, np.sign(x), -np.sign(slope)), 1.0
    for _ in range(_HALVINGS):
        moved = x + t * d
        moved = np.where(moved * face > 0, moved, 0.0) if isinstance(penalty, L1) else penalty.prox(moved)
        step = moved - x
        linear = float((slope - g)[free] @ step[free])
        if problem.change(index, step) + linear <= _SUFFICIENT * (slope @ step) + _rounding(size) and step.any():
            return problem.move(index, step) + linear
        t /= 2
    return None


def _restricted(penalty: Any, index: np.ndarray) -> Any:
    """The penalty of some coordinates: weights and bounds that are arrays are cut."""
    own = {name: getattr(penalty, name, None) for name in ("weights", "low", "high")}
    cut = {name: value[index] for name, value in own.items() if np.ndim(value)}
    return replace(penalty, **cut) if cut else penalty


def _curvature(problem: Any, index: np.ndarray) -> float:
    return max(float(np.linalg.eigvalsh(problem.bound(index))[-1]), np.finfo(float).tiny)


def _diagonal(problem: Any, index: np.ndarray) -> np.ndarray:
    return np.maximum(len(index) * problem.curvature[index], np.finfo(float).tiny)


def _rounding(size: float) -> float:
    return 8 * np.finfo(float).eps * size

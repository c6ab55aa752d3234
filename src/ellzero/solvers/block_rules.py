"""Which block moves next, and how coordinates are cut into blocks beforehand.

Lives here: scores of coordinates, the rules over variable and fixed blocks and over forests, and partitions.
Does not live here: steps (``block_descent``). Source: Nutini, Laradji and Schmidt (2022), arXiv:1712.08859.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.kernels import top_k
from ellzero.rng import rng
from ellzero.solvers.forests import Forest, Neighbours
from ellzero.solvers.pursuit import omp_gram

__all__ = [
    "PARTITIONS", "RULES", "Block", "FixedBlocks", "ForestBlocks", "VariableBlocks", "coordinate_scores", "inverse",
    "partition",
]  # fmt: skip

RULES = ("gs", "gsl", "gsd", "gsq", "gsr", "cyclic", "random")
PARTITIONS = ("order", "sorted", "average", "random")
_POOL = 4  # times the block size: candidates from which the variable "gsq" rule builds its block


def coordinate_scores(rule: str, problem: Any, penalty: Any) -> np.ndarray:
    """``[p]`` scores, whose sum over a block is what the rule maximises.

    ``"gs"``: the squared minimal subgradient. ``"gsd"``: the decrease of the model with curvature L_i, twice that,
    ``g_i^2 / L_i`` without a penalty. ``"gsr"``: the squared length of the prox step.
    """
    gradient, curvature = problem.gradient, np.maximum(problem.curvature, np.finfo(float).tiny)
    if penalty is None:
        return {"gs": gradient**2, "gsr": (gradient / curvature) ** 2}.get(rule, gradient**2 / curvature)
    if rule == "gs":
        return penalty.subdifferential_distance(problem.x, gradient) ** 2
    d = penalty.prox(problem.x - gradient / curvature, 1 / curvature) - problem.x
    if rule == "gsr":
        return d**2
    rise = penalty.each(problem.x + d) - penalty.each(problem.x)
    return np.maximum(-2 * (gradient * d + curvature * d**2 / 2 + rise), 0)


class Block(NamedTuple):
    """``index`` ``[m]`` coordinates; ``solve`` multiplies by the inverse of their matrix, where that is known."""

    index: np.ndarray
    solve: Callable[[np.ndarray], np.ndarray] | None = None


class VariableBlocks:
    """Any ``size`` coordinates: those of largest score, which the separable rules need not search for."""

    def __init__(self, rule: str, size: int, problem: Any, seed: int):
        if rule == "gsl":
            raise InputError("rule: got 'gsl' with variable blocks, want 'gsd' (which orders alike) or fixed blocks")
        self.size = check_integer("size", size, at_least=1, at_most=len(problem.x))
        self.rule, self.generator, self.turn = rule, rng(seed, "blocks"), 0

    def next(self, problem: Any, penalty: Any) -> Block:
        """The block, its coordinates sorted."""
        p = len(problem.x)
        if self.rule == "random":
            return Block(np.sort(self.generator.choice(p, self.size, replace=False)))
        if self.rule == "cyclic":
            block = np.sort((self.turn + np.arange(self.size)) % p)
            self.turn = (self.turn + self.size) % p
            return Block(block)
        scores = coordinate_scores(self.rule, problem, penalty)
        if penalty is not None:  # of those at rest the ones in use come first: a Newton step needs them all
            scores = scores + np.finfo(float).tiny * (problem.x != 0)
        if self.rule == "gsq":
            return Block(self._by_matrix(problem, scores))
        return Block(np.sort(top_k(scores, self.size).indices))

    def _by_matrix(self, problem: Any, scores: np.ndarray) -> np.ndarray:
        """A block of large ``g_b' H_b^{-1} g_b``, grown greedily; the best of all blocks is hard to find."""
        pool = np.sort(top_k(scores, min(_POOL * self.size, len(scores))).indices)
        matrix, wanted = problem.bound(pool), problem.gradient[pool]
        square = max(float(wanted @ inverse(matrix)(wanted)), 0.0)
        chosen = pool[omp_gram(matrix, wanted, square, self.size).support]
        rest = np.setdiff1d(pool, chosen)
        filled = rest[top_k(scores[rest], self.size - len(chosen)).indices]
        return np.sort(np.concatenate([chosen, filled]))


class FixedBlocks:
    """Blocks that were cut beforehand; what depends on their matrices alone is computed once.

    ``solvers`` multiply by the inverse of each block's matrix, where they are known.
    """

    def __init__(self, rule: str, blocks: Sequence[np.ndarray], problem: Any, seed: int, solvers: Any = None):
        self.rule, self.blocks, self.generator, self.turn = rule, blocks, rng(seed, "blocks"), -1
        self.order = np.concatenate(blocks)
        self.starts = np.concatenate([[0], np.cumsum([len(block) for block in blocks])[:-1]])
        self.solvers = [None] * len(blocks) if solvers is None else list(solvers)
        if rule == "gsl":
            self.curvatures = np.array([np.linalg.eigvalsh(problem.bound(block))[-1] for block in blocks])

    def next(self, problem: Any, penalty: Any) -> Block:
        """The block, its solver made on first use."""
        number = self._number(problem, penalty)
        return Block(self.blocks[number], lambda v: self._solver(problem, number)(v))

    def _solver(self, problem: Any, number: int) -> Callable:
        if self.solvers[number] is None:
            self.solvers[number] = inverse(problem.bound(self.blocks[number]))
        return self.solvers[number]

    def _number(self, problem: Any, penalty: Any) -> int:
        if self.rule == "random":
            return int(self.generator.integers(len(self.blocks)))
        if self.rule == "cyclic":
            self.turn = (self.turn + 1) % len(self.blocks)
            return self.turn
        if self.rule == "gsq":
            slopes = [problem.gradient[block] for block in self.blocks]
            return int(np.argmax([g @ self._solver(problem, number)(g) for number, g in enumerate(slopes)]))
        scores = coordinate_scores("gs" if self.rule == "gsl" else self.rule, problem, penalty)
        sums = np.add.reduceat(scores[self.order], self.starts)
        return int(np.argmax(sums / self.curvatures if self.rule == "gsl" else sums))


class ForestBlocks:
    """The nodes of largest score that close no cycle, chosen anew each time."""

    def __init__(self, rule: str, problem: Any):
        if rule in ("gsl", "gsq", "cyclic", "random"):
            raise InputError(f"rule: got {rule!r} with blocks 'forest', want one of gs, gsd, gsr")
        self.rule, self.neighbours = rule, Neighbours(problem.A)

    def next(self, problem: Any, penalty: Any) -> Block:
        """The forest and its solver."""
        order = np.argsort(-coordinate_scores(self.rule, problem, penalty), kind="stable")
        forest = Forest(problem.A, self.neighbours.forest(order.tolist()))
        return Block(forest.nodes, forest.solve)


def inverse(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Multiplication by the inverse of a positive semidefinite matrix; the pseudo-inverse where it is singular."""
    try:
        factor = cho_factor(matrix, lower=True, check_finite=False)
        pivots = np.diag(factor[0])
        if pivots.min() > 1e-7 * pivots.max():
            return lambda v: cho_solve(factor, v, check_finite=False)
    except LinAlgError:
        pass
    pseudo = np.linalg.pinv(matrix, hermitian=True, rcond=1e-12)
    return lambda v: pseudo @ v


def partition(kind: str, size: int, curvature: np.ndarray, seed: int) -> list[np.ndarray]:
    """All coordinates in blocks of at most ``size``.

    ``"order"``: neighbours. ``"sorted"``: by curvature, so that large ones share a block. ``"average"``: dealt out by
    curvature, so that blocks are alike. ``"random"``: by chance.
    """
    check_choice("partition", kind, PARTITIONS)
    p = len(curvature)
    count = -(-p // check_integer("size", size, at_least=1, at_most=p))
    by_size = np.argsort(-curvature, kind="stable")
    if kind == "average":
        return [np.sort(by_size[i::count]) for i in range(count)]
    order = {"order": np.arange(p), "sorted": by_size, "random": rng(seed, "partition").permutation(p)}[kind]
    return [np.sort(order[i : i + size]) for i in range(0, p, size)]

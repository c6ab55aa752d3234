"""Many regression tasks that share a few directions, to be sampled on demand, and a target task that has few samples.

Lives here: the pool of tasks with its truth. Does not live here: who chooses among the tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ellzero.errors import check, check_integer
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["TaskPool", "shared_subspace_tasks"]


@dataclass(frozen=True, eq=False)
class TaskPool:
    """``y = x' B w_m + noise`` with standard normal x: ``basis [d, k]``, ``heads [k, M]``, ``target_head [k]``."""

    basis: np.ndarray
    heads: np.ndarray
    target_head: np.ndarray
    noise: float
    seed: int

    @property
    def sources(self) -> list:
        """Per task a function ``draw(n, round)`` that gives ``X [n, d]`` and ``y [n]``, new ones in every round."""
        return [lambda n, round=0, m=m: self._draw(self.heads[:, m], n, "source", m, round)
                for m in range(self.heads.shape[1])]  # fmt: skip

    def target(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``n`` samples of the target task."""
        return self._draw(self.target_head, n, "target")

    def risk(self, coef: np.ndarray) -> float:
        """The squared error beyond the noise, on average over x, of predicting the target by ``x' coef``."""
        return float(((coef - self.basis @ self.target_head) ** 2).sum())

    def _draw(self, head, n, *names):
        stream = rng(self.seed, "task pool", *names)
        X = stream.standard_normal((n, len(self.basis)))
        return X, X @ (self.basis @ head) + self.noise * stream.standard_normal(n)


@register(kind="generator", source="arXiv:2306.02556", id="S145", wing="linear",
          example=lambda: shared_subspace_tasks(6, 2, 4))  # fmt: skip
def shared_subspace_tasks(
    d: int = 50, k: int = 5, tasks: int = 30, *, related: int = 3, noise: float = 0.5, seed: int = 0
) -> TaskPool:
    """A pool of tasks on one k-dimensional subspace; the target's head is the sum of ``related`` sources' heads.

    Raises
    ------
    InputError : counts below 1, k above d, more related tasks than tasks, negative noise.
    """
    check_integer("d", d, at_least=1)
    check_integer("k", k, at_least=1, at_most=d)
    check_integer("tasks", tasks, at_least=1)
    check_integer("related", related, at_least=1, at_most=tasks)
    check("noise", noise, at_least=0)
    stream = rng(seed, "task pool")
    basis = np.linalg.qr(stream.standard_normal((d, k)))[0]
    heads = stream.standard_normal((k, tasks))
    return TaskPool(basis, heads, heads[:, stream.permutation(tasks)[:related]].sum(1), noise, seed)

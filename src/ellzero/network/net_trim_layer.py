"""The program of one layer in Net-Trim: the sparsest weights that keep its responses, at an error or a count.

Lives here: the set of pre-activations that give the responses, ``LayerProgram`` and its refit on a mask. Does not live
here: ADMM (``ellzero.solvers.admm``), models (``net_trim``).
Weights are ``[units, inputs]`` and biases ``[units]``, as torch keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ellzero.parts.penalties import L1
from ellzero.solvers.admm import Graph, Split, admm
from ellzero.training.masks import largest

__all__ = ["LayerProgram", "Responses", "Solution"]

_SCALE = 0.3  # of the largest column norm; with it the two halves of the graph weigh about alike
_SEARCHES, _NEAR = 8, 1.03  # solves in the search for a count, and how far above it one may stay
_SMALLEST = 1e-3  # error that the search does not go below
_RIDGE = 1e-4  # of a refit, over the mean square of an input


@dataclass(frozen=True)
class Responses:
    """Pre-activations that give a layer's responses: near ``target`` where it is active, at most ``ceiling`` elsewhere.

    The set ``|(Z - target)_active|_F <= radius``, ``Z <= ceiling`` off the active entries; ``prox`` projects onto it.
    """

    target: Float[Tensor, "rows units"]
    active: Bool[Tensor, "rows units"]
    ceiling: Float[Tensor, "rows units"]
    radius: float

    def prox(self, v: Float[Tensor, "rows units"], step: float) -> Float[Tensor, "rows units"]:
        """The nearest member; the step has no part in a projection."""
        gap = (v - self.target).masked_fill_(~self.active, 0)
        share = min(1.0, self.radius / max(float(gap.norm()), 1e-30))
        return torch.where(self.active, self.target + share * gap, torch.minimum(v, self.ceiling))


class Solution(NamedTuple):
    """New weights with exact zeros, which entries may be kept, the error that was allowed, and the work."""

    weight: Float[Tensor, "units inputs"]
    bias: Float[Tensor, " units"] | None
    mask: Bool[Tensor, "units inputs"]
    epsilon: float
    n_iter: int
    converged: bool


class LayerProgram:
    """For inputs ``X [rows, inputs]`` and the layer's responses ``Y``, over all units at once,

        min |U|_1  subject to  |(X U' + c - Y)_on|_F <= epsilon |Y|_F,  (X U' + c)_off <= V_off.

    ``Y = relu(before)`` and ``on = Y > 0`` where a ReLU follows, else ``Y = before`` and all entries are on. V is what
    a dense reference gives above 0 on these inputs, and epsilon is at least the error of the reference, so that it
    satisfies the constraint. On the layer's own inputs the reference is the weights as they are, V and that error are
    0; on others it is their least squares refit, where that is nearer. The bias c is not penalised. Each solve starts
    from where the last one ended.

    Parameters
    ----------
    weight, bias : of the trained layer.
    inputs : X; an input that is always zero gets no weight.
    before : ``[rows, units]``, pre-activations to be kept.
    rectified : whether a ReLU follows.
    tol, max_iter : of ADMM.

    Source: Aghasi, Abdi and Romberg (2018), programs (8) and (14).
    """

    def __init__(
        self,
        weight: Float[Tensor, "units inputs"],
        bias: Float[Tensor, " units"] | None,
        inputs: Float[Tensor, "rows inputs"],
        before: Float[Tensor, "rows units"],
        *,
        rectified: bool,
        tol: float = 1e-3,
        max_iter: int = 500,
    ):
        self.weight, self.bias, self.before, self.tol, self.max_iter = weight, bias, before, tol, max_iter
        whole, a = _whole(weight, bias), inputs
        if bias is not None:
            a = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
        self.live = (a != 0).any(0)
        self.a = a[:, self.live]
        self.norms = a.norm(dim=0)[: weight.shape[1]]
        self.scale = _SCALE * float(self.a.norm(dim=0).max()) if self.a.shape[1] else 1.0
        self.active = before > 0 if rectified else torch.ones_like(before, dtype=torch.bool)
        self.target = before.clamp(min=0) if rectified else before
        self.size = max(float(self.target.norm()), 1e-30)
        self.least = self.error(weight, bias)
        if self.least > 1e-5:
            refit = self.refit(torch.ones_like(weight, dtype=torch.bool))
            if (nearer := self.error(*refit)) < self.least:
                self.least, whole = nearer, _whole(*refit)
        self.ceiling = (a @ whole.T).clamp(min=0) / self.scale
        self.state: Split | None = None
        self._graph: Graph | None = None

    def solve(self, epsilon: float) -> Solution:
        """The sparsest weights at an error relative to the responses."""
        if not bool(self.live.any()):
            nothing = torch.zeros_like(self.weight)
            return Solution(nothing, self.bias, nothing != 0, epsilon, 0, True)
        if self._graph is None:
            free = torch.ones(self.a.shape[1], 1)
            if self.bias is not None:
                free[-1] = 0
            self._graph, self._penalty = Graph(self.a / self.scale), L1(1.0, weights=free.numpy())
        epsilon = max(epsilon, 1.001 * self.least)
        image = Responses(self.target / self.scale, self.active, self.ceiling, epsilon * self.size / self.scale)
        rho = 1 / max(float(self.weight.abs().mean()), 1e-6)
        self.state = admm(
            self._graph, image, self._penalty, len(self.weight), start=self.state, rho=rho, tol=self.tol,
            max_iter=self.max_iter,
        )  # fmt: skip
        weight, bias = self._parts(self.state.coef)
        return Solution(weight, bias, weight != 0, epsilon, self.state.n_iter, self.state.converged)

    def _parts(self, coef: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[live inputs and bias, units]`` as weight and bias."""
        whole = coef.new_zeros(len(self.live), coef.shape[1])
        whole[self.live] = coef
        whole = whole.T.to(self.weight.dtype)
        return (whole[:, :-1].contiguous(), whole[:, -1].clone()) if self.bias is not None else (whole, None)

    def keep(self, count: int) -> Solution:
        """About the smallest error that leaves ``count`` weights, searched for; the mask has exactly so many.

        The search ends up to 3 % above the count, and what adds least to the responses goes. Beyond what an error of
        0.001 keeps, the largest of the old weights stay open in the mask, at zero; a full count keeps them as they are.
        """
        if count == 0:
            nothing = torch.zeros_like(self.weight)
            return Solution(nothing, self.bias, nothing != 0, 1.0, 0, True)
        if count == self.weight.numel():
            return Solution(self.weight, self.bias, torch.ones_like(self.weight, dtype=torch.bool), 0.0, 0, True)
        low, high = None, (1.0, 0.0)  # (error, weights kept); an error of 1 keeps none
        guess, best, steps = 0.15, None, 0
        for _ in range(_SEARCHES):
            found = self.solve(guess)
            kept, steps = int(found.mask.sum()), steps + found.n_iter
            if kept >= count or best is None:
                best = found
            if count <= kept <= _NEAR * count or (kept < count and found.epsilon > guess):
                break  # near enough, or no smaller error can be had
            if kept >= count:
                low, best = (guess, kept), found
            else:
                high = (guess, kept)
                best = found if low is None else best
            if low is None and guess <= _SMALLEST:
                break
            guess = max(guess / 4, _SMALLEST) if low is None else _between(low, high, count)
        scores = torch.where(best.mask, best.weight.abs() * self.norms, -1 / (1 + self.weight.abs() * self.norms))
        mask = largest(scores, count)
        return best._replace(weight=best.weight * mask, mask=mask, n_iter=steps)

    def refit(self, mask: Bool[Tensor, "units inputs"]) -> tuple[Tensor, Tensor | None]:
        """Least squares of the pre-activations on the kept entries of each unit, with a slight ridge."""
        a = self.a.double()
        gram, right = a.T @ a, a.T @ self.before.double()
        gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()))
        open_ = torch.cat([mask, mask.new_ones(len(mask), 1)], 1) if self.bias is not None else mask
        if bool(mask.all()):  # one system for all units
            return self._parts(torch.linalg.solve(gram, right))
        coef = torch.zeros_like(right)
        for unit, row in enumerate(open_[:, self.live]):
            own = row.nonzero().ravel()
            coef[own, unit] = torch.linalg.solve(gram[own][:, own], right[own, unit])
        return self._parts(coef)

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The change of the responses over their size."""
        z = self.a @ _whole(weight, bias)[:, self.live].T
        return float((torch.where(self.active, z, z.clamp(min=0)) - self.target).norm()) / self.size


def _whole(weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[units, inputs and bias]``."""
    return weight if bias is None else torch.cat([weight, bias[:, None]], 1)


def _between(low: tuple[float, float], high: tuple[float, float], count: int) -> float:
    """The error where ``count`` are kept: the logarithm of the count is nearly a line in the root of the error."""
    aim, most = math.log(count * (1 + _NEAR) / 2), math.log(max(low[1], 1))
    least = max(math.log(max(high[1], 0.5)), aim - 1.0)  # near an error of 1 the line breaks down
    share = min(max((most - aim) / max(most - least, 1e-9), 0.1), 0.9)
    root = math.sqrt(low[0]) + share * (math.sqrt(high[0]) - math.sqrt(low[0]))
    return root * root

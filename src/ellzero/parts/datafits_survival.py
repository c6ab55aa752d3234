"""Survival times: Cox's partial likelihood, with Breslow's and Efron's treatment of ties.

Lives here: ``Cox``, with the baseline hazard. Does not live here: losses that are a mean over samples (``datafits``),
the estimator (``linear.survival``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check_array, check_choice
from ellzero.parts.datafits import Datafit
from ellzero.parts.namespace import floating, is_torch, like, namespace
from ellzero.parts.penalty_shapes import frozen_weights
from ellzero.registry import register

__all__ = ["Cox", "Terms"]


class Terms(NamedTuple):
    """The sums of a partial likelihood, with samples in falling order of time.

    Each term t is ``mass_t log(S_t)`` with ``S_t = R_t - late_t D_t``: R_t sums ``v exp(z)`` over the first
    ``reach_t`` samples (those at risk), D_t over the deaths of tie ``tie_t``.
    """

    order: np.ndarray  # [n] samples by falling time
    mass: np.ndarray  # [terms] over the sum of all weights
    reach: np.ndarray  # [terms]
    late: np.ndarray  # [terms]
    tie: np.ndarray  # [terms]
    death: np.ndarray  # [deaths] samples with an event and a weight, in that order
    pull: np.ndarray  # [deaths] the weight of each, over the sum of all weights
    death_tie: np.ndarray  # [deaths] the tie of each
    ties: int
    first: np.ndarray  # [n] the first term that counts each sample (in ``order``) among those at risk


@register(kind="datafit", source="Cox (1972); Breslow (1974); Efron (1977)", example=lambda: Cox())
@dataclass(frozen=True)
class Cox(Datafit):
    """Minus the log partial likelihood over the sum of weights, for hazards in the ratio ``exp(z)``.

    ``y`` is ``[n, 2]``: the time, and whether the event was seen then (1) or the sample left (0). With v the weights,
    a tie D of deaths costs ``sum_D v_i (log sum_{at risk} v_j exp(z_j) - z_i)`` under ``"breslow"``; under
    ``"efron"`` the l-th of its d deaths sees the tie's own part of the sum reduced by the share ``l / d``, and each
    counts with the tie's mean weight. Whole weights equal repeated samples under ``"breslow"`` only. Only the order
    of times counts. A constant in z changes nothing, so there is no intercept.
    """

    takes_intercept = False

    ties: str = "breslow"

    def __post_init__(self):
        check_choice("ties", self.ties, ("breslow", "efron"))

    def check_targets(self, y: Any) -> Any:
        """Return ``y`` if it is ``[n, 2]`` with events 0 or 1, at least one of them 1."""
        y = check_array("y", floating("y", y), shape=(None, 2))
        event = y[:, 1]
        if not bool(((event == 0) | (event == 1)).all()):
            wrong = float(event[(event != 0) & (event != 1)][0])
            raise InputError(f"y: got the event {wrong}, want 1 (seen) or 0 (not seen) in the second column")
        if not bool((event == 1).any()):
            raise InputError("y: got no event (all 0 in the second column), want at least one")
        return y

    def outputs(self, y: Any) -> None:
        """``None``: one prediction per sample, the log hazard ratio."""

    def value(self, y: Any, z: Any, weights: Any = None) -> Any:
        """The mean loss."""
        terms, z, v = self._inputs(y, z, weights)
        xp = namespace(z)
        top = z.max()
        sums = self._sums(terms, xp.exp(z - top) * v)
        mass, death = like(z, terms.mass), terms.death
        return (mass * (xp.log(sums) + top)).sum() - (like(z, terms.pull) * z[death]).sum()

    def gradient(self, y: Any, z: Any, weights: Any = None) -> Any:
        """d value / d z, in the shape of z."""
        terms, z, v = self._inputs(y, z, weights)
        gradient = self._risk(terms, z, v)
        gradient[terms.death] -= like(z, terms.pull)
        return gradient

    def curvature(self, y: Any, z: Any, weights: Any = None) -> tuple[np.ndarray, Any]:
        """``d`` and a function that gives ``R' A`` for the columns A, of the Hessian ``diag(d) - R R'``.

        Row t of ``R' A`` is the root of the term's mass times the mean of A over those at risk. NumPy alone.
        """
        terms, z, v = self._inputs(y, z, weights)
        powers = np.exp(z - z.max()) * v
        scale = np.sqrt(terms.mass) / self._sums(terms, powers)

        def rest(columns: Any, outputs: np.ndarray) -> np.ndarray:
            columns = columns.toarray() if hasattr(columns, "toarray") else columns
            return scale[:, None] * self._sums(terms, powers[:, None] * columns)

        return self._risk(terms, z, v), rest

    def dual_at(self, y: Any, z: Any, factor: float, weights: Any = None) -> Any:
        """A lower bound of the dual at ``-factor * gradient(z)``, for a factor from 0 to 1.

        The dual is concave, so it lies above its chord between factor 0, where q = the tie's deaths by weight is
        feasible, and factor 1, where it is ``f(z) - <gradient, z>``.
        """
        terms, z, v = self._inputs(y, z, weights)
        deaths = like(z, np.zeros(terms.ties))
        deaths = _add_at(deaths, terms.death_tie, v[terms.death])
        xp = namespace(z)
        at_zero = (like(z, terms.mass) * xp.log(deaths[terms.tie] * like(z, 1 - terms.late))).sum()
        at_one = self.value(y, z, weights) - (self.gradient(y, z, weights) * z).sum()
        return factor * at_one + (1 - factor) * at_zero

    def baseline(self, y: Any, z: Any, weights: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """The times with events, rising, and the cumulative hazard of z = 0 up to and with each of them.

        A tie raises it by the sum of its ``v / S_t``: Breslow (1974), and under ``"efron"`` Efron's form of it.
        """
        terms, z, v = self._inputs(y, z, weights)
        top = float(z.max())
        rises = terms.mass * float(v.sum()) * np.exp(-top) / _numbers(self._sums(terms, namespace(z).exp(z - top) * v))
        total = np.bincount(terms.tie, rises, minlength=terms.ties)
        times = np.empty(terms.ties)
        times[terms.death_tie] = _numbers(self.check_targets(y))[terms.death, 0]
        return times[::-1], np.cumsum(total[::-1])

    def constant(self, y: Any, weights: Any = None) -> float:
        """0: a constant changes nothing."""
        return 0.0

    def _inputs(self, y, z, weights):
        y, z = self.check_targets(y), floating("prediction", z)
        if tuple(z.shape) != (y.shape[0],):
            raise InputError(f"prediction: got shape {tuple(z.shape)}, want ({y.shape[0]},), one for each sample")
        y = y.detach().cpu().numpy() if is_torch(y) else y
        v = np.ones(len(y)) if weights is None else _numbers(frozen_weights("weights", weights))
        if v.shape != (len(y),):
            raise InputError(f"weights: got shape {v.shape}, want ({len(y)},), one for each sample")
        if not 0 < (v * y[:, 1]).sum() < np.inf:
            raise InputError("weights: got no finite weight above 0 on an event, want at least one")
        return self._terms(y[:, 0], y[:, 1] > 0, v), z, like(z, v)

    def _terms(self, time, event, v) -> Terms:
        order = np.argsort(-time, kind="stable")
        time, event = time[order], event[order] & (v[order] > 0)
        last = np.append(np.flatnonzero(np.diff(time)), len(time) - 1) + 1  # how many reach each distinct time
        group = np.repeat(np.arange(len(last)), np.diff(last, prepend=0))
        used, death_tie = np.unique(group[event], return_inverse=True)
        count = np.bincount(death_tie)
        pull = v[order][event] / v.sum()
        mass = np.bincount(death_tie, pull)
        if self.ties == "breslow":
            tie, late = np.arange(len(used)), np.zeros(len(used))
        else:
            tie = np.repeat(np.arange(len(used)), count)
            late = (np.arange(len(tie)) - (np.cumsum(count) - count)[tie]) / count[tie]
            mass = (mass / count)[tie]
        first = np.searchsorted(used[tie], group)
        return Terms(order, mass, last[used][tie], late, tie, order[event], pull, death_tie, len(used), first)

    @staticmethod
    def _sums(terms: Terms, values: Any) -> Any:
        """S_t of ``values`` ``[n, ...]``: the sum at risk, less the late share of the tie."""
        sums = values[terms.order].cumsum(0)[terms.reach - 1]
        if not terms.late.any():
            return sums
        tied = namespace(values).zeros_like(values[: terms.ties])
        tied = _add_at(tied, terms.death_tie, values[terms.death])
        return sums - like(values, terms.late.reshape(-1, *(1,) * (values.ndim - 1))) * tied[terms.tie]

    def _risk(self, terms: Terms, z: Any, v: Any) -> Any:
        """``sum_t mass_t q_t``, where q_t are the shares of the sum S_t: the diagonal d of the curvature."""
        xp = namespace(z)
        powers = xp.exp(z - z.max()) * v
        rate = like(z, terms.mass) / self._sums(terms, powers)
        onward = xp.zeros_like(rate[:1])
        onward = xp.concatenate([xp.flip(xp.cumsum(xp.flip(rate, (0,)), 0), (0,)), onward])
        shares = xp.zeros_like(z)
        shares[terms.order] = onward[terms.first]
        if terms.late.any():
            tied = _add_at(xp.zeros_like(z[: terms.ties]), terms.tie, rate * like(z, terms.late))
            shares[terms.death] -= tied[terms.death_tie]
        return powers * shares


def _add_at(total: Any, index: np.ndarray, values: Any) -> Any:
    if is_torch(total):
        import torch

        return total.index_add(0, torch.as_tensor(index, device=total.device), values)
    np.add.at(total, index, values)
    return total


def _numbers(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64) if is_torch(values) else values

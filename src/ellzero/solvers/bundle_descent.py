"""The loop that brings all fits of a bundle to their certified minima.

Lives here: outer steps, certificates, and which columns and Gram matrices they use. Does not live here: the problems
(``bundle``), their losses and Gram matrices (``bundle_losses``, ``bundle_metric``), the model steps themselves
(``kernels.bundle``).

One outer step computes ``X_W w`` and ``X_W' u`` of all fits as two matrix products over the union W of their working
sets, and hands every fit's quadratic model to the kernel (proximal Newton, with Gram matrices that may be a little
old or belong to a neighbour). Fits that look done wait until there are enough of them, get an exact intercept, their
full gradients as one product, and a duality gap; those that pass leave.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ellzero.kernels.bundle import bundle_step
from ellzero.solvers.bundle import Bundle, Fits
from ellzero.solvers.bundle_exact import exact_steps
from ellzero.solvers.bundle_metric import Curvature
from ellzero.solvers.certificates import crossover

__all__ = ["descend"]

_NEAR = 0.95  # a new Gram matrix takes in the columns whose gradient reaches this share of l1
_ENOUGH = 32  # fits that wait for their certificates: products of many rows are faster
_ENTRIES = 1 << 24  # of full gradients held at once


def descend(bundle: Bundle, fits: Fits, *, tol: float, max_iter: int, keep_gradients: bool = False) -> Fits:
    """Bring every fit to a relative duality gap of ``tol``, or stop after ``max_iter`` outer steps. In place.

    The gap is ``(P - D) / P(0)`` with P(0) the objective at w = 0 and the best intercept; D belongs to the scaled
    negative gradient, for an elastic net in the Lasso with the rows ``sqrt(l2) I`` below X.
    """
    _Descent(bundle, fits, tol, max_iter, keep_gradients).run()
    return fits


@dataclass
class _State:
    """What an outer step knows of its active fits, a row each."""

    z: np.ndarray
    gradient: np.ndarray
    gradient0: np.ndarray
    objective: np.ndarray
    estimate: np.ndarray  # of the gap, as if no column outside the pool mattered
    mass: np.ndarray  # the sum of the loss's curvatures
    joined: np.ndarray  # whether columns joined the working set

    def only(self, mask: np.ndarray) -> _State:
        return self if mask.all() else _State(*(getattr(self, field.name)[mask] for field in fields(self)))

    @staticmethod
    def joined_up(parts: list[_State]) -> _State:
        if len(parts) == 1:
            return parts[0]
        return _State(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_State)))


class _Descent:
    def __init__(self, bundle: Bundle, fits: Fits, tol: float, max_iter: int, keep_gradients: bool):
        self.bundle, self.fits, self.tol, self.max_iter = bundle, fits, tol, max_iter
        size = len(fits.task)
        fits.widen(len(bundle.pool.ids))
        if keep_gradients:
            fits.gradient = np.zeros((size, bundle.p), dtype=bundle.operator.dtype)
        self.own = fits.w != 0  # [B, W] the working sets
        self.goal = np.full(size, 0.9 * tol)  # an estimate below it asks for the certificate
        self.objective = np.full(size, np.inf)
        self.noise = np.zeros(size)  # the error of ``objective`` relative to the scale
        self.estimate = np.full(size, np.inf)
        self.alone = np.zeros(size, dtype=bool)  # fits with a Gram matrix to themselves
        self.before = fits.w.copy(), fits.b.copy()
        self.stuck = np.zeros(size, dtype=np.int64)  # outer steps in a row that gained little
        self.rough = False
        self.exact = bundle.loss.fixed_curvature and not fits.l2.any()
        for metric in bundle.metrics.values():
            metric.age += 1

    def run(self) -> None:
        fits = self.fits
        active, waiting = np.arange(len(fits.task)), []
        for iteration in range(self.max_iter + 1):
            last = iteration == self.max_iter
            # Far from the end single precision is enough, unless a step is the last one.
            self.rough = not (last or self.exact) and bool((self.estimate[active] > max(10 * self.tol, 1e-5)).all())
            state = self._evaluate(active)
            fits.n_iter[active] = iteration
            ready = ((state.estimate <= self.goal[active]) & (not self.rough)) | last
            if ready.any():
                waiting.append((active[ready], state.z[ready]))
                active, state = active[~ready], state.only(~ready)
            if not len(active) or sum(len(held) for held, _ in waiting) >= _ENOUGH:
                failed = self._certify(waiting)
                waiting = []
                if last or len(failed) + len(active) == 0:
                    return
                if len(failed):
                    active = np.concatenate([active, failed])
                    continue
            self._step(active, state)

    def _evaluate(self, active: np.ndarray) -> _State:
        """Losses and gradients on the pool's columns, and what the gaps should be."""
        work = 2 * self.bundle.n * self.fits.w.shape[1]
        return _State.joined_up(self.bundle.in_parts(lambda part: self._evaluate_part(active[part]), len(active), work))

    def _evaluate_part(self, active: np.ndarray) -> _State:
        fits, bundle = self.fits, self.bundle
        w, l1, l2, task = fits.w[active], fits.l1[active], fits.l2[active], fits.task[active]
        y, s = bundle.y[task], bundle.shares[task]
        block = bundle.pool.single if self.rough else bundle.pool.block
        z = w.astype(block.dtype, copy=False) @ block + fits.b[active][:, None]
        value, slope = bundle.loss.evaluate(y, s, z)
        gradient = (slope.astype(block.dtype, copy=False) @ block.T).astype(np.float64, copy=False)
        gradient0 = slope.sum(1) if bundle.fit_intercept else np.zeros(len(active))
        pull = gradient + l2[:, None] * w if l2.any() else gradient
        size = abs(pull)
        joining = (size > l1[:, None]) & ~self.own[active]
        self.own[active] |= joining
        absolute, squares = l1 * abs(w).sum(1), l2 * np.einsum("ij,ij->i", w, w)
        # The gap of the negative gradient as it is, plus what it costs to make it feasible: the first order in the
        # infeasibility and a guess at the second.
        over = np.maximum(size.max(1, initial=0.0) / l1 - 1, 0)
        gap = absolute + np.einsum("ij,ij->i", w, pull) + over * abs(np.einsum("ij,ij->i", slope, z)) + abs(gradient0)
        estimate = over**2 + gap / np.maximum(bundle.scale[task], np.finfo(float).tiny)
        mass = bundle.loss.mass(s, slope)
        return _State(z, gradient, gradient0, value + absolute + squares / 2, estimate, mass, joining.any(1))

    def _certify(self, waiting: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Exact intercepts, full gradients and gaps; returns the fits that failed, whose violating columns join."""
        held = np.concatenate([fits for fits, _ in waiting])
        z = np.concatenate([z for _, z in waiting])
        rows = max(1, _ENTRIES // self.bundle.p)
        parts = [self._certify_some(held[i : i + rows], z[i : i + rows]) for i in range(0, len(held), rows)]
        return np.concatenate(parts)

    def _certify_some(self, active: np.ndarray, z: np.ndarray) -> np.ndarray:
        work = self.bundle.n * self.bundle.p
        sizes = self.bundle.in_parts(lambda part: self._measure(active[part], z[part]), len(active), work)
        failed = self.fits.gap[active] > self.tol
        self._admit(active[failed], np.concatenate(sizes))
        return active[failed]

    def _measure(self, active: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Gaps of some fits; returns the size of the gradients of those that fail."""
        fits, bundle = self.fits, self.bundle
        task = fits.task[active]
        y, s, l1, l2, w = bundle.y[task], bundle.shares[task], fits.l1[active], fits.l2[active], fits.w[active]
        if bundle.fit_intercept:
            shift, value, slope = bundle.loss.exact_intercept(y, s, z)
            fits.b[active] += shift
            slope = bundle.loss.balanced(y, s, slope)
        else:
            value, slope = bundle.loss.evaluate(y, s, z)
        pull = bundle.gradients(slope)
        if fits.gradient is not None:
            fits.gradient[active] = pull
        if l2.any():
            pull[:, bundle.pool.ids[: w.shape[1]]] += l2[:, None] * w
        size = abs(pull)
        largest = size.max(1).astype(np.float64)
        cap = np.where(largest > 0, l1 / np.where(largest > 0, largest, 1), np.inf)
        squares = l2 * np.einsum("ij,ij->i", w, w)
        gap = value + l1 * abs(w).sum(1) + squares / 2 - bundle.loss.dual(y, s, slope, cap, squares)
        scale = bundle.scale[task]
        fits.gap[active] = np.maximum(gap, 0) / np.where(scale > 0, scale, 1)
        return size[fits.gap[active] > self.tol]

    def _admit(self, active: np.ndarray, size: np.ndarray) -> None:
        """Let the columns that violate optimality most join each fit; at most as many as it uses, and 20."""
        fits, pool = self.fits, self.bundle.pool
        wanted = []
        for b, pulls in zip(active, size):
            far = np.flatnonzero(pulls > fits.l1[b])
            place = pool.place[far]
            joins = place < 0
            joins[~joins] = ~self.own[b, place[~joins]]
            far = far[joins]
            # Where columns are missing the next certificate need not wait for the end.
            self.goal[b] = max(0.9 * self.tol, 0.03 * fits.gap[b]) if len(far) else 0.3 * self.goal[b]
            room = max(20, np.count_nonzero(fits.w[b]))
            if len(far) > room:
                far = far[np.argpartition(pulls[far], -room)[-room:]]
            wanted.append(far)
        new = np.unique(np.concatenate([np.empty(0, np.int64), *wanted]))
        new = new[pool.place[new] < 0]
        if len(new):
            pool.add(new)
            fits.widen(len(pool.ids))
            pad = ((0, 0), (0, len(new)))
            self.own = np.pad(self.own, pad)
            self.before = np.pad(self.before[0], pad), self.before[1]
        for b, far in zip(active, wanted):
            self.own[b, pool.place[far]] = True
        self.estimate[active] = np.inf

    def _step(self, active: np.ndarray, state: _State) -> None:
        """One model step of every active fit; a fit that its last step made worse goes half the way back instead."""
        fits, bundle = self.fits, self.bundle
        noise = 1e-6 if self.rough else 1e-14
        slack = np.maximum(noise, self.noise[active]) * bundle.scale[fits.task[active]]
        worse = state.objective > self.objective[active] + slack
        if worse.any():
            back = active[worse]
            for now, then in zip((fits.w, fits.b), self.before):
                now[back] = (now[back] + then[back]) / 2
            self.estimate[back] = 0  # their Gram matrices led astray: new ones
            active, state = active[~worse], state.only(~worse)
            if not len(active):
                return
        self.before[0][active], self.before[1][active] = fits.w[active], fits.b[active]
        slow = (state.estimate > 0.5 * self.estimate[active]) & ~state.joined
        self.objective[active], self.noise[active], self.estimate[active] = state.objective, noise, state.estimate
        self.stuck[active] = np.where(slow, self.stuck[active] + 1, 0)
        if self.exact:
            metrics, which, wanted = self._known(active, state)
            exact_steps(bundle, fits, active, wanted, metrics, which, state.gradient, state.gradient0)
        else:
            self._model_steps(active, state, slow)
        for i in np.flatnonzero(self.stuck[active] % 3 == 2):
            self._solve_exactly(active[i], state.z[i], state.gradient[i], state.gradient0[i])

    def _model_steps(self, active: np.ndarray, state: _State, slow: np.ndarray) -> None:
        fits, bundle = self.fits, self.bundle
        w, b = fits.w[active], fits.b[active]
        metrics, which, scale = self._metrics(active, state, slow)
        own, l1, l2 = self.own[active], fits.l1[active], fits.l2[active]

        def step(part: slice) -> None:
            bundle_step(
                metrics, which[part], own[part], state.gradient[part], state.gradient0[part], scale[part], l1[part],
                l2[part], w[part], b[part], n_threads=1,
            )  # fmt: skip

        work = 10 * max(len(metric.columns) for metric in metrics) ** 2
        bundle.in_parts(step, len(active), work, rows=4)
        fits.w[active], fits.b[active] = w, b

    def _solve_exactly(self, b: int, z: np.ndarray, gradient: np.ndarray, gradient0: float) -> None:
        """The minimum of a stuck fit's model by active sets, in double precision.

        Coordinates creep where there is no curvature: as many columns in use as rows, or columns that depend on others.
        """
        fits, bundle = self.fits, self.bundle
        y, s = (rows[fits.task[b]][None] for rows in (bundle.y, bundle.shares))
        h = bundle.loss.curvature(y, s, z[None])[0]
        start, intercept = self.before[0][b], self.before[1][b]
        chosen = np.flatnonzero((start != 0) | self.own[b])
        block = bundle.pool.block[chosen]
        tilt, mass = block @ h, h.sum() if bundle.fit_intercept else np.inf
        gram = (block * h) @ block.T - np.multiply.outer(tilt, tilt / mass)
        w = start[chosen]
        slope = gradient[chosen] - tilt * (gradient0 / mass)
        crossover(np.ascontiguousarray(gram), w, slope, (fits.l1[b], fits.l2[b]), None, False)
        fits.b[b] = intercept - (gradient0 + tilt @ (w - start[chosen])) / mass
        fits.w[b] = start
        fits.w[b, chosen] = w

    def _metrics(self, active: np.ndarray, state: _State, slow: np.ndarray) -> tuple[list, np.ndarray, np.ndarray]:
        """A Gram matrix for each fit, as the kernel takes it: that of its rows, unless its curvature is too different.

        Returns the matrices, which of them each fit uses, and each fit's curvature in units of it.
        """
        fits, bundle = self.fits, self.bundle
        keys = np.where(self.alone[active], bundle.count + active, bundle.group[fits.task[active]])
        used, which = np.unique(keys, return_inverse=True)
        metrics = [bundle.metrics.get(key) for key in used.tolist()]
        for i in np.unique(which[slow]):
            if metrics[i] is not None:
                metrics[i] = self._reconsidered(metrics[i], active[slow & (which == i)])
        own = self.own[active] | (fits.w[active] != 0)
        near = abs(state.gradient) > _NEAR * fits.l1[active, None]
        for i, metric in enumerate(metrics):
            members = which == i
            wanted, l2 = own[members].any(0), float(fits.l2[active[members]].mean())
            if metric is None or len(metric.ids) > 1.3 * wanted.sum() + 20:
                metrics[i] = self._new_metric(active[members], state.z[members], l2)
                self.own[active[members]] |= near[members]
                wanted |= near[members].any(0)
            elif abs(l2 - metric.l2) > 0.1 * metric.l2:
                metric.l2, metric.inverse = l2, None
            wanted &= ~metrics[i].inside()
            if wanted.any():
                metrics[i].grow(bundle.pool.ids[wanted])
        bundle.metrics.update(zip(used.tolist(), metrics))
        uses = np.bincount(which, self.own[active].sum(1)) / np.bincount(which)
        for metric, use in zip(metrics, uses):
            if use >= 0.7 * len(metric.ids):  # the kernel takes the inverse where a fit uses most of the columns
                metric.invert()
            metric.age += 1
        scale = np.ones(len(active))
        if not bundle.loss.fixed_curvature:
            scale = state.mass / np.array([metric.total for metric in metrics])[which]
        return [metric.view() for metric in metrics], which.astype(np.int64), scale

    def _known(self, active: np.ndarray, state: _State) -> tuple[list[Curvature], np.ndarray, np.ndarray]:
        """Gram matrices in double precision, which of them each fit uses, and the columns that each may use."""
        fits, bundle = self.fits, self.bundle
        used, which = np.unique(bundle.group[fits.task[active]], return_inverse=True)
        near = abs(state.gradient) > _NEAR * fits.l1[active, None]
        wanted = self.own[active] | (fits.w[active] != 0) | near
        metrics = []
        for i, key in enumerate(used.tolist()):
            columns, metric = wanted[which == i].any(0), bundle.metrics.get(key)
            if metric is None or metric.dtype != np.float64 or len(metric.ids) > 2 * columns.sum() + 200:
                h = bundle.shares[fits.task[active[which == i][0]]]
                metric = Curvature(bundle.pool, h, 0.0, bundle.fit_intercept, bundle.whole, np.float64)
                bundle.metrics[key] = metric
            columns &= ~metric.inside()
            if columns.any():
                metric.grow(bundle.pool.ids[columns])
            metrics.append(metric)
        return metrics, which, wanted

    def _reconsidered(self, metric: Curvature, slow: np.ndarray) -> Curvature | None:
        """What becomes of a Gram matrix that leads some fits too slowly: an old one goes, a fresh one is not enough."""
        fixed = self.bundle.loss.fixed_curvature
        if not fixed and metric.age > 1:
            return None
        metric.invertible, metric.inverse = False, None
        if not fixed:
            self.alone[slow] = True  # from the next step on
        return metric

    def _new_metric(self, members: np.ndarray, z: np.ndarray, l2: float) -> Curvature:
        bundle, task = self.bundle, self.fits.task[members]
        h = bundle.loss.curvature(bundle.y[task], bundle.shares[task], z).mean(0)
        return Curvature(bundle.pool, h, l2, bundle.fit_intercept, bundle.whole)

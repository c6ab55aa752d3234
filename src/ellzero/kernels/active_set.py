"""The exact minimum of a Lasso or elastic net in Gram space: compiled where that is live, else the plain reference.

Lives here: ``ActiveSet``, which keeps the Cholesky factor of the coordinates in use from one problem to the next, and
the plain loop that the compiled one is held to. Does not live here: which coordinates are looked at, and when an
exact minimum is worth its price (``solvers.coordinate_descent``).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ellzero.errors import InputError
from ellzero.kernels._dispatch import CHOICE

__all__ = ["ActiveSet", "reference"]

_ROUNDS = 200


class ActiveSet:
    """Minimise ``w' G w / 2 - c' w + sum_j (bounds_j |w_j| + ridge_j w_j^2 / 2)`` by feature-sign search.

    Newton steps on the coordinates in use with their signs fixed, cut where a sign would change; then what violates
    optimality joins. Coordinates that depend linearly on those in use are exchanged for one of them.
    Lee, Battle, Raina and Ng (2007).
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        """Drop the factor: the Gram matrix or the ridge has changed."""
        self.order, self.factor, self.count = np.zeros(0, dtype=np.int64), np.zeros((0, 0)), 0

    def work(self, w: np.ndarray) -> float:
        """About how many multiplications an exact solution costs from here."""
        size = np.count_nonzero(w)
        kept = int((w[self.order[: self.count]] != 0).sum()) if self.count else 0
        changes = size - kept + self.count - kept
        return min(changes, size / 3) * size**2.0 + 8 * size**2.0

    def solve(
        self,
        gram: np.ndarray,
        w: np.ndarray,
        gradient: np.ndarray,
        bounds: np.ndarray,
        ridge: np.ndarray,
        *,
        positive: bool = False,
        tol: float = 0.0,
    ) -> bool:
        """To the minimum, in place; whether every slope and violation came down to ``tol``.

        Parameters
        ----------
        gram : ``[m, m]`` C-contiguous; its upper left block of the size of ``w`` is G. Until ``forget`` is called,
            later calls may only extend it.
        w, gradient : ``[size]`` the start and ``G w - c`` there; both in place.
        bounds, ridge : ``[size]`` at least 0; a bound of 0 leaves a coordinate free, an infinite one keeps it at 0.
        positive : demand w >= 0.
        """
        size = len(w)
        if gram.shape[0] < size or gram.shape[1] < size or not gradient.shape == bounds.shape == ridge.shape == w.shape:
            raise InputError(f"gram: got shape {gram.shape} beside w {w.shape}, bounds {bounds.shape}")
        native = CHOICE.module
        if native is None:
            return reference(gram, w, gradient, bounds, ridge, positive, tol)
        bounds, ridge = (np.ascontiguousarray(x, dtype=np.float64) for x in (bounds, ridge))
        self._room(int(np.count_nonzero(w)) + 64, size)
        while True:
            self.count, ended = native.active_set(
                gram, w, gradient, bounds, ridge, positive, self.order, self.factor, self.count, tol, _ROUNDS
            )
            if ended or self.count < len(self.order) or self.count >= size:
                return ended
            self._room(2 * self.count, size)

    def _room(self, wanted: int, size: int) -> None:
        if min(wanted, size) <= len(self.order):
            return
        wanted = min(max(wanted, 2 * len(self.order)), size)
        order, factor = np.zeros(wanted, dtype=np.int64), np.empty((wanted, wanted))
        order[: self.count] = self.order[: self.count]
        factor[: self.count, : self.count] = self.factor[: self.count, : self.count]
        self.order, self.factor = order, factor


def reference(
    gram: np.ndarray,
    w: np.ndarray,
    gradient: np.ndarray,
    bounds: np.ndarray,
    ridge: np.ndarray,
    positive: bool,
    tol: float,
) -> bool:
    """The same search with a fresh factor for every step, and without the exchange of dependent coordinates."""
    size = len(w)
    tied = (bounds > 0) | positive
    sign, used = np.sign(w).astype(np.float64), (w != 0) | ~tied
    sign[~tied] = 0
    before = np.inf
    for _ in range(_ROUNDS):
        moved = False
        while used.any():
            support = np.flatnonzero(used)
            curvature = gram[np.ix_(support, support)].astype(np.float64)
            curvature[np.diag_indices(len(support))] += ridge[support]
            slope = gradient[support] + ridge[support] * w[support] + bounds[support] * sign[support]
            try:
                step = -cho_solve(cho_factor(curvature, check_finite=False), slope, check_finite=False)
            except LinAlgError:
                return False
            held = tied[support]
            wrong = held & (w[support] == 0) & (step * sign[support] <= 0)
            if wrong.any():
                used[support[wrong]] = False
                continue
            turning = held & (w[support] != 0) & ((w[support] + step) * sign[support] <= 0)
            reach = np.where(turning, -w[support] / np.where(step == 0, 1, step), np.inf)
            share, stop = min(float(reach.min()), 1.0), int(reach.argmin())
            target = w[support] + share * step.astype(w.dtype)
            if turning.any():
                target[stop] = 0
            target[held & (target * sign[support] < 0)] = 0
            change = target - w[support]
            moved |= bool(change.any())
            w[support] = target
            gradient += change @ gram[support, :size]
            used[support[held & (target == 0)]] = False
            if not turning.any():
                break
        sign[tied & ~used] = 0
        slope = abs(gradient + ridge * w + np.where(used, bounds, 0) * sign)[used]
        far = float(slope.max()) if len(slope) else 0.0
        pull = -gradient.astype(np.float64) if positive else abs(gradient).astype(np.float64)
        violating = ~used & (pull - bounds > tol)
        if not violating.any():
            if far <= tol or far > before / 2:
                return far <= tol
            before = far
        elif not moved and before < np.inf:
            return False
        else:
            before = 1e300
            used |= violating
            sign[violating] = np.where(tied[violating], -np.sign(gradient[violating]), 0)
    return False

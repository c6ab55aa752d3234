"""How much one more step along a column lowers a penalised loss: exact greedy gains in closed form.

Lives here: the gains of the squared, the square-root and the absolute loss with an l1 or l0 penalty, for columns inside
and outside the support. Does not live here: the pursuit that uses them (``loss_pursuit``).

The problem of every gain is ``D = max_t G(x) - G(x + t e_j)``. Columns have length 1 here (``size`` is the coefficient
times the column's norm), ``correlation`` is ``|a_j' r|``, ``length`` is ``|r|_2``; ``penalty`` is the price of the
coordinate: b in ``b |x_j|`` (l1) or in ``b 1[x_j != 0]`` (l0). Inside the support the fit has made the correlation 0.
All arrays broadcast. Source: Mohammad-Taheri and Adcock (2023), "The greedy side of the LASSO", arXiv:2303.00844; the
forms here are our own derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ellzero.errors import check_choice

__all__ = ["LOSSES", "Absolute", "SquareRoot", "Squared"]


@dataclass(frozen=True)
class Squared:
    """``G = |r|_2^2 + penalty``."""

    kind: str = "l1"

    def __post_init__(self):
        check_choice("penalty", self.kind, ("l1", "l0"))

    @staticmethod
    def scale(n: int) -> float:
        """What turns ``|r|^2 / (2 n)`` into this loss."""
        return 2.0 * n

    def outside(self, correlation, length, penalty):
        """Gain of columns that are not in the support."""
        if self.kind == "l0":
            return np.maximum(correlation**2 - penalty, 0)
        return np.maximum(correlation - penalty / 2, 0) ** 2

    def inside(self, size, length, penalty):
        """Gain of shrinking (l1) or dropping (l0) what is in the support."""
        if self.kind == "l0":
            return np.maximum(penalty - size**2, 0)
        step = np.minimum(penalty / 2, size)
        return step * (penalty - step)


@dataclass(frozen=True)
class SquareRoot:
    """``G = |r|_2 + penalty``: its best strength does not depend on the noise level.

    With the angles ``sin f = correlation / length`` and ``sin g = b`` the l1 gain outside is
    ``2 length sin^2((f - g) / 2)`` where f exceeds g: the column nearest to the residual by angle, less its price.
    """

    kind: str = "l1"

    def __post_init__(self):
        check_choice("penalty", self.kind, ("l1", "l0"))

    @staticmethod
    def scale(n: int) -> float:
        """What turns ``|r| / sqrt(n)`` into this loss."""
        return float(n) ** 0.5

    def outside(self, correlation, length, penalty):
        """Gain of columns that are not in the support."""
        sine = np.minimum(correlation / np.where(length > 0, length, 1), 1)
        price = np.arcsin(np.minimum(penalty, 1)) if self.kind == "l1" else 0.0
        gain = 2 * length * np.sin(np.maximum(np.arcsin(sine) - price, 0) / 2) ** 2
        return gain if self.kind == "l1" else np.maximum(gain - penalty, 0)

    def inside(self, size, length, penalty):
        """Gain of shrinking (l1) or dropping (l0) what is in the support."""
        worse = size**2 / np.maximum(length + np.hypot(length, size), np.finfo(float).tiny)  # of the loss, by dropping
        if self.kind == "l0":
            return np.maximum(penalty - worse, 0)
        angle = np.arcsin(np.minimum(penalty, 1))
        part = (penalty < 1) & (length * np.tan(angle) <= size)
        return np.where(part, 2 * length * np.sin(angle / 2) ** 2, penalty * size - worse)


@dataclass(frozen=True)
class Absolute:
    """``G = |r|_1 + penalty``: large errors in a few targets are let be.

    The best step along a column is a weighted median of ``r_i / a_ij`` with weights ``|a_ij|``, and of the step that
    makes the coefficient 0 with weight b. Here columns are as they come, and ``values`` are the coefficients.
    """

    kind: str = "l1"

    def __post_init__(self):
        check_choice("penalty", self.kind, ("l1", "l0"))

    @staticmethod
    def scale(n: int) -> float:
        """What turns ``|r|_1 / n`` into this loss."""
        return float(n)

    def gain(self, columns: np.ndarray, residual: np.ndarray, values: np.ndarray, penalty: np.ndarray) -> np.ndarray:
        """``[q]`` gains of ``columns [n, q]`` whose coefficients are ``values [q]``, 0 outside the support."""
        before = abs(residual).sum()
        if self.kind == "l0":
            free = before - self._after(columns, residual, values, np.zeros_like(penalty))
            dropped = before - abs(residual[:, None] + values * columns).sum(axis=0)
            return np.maximum(np.where(values != 0, penalty + dropped, free - penalty), 0)
        return np.maximum(before + penalty * abs(values) - self._after(columns, residual, values, penalty), 0)

    @staticmethod
    def _after(columns, residual, values, penalty):
        """``min_t |r - t a|_1 + b |x + t|`` per column, by sorting the kinks."""
        weights = np.vstack([abs(columns), penalty])
        with np.errstate(divide="ignore", invalid="ignore"):
            kinks = np.vstack([residual[:, None] / columns, -values])
        kinks[weights == 0] = 0
        order = np.argsort(kinks, axis=0, kind="stable")
        mass = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
        place = (mass >= mass[-1] / 2).argmax(axis=0)
        step = np.take_along_axis(kinks, np.take_along_axis(order, place[None], axis=0), axis=0)[0]
        return abs(residual[:, None] - step * columns).sum(axis=0) + penalty * abs(values + step)

    def bound(self, correlation, total, residual_sum, penalty):
        """An upper bound of the gain outside: ``correlation`` is ``|a_j' sign(r)|``, ``total`` the sum of ``|a_ij|``.

        ``|r - t a|_1 + b |t|`` falls from ``|r|_1`` at no more than its slope at 0, and is at least
        ``(total + b) |t| - |r|_1``.
        """
        price = penalty if self.kind == "l1" else 0.0
        slope = np.maximum(correlation - price, 0)
        gain = 2 * slope * residual_sum / np.maximum(slope + total + price, np.finfo(float).tiny)
        return gain if self.kind == "l1" else np.maximum(gain - penalty, 0)


LOSSES = {"squared": Squared, "square_root": SquareRoot, "absolute": Absolute}

"""Quadratic and logistic losses of many problems at once: a row for each problem, a column for each sample.

Lives here: values, slopes, curvatures, duals and exact intercepts, row by row. Does not live here: the same losses of
one problem (``parts.datafits``, to which the tests hold these), penalties, solvers.
A row b is ``sum_i s_bi l(y_bi, z_bi)``; its shares s_b sum to 1. A share of 0 leaves the sample out.
"""

from __future__ import annotations

import numpy as np

from ellzero.errors import InputError

__all__ = ["LOSSES", "LogisticRows", "QuadraticRows"]


class QuadraticRows:
    """``l = (y - z)^2 / 2``; its curvature never changes."""

    name = "quadratic"
    fixed_curvature = True

    def prepare(self, y: np.ndarray, s: np.ndarray) -> np.ndarray:
        """The targets as the other functions take them, after the checks."""
        return y

    def null(self, y: np.ndarray, s: np.ndarray, fit_intercept: bool) -> tuple[np.ndarray, np.ndarray]:
        """The intercepts and objectives ``[B]`` at w = 0."""
        intercept = (s * y).sum(1) if fit_intercept else np.zeros(len(y))
        return intercept, (s * (y - intercept[:, None]) ** 2).sum(1) / 2

    def evaluate(self, y: np.ndarray, s: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The losses ``[B]`` and their derivatives by z ``[B, n]``."""
        off = z - y
        slope = s * off
        return np.einsum("ij,ij->i", slope, off) / 2, slope

    def curvature(self, y: np.ndarray, s: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The second derivatives by z ``[B, n]``."""
        return s

    def mass(self, s, slope):
        return np.ones(len(s))

    def exact_intercept(self, y, s, z):
        """What to add to the intercepts ``[B]`` so that they are exact; values and slopes there."""
        shift = (s * (y - z)).sum(1)
        return shift, *self.evaluate(y, s, z + shift[:, None])

    def balanced(self, y: np.ndarray, s: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The slopes moved so that each row sums to zero, inside the domain of the dual."""
        return slope - s * slope.sum(1, keepdims=True)

    def dual(self, y, s, slope, cap, squares):
        """``max_c`` of the dual at ``-c slope`` for ``0 <= c <= cap``; ``squares`` is l2 |w|^2. All ``[B]``."""
        norm = (slope**2 / np.where(s > 0, s, 1)).sum(1) + squares
        product = -(slope * y).sum(1)
        c = np.minimum(np.maximum(product, 0) / np.where(norm > 0, norm, 1), cap)
        return c * product - c**2 * norm / 2

    def pace(self, alphas: np.ndarray) -> np.ndarray:
        """The scale of alphas on which solutions are nearly straight: between kinks they are lines in alpha."""
        return alphas


class LogisticRows:
    """``l = log(1 + exp(-y z))`` for labels -1 and +1."""

    name = "logistic"
    fixed_curvature = False

    def prepare(self, y: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Labels as -1 and +1; any two values are taken, the larger one is +1."""
        labels = np.unique(y)
        if len(labels) != 2:
            raise InputError(f"targets: got {len(labels)} different labels, want two for the logistic loss")
        y = np.where(y == labels[1], 1.0, -1.0)
        above = (s * (y > 0)).sum(1)
        bare = np.flatnonzero((above <= 0) | (above >= 1 - 1e-12))
        if len(bare):
            raise InputError(f"weights: problem {bare[0]} sees one class only, want samples of both in each problem")
        return y

    def null(self, y, s, fit_intercept):
        """The intercepts and objectives ``[B]`` at w = 0."""
        above = (s * (y > 0)).sum(1)
        if not fit_intercept:
            return np.zeros(len(y)), np.full(len(y), np.log(2.0))
        return np.log(above / (1 - above)), -above * np.log(above) - (1 - above) * np.log(1 - above)

    def evaluate(self, y, s, z):
        """The losses ``[B]`` and their derivatives by z ``[B, n]``."""
        margin = y * z
        small = np.exp(-abs(margin))
        value = np.log(1 + small)  # log1p is no better here: the sum is of order 1
        value += np.maximum(-margin, 0)
        wrong = np.where(margin >= 0, small, 1.0)
        wrong /= 1 + small
        wrong *= s
        value = np.einsum("ij,ij->i", value, s)
        wrong *= -y
        return value, wrong

    def curvature(self, y, s, z):
        """The second derivatives by z ``[B, n]``."""
        small = np.exp(-abs(z))
        return s * small / (1 + small) ** 2

    def mass(self, s, slope):
        return abs(slope).sum(1) - (slope**2 / np.where(s > 0, s, 1)).sum(1)

    def exact_intercept(self, y, s, z):
        """What to add to the intercepts ``[B]`` so that they are exact, by Newton's method; values and slopes there."""
        shift = np.zeros(len(z))
        for _ in range(50):
            value, slope = self.evaluate(y, s, z + shift[:, None])
            total = slope.sum(1)
            if (abs(total) <= 1e-9).all():
                break
            shift -= np.clip(total / np.maximum(self.mass(s, slope), 1e-300), -2, 2)
        return shift, value, slope

    def balanced(self, y, s, slope):
        """The slopes of the heavier class shrunk so that each row sums to zero, inside the domain of the dual."""
        above = np.where(y > 0, -slope, 0).sum(1)
        below = np.where(y < 0, slope, 0).sum(1)
        low = np.minimum(above, below)
        up = low / np.where(above > 0, above, 1)
        down = low / np.where(below > 0, below, 1)
        return slope * np.where(y > 0, up[:, None], down[:, None])

    def dual(self, y, s, slope, cap, squares):
        """The dual at ``-c slope`` for ``c = min(cap, 1)``; ``squares`` is l2 |w|^2. All ``[B]``."""
        c = np.minimum(cap, 1.0)
        v = np.clip(c[:, None] * abs(slope) / np.where(s > 0, s, 1), 0, 1)
        rest = 1 - v
        tiny = np.finfo(float).tiny
        entropy = v * np.log(np.maximum(v, tiny)) + rest * np.log(np.maximum(rest, tiny))
        return -np.einsum("ij,ij->i", s, entropy) - c**2 * squares / 2

    def pace(self, alphas):
        """The scale of alphas on which solutions are nearly straight: coefficients grow like the logarithm."""
        return np.log(alphas)


LOSSES = {"quadratic": QuadraticRows, "logistic": LogisticRows}

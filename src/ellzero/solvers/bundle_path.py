"""Paths of alphas for all problems of a bundle at once.

Lives here: the order in which a path is solved, and where its fits start. Does not live here: the fits themselves
(``bundle_descent``), scores and tests built on paths (``linear.bundles``, ``linear.resampling``).

Every ``stride``-th alpha is solved first, from the straight line through the two before it. Then gaps are halved: fits
between two known ones start from the line between them, and all of them run at once, on the same Gram matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.solvers.bundle import Bundle, Fits
from ellzero.solvers.bundle_descent import descend

__all__ = ["alpha_grid", "iterate", "null_gradients"]


def null_gradients(bundle: Bundle) -> np.ndarray:
    """The gradients ``[K, p]`` at w = 0 with exact intercepts."""
    z = np.broadcast_to(bundle.null[:, None], bundle.y.shape)
    return bundle.gradients(bundle.loss.evaluate(bundle.y, bundle.shares, z)[1])


def alpha_grid(bundle: Bundle, alphas: Any = None, *, n_alphas: int = 100, eps: float | None = None,
               l1_ratio: float = 1.0) -> np.ndarray:  # fmt: skip
    """Falling alphas ``[A]``: as given, or geometric from the least one at which every problem is empty.

    ``eps`` is the ratio of the last to the first: by default 1e-2 where n < p, else 1e-4.
    """
    if alphas is not None:
        alphas = check_array("alphas", np.asarray(alphas), ndim=1, dtypes="fiu").astype(np.float64)
        if (alphas <= 0).any():
            raise InputError(f"alphas: got {alphas.min()}, want numbers above 0")
        return np.sort(alphas)[::-1]
    n_alphas = check_integer("n_alphas", n_alphas, at_least=1)
    eps = (1e-2 if bundle.n < bundle.p else 1e-4) if eps is None else check("eps", eps, above=0, below=1)
    largest = float(abs(null_gradients(bundle)).max()) / l1_ratio
    return max(largest, np.finfo(float).tiny) * np.geomspace(1, eps, n_alphas)


def iterate(bundle: Bundle, alphas: np.ndarray, *, l1_ratio: float = 1.0, tol: float = 1e-6, max_iter: int = 100,
            stride: int | None = None) -> Iterator[tuple[int, Fits]]:  # fmt: skip
    """Yield ``(position of alpha, the fits of all problems)`` for falling ``alphas``, in order.

    The coefficients belong to ``bundle.pool.ids`` as it is when they are yielded.
    """
    path = _Path(bundle, np.asarray(alphas, dtype=np.float64), l1_ratio, {"tol": tol, "max_iter": max_iter})
    stride = max(1, min(8, 64 // bundle.count)) if stride is None else stride
    ends = [*range(0, len(path.alphas) - 1, stride), len(path.alphas) - 1]
    with bundle.limits():
        first: tuple[int, Fits] | None = None
        second: tuple[int, Fits] | None = None
        for at in ends:
            fits = path.ahead(at, first, second)
            if second is not None:
                yield from path.between(second, (at, fits))
            fits.widen(len(bundle.pool.ids))
            yield at, fits
            first, second = second, (at, fits)


class _Path:
    def __init__(self, bundle: Bundle, alphas: np.ndarray, l1_ratio: float, options: dict[str, Any]):
        self.bundle, self.alphas, self.l1_ratio, self.options = bundle, alphas, l1_ratio, options
        self.pace = bundle.loss.pace(alphas)

    def fits(self, places: list[int], w: np.ndarray, b: np.ndarray) -> Fits:
        """All problems at each of ``places``, those of one alpha side by side."""
        task = np.tile(np.arange(self.bundle.count), len(places))
        alpha = np.repeat(self.alphas[places], self.bundle.count)
        return Fits(task, alpha * self.l1_ratio, alpha * (1 - self.l1_ratio), w, b)

    def ahead(self, at: int, first: tuple[int, Fits] | None, second: tuple[int, Fits] | None) -> Fits:
        """The fits at ``at``, from the line through the two ends before it, whose gradients say what may join."""
        bundle, share = self.bundle, 0.0
        gradient = null_gradients(bundle) if second is None else second[1].gradient
        expected = gradient
        if first is not None:
            _prune(bundle, first[1], second[1])
            share = (self.pace[at] - self.pace[second[0]]) / (self.pace[second[0]] - self.pace[first[0]])
            expected = gradient + share * (gradient - first[1].gradient)
        wanted = (abs(expected) > 0.95 * self.alphas[at] * self.l1_ratio).any(0)
        wanted[bundle.pool.ids] = False
        bundle.pool.add(np.flatnonzero(wanted))
        width = len(bundle.pool.ids)
        if second is None:
            w, b = np.zeros((bundle.count, width)), bundle.null.copy()
        else:
            second[1].widen(width)
            w, b = second[1].w.copy(), second[1].b.copy()
        if first is not None:
            first[1].widen(width)
            further = w + share * (w - first[1].w)
            w = np.where(w * further > 0, further, 0.0)  # what would turn its sign rests at zero
            b = b + share * (b - first[1].b)
        return descend(bundle, self.fits([at], w, b), keep_gradients=True, **self.options)

    def between(self, left: tuple[int, Fits], right: tuple[int, Fits]) -> Iterator[tuple[int, Fits]]:
        """The fits between two ends: the middle of each gap, all gaps at once, until none is left."""
        solved = dict((left, right))
        count = self.bundle.count
        while True:
            places = sorted(solved)
            gaps = [(a, b) for a, b in pairwise(places) if b - a > 1]
            if not gaps:
                break
            middles = [(a + b) // 2 for a, b in gaps]
            starts = [self._on_line(solved, a, middle, b) for (a, b), middle in zip(gaps, middles)]
            fits = self.fits(middles, np.concatenate([w for w, _ in starts]), np.concatenate([b for _, b in starts]))
            descend(self.bundle, fits, **self.options)
            solved |= {place: fits.rows(slice(i * count, (i + 1) * count)) for i, place in enumerate(middles)}
        for place in places[1:-1]:
            solved[place].widen(len(self.bundle.pool.ids))
            yield place, solved[place]

    def _on_line(self, solved: dict[int, Fits], a: int, middle: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        share = (self.pace[middle] - self.pace[a]) / (self.pace[b] - self.pace[a])
        for end in (a, b):
            solved[end].widen(len(self.bundle.pool.ids))
        one, other = solved[a], solved[b]
        return (1 - share) * one.w + share * other.w, (1 - share) * one.b + share * other.b


def _prune(bundle: Bundle, first: Fits, second: Fits) -> None:
    """Forget the columns that neither end uses, once they are many; the Gram matrices go too."""
    for fits in (first, second):
        fits.widen(len(bundle.pool.ids))
    used = (first.w != 0).any(0) | (second.w != 0).any(0)
    if len(used) > 1.5 * used.sum() + 50:
        bundle.pool.keep(used)
        bundle.forget()
        first.w, second.w = first.w[:, used], second.w[:, used]

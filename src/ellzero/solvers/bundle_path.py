"""Paths of alphas for all problems of a bundle at once.

Lives here: the order in which a path is solved, and where its fits start. Does not live here: the fits themselves
(``bundle_descent``), scores and tests built on paths (``linear.bundles``, ``linear.resampling``).

Every ``stride``-th alpha is solved first, from the straight line through the two before it. Then gaps are halved: fits
between two known ones start from the line between them, and all of them run at once, on the same Gram matrices. Alphas
that begin far below where all problems are empty are led up to from there, or far too many columns would join at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.solvers.bundle import Bundle, Fits
from ellzero.solvers.bundle_descent import descend

__all__ = ["alpha_grid", "iterate", "null_gradients"]

_LEAD = 0.4  # of log alpha, a step on the way to the first alpha asked for
_LOOSE = 1e-4  # the gap on that way


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
    alphas = np.asarray(alphas, dtype=np.float64)
    path = _Path(bundle, l1_ratio, {"tol": tol, "max_iter": max_iter})
    stride = max(1, min(8, 64 // bundle.count)) if stride is None else stride
    ends = [*range(0, len(alphas) - 1, stride), len(alphas) - 1]
    with bundle.limits():
        first, second = path.lead(alphas[0])
        left: int | None = None
        for at in ends:
            end = _End(alphas[at], path.ahead(alphas[at], first, second))
            if left is not None:
                yield from path.between(alphas, {left: second.fits, at: end.fits})
            end.fits.widen(len(bundle.pool.ids))
            yield at, end.fits
            first, second, left = second.before(end), end, at


class _End(NamedTuple):
    """All problems at one alpha, with their full gradients: what the next one is foreseen from."""

    alpha: float
    fits: Fits

    def before(self, other: _End) -> _End | None:
        """Itself, if a line through both has a slope."""
        return self if self.alpha > other.alpha * (1 + 1e-9) else None


class _Path:
    def __init__(self, bundle: Bundle, l1_ratio: float, options: dict[str, Any]):
        self.bundle, self.l1_ratio, self.options = bundle, l1_ratio, options
        self.pace = bundle.loss.pace

    def fits(self, alphas: Any, w: np.ndarray, b: np.ndarray) -> Fits:
        """All problems at each of ``alphas``, those of one alpha side by side."""
        task = np.tile(np.arange(self.bundle.count), len(alphas))
        alpha = np.repeat(alphas, self.bundle.count)
        return Fits(task, alpha * self.l1_ratio, alpha * (1 - self.l1_ratio), w, b)

    def lead(self, alpha: float) -> tuple[_End | None, _End]:
        """Two ends to foresee the fits at ``alpha`` from: where all problems are empty, and steps from there on."""
        bundle = self.bundle
        empty = np.zeros((bundle.count, len(bundle.pool.ids)))
        gradient = null_gradients(bundle)
        top = max(float(abs(gradient).max()) / self.l1_ratio, np.finfo(float).tiny)
        first, second = None, _End(top, self.fits([top], empty, bundle.null.copy()))
        second.fits.gradient = gradient
        steps = int(np.ceil(np.log(top / alpha) / _LEAD)) if alpha < top else 0
        options = {**self.options, "tol": max(self.options["tol"], _LOOSE)}
        for on_the_way in np.geomspace(top, alpha, steps + 1)[1:-1]:
            end = _End(on_the_way, self.ahead(on_the_way, first, second, **options))
            first, second = second.before(end), end
        return first, second

    def ahead(self, alpha: float, first: _End | None, second: _End, **options: Any) -> Fits:
        """The fits at ``alpha``, from the line through the two ends before it, whose gradients say what may join."""
        bundle, share = self.bundle, 0.0
        expected = gradient = second.fits.gradient
        if first is not None:
            _prune(bundle, first.fits, second.fits)
            share = self._share(first.alpha, second.alpha, alpha) - 1
            expected = gradient + share * (gradient - first.fits.gradient)
        wanted = (abs(expected) > 0.95 * alpha * self.l1_ratio).any(0)
        wanted[bundle.pool.ids] = False
        bundle.pool.add(np.flatnonzero(wanted))
        width = len(bundle.pool.ids)
        second.fits.widen(width)
        w, b = second.fits.w.copy(), second.fits.b.copy()
        if first is not None:
            first.fits.widen(width)
            further = w + share * (w - first.fits.w)
            w = np.where(w * further > 0, further, 0.0)  # what would turn its sign rests at zero
            b = b + share * (b - first.fits.b)
        return descend(bundle, self.fits([alpha], w, b), keep_gradients=True, **(options or self.options))

    def between(self, alphas: np.ndarray, solved: dict[int, Fits]) -> Iterator[tuple[int, Fits]]:
        """The fits between two ends: the middle of each gap, all gaps at once, until none is left."""
        count = self.bundle.count
        while True:
            places = sorted(solved)
            gaps = [(a, b) for a, b in pairwise(places) if b - a > 1]
            if not gaps:
                break
            middles = [(a + b) // 2 for a, b in gaps]
            starts = [self._on_line(alphas, solved, a, middle, b) for (a, b), middle in zip(gaps, middles)]
            w, b = (np.concatenate(part) for part in zip(*starts))
            fits = descend(self.bundle, self.fits(alphas[middles], w, b), **self.options)
            solved |= {place: fits.rows(slice(i * count, (i + 1) * count)) for i, place in enumerate(middles)}
        for place in places[1:-1]:
            solved[place].widen(len(self.bundle.pool.ids))
            yield place, solved[place]

    def _on_line(self, alphas, solved: dict[int, Fits], a: int, middle: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        share = self._share(alphas[a], alphas[b], alphas[middle])
        for end in (a, b):
            solved[end].widen(len(self.bundle.pool.ids))
        one, other = solved[a], solved[b]
        return (1 - share) * one.w + share * other.w, (1 - share) * one.b + share * other.b

    def _share(self, one: float, other: float, alpha: float) -> float:
        """Where ``alpha`` lies on the way from ``one`` (0) to ``other`` (1)."""
        one, other, alpha = self.pace(np.array([one, other, alpha]))
        return float((alpha - one) / (other - one)) if other != one else 0.0


def _prune(bundle: Bundle, first: Fits, second: Fits) -> None:
    """Forget the columns that neither end uses, once they are many; the Gram matrices go too."""
    for fits in (first, second):
        fits.widen(len(bundle.pool.ids))
    used = (first.w != 0).any(0) | (second.w != 0).any(0)
    if len(used) > 1.5 * used.sum() + 50:
        bundle.pool.keep(used)
        bundle.forget()
        first.w, second.w = first.w[:, used], second.w[:, used]

"""ADMM in graph form: ``min f(W) + g(A W)`` for any two functions with a prox, all columns of W at once.

Lives here: ``Graph`` (the projection onto ``{(Z, W): Z = A W}``, factored once) and ``admm``.
Does not live here: penalties and datafits (``parts``), the sets that a method asks for (the wings).
NumPy arrays and torch tensors alike, on their own device: each iteration is two products with A and one with a matrix
of its smaller side.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.namespace import is_torch, like, namespace
from ellzero.registry import register
from ellzero.solvers.operators import need

__all__ = ["Graph", "Split", "admm"]

_EVERY = 10  # iterations between looks at the residuals
_BALANCE = 3.0  # how far apart the residuals may be before rho moves
_STEADY = 0.5  # share of the iterations after which rho stays, so that convergence is that of a fixed rho


class Split(NamedTuple):
    """What ADMM came to; given back as ``start`` it goes on from there.

    ``coef [p, b]`` is the prox of f, exact zeros included; ``image [n, b]`` the prox of g, and ``A coef`` equals it up
    to the tolerance. ``primal`` and ``dual`` are the residuals over their scales, ``rho`` the last step's inverse.
    """

    coef: Any
    image: Any
    n_iter: int
    converged: bool
    primal: float
    dual: float
    rho: float
    state: tuple[Any, Any, Any, Any]


class Graph:
    """Pairs ``(Z, W)`` with ``Z = A W``, and the nearest one to any pair. A inverse is formed once, in float64.

    Parameters
    ----------
    a : ``[n, p]`` floating-point array or tensor.
    """

    def __init__(self, a: Any):
        self.a = check_array("a", a, ndim=2, dtypes="f")
        n, p = a.shape
        self._tall = n >= p
        wide = a.double() if is_torch(a) else a.astype(np.float64)
        gram = wide.T @ wide if self._tall else wide @ wide.T
        gram = gram + like(gram, np.eye(len(gram)))
        self._inverse = like(a, namespace(a).linalg.inv(gram))

    def project(self, image: Any, coef: Any) -> Any:
        """The W that minimises ``|A W - image|^2 + |W - coef|^2``."""
        if self._tall:
            return self._inverse @ (self.a.T @ image + coef)
        return coef + self.a.T @ (self._inverse @ (image - self.a @ coef))


@register(kind="solver", source="Parikh and Boyd (2014)")
def admm(
    a: Any,
    image: Any,
    penalty: Any,
    columns: int,
    *,
    start: Split | None = None,
    rho: float = 1.0,
    relax: float = 1.6,
    tol: float = 1e-4,
    max_iter: int = 2000,
) -> Split:
    """Minimise ``penalty(W) + image(A W)`` over W ``[p, columns]``.

    Convex functions converge to a minimiser; others to what they converge to.

    Parameters
    ----------
    a : ``[n, p]`` array or tensor, or a ``Graph`` of it, which a second call with the same A need not build again.
    image, penalty : anything with ``prox(v, step)``, the minimiser of ``0.5 |z - v|^2 + step * value(z)``, for
        ``[n, columns]`` and ``[p, columns]``. The prox of a set is the projection onto it.
    start : where another call ended, for the same A and nearly the same problem.
    rho : first inverse step; it moves while the residuals are far apart, which costs nothing, as the factor does not
        depend on it.
    relax : over-relaxation, in [1, 2).
    tol : ends when both residuals are below this share of their scale, looked at each 10 iterations.

    Raises
    ------
    InputError : a bad argument, or a function without ``prox``.

    Source: Parikh and Boyd (2014), Block splitting for distributed optimization, section 3; residuals and rho after
    Boyd et al. (2011), sections 3.3 and 3.4.
    """
    graph = a if isinstance(a, Graph) else Graph(a)
    for part in (image, penalty):
        need("admm", part, "prox")
    columns = check_integer("columns", columns, at_least=1)
    check("rho", rho, above=0, below=math.inf)
    check("relax", relax, at_least=1, below=2)
    check("tol", tol, at_least=0)
    max_iter = check_integer("max_iter", max_iter, at_least=1)
    a, (n, p) = graph.a, graph.a.shape
    if start is None:
        w, aw, uz, us = (like(a, np.zeros((size, columns))) for size in (p, n, n, p))
    else:
        (w, aw, uz, us), rho = start.state, start.rho
        if tuple(w.shape) != (p, columns) or tuple(aw.shape) != (n, columns):
            raise InputError(f"start: is of shape {tuple(w.shape)} and {tuple(aw.shape)}, want {(p, columns)} and "
                             f"{(n, columns)}")  # fmt: skip
    converged, primal, dual, iteration = False, math.inf, math.inf, 0
    for iteration in range(1, max_iter + 1):
        z, s = image.prox(aw - uz, 1 / rho), penalty.prox(w - us, 1 / rho)
        zr, sr = relax * z + (1 - relax) * aw, relax * s + (1 - relax) * w
        before, abefore = w, aw
        w = graph.project(zr + uz, sr + us)
        aw = a @ w
        uz, us = uz + zr - aw, us + sr - w
        if iteration % _EVERY and iteration < max_iter:
            continue
        primal = _size(z - aw, s - w) / max(_size(z, s), _size(aw, w), 1e-30)
        dual = _size(aw - abefore, w - before) / max(_size(uz, us), 1e-30)
        if primal <= tol and dual <= tol:
            converged = True
            break
        if iteration <= _STEADY * max_iter and not 1 / _BALANCE <= primal / max(dual, 1e-30) <= _BALANCE:
            factor = min(max(math.sqrt(primal / max(dual, 1e-30)), 0.1), 10.0)
            rho, uz, us = rho * factor, uz / factor, us / factor
    return Split(s, z, iteration, converged, primal, dual, rho, (w, aw, uz, us))


def _size(*parts: Any) -> float:
    return math.sqrt(sum(float((part * part).sum()) for part in parts))

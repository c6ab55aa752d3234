"""Sparse Bayesian learning for Kronecker products: ``y = (A_1 x A_2 x ...) w + e`` with a support that is one too.

Lives here: the exact posterior from small eigen-decompositions, and the two updates of Kronecker-structured variances.
Does not live here: the learning loop (``sparse_bayes``), products with a Kronecker matrix (``operators``).
The order is that of ``numpy.kron``: the last factor runs fastest. Factors and y may be complex.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
from scipy.linalg import eigh

from ellzero.errors import InputError, check_array, check_choice
from ellzero.registry import register
from ellzero.solvers.sparse_bayes import Moments, SparseBayes, check_settings, learn

__all__ = ["UPDATES", "KroneckerBayes", "KroneckerPosterior", "alternate", "kronecker_bayes", "nearest_product"]


@dataclass(frozen=True)
class KroneckerBayes(SparseBayes):
    """What ``SparseBayes`` holds, and ``factors``, whose Kronecker product is gamma; all but the last have length 1."""

    factors: tuple[np.ndarray, ...]


def along(x: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """``x`` with its i-th axis multiplied by the i-th matrix: the Kronecker product of all, at the cost of each."""
    for matrix in matrices:  # each turn consumes the first axis and puts the new one last
        x = (x.reshape(len(x), -1).T @ matrix.T).reshape(*x.shape[1:], len(matrix))
    return x


def product(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The outer product of all, an array with an axis for each."""
    return reduce(np.multiply.outer, vectors)


class KroneckerPosterior:
    """The exact posterior where gamma is a Kronecker product of one vector per factor of the matrix.

    ``C = noise I + A diag(gamma) A'`` is diagonal in the Kronecker product of the eigenvectors of
    ``A_i diag(g_i) A_i'``: one small eigen-decomposition per factor, and products along the axes of arrays, in place
    of the cube of the rows of A.

    Parameters
    ----------
    matrices : the A_i, ``[m_i, n_i]``. y : ``[m_1 ... m_D]``.
    """

    def __init__(self, matrices: Sequence[np.ndarray], y: np.ndarray):
        self.matrices = list(matrices)
        self.y = y.reshape([len(matrix) for matrix in matrices])

    def __call__(self, factors: Sequence[np.ndarray], noise: float) -> Moments:
        values, vectors, loads, roots = [], [], [], []
        for matrix, factor in zip(self.matrices, factors):
            active = np.flatnonzero(factor)
            root = np.sqrt(factor[active])
            chosen = matrix[:, active] * root
            value, vector = np.linalg.eigh(chosen @ chosen.conj().T)
            values.append(np.maximum(value, 0))
            vectors.append(vector)
            loads.append(vector.conj().T @ chosen)
            roots.append((active, root))
        power = product(values)
        level = power + noise
        rotated = along(self.y, [vector.conj().T for vector in vectors])
        weighted = rotated / level
        mean = along(weighted, [load.conj().T for load in loads]) * product([root for _, root in roots])
        gain = np.clip(along(1 / level, [abs(load.T) ** 2 for load in loads]), 0, 1)
        if mean.size < math.prod(len(factor) for factor in factors):
            inside = np.ix_(*(active for active, _ in roots))
            mean, gain = (_placed(part, inside, [len(factor) for factor in factors]) for part in (mean, gain))
        fitted = along(weighted * power, vectors)
        misfit = float(np.log(level).sum() + np.sum(abs(rotated) ** 2 / level))
        gamma = product(factors).ravel()
        return Moments(mean.ravel(), gamma * (1 - gain.ravel()), gain.ravel(), fitted.ravel(), misfit)


def _placed(part: np.ndarray, inside: tuple[np.ndarray, ...], shape: list[int]) -> np.ndarray:
    whole = np.zeros(shape, part.dtype)
    whole[inside] = part
    return whole


def _scaled(factors: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The same product with all but the last factor at length 1."""
    sizes = [np.linalg.norm(factor) for factor in factors[:-1]]
    return (*(factor / (size or 1) for factor, size in zip(factors[:-1], sizes)), factors[-1] * math.prod(sizes))


def alternate(
    power: np.ndarray, factors: Sequence[np.ndarray], *, tol: float = 1e-5, max_iter: int = 100
) -> tuple[np.ndarray, ...]:
    """Factors that minimise ``sum log gamma + power / gamma`` over Kronecker products, by turns.

    ``power`` is an array with an axis for each factor, above 0; with all others fixed the minimiser of one factor is
    the mean over the other axes of ``power`` over the product of the others. The problem is convex in the logarithms.
    """
    factors = list(_scaled(factors))
    for _ in range(max_iter):
        before = tuple(factors)
        for i, factor in enumerate(factors):
            rest = np.moveaxis(power, i, -1)
            for other in factors[:i] + factors[i + 1 :]:
                rest = np.tensordot(1 / other, rest, axes=(0, 0))
            factors[i] = rest * (len(factor) / power.size)
        factors = list(_scaled(factors))
        if all(np.linalg.norm(new - old) <= tol * np.linalg.norm(new) for new, old in zip(factors, before)):
            break
    return tuple(factors)


def nearest_product(power: np.ndarray, factors: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, ...]:
    """Factors of a product near ``power`` (an array with an axis for each): one leading singular pair per factor.

    ``power`` at least 0, so the pair is too. ``factors`` are not used.
    """
    found = []
    while power.ndim > 1:
        rows = power.reshape(len(power), -1)
        left = abs(eigh(rows @ rows.T, subset_by_index=[len(rows) - 1] * 2, check_finite=False)[1][:, 0])
        found.append(left)
        power = (left @ rows).reshape(power.shape[1:])
    return (*found, power)


# name -> the update of the factors from the second moments of w, and the share of its largest at which an entry is out
UPDATES: dict[str, tuple[Callable[..., tuple[np.ndarray, ...]], float]] = {
    "alternate": (alternate, 5e-3),
    "svd": (nearest_product, 1e-3),
}


def _matrices(X: Any) -> list[np.ndarray]:
    """The factors of a sequence of matrices, or of a Kronecker operator of dense matrices."""
    if hasattr(X, "left") and hasattr(X, "right"):
        return [*_matrices(X.left), *_matrices(X.right)]
    if hasattr(X, "x"):
        return [_checked("X", X.x, 2)]
    if not isinstance(X, Sequence) or not X:
        raise InputError(f"X: got {type(X).__name__}, want a list of matrices or a Kronecker product of dense ones")
    return [_checked(f"X[{i}]", matrix, 2) for i, matrix in enumerate(X)]


def _checked(name: str, x: Any, ndim: int) -> np.ndarray:
    x = check_array(name, np.asarray(x), ndim=ndim, dtypes="fiubc", finite=False)
    x = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
    check_array(name, x.real)
    check_array(name, x.imag)
    return x


@register(
    id="S087",
    kind="solver",
    source="arXiv:2307.14719",
    wing="linear",
    claim="nearer than plain sparse Bayesian learning where the support is a Kronecker product, at a hundredth of the "
    "cost",
    example=lambda: kronecker_bayes([np.eye(2), np.eye(3)], np.array([0.0, 1, 0, 0, 0, 0])),
)
def kronecker_bayes(
    X: Any, y: Any, *, update: str = "svd", noise: float | None = None, prune: float | None = None, tol: float = 1e-4,
    max_iter: int = 200,
) -> KroneckerBayes:  # fmt: skip
    """Sparse coefficients of a Kronecker product of matrices, whose support is a product of supports (KroSBL).

    ``w ~ N(0, diag(g_1 x g_2 x ...))``: an entry ``(j_1, j_2, ...)`` is in where every factor has its own in. The
    variances are learned by EM with the second moments ``L = |mean|^2 + variance``, an array with an axis per factor.

    Parameters
    ----------
    X : the factors ``[m_i, n_i]`` in the order of ``numpy.kron``, real or complex, or a ``Kronecker`` operator of dense
        ones. Columns are brought to length 1 inside.
    y : ``[m_1 m_2 ...]``.
    update : ``"alternate"``: minimises ``sum log gamma + L / gamma`` over the factors by turns; the probability of y
        never falls. ``"svd"``: the leading singular vectors of L unfolded, one factor after the other; no inner loop.
    noise : variance of the noise (of its real and imaginary part together); ``None`` to learn it.
    prune : an entry of a factor that falls to this share of its largest is out for good, and a slice of w with it;
        ``None`` for 5e-3 with ``"alternate"`` and 1e-3 with ``"svd"``, as published.
    tol, max_iter : end when the mean moves by at most this share of its length, or after so many steps.

    Returns
    -------
    KroneckerBayes : arrays ``[n_1 n_2 ...]``, in the order of ``numpy.kron``.

    Raises
    ------
    InputError : no factors, shapes that do not match, entries that are not finite, an unknown update, numbers out of
        range.

    Notes
    -----
    He and Joseph (2023), "Bayesian algorithms for Kronecker-structured sparse vector recovery with application to
    IRS-MIMO channel estimation", arXiv:2307.14719. The posterior by eigen-decompositions of the factors is ours; it is
    exact.

    Measured (three Gaussian factors 8 x 12 with 3 nonzeros each, 20 dB, medians of 9 draws): error -27.7 dB with
    ``"svd"``, -27.2 dB by turns, -9.3 dB with plain ``sparse_bayes`` and -13.9 dB where it is told the noise, -8.6 dB
    with OMP told the count. Each factor alone has 8 rows for 12 columns; where one is not made out the whole is lost,
    in 2 of 12 draws (by turns as well). ``"svd"`` takes about 10 steps, turns 100 to 200. One posterior costs
    less than a hundredth of a dense one (``benchmarks/sparse_bayes.py``).
    """
    matrices = _matrices(X)
    y = _checked("y", y, 1)
    rows = math.prod(len(matrix) for matrix in matrices)
    if len(y) != rows:
        raise InputError(f"y: got {len(y)} rows, want {rows}, the product of the rows of the factors")
    rule, share = UPDATES[check_choice("update", update, UPDATES)]
    share = share if prune is None else prune
    check_settings(noise=noise, prune=share, tol=tol, max_iter=max_iter)
    norms = [np.linalg.norm(matrix, axis=0) for matrix in matrices]
    scales = [np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0) for norm in norms]
    posterior = KroneckerPosterior([matrix * scale for matrix, scale in zip(matrices, scales)], y)
    present = [(scale > 0).astype(np.float64) for scale in scales]
    factors = _scaled([*present[:-1], present[-1] * (np.sum(abs(y) ** 2) / math.prod(map(len, norms)))])

    def advance(factors, power, moments):
        inside = [np.flatnonzero(factor) for factor in factors]
        if not all(map(len, inside)):  # nothing to explain
            return factors, np.zeros(len(power))
        whole = (power + moments.variance).reshape([len(factor) for factor in factors])
        found = rule(whole[np.ix_(*inside)], [factor[active] for factor, active in zip(factors, inside)])
        changed = [np.zeros(len(factor)) for factor in factors]
        for factor, active, new in zip(changed, inside, found):
            factor[active] = np.where(new > share * new.max(), new, 0)
        changed = _scaled(changed)
        return changed, product(changed).ravel()

    learned = learn(posterior, advance, y, factors, product(factors).ravel(), noise=noise, tol=tol, max_iter=max_iter)
    scale = product(scales).ravel()
    gamma = learned.gamma * scale**2
    content = {field.name: getattr(learned, field.name) for field in fields(learned)}
    content |= {"mean": learned.mean * scale, "variance": learned.variance * scale**2, "gamma": gamma}
    return KroneckerBayes(**content, factors=nearest_product(gamma.reshape([len(norm) for norm in norms])))

"""Sparse Bayesian learning: one prior variance per coefficient, learned from the data, of which most go to zero.

Lives here: the loop that every variant shares (posterior, then variances, then noise), the exact Gaussian posterior,
three updates of the variances, and ``sparse_bayes``, which joins them. Does not live here: posteriors by message
passing (``message_passing``) and for Kronecker products (``kronecker_bayes``), estimators (``ellzero.linear.bayes``).
The model is ``y = X w + e`` with ``w_j ~ N(0, gamma_j)`` and ``e ~ N(0, noise)``; ``noise`` is a variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.registry import register
from ellzero.solvers.operators import Operator, Scaled, aslinear, need

__all__ = [
    "UPDATES", "ExactPosterior", "LinearModel", "Moments", "SparseBayes", "check_settings", "covariance", "learn",
    "pruning", "sparse_bayes",
]  # fmt: skip

FLOOR = 1e-12  # learned noise stays above this share of the mean square of y, and gains above this number


class Moments(NamedTuple):
    """The posterior of w at given variances.

    ``mean`` ``[p]`` or ``[p, targets]``; ``variance`` ``[p]``; ``gain`` ``[p]``, ``1 - variance / gamma``: the share of
    each coefficient that the data determine, 0 where gamma is 0; ``fitted`` is ``X mean``; ``misfit`` is
    ``-2 log p(y) / targets`` up to a constant, or NaN where it is not computed.
    """

    mean: np.ndarray
    variance: np.ndarray
    gain: np.ndarray
    fitted: np.ndarray
    misfit: float = math.nan


@dataclass(frozen=True)
class SparseBayes:
    """The posterior at the learned variances.

    ``mean`` ``[p]`` or ``[p, targets]`` and ``variance`` ``[p]`` of each coefficient; ``gamma`` ``[p]``, the prior
    variances, 0 where a coefficient is out; ``noise``, a variance; ``history``, ``-2 log p(y)`` per target up to a
    constant, one number per iteration (NaN where it is not computed); ``converged``: the mean came to rest.
    """

    mean: np.ndarray
    variance: np.ndarray
    gamma: np.ndarray
    noise: float
    history: np.ndarray
    n_iter: int
    converged: bool

    @property
    def support(self) -> np.ndarray:
        """Sorted indices of the coefficients that are in."""
        return np.flatnonzero(self.gamma)


def _expectation(gamma: np.ndarray, power: np.ndarray, moments: Moments) -> np.ndarray:
    return power + moments.variance


def _fixed_point(gamma: np.ndarray, power: np.ndarray, moments: Moments) -> np.ndarray:
    return power / np.maximum(moments.gain, FLOOR)


def _majorise(gamma: np.ndarray, power: np.ndarray, moments: Moments) -> np.ndarray:
    return np.sqrt(power * gamma / np.maximum(moments.gain, FLOOR))


# gamma, mean square of the means, moments -> gamma. The gain is gamma_j x_j' C^{-1} x_j, C the covariance of y.
UPDATES: dict[str, Callable[[np.ndarray, np.ndarray, Moments], np.ndarray]] = {
    "em": _expectation,
    "fixed_point": _fixed_point,
    "majorise": _majorise,
}


class ExactPosterior:
    """The Gaussian posterior by one Cholesky factor, of the smaller of rows and coefficients that are still in.

    With ``B = X diag(gamma / noise)^(1/2)`` the factor is of ``I + B B'`` or ``I + B' B``, which stays regular however
    small a variance is. Costs ``n a min(n, a)`` for a coefficients, in float64. ``degrees``: as in ``learn``.
    """

    def __init__(self, operator: Operator, y: np.ndarray, degrees: float | None = None):
        self.operator, self.y = operator, y
        self.degrees = len(y) if degrees is None else degrees
        self._active = np.arange(operator.shape[1])
        self._columns = np.asarray(operator.columns(self._active), dtype=np.float64)

    def __call__(self, gamma: np.ndarray, noise: float) -> Moments:
        active, (n, *targets) = np.flatnonzero(gamma), self.y.shape
        if not np.array_equal(active, self._active):
            self._active, self._columns = active, np.asarray(self.operator.columns(active), dtype=np.float64)
        root = np.sqrt(gamma[active] / noise)
        scaled = self._columns * root
        if not len(active):
            factor, mean, gain = np.eye(1), np.zeros((0, *targets)), np.zeros(0)
        elif n <= len(active):
            factor = _factor(scaled @ scaled.T)
            white = solve_triangular(factor, scaled, lower=True, check_finite=False)
            mean = white.T @ solve_triangular(factor, self.y, lower=True, check_finite=False)
            gain = np.einsum("ij,ij->j", white, white)
        else:
            factor = _factor(scaled.T @ scaled)
            inverse = solve_triangular(factor, np.eye(len(active)), lower=True, check_finite=False)
            mean = inverse.T @ (inverse @ (scaled.T @ self.y))
            gain = 1 - np.einsum("ij,ij->j", inverse, inverse)
        fitted = scaled @ mean
        full_mean, full_gain = np.zeros((len(gamma), *targets)), np.zeros(len(gamma))
        full_mean[active], full_gain[active] = (mean.T * root).T, np.clip(gain, 0, 1)
        quadratic = float(np.sum(self.y * (self.y - fitted))) / (noise * math.prod(targets))
        misfit = self.degrees * math.log(noise) + 2 * float(np.log(np.diag(factor)).sum()) + quadratic
        return Moments(full_mean, gamma * (1 - full_gain), full_gain, fitted, misfit)


def covariance(operator: Operator, fitted: SparseBayes) -> np.ndarray:
    """The posterior covariance ``[a, a]`` of the coefficients ``fitted.support``."""
    support = fitted.support
    root = np.sqrt(fitted.gamma[support])
    scaled = np.asarray(operator.columns(support), dtype=np.float64) * (root / math.sqrt(fitted.noise))
    if not len(support):
        return np.zeros((0, 0))
    inverse = solve_triangular(_factor(scaled.T @ scaled), np.diag(root), lower=True, check_finite=False)
    return inverse.T @ inverse


def _factor(gram: np.ndarray) -> np.ndarray:
    gram.flat[:: len(gram) + 1] += 1
    return cholesky(gram, lower=True, overwrite_a=True, check_finite=False)


def learn(
    posterior: Callable[[Any, float], Moments],
    update: Callable[[Any, np.ndarray, Moments], tuple[Any, np.ndarray]],
    y: np.ndarray,
    prior: Any,
    gamma: np.ndarray,
    *,
    noise: float | None,
    tol: float,
    max_iter: int,
    degrees: float | None = None,
) -> SparseBayes:
    """Alternate the posterior with updates of the prior and of the noise, until the mean rests.

    The noise takes the step of EM, ``(|r|^2 + noise sum gain) / n``, whatever the update of the prior: a faster one
    runs to 0 before the variances have shrunk, and the noise is then fitted.

    Parameters
    ----------
    posterior : moments at a prior and a noise variance.
    update : the next prior and its variances, from the prior, the mean over targets of ``|mean|^2``, and the moments.
    y : ``[n]`` or ``[n, targets]``. prior, gamma : where to begin; ``gamma`` are the variances that ``prior`` means.
    noise : its variance; ``None`` to learn it, from a hundredth of the mean square of y.
    tol, max_iter : end when the mean moves by at most this share of its length, or after so many posteriors.
    degrees : the n of the noise, where it is not the rows of y: less 1 for an intercept that was solved out.
    """
    targets, learned = math.prod(y.shape[1:]), noise is None
    degrees = len(y) if degrees is None else degrees
    energy = float(np.mean(abs(y) ** 2))
    least = max(FLOOR * energy, np.finfo(float).tiny)
    noise = max(0.01 * energy, least) if noise is None else float(noise)
    before, history = None, []
    while True:
        moments = posterior(prior, noise)
        history.append(moments.misfit)
        size = np.linalg.norm(moments.mean)
        moved = np.inf if before is None else np.linalg.norm(moments.mean - before)
        converged = bool(moved <= tol * size) and math.isfinite(size)
        if converged or len(history) == max_iter or not math.isfinite(size):
            break
        before = moments.mean
        power = abs(moments.mean) ** 2
        prior, gamma = update(prior, power if y.ndim == 1 else power.mean(axis=1), moments)
        if learned:
            residual = float(np.sum(abs(y - moments.fitted) ** 2)) / targets
            noise = max((residual + noise * float(moments.gain.sum())) / degrees, least)
    return SparseBayes(moments.mean, moments.variance, gamma, noise, np.array(history), len(history), converged)


@dataclass(frozen=True)
class LinearModel:
    """``y = X w + e`` with the columns of X at length 1, so that neither tolerances nor pruning know their units."""

    operator: Operator
    y: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X: Any, y: Any, *, solver: str) -> LinearModel:
        """From ``[n, p]`` and ``[n]`` or ``[n, targets]``, in float64, after checks."""
        operator = aslinear(X)
        need(solver, operator, "columns", "column_norms")
        y = check_array("y", np.asarray(y), ndim=(1, 2), dtypes="fiub").astype(np.float64)
        if len(y) != operator.shape[0]:
            raise InputError(f"y: got {len(y)} rows, want {operator.shape[0]}, as X has")
        norms = np.asarray(operator.column_norms(), dtype=np.float64)
        scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
        return cls(Scaled(operator, scale), y, scale)

    def start(self) -> np.ndarray:
        """Variances ``[p]`` to begin with: every column is expected to bring the same share of the energy of y."""
        share = np.sum(self.y**2) / math.prod(self.y.shape[1:]) / len(self.scale)
        return np.where(self.scale > 0, share, 0)

    def back(self, learned: SparseBayes) -> SparseBayes:
        """What was learned, for the columns as they came."""
        square = self.scale**2
        return replace(
            learned,
            mean=(learned.mean.T * self.scale).T,
            variance=learned.variance * square,
            gamma=learned.gamma * square,
        )


def check_settings(*, noise: float | None, prune: float, tol: float, max_iter: int) -> None:
    """Raise ``InputError`` for settings out of range."""
    if noise is not None:
        check("noise", noise, above=0, below=math.inf)
    check("prune", prune, at_least=0, below=1)
    check("tol", tol, at_least=0)
    check_integer("max_iter", max_iter, at_least=1)


def pruning(update: str, prune: float) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The named update, after which variances of at most ``prune`` of the largest are 0."""
    change = UPDATES[check_choice("update", update, UPDATES)]

    def advance(gamma, power, moments):
        changed = change(gamma, power, moments)
        changed[changed <= prune * changed.max()] = 0
        return changed, changed

    return advance


@register(
    kind="solver",
    source="Tipping (2001); Wipf and Rao (2004)",
    wing="linear",
    claim="sparser and nearer to the truth than the Lasso, both with one cross-validated setting",
    example=lambda: sparse_bayes(np.eye(3), np.array([0.0, 2.0, 0.0])),
)
def sparse_bayes(
    X: Any, y: Any, *, update: str = "fixed_point", noise: float | None = None, prune: float = 1e-8, tol: float = 1e-5,
    max_iter: int = 1000, degrees: float | None = None,
) -> SparseBayes:  # fmt: skip
    """Sparse coefficients and their posterior, by maximising the probability of y over the prior variances.

    ``max_gamma,noise log N(y; 0, C)``, ``C = noise I + X diag(gamma) X'``. Most variances go to 0 at the maximum.

    Parameters
    ----------
    X : ``[n, p]`` array, scipy sparse matrix or operator with ``columns`` and ``column_norms``.
    y : ``[n]``, or ``[n, targets]`` that share their variances (Wipf and Rao 2007).
    update : with mean m, variance s and gain ``g = 1 - s / gamma`` of a coefficient, the next gamma is
        ``"em"``: ``m^2 + s``; never lowers the probability, slow. ``"majorise"``: ``sqrt(gamma m^2 / g)``, from a bound
        on ``log |C|``; never lowers it either. ``"fixed_point"``: ``m^2 / g``; fast, and drops coefficients soonest.
    noise : variance of the noise; ``None`` to learn it. With more columns than rows, noise and many small coefficients
        explain y alike, and what is learned is too little noise: by a third at 1e-4 of the energy of y, by far at a
        tenth; ``"em"`` then explains all of y. State it where it is known, or choose it by cross-validation.
    prune : a column whose expected energy ``gamma |x|^2`` falls to this share of the largest is out for good.
        Columns are brought to length 1 inside, so their units do not matter.
    tol, max_iter, degrees : as in ``learn``.

    Raises
    ------
    InputError : shapes that do not match, entries that are not finite, an unknown update, numbers out of range.

    Notes
    -----
    Tipping (2001), "Sparse Bayesian learning and the relevance vector machine", equations 12, 13, 16 and 18 (of which
    the last is replaced by the step of EM, see ``learn``); Wipf and Rao (2004), "Sparse Bayesian learning for basis
    selection"; for ``"majorise"``, Wipf and Nagarajan (2008), "A new view of automatic relevance determination".

    Measured (n = 200, p = 400, 15 nonzeros, correlation 0.5 ^ |i - j|, snr 10, 6 draws, medians): relative error 0.15
    and F1 of the support 0.69 with the noise of six that cross-validates best, against 0.24 and 0.43 for the Lasso with
    its penalty cross-validated; 0.26 and 0.38 with the true noise, 0.55 with learned noise.
    """
    check_settings(noise=noise, prune=prune, tol=tol, max_iter=max_iter)
    advance, model = pruning(update, prune), LinearModel.of(X, y, solver="sparse_bayes")
    posterior, gamma = ExactPosterior(model.operator, model.y, degrees), model.start()
    learned = learn(posterior, advance, model.y, gamma, gamma, noise=noise, tol=tol, max_iter=max_iter, degrees=degrees)
    return model.back(learned)

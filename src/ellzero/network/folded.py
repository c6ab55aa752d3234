"""The size of a Gaussian weight: moments of ``|w|`` and of ``exp(slope |w|)``, and the criteria made of them.

Lives here: formulas on NumPy arrays, in float64, stable where a weight is far from zero. Does not live here: the layers
whose weights these are (``variational``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtr

from ellzero.errors import InputError, check, check_choice

__all__ = ["CRITERIA", "criterion", "exponential_snr", "log_exponential_moment", "size_mean", "size_sd", "size_snr"]


def _excess(z: np.ndarray) -> np.ndarray:
    """``E|w| / sigma - z`` for ``z = |mu| / sigma``: ``2 (phi(z) - z Phi(-z))``, which falls to zero."""
    return 2 * (np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) - z * ndtr(-z))


def size_mean(mu: Any, sigma: Any) -> np.ndarray:
    """``E|w| = sigma sqrt(2 / pi) e^(-z^2 / 2) + mu (1 - 2 Phi(-z))`` of ``w ~ N(mu, sigma^2)``, ``z = mu / sigma``."""
    size, sigma = np.abs(np.asarray(mu, np.float64)), np.asarray(sigma, np.float64)
    return size + sigma * _excess(size / sigma)


def size_sd(mu: Any, sigma: Any) -> np.ndarray:
    """Standard deviation of ``|w|``: ``sqrt(mu^2 + sigma^2 - (E|w|)^2)``, without the cancellation of its terms."""
    z, sigma = np.abs(np.asarray(mu, np.float64)) / sigma, np.asarray(sigma, np.float64)
    excess = _excess(z)
    return sigma * np.sqrt(1 - excess * (2 * z + excess))


def size_snr(mu: Any, sigma: Any) -> np.ndarray:
    """``E|w| / sd|w|``: from ``1 / sqrt(pi / 2 - 1)`` = 1.3236 at ``mu = 0`` upwards, never zero.

    It depends on ``|mu| / sigma`` alone and rises with it, so that it ranks weights as ``|mu| / sigma`` does.
    """
    return size_mean(mu, sigma) / size_sd(mu, sigma)


def log_exponential_moment(mu: Any, sigma: Any, slope: float) -> np.ndarray:
    """``log E exp(s |w|)`` for the slope s: ``e^(s^2 sigma^2 / 2) (e^(s mu) Phi(mu / sigma + s sigma) + mirror)``."""
    size, sigma = np.abs(np.asarray(mu, np.float64)), np.asarray(sigma, np.float64)
    sides = [slope * side * size + log_ndtr(side * size / sigma + slope * sigma) for side in (1, -1)]
    return slope**2 * sigma**2 / 2 + np.logaddexp(*sides)


def exponential_snr(mu: Any, sigma: Any, slope: float) -> np.ndarray:
    """``E exp(slope |w|) / sd exp(slope |w|)``."""
    spread = log_exponential_moment(mu, sigma, 2 * slope) - 2 * log_exponential_moment(mu, sigma, slope)
    return 1 / np.sqrt(np.expm1(np.maximum(spread, 1e-300)))


CRITERIA: Mapping[str, Callable[..., np.ndarray]] = {
    "mean": lambda mu, sigma, slope: np.abs(np.asarray(mu, np.float64)),
    "snr": lambda mu, sigma, slope: np.abs(np.asarray(mu, np.float64)) / sigma,
    "size": lambda mu, sigma, slope: size_mean(mu, sigma),
    "size_snr": lambda mu, sigma, slope: size_snr(mu, sigma),
    "exponential": lambda mu, sigma, slope: log_exponential_moment(mu, sigma, slope),
    "exponential_snr": exponential_snr,
}
"""``|mu|``; ``|mu| / sigma``; ``E|w|``; ``E|w| / sd|w|``; ``E e^(slope |w|)`` (its log, which ranks alike); that over
its standard deviation."""


def criterion(name: str, mu: Any, sigma: Any, slope: float = 1.0) -> np.ndarray:
    """How much each weight counts, the larger the more; one of ``CRITERIA``. Li et al. (2024), section 4.2.

    Raises
    ------
    InputError : an unknown criterion, a slope or a ``sigma`` that is not above 0.
    """
    rule = CRITERIA[check_choice("criterion", name, CRITERIA)]
    check("slope", slope, above=0, below=math.inf)
    sigma = np.asarray(sigma, np.float64)
    if not (sigma > 0).all():
        raise InputError(f"sigma: got {float(np.min(sigma))}, want numbers above 0")
    return rule(np.asarray(mu, np.float64), sigma, slope)

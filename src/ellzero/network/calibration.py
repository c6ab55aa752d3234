"""How far probabilities can be trusted: calibration error, log loss, Brier score of a classifier.

Lives here: the metrics, on arrays of probabilities. Does not live here: where probabilities come from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ellzero.errors import InputError, check_array, check_integer
from ellzero.registry import register

__all__ = ["Calibration", "brier_score", "calibration", "calibration_error", "log_loss"]


def _checked(probability: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    probability, y = np.asarray(probability, dtype=np.float64), np.asarray(y)
    check_array("probability", probability, ndim=2)
    check_array("y", y, ndim=1, dtypes="iu", shape=(len(probability),))
    if probability.min() < 0 or not np.allclose(probability.sum(1), 1, atol=1e-4):
        raise InputError("probability: want rows of numbers from 0 that sum to 1")
    if y.min() < 0 or y.max() >= probability.shape[1]:
        raise InputError(f"y: got classes {y.min()} to {y.max()}, want 0 to {probability.shape[1] - 1}")
    return probability, y


@register(kind="metric", wing="network", source="arXiv:1706.04599", name="calibration_error")
def calibration_error(probability: Any, y: Any, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence. Guo et al. (2017), equation 3.

    ``sum_b n_b / n |accuracy_b - confidence_b|`` with bins ``((b - 1) / bins, b / bins]`` of the largest probability.

    Parameters
    ----------
    probability : ``[rows, classes]``, rows that sum to 1.
    y : whole numbers ``[rows]``.

    Raises
    ------
    InputError : other shapes, numbers that are no probabilities, or classes that are not there.
    """
    check_integer("bins", bins, at_least=1)
    probability, y = _checked(probability, y)
    confidence, right = probability.max(1), probability.argmax(1) == y
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


@register(kind="metric", wing="network", source="none", name="log_loss")
def log_loss(probability: Any, y: Any) -> float:
    """Mean ``-log p`` of the true class, in nats; a probability of 0 counts as 1e-12."""
    probability, y = _checked(probability, y)
    return float(-np.log(np.maximum(probability[np.arange(len(y)), y], 1e-12)).mean())


@register(kind="metric", wing="network", source="Brier (1950)", name="brier_score")
def brier_score(probability: Any, y: Any) -> float:
    """Mean squared distance of the probabilities to the true class's indicator: 0 at best, 2 at worst."""
    probability, y = _checked(probability, y)
    gap = probability.copy()
    gap[np.arange(len(y)), y] -= 1
    return float((gap**2).sum(1).mean())


class Calibration(NamedTuple):
    """What one looks at together."""

    accuracy: float
    log_loss: float
    error: float
    brier: float


def calibration(probability: Any, y: Any, bins: int = 15) -> Calibration:
    """Accuracy, log loss, calibration error and Brier score at once."""
    found, right = _checked(probability, y)
    accuracy = float((found.argmax(1) == right).mean())
    return Calibration(
        accuracy, log_loss(found, right), calibration_error(found, right, bins), brier_score(found, right)
    )

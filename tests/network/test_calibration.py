"""Calibration metrics against their definitions, written out."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.network.calibration import brier_score, calibration, calibration_error, log_loss


def drawn(rows=500, classes=4, seed=0):
    stream = np.random.default_rng(seed)
    probability = stream.dirichlet(np.ones(classes), rows)
    return probability, stream.integers(0, classes, rows), stream


def test_the_error_is_the_sum_over_bins():
    probability, y, _ = drawn()
    total = 0.0
    for b in range(15):
        inside = (probability.max(1) > b / 15) & (probability.max(1) <= (b + 1) / 15)
        if inside.any():
            right = (probability.argmax(1) == y)[inside].mean()
            total += inside.mean() * abs(right - probability.max(1)[inside].mean())
    assert calibration_error(probability, y) == pytest.approx(total)


def test_honest_probabilities_have_a_small_error_and_sharpened_ones_a_large_one():
    probability, _, stream = drawn(20000)
    y = np.array([stream.choice(4, p=row) for row in probability[:20000]])
    sharp = probability**4 / (probability**4).sum(1, keepdims=True)
    assert calibration_error(probability, y) < 0.015
    assert calibration_error(sharp, y) > 0.1
    assert log_loss(probability, y) < log_loss(sharp, y)
    assert brier_score(probability, y) < brier_score(sharp, y)


def test_certain_answers():
    sure, y = np.eye(3), np.arange(3)
    assert calibration(sure, y) == (1.0, 0.0, 0.0, 0.0)
    assert calibration(sure, (y + 1) % 3)[::2] == (0.0, 1.0)
    assert log_loss(sure, (y + 1) % 3) == pytest.approx(-np.log(1e-12))
    assert brier_score(sure, (y + 1) % 3) == 2.0


@pytest.mark.parametrize(
    ("probability", "y", "name"),
    [
        (np.ones((3, 2)), np.zeros(3, int), "probability"), (np.eye(2), np.array([0, 2]), "y"),
        (np.eye(2), np.zeros(3, int), "y"), (np.eye(2), np.zeros(2), "y"), (np.full((2, 2), np.nan), [0, 1], "prob"),
    ],
)  # fmt: skip
def test_bad_input_is_named(probability, y, name):
    with pytest.raises(InputError, match=f"^{name}"):
        calibration_error(probability, y)

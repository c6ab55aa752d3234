"""Losses against their formulas written out in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.training import losses

DRAW = np.random.default_rng(0)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_classification_is_mean_negative_log_likelihood():
    z, y = DRAW.standard_normal((5, 3)), DRAW.integers(0, 3, 5)
    found = losses.classification(torch.nn.Identity(), (torch.tensor(z), torch.tensor(y)))
    assert found.item() == pytest.approx(-log_softmax(z)[np.arange(5), y].mean(), rel=1e-5)


def test_regression_takes_a_trailing_axis_of_one():
    z, y = DRAW.standard_normal((5, 1)), DRAW.standard_normal(5)
    found = losses.regression(torch.nn.Identity(), (torch.tensor(z), torch.tensor(y)))
    assert found.item() == pytest.approx(((z[:, 0] - y) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize(("got", "want"), [((3, 2), (2, 3)), ((4,), (4, 2)), ((1, 4), (4,)), ((4, 1), (1, 4))])
def test_regression_refuses_shapes_that_would_be_broadcast(got, want):
    with pytest.raises(InputError, match="model: gives"):
        losses.regression(torch.nn.Identity(), (torch.zeros(got), torch.zeros(want)))


def test_regression_takes_a_trailing_axis_on_either_side():
    z = torch.arange(4.0)
    for a, b in ((z, z[:, None]), (z[:, None], z)):
        assert losses.regression(torch.nn.Identity(), (a + 1, b)).item() == 1


def test_next_token_shifts_by_one():
    tokens = torch.tensor([[0, 2, 1, 2], [1, 1, 0, 2]])
    table = DRAW.standard_normal((3, 3))
    found = losses.next_token(lambda x: torch.tensor(table)[x], tokens)
    want = [-log_softmax(table)[a, b] for row in tokens.tolist() for a, b in pairwise(row)]
    assert found.item() == pytest.approx(np.mean(want), rel=1e-5)


def test_distillation_is_zero_for_equal_logits_and_matches_the_divergence():
    s, t = DRAW.standard_normal((4, 6)), DRAW.standard_normal((4, 6))
    assert losses.distillation(torch.tensor(t), torch.tensor(t), 2.0).item() == pytest.approx(0, abs=1e-7)
    p, q = log_softmax(s / 2), log_softmax(t / 2)
    want = 4 * (np.exp(q) * (q - p)).sum(1).mean()
    assert losses.distillation(torch.tensor(s), torch.tensor(t), 2.0).item() == pytest.approx(want, rel=1e-5)

"""Threads: products counted as by hand, and one thread inside only where they are few."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.training.threads import SMALL, products, threads_for


def test_products_are_those_of_the_layers():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(3 * 4 * 4, 5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert products(model, torch.zeros(7, 2, 6, 6)) == 7 * (3 * 16 * 2 * 9 + 48 * 5)
    assert model.training
    assert not any(layer._forward_hooks for layer in model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert products(nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)), torch.zeros(3, dtype=torch.int64)) == 0


def test_a_model_that_fails_is_left_without_hooks():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        products(model, torch.zeros(1, 4))
    assert not model[0]._forward_hooks
    assert model.training


def test_small_work_runs_on_one_thread_and_the_number_comes_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threads_for(SMALL - 1):
            assert torch.get_num_threads() == 1
        with threads_for(SMALL):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), threads_for(0):
            raise KeyError
        assert torch.get_num_threads() == 2
        with pytest.raises(InputError, match="count"), threads_for(-1):
            pass
    finally:
        torch.set_num_threads(before)

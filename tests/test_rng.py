"""Seeded streams repeat, differ by name, and leave the global generators alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ellzero.errors import InputError
from ellzero.rng import rng, torch_generator


def test_the_same_seed_and_names_repeat_in_another_process():
    code = "from ellzero.rng import rng; print(rng(7, 'mask', 3).integers(10**12))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == rng(7, "mask", 3).integers(10**12)


def test_streams_with_other_names_or_seeds_differ_and_do_not_correlate():
    draws = [
        rng(*names).standard_normal(4000) for names in [(0,), (0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "ab")]
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.08  # five standard errors of independent streams


def test_the_global_generators_are_not_touched():
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    rng(3, "x").random(5)
    torch.rand(5, generator=torch_generator(3, "x"))
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_torch_generator_repeats():
    a, b = (torch.rand(3, generator=torch_generator(1, "w")) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(InputError, match="seed: got"):
        rng(seed)

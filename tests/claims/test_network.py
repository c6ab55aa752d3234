"""Dynamic masks against static ones, and gradual pruning against dense, at equal steps and paired seeds.

The bed: 784-300-100-10 on 8,000 and 2,000 MNIST digits (``ELLZERO_DATA``), 2 % of the weights, SGD with momentum 0.9,
weight decay 1e-4, cosine learning rate, batch 128, 945 steps. Each method takes its best of three learning rates on
two more seeds, by training rows held out; 66 runs of 2 to 4 s, so the slow claim takes two to five minutes. The fast
slice is 64-128-64-10 on the 8 x 8 digits at 3 %.

Measured (accuracy in %, 5 seeds, learning rate 0.2 for all): dense 95.70 +- 0.14, gradual magnitude 94.58 +- 0.15, RigL
92.30 +- 0.25, SET 91.31 +- 0.17, static ERK 90.21 +- 0.30, static uniform 77.83 +- 1.20; RigL - SET 0.99 +- 0.29, SET -
static 1.10 +- 0.29 (with its rate chosen on one seed SET ran at 0.1 and was 0.36 below static). Gradual pruning comes
near dense, RigL stays 3.4 points below it: at this size and length, sparse from the start does not reach dense.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from ellzero.network.recipes import gmp, rigl, static
from tests.claims.network_bed import METHODS, mnist_bed, run, small_bed, spread


@pytest.mark.claim("RigL")
def test_gradual_pruning_and_dynamic_masks_beat_a_static_uniform_one_on_small_digits():
    bed = small_bed()
    recipes = {
        "gmp": lambda seed: gmp(0.03, every=10),
        "rigl": lambda seed: rigl(0.03, every=10, seed=seed),
        "static uniform": lambda seed: static(0.03, allocation="uniform", seed=seed),
    }
    found = {name: np.array([run(bed, recipe(seed), seed) for seed in range(2)]) for name, recipe in recipes.items()}
    print({name: spread(values) for name, values in found.items()})
    for name in ("gmp", "rigl"):
        assert (found[name] - found["static uniform"]).mean() > 5
    assert min(found["gmp"].mean(), found["rigl"].mean()) > 80


@pytest.mark.slow
@pytest.mark.claim("RigL")
def test_at_98_percent_sparsity_gmp_rigl_set_and_static_masks_come_in_this_order():
    bed = mnist_bed()
    found, rates = {}, {}
    for name, recipe in METHODS.items():
        tried = {lr: sum(run(bed.inner, recipe(s), s, lr) for s in (98, 99)) for lr in (0.05, 0.1, 0.2)}
        rates[name] = max(tried, key=tried.get)
        start, cpu = time.perf_counter(), time.process_time()
        found[name] = np.array([run(bed, recipe(s), s, rates[name]) for s in range(5)])
        took = f"five runs took {time.perf_counter() - start:.0f} s ({time.process_time() - cpu:.0f} of the processor)"
        print(f"{name}: {spread(found[name])} at learning rate {rates[name]}; {took}", flush=True)
    margins = {
        ("gmp", "rigl"): 0.3,
        ("rigl", "set"): 0.2,
        ("set", "static erk"): 0.2,
        ("static erk", "static uniform"): 4,
    }
    for (better, worse), margin in margins.items():
        difference = found[better] - found[worse]
        print(f"{better} - {worse}: {spread(difference)}")
        assert difference.mean() > margin
    assert -0.2 < found["dense"].mean() - found["gmp"].mean() < 2

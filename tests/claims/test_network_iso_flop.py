"""A wider sparse network against the dense one that costs as much: Sparse-IFT, at paired seeds and equal steps.

The bed: 784-32-32-10 on 8,000 and 2,000 MNIST digits (``ELLZERO_DATA``), 945 steps, against 784-101-101-10 of the same
26,432 multiply-adds under RigL; each at its better learning rate of one more seed.

Measured (accuracy in %, 3 seeds): dense 93.32 +- 0.22, wide at 0.9 93.50 +- 0.10, wide - dense 0.18 +- 0.30. The gain
of the paper (3.5 points on ImageNet) does not show here: the first layer holds 95 % of the cost, and its inputs cannot
be widened. What holds is the equal cost, and no loss. On the 8 x 8 digits (64-24-24-10, 250 steps, 3 seeds, best of two
rates) dense reaches 96.65, wide 96.18, parallel 96.24, doped 95.77, factorised 86.52: six layers are too deep for so
short a run.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.models.initial import fill
from ellzero.network.iso_flop import multiply_adds, sparse_iso_flop
from ellzero.network.recipes import dense, rigl
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.training import losses
from ellzero.training.loop import train
from ellzero.training.threads import threads_for
from tests.claims.network_bed import mnist_bed, small_bed, spread


def narrow(inputs, width):
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )  # fmt: skip


def run(bed, given, kind, seed, lr, sparsity=0.9):
    """Accuracy in percent, and the multiply-adds of a row."""
    if kind == "dense":
        model, recipe, include = fill(given, seed), dense(), None
    else:
        found = sparse_iso_flop(given, sparsity, kind, seed=seed)
        model, include = found.model, found.include
        recipe = rigl(found.density, every=20, allocation=found.allocation, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=bed.steps, include=include)
    with threads_for(0):
        train(model, losses.classification, bed.batches(seed), optimizer=optimizer, steps=bed.steps,
              schedule=Cosine(1.0, 0.0), clip=5.0, parts={"sparsifier": sparsifier})  # fmt: skip
    return bed.accuracy(model), multiply_adds(model)


@pytest.mark.claim("S092")
def test_a_wide_sparse_network_learns_small_digits_at_the_cost_of_the_dense_one():
    bed = small_bed()
    (plain, cost), (wide, spent) = (run(bed, narrow(64, 24), kind, 0, 0.2) for kind in ("dense", "wide"))
    print(f"dense {plain:.2f} at {cost} multiply-adds, wide {wide:.2f} at {spent}")
    assert 0.98 * cost <= spent <= cost == 64 * 24 + 24 * 24 + 24 * 10
    assert wide > plain - 2


@pytest.mark.slow
@pytest.mark.claim("S092")
def test_a_wide_sparse_network_is_as_good_as_the_dense_one_of_equal_cost():
    bed = mnist_bed()
    found, rates = {}, {}
    for kind in ("dense", "wide"):
        tried = {lr: run(bed, narrow(784, 32), kind, 99, lr)[0] for lr in (0.05, 0.1, 0.2)}
        rates[kind] = max(tried, key=tried.get)
        found[kind] = np.array([run(bed, narrow(784, 32), kind, seed, rates[kind])[0] for seed in range(3)])
        print(f"{kind}: {spread(found[kind])} at learning rate {rates[kind]}, tried {tried}", flush=True)
    difference = found["wide"] - found["dense"]
    print(f"wide - dense: {spread(difference)}")
    assert difference.mean() > -0.7
    assert found["wide"].mean() > 92.5

"""A wider sparse network against the dense one that costs as much: Sparse-IFT, at paired seeds and equal steps."""

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
def test_a_wide_sparse_network_beats_the_dense_one_of_equal_cost():
    bed = mnist_bed()
    found, rates = {}, {}
    for kind in ("dense", "wide"):
        tried = {lr: run(bed, narrow(784, 32), kind, 99, lr)[0] for lr in (0.05, 0.1, 0.2)}
        rates[kind] = max(tried, key=tried.get)
        found[kind] = np.array([run(bed, narrow(784, 32), kind, seed, rates[kind])[0] for seed in range(3)])
        print(f"{kind}: {spread(found[kind])} at learning rate {rates[kind]}, tried {tried}", flush=True)
    difference = found["wide"] - found["dense"]
    print(f"wide - dense: {spread(difference)}")
    assert difference.mean() > 0.3

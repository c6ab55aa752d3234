"""Tickets nearly as good as dense at home, linearly probed and visually reprogrammed on other digits.

Measured from MNIST (784-300-100-10, 630 steps) to 50 shots a class of the 8 x 8 digits, resized to 16 x 16 within a
frame (ticket at 3 % after three cycles, one seed): at home 95.1 dense and 94.2 %, probed 93.6 and 94.5, prompted 88.3
and 79.2. On the small digits, mirrored, to 6 x 6 (5 % at once, 2 seeds): at home 97.3 and 93.8, probed 92.8 and 89.9,
prompted 49.1 and 40.2. So a prompt tells networks apart that a probe does not. The dense network is not always better
calibrated: under the prompt from MNIST its error was 6.4 points against the ticket's 5.2, after temperature scaling 2.4
against 4.0; small and mirrored 8.2 against 10.1.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ellzero.data import sets
from ellzero.network.cycles import fitter, geometric_densities, iterative_magnitude_pruning
from ellzero.network.reprogramming import VisualPrompt, linear_probe, n_shot, reprogram, transfer_report
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.threads import threads_for
from tests.claims.network_bed import mnist_bed, small_bed, spread


def dense_and_ticket(bed, seed, density, cycles):
    """The dense network and the ticket of iterative magnitude pruning, rewound to the same first weights."""
    fit = fitter(losses.classification, bed.batches, steps=bed.steps, lr=0.1, clip=5.0)
    ticket, kept = bed.model(seed), []

    def noted(model, masks, own):
        fit(model, masks, own)
        if masks is None:
            kept.append(copy.deepcopy(model))

    start = copy.deepcopy(ticket.state_dict())
    for _ in iterative_magnitude_pruning(ticket, noted, geometric_densities(density, cycles), rewind=start, seed=seed):
        pass
    return kept[0], ticket


def moved(model, parts, side, inner, seed, epochs):
    """Accuracy and calibration error, plain and scaled, in percent: of the probe, then of the prompt."""

    def large(part):
        return F.interpolate(part[0], size=(side, side), mode="bilinear", antialias=True).flatten(1), part[1]

    train, validation, test = parts
    probe = linear_probe(model, large(train))
    prompt = VisualPrompt((1, side, side), (inner, inner), flatten=True)
    reports = [
        transfer_report(probe, large(test), large(validation)),
        transfer_report(reprogram(model, train, prompt, epochs=epochs, seed=seed), test, validation),
    ]
    return [100 * value for one in reports for value in (one.accuracy, one.calibration, one.scaled)]


def compared(bed, parts, side, inner, seeds, density, cycles, epochs):
    """By network, dense first: accuracy at home, and what ``moved`` gives; one row for each seed."""
    found = np.empty((2, seeds, 7))
    with threads_for(0):
        for seed in range(seeds):
            for place, model in enumerate(dense_and_ticket(bed, seed, density, cycles)):
                found[place, seed] = [bed.accuracy(model), *moved(model, parts, side, inner, seed, epochs)]
    names = ("at home", "probe", "ECE", "ECE scaled", "prompt", "ECE", "ECE scaled")
    for rows, word in zip(found, ("dense", "ticket")):
        print(f"{word}: " + ", ".join(f"{name} {spread(rows[:, i])}" for i, name in enumerate(names)))
    return found


def digit_parts(X, y, *ends):
    return [(X[a:b], y[a:b]) for a, b in pairwise((0, *ends))]


@pytest.mark.claim("S118")
def test_a_ticket_loses_more_under_a_prompt_than_at_home_on_small_digits():
    bed = replace(small_bed(), steps=200)
    X = torch.from_numpy(bed.X.reshape(-1, 1, 8, 8)).transpose(2, 3).contiguous()  # mirrored
    y = torch.from_numpy(bed.y)
    found = compared(bed, digit_parts(X, y, 900, 1300, 1797), 8, 6, 2, 0.05, 1, 20)
    lost = (found[0] - found[1]).mean(0)
    assert lost[4] > lost[0] + 2


@pytest.mark.slow
@pytest.mark.claim("S118")
def test_tickets_probed_and_prompted_from_mnist_to_other_digits():
    bed = replace(mnist_bed(), steps=630)
    table, order = sets.digits(), rng(0, "claims", "rows").permutation(1797)
    X = torch.from_numpy((table.X / 16)[order].astype(np.float32).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(table.y[order])
    train, validation, test = digit_parts(X, y, 900, 1200, 1797)
    shots = torch.from_numpy(n_shot(train[1].numpy(), 50))
    few = (train[0][shots], train[1][shots])
    found = compared(bed, (few, validation, test), 28, 16, 4, 0.03, 3, 40)
    lost = found[0] - found[1]
    worse = (found[1, :, 5] > found[0, :, 5]).sum()
    print(f"lost by the ticket: at home {spread(lost[:, 0])}, probed {spread(lost[:, 1])}, prompted "
          f"{spread(lost[:, 4])}; less calibrated under the prompt in {worse} of 4")  # fmt: skip
    assert lost[:, 4].mean() > lost[:, 0].mean()

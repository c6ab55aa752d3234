"""Masks before training: random ones as a start and as a rival of scores, by width, by sampling, by search.

Small: the 8 x 8 digits; large: 784-300-100-10 on 8,000 and 2,000 MNIST digits; see ``network_bed``. Equal steps, paired
seeds, learning rate 0.2.

Measured on the small digits: searched less random units -0.4 +- 0.6 (3 seeds); to 5 % from a 70 % sparse start 95.5
against 95.6 from dense (2 seeds); dense less random at a tenth of the weights 60.7 at width 16, 2.3 at 128; sampled
first weights 60.7 +- 7.6 against the largest 57.8 +- 4.8 (3 seeds).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ellzero.network.initial import magnitudes, masks_of, random_search
from ellzero.network.recipes import dense, gmp, static
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.allocations import ERK
from ellzero.training import losses
from tests.claims.network_bed import fit, mnist_bed, run, small_bed, spread


def source(bed, seed, density):
    """A random mask with the field's allocation."""
    model = bed.model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Sparsifier(model, static(density, seed=seed), optimizer=optimizer, steps=1).masks


def searched(bed, seeds, candidates, density):
    """Accuracies of the best of many random sets of units and of one, and how the losses before training compare."""
    found, lower = {"searched": [], "random": []}, []
    for seed in range(seeds):
        batch = next(bed.batches(seed, 256))
        best = random_search(bed.model(seed), losses.classification, batch, density, candidates=candidates, seed=seed)
        one = random_search(bed.model(seed), losses.classification, batch, density, candidates=1, seed=seed)
        lower.append((best.loss, float(np.median(best.losses))))
        for name, masks in (("searched", best.masks), ("random", one.masks)):
            found[name].append(run(bed, static(), seed, 0.1, masks=masks))
    found = {name: np.array(values) for name, values in found.items()}
    difference = found["searched"] - found["random"]
    print({name: spread(values) for name, values in found.items()}, "difference", spread(difference), lower)
    return difference, np.array(lower)


@pytest.mark.claim("S027")
def test_the_lowest_loss_before_training_is_no_better_after_on_small_digits():
    difference, lower = searched(small_bed(), 3, 100, 0.1)
    assert (lower[:, 0] < lower[:, 1] - 0.02).all()
    assert abs(difference.mean()) < 2


@pytest.mark.slow
@pytest.mark.claim("S027")
def test_the_lowest_loss_before_training_is_no_better_after():
    bed = dataclasses.replace(small_bed(), hidden=(256, 256))
    difference, lower = searched(bed, 10, 1000, 0.1)
    assert (lower[:, 0] < lower[:, 1] - 0.02).all()
    error = difference.std(ddof=1) / len(difference) ** 0.5
    assert abs(difference.mean()) < max(0.5, 2 * error)


def sources(bed, seeds, density, every):
    found = {"dense start": [], "random start": []}
    for seed in range(seeds):
        found["dense start"].append(run(bed, gmp(density, every=every), seed, 0.2))
        found["random start"].append(run(bed, gmp(density, every=every), seed, 0.2, within=source(bed, seed, 0.3)))
    print({name: spread(values) for name, values in found.items()})
    return np.array(found["random start"]) - np.array(found["dense start"])


@pytest.mark.claim("S034")
def test_pruning_may_start_from_a_random_mask_on_small_digits():
    assert sources(small_bed(), 2, 0.05, 10).mean() > -2.5


@pytest.mark.slow
@pytest.mark.claim("S034")
def test_pruning_to_98_percent_may_start_70_percent_sparse():
    difference = sources(mnist_bed(), 3, 0.02, 20)
    print("random - dense start:", spread(difference))
    assert difference.mean() > -1


def gaps(widths, seeds):
    """Dense less random at a tenth of the weights, by width."""
    found = {}
    for width in widths:
        bed = dataclasses.replace(small_bed(), hidden=(width, width))
        found[width] = np.array(
            [run(bed, dense(), seed, 0.1) - run(bed, static(0.1, seed=seed), seed, 0.1) for seed in range(seeds)]
        )
        print(width, spread(found[width]), flush=True)
    return {width: values.mean() for width, values in found.items()}


@pytest.mark.claim("S043")
def test_random_masks_lose_less_in_a_wider_network_on_small_digits():
    found = gaps((16, 128), 2)
    assert found[16] > found[128] + 3


@pytest.mark.slow
@pytest.mark.claim("S043")
def test_what_random_masks_lose_falls_with_width():
    found = gaps((32, 64, 128, 256, 512), 4)
    assert found[32] > 3
    assert found[512] < 1
    assert all(found[wide] < found[narrow] + 0.5 for narrow, wide in ((32, 64), (64, 128), (128, 256), (256, 512)))


def placed(bed, seeds, density, allocation=None):
    """Largest first weights against a sample that prefers large ones."""
    found = {"largest": [], "sampled": []}
    for seed in range(seeds):
        scores = magnitudes(bed.model(seed))
        for name, sample in (("largest", None), ("sampled", seed)):
            masks = masks_of(scores, density, sample=sample, allocation=allocation)
            found[name].append(bed.accuracy(fit(bed, static(), seed, 0.2, masks=masks)[0]))
    print({name: spread(values) for name, values in found.items()})
    return np.array(found["sampled"]) - np.array(found["largest"])


@pytest.mark.claim("S076")
def test_a_sample_of_large_first_weights_is_about_as_good_as_the_largest_on_small_digits():
    """With layers as the scores want them; with those of ERK a sample lost 7 points here."""
    assert placed(small_bed(), 3, 0.05).mean() > -1


@pytest.mark.slow
@pytest.mark.claim("S076")
def test_a_sample_of_large_first_weights_is_not_far_below_the_largest():
    """A sample should be no worse; it lost 0.5 points (4 seeds), and 3.6 where layers were not held equal."""
    difference = placed(mnist_bed(), 4, 0.02, ERK())
    print("sampled - largest:", spread(difference))
    assert difference.mean() > -2

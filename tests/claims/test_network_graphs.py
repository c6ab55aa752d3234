"""One threshold against one fraction for each layer, and what a graph's structure tells of a network's accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.data.grammar import reber
from ellzero.network.graph_priors import (
    graph_features,
    graph_net,
    next_symbol,
    predict_performance,
    recurrent,
    recurrent_mask,
    scale_free,
    set_accuracy,
    small_world,
)
from ellzero.network.recipes import dense, gmp, static
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng
from ellzero.training.loop import Batches, train
from ellzero.training.threads import threads_for
from tests.claims.network_bed import fit, mnist_bed, run, small_bed, spread


def gap(bed, density, seeds, every):
    """Accuracies by allocation, the learning rate chosen for each on a seed of its own."""
    found = {}
    for allocation in ("uniform", "global", "deviation"):
        tried = {lr: run(bed, gmp(density, allocation=allocation, every=every), 99, lr) for lr in (0.05, 0.1, 0.2)}
        lr = max(tried, key=tried.get)
        found[allocation] = np.array(
            [run(bed, gmp(density, allocation=allocation, every=every), seed, lr) for seed in seeds]
        )
        print(f"{allocation} (lr {lr}): {spread(found[allocation])}", flush=True)
    return found


@pytest.mark.claim("S046")
def test_one_threshold_beats_one_fraction_on_small_digits():
    bed, recipe = small_bed(), {"density": 0.03, "every": 10}
    found = {name: run(bed, gmp(allocation=name, **recipe), 0) for name in ("uniform", "global", "deviation")}
    print(found)
    assert found["global"] > found["uniform"] + 2


@pytest.mark.slow
@pytest.mark.claim("S046")
def test_one_threshold_is_not_behind_one_fraction_on_mnist():
    bed = mnist_bed()
    found = gap(bed, 0.02, range(3), 20)
    whole = np.array([run(bed, dense(), seed) for seed in range(3)])
    fifth = np.array([run(bed, gmp(0.2, every=20), seed) for seed in range(3)])
    print(f"dense {spread(whole)}, a fifth of the weights {spread(fifth)}")
    # The gap of two points and more is that of 8 x 8 digits; here gradual pruning closes it: 0.37 points were measured.
    assert (found["global"] - found["uniform"]).mean() > -0.5
    assert (fifth - whole).mean() > -1


def graphs(count, seed, least=12, most=36):
    """Half of each kind, of many sizes and densities."""
    draw = rng(seed, "claims", "graphs")
    found = []
    for number in range(count):
        nodes = int(draw.integers(least, most + 1))
        if number % 2:
            found.append(scale_free(nodes, int(draw.integers(1, nodes // 3)), seed=number))
        else:
            neighbors = 2 * int(draw.integers(1, nodes // 4))
            found.append(small_world(nodes, neighbors, float(draw.random()), seed=number))
    return found


def learns(graph, kind, strings, held_out, seed, steps, lr=1e-2):
    """Share of places whose legal symbols a recurrent net on this graph knows."""
    model, mask = recurrent(kind, hidden=len(graph), seed=seed), recurrent_mask(graph, kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    sparsifier = Sparsifier(model, static(), optimizer=optimizer, steps=steps, masks={"cell.weight_hh_l0": mask},
                            include="cell.weight_hh_l0")  # fmt: skip
    batches = Batches(torch.from_numpy(strings.symbols), batch_size=32, seed=seed)
    with threads_for(0):
        train(model, next_symbol, batches, optimizer=optimizer, steps=steps, parts={"sparsifier": sparsifier},
              clip=1.0, schedule=Cosine(1.0, 0.0))  # fmt: skip
    return set_accuracy(model, held_out)


@pytest.mark.claim("S046")
def test_a_net_on_a_graph_learns_small_digits():
    bed = small_bed()
    model = graph_net(small_world(100, 4, 0.5), 64, 10)
    right = bed.accuracy(fit(bed, dense(), 0, 0.05, model=model, steps=200)[0])
    print(f"100 nodes in {len(model.layers) + 1} layers, density {model.density:.3f}: {right:.2f}")
    assert right > 85


@pytest.mark.slow
@pytest.mark.claim("S046")
def test_structure_foretells_accuracy_on_the_embedded_grammar():
    made, strings, held_out = graphs(60, 0), reber(256, seed=0), reber(200, seed=1)
    features = [graph_features(graph) for graph in made]
    scores = np.array([learns(graph, "rnn", strings, held_out, number, 60) for number, graph in enumerate(made)])
    found = {kind: predict_performance(features, scores, kind=kind) for kind in ("forest", "boosting")}
    shuffled = predict_performance(features, rng(0, "claims", "shuffled").permutation(scores))
    best = sorted(found["forest"].importance.items(), key=lambda item: -item[1])[:4]
    print(f"accuracies {scores.min():.3f} to {scores.max():.3f}, held out R2: "
          + ", ".join(f"{kind} {one.r2:.3f}" for kind, one in found.items())
          + f"; of shuffled accuracies {shuffled.r2:.3f}; most important {best}")  # fmt: skip
    assert max(one.r2 for one in found.values()) > 0.4
    assert shuffled.r2 < 0.2

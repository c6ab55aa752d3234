"""Graphs, their layers, the networks on them and their features, against networkx and plain counting."""

import networkx as nx
import numpy as np
import pytest
import torch

from ellzero.data.grammar import SYMBOLS, reber
from ellzero.errors import InputError
from ellzero.network.graph_priors import (
    FEATURES,
    GATES,
    graph_features,
    graph_net,
    layered,
    next_symbol,
    predict_performance,
    recurrent,
    recurrent_mask,
    scale_free,
    set_accuracy,
    small_world,
)
from ellzero.network.recipes import static
from ellzero.network.sparsifier import Sparsifier
from ellzero.training import losses

GRAPHS = [small_world(20, 4, 0.0), small_world(30, 6, 0.5, seed=2), scale_free(25, 3, seed=1), scale_free(9, 1)]


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_symmetric_without_loops_and_repeat(graph):
    np.testing.assert_array_equal(graph, graph.T)
    assert not graph.diagonal().any()
    np.testing.assert_array_equal(small_world(30, 6, 0.5, seed=2), GRAPHS[1])
    assert GRAPHS[1].sum() == 30 * 6
    assert GRAPHS[0].sum(1).tolist() == [4] * 20
    assert GRAPHS[2].sum() // 2 == 22 * 3


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("shuffle", [None, 3])
def test_layers_are_longest_paths_of_an_acyclic_orientation(graph, shuffle):
    order = layered(graph, shuffle=shuffle)
    whole = nx.from_numpy_array(order.edges, create_using=nx.DiGraph)
    assert nx.is_directed_acyclic_graph(whole)
    if shuffle is None:
        np.testing.assert_array_equal(order.edges | order.edges.T, graph)
    assert nx.is_isomorphic(nx.from_numpy_array(graph), whole.to_undirected())
    for level, generation in enumerate(nx.topological_generations(whole)):
        assert sorted(generation) == order.layers[level].tolist()
    assert sum(mask.sum() for mask in order.masks()) == graph.sum() // 2
    assert order.sinks.tolist() == [node for node in whole if whole.out_degree(node) == 0]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_net_is_what_node_after_node_gives(graph):
    net, order = graph_net(graph, 5, 3, seed=1, shuffle=2), layered(graph, shuffle=2)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    place = {node: i for i, node in enumerate(np.concatenate(order.layers))}
    value = {}
    for i, node in enumerate(order.layers[0]):
        value[node] = (x @ net.first.weight[i] + net.first.bias[i]).relu()
    for layer, nodes in zip(net.layers, order.layers[1:]):
        for i, node in enumerate(nodes):
            total = layer.bias[i]
            for before in np.flatnonzero(order.edges[:, node]):
                total = total + value[before] * layer.weight[i, place[before]]
            value[node] = total.relu()
    sinks = sorted(order.sinks, key=place.get)
    expected = sum(value[n][:, None] * net.last.weight[:, i] for i, n in enumerate(sinks)) + net.last.bias
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_only_edges_learn():
    net = graph_net(GRAPHS[2], 5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        losses.classification(net, (x, x[:, :3].argmax(1))).backward()
        optimizer.step()
    weights = sum(int(layer.weight.count_nonzero()) for layer in net.layers)
    assert weights == GRAPHS[2].sum() // 2
    assert net.density == weights / sum(layer.weight.numel() for layer in net.layers)


@pytest.mark.parametrize("kind", GATES)
def test_recurrent_masks_hold_through_training(kind):
    graph = small_world(10, 2, 0.2)
    mask = recurrent_mask(graph, kind)
    assert mask.shape == (10 * GATES[kind], 10)
    assert int(mask.sum()) == GATES[kind] * (graph.sum() + 10)
    model, strings = recurrent(kind, 7, 10), reber(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, static(), optimizer=optimizer, steps=4, masks={"cell.weight_hh_l0": mask},
                            include="cell.weight_hh_l0")  # fmt: skip
    first = None
    for _ in range(4):
        optimizer.zero_grad()
        loss = next_symbol(model, torch.from_numpy(strings.symbols))
        loss.backward()
        optimizer.step()
        sparsifier.step()
        first = float(loss.detach()) if first is None else first
    assert float(next_symbol(model, torch.from_numpy(strings.symbols)).detach()) < first
    assert not model.cell.weight_hh_l0[~mask].any()
    with torch.no_grad():
        assert first == pytest.approx(np.log(7), abs=0.25)


def test_what_is_legal_counts_as_right():
    strings = reber(30)

    class Oracle(torch.nn.Module):
        def __init__(self, legal):
            super().__init__()
            self.legal = legal

        def forward(self, x):
            return torch.from_numpy(self.legal).float()

    assert set_accuracy(Oracle(strings.legal), strings) == 1
    assert set_accuracy(Oracle(~strings.legal), strings) == 0
    assert len(SYMBOLS) == strings.legal.shape[-1]


def test_features_are_those_of_known_graphs():
    ring = graph_features(small_world(10, 2, 0.0))
    assert tuple(ring) == FEATURES
    expected = {"nodes": 10, "edges": 10, "diameter": 5, "degree_mean": 2, "degree_variance": 0, "density": 10 / 45,
                "eccentricity_mean": 5, "path_length": 25 / 9, "closeness_mean": 9 / 25, "betweenness_variance": 0,
                "sources": 1, "sinks": 1, "layers": 10}  # fmt: skip
    assert {name: ring[name] for name in expected} == pytest.approx(expected)
    star = np.zeros((5, 5), dtype=bool)
    star[0, 1:] = star[1:, 0] = True
    found = graph_features(star)
    assert (found["layers"], found["sources"], found["sinks"], found["diameter"]) == (2, 1, 4, 2)
    assert found["betweenness_mean"] == pytest.approx(1 / 5)
    apart = np.zeros((4, 4), dtype=bool)
    apart[0, 1] = apart[1, 0] = True
    assert graph_features(apart)["diameter"] == 1


@pytest.mark.parametrize("kind", ["forest", "boosting"])
def test_a_score_that_is_a_feature_is_foretold_and_noise_is_not(kind):
    draw = np.random.default_rng(0)
    features = [{"a": float(a), "b": float(b)} for a, b in draw.random((80, 2))]
    known = predict_performance(features, [3 * row["a"] for row in features], kind=kind)
    assert known.r2 > 0.9
    assert known.importance["a"] > 0.8
    assert predict_performance(features, draw.random(80), kind=kind).r2 < 0.2
    twins = [row for row in features[:40] for _ in range(2)]
    noise = np.repeat(draw.random(40), 2)
    leaking = predict_performance(twins, noise, kind=kind).r2
    assert predict_performance(twins, noise, kind=kind, groups=np.repeat(np.arange(40), 2)).r2 < 0.2 < leaking


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: small_world(10, 3), "neighbors"), (lambda: small_world(2), "nodes"),
        (lambda: small_world(10, 4, 1.5), "rewire"), (lambda: scale_free(10, 10), "edges"),
        (lambda: layered(np.eye(3, dtype=bool)), "graph"), (lambda: layered(np.ones((2, 3), dtype=bool)), "graph"),
        (lambda: layered(np.zeros((3, 3))), "graph"), (lambda: graph_net(GRAPHS[0], 0, 2), "inputs"),
        (lambda: recurrent("elman"), "kind"), (lambda: recurrent_mask(GRAPHS[0], "elman"), "kind"),
        (lambda: predict_performance([{"a": 1.0}] * 3, [0.0] * 3), "folds"),
        (lambda: predict_performance([{"a": 1.0}] * 6, [0.0] * 5), "features"),
        (lambda: predict_performance([{"a": 1.0}] * 6, [np.nan] * 6), "scores"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, name):
    with pytest.raises(InputError, match=f"^{name}"):
        call()

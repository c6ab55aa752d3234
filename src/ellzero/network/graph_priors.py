"""Networks whose weights lie on the edges of a random graph, and what the graph's structure tells of their accuracy.

Lives here: small-world and scale-free graphs, their layers, ``GraphNet`` (feed-forward), masks of recurrent matrices
and a ``Recurrent`` net that takes them, structural features, and ``predict_performance``. Does not live here: pruning
by magnitude (``recipes``; its three thresholds are the allocations ``Global``, ``Uniform`` and ``Deviation``), the
grammar (``data.grammar``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_array, check_choice, check_integer, require
from ellzero.models.initial import empty, fill
from ellzero.parts.gradients import Masked
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training.masks import scale_by_fan_in

__all__ = ["FEATURES", "GATES", "GraphNet", "Layered", "Predicted", "Recurrent", "graph_features", "graph_net",
           "layered", "next_symbol", "predict_performance", "recurrent", "recurrent_mask", "scale_free",
           "set_accuracy", "small_world"]  # fmt: skip

Adjacency = np.ndarray
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
"""Blocks of rows of the recurrent matrix."""


# -- graphs


def _networkx() -> Any:
    return require("networkx", "torch", "graphs")


def _drawn(seed: int, *names: Any) -> int:
    return int(rng(seed, "graph", *names).integers(2**31))


@register(
    kind="generator", wing="network", id="S046", source="Watts and Strogatz (1998); arXiv:2107.12917", extra="torch",
    example=lambda: small_world(12, 4, 0.3),
)  # fmt: skip
def small_world(nodes: int, neighbors: int = 4, rewire: float = 0.3, *, seed: int = 0) -> Bool[Adjacency, "n n"]:
    """A ring, each node joined to its nearest ``neighbors``, each edge moved with probability ``rewire``.

    Returns the symmetric adjacency without loops.

    Raises
    ------
    InputError : fewer than 3 nodes, ``neighbors`` odd or not below them, ``rewire`` outside 0 to 1.
    """
    check_integer("nodes", nodes, at_least=3)
    check_integer("neighbors", neighbors, at_least=2, at_most=nodes - 1)
    check("rewire", rewire, at_least=0, at_most=1)
    if neighbors % 2:
        raise InputError(f"neighbors: got {neighbors}, want an even number, half on each side")
    nx = _networkx()
    graph = nx.watts_strogatz_graph(nodes, neighbors, rewire, seed=_drawn(seed, "small-world", nodes, neighbors))
    return nx.to_numpy_array(graph, nodelist=range(nodes), dtype=bool)


@register(
    kind="generator", wing="network", id="S046", source="Barabasi and Albert (1999); arXiv:2107.12917", extra="torch",
    example=lambda: scale_free(12, 2),
)  # fmt: skip
def scale_free(nodes: int, edges: int = 2, *, seed: int = 0) -> Bool[Adjacency, "n n"]:
    """Nodes come one after the other, each with ``edges`` edges to nodes in proportion to the edges that those have.

    Returns the symmetric adjacency without loops.

    Raises
    ------
    InputError : fewer than 3 nodes, or ``edges`` not between 1 and one less than the nodes.
    """
    check_integer("nodes", nodes, at_least=3)
    check_integer("edges", edges, at_least=1, at_most=nodes - 1)
    nx = _networkx()
    graph = nx.barabasi_albert_graph(nodes, edges, seed=_drawn(seed, "scale-free", nodes, edges))
    return nx.to_numpy_array(graph, nodelist=range(nodes), dtype=bool)


def _adjacency(graph: Any, symmetric: bool = True) -> np.ndarray:
    graph = np.asarray(graph)
    if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or graph.dtype != bool or not len(graph):
        raise InputError(f"graph: got {graph.dtype} of shape {graph.shape}, want a square boolean adjacency")
    if graph.diagonal().any() or (symmetric and not np.array_equal(graph, graph.T)):
        raise InputError("graph: has loops or edges of one direction, want a symmetric adjacency without loops")
    return graph


class Layered(NamedTuple):
    """A graph with its edges from lower to higher nodes, sorted by longest path from a source.

    ``layers[l]`` are the nodes whose longest path has ``l`` edges; ``edges[u, v]`` says that ``u`` feeds ``v``.
    """

    layers: list[Int[np.ndarray, " nodes"]]
    edges: Bool[np.ndarray, "n n"]

    @property
    def sinks(self) -> Int[np.ndarray, " nodes"]:
        """Nodes that feed none."""
        return np.flatnonzero(~self.edges.any(1))

    def masks(self) -> list[Bool[np.ndarray, "layer before"]]:
        """Of each layer but the first: which nodes of all layers before feed its nodes."""
        order = np.concatenate(self.layers)
        sizes = np.cumsum([len(layer) for layer in self.layers])
        return [self.edges[np.ix_(order[:size], layer)].T for size, layer in zip(sizes, self.layers[1:])]


def layered(graph: Bool[np.ndarray, "n n"], *, shuffle: int | None = None) -> Layered:
    """Orient each edge from the lower node to the higher, which leaves no cycle, and sort nodes into layers.

    Parameters
    ----------
    shuffle : number the nodes anew at random, from this seed. In its own order a ring has one source and is as deep as
        it has nodes, and a scale-free graph has one source too, through which all inputs would have to pass.

    Raises
    ------
    InputError : no symmetric boolean adjacency.
    """
    edges = _adjacency(graph)
    if shuffle is not None:
        order = rng(shuffle, "graph", "order").permutation(len(edges))
        edges = edges[np.ix_(order, order)]
    edges = np.triu(edges)
    depth = np.zeros(len(edges), dtype=np.int64)
    for node in range(len(edges)):  # all that feed it are lower
        before = np.flatnonzero(edges[:, node])
        depth[node] = depth[before].max() + 1 if len(before) else 0
    return Layered([np.flatnonzero(depth == level) for level in range(depth.max() + 1)], edges)


# -- networks


@register(
    kind="model", wing="network", id="S046", source="arXiv:2107.12917", extra="torch",
    example=lambda: graph_net(small_world(12), 6, 3),
)  # fmt: skip
class GraphNet(nn.Module):
    """A feed-forward net on a layered graph: a ReLU unit for each node, a weight for each edge.

    Inputs go to all nodes of the first layer (the sources), the outputs come from the sinks. A layer sees all layers
    before it, through a mask. Made by ``graph_net``.
    """

    def __init__(self, graph: Layered, inputs: int, outputs: int):
        super().__init__()
        order = np.concatenate(graph.layers)
        self.first = nn.Linear(inputs, len(graph.layers[0]))
        self.layers = nn.ModuleList([nn.Linear(mask.shape[1], mask.shape[0]) for mask in graph.masks()])
        self.last = nn.Linear(len(graph.sinks), outputs)
        self._sinks = np.flatnonzero(np.isin(order, graph.sinks))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch outputs"]:
        units = F.relu(self.first(x.flatten(1)))
        for i, layer in enumerate(self.layers):
            weight = Masked().apply(layer.weight, getattr(self, f"mask_{i}"))
            units = torch.cat([units, F.relu(F.linear(units, weight, layer.bias))], dim=1)
        return self.last(units[:, self.sinks])

    @property
    def density(self) -> float:
        """Edges over all places between the layers."""
        kept = sum(int(getattr(self, f"mask_{i}").sum()) for i in range(len(self.layers)))
        return kept / sum(layer.weight.numel() for layer in self.layers) if len(self.layers) else 1.0


def graph_net(
    graph: Bool[np.ndarray, "n n"], inputs: int, outputs: int, *, shuffle: int | None = 0, seed: int = 0
) -> GraphNet:
    """A ``GraphNet`` of an undirected graph, with fresh weights, each row's scaled by its own fan-in.

    Parameters
    ----------
    shuffle : of ``layered``.
    seed : of the weights.

    Raises
    ------
    InputError : no symmetric boolean adjacency, or sizes below 1.
    """
    check_integer("inputs", inputs, at_least=1)
    check_integer("outputs", outputs, at_least=1)
    order = layered(graph, shuffle=shuffle)
    net = fill(empty(lambda: GraphNet(order, inputs, outputs)), seed)
    net.register_buffer("sinks", torch.from_numpy(net._sinks))
    for i, (layer, mask) in enumerate(zip(net.layers, order.masks())):
        net.register_buffer(f"mask_{i}", torch.from_numpy(np.ascontiguousarray(mask)))
        scale_by_fan_in(layer.weight, getattr(net, f"mask_{i}"))
        with torch.no_grad():
            layer.weight.masked_fill_(~getattr(net, f"mask_{i}"), 0)
    return net


def recurrent_mask(graph: Bool[np.ndarray, "n n"], kind: str = "rnn") -> Bool[Tensor, "rows n"]:
    """The mask of a recurrent matrix: the edges in both directions and each unit's own, for every gate.

    Parameters
    ----------
    kind : ``"rnn"``, ``"gru"`` or ``"lstm"``; it goes to ``Sparsifier(..., masks={"cell.weight_hh_l0": mask})``.

    Raises
    ------
    InputError : no symmetric boolean adjacency, or another kind.
    """
    graph = _adjacency(graph) | np.eye(len(graph), dtype=bool)
    return torch.from_numpy(np.tile(graph, (GATES[check_choice("kind", kind, GATES)], 1)))


class Recurrent(nn.Module):
    """Symbols ``[batch, length]`` to logits of the next one; one recurrent layer. Made by ``recurrent``."""

    def __init__(self, kind: str, symbols: int, hidden: int):
        super().__init__()
        self.symbols = symbols
        self.cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](symbols, hidden, batch_first=True)
        self.head = nn.Linear(hidden, symbols)

    def forward(self, x: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length symbols"]:
        return self.head(self.cell(F.one_hot(x.clamp(min=0), self.symbols).float())[0])


def recurrent(kind: str = "gru", symbols: int = 7, hidden: int = 32, *, seed: int = 0) -> Recurrent:
    """A ``Recurrent`` net with fresh weights of variance ``1 / fan_in`` and biases of 0.

    Raises
    ------
    InputError : another kind, or sizes below 1.
    """
    check_choice("kind", kind, GATES)
    check_integer("symbols", symbols, at_least=1)
    check_integer("hidden", hidden, at_least=1)
    net = empty(lambda: Recurrent(kind, symbols, hidden))
    fill(net, seed, std=lambda name, weight: weight.shape[1] ** -0.5)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "bias" in name:
                value.zero_()
    return net


def next_symbol(model: nn.Module, batch: Int[Tensor, "batch length"]) -> Tensor:
    """A loss for the training loop: cross-entropy of each symbol after those before it; -1 fills up."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1)


def set_accuracy(model: nn.Module, strings: Any) -> float:
    """Share of the places of ``data.grammar.Strings`` where the likeliest symbols are exactly the legal ones.

    As many symbols are taken as are legal: mostly two. At a place where one symbol is legal it must be the likeliest.
    """
    symbols, legal = torch.from_numpy(strings.symbols), torch.from_numpy(strings.legal)
    with torch.inference_mode():
        ranks = model(symbols).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    count = legal.sum(-1)
    right = ((ranks < count[..., None]) == legal).all(-1)
    return float(right[count > 0].double().mean())


# -- structure


FEATURES = (
    "nodes", "edges", "layers", "diameter", "density", "degree_mean", "degree_variance", "eccentricity_mean",
    "eccentricity_variance", "path_length", "closeness_mean", "closeness_variance", "betweenness_mean",
    "betweenness_variance", "sources", "sinks",
)  # fmt: skip


def graph_features(graph: Bool[np.ndarray, "n n"], *, shuffle: int | None = None) -> dict[str, float]:
    """Structural properties of an undirected graph and of its layers, by the names of ``FEATURES``.

    ``shuffle`` is that of ``layered``. Distances (diameter, eccentricity, path length) are those within the largest
    connected part.

    Raises
    ------
    InputError : no symmetric boolean adjacency.
    """
    graph, nx, order = _adjacency(graph), _networkx(), layered(graph, shuffle=shuffle)
    whole = nx.from_numpy_array(graph)
    part = whole.subgraph(max(nx.connected_components(whole), key=len))
    degree = graph.sum(1)
    measured = {
        "degree": degree, "eccentricity": np.array(list(nx.eccentricity(part).values())),
        "closeness": np.array(list(nx.closeness_centrality(whole).values())),
        "betweenness": np.array(list(nx.betweenness_centrality(whole).values())),
    }  # fmt: skip
    found = {
        "nodes": len(graph), "edges": int(graph.sum()) // 2, "layers": len(order.layers),
        "diameter": int(measured["eccentricity"].max()), "density": nx.density(whole),
        "path_length": nx.average_shortest_path_length(part) if len(part) > 1 else 0.0,
        "sources": len(order.layers[0]), "sinks": len(order.sinks),
    }  # fmt: skip
    for name, values in measured.items():
        found[f"{name}_mean"], found[f"{name}_variance"] = values.mean(), values.var()
    return {name: float(found[name]) for name in FEATURES}


@dataclass(frozen=True, eq=False)
class Predicted:
    """How well scores are foretold: ``r2`` of predictions on folds that were held out, and the model of all rows."""

    r2: float
    held_out: Float[np.ndarray, " rows"]
    importance: Mapping[str, float]
    estimator: Any


@register(
    kind="metric", wing="network", id="S046", source="arXiv:2107.12917", extra="torch", name="predict_performance",
    claim="the structure of a recurrent mask foretells most of its accuracy",
)  # fmt: skip
def predict_performance(
    features: Sequence[Mapping[str, float]], scores: Any, *, kind: str = "forest", groups: Any = None, folds: int = 5,
    seed: int = 0,
) -> Predicted:  # fmt: skip
    """Regress the accuracy of networks on structural features; judged only on graphs that were not trained on.

    Parameters
    ----------
    features : one mapping a network, all with the same names.
    scores : ``[networks]``.
    kind : ``"forest"`` or ``"boosting"``.
    groups : ``[networks]``; those of one group (the same graph, trained anew) are held out together. None: each alone.
    folds : parts that are held out in turn.

    Raises
    ------
    InputError : fewer groups than folds, features of different names, or scores that are not finite.
    """
    check_choice("kind", kind, ("forest", "boosting"))
    scores = check_array("scores", np.asarray(scores, dtype=np.float64), ndim=1)
    names = list(features[0]) if len(features) else []
    if len(features) != len(scores) or any(list(row) != names for row in features) or not names:
        raise InputError(f"features: got {len(features)} for {len(scores)} scores, want one each, of the same names")
    table = check_array("features", np.array([[row[name] for name in names] for row in features], dtype=np.float64))
    groups = np.arange(len(scores)) if groups is None else np.asarray(groups)
    folds = check_integer("folds", folds, at_least=2, at_most=len(np.unique(groups)))
    state = int(rng(seed, "performance").integers(2**31))

    def made() -> Any:
        if kind == "forest":
            return RandomForestRegressor(100, random_state=state)
        return GradientBoostingRegressor(n_estimators=100, max_depth=3, learning_rate=0.1, random_state=state)

    held_out = np.empty(len(scores))
    for train, test in GroupKFold(folds, shuffle=True, random_state=state).split(table, scores, groups):
        held_out[test] = made().fit(table[train], scores[train]).predict(table[test])
    whole = made().fit(table, scores)
    importance = dict(zip(names, map(float, whole.feature_importances_)))
    return Predicted(float(r2_score(scores, held_out)), held_out, importance, whole)

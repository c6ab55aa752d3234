"""How quality falls as a collection grows: the experiment, and its picture.

Lives here: ``grow_index`` and the plots of it and of the formula. Does not live here: the formula (``theory``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_integer, require
from ellzero.retrieval.ids import as_ids
from ellzero.retrieval.measures import evaluate
from ellzero.retrieval.theory import false_positive_rate
from ellzero.rng import rng

__all__ = ["Growth", "false_positive_plot", "grow_index"]


@dataclass(frozen=True, eq=False)
class Growth:
    """Quality of systems on nested collections.

    Attributes
    ----------
    sizes : documents of each collection, those judged relevant among them in every one.
    values : for each system ``[seeds, sizes]``, means over queries. measure : of what.
    """

    sizes: list[int]
    values: dict[str, np.ndarray]
    measure: str

    def losses(self) -> dict[str, float]:
        """What share of its quality in the smallest collection a system has lost in the largest, mean over seeds."""
        return {name: float(np.mean(1 - found[:, -1] / found[:, 0])) for name, found in self.values.items()}

    def plot(self) -> Any:
        """A plotly figure: quality relative to the smallest collection, against the number of documents.

        Raises
        ------
        MissingExtraError : plotly is not installed (extra ``report``).
        """
        figure = _figure("documents in the collection", f"{self.measure}, relative to the smallest collection")
        for name, found in self.values.items():
            share = found / found[:, :1]
            figure.add_scatter(x=self.sizes, y=share.mean(0), name=name, mode="lines+markers",
                               error_y={"array": _error(share)})  # fmt: skip
        return figure


def _error(values: np.ndarray) -> np.ndarray:
    """Standard errors over seeds."""
    return values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros(values.shape[1])


def grow_index(
    systems: Mapping[str, tuple[Any, Any]],
    qrels: Mapping[str, Mapping[str, int]],
    query_ids: Sequence[Any],
    ids: Iterable[Any],
    sizes: Iterable[int],
    *,
    measure: str = "nDCG@10",
    depth: int = 100,
    seeds: Iterable[int] = (0,),
) -> Growth:
    """Measure systems on nested collections: the relevant documents, and more and more of the others.

    Reimers and Gurevych (2021), section 5: what is to be found stays, so quality falls only by false positives.

    Parameters
    ----------
    systems : by name ``(Q, X)``, queries and documents as rows, sparse or dense, scored by inner product.
    qrels : judgements; query_ids, ids : names of the rows.
    sizes : numbers of documents. The smallest is at least the number of documents judged relevant.
    depth : length of the lists that are measured. seeds : each draws another order of the others.

    Raises
    ------
    InputError : systems of other numbers of rows, sizes below the relevant documents or above the collection.
    """
    names = as_ids("ids", ids)
    text = np.array([str(name) for name in names])
    queries = [str(name) for name in query_ids]
    relevant = {doc for judged in qrels.values() for doc, value in judged.items() if value >= 1}
    there = np.array([name in relevant for name in text])
    sizes = sorted({check_integer("sizes", size, at_least=max(int(there.sum()), 1), at_most=len(names))
                    for size in sizes})  # fmt: skip
    seeds = list(seeds)
    if not sizes or not seeds:
        raise InputError("sizes: got none, want at least one size and one seed")
    order = np.argsort(names, kind="stable")  # by id, so that ties go as in every search here
    scores = {name: _scores(name, pair, len(queries), len(names))[:, order] for name, pair in systems.items()}
    text, there = text[order], there[order]
    values = {name: np.empty((len(seeds), len(sizes))) for name in systems}
    for row, seed in enumerate(seeds):
        others = rng(seed, "grow").permutation(np.flatnonzero(~there))
        for column, size in enumerate(sizes):
            held = np.sort(np.concatenate([np.flatnonzero(there), others[: size - int(there.sum())]]))
            for name, found in scores.items():
                values[name][row, column] = _quality(found[:, held], text[held], queries, qrels, measure, depth)
    return Growth(sizes, values, measure)


def _scores(name: str, pair: tuple[Any, Any], queries: int, documents: int) -> np.ndarray:
    Q, X = pair
    if Q.shape[0] != queries or X.shape[0] != documents or Q.shape[1] != X.shape[1]:
        raise InputError(
            f"systems[{name!r}]: got queries {Q.shape} and documents {X.shape}, want {queries} and {documents} rows "
            "of one width"
        )
    product = Q @ X.T
    return np.asarray(product.todense() if sparse.issparse(product) else product, np.float64)


def _quality(
    scores: np.ndarray, names: np.ndarray, queries: list[str], qrels: Mapping, measure: str, depth: int
) -> float:
    run = {}
    for query, row in zip(queries, scores):
        best = np.argsort(-row, kind="stable")[:depth]
        run[query] = dict(zip(names[best].tolist(), row[best].tolist()))
    judged = {query: qrels[query] for query in queries if query in qrels}
    return float(np.mean(list(evaluate(run, judged, [measure], ties="order")[measure].values())))


def false_positive_plot(
    similarity: float, dimensions: Iterable[float] = (16, 32, 64, 128), *, largest: float = 1e9
) -> Any:
    """A plotly figure of ``false_positive_rate`` against the number of documents: where each dimension falls behind.

    Raises
    ------
    MissingExtraError : plotly is not installed (extra ``report``).
    """
    figure = _figure("documents in the collection", f"a random one is nearer than cosine {similarity:g}")
    sizes = np.logspace(1, np.log10(largest), 120)
    for dimension in dimensions:
        figure.add_scatter(x=sizes, y=false_positive_rate(similarity, dimension, sizes), mode="lines",
                           name=f"{dimension:g} dimensions")  # fmt: skip
    return figure


def _figure(x: str, y: str) -> Any:
    figure = require("plotly.graph_objects", "report", "it draws the plot").Figure()
    figure.update_xaxes(type="log", title=x)
    figure.update_yaxes(title=y)
    figure.update_layout(template="plotly_white", height=520, width=860, margin={"l": 70, "r": 20, "t": 20, "b": 60})
    return figure

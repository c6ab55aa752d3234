"""Two rankings made one, and queries rewritten from what was found.

Lives here: ``interpolate`` with a weight chosen by cross-validation, ``reciprocal_rank_fusion``, ``VectorPRF`` and
``HybridSearcher``, which says at which stage lists are mixed. Does not live here: the searches themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.registry import register
from ellzero.retrieval.dense import first_by_score, unit_rows
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.measures import evaluate
from ellzero.rng import rng

__all__ = ["HybridSearcher", "TunedWeight", "VectorPRF", "interpolate", "reciprocal_rank_fusion", "tune_weight"]

NORMS = ("minmax", "raw")


def interpolate(first: Hits, second: Hits, weight: float = 0.5, *, norm: str = "minmax", k: int | None = None) -> Hits:
    """The union of two lists by ``weight * s_first + (1 - weight) * s_second``. Li et al. (2022), section 3.2.

    Parameters
    ----------
    first, second : hits of the same queries. A document that one list lacks has that list's lowest score in it.
    weight : of the first list, in [0, 1].
    norm : ``"minmax"``, scores of a query's list to [0, 1] (in a list of equal scores they are 1, and what it lacks has
        0); ``"raw"``, scores as they are.
    k : how many to keep; default all.

    Raises
    ------
    InputError : lists of different numbers of queries, or ids of different kinds.
    """
    check("weight", weight, at_least=0, at_most=1)
    k = _checked(k, norm)
    ids, scores = [], []
    for (names, first_scores), (others, second_scores) in zip(*_of_the_same_queries([first, second])):
        best, mixed = _mixed(*_aligned([names, others], [first_scores, second_scores], norm), weight, k)
        ids.append(best)
        scores.append(mixed)
    return Hits(ids, scores, "interpolated", f"{weight:g} of {first.algorithm} and the rest of {second.algorithm}",
                first.exact and second.exact, k=k or 0)  # fmt: skip


def _checked(k: int | None, norm: str = "minmax") -> int | None:
    check_choice("norm", norm, NORMS)
    return None if k is None else check_integer("k", k, at_least=1)


def _of_the_same_queries(lists: Sequence[Hits]) -> Sequence[Hits]:
    if len({len(hits) for hits in lists}) > 1:
        raise InputError(f"lists: got {[len(hits) for hits in lists]} queries, want the same queries in each")
    kinds = {ids.dtype.kind for hits in lists for ids in hits.ids if len(ids)}
    if len(kinds) > 1:
        raise InputError("lists: some have numbers as ids and some have text, want one kind")
    return lists


def _union(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """All ids ascending, and the places of each list's ids among them."""
    held = np.concatenate([ids for ids in lists if len(ids)] or [np.empty(0, np.int64)])
    if held.dtype.kind != "O":
        union, places = np.unique(held, return_inverse=True)
    else:  # texts sort and hash faster than NumPy compares them as objects
        listed = held.tolist()
        names = sorted(set(listed))
        number = dict(zip(names, range(len(names))))
        union = np.empty(len(names), dtype=object)
        union[:] = names
        places = np.array([number[name] for name in listed], dtype=np.int64)
    ends = np.cumsum([0, *(len(ids) for ids in lists)])
    return union, [places[low:high] for low, high in itertools.pairwise(ends)]


def _aligned(
    lists: Sequence[np.ndarray], scores: Sequence[np.ndarray], norm: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The union of ids, and each list's normalised scores over it."""
    union, places = _union(lists)
    found = []
    for at, values in zip(places, scores):
        values, lowest = _normalised(np.asarray(values, np.float64), norm)
        column = np.full(len(union), lowest)
        column[at] = values
        found.append(column)
    return union, found


def _normalised(values: np.ndarray, norm: str) -> tuple[np.ndarray, float]:
    """Scores, and what a document outside of the list has."""
    if not len(values):
        return values, 0.0
    low, high = float(values.min()), float(values.max())
    if norm == "raw":
        return values, low
    return ((values - low) / (high - low), 0.0) if high > low else (np.ones(len(values)), 0.0)


def reciprocal_rank_fusion(*lists: Hits, constant: float = 60.0, k: int | None = None) -> Hits:
    """The union of lists by ``sum 1 / (constant + rank)``, ranks from 1. Cormack, Clarke and Buettcher (2009).

    It asks for no scale of scores and no weight. A document that a list lacks gets nothing from it.

    Raises
    ------
    InputError : no lists, or lists of different queries.
    """
    check("constant", constant, at_least=0, below=np.inf)
    if not lists:
        raise InputError("lists: got none, want at least one")
    k = _checked(k)
    ids, scores = [], []
    for parts in zip(*_of_the_same_queries(lists)):
        union, places = _union([names for names, _ in parts])
        total = np.zeros(len(union))
        for at in places:
            total[at] += 1 / (constant + 1 + np.arange(len(at)))
        best = first_by_score(total, k or len(total))
        ids.append(union[best])
        scores.append(total[best])
    return Hits(ids, scores, "fused", f"reciprocal ranks of {len(lists)} lists", all(hits.exact for hits in lists),
                k=k or 0)  # fmt: skip


@dataclass(frozen=True)
class TunedWeight:
    """What ``tune_weight`` found.

    Attributes
    ----------
    weight : the best for all queries together, for queries to come.
    by_query : for each query the weight that the other folds chose; judge by these.
    hits : the lists by those weights. values : the measure of each query in them.
    curve : ``{weight: mean of the measure}`` over all queries.
    """

    weight: float
    by_query: np.ndarray
    hits: Hits
    values: np.ndarray
    curve: dict[float, float]


def tune_weight(
    first: Hits,
    second: Hits,
    query_ids: Sequence[Any],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    measure: str = "nDCG@10",
    weights: Iterable[float] = tuple(step / 20 for step in range(21)),
    norm: str = "minmax",
    cautious: bool = True,
    folds: int = 5,
    k: int | None = None,
    seed: int = 0,
) -> TunedWeight:
    """The weight of ``interpolate`` by cross-validation over queries: no query's own judgements choose its weight.

    Parameters
    ----------
    query_ids : names of the queries, as in ``qrels``; queries without judgements take part in nothing.
    weights : candidates; of equally good ones the nearest to 1/2 is taken.
    cautious : mix only where the gain over the better list alone is more than two standard errors over queries:
        with few queries the best of many weights is mostly luck.
    folds : parts of the queries, drawn by ``seed``; at most as many as queries are judged.

    Raises
    ------
    InputError : fewer than two judged queries, or more folds than those.
    """
    k = _checked(k, norm)
    names = [str(name) for name in query_ids]
    weights = sorted({float(check("weights", weight, at_least=0, at_most=1)) for weight in weights})
    if not weights or not len(names) == len(first) == len(second):
        raise InputError(f"query_ids: got {len(names)} for {len(first)} and {len(second)} lists, want one each, and "
                         f"at least one weight (got {len(weights)})")  # fmt: skip
    judged = np.array([q for q, name in enumerate(names) if name in qrels], dtype=np.int64)
    folds = check_integer("folds", folds, at_least=2)
    if len(judged) < folds:
        raise InputError(f"qrels: judge {len(judged)} of the queries, want at least {folds}, one for each fold")
    aligned = [_aligned([one[0], other[0]], [one[1], other[1]], norm)
               for one, other in zip(*_of_the_same_queries([first, second]))]  # fmt: skip
    values = np.array([_values(aligned, weight, names, qrels, measure, judged) for weight in weights])
    part = rng(seed, "folds").permutation(len(judged)) % folds
    chosen = np.empty(len(judged), np.int64)
    for fold in range(folds):
        chosen[part == fold] = _best(values[:, part != fold], weights, cautious)
    final = _best(values, weights, cautious)
    by_query = np.full(len(names), weights[final])
    by_query[judged] = np.array(weights)[chosen]
    best = [_mixed(*each, weight, k) for each, weight in zip(aligned, by_query)]
    hits = Hits([ids for ids, _ in best], [scores for _, scores in best], "interpolated",
                f"weights by {folds} folds of queries", first.exact and second.exact, k=k or 0)  # fmt: skip
    curve = {weight: float(mean) for weight, mean in zip(weights, values.mean(1))}
    return TunedWeight(weights[final], by_query, hits, values[chosen, np.arange(len(judged))], curve)


def _mixed(union: np.ndarray, columns: list[np.ndarray], weight: float, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the k best of two aligned lists; all of them without k."""
    mixed = weight * columns[0] + (1 - weight) * columns[1]
    best = first_by_score(mixed, k or len(mixed))
    return union[best], mixed[best]


def _values(
    aligned: list, weight: float, names: list[str], qrels: Mapping, measure: str, judged: np.ndarray
) -> list[float]:
    """The measure of each judged query at a weight; only as much of a list as the measure looks at is put in order."""
    cut = int(measure.partition("@")[2] or 0) or None
    run = {}
    for q in judged:
        ids, scores = _mixed(*aligned[q], weight, cut)
        run[names[q]] = dict(zip(map(str, ids.tolist()), scores.tolist()))
    found = evaluate(run, {name: qrels[name] for name in run}, [measure], ties="order")[measure]
    return [found[name] for name in run]


def _best(values: np.ndarray, weights: Sequence[float], cautious: bool) -> int:
    """The place of the weight to take, from the measure ``[weights, queries]``."""
    means = values.mean(1)
    best = min(range(len(weights)), key=lambda place: (-means[place], abs(weights[place] - 0.5)))
    alone = max(
        (place for place in (0, len(weights) - 1) if weights[place] in (0, 1)), key=lambda p: means[p], default=best
    )
    gain = values[best] - values[alone]
    if cautious and best != alone and gain.mean() <= 2 * gain.std(ddof=1) / len(gain) ** 0.5:
        return alone
    return best


@register(
    id="S061", kind="method", wing="retrieval", source="arXiv:2205.00235",
    claim="mixing with a sparse list before feedback and after beats feedback alone",
    example=lambda: VectorPRF(),
)  # fmt: skip
@dataclass(frozen=True)
class VectorPRF:
    """A dense query moved towards the documents found first. Li et al. (2021); Rocchio (1971).

    ``"rocchio"``: ``alpha e_q + beta mean(e_d)`` over the first ``depth`` documents; ``"average"``: the mean of the
    query and those documents. Of a query without hits nothing changes.

    Parameters
    ----------
    depth : documents taken for relevant. alpha, beta : weights of ``"rocchio"``.
    normalize : scale the result to length 1, for indexes of rows that have it; the order of hits is the same.
    """

    method: str = "rocchio"
    depth: int = 5
    alpha: float = 0.4
    beta: float = 0.6
    normalize: bool = False

    def __post_init__(self):
        check_choice("method", self.method, ("rocchio", "average"))
        check_integer("depth", self.depth, at_least=1)
        check("alpha", self.alpha, at_least=0, below=np.inf)
        check("beta", self.beta, at_least=0, below=np.inf)

    def __call__(self, Q: Any, hits: Hits, vectors: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Rewritten queries, float32 ``[q, d]``.

        Parameters
        ----------
        Q : queries ``[q, d]``. hits : of the same queries.
        vectors : documents' vectors by their ids, as ``DenseIndex.vectors`` gives them.
        """
        Q = check_array("Q", np.asarray(Q), ndim=2, dtypes="f", allow_empty=True)
        if len(Q) != len(hits):
            raise InputError(f"hits: got {len(hits)} lists for {len(Q)} queries, want one each")
        made = np.array(Q, np.float64)
        for q, (ids, _) in enumerate(hits):
            if not len(ids):
                continue
            found = vectors(ids[: self.depth]).astype(np.float64)
            if self.method == "average":
                made[q] = (made[q] + found.sum(0)) / (1 + len(found))
            else:
                made[q] = self.alpha * made[q] + self.beta * found.mean(0)
        return (unit_rows(made) if self.normalize else made).astype(np.float32)


class HybridSearcher:
    """A sparse and a dense search joined, before feedback, after it, or both. Li et al. (2022).

    ========= =================================================== ===================================
    when      feedback documents come from                        the answer is
    ========= =================================================== ===================================
    None      the dense list                                      the second dense list
    "pre"     the dense list interpolated with the sparse one     the second dense list
    "post"    the dense list                                      the second dense list, interpolated
    "both"    the interpolated list                               the second dense list, interpolated
    ========= =================================================== ===================================

    Without feedback (``feedback=None``) there is one dense list, interpolated unless ``when`` is None.

    Parameters
    ----------
    sparse, dense : an ``ImpactIndex`` and a ``DenseIndex`` over the same ids (or anything with their ``search``, and
        ``vectors`` of the dense one).
    weight : of the sparse list; a pair for before and after feedback. norm : as ``interpolate``.
    depth : length of the lists that are mixed.
    """

    def __init__(
        self, sparse: Any, dense: Any, *, when: str | None = "both", feedback: VectorPRF | None = VectorPRF(),
        weight: float | tuple[float, float] = 0.5, norm: str = "minmax", depth: int = 1000,
    ):  # fmt: skip
        self.sparse, self.dense, self.feedback = sparse, dense, feedback
        self.when = check_choice("when", when, (None, "pre", "post", "both"))
        pair = weight if isinstance(weight, tuple) else (weight, weight)
        if len(pair) != 2:
            raise InputError(f"weight: got {len(pair)} numbers, want one, or two for before and after feedback")
        self.weight = tuple(check("weight", each, at_least=0, at_most=1) for each in pair)
        self.norm = check_choice("norm", norm, NORMS)
        self.depth = check_integer("depth", depth, at_least=1)

    def search(self, sparse_queries: Any, dense_queries: Any, k: int = 10) -> Hits:
        """The k best documents of each query, given in both forms.

        Parameters
        ----------
        sparse_queries : as ``ImpactIndex.search`` takes them. dense_queries : ``[queries, d]``.
        """
        k = check_integer("k", k, at_least=1)
        depth = max(k, self.depth)
        found = self.dense.search(dense_queries, depth)
        partner = None if self.when is None else self.sparse.search(sparse_queries, depth)
        if self.feedback is None:
            return _first(found if partner is None else self._mixed(partner, found, 0), k)
        told = self._mixed(partner, found, 0) if self.when in ("pre", "both") else found
        again = self.dense.search(self.feedback(dense_queries, told, self.dense.vectors), depth)
        return _first(self._mixed(partner, again, 1) if self.when in ("post", "both") else again, k)

    def _mixed(self, partner: Hits, found: Hits, stage: int) -> Hits:
        return interpolate(partner, found, self.weight[stage], norm=self.norm)


def _first(hits: Hits, k: int) -> Hits:
    return Hits([ids[:k] for ids in hits.ids], [scores[:k] for scores in hits.scores], hits.algorithm, hits.why,
                hits.exact, k=k)  # fmt: skip

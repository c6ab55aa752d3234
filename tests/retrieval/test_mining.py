"""Negatives are what retrievers rank high and nobody takes for an answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.retrieval.mining import mine_negatives

NAMES = [f"d{i}" for i in range(8)]


def index(seed):
    X = np.random.default_rng(seed).integers(1, 99, (8, 3)).astype(float)
    return ImpactIndex.build(sparse.csr_array(X), NAMES), X


def ranking(X, q):
    return [NAMES[i] for i in np.lexsort((NAMES, -(X @ q)))]


def test_the_best_documents_but_for_the_known_answers():
    held, X = index(0)
    Q = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 5.0]])
    first, second = ranking(X, Q[0]), ranking(X, Q[1])
    qrels = {"a": {first[1]: 1, first[2]: 0}, "b": {second[0]: 2}}
    found = mine_negatives(held, sparse.csr_array(Q), qrels, depth=4)
    assert found["a"] == [first[0], *first[2:4]]
    assert found["b"] == second[1:4]
    assert (found.known, found.doubtful, len(found), list(found)) == (2, 0, 2, ["a", "b"])
    kept = mine_negatives(held, sparse.csr_array(Q), qrels, depth=4, exclude_positives=False)
    assert kept["a"] == first[:4]
    assert mine_negatives(held, sparse.csr_array(Q), qrels, depth=2, skip=3)["b"] == second[3:5]


def test_a_teacher_drops_what_scores_near_the_weakest_positive():
    held, X = index(1)
    Q = np.array([[1.0, 1.0, 1.0]])
    order = ranking(X, Q[0])
    taught = dict(zip(order, (1.0, 0.9, 0.5, 0.8, 0.1, 0.6, 0.2, 0.3)))
    qrels = {"q": {order[0]: 1, order[3]: 1}}

    def teacher(query, documents):
        assert query == "q"
        return [taught[d] for d in documents]

    found = mine_negatives(held, sparse.csr_array(Q), qrels, depth=8, teacher=teacher, below=0.7)
    assert found["q"] == [d for d in order if taught[d] <= 0.7 * 0.8 and d not in qrels["q"]]
    assert (found.known, found.doubtful) == (2, 2)
    without = mine_negatives(held, sparse.csr_array(Q), {}, depth=8, query_ids=["q"], teacher=teacher)
    assert without["q"] == order


def test_several_retrievers_take_turns():
    (one, X), (two, Y) = index(2), index(3)
    Q = np.array([[1.0, 0.0, 2.0]])
    found = mine_negatives([one, two], [sparse.csr_array(Q)] * 2, {}, depth=3, query_ids=["q"])["q"]
    turns = [d for pair in zip(ranking(X, Q[0])[:3], ranking(Y, Q[0])[:3]) for d in pair]
    assert found == list(dict.fromkeys(turns))


def test_draws_repeat_and_differ_by_seed():
    held, _ = index(0)
    found = mine_negatives(held, sparse.csr_array(np.ones((1, 3))), {}, depth=8, query_ids=["q"])
    assert found.draw("q", 3, seed=1) == found.draw("q", 3, seed=1)
    assert len({tuple(found.draw("q", 3, seed=s)) for s in range(20)}) > 1
    assert found.draw("q", 99) == found["q"]


def test_refusals():
    held, _ = index(0)
    Q = sparse.csr_array(np.ones((2, 3)))
    for build, words in (
        (lambda: mine_negatives(held, Q, {"a": {}}), "query_ids: got 1, want one for each of the 2"),
        (lambda: mine_negatives([held, held], [Q], {"a": {}, "b": {}}), "queries: got 1 sets for 2 indexes"),
        (lambda: mine_negatives(held, Q, {"a": {}, "b": {}}, 0), "depth: got 0"),
        (lambda: mine_negatives(held, Q, {"a": {}, "b": {}}, below=0), "below: got 0"),
    ):
        with pytest.raises(InputError, match=words):
            build()

"""Graph bisection: a permutation that lowers the cost of gaps, and finds topics that a shuffle hid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.retrieval.ordering import _cost, _gains, graph_bisection


def topical(documents=1024, topics=16, seed=0):
    """Documents of a topic stand together; nine in ten of their terms are the topic's."""
    draw = np.random.default_rng(seed)
    topic = np.arange(documents) * topics // documents
    columns = np.where(draw.random((documents, 12)) < 0.9, 40 * topic[:, None] + draw.integers(0, 40, (documents, 12)),
                       draw.integers(0, 40 * topics, (documents, 12)))  # fmt: skip
    rows = np.repeat(np.arange(documents), 12)
    X = sparse.csr_array((draw.integers(1, 256, rows.size), (rows, columns.ravel())), shape=(documents, 40 * topics))
    X.data = np.minimum(X.data, 255)
    return X, topic


@given(st.integers(1, 90), st.integers(0, 12), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=30)
def test_it_is_a_permutation_whatever_the_matrix(documents, terms, leaf, seed):
    X = (np.random.default_rng(seed).random((documents, max(terms, 1))) < 0.3) * 1.0
    X[:, terms:] = 0
    order = graph_bisection(X, leaf=leaf)
    assert np.array_equal(np.sort(order), np.arange(documents))
    assert np.array_equal(order, graph_bisection(X, leaf=leaf))


def test_a_gain_is_what_the_cost_falls_by():
    X = sparse.csr_array((np.random.default_rng(1).random((30, 12)) < 0.4).astype(np.float32))
    right = np.arange(30) >= 14

    def cost(side):
        left, other = (X[np.flatnonzero(rows)].sum(axis=0) for rows in (~side, side))
        return float((_cost(left, 14) + _cost(other, 16)).sum())  # the sizes of the halves, which pairs keep

    gains = _gains(X, right, 14)
    for row in (0, 13, 14, 29):
        moved = right.copy()
        moved[row] = ~moved[row]
        assert gains[row] == pytest.approx(cost(right) - cost(moved), abs=1e-3)


def test_topics_that_a_shuffle_hid_are_found():
    X, topic = topical()
    shuffle = np.random.default_rng(3).permutation(len(topic))
    order = shuffle[graph_bisection(sparse.csr_array(X[shuffle]), leaf=64)]
    whole = [np.bincount(topic[part]).max() for part in order.reshape(-1, 64)]
    assert np.mean(whole) > 0.9 * 64
    assert np.mean([np.bincount(topic[part]).max() for part in shuffle.reshape(-1, 64)]) < 0.3 * 64


def test_an_index_in_this_order_leaves_more_out_and_finds_the_same():
    X, topic = topical(2048)
    shuffle = np.random.default_rng(3).permutation(len(topic))
    X = sparse.csr_array(X[shuffle])
    Q = sparse.csr_array(X[:20] * 1.0)
    plain, ordered = (ImpactIndex.build(X, order=order, block_size=1) for order in ("none", "bp"))
    found = [index.search(Q, 5, algorithm="bmp") for index in (plain, ordered)]
    for (ids, scores), (want_ids, want) in zip(found[1], plain.search(Q, 5, algorithm="exhaustive")):
        assert np.array_equal(ids, want_ids)
        assert np.array_equal(scores, want)
    print([hits.windows_scored for hits in found])
    assert found[1].windows_scored < found[0].windows_scored / 2


def test_bad_input_is_named():
    with pytest.raises(InputError, match="leaf"):
        graph_bisection(np.eye(3), leaf=0)
    with pytest.raises(InputError, match="iterations"):
        graph_bisection(np.eye(3), iterations=0)
    with pytest.raises(InputError, match="order"):
        ImpactIndex.build(np.eye(3), order="by size")

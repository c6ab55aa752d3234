"""Slices against a loop, the two inequalities, and the exact search against all scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval.densify import Densified, DensifiedIndex, densify, gip_scores


def slow(X, M, strategy):
    n, V = X.shape
    N = -(-V // M)
    values, positions = np.zeros((n, M), np.float32), np.zeros((n, M), int)
    for row in range(n):
        for column in range(V):
            m, place = (column % M, column // M) if strategy == "stride" else (column // N, column % N)
            if np.float32(X[row, column]) > values[row, m]:
                values[row, m], positions[row, m] = X[row, column], place
    return values, positions


def rows(draw, n, V, levels=4):
    return draw.integers(0, levels, (n, V)) * (draw.random((n, V)) < 0.4)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    V=st.integers(1, 40),
    data=st.data(),
    strategy=st.sampled_from(["stride", "contiguous"]),
)
def test_slices_are_those_of_a_loop(seed, V, data, strategy):
    M = data.draw(st.integers(1, V))
    X = rows(np.random.default_rng(seed), 5, V).astype(np.float64) / 3
    found = densify(sparse.csr_array(X), M, strategy=strategy)
    values, positions = slow(X, M, strategy)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.positions, positions)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 30), k=st.integers(1, 40), mixed=st.booleans(),
       threshold=st.sampled_from([0.0, 1.5, 9.0]))  # fmt: skip
def test_search_is_exact_and_the_inequalities_hold(seed, M, k, mixed, threshold):
    draw = np.random.default_rng(seed)
    X, Q = rows(draw, 30, 30), rows(draw, 3, 30)
    D, asked = densify(X, M), densify(Q, M)
    vectors, queries = draw.standard_normal((30, 4)).astype(np.float32), draw.standard_normal((3, 4)).astype(np.float32)
    gated = gip_scores(asked, D)
    gate = asked.positions[:, None] == D.positions[None]
    np.testing.assert_array_equal(gated, (gate * asked.values[:, None] * D.values[None]).sum(2))
    assert (gated <= Q @ X.T).all()
    assert (gated <= asked.values @ D.values.T).all()
    ids = draw.permutation(30)
    index = DensifiedIndex(D, ids, dense=vectors if mixed else None, weight=2.0)
    given_ = {"dense": queries} if mixed else {}
    scores = index.scores(asked, **given_)
    if mixed:
        np.testing.assert_allclose(scores, gated + 2 * queries @ vectors.T, atol=1e-4)
    found = index.search(asked, k, **given_)
    assert found.exact
    few = index.search(asked, k, candidates=max(k, 6), threshold=threshold, **given_)
    if few.exact:
        assert [ids.tolist() for ids in few.ids] == [ids.tolist() for ids in found.ids]
    for q in range(3):
        order = np.lexsort((ids, -scores[q]))[:k]
        order = order[scores[q, order] > 0] if not mixed else order
        assert found[q][0].tolist() == ids[order].tolist()
        np.testing.assert_array_equal(found[q][1], scores[q, order])


def test_a_cut_list_of_candidates_says_whether_it_is_exact():
    draw = np.random.default_rng(0)
    X, Q = rows(draw, 400, 64), rows(draw, 6, 64)
    index, asked = DensifiedIndex(densify(X, 8)), densify(Q, 8)
    exact, few = index.search(asked, 10), index.search(asked, 10, candidates=12)
    assert exact.exact
    assert not few.exact
    assert few.recall_of(exact) < 1
    assert index.search(asked, 10, candidates=400).exact
    loose = DensifiedIndex(densify(X, 60)), densify(Q, 60)  # hardly anything is gated, so bounds are nearly tight
    exact = loose[0].search(loose[1], 10)
    proven = [loose[0].search(densify(Q[[q]], 60), 10, candidates=100) for q in range(6)]
    assert any(one.exact for one in proven)
    for q, one in enumerate(proven):
        assert not one.exact or one.ids[0].tolist() == exact.ids[q].tolist()


def test_columns_left_out_and_bad_input():
    X = np.arange(12.0)[None]
    np.testing.assert_array_equal(densify(X, 5, drop=[0, 11]).values, densify(X[:, 1:11], 5).values)
    assert densify(np.ones((1, 600)), 2).positions.dtype == np.uint16
    assert densify(np.ones((1, 512)), 2).positions.dtype == np.uint8
    for bad, name in (
        ({"slices": 13}, "slices"),
        ({"slices": 0}, "slices"),
        ({"strategy": "hash"}, "strategy"),
        ({"drop": [12]}, "drop"),
    ):
        with pytest.raises(InputError, match=name):
            densify(X, **{"slices": 3, **bad})
    with pytest.raises(InputError, match="is negative"):
        densify(-X, 3)
    index = DensifiedIndex(densify(X, 3))
    with pytest.raises(InputError, match="Q: was cut by 12 columns, 4 slices"):
        index.search(densify(X, 4))
    with pytest.raises(InputError, match="dense: got vectors"):
        index.search(densify(X, 3), dense=np.ones((1, 2)))
    with pytest.raises(InputError, match="Q: got ndarray"):
        index.search(X)
    empty = densify(np.zeros((0, 12)), 3)
    assert isinstance(empty, Densified)
    assert len(DensifiedIndex(empty).search(densify(X, 3), 2)[0][0]) == 0

"""Mixing lists against a plain dictionary, feedback by hand, and the stages of a hybrid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.retrieval.dense import DenseIndex
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.hybrid import HybridSearcher, VectorPRF, interpolate, reciprocal_rank_fusion, tune_weight


def hits(*lists):
    """Of dictionaries."""
    ids, scores = [], []
    for scored in lists:
        ranked = sorted(scored, key=lambda name: (-scored[name], name))
        names = np.empty(len(ranked), object if any(isinstance(name, str) for name in ranked) else np.int64)
        names[:] = ranked
        ids.append(names)
        scores.append(np.array([scored[name] for name in ranked], np.float64))
    return Hits(ids, scores, "given", "")


scored = st.dictionaries(st.integers(0, 12), st.sampled_from([0.5, 1.0, 1.5, 4.0]), max_size=8)


@settings(max_examples=100)
@given(
    first=scored, second=scored, weight=st.sampled_from([0.0, 0.25, 0.5, 1.0]), norm=st.sampled_from(["minmax", "raw"])
)
def test_interpolation_is_what_a_dictionary_gives(first, second, weight, norm):
    def column(found, name):
        low, high = min(found.values(), default=0.0), max(found.values(), default=0.0)
        if norm == "raw":
            return found.get(name, low)
        if name not in found:
            return 0.0
        return (found[name] - low) / (high - low) if high > low else 1.0

    wanted = {name: weight * column(first, name) + (1 - weight) * column(second, name) for name in {*first, *second}}
    ranked = sorted(wanted, key=lambda name: (-wanted[name], name))
    ids, scores = interpolate(hits(first), hits(second), weight, norm=norm)[0]
    assert ids.tolist() == ranked
    np.testing.assert_allclose(scores, [wanted[name] for name in ranked], rtol=1e-12)
    assert interpolate(hits(first), hits(second), weight, norm=norm, k=3)[0][0].tolist() == ranked[:3]


@settings(max_examples=60)
@given(lists=st.lists(scored, min_size=1, max_size=4))
def test_fusion_is_the_sum_of_reciprocal_ranks(lists):
    total = {}
    for found in lists:
        for rank, name in enumerate(sorted(found, key=lambda name: (-found[name], name)), 1):
            total[name] = total.get(name, 0) + 1 / (60 + rank)
    ids, scores = reciprocal_rank_fusion(*(hits(found) for found in lists))[0]
    for name, score in zip(ids.tolist(), scores):
        assert score == pytest.approx(total.pop(name), rel=1e-12)
    assert not total
    assert (np.diff(scores) <= 0).all()


def test_bad_lists_are_refused():
    one, two = hits({1: 1.0}), hits({1: 1.0}, {2: 1.0})
    with pytest.raises(InputError, match="the same queries"):
        interpolate(one, two)
    with pytest.raises(InputError, match="one kind"):
        reciprocal_rank_fusion(one, hits({"a": 1.0}))
    with pytest.raises(InputError, match="lists: got none"):
        reciprocal_rank_fusion()
    for bad in ({"weight": 1.1}, {"norm": "zscore"}, {"k": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            interpolate(one, one, **bad)


def test_feedback_by_hand():
    vectors = DenseIndex(np.array([[1.0, 0], [0, 1], [0, 3]])).vectors
    found = Hits([np.array([1, 2, 0]), np.empty(0, np.int64)], [np.zeros(3), np.zeros(0)], "", "")
    Q = np.array([[1.0, 0], [5, 5]])
    np.testing.assert_allclose(VectorPRF(depth=2)(Q, found, vectors), [[0.4, 0.6 * 2], [5, 5]], rtol=1e-6)
    np.testing.assert_allclose(VectorPRF("average", 2)(Q, found, vectors), [[1 / 3, 4 / 3], [5, 5]], rtol=1e-6)
    unit = VectorPRF(depth=9, normalize=True)(Q, found, vectors)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    for bad in ({"method": "x"}, {"depth": 0}, {"alpha": -1.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            VectorPRF(**bad)


@pytest.fixture
def pair():
    draw = np.random.default_rng(3)
    X, D = draw.random((40, 12)) * (draw.random((40, 12)) < 0.3), draw.standard_normal((40, 6))
    return ImpactIndex.build(X), DenseIndex(D), draw.random((5, 12)).round(2), draw.standard_normal((5, 6))


@pytest.mark.parametrize("when", [None, "pre", "post", "both"])
def test_stages_are_the_compositions_that_they_are_named_for(pair, when):
    sparse, dense, S, E = pair
    feedback = VectorPRF(depth=3)
    partner, found = sparse.search(S, 40), dense.search(E, 40)
    told = interpolate(partner, found, 0.3) if when in ("pre", "both") else found
    again = dense.search(feedback(E, told, dense.vectors), 40)
    wanted = interpolate(partner, again, 0.6) if when in ("post", "both") else again
    got = HybridSearcher(sparse, dense, when=when, feedback=feedback, weight=(0.3, 0.6), depth=40).search(S, E, 7)
    for (a, s), (b, t) in zip(got, wanted):
        assert a.tolist() == b[:7].tolist()
        np.testing.assert_array_equal(s, t[:7])
    plain = HybridSearcher(sparse, dense, when=when, feedback=None, weight=0.3, depth=40).search(S, E, 7)
    wanted = found if when is None else interpolate(partner, found, 0.3)
    assert [ids.tolist() for ids, _ in plain] == [ids[:7].tolist() for ids, _ in wanted]


def test_a_weight_is_chosen_without_a_querys_own_judgements():
    draw = np.random.default_rng(5)
    names, qrels = [f"q{q}" for q in range(40)], {}
    good, bad = [], []
    for name in names:
        relevant = draw.permutation(30)[:3].tolist()
        qrels[name] = dict.fromkeys(map(str, relevant), 1)
        good.append({d: float(draw.random() + (d in relevant)) for d in range(30)})
        bad.append({d: float(draw.random()) for d in range(30)})
    tuned = tune_weight(hits(*good), hits(*bad), names, qrels)
    assert tuned.weight >= 0.5
    changed = {**qrels, "q7": {"29": 1, "3": 1}}
    again = tune_weight(hits(*good), hits(*bad), names, changed)
    assert again.by_query[7] == tuned.by_query[7]
    assert tuned.curve[1.0] > tuned.curve[0.0] + 0.3
    same = tune_weight(hits(*bad), hits(*good), names, qrels)
    assert same.weight <= 0.5
    noise = tune_weight(hits(*bad), hits(*bad[::-1]), names, qrels)
    assert noise.weight in (0.0, 1.0)  # what is gained by mixing two lists of chance is no gain
    with pytest.raises(InputError, match="judge 2 of the queries"):
        tune_weight(hits(*good), hits(*bad), names, {name: qrels[name] for name in names[:2]})
    with pytest.raises(InputError, match="query_ids"):
        tune_weight(hits(*good), hits(*bad), names[:3], qrels)

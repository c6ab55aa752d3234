"""The index against brute force on its own numbers: building, ties, filters, changes, explanations, refusals."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.kernels import live
from ellzero.retrieval import ImpactIndex
from ellzero.rng import rng


def brute(weights, ids, query, k, scale, levels=255):
    """Hits in Python's own arithmetic: quantise, multiply, sort by (-score, id)."""
    found = []
    for row, name in zip(weights.tolist(), ids):
        score = 0
        for weight, asked in zip(row, query):
            if weight and asked:
                score += int(asked) * min(max(round(weight / scale), 1), levels)
        if score:
            found.append((-score, name))
    found.sort()
    return [(name, -score * scale) for score, name in found[:k]]


def hits_of(found, q=0):
    ids, scores = found[q]
    return list(zip(ids.tolist(), scores.tolist()))


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-12)


def weights_of(seed, documents, terms, density=0.4, whole=True):
    draw = rng(seed, "index")
    matrix = (draw.random((documents, terms)) < density) * draw.integers(1, 256, (documents, terms))
    return (
        matrix.astype(float) if whole else matrix * draw.choice([0.013, 0.5, 1.7]) * draw.uniform(0.5, 1, matrix.shape)
    )


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1), documents=st.integers(1, 300), terms=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]), block=st.sampled_from([1, 2, 8, 64]),
    k=st.sampled_from([1, 3, 50, 1000]), text=st.booleans(), shuffled=st.booleans(), pieces=st.integers(1, 4),
    deleted=st.integers(0, 5), merged=st.booleans(),
)  # fmt: skip
def test_equals_brute_force_through_segments_deletions_and_merges(
    seed, documents, terms, density, block, k, text, shuffled, pieces, deleted, merged
):
    weights = weights_of(seed, documents, terms, density)
    draw = rng(seed, "ids")
    ids = draw.permutation(documents * 3)[:documents]
    ids = np.array([f"d{i}" for i in ids], object) if text else ids
    query = draw.integers(0, 4, terms)
    cut = np.linspace(0, documents, pieces + 1).astype(int)
    order = draw.permutation(cut[1]) if shuffled else "none"
    index = ImpactIndex.build(weights[: cut[1]], ids[: cut[1]], block_size=block, order=order, scale=1.0)
    for a, b in itertools.pairwise(cut[1:]):
        index.append(weights[a:b], ids[a:b])
    gone = draw.permutation(documents)[: min(deleted, documents)]
    if len(gone):
        assert index.delete(ids[gone]) == len(gone)
    if merged:
        index.merge()
        assert index.segments == 1
    left = np.setdiff1d(np.arange(documents), gone)
    expected = brute(weights[left], ids[left].tolist(), query, k, 1.0)
    assert len(index) == len(left)
    for algorithm in ("exhaustive", "bmp", "auto"):
        assert_same(hits_of(index.search(query[None], k, algorithm=algorithm)), expected)
    among = draw.permutation(documents)[: documents // 2]
    inside = np.intersect1d(left, among)
    assert_same(hits_of(index.search(query[None], k, within=ids[among].tolist())),
                brute(weights[inside], ids[inside].tolist(), query, k, 1.0))  # fmt: skip


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_weights_are_rounded_to_levels_and_never_vanish(bits):
    weights = weights_of(1, 200, 15, whole=False)
    levels = 2**bits - 1
    index = ImpactIndex.build(weights, bits=bits)
    assert index.scale == pytest.approx(weights.max() / levels)
    query = rng(0, "q").integers(1, 9, 15)
    assert_same(hits_of(index.search(query[None], 50)), brute(weights, range(200), query, 50, index.scale, levels))


def test_weights_of_a_query_are_rounded_to_15_bits():
    weights, draw = weights_of(2, 400, 30), rng(0, "float query")
    query = draw.gamma(2.0, size=30) * (draw.random(30) < 0.6)
    index = ImpactIndex.build(weights)
    ids, scores = index.search(query[None], 400)[0]
    np.testing.assert_allclose(scores, (weights @ query)[ids], rtol=2e-4)
    exact = ImpactIndex.build(weights).search(np.rint(query[None] * 8), 400)[0]
    np.testing.assert_array_equal(exact[1], (weights @ np.rint(query * 8))[exact[0]])


def test_all_ties_come_by_id_and_texts_by_code_point():
    ids = ["b", "a10", "a9", "ü", "Z", "aa"]
    index = ImpactIndex.build(np.ones((6, 3)), ids)
    assert index.search(np.ones((1, 3)), 4)[0][0].tolist() == sorted(ids)[:4] == ["Z", "a10", "a9", "aa"]
    numbers = ImpactIndex.build(np.ones((6, 3)), [10, 9, -3, 100, 8, 7])
    assert numbers.search(np.ones((1, 3)), 9)[0][0].tolist() == [-3, 7, 8, 9, 10, 100]


def test_long_queries_unknown_terms_and_empty_ones():
    weights = np.full((70, 255), 255.0)
    index = ImpactIndex.build(weights, block_size=1)
    found = index.search(np.full((1, 255), 1.0), 3, algorithm="bmp")
    assert hits_of(found) == [(i, 255.0 * 255) for i in range(3)]
    wide = sparse.csr_array(([2.0, 5.0], ([0, 0], [3, 999])), shape=(2, 1000))
    found = index.search(wide, 2)
    assert hits_of(found, 0) == [(0, 510.0), (1, 510.0)]
    assert hits_of(found, 1) == []
    named = ImpactIndex.build(np.eye(3), vocabulary=["x", "y", "z"])
    assert hits_of(named.search([{"y": 2.0, "nothing": 9.0}, {}], 5)) == [(1, 2.0)]
    empty = ImpactIndex.build(sparse.csr_array((5, 4)))
    assert hits_of(empty.search(np.ones((1, 4)))) == []
    none = ImpactIndex.build(sparse.csr_array((0, 4)))
    assert hits_of(none.search(np.ones((1, 4)))) == []


def test_an_explanation_adds_up_to_the_score():
    weights = weights_of(4, 300, 12, whole=False)
    index = ImpactIndex.build(weights, vocabulary=[f"t{i}" for i in range(12)])
    query = rng(0, "explain").gamma(1.0, size=12)
    ids, scores = index.search(query[None], 5)[0]
    for name, score in zip(ids, scores):
        said = index.explain(query, int(name))
        assert said["score"] == pytest.approx(score, rel=1e-12)
        assert sum(row["score"] for row in said["terms"]) == pytest.approx(score, rel=1e-12)
        assert {row["term"] for row in said["terms"]} == {f"t{i}" for i in np.flatnonzero(weights[name] * query)}
        first = said["terms"][0]
        assert first["score"] == pytest.approx(first["query"] * first["document"])


def test_auto_says_what_it_took_and_why():
    small = ImpactIndex.build(np.eye(4)).search(np.ones((1, 4)))
    assert small.algorithm == "exhaustive"
    assert "windows" in small.why
    large = ImpactIndex.build(weights_of(0, 3000, 40, 0.9), block_size=2)
    found = large.search(np.ones((2, 40)), 5)
    assert found.algorithm == "bmp"
    assert "postings" in found.why
    assert "most are scored" in large.search(np.ones((1, 40)), 2000).why
    assert "nearly each" in large.search(np.ones((1, 40)), 150).why
    assert found.windows_scored + found.windows_left == 2 * 24
    assert large.search(np.ones((1, 40)), 5, algorithm="bmp").why == "asked for"


@pytest.mark.skipif(not live, reason="the plain reference prunes nothing")
def test_less_than_exact_is_said_and_its_recall_measured():
    draw = rng(0, "rough")
    weights = draw.gamma(0.3, size=(4000, 30)) * (draw.random((4000, 30)) < 0.3)
    index = ImpactIndex.build(weights, block_size=1)
    query = draw.gamma(1.0, size=(20, 30))
    exact = index.search(query, 10, algorithm="bmp")
    shares = [index.search(query, 10, algorithm="bmp", **rough) for rough in ({"alpha": 0.5}, {"beta": 0.3})]
    assert exact.exact
    assert exact.recall_of(index.search(query, 10, algorithm="exhaustive")) == 1
    for rough in shares:
        assert not rough.exact
        assert 0 < rough.recall_of(exact) < 1
        assert rough.postings < exact.postings


def test_a_collection_that_comes_in_pieces_gives_the_same_index(tmp_path):
    weights = weights_of(5, 500, 20)
    names = [f"doc {i}" for i in range(500)]
    pieces = [(sparse.csr_array(weights[a : a + 70]), names[a : a + 70]) for a in range(0, 500, 70)]
    index = ImpactIndex.build(iter(pieces), path=tmp_path / "index", postings_at_once=900)
    whole = ImpactIndex.build(weights, names)
    query = rng(0, "q").integers(0, 9, (4, 20))
    assert index.segments == 1
    assert [f.name for f in tmp_path.glob("index/segment-*")] == [index._snapshot.segments[0].folder]
    for q in range(4):
        assert hits_of(index.search(query, 40), q) == hits_of(whole.search(query, 40), q)
    for a, b in zip(index._snapshot.segments[0].lists.arrays, whole._snapshot.segments[0].lists.arrays):
        np.testing.assert_array_equal(a, b)
    assert hits_of(ImpactIndex.build(pieces).search(query, 9)) == hits_of(whole.search(query, 9))


def test_searches_see_whole_snapshots_while_others_write(tmp_path):
    """Two threads search while a third appends and merges: each answer is that of one state, not of a mixture."""
    draw = rng(0, "load")
    weights = draw.integers(0, 30, (600, 10)).astype(float)
    index = ImpactIndex.build(weights[:100], np.arange(100), scale=1.0, path=tmp_path / "index", block_size=1)
    query = np.ones((1, 10))
    states = {n: brute(weights[:n], range(n), query[0], 20, 1.0) for n in range(100, 601, 50)}
    wrong, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            found = hits_of(index.search(query, 20))
            if found not in states.values():
                wrong.append(found)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    for n in range(100, 600, 50):
        index.append(weights[n : n + 50], np.arange(n, n + 50))
        if n % 100 == 50:
            index.merge()
    stop.set()
    for looker in lookers:
        looker.join()
    assert not wrong
    assert hits_of(index.search(query, 20)) == states[600]


def test_bad_input_is_named():
    index = ImpactIndex.build(np.eye(3), ["a", "b", "c"])
    for call, message in (
        (lambda: ImpactIndex.build(np.array([[1.0, -2.0]])), "X: row 0, column 1 is negative"),
        (lambda: ImpactIndex.build(np.array([[1.0, np.nan]])), "X: row 0, column 1 is not finite"),
        (lambda: ImpactIndex.build(np.eye(2), ["a", "a"]), "ids: 'a' stands twice"),
        (lambda: ImpactIndex.build(np.eye(2), [7, 7]), "ids: 7 stands twice"),
        (lambda: ImpactIndex.build(np.eye(2), ["a"]), "ids: got 1 ids for 2 documents"),
        (lambda: ImpactIndex.build(np.eye(2), ["a", 2]), "ids: got 2 .int., want all text or all whole"),
        (lambda: ImpactIndex.build(np.eye(2), block_size=48), "block_size: got 48, want a power of two"),
        (lambda: ImpactIndex.build(np.eye(2), bits=9), "bits: got 9"),
        (lambda: ImpactIndex.build(np.eye(2), order=[0, 0]), "order: want a permutation"),
        (lambda: ImpactIndex.build(np.eye(2), order="best"), "order: got 'best'"),
        (lambda: ImpactIndex.build(np.eye(2), vocabulary=["x"]), "vocabulary: got 1 different terms, want 2"),
        (lambda: ImpactIndex.build(iter([])), "X: got an iterable without any documents"),
        (lambda: ImpactIndex.build([(np.eye(2) / 3, [0, 1])]), "scale: want the weight of one level"),
        (lambda: ImpactIndex.build("text"), "X: got an iterable of str"),
        (lambda: index.append(np.eye(2), ["d", "e"]), "X: got 2 columns, want the 3 terms"),
        (lambda: index.append(np.eye(3) * 999, ["d", "e", "f"]), "built with scale=3.9"),
        (lambda: index.append(np.eye(3), ["d", "c", "e"]), "ids: 'c' is in the index already"),
        (lambda: index.append(np.eye(3), [1, 2, 3]), "ids: got numbers, and the index has texts"),
        (lambda: index.delete(["x"]), "ids: 'x' is not in the index"),
        (lambda: index.search(np.eye(3), 0), "k: got 0"),
        (lambda: index.search(np.eye(3), algorithm="wand"), "algorithm: got 'wand'"),
        (lambda: index.search(np.eye(3), alpha=0), "alpha: got 0"),
        (lambda: index.search(np.eye(3), beta=2), "beta: got 2"),
        (lambda: index.search(-np.eye(3)), "Q: row 0, column 0 is negative"),
        (lambda: index.search("query"), "Q: got str"),
        (lambda: index.search([{"x": 1.0}]), "Q: got the term 'x', and the index has no vocabulary"),
        (lambda: index.search({"x": 1.0}), "Q: got one dictionary"),
        (lambda: index.explain(np.ones(3), "zz"), "document: got 'zz'"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            call()
    assert len(index) == 3

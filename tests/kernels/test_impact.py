"""Inverted lists and their top-k: native against reference byte by byte, both against a plain sum, all adversaries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.kernels import impact, live, native
from ellzero.rng import rng

needs_native = pytest.mark.skipif(not live, reason="no compiled module is live")


def make(matrix, shift, rank=None):
    """Lists of a dense uint8 matrix ``[documents, terms]``, by the live kernel."""
    documents, terms = matrix.shape
    docs, columns = np.nonzero(matrix)
    by_term = np.lexsort((docs, columns))
    ptr = np.searchsorted(columns[by_term], np.arange(terms + 1)).astype(np.int64)
    postings = ptr, docs[by_term].astype(np.uint32), matrix[docs[by_term], columns[by_term]]
    arrays = impact.encode(*postings, documents, shift)
    arrays["data"] = np.concatenate([arrays["data"], np.zeros(impact.PADDING, np.uint8)])
    rank = np.arange(documents) if rank is None else rank
    return postings, impact.Lists(documents, shift, **arrays, rank=rank.astype(np.uint32))


def brute(matrix, terms, weights, k, rank, allowed=None):
    """Hits by Python's own sum and sort: (score, rank) pairs."""
    scores = matrix[:, terms].astype(np.int64) @ np.asarray(weights, np.int64) if len(terms) else np.zeros(len(matrix))
    hits = [(-int(s), int(r)) for i, (s, r) in enumerate(zip(scores, rank)) if s and (allowed is None or allowed[i])]
    return [(-s, r) for s, r in sorted(hits)[:k]]


def pairs(found, q):
    n = found.found[q]
    assert (found.ranks[q, n:] == -1).all()
    return list(zip(found.scores[q, :n].tolist(), found.ranks[q, :n].tolist()))


def planted(seed, documents, terms, density, levels):
    draw = rng(seed, "impact")
    keep = draw.random((documents, terms)) < density * draw.random(terms) ** 2
    return (keep * draw.integers(1, levels + 1, (documents, terms))).astype(np.uint8)


@settings(max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1), documents=st.integers(1, 700), terms=st.integers(1, 12),
    density=st.sampled_from([0.02, 0.3, 1.0, 3.0]), levels=st.sampled_from([1, 3, 255]), shift=st.integers(0, 3),
    k=st.sampled_from([1, 2, 10, 100, 2000]), length=st.integers(0, 12), top=st.sampled_from([1, 255, 32767]),
    filtered=st.booleans(),
)  # fmt: skip
def test_equals_brute_force(seed, documents, terms, density, levels, shift, k, length, top, filtered):
    matrix = planted(seed, documents, terms, density, levels)
    draw = rng(seed, "queries")
    rank = draw.permutation(documents)
    _, lists = make(matrix, shift, rank)
    allowed = (draw.random(documents) < 0.4).astype(np.uint8) if filtered else None
    length = min(length, terms)
    asked = [draw.permutation(terms)[:length] for _ in range(3)]
    weights = draw.integers(0, top + 1, (3, length))
    ptr = np.arange(4, dtype=np.int64) * length
    flat = np.concatenate(asked).astype(np.int32), weights.ravel().astype(np.int32)
    handle = impact.prepare(lists)
    for prune in (False, True):
        found = impact.search(handle, ptr, *flat, k, prune=prune, allowed=allowed)
        for q in range(3):
            assert pairs(found, q) == brute(matrix, asked[q], weights[q], k, rank, allowed)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), documents=st.integers(0, 3000), density=st.sampled_from([0.005, 0.05, 0.5, 2.0]),
    shift=st.integers(0, 4),
)  # fmt: skip
def test_decoding_is_the_inverse_of_encoding_and_the_reference_writes_the_same_bytes(seed, documents, density, shift):
    matrix = planted(seed, documents, 5, density, 255)
    postings, lists = make(matrix, shift)
    plain = dict(zip(impact.Lists._fields[2:7], impact._encode(*postings, documents, shift)))
    plain["data"] = np.concatenate([plain["data"], np.zeros(impact.PADDING, np.uint8)])
    for name, array in plain.items():
        found = getattr(lists, name)
        assert found.dtype == array.dtype
        assert found.shape == array.shape, name
        np.testing.assert_array_equal(found, array, err_msg=name)
    for decoded in (impact.decode(impact.prepare(lists), 0, 5), impact._decode(lists, 0, 5)):
        for found, wanted in zip(decoded, postings):
            np.testing.assert_array_equal(found, wanted)


def test_long_lists_of_every_kind_are_searched_exactly():
    """Gaps, steps, wide places, bounds and short lists in one index of several windows, pruned and not."""
    draw = rng(0, "kinds")
    documents = 40_000
    columns = [draw.random(documents) < p for p in (0.5, 0.1, 0.012, 0.004, 0.0002, 0.00002)]
    clustered = np.zeros(documents, bool)
    clustered[9_000:9_700] = True
    matrix = (np.stack([*columns, clustered], 1) * draw.integers(1, 256, (documents, 7))).astype(np.uint8)
    matrix[9_100:9_110] = 255
    rank = draw.permutation(documents)
    for shift in (8, 6, 3):
        _, lists = make(matrix, shift, rank)
        handle = impact.prepare(lists)
        weights = np.array([9, 200, 31, 255, 77, 255, 60], np.int32)
        for k in (1, 10, 1000, documents):
            found = [impact.search(handle, np.array([0, 7]), np.arange(7, dtype=np.int32), weights, k, prune=prune)
                     for prune in (False, True)]  # fmt: skip
            expected = brute(matrix, np.arange(7), weights, k, rank)
            assert pairs(found[0], 0) == pairs(found[1], 0) == expected
    if live:
        assert sorted(set(lists.form.tolist())) == [0, 1, 2]
        windows, sizes = lists.windows, []
        for start, form in zip(lists.starts.tolist(), lists.form.tolist()):
            if form:
                raw = lists.data[start + windows : start + windows * (1 + form)]
                sizes += raw.view(f"<u{form}").tolist()
        assert {(size & 1, size >> 1 >= impact.LEAST_BOUNDED) for size in sizes} >= {(0, False), (0, True), (1, False)}


@needs_native
def test_pruning_leaves_windows_out_and_alpha_more_of_them():
    draw = rng(0, "topics")
    documents, topics = 64 * 64 * 20, 20
    matrix = np.zeros((documents, topics * 8), np.uint8)
    for t in range(topics):
        rows = slice(t * 4096, (t + 1) * 4096)
        matrix[rows, 8 * t : 8 * t + 8] = draw.integers(120, 256, (4096, 8))
    noise = draw.random(matrix.shape) < 0.05
    matrix[noise] = np.maximum(matrix[noise], draw.integers(1, 120, noise.sum()))
    _, lists = make(matrix, 6)
    handle = impact.prepare(lists)
    query = np.array([0, 8]), np.arange(8, dtype=np.int32), np.full(8, 100, np.int32)
    exact = impact.search(handle, *query, 10, prune=False)
    pruned = impact.search(handle, *query, 10)
    rough = impact.search(handle, *query, 4096, alpha=0.3)
    np.testing.assert_array_equal(exact.scores, pruned.scores)
    np.testing.assert_array_equal(exact.ranks, pruned.ranks)
    assert exact.counts[0, 0] == 20
    assert pruned.counts[0, 0] == 1
    assert pruned.counts[0, :3].sum() == 20
    assert rough.found[0] == 4096


def test_a_query_of_255_terms_and_scores_of_31_bits():
    matrix = np.full((300, 255), 255, np.uint8)
    _, lists = make(matrix, 2)
    weight = 32767  # 255 * 255 * 32767 is just below 2^31
    terms, weights = np.arange(255, dtype=np.int32), np.full(255, weight, np.int32)
    for prune in (False, True):
        found = impact.search(impact.prepare(lists), np.array([0, 255]), terms, weights, 7, prune=prune)
        assert pairs(found, 0) == [(255 * 255 * weight, r) for r in range(7)]  # all ties: by rank


def test_empty_queries_documents_and_indexes():
    matrix = np.zeros((130, 3), np.uint8)
    _, lists = make(matrix, 0)
    none = np.empty(0, np.int32)
    found = impact.search(impact.prepare(lists), np.array([0, 0, 0]), none, none, 5)
    assert found.found.tolist() == [0, 0]
    _, nothing = make(np.zeros((0, 3), np.uint8), 4)
    found = impact.search(
        impact.prepare(nothing), np.array([0, 1]), np.array([2], np.int32), np.array([1], np.int32), 5
    )
    assert found.found.tolist() == [0]
    assert impact.search(impact.prepare(lists), np.array([0]), none, none, 5).scores.shape == (0, 5)


def test_threads_change_nothing():
    matrix = planted(3, 5000, 30, 1.0, 255)
    _, lists = make(matrix, 4)
    draw = rng(1, "threads")
    terms = np.stack([draw.permutation(30)[:9] for _ in range(40)]).astype(np.int32)
    weights = draw.integers(1, 256, terms.shape).astype(np.int32)
    query = np.arange(41, dtype=np.int64) * 9, terms.ravel(), weights.ravel()
    one, two = (impact.search(impact.prepare(lists), *query, 50, n_threads=n) for n in (1, 2))
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)


@needs_native
def test_what_does_not_fit_is_refused():
    matrix = planted(0, 3000, 4, 2.0, 255)
    _, lists = make(matrix, 3)
    handle = impact.prepare(lists)
    bad = {
        "starts": lists.starts + np.uint64(1), "form": lists.form + np.uint8(2), "rank": lists.rank + np.uint32(1),
        "data": lists.data[:-65], "kth": lists.kth[:, :2].copy(), "frequency": lists.frequency * 9999,
    }  # fmt: skip
    for name, array in bad.items():
        with pytest.raises(ValueError, match="want"):
            impact.prepare(lists._replace(**{name: array}))
    query = np.array([0, 1]), np.array([0], np.int32), np.array([1], np.int32)
    for change, error in (
        ((np.array([0, 1]), np.array([4], np.int32), query[2]), "terms: want terms of the index"),
        ((np.array([0, 1]), query[1], np.array([40000], np.int32)), "weights: want 0 to 32767"),
        ((np.array([0, 2]), query[1], query[2]), "ptr: want it to run from 0"),
        ((query[0], query[1].astype(np.int64), query[2]), "terms: got"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            impact.search(handle, *change, 5)
    for settings_ in ({"alpha": 0.0}, {"alpha": 1.5}):
        with pytest.raises(InputError, match="alpha"):
            impact.search(handle, *query, 5, **settings_)
    with pytest.raises(InputError, match="k: got -1"):
        impact.search(handle, *query, -1)
    with pytest.raises(ValueError, match="docs: want documents that rise"):
        native.impact_encode(np.array([0, 2]), np.array([3, 3], np.uint32), np.array([1, 1], np.uint8), 5, 0)


@needs_native
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_lists_are_refused_or_searched_within_their_bounds(seed):
    """Whatever bytes the lists hold, no search leaves them (the sanitizers' build sees it if one does)."""
    draw = rng(seed, "damage")
    _, lists = make(planted(seed, 2000, 4, 2.0, 255), 2)
    name = ("data", "starts", "form", "frequency")[seed % 4]
    array = getattr(lists, name).copy()
    raw = array.reshape(-1).view(np.uint8)
    raw[draw.integers(0, len(raw), 20)] = draw.integers(0, 256, 20)
    try:
        handle = impact.prepare(lists._replace(**{name: array}))
    except ValueError:
        return
    query = np.array([0, 4]), np.arange(4, dtype=np.int32), np.full(4, 3, np.int32)
    for prune in (False, True):
        assert impact.search(handle, *query, 10, prune=prune).found[0] <= 10

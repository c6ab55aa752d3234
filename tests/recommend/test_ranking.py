"""Ranking metrics against plain loops, splits of users, and the reader of ratings."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.recommend import Interactions, hold_out_users, ndcg_at_k, read_ratings, recall_at_k
from ellzero.recommend import ranking as ranking_module
from ellzero.recommend.ranking import as_interactions, top_items
from ellzero.rng import rng


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8))
def test_metrics_equal_a_plain_loop(seed, k):
    generator = rng(seed, "metrics")
    truth = generator.random((4, 9)) < 0.4
    truth[np.arange(4), generator.integers(0, 9, 4)] = True
    lists = np.stack([generator.permutation(9)[:8] for _ in range(4)])
    lists[0, 5:] = -1
    recall, ndcg = recall_at_k(lists, truth, k), ndcg_at_k(lists, sparse.csr_array(truth.astype(float)), k)
    for user in range(4):
        wanted = set(np.flatnonzero(truth[user]))
        first = list(lists[user, :k])
        assert math.isclose(recall[user], len(wanted & set(first)) / min(k, len(wanted)))
        gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(first) if item in wanted)
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
        assert math.isclose(ndcg[user], gain / ideal)
        assert 0 <= ndcg[user] <= 1 + 1e-12


def test_a_perfect_list_scores_one_and_an_early_hit_counts_more():
    truth = np.array([[1, 1, 0, 0]])
    assert recall_at_k(np.array([[1, 0, 2]]), truth, 3).tolist() == [1]
    assert ndcg_at_k(np.array([[1, 0, 2]]), truth, 3).tolist() == [1]
    assert ndcg_at_k(np.array([[0, 2, 3]]), truth, 3) > ndcg_at_k(np.array([[2, 0, 3]]), truth, 3)


@pytest.mark.parametrize(
    ("items", "truth", "k", "words"),
    [
        (np.array([[0.5]]), np.ones((1, 2)), 1, "items: got float64"),
        (np.array([[0]]), np.ones((2, 2)), 1, r"want whole numbers of shape \(2, k\)"),
        (np.array([[0, 1]]), np.ones((1, 2)), 3, "k: got 3"),
        (np.array([[0, 2]]), np.ones((1, 2)), 1, "items: got 0 to 2"),
        (np.array([[1, 1]]), np.ones((1, 2)), 2, "the same item twice"),
        (np.array([[0], [1]]), np.array([[1, 0], [0, 0]]), 1, "held_out: user 1 holds out nothing"),
        (np.array([[0]]), np.array([["a"]]), 1, "held_out: got <U1"),
    ],
)
def test_bad_lists(items, truth, k, words):
    for metric in (recall_at_k, ndcg_at_k):
        with pytest.raises(InputError, match=words):
            metric(items, truth, k)


def test_batches_change_nothing(monkeypatch):
    scores = rng(0, "scores").standard_normal((23, 7))
    seen = sparse.csr_array((scores > 1).astype(float))
    rows = np.arange(23)
    numbered = sparse.hstack([sparse.csr_array(rows[:, None] + 1.0), seen]).tocsr()

    def predict(part):
        return np.hstack([np.zeros((part.shape[0], 1)), scores[part[:, [0]].toarray().ravel().astype(int) - 1]])

    whole = top_items(predict, numbered, 3)
    monkeypatch.setattr(ranking_module, "BATCH_ENTRIES", 40)
    parts = top_items(predict, numbered, 3)
    assert (whole.items == parts.items).all()
    assert (whole.scores == parts.scores).all()


def test_interactions_are_checked():
    assert as_interactions("X", np.eye(3)).nnz == 3
    twice = sparse.csr_array((np.ones(2), np.array([1, 1]), np.array([0, 2])), shape=(1, 2))
    assert as_interactions("X", twice).data.tolist() == [2]
    assert twice.nnz == 2
    with pytest.raises(InputError, match="X: got 2 items, want 3"):
        as_interactions("X", twice, n_items=3)
    with pytest.raises(InputError, match="NaN or infinite"):
        as_interactions("X", np.array([[np.inf]]))
    with pytest.raises(InputError, match="want numbers of shape"):
        as_interactions("X", np.ones(3))


@settings(max_examples=25)
@given(seed=st.integers(0, 999), users=st.floats(0.05, 0.9), items=st.floats(0.05, 0.9))
def test_a_split_holds_out_whole_users_and_loses_nothing(seed, users, items):
    generator = rng(seed, "split")
    dense = generator.random((20, 15)) < 0.3
    dense[:, :2] = True
    R = sparse.csr_array(dense.astype(np.float32))
    split = hold_out_users(R, users=users, items=items, seed=seed)
    n = split.fold_in.shape[0]
    assert n == max(1, min(19, round(users * 20)))
    assert split.train.shape[0] == 20 - n
    assert not split.fold_in.multiply(split.held_out).nnz
    together = sparse.vstack([split.train, split.fold_in + split.held_out]).toarray()
    assert sorted(map(bytes, together.astype(bool))) == sorted(map(bytes, dense))
    shown, asked = split.fold_in.sum(axis=1), split.held_out.sum(axis=1)
    total = shown + asked
    assert (asked == np.clip(np.round(items * total), 1, total - 1)).all()
    again = hold_out_users(R, users=users, items=items, seed=seed)
    assert (again.held_out != split.held_out).nnz == 0


def test_seeds_differ_and_bad_splits_are_refused():
    R = sparse.csr_array(np.ones((10, 8)))
    assert (hold_out_users(R, seed=1).held_out != hold_out_users(R, seed=2).held_out).nnz
    with pytest.raises(InputError, match="users: got 1, want a number below 1"):
        hold_out_users(R, users=1)
    with pytest.raises(InputError, match="items: got 0"):
        hold_out_users(R, items=0)
    with pytest.raises(InputError, match="has 1 interactions"):
        hold_out_users(sparse.csr_array(np.eye(4)))
    with pytest.raises(InputError, match="got 1 users"):
        hold_out_users(sparse.csr_array(np.ones((1, 4))))
    padded = R.copy()
    padded.data[::2] = 0
    assert hold_out_users(padded).train.nnz == 32
    assert padded.nnz == 80


def test_ratings_are_read_from_long_form(tmp_path):
    path = tmp_path / "ratings.csv"
    lines = ["userId,movieId,rating,timestamp", "7,10,5,1", "7,30,4,2", "7,20,3.5,3", "9,30,4,4", "8,10,4,5",
             "8,30,5,6", "8,30,4.5,7"]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    got = read_ratings(path, per_user=2)
    assert got.users.tolist() == [7, 8]
    assert got.items.tolist() == [10, 30]
    assert got.matrix.toarray().tolist() == [[1, 1], [1, 1]]
    assert got.matrix.dtype == np.float32
    assert read_ratings(path, per_user=1).matrix.shape == (3, 2)
    with pytest.raises(InputError, match="want one called 'user'"):
        read_ratings(path, user="user")
    with pytest.raises(InputError, match="no user has 9 ratings"):
        read_ratings(path, per_user=9)
    with pytest.raises(InputError, match="no user has 5 ratings of at least 6"):
        read_ratings(path, at_least=6)
    with pytest.raises(InputError, match=r"'rating' has 3\.5, want whole numbers"):
        read_ratings(path, item="rating")
    with pytest.raises(InputError, match="per_user: got 0"):
        read_ratings(path, per_user=0)
    with pytest.raises(InputError, match="matrix: got shape"):
        Interactions(got.matrix, got.users, np.arange(5))

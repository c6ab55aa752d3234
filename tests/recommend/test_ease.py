"""EASE against its objective, against the general inverse, and in memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.recommend import EASE, ease_path
from ellzero.recommend.ease import gram
from ellzero.rng import rng


def interactions(users=60, items=25, density=0.2, seed=0):
    drawn = rng(seed, "interactions").random((users, items)) < density
    return sparse.csr_array(drawn.astype(np.float64))


def general_inverse(R, l2):
    inverse = np.linalg.inv(R.T @ R + l2 * np.eye(R.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@settings(max_examples=30)
@given(users=st.integers(1, 30), items=st.integers(1, 20), l2=st.floats(0.1, 1e3), seed=st.integers(0, 99))
def test_the_gradient_of_the_objective_vanishes_off_the_diagonal(users, items, l2, seed):
    R = rng(seed, "dense").standard_normal((users, items))
    B = EASE(l2, dtype="float64").fit(sparse.csr_array(R)).coef_
    gradient = -2 * R.T @ (R - R @ B) + 2 * l2 * B
    gradient[np.diag_indices(items)] = 0
    assert abs(gradient).max() <= 1e-9 * max(1, np.sum(R**2))
    assert not np.diag(B).any()


@pytest.mark.parametrize("items", [1, 7, 511, 512, 513, 1100])
def test_it_equals_the_general_inverse_over_tiles(items):
    R = interactions(200, items, 0.05)
    expected = general_inverse(R.toarray(), 20.0)
    assert abs(EASE(20.0, dtype="float64").fit(R).coef_ - expected).max() <= 1e-9
    assert abs(EASE(20.0).fit(R).coef_ - expected).max() <= 1e-5


def test_the_column_divides_so_the_matrix_is_not_symmetric():
    R = interactions()
    B = EASE(5.0, dtype="float64").fit(R).coef_
    assert abs(B - B.T).max() > 0.01
    best = np.sum((R @ B - R) ** 2) + 5 * np.sum(B**2)
    assert best < np.sum((R @ B.T - R) ** 2) + 5 * np.sum(B**2) - 1e-3


def test_dense_and_sparse_input_agree_and_float32_ranks_as_float64():
    R = interactions(300, 80)
    a, b = EASE(10.0, dtype="float64").fit(R), EASE(10.0, dtype="float64").fit(R.toarray())
    assert abs(a.coef_ - b.coef_).max() <= 1e-12
    single = EASE(10.0).fit(R)
    assert single.coef_.dtype == np.float32
    ours, theirs = single.recommend(R, 20).items, a.recommend(R, 20).items
    assert np.mean([len(set(x) & set(y)) / 20 for x, y in zip(ours, theirs)]) >= 0.995


def test_the_path_equals_single_fits_and_repeats():
    R, l2s = interactions(), [100.0, 1.0, 10.0]
    path = list(ease_path(R, l2s, dtype="float64"))
    assert [model.l2 for model in path] == l2s
    for model in path:
        assert abs(model.coef_ - EASE(model.l2, dtype="float64").fit(R).coef_).max() <= 1e-12
        assert model.recommend(R, 3).items.shape == (60, 3)
    assert list(ease_path(R, [])) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gram_matrix_fills_the_upper_triangle(dtype):
    R = interactions(40, 53)
    expected = (R.T @ R).toarray()
    assert (np.triu(gram(R, dtype)) == np.triu(expected)).all()
    assert gram(R, dtype).dtype == dtype


def test_duplicates_add_up_and_stored_zeros_are_nothing():
    R = sparse.csr_array((np.array([1.0, 2.0, 0.0, 1.0]), np.array([0, 0, 1, 2]), np.array([0, 3, 4])), shape=(2, 3))
    expected = general_inverse(R.toarray(), 2.0)
    assert abs(EASE(2.0, dtype="float64").fit(R).coef_ - expected).max() <= 1e-12
    assert R.nnz == 4, "the caller's matrix is left alone"


def test_keep_leaves_the_largest_of_each_column():
    R = interactions(200, 40)
    full, few = EASE(10.0).fit(R), EASE(10.0, keep=6).fit(R)
    assert sparse.issparse(few.coef_)
    kept = few.coef_.toarray()
    assert (np.count_nonzero(kept, axis=0) == 6).all()
    assert (kept[kept != 0] == full.coef_[kept != 0]).all()
    smallest = np.where(kept != 0, abs(kept), np.inf).min(axis=0)
    assert (abs(np.where(kept == 0, full.coef_, 0)).max(axis=0) <= smallest).all()
    assert abs(few.predict(R) - R.toarray().astype(np.float32) @ kept).max() <= 1e-5
    whole = EASE(10.0, keep=40).fit(R)
    assert (whole.recommend(R, 5).items == full.recommend(R, 5).items).mean() >= 0.99


def test_recommend_leaves_out_what_was_seen_and_pads():
    R = sparse.csr_array(np.array([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]]))
    model = EASE(1.0).fit(R)
    got = model.recommend(R, 3)
    assert got.items[0].tolist() == [3, -1, -1]
    assert got.scores[0, 1] == -np.inf
    assert set(got.items[1, :2]) == {2, 3}
    scores = model.predict(R)
    assert got.scores[0, 0] == scores[0, 3]
    assert (model.recommend(R, 4, exclude_seen=False).items == np.argsort(-scores, axis=1, kind="stable")).all()
    assert (model.recommend(R.toarray(), 3).items == got.items).all()
    assert model.recommend(R[:0], 2).items.shape == (0, 2) if R[:0].shape[0] else True


def test_memory_stays_near_one_items_by_items_array():
    R = interactions(400, 1500, 0.02).astype(np.float32)
    EASE().fit(R)
    tracemalloc.start()
    EASE(50.0).fit(R)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 4 * (1 << 22) + 2**21  # one dense block of the Gram product, and the interactions
    assert peak <= 1.1 * 1500**2 * 4 + 2 * blocks
    assert peak <= 2.2 * 4 * 1500**2 + 2 * blocks


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"l2": 0}, "l2: got 0, want a number above 0"),
        ({"l2": float("nan")}, "l2: got NaN"),
        ({"l2": "200"}, "l2: got '200'"),
        ({"dtype": "float16"}, "dtype: got 'float16'"),
        ({"keep": 0}, "keep: got 0"),
        ({"keep": 26}, "keep: got 26, want a number at most 25"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        EASE(**settings).fit(interactions())


def test_bad_data():
    R = interactions()
    model = EASE().fit(R)
    with pytest.raises(ValueError, match="25 features"):
        model.predict(R[:, :5])
    with pytest.raises(ValueError, match="NaN"):
        EASE().fit(np.full((3, 3), np.nan))
    for k in (0, 26):
        with pytest.raises(InputError, match="k: got"):
            model.recommend(R, k)
    with pytest.raises(InputError, match="l2s: got -1"):
        list(ease_path(R, [1.0, -1.0]))
    with pytest.raises(InputError, match="too small to factor the Gram matrix in float32"):
        EASE(1e-12).fit(np.ones((4, 3)))

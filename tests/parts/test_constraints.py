"""Laws of the selections: exact counts, the lowest index on ties, the nearest point, NumPy equal to torch."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ellzero.errors import InputError
from ellzero.parts.constraints import (
    NM,
    BatchTopK,
    Block,
    FanIn,
    FeatureTopK,
    RandomSupport,
    Threshold,
    TopK,
)

# Few distinct values, so that ties are the rule; -inf and signed zeros among them.
VALUES = st.sampled_from([-np.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, 3.5])


def arrays(min_dims=1, max_dims=3, elements=VALUES):
    shapes = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=5)
    return hnp.arrays(st.sampled_from([np.float32, np.float64]), shapes, elements=elements)


def greedy(scores, count):
    """Indices of the ``count`` best of a flat list, best first, ties by index: Python's own stable sort."""
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def expected_rows(scores, k, axis):
    kept = np.zeros(scores.shape, bool)
    free = [range(size) for a, size in enumerate(scores.shape) if a != axis % scores.ndim]
    for index in itertools.product(*free):
        where = list(index)
        where.insert(axis % scores.ndim, slice(None))
        line = scores[tuple(where)]
        kept[tuple(where)] = [i in greedy(line.tolist(), k) for i in range(len(line))]
    return kept


def both(constraint, scores):
    """The support, after holding NumPy and torch (also as bfloat16-safe values) equal."""
    kept = constraint.support(scores)
    assert kept.dtype == bool
    assert kept.shape == scores.shape
    tensor = constraint.support(torch.from_numpy(scores.copy()))
    assert tensor.dtype == torch.bool
    np.testing.assert_array_equal(tensor.numpy(), kept)
    narrow = constraint.support(torch.from_numpy(scores.copy()).to(torch.bfloat16))
    np.testing.assert_array_equal(narrow.numpy(), kept)
    return kept


@pytest.mark.covers("TopK")
@settings(max_examples=40)
@given(scores=arrays(), data=st.data())
def test_topk_keeps_the_k_best_of_each_line(scores, data):
    axis = data.draw(st.integers(-scores.ndim, scores.ndim - 1))
    k = data.draw(st.integers(0, scores.shape[axis]))
    np.testing.assert_array_equal(both(TopK(k, axis), scores), expected_rows(scores, k, axis))


@pytest.mark.covers("BatchTopK")
@settings(max_examples=40)
@given(scores=arrays(min_dims=2), data=st.data())
def test_batchtopk_keeps_the_best_of_the_whole_batch(scores, data):
    axis = data.draw(st.integers(-scores.ndim, scores.ndim - 1))
    k = data.draw(st.integers(0, scores.shape[axis]))
    kept = both(BatchTopK(k, axis), scores)
    flat = scores.ravel().tolist()
    count = k * scores.size // scores.shape[axis]
    assert set(np.flatnonzero(kept.ravel())) == greedy(flat, count)


@pytest.mark.covers("FeatureTopK")
@settings(max_examples=40)
@given(scores=arrays(min_dims=2), data=st.data())
def test_featuretopk_keeps_each_features_best_over_the_batch(scores, data):
    axis = data.draw(st.integers(-scores.ndim, scores.ndim - 1))
    features = scores.shape[axis]
    batch = scores.size // features
    k = data.draw(
        st.one_of(st.integers(0, batch), st.lists(st.integers(0, batch), min_size=features, max_size=features))
    )
    kept = both(FeatureTopK(k, axis), scores)
    for i in range(features):
        line, chosen = np.take(scores, i, axis).ravel(), np.take(kept, i, axis).ravel()
        assert set(np.flatnonzero(chosen)) == greedy(line.tolist(), k if isinstance(k, int) else k[i])


@pytest.mark.covers("FanIn")
def test_fanin_counts_all_inputs_of_a_convolution():
    weight = np.random.default_rng(0).standard_normal((5, 3, 2, 2)).astype(np.float32)
    kept = both(FanIn(4), np.abs(weight).astype(np.float16).astype(np.float32))
    assert (kept.reshape(5, -1).sum(1) == 4).all()
    assert (FanIn(2, axis=1).support(weight).sum((0, 2, 3)) == 2).all()


@pytest.mark.covers("NM")
@settings(max_examples=40)
@given(scores=arrays(), n=st.integers(0, 3), axis=st.integers(-1, 0))
def test_nm_keeps_n_of_every_m(scores, n, axis):
    scores = np.concatenate([scores, scores, scores], axis)
    kept = np.moveaxis(both(NM(n, 3, axis), scores), axis, -1)
    groups = np.moveaxis(scores, axis, -1).reshape(-1, 3)
    np.testing.assert_array_equal(kept.reshape(-1, 3), expected_rows(groups, n, -1))


@pytest.mark.covers("Block")
@pytest.mark.parametrize("axes", [None, (0, 1), (-1, 0)])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_block_keeps_whole_blocks_of_largest_sum(k, axes):
    scores = np.random.default_rng(k).integers(-4, 5, (4, 6)).astype(np.float64)
    shape = (2, 3) if axes != (-1, 0) else (3, 2)
    kept = both(Block(k, shape, axes), scores)
    tiles = {(i, j): (slice(2 * i, 2 * i + 2), slice(3 * j, 3 * j + 3)) for i in range(2) for j in range(2)}
    order = list(tiles) if axes != (-1, 0) else [(i, j) for j in range(2) for i in range(2)]
    best = greedy([scores[tiles[t]].sum() for t in order], k)
    for position, tile in enumerate(order):
        assert (kept[tiles[tile]] == (position in best)).all()


def test_block_along_one_axis_counts_per_row_and_survives_infinity():
    scores = np.array([[1.0, 1.0, -np.inf, 9.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(both(Block(1, 2), scores), [[True, True, False, False]] * 2)
    with pytest.raises(InputError, match=r"scores \(summed by block\)"):
        Block(1, 2).support(np.array([[np.inf, -np.inf]]))


@pytest.mark.covers("Threshold")
def test_threshold_is_strict_and_broadcasts():
    scores = np.array([[0.5, 1.0, -np.inf], [2.0, 0.0, 1.0]])
    np.testing.assert_array_equal(both(Threshold(0.5), scores), [[False, True, False], [True, False, True]])
    each = np.array([0.25, 1.0, 0.5])
    np.testing.assert_array_equal(both(Threshold(each), scores), [[True, False, False], [True, False, True]])
    learned = torch.tensor(each, requires_grad=True)
    assert Threshold(learned).support(torch.from_numpy(scores)).sum() == 3
    for wrong in (np.zeros(2), np.zeros((5, 2, 3))):
        with pytest.raises(InputError, match="threshold: got shape"):
            Threshold(wrong).support(scores)


@pytest.mark.covers("RandomSupport")
def test_random_support_is_seeded_fair_and_blind_to_scores():
    scores = np.random.default_rng(0).standard_normal((2000, 8))
    kept = both(RandomSupport(2, seed=3), scores)
    assert (kept.sum(1) == 2).all()
    np.testing.assert_array_equal(kept, RandomSupport(2, seed=3).support(-scores))
    assert (kept != RandomSupport(2, seed=4).support(scores)).any()
    assert np.abs(kept.mean(0) - 0.25).max() < 0.05  # five standard deviations
    assert (RandomSupport(3, axis=0).support(scores).sum(0) == 3).all()


def every_support(shape, allowed):
    """All boolean arrays of that shape that ``allowed`` accepts."""
    for bits in itertools.product([False, True], repeat=int(np.prod(shape))):
        kept = np.array(bits).reshape(shape)
        if allowed(kept):
            yield kept


SETS = {
    "TopK": (TopK(1, axis=0), lambda s: (s.sum(0) == 1).all()),
    "BatchTopK": (BatchTopK(2), lambda s: s.sum() == 4),
    "FeatureTopK": (FeatureTopK((0, 1, 2, 1)), lambda s: (s.sum(0) == [0, 1, 2, 1]).all()),
    "FanIn": (FanIn(3), lambda s: (s.sum(1) == 3).all()),
    "NM": (NM(1, 2), lambda s: (s.reshape(2, 2, 2).sum(2) == 1).all()),
    "Block": (Block(1, (2, 2)), lambda s: s.sum() == 4 and (s[:, :2].all() or s[:, 2:].all())),
}


@pytest.mark.parametrize("name", SETS)
@given(x=hnp.arrays(np.float64, (2, 4), elements=st.floats(-3, 3)))
@settings(max_examples=25)
def test_project_gives_the_nearest_point_of_the_set(name, x):
    constraint, allowed = SETS[name]
    nearest = min(np.linalg.norm(x - np.where(kept, x, 0)) for kept in every_support((2, 4), allowed))
    projected = constraint.project(x)
    assert np.linalg.norm(x - projected) <= nearest + 1e-12
    assert allowed(constraint.support(abs(projected)))  # a point of the set
    np.testing.assert_array_equal(constraint.project(projected), projected)
    np.testing.assert_array_equal(constraint.project(torch.from_numpy(x)).numpy(), projected)


EVERY = [TopK(0), BatchTopK(0), FeatureTopK(0), FanIn(0), Threshold(0.0), NM(1, 2), Block(0, 2), RandomSupport(0)]


@pytest.mark.parametrize("constraint", EVERY, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_empty_arrays_are_legal(constraint, shape):
    for x in (np.zeros(shape, np.float32), torch.zeros(shape)):
        assert tuple(constraint.support(x).shape) == shape
        assert tuple(constraint.project(x).shape) == shape


@pytest.mark.parametrize("constraint", EVERY, ids=lambda c: type(c).__name__)
def test_bad_scores_are_refused_by_name(constraint):
    with pytest.raises(InputError, match=r"scores: 1 of 4 entries are NaN"):
        constraint.support(np.array([[1.0, np.nan, 0.0, 2.0]]))
    with pytest.raises(InputError, match=r"x: 1 of 4 entries are NaN"):
        constraint.project(torch.tensor([[1.0, float("nan"), 0.0, 2.0]]))
    for wrong in ([1.0, 2.0], np.array([1, 2]), torch.tensor([True, False]), np.float64(3.0), torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"scores: got"):
            constraint.support(wrong)


@pytest.mark.parametrize("kept", [TopK(3), BatchTopK(3), FeatureTopK(3), FanIn(3), Block(3, 2), RandomSupport(3)])
def test_counts_that_do_not_fit_are_refused(kept):
    with pytest.raises(InputError, match=r"k: got 3, want at most 2"):
        kept.support(np.zeros((2, 2) if not isinstance(kept, Block) else (2, 4)))


def test_bad_settings_are_refused():
    for make in (TopK, BatchTopK, FeatureTopK, FanIn, RandomSupport, lambda k: Block(k, 2), lambda k: FeatureTopK([k])):
        for wrong in (-1, 1.5, "2", True, None):
            with pytest.raises(InputError, match="k"):
                make(wrong)
    for make in (
        lambda: NM(3, 2), lambda: NM(1, 0), lambda: Block(1, 0), lambda: Block(1, (2, 2), axes=(0,)),
        lambda: Threshold(float("nan")), lambda: Threshold("0"), lambda: Threshold(np.array([np.nan])),
        lambda: RandomSupport(1, seed=-1), lambda: TopK(1, axis=0.5),
    ):  # fmt: skip
        with pytest.raises(InputError):
            make()
    x = np.zeros((2, 3))
    for constraint, said in (
        (TopK(1, axis=2), "axis: got 2"), (BatchTopK(1, axis=-3), "axis: got -3"), (NM(1, 2), "multiple of m = 2"),
        (Block(1, 2), "multiple of 2"), (Block(1, (1, 1), axes=(0, -2)), "different axes"),
        (FeatureTopK([1, 1]), "got 2 counts, want 3"), (Block(1, 2, axes=5), "axes: got 5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            constraint.support(x)


def test_noncontiguous_and_read_only_arrays_are_read_as_they_are():
    x = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    view = x[::2, ::-2]
    view.flags.writeable = False
    for constraint in (TopK(2), TopK(1, axis=0), BatchTopK(1), NM(1, 2), Block(1, 2), FeatureTopK(1)):
        np.testing.assert_array_equal(constraint.support(view), constraint.support(view.copy()))
        kept = constraint.support(torch.from_numpy(x)[::3].T)
        np.testing.assert_array_equal(kept.numpy(), constraint.support(np.ascontiguousarray(x[::3].T)))


def test_gradients_flow_through_a_projection_where_kept():
    x = torch.tensor([[3.0, -4.0, 1.0, 0.5]], requires_grad=True)
    for constraint in (TopK(2), Block(1, 2), BatchTopK(2)):
        (grad,) = torch.autograd.grad(constraint.project(x).sum(), x)
        assert grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_block_projection_does_not_underflow():
    x = np.array([1e-30, 2e-30, 3e-30, 0.0], np.float32)
    assert Block(1, 2).project(x).tolist() == [0.0, 0.0, x[2], 0.0]

"""Laws of scores: shape, sign, equality in NumPy and torch, repeatable draws, missing input named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ellzero.errors import InputError
from ellzero.parts import scores
from ellzero.parts.scores import Gradient, Magnitude, Momentum, Random, Saliency
from ellzero.registry import entries

EXAMPLES = [entry.example() for entry in entries(kind="score") if entry.module == scores.__name__]
FINITE = st.floats(-1e3, 1e3, width=32)


def test_every_score_is_registered():
    assert {type(example).__name__ for example in EXAMPLES} == set(scores.__all__)


@pytest.mark.parametrize("score", EXAMPLES, ids=repr)
@given(data=st.data(), shape=array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
@settings(deadline=None, max_examples=25)
def test_scores_are_non_negative_shaped_like_the_weight_and_equal_in_torch(score, data, shape):
    w, g, m = (data.draw(arrays(np.float32, shape, elements=FINITE)) for _ in range(3))
    state = {"momentum": m, "name": "layer", "step": 3}
    plain = score(w, g, state)
    assert plain.shape == shape
    assert plain.dtype == np.float32
    assert (plain >= 0).all()
    tensor = score(torch.from_numpy(w), torch.from_numpy(g), {**state, "momentum": torch.from_numpy(m)})
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), plain)


def test_the_formulas():
    w, g, m = np.array([1.0, -2.0, 0.0]), np.array([-3.0, 0.5, 4.0]), np.array([0.0, -7.0, 1.0])
    np.testing.assert_array_equal(Magnitude()(w), [1, 2, 0])
    np.testing.assert_array_equal(Gradient()(w, g), [3, 0.5, 4])
    np.testing.assert_array_equal(Saliency()(w, g), [3, 1, 0])
    np.testing.assert_array_equal(Momentum()(w, g, {"momentum": m}), [0, 7, 1])


def test_saliency_is_the_first_order_change_of_the_loss():
    generator = np.random.default_rng(0)
    w, target = generator.normal(size=5), generator.normal(size=5)
    loss = lambda w: ((w - target) ** 2).sum() / 2  # noqa: E731
    eps = 1e-6
    for i in range(5):
        moved = w.copy()
        moved[i] *= 1 - eps
        assert abs(loss(moved) - loss(w)) / eps == pytest.approx(Saliency()(w, w - target)[i], rel=1e-4)


def test_random_repeats_by_seed_name_and_step_and_differs_otherwise():
    w, state = np.zeros((40, 50)), {"name": "a", "step": 1}
    first = Random(1)(w, None, state)
    np.testing.assert_array_equal(first, Random(1)(w + 5, None, dict(state)))
    for other in (
        Random(2)(w, None, state),
        Random(1)(w, None, {**state, "name": "b"}),
        Random(1)(w, None, {"name": "a"}),
    ):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.1
    assert abs(first.mean() - 0.5) < 0.03


def test_random_leaves_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Random()(torch.zeros(3, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    "build",
    [
        lambda w: Gradient()(w), lambda w: Saliency()(w, None), lambda w: Momentum()(w), lambda w: Momentum()(w, w, {}),
        lambda w: Gradient()(w, np.zeros(3)), lambda w: Momentum()(w, None, {"momentum": np.zeros(1)}),
        lambda w: Random(-1), lambda w: Random(0.5),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(build):
    with pytest.raises(InputError, match="want"):
        build(np.zeros((2, 2)))

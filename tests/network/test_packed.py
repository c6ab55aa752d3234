"""Packed weights: a round trip to the bit, never larger than dense, and damage named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.network import packed


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)  # fmt: skip
@settings(deadline=None, max_examples=80)
def test_the_round_trip_is_exact_and_never_larger(shape, density, seed, dtype):
    draw = np.random.default_rng(seed)
    weight = torch.from_numpy(draw.standard_normal(shape) * (draw.random(shape) < density)).to(dtype)
    weight = weight + 0  # no negative zero
    state = {"w": weight, "steps": torch.tensor(7), "odd:name": torch.ones(2)}
    tensors, shapes = packed.pack(state)
    assert packed.nbytes(tensors) <= packed.nbytes(state)
    back = packed.unpack(tensors, shapes)
    assert set(back) == set(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


@pytest.mark.parametrize("columns", [2**15, 2**15 + 1])
def test_compressed_rows_are_those_of_scipy(columns):
    weight = np.zeros((3, columns), np.float32)
    weight[0, [1, columns - 1]] = 1.0, 2.0
    weight[2, 5] = 3.0
    tensors, shapes = packed.pack({"w": torch.from_numpy(weight)})
    want = sparse.csr_array(weight)
    np.testing.assert_array_equal(tensors["w:values"], want.data)
    np.testing.assert_array_equal(tensors["w:columns"], want.indices)
    np.testing.assert_array_equal(tensors["w:rows"], want.indptr)
    assert tensors["w:columns"].dtype == (torch.int16 if columns == 2**15 else torch.int32)
    assert packed.nbytes(tensors) == 3 * 4 + 3 * (2 if columns == 2**15 else 4) + 4 * 4
    np.testing.assert_array_equal(packed.unpack(tensors, shapes)["w"], weight)


@pytest.mark.parametrize("damage", ["columns", "negative", "rows", "values", "shape", "missing"])
def test_damage_is_named(damage):
    weight = torch.zeros(4, 50)
    weight[1, 3], weight[2, 7] = 1.0, 2.0
    tensors, shapes = packed.pack({"w": weight})
    if damage == "missing":
        del tensors["w:columns"]
    elif damage == "shape":
        shapes["w"] = [5, 50]
    elif damage == "values":
        tensors["w:values"] = tensors["w:values"][:1]
    elif damage == "rows":
        tensors["w:rows"] = tensors["w:rows"].flip(0)
    else:
        tensors["w:columns"][0] = 50 if damage == "columns" else -1
    with pytest.raises(InputError, match="w: "):
        packed.unpack(tensors, shapes)

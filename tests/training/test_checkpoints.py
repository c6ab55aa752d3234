"""Checkpoints: a round trip to the bit, the newest complete one, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.training import checkpoints

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def same(a, b):
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(tree=TREES)
@settings(deadline=None, max_examples=80)
def test_plain_trees_come_back_with_types_and_order(tree):
    assert same(tree, checkpoints.unpack(*checkpoints.pack(tree)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.float64])
def test_tensors_come_back_to_the_bit(tmp_path, dtype):
    x = torch.arange(12).reshape(3, 4).T.to(dtype)
    checkpoints.save(tmp_path, 3, {"x": x, "deep": [{"y": x[0]}, torch.tensor(5.0)]})
    step, state = checkpoints.latest(tmp_path)
    assert step == 3
    assert state["x"].dtype == dtype
    assert torch.equal(state["x"], x)
    assert torch.equal(state["deep"][0]["y"], x[0])
    assert state["deep"][1].shape == ()


def test_names_with_dots_and_numbers_as_keys_do_not_collide():
    tree = {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1), 1: [torch.full((1,), 2.0)], "1": {"0": torch.ones(2)}}
    back = checkpoints.unpack(*checkpoints.pack(tree))
    assert back["a"]["b"].item() == 1
    assert back["a.b"].item() == 0
    assert back[1][0].item() == 2
    assert back["1"]["0"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_generator_of_numpy_is_kept(tmp_path, kind):
    ours = np.random.Generator(kind(4))
    ours.random(5)
    checkpoints.save(tmp_path, 1, {"a": ours})
    want = ours.random(5)
    fresh = np.random.Generator(kind(0))
    checkpoints.restore_generator(fresh, checkpoints.latest(tmp_path)[1]["a"])
    np.testing.assert_array_equal(fresh.random(5), want)


def test_generators_go_on_where_they_stood(tmp_path):
    theirs, ours = torch.Generator().manual_seed(3), np.random.default_rng(4)
    torch.rand(5, generator=theirs), ours.random(5)
    checkpoints.save(tmp_path, 1, {"a": theirs, "b": ours})
    want = torch.rand(5, generator=theirs), ours.random(5)
    state = checkpoints.latest(tmp_path)[1]
    fresh = torch.Generator(), np.random.default_rng(0)
    checkpoints.restore_generator(fresh[0], state["a"])
    checkpoints.restore_generator(fresh[1], state["b"])
    assert torch.equal(torch.rand(5, generator=fresh[0]), want[0])
    np.testing.assert_array_equal(fresh[1].random(5), want[1])


def test_only_the_newest_are_kept_and_leftovers_of_a_kill_go(tmp_path):
    (tmp_path / ".step-000000001.safetensors.7.ab.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(5):
        checkpoints.save(tmp_path, step, {"x": torch.zeros(2)}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt", "step-000000003.safetensors", "step-000000004.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_newest_is_passed_over_for_the_one_before(tmp_path, damage):
    for step in (1, 2):
        path = checkpoints.save(tmp_path, step, {"x": torch.full((50,), float(step))})
    content = path.read_bytes()
    path.write_bytes({
        "cut": content[: len(content) // 2], "empty": b"", "foreign": b"PK\x03\x04" + b"0" * 99,
        "flip": content[:-7] + bytes([content[-7] ^ 1]) + content[-6:],
    }[damage])  # fmt: skip
    step, state = checkpoints.latest(tmp_path)
    assert (step, state["x"][0].item()) == (1, 1.0)
    (tmp_path / "step-000000001.safetensors").unlink()
    with pytest.raises(InputError, match="step-000000002"):
        checkpoints.latest(tmp_path)


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path):
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "none") is None


def test_what_cannot_be_stored_is_named_and_the_old_one_stays(tmp_path):
    checkpoints.save(tmp_path, 1, {"x": 1})
    with pytest.raises(InputError, match=r"state\.a\.0: got object"):
        checkpoints.save(tmp_path, 2, {"a": [object()]})
    with pytest.raises(InputError, match="the key"):
        checkpoints.save(tmp_path, 2, {"a": {(1, 2): 3}})
    assert checkpoints.latest(tmp_path)[0] == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="checkpoints"):
        checkpoints.save(tmp_path / "file", 1, {})

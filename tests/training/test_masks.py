"""Laws of mask turnover: exact counts, stable ties, nothing outside ``within``, the optimiser forgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.training.masks import bits, drop_and_grow, has_nan, hold, hold_state, largest, scale_by_fan_in


def by_sorting(scores, k):
    flat = scores.reshape(-1).numpy()
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


@given(rows=st.integers(1, 6), columns=st.integers(1, 9), levels=st.integers(1, 20), data=st.data())
@settings(deadline=None, max_examples=80)
def test_largest_is_a_stable_sort(rows, columns, levels, data):
    k, seed = data.draw(st.integers(0, rows * columns)), data.draw(st.integers(0, 99))
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (rows, columns)).astype(np.float32))
    scores[scores == 0] = -torch.inf
    np.testing.assert_array_equal(largest(scores, k).numpy(), by_sorting(scores, k))
    turned = scores.T  # not contiguous
    np.testing.assert_array_equal(largest(turned, k).numpy(), by_sorting(turned, k))


@given(seed=st.integers(0, 99), data=st.data())
@settings(deadline=None, max_examples=80)
def test_drop_and_grow_follows_the_published_rule(seed, data):
    draw = np.random.default_rng(seed)
    n = 24
    mask = torch.from_numpy(draw.random(n) < 0.5)
    keep, grow = torch.from_numpy(draw.random(n)), torch.from_numpy(draw.random(n))
    within = torch.from_numpy(draw.random(n) < 0.8) | mask
    kept = int(mask.sum())
    k = data.draw(st.integers(0, int(within.sum())))
    n_drop = data.draw(st.integers(0, kept))
    following = drop_and_grow(mask, keep, grow, k, n_drop, within)
    assert int(following.sum()) == k
    assert not (following & ~within).any()
    best = sorted(mask.nonzero().ravel().tolist(), key=lambda i: -keep[i])[: max(min(k, kept) - n_drop, 0)]
    others = [i for i in within.nonzero().ravel().tolist() if i not in best]
    grown = sorted(others, key=lambda i: -grow[i])[: k - len(best)]
    assert set(following.nonzero().ravel().tolist()) == set(best) | set(grown)


def test_without_a_rule_that_grows_the_mask_only_shrinks():
    mask = torch.tensor([True, False, True, True])
    scores = torch.tensor([1.0, 9.0, 3.0, 2.0])
    assert drop_and_grow(mask, scores, None, 2, 0).tolist() == [False, False, True, True]
    with pytest.raises(InputError, match="want at most 3"):
        drop_and_grow(mask, scores, None, 4, 0)


def test_more_than_may_be_kept_is_refused():
    mask = torch.tensor([True, False, False])
    with pytest.raises(InputError, match="want at most 2"):
        drop_and_grow(mask, torch.ones(3), torch.ones(3), 3, 0, torch.tensor([True, True, False]))


@pytest.mark.parametrize("k", [-1, 5, 1.5, True])
def test_largest_refuses_k_out_of_range(k):
    with pytest.raises(InputError, match="k"):
        largest(torch.arange(4.0), k)


def test_largest_refuses_nan():
    with pytest.raises(InputError, match="1 of 3 are NaN"):
        largest(torch.tensor([1.0, torch.nan, 2.0]), 1)


@pytest.mark.parametrize("kept", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_largest_where_most_entries_may_not_be_chosen(kept, dtype):
    draw = np.random.default_rng(3)
    scores = torch.from_numpy(draw.integers(0, 40, 400)).to(dtype)
    scores[torch.from_numpy(draw.random(400) >= kept)] = -torch.inf if dtype.is_floating_point else -7
    for k in (1, 5, 12, 200, 399):
        want = by_sorting(scores if dtype == torch.int64 else scores.double(), k)
        np.testing.assert_array_equal(largest(scores, k).numpy(), want)


def test_nan_is_told_from_infinities():
    inf, nan = torch.inf, torch.nan
    for values, want in (([1, inf], False), ([inf, -inf, 0], False), ([inf, nan], True), ([nan], True), ([], False)):
        assert has_nan(torch.tensor(values, dtype=torch.float32)) is want


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.complex64,
              torch.complex128]
)  # fmt: skip
def test_held_entries_are_zero_whatever_was_there_and_others_keep_their_bits(dtype):
    x = torch.arange(1, 13).reshape(3, 4).to(dtype)
    if dtype.is_floating_point:
        x[0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    mask = torch.tensor([[True, False, False, False], [True, True, False, False], [False, False, False, True]])
    for tensor, kept in ((x.clone(), mask), (x.clone().T, mask.T)):
        before = tensor.clone()
        hold(tensor, bits(kept, tensor))
        assert (tensor[~kept] == 0).all()
        assert torch.equal(tensor[kept].nan_to_num(7) if dtype.is_floating_point else tensor[kept],
                           before[kept].nan_to_num(7) if dtype.is_floating_point else before[kept])  # fmt: skip
    other = torch.full((3, 4), torch.nan)  # an optimiser that remembers in another width
    hold(other, bits(mask, x))
    assert (other[~mask] == 0).all()
    assert other[mask].isnan().all()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "amsgrad", "rmsprop"])
def test_holding_zeroes_every_state_shaped_like_the_weight_and_nothing_else(kind):
    w, other = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
        "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9),
    }[kind]([w, other])
    for _ in range(2):
        ((w * torch.arange(1.0, 13).reshape(3, 4)).sum() + other.sum()).backward()
        optimizer.step()
    entries = torch.zeros(3, 4, dtype=torch.bool)
    entries[1, 2] = entries[0, 0] = True
    before = {key: value.clone() for key, value in optimizer.state[w].items() if value is not None}
    hold_state(optimizer, w, bits(~entries, w))
    shaped = [key for key, value in before.items() if value.shape == w.shape]
    assert shaped
    for key, value in before.items():
        now = optimizer.state[w][key]
        if key in shaped:
            assert (now[entries] == 0).all()
            assert (value[entries] != 0).all()
            assert torch.equal(now[~entries], value[~entries])
        else:
            assert torch.equal(now, value)
    assert all((value != 0).all() for value in optimizer.state[other].values() if value is not None)


def test_scaled_rows_keep_their_variance():
    draw = np.random.default_rng(0)
    weight = torch.from_numpy(draw.standard_normal((4, 5, 20, 20)))
    mask = torch.from_numpy(draw.random(weight.shape)) < torch.tensor([0.05, 0.2, 0.9, 1.0]).reshape(4, 1, 1, 1)
    scale_by_fan_in(weight, mask)
    energy = (weight * mask).square().sum((1, 2, 3)) / 2000
    assert torch.allclose(energy, torch.ones(4, dtype=energy.dtype), atol=0.25)
    bias = torch.ones(3)
    scale_by_fan_in(bias, torch.tensor([True, False, True]))
    assert bias.tolist() == [1, 1, 1]

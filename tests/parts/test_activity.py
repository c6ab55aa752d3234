"""Laws of penalties of activity: their formulas, derivatives by finite differences, NumPy and torch alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ellzero.errors import InputError
from ellzero.parts import activity
from ellzero.parts.activity import Flops, L0Mask, L1Activity
from ellzero.registry import entries

EXAMPLES = [entry.example() for entry in entries(kind="activity") if entry.module == activity.__name__]
WEIGHED = [Flops([0.5, 0.0, 2.0, 1.0]), L1Activity([0.5, 0.0, 2.0, 1.0]), L0Mask(L1Activity(), 2)]
BATCHES = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.0, 1.0, 3.0])
)


def test_every_penalty_of_activity_is_registered():
    assert {type(example).__name__ for example in EXAMPLES} == set(activity.__all__)


def by_hand(penalty, x):
    """The formulas entry by entry, in plain Python."""
    if isinstance(penalty, L0Mask):
        kept = [[v if sum(u != 0 for u in row) > penalty.threshold else 0.0 for v in row] for row in x.tolist()]
        return by_hand(penalty.penalty, np.array(kept))
    total = 0.0
    for j in range(x.shape[1]):
        mean = sum(abs(v) for v in x[:, j].tolist()) / len(x)
        mean *= 1.0 if penalty.weights is None else penalty.weights[j]
        total += mean**2 if isinstance(penalty, Flops) else mean
    return total


@pytest.mark.parametrize("penalty", EXAMPLES + WEIGHED, ids=repr)
@given(x=BATCHES)
def test_values_are_the_formulas_in_both_libraries(penalty, x):
    want = by_hand(penalty, x)
    assert penalty.value(x) == pytest.approx(want, abs=1e-12)
    assert penalty.value(torch.from_numpy(x)).item() == pytest.approx(want, abs=1e-12)
    small = penalty.value(torch.from_numpy(x).float())
    assert small.dtype == torch.float32
    assert penalty.value(np.stack([x, x])) == pytest.approx(want, abs=1e-12)  # leading axes count as rows


@pytest.mark.parametrize("penalty", EXAMPLES + WEIGHED, ids=repr)
def test_derivatives_by_finite_differences(penalty):
    x = torch.tensor(
        [[1.0, 0.0, 2.0, 0.3], [0.0, 0.0, 0.7, 0.0], [0.2, 0.5, 0.1, 0.9]], dtype=torch.float64, requires_grad=True
    )
    found = torch.autograd.grad(penalty.value(x), x)[0].numpy()
    base = x.detach().numpy()
    for i, j in zip(*np.nonzero(base)):  # at 0 there is a kink, and the mask counts what is exactly 0
        up, down = base.copy(), base.copy()
        up[i, j] += 1e-6
        down[i, j] -= 1e-6
        assert found[i, j] == pytest.approx((penalty.value(up) - penalty.value(down)) / 2e-6, abs=1e-7)
    assert (found[base == 0] == 0).all()


def test_a_masked_row_gets_no_derivative_and_still_counts_in_the_mean():
    x = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]], requires_grad=True)
    value = L0Mask(Flops(), 2).value(x)
    value.backward()
    assert value.item() == pytest.approx(3 * 0.5**2)
    assert x.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert x.grad[0].tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_the_flops_penalty_is_smallest_when_activity_is_even():
    """At equal L1, and it counts what two rows have in common: the mean over pairs of the products."""
    draw = np.random.default_rng(0)
    x = draw.random((50, 30)) * (draw.random((50, 30)) < 0.3)
    even = np.full_like(x, x.sum() / x.size)
    assert L1Activity().value(x) == pytest.approx(L1Activity().value(even))
    assert Flops().value(even) < Flops().value(x)
    assert Flops().value(x) == pytest.approx(np.mean([a @ b for a in x for b in x]))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Flops([-1.0]), "weights: got -1.0"),
        (lambda: Flops([[1.0]]), "weights: got shape"),
        (lambda: L1Activity([np.nan]), "weights: 1 entry not finite"),
        (lambda: L0Mask(threshold=-1), "threshold"),
        (lambda: L0Mask(3), "penalty: got int"),
        (lambda: Flops().value(np.ones(3)), r"x: got shape \(3,\)"),
        (lambda: Flops().value(np.ones((2, 3), int)), "x: got dtype"),
        (lambda: Flops().value(np.ones((0, 3))), "no entries"),
        (lambda: Flops([1.0, 2.0]).value(np.ones((2, 3))), "weights: got 2, want one for each of the 3"),
    ],
)
def test_refusals(build, words):
    with pytest.raises(InputError, match=words):
        build()

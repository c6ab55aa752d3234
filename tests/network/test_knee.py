"""The knee on known curves, one-shot cuts that leave no trace, and near-zero weights counted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InputError
from ellzero.network.knee import abrupt_sparsification, essential_sparsity, knee_of
from ellzero.parts.allocations import kept_count
from ellzero.parts.constraints import NM
from tests.network.test_sparsifier import Small

NUMEL = 36 + 256 + 48


def weights_of(model):
    return {n: p for n, p in model.named_parameters() if n in ("conv.weight", "one.weight", "head.weight")}


def sparsity_of(model):
    return 1 - sum(int(w.count_nonzero()) for w in weights_of(model).values()) / NUMEL


# -- curves


@pytest.mark.parametrize("knee", [0.2, 0.5, 0.7])
def test_the_knee_of_two_straight_lines_is_where_they_meet(knee):
    x = np.linspace(0, 1, 11)
    assert knee_of(x, np.where(x <= knee, 1 - 0.1 * x, 1 - 0.1 * knee - 2 * (x - knee))) == pytest.approx(knee)


def test_the_knee_of_a_parabola_is_half_way_and_scales_with_both_axes():
    x = np.linspace(0, 2, 41)
    assert knee_of(x, 1 - x**2) == pytest.approx(1)
    assert knee_of(10 + 3 * x, 7 - 5 * x**2) == pytest.approx(13)
    assert knee_of([0, 1, 2], [1, 0.5, 0]) == 0  # straight: the first


@pytest.mark.parametrize(("tolerance", "essential"), [(0.0, 0.1), (0.05, 0.4), (0.2, 0.6), (2.0, 0.9)])
def test_the_last_sparsity_within_the_tolerance_of_a_known_curve(tolerance, essential):
    """Quality 1 to 0.1, then 0.96 up to 0.4, 0.85 at 0.5 and 0.6, and a recovery that does not count at 0.8."""
    curve = {0.0: 1, 0.1: 1, 0.2: 0.96, 0.3: 0.96, 0.4: 0.96, 0.5: 0.85, 0.6: 0.85, 0.7: 0.0, 0.8: 1.0, 0.9: 0.0}
    judge = lambda model: curve[round(sparsity_of(model), 1)]  # noqa: E731
    found = essential_sparsity(Small(), judge, list(curve), tolerance=tolerance)
    assert found.essential == pytest.approx(essential, abs=1 / NUMEL)
    assert found.quality.tolist() == list(curve.values())


def test_slopes_are_the_mean_falls_on_both_sides_of_the_knee():
    judge = lambda model: 1 - 0.5 * sparsity_of(model) - 4 * max(sparsity_of(model) - 0.5, 0)  # noqa: E731
    found = essential_sparsity(Small(), judge)
    assert found.knee == 0.5
    assert found.slopes == pytest.approx((0.5, 4.5))
    risen = essential_sparsity(Small(), sparsity_of)
    assert risen.essential == risen.sparsities[-1]
    assert risen.slopes[0] == 0 or risen.slopes == pytest.approx((-1, -1))


# -- cuts


class Watching:
    """A judge that keeps the weights it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, model):
        self.seen.append({name: w.detach().clone() for name, w in weights_of(model).items()})
        return 1.0


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_cuts_take_the_smallest_and_leave_no_trace(allocation):
    model, watch = Small(), Watching()
    before = copy.deepcopy(model.state_dict())
    grid = [0, 0.25, 0.5, 0.9]
    found = essential_sparsity(model, watch, grid, allocation=allocation)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.two.weight is model.one.weight
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for sparsity, realised, seen in zip(grid, found.sparsities, watch.seen):
        kept = {name: int(w.count_nonzero()) for name, w in seen.items()}
        assert realised == 1 - sum(kept.values()) / NUMEL
        if allocation == "uniform":
            assert kept == {name: kept_count(w.numel(), 1 - sparsity) for name, w in seen.items()}
            continue
        assert sum(kept.values()) == kept_count(NUMEL, 1 - sparsity)
        stay = torch.cat([before[n].abs()[w != 0] for n, w in seen.items()])
        gone = torch.cat([before[n].abs()[w == 0] for n, w in seen.items()])
        assert not len(gone) or stay.min() >= gone.max()


def test_a_judge_that_fails_leaves_the_weights_too():
    model = Small()
    before = copy.deepcopy(model.state_dict())
    answers = iter([1.0, 1.0, float("nan")])
    with pytest.raises(InputError, match="judge: got NaN"):
        essential_sparsity(model, lambda net: next(answers))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match="judge"):
        essential_sparsity(model, lambda net: (_ for _ in ()).throw(RuntimeError("judge")))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pattern_cuts_along_the_inputs():
    model, watch = Small(), Watching()
    found = essential_sparsity(model, watch, [0, 0.25, 0.5, 0.75], pattern=lambda s: NM(round(4 * (1 - s)), 4))
    assert found.sparsities[2] == (128 + 24) / NUMEL  # the convolution's one input channel stays whole
    for n, seen in zip((4, 3, 2, 1), watch.seen):
        assert (seen["one.weight"].reshape(16, 4, 4).count_nonzero(-1) == n).all()
        assert seen["conv.weight"].all()


def test_the_names_choose_what_is_cut():
    found = essential_sparsity(Small(), sparsity_of, [0, 0.5, 0.75], include="one.weight")
    assert found.quality == pytest.approx([0, 128 / NUMEL, 192 / NUMEL])
    assert found.sparsities == pytest.approx([0, 0.5, 0.75])


# -- near zero


def test_near_zero_weights_are_counted_by_hand():
    even = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.001, 0.02, 0.0, 0.3]])
    state = {"w": even, "bias": torch.zeros(9), "steps": torch.zeros(3, 3, dtype=torch.long), "v": 100 * even}
    sd = np.std(even.numpy(), ddof=1)
    want = [[np.mean(np.abs(even.numpy()) < t * sd) for t in (1e-4, 1e-2, 0.1)]]
    assert abrupt_sparsification([state], (1e-4, 1e-2, 0.1)).tolist() == want == [[1 / 8, 2 / 8, 3 / 8]]
    later = {**state, "w": even * torch.tensor([0.0, 1, 1, 1])}
    found = abrupt_sparsification([state, later])
    assert found.shape == (2, 3)
    assert found[1, 0] == 4 / 16


# -- what is refused


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sparsities": [0, 0.5]}, "sparsities"), ({"sparsities": [0.1, 0.5, 0.9]}, "sparsities"),
        ({"sparsities": [0, 0.5, 0.5]}, "sparsities"), ({"sparsities": [0, 0.5, 1.0]}, "sparsities"),
        ({"sparsities": [[0, 0.5, 0.9]]}, "sparsities"), ({"sparsities": [0, np.nan, 0.9]}, "sparsities"),
        ({"sparsities": [0, 1e-9, 0.5]}, "sparsities: cuts drop"), ({"tolerance": -0.1}, "tolerance"),
        ({"allocation": "globl"}, "allocation"), ({"exclude": "nothing"}, "exclude"), ({"model": "net"}, "model"),
        ({"judge": lambda model: np.inf}, "judge"),
        ({"pattern": lambda s: NM(2, 4)}, "sparsities: cuts drop"), ({"model": nn.LayerNorm(3)}, "no weight"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(changed, named):
    given = {"model": Small(), "judge": lambda model: 1.0, **changed}
    with pytest.raises(InputError, match=named):
        essential_sparsity(given.pop("model"), given.pop("judge"), **given)


@pytest.mark.parametrize(
    "build",
    [
        lambda: knee_of([0, 1], [1, 0]), lambda: knee_of([0, 1, 1], [1, 0, 0]), lambda: knee_of([0, 1, 2], [1, 0]),
        lambda: knee_of([0, 1, 2], [1, np.nan, 0]), lambda: knee_of([[0, 1, 2]], [[1, 0, 0]]),
        lambda: abrupt_sparsification([]), lambda: abrupt_sparsification([{"b": torch.ones(3)}]),
        lambda: abrupt_sparsification([{"w": torch.ones(3, 3)}], (0.0,)),
    ],
)  # fmt: skip
def test_bad_curves_and_states_are_refused(build):
    with pytest.raises(InputError, match="want"):
        build()

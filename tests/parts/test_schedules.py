"""Laws of schedules: end points, monotonicity, invariance under the unit of time and under d -> 1 - d."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.parts import schedules
from ellzero.parts.schedules import Constant, Cosine, Cubic, Cyclic, Linear, OneShot, Quadratic, Steps
from ellzero.registry import entries

RAMPS = (Linear, Quadratic, Cubic, Cosine)
EXAMPLES = [entry.example() for entry in entries(kind="schedule") if entry.module == schedules.__name__]


def test_every_schedule_is_registered():
    assert {type(example).__name__ for example in EXAMPLES} == set(schedules.__all__)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
@given(step=st.integers(0, 700), total=st.integers(1, 600))
@settings(deadline=None, max_examples=30)
def test_steps_and_progress_agree_and_the_end_holds(schedule, step, total):
    assert schedule(step, total) == schedule(min(step / total, 1.0))
    assert schedule(total + step, total) == schedule(1.0)


@pytest.mark.parametrize("kind", RAMPS)
@given(start=st.floats(-2, 2), stop=st.floats(-2, 2), begin=st.floats(0, 0.4), end=st.floats(0.5, 1), u=st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_ramps_hit_both_ends_exactly_and_stay_between(kind, start, stop, begin, end, u):
    ramp = kind(start, stop, begin, end)
    assert ramp(0) == ramp(begin) == start
    assert ramp(end) == ramp(1) == stop
    assert min(start, stop) - 1e-12 <= ramp(u) <= max(start, stop) + 1e-12
    later = ramp(min(u + 0.1, 1.0))
    assert (later - ramp(u)) * (stop - start) >= -1e-12


@pytest.mark.parametrize("kind", RAMPS)
@given(start=st.floats(0, 1), stop=st.floats(0, 1), u=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_a_schedule_of_sparsities_is_the_mirror_of_one_of_densities(kind, start, stop, u):
    assert kind(start, stop)(u) == pytest.approx(1 - kind(1 - start, 1 - stop)(u), abs=1e-12)


@given(t=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_cubic_is_the_published_polynomial(t):
    s_i, s_f, t0, n = 0.0, 0.9, 20, 60
    want = s_f + (s_i - s_f) * (1 - (min(max(t, t0), t0 + n) - t0) / n) ** 3
    assert 1 - Cubic(1.0, 0.1, 0.2, 0.8)(t, 100) == pytest.approx(want, abs=1e-12)


def test_quadratic_rises_slowly_and_stays():
    assert [Quadratic(0.0, 8.0, 0.0, 0.5)(step, 8) for step in range(6)] == [0.0, 0.5, 2.0, 4.5, 8.0, 8.0]


def test_cosine_at_a_third_and_a_half():
    assert Cosine(0.4, 0.0)(0.5) == pytest.approx(0.2)
    assert Cosine(0.4, 0.0)(1 / 3) == pytest.approx(0.3)
    assert Cosine(1.0, 0.0, 0.0, 0.5)(0.25) == pytest.approx(0.5)


def test_steps_change_at_their_fraction():
    schedule = Steps((3.0, 2.0, 1.0), (0.25, 0.5))
    assert [schedule(step, 8) for step in range(9)] == [3, 3, 2, 2, 1, 1, 1, 1, 1]


def test_one_shot_is_steps_with_one_step():
    for step in range(11):
        assert OneShot(1.0, 0.2, at=0.5)(step, 10) == Steps((1.0, 0.2), (0.5,))(step, 10)


def test_cyclic_repeats_and_ends_at_its_stop():
    schedule = Cyclic(1.0, 0.0, cycles=2)
    assert [schedule(step, 8) for step in range(9)] == [1.0, 0.75, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: Constant(math.nan), lambda: Constant(math.inf), lambda: Constant("a"),
        lambda: Linear(1, 0, begin=0.5, end=0.5), lambda: Linear(1, 0, begin=-0.1), lambda: Linear(math.nan, 0),
        lambda: Cubic(1, 0, end=1.2), lambda: Cubic(1, math.inf), lambda: Cosine(None, 0),
        lambda: Cosine(1, 0, 0.9, 0.2),
        lambda: Steps((1.0,), (0.5,)), lambda: Steps((1.0, 0.5, 0.1), (0.5, 0.2)),
        lambda: Steps((1.0, math.nan), (0.5,)),
        lambda: Cyclic(1, 0, cycles=0), lambda: Cyclic(1, 0, cycles=1.5), lambda: OneShot(1, 0, at=1.5),
        lambda: Constant(1.0)(-1, 10), lambda: Linear(1, 0)(1, 0), lambda: Cosine(1, 0)(math.nan, 10),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(build):
    with pytest.raises(InputError, match="want"):
        build()

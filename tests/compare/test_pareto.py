"""The Pareto set against its definition, the choice of settings, and the point nearest to a budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.compare.pareto import choose_trial, nearest, pareto, summarise
from ellzero.errors import InputError
from ellzero.protocol import Point

small = st.lists(st.tuples(st.integers(1, 6), st.integers(-3, 3)), max_size=12)


@given(points=small, better=st.sampled_from(["higher", "lower"]))
def test_the_pareto_set_is_what_nothing_dominates(points, better):
    sign = 1 if better == "higher" else -1

    def dominates(a, b):
        at_least = a[0] <= b[0] and sign * a[1] >= sign * b[1]
        return at_least and (a[0] < b[0] or sign * a[1] > sign * b[1])

    wanted = [not any(dominates(other, own) for other in points) for own in points]
    assert pareto([p[0] for p in points], [p[1] for p in points], better) == wanted


def point(trial, seed, fidelity, *, target=3.0, realised=3.0, method="m", error=None):
    return Point(method, target, realised, fidelity, 1.0, 0.1, 8, seed, trial=trial, error=error)


def test_the_trial_with_the_best_mean_is_chosen_for_all_seeds():
    points = [point(0, 0, 0.9), point(0, 1, 0.1), point(1, 0, 0.6), point(1, 1, 0.6)]
    assert [p.fidelity for p in choose_trial(points, "higher")] == [0.6, 0.6]
    assert [p.trial for p in choose_trial(points, "lower")] == [0, 0]


def test_a_draw_goes_to_the_first_trial():
    assert choose_trial([point(2, 0, 0.5), point(1, 0, 0.5)], "higher")[0].trial == 1


def test_a_trial_that_failed_on_a_seed_loses():
    points = [point(0, 0, 0.9), point(0, 1, None, error="x"), point(1, 0, 0.2), point(1, 1, 0.2)]
    assert [p.trial for p in choose_trial(points, "higher")] == [1, 1]
    assert choose_trial([point(0, 0, None, error="x")], "higher") == []


def test_means_and_standard_errors_over_seeds():
    values = [0.2, 0.5, 0.8]
    (only,) = summarise([point(0, s, v, realised=s + 2.0) for s, v in enumerate(values)], {"m": False}, "higher")
    assert only.fidelity == pytest.approx(0.5)
    assert only.fidelity_se == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert only.realised == pytest.approx(3.0)
    assert only.pareto
    assert summarise([point(0, 0, 0.2)], {"m": False}, "higher")[0].fidelity_se is None


def test_a_dense_reference_is_never_in_the_set():
    points = [point(0, 0, 0.2), point(0, 0, 0.9, method="d", target=1.0, realised=1.0)]
    rows = summarise(points, {"d": True, "m": False}, "higher")
    assert [(r.method, r.dense, r.pareto) for r in rows] == [("d", True, False), ("m", False, True)]


def test_the_nearest_point():
    points = [point(0, 0, 0.1, target=t, realised=r) for t, r in ((5.0, 4.0), (10.0, 9.0), (40.0, 10.5))]
    rows = summarise([*points, point(0, 0, 1.0, method="d")], {"m": False, "d": True}, "higher")
    assert nearest(rows, "m", 10.0).target == 10.0
    assert nearest(rows, "m", 11.0).target == 40.0
    assert nearest(rows, "m", 1.0).target == 5.0
    assert nearest(rows, "d", None).method == "d"
    with pytest.raises(InputError, match="want one near 5, 10, 40"):
        nearest(rows, "m", None)
    with pytest.raises(InputError, match="above 0"):
        nearest(rows, "m", 0)
    with pytest.raises(InputError, match="no fitted point"):
        nearest(rows, "x", 1.0)

"""Points travel as JSON lines; budgets are positive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.protocol import Budget, Point

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    target=numbers, realised=st.none() | numbers, seconds=numbers, seed=st.integers(0, 9), error=st.none() | st.text()
)
def test_a_point_survives_its_line(target, realised, seconds, seed, error):
    point = Point("lasso", target, realised, None, seconds, None, 3, seed, tuned={"alpha": 0.5}, error=error)
    line = point.to_json()
    assert "\n" not in line
    assert Point.from_json(line) == point


@pytest.mark.parametrize("value", [0, -1, float("nan"), "3"])
def test_a_budget_is_a_positive_number(value):
    with pytest.raises(InputError, match="budget: got"):
        Budget(value, "L0")


def test_a_budget_is_of_what_is_kept_or_seen():
    assert Budget(3, "labels", of="seen").of == "seen"
    with pytest.raises(InputError, match="of: got 'lost'"):
        Budget(3, "labels", of="lost")

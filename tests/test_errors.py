"""Every check names the argument, what came and what is wanted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.errors import (
    InputError,
    MissingExtraError,
    check,
    check_array,
    check_choice,
    check_integer,
    require,
    suggestion,
)

BOUNDS = {
    "at_least": lambda value, bound: value >= bound,
    "above": lambda value, bound: value > bound,
    "at_most": lambda value, bound: value <= bound,
    "below": lambda value, bound: value < bound,
}


@pytest.mark.parametrize("word", BOUNDS)
@given(value=st.floats(allow_nan=False), bound=st.floats(-1e6, 1e6))
def test_check_accepts_exactly_what_the_bound_allows(word, value, bound):
    if BOUNDS[word](value, bound):
        assert check("alpha", value, **{word: bound}) == value
    else:
        with pytest.raises(InputError, match=r"alpha: got .*, want a number"):
            check("alpha", value, **{word: bound})


@pytest.mark.parametrize("value", ["1", None, [1.0], True, np.bool_(True), 1j, float("nan"), np.float32("nan")])
def test_check_refuses_what_is_no_number(value):
    with pytest.raises(InputError, match="alpha: got"):
        check("alpha", value)


@pytest.mark.parametrize("value", [1.0, "3", True, None, np.float64(2)])
def test_check_integer_refuses_what_is_not_whole(value):
    with pytest.raises(InputError, match="k: got"):
        check_integer("k", value)


def test_check_integer_returns_a_python_int_within_bounds():
    assert type(check_integer("k", np.int64(3), at_least=1, at_most=3)) is int
    with pytest.raises(InputError, match="k: got 4, want a number at most 3"):
        check_integer("k", 4, at_most=3)


def test_check_choice_names_the_nearest():
    assert check_choice("method", "lasso", ["lasso", "omp"]) == "lasso"
    with pytest.raises(InputError, match=r"method: got 'laso', want one of lasso, omp; did you mean 'lasso'\?"):
        check_choice("method", "laso", ["lasso", "omp"])
    assert suggestion("zzzz", ["lasso"]) == ""


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_check_array_names_the_first_bad_entry(make):
    x = np.zeros((2, 3))
    x[1, 0] = np.nan
    x[1, 2] = np.inf
    with pytest.raises(InputError, match=r"X: 2 entries not finite, the first \(nan\) at \(1, 0\)"):
        check_array("X", make(x))
    assert check_array("X", make(x), finite=False) is not None


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("x", "wants", "message"),
    [
        (np.zeros(3), {"ndim": 2}, r"got shape \(3,\) \(1 axes\), want 2 axes"),
        (np.zeros((0, 3)), {}, r"got shape \(0, 3\), which has no entries"),
        (np.zeros((2, 3)), {"shape": (None, 4)}, r"got shape \(2, 3\), want \(any, 4\)"),
        (np.zeros(3, dtype=np.int64), {"dtypes": "f"}, r"got dtype .*int64, want floating point"),
        (np.zeros(3, dtype=bool), {"dtypes": "fi"}, r"got dtype .*bool, want floating point or integer"),
        (np.zeros(3, dtype=complex), {"dtypes": "f"}, r"got dtype .*complex128, want floating point"),
    ],
)
def test_check_array_names_shape_and_dtype(make, x, wants, message):
    with pytest.raises(InputError, match="X: " + message):
        check_array("X", make(x), **wants)


def test_check_array_wants_an_array():
    with pytest.raises(InputError, match="X: got list, want an array"):
        check_array("X", [1, 2])
    assert check_array("X", np.zeros((0, 2)), allow_empty=True, ndim=(1, 2)).shape == (0, 2)


def test_require_names_the_extra():
    assert require("json", "report").dumps([]) == "[]"
    with pytest.raises(
        MissingExtraError, match=r"no_such_module is not installed \(plots\): pip install 'ellzero\[report\]'"
    ):
        require("no_such_module", "report", "plots")

"""The fit whose largest error is least, against a primal program and the alternation of its errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from ellzero.errors import InputError
from ellzero.solvers.minimax import minimax_fit


@given(n=st.integers(1, 30), p=st.integers(1, 4), scale=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 500))
def test_no_other_fit_has_a_smaller_error(n, p, scale, seed):
    g = np.random.default_rng(seed)
    x, y = g.standard_normal((n, p)) * scale, g.standard_normal(n) * 3
    w, error = minimax_fit(x, y)
    assert error == pytest.approx(abs(y - x @ w).max())
    rows = np.vstack([np.column_stack([x / scale, -np.ones(n)]), np.column_stack([-x / scale, -np.ones(n)])])
    free = [(None, None)] * p + [(0, None)]
    best = linprog(np.append(np.zeros(p), 1), A_ub=rows, b_ub=np.append(y, -y), bounds=free).fun
    assert error == pytest.approx(best, abs=1e-7)


def test_the_largest_errors_of_a_line_alternate():
    t = np.linspace(-1, 1, 201)
    w, error = minimax_fit(np.column_stack([np.ones(201), t]), t**2)
    np.testing.assert_allclose(w, [0.5, 0], atol=1e-9)
    assert error == pytest.approx(0.5)


def test_columns_of_zeros_and_targets_of_zeros():
    _, error = minimax_fit(np.zeros((4, 2)), np.arange(4.0))
    assert error == 3
    assert minimax_fit(np.eye(3), np.zeros(3))[1] == 0


@pytest.mark.parametrize(("x", "y", "message"), [
    (np.ones(3), np.ones(3), "x: got shape"), (np.ones((3, 1)), np.ones(2), "y: got shape"),
    (np.full((3, 1), np.nan), np.ones(3), "not finite"), (np.ones((0, 1)), np.ones(0), "no entries"),
])  # fmt: skip
def test_bad_input_is_named(x, y, message):
    with pytest.raises(InputError, match=message):
        minimax_fit(x, y)

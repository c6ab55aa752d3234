"""The change of columns: its algebra, what it finds in planted designs, and the difficulty by exhaustive search."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.preconditioning import difficulty, precondition


def dependent(n, p, groups, tightness, seed=0):
    """Columns in groups that share a factor each, up to a part of size ``tightness [groups]``."""
    generator = rng(seed, "dependent")
    group = np.arange(p) % groups
    factors = generator.standard_normal((n, groups))
    return factors[:, group] + np.asarray(tightness)[group] * generator.standard_normal((n, p)), factors


@given(
    n=st.integers(2, 20), p=st.integers(1, 30), groups=st.integers(1, 4), size=st.floats(0, 4), seed=st.integers(0, 99)
)
def test_new_columns_and_old_coefficients_belong_together(n, p, groups, size, seed):
    X, _ = dependent(n, p, groups, np.full(groups, 10.0**-size), seed)
    X *= np.exp(rng(seed, "units").standard_normal(p))
    X[:, p // 3] = 0
    found = precondition(X, min(3, p), seed=seed)
    columns = found.columns(X)
    lengths = np.linalg.norm(columns, axis=0) / np.sqrt(n)
    assert columns.shape == (n, found.rank + p)
    assert ((abs(lengths - 1) < 1e-5) | (lengths < 1e-5)).all()
    taken, left = columns[:, : found.rank], columns[:, found.rank :]
    np.testing.assert_allclose(taken.T @ taken / n, np.eye(found.rank), atol=1e-6)
    np.testing.assert_allclose(taken.T @ left / n, 0, atol=1e-4)
    z = rng(seed, "z").standard_normal(found.rank + p)
    w = found.coef(z)
    np.testing.assert_allclose(X @ w, columns @ z, atol=1e-6 * (1 + abs(X * w).sum(axis=1).max()))
    fresh = rng(seed, "fresh").standard_normal((4, p))
    np.testing.assert_allclose(fresh @ w, found.columns(fresh) @ z, atol=1e-6 * (1 + abs(fresh * w).sum(axis=1).max()))


def test_shared_factors_are_found_and_no_more():
    X, factors = dependent(100, 300, 6, [1e-4, 1e-3, 1e-2, 1e-4, 1e-3, 1e-2])
    found = precondition(X, 5)
    assert found.rank == 6
    taken = found.columns(X)[:, :6]
    left_out = factors - taken @ (taken.T @ factors) / 100
    assert np.linalg.norm(left_out) < 0.01 * np.linalg.norm(factors)
    assert precondition(X, 5, max_directions=4).rank == 4


def test_an_independent_design_is_only_scaled():
    X = rng(0).standard_normal((80, 200)) * np.linspace(0.1, 9, 200)
    found = precondition(X, 5)
    assert found.rank == 0
    np.testing.assert_allclose(found.columns(X), X / np.sqrt(np.mean(X**2, axis=0)))
    z = rng(1).standard_normal(200)
    np.testing.assert_allclose(found.coef(z), z / np.sqrt(np.mean(X**2, axis=0)))


def test_copies_become_pure_combinations():
    generator = rng(0, "copies")
    X = np.hstack([np.repeat(generator.standard_normal((50, 1)), 40, axis=1), generator.standard_normal((50, 40))])
    found = precondition(X, 5)
    assert found.rank == 1
    assert not found.stretch[:40].any()
    assert found.stretch[40:].all()


def test_small_groups_are_left_alone():
    X, _ = dependent(60, 100, 50, np.full(50, 1e-3))  # pairs: a random support seldom has both
    assert precondition(X, 5).rank == 0
    assert precondition(X, 5, spread=100).rank > 0
    assert precondition(rng(0).standard_normal((60, 20)), 5).rank == 0  # a column that explains itself does not count


def test_difficulty_is_the_smallest_singular_value():
    X, _ = dependent(30, 12, 2, [1e-3, 1e-2])
    found = difficulty(X, 2, 400, spread=2)
    unit = X / np.linalg.norm(X, axis=0)
    every = [np.linalg.svd(unit[:, pair])[1][-1] for pair in itertools.combinations(range(12), 2)]
    assert found.rank == 2
    assert found.before.min() == pytest.approx(min(every))
    assert found.before.max() == pytest.approx(max(every))
    assert found.before.min() < 0.005
    assert found.after.min() > 0.3
    before, after = found.quantiles()[0.0]
    assert (before, after) == (found.before.min(), found.after.min())


def test_difficulty_of_an_independent_design_does_not_change():
    found = difficulty(rng(0).standard_normal((100, 300)), 5, 50)
    np.testing.assert_allclose(found.before, found.after)
    again = difficulty(rng(0).standard_normal((100, 300)), 5, 50)
    np.testing.assert_array_equal(found.before, again.before)


def test_a_preconditioner_at_hand_is_used_and_gone_columns_are_easy():
    X = np.repeat(rng(0).standard_normal((20, 1)), 30, axis=1)
    found = difficulty(X, 3, 10, preconditioner=precondition(X, 3))
    assert found.before.max() < 1e-6
    assert (found.after == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: got 0"), ({"k": 9}, "k: got 9"), ({"share": 0}, "share: got 0"),
        ({"share": 1.1}, "share: got 1.1"),
        ({"spread": 0}, "spread: got 0"), ({"max_directions": -1}, "max_directions: got -1"),
        ({"max_directions": 6}, "max_directions: got 6"), ({"X": np.ones(3)}, "X: got shape"),
        ({"X": np.full((5, 8), np.nan)}, "X: 40 entries not finite"),
    ],
)  # fmt: skip
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        precondition(**({"X": rng(0).standard_normal((5, 8)), "k": 2} | options))


def test_bad_draws():
    with pytest.raises(InputError, match="n_draws: got 0"):
        difficulty(np.eye(4), 2, 0)
    with pytest.raises(InputError, match="k: got 5"):
        difficulty(np.eye(4), 5)

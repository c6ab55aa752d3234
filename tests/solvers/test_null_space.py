"""Null-space tuning: the map back to the solutions, finite ends, and recovery with and without a known count."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.null_space import SolutionSpace, null_space_tuning


def system(n, p, k, seed, targets=None):
    generator = rng(seed, "null_space")
    A = generator.standard_normal((n, p))
    x = np.zeros((p, targets or 1))
    for column in x.T:
        column[generator.choice(p, k, replace=False)] = generator.standard_normal(k)
    x = x if targets else x[:, 0]
    return A, x, A @ x


class TestSolutionSpace:
    @given(n=st.integers(1, 9), p=st.integers(1, 9), rank=st.integers(1, 9), seed=st.integers(0, 99))
    @example(n=2, p=2, rank=1, seed=16)  # dependent rows of very different size
    def test_without_a_ridge_it_is_the_pseudo_inverse(self, n, p, rank, seed):
        generator = rng(seed, "space")
        A = generator.standard_normal((n, rank)) @ generator.standard_normal((rank, p))
        v = generator.standard_normal((3, n))
        back = SolutionSpace(np.ascontiguousarray(A.T)).back(v)
        wanted = v @ np.linalg.pinv(A, rcond=1e-7).T
        np.testing.assert_allclose(back, wanted, atol=1e-5 * max(1, abs(wanted).max()))

    @pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
    def test_a_ridge_shrinks_both_sides_alike(self, shape):
        A, v = rng(0).standard_normal(shape), rng(1).standard_normal((2, shape[0]))
        small = min(shape)
        level = 0.3 * np.linalg.norm(A) ** 2 / small
        wanted = np.linalg.solve(A.T @ A + level * np.eye(shape[1]), A.T @ v.T).T
        np.testing.assert_allclose(SolutionSpace(np.ascontiguousarray(A.T), 0.3).back(v), wanted, atol=1e-12)

    def test_it_can_be_used_again(self):
        A, x, b = system(40, 90, 4, 0)
        space = SolutionSpace(np.ascontiguousarray(A.T))
        np.testing.assert_allclose(null_space_tuning(A, b, 4, space=space).coef, x, atol=1e-9)
        with pytest.raises(InputError, match=r"space: got one of a matrix of shape \(40, 90\), want \(40, 80\)"):
            null_space_tuning(A[:, :80], b, 4, space=space)


@pytest.mark.parametrize("options", [{"k": 8}, {}, {"k": 8, "feedback": "step"}, {"feedback": "step", "max_iter": 999}])
def test_every_form_finds_what_was_planted(options):
    A, x, b = system(80, 200, 8, 1)
    found = null_space_tuning(A, b, **options)
    np.testing.assert_allclose(found.coef, x, atol=1e-4)
    assert found.reached
    assert found.converged
    assert found.count == 8
    assert found.residual <= 1e-6 * np.linalg.norm(b)


def test_the_step_back_lands_on_the_solutions():
    """The recurrence itself, written with projections, gives the same supports step by step."""
    A, _, b = system(50, 120, 14, 5)
    P = np.eye(120) - np.linalg.pinv(A) @ A
    x = np.linalg.pinv(A) @ b
    for step in range(1, 6):
        T = np.sort(np.argsort(-abs(x), kind="stable")[:14])
        rest = np.setdiff1d(np.arange(120), T)
        u = np.zeros(120)
        u[T] = x[T] + np.linalg.solve(A[:, T].T @ A[:, T], A[:, T].T @ A[:, rest] @ x[rest])
        x = x + P @ (u - x)
        ours = null_space_tuning(A, b, 14, restart=False, max_iter=step)
        if step == 1 or np.linalg.norm(b - A @ u) < least:
            least = np.linalg.norm(b - A @ u)
            np.testing.assert_allclose(ours.coef, u, atol=1e-8)
        assert ours.residual == pytest.approx(least, abs=1e-8)
        np.testing.assert_allclose(A @ x, b, atol=1e-9)


def test_a_wrong_fixed_point_is_reported_and_left_by_a_restart():
    for seed in range(40):
        A, _, b = system(60, 300, 14, seed)
        stuck = null_space_tuning(A, b, 14, restart=False)
        if not stuck.reached:
            break
    assert stuck.converged
    assert stuck.residual > 1e-3 * np.linalg.norm(b)
    freed = null_space_tuning(A, b, 14)
    assert freed.n_iter > stuck.n_iter
    assert freed.residual < stuck.residual
    assert freed.count == 14


def test_growth_steps_by_more_than_one():
    A, x, b = system(80, 200, 8, 1)
    found = null_space_tuning(A, b, growth=3)
    np.testing.assert_allclose(found.coef, x, atol=1e-9)
    assert found.n_iter < 8
    assert found.count == 3 * found.n_iter


def test_many_right_sides_equal_one_by_one():
    A, _, b = system(60, 150, 7, 3, targets=6)
    b[:, 2] = 0
    for options in ({"k": 7}, {}):
        together = null_space_tuning(A, b, **options)
        for t in range(6):
            alone = null_space_tuning(A, b[:, t], **options)
            np.testing.assert_allclose(together.coef[:, t], alone.coef, atol=1e-10)
            assert (together.n_iter[t], together.count[t], together.reached[t]) == (
                alone.n_iter, alone.count, alone.reached,
            )  # fmt: skip


def test_with_noise_a_ridge_and_the_discrepancy_end_it_near_the_truth():
    A, x, _ = system(100, 250, 6, 4)
    x[x != 0] = np.sign(x[x != 0])
    noise = 0.1 * rng(4, "noise").standard_normal(100)
    level = np.sqrt(np.mean(noise**2))
    found = null_space_tuning(A, A @ x + noise, ridge=0.01, noise_level=level)
    assert found.reached
    assert found.residual <= level * 10
    assert set(np.flatnonzero(found.coef)) == set(np.flatnonzero(x))
    exact = null_space_tuning(A, A @ x + noise)
    assert exact.count > 3 * found.count  # without the discrepancy the noise is fitted


def test_more_rows_than_columns_is_least_squares_on_the_largest():
    generator = rng(0, "tall")
    A, b = generator.standard_normal((40, 6)), generator.standard_normal(40)
    full = np.linalg.lstsq(A, b, rcond=None)[0]
    found = null_space_tuning(A, b, 6)
    np.testing.assert_allclose(found.coef, full, atol=1e-12)
    assert not found.reached


def test_max_count_bounds_the_growth():
    A, _, b = system(40, 90, 20, 0)
    found = null_space_tuning(A, b, max_count=5)
    assert found.count == 5
    assert found.converged
    assert not found.reached
    assert null_space_tuning(A, b, 20, max_count=1).count == 20


def test_float32_comes_back_as_float32():
    A, x, b = system(40, 90, 4, 0)
    found = null_space_tuning(A.astype(np.float32), b.astype(np.float32), 4, tol=1e-5)
    assert found.coef.dtype == np.float32
    np.testing.assert_allclose(found.coef, x, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 9}, "k: got 9"),
        ({"growth": 0}, "growth: got 0"),
        ({"feedback": "fits"}, "feedback: got 'fits', want one of fit, step; did you mean 'fit'"),
        ({"ridge": -1}, "ridge: got -1"),
        ({"noise_level": np.nan}, "noise_level: got NaN"),
        ({"tol": -1e-3}, "tol: got -0.001"),
        ({"max_count": 0}, "max_count: got 0"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"b": np.ones(5)}, "b: got 5 entries"),
        ({"A": np.ones((0, 3))}, "A: got shape"),
    ],
)
def test_bad_input(change, message):
    arguments = {"A": rng(0).standard_normal((4, 8)), "b": np.ones(4)} | change
    with pytest.raises(InputError, match=message):
        null_space_tuning(**arguments)

"""Phase retrieval: the Newton step against its model written out, signs, ties, and what each method finds."""

import numpy as np
import pytest

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.phase_retrieval import (
    amplitude_flow,
    newton_hard_thresholding,
    phase_pursuit,
    spectral_start,
)

ALL = [newton_hard_thresholding, phase_pursuit, amplitude_flow]


def system(m, p, k, seed):
    generator = rng(seed, "phase")
    A = generator.standard_normal((m, p))
    x = np.zeros(p)
    x[generator.choice(p, k, replace=False)] = generator.choice([-1, 1], k) * (1 + generator.random(k))
    return A, x, abs(A @ x)


def up_to_sign(found, x):
    return min(np.linalg.norm(found - x), np.linalg.norm(found + x)) / np.linalg.norm(x)


@pytest.mark.parametrize("solve", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_what_was_planted_is_found_up_to_its_sign(solve, seed):
    A, x, y = system(200, 150, 5, seed)
    found = solve(A, y, 5)
    assert up_to_sign(found.coef, x) < 1e-6
    assert found.coef[abs(found.coef).argmax()] > 0
    assert found.converged
    assert found.residual == min(found.history) < 1e-6
    assert len(found.history) == found.n_iter + 1


def test_newton_takes_far_fewer_steps_and_its_errors_square():
    A, _, y = system(300, 200, 6, 3)
    newton, gradient = newton_hard_thresholding(A, y, 6), amplitude_flow(A, y, 6)
    assert newton.n_iter * 2 <= gradient.n_iter
    tail = newton.history[(newton.history < 0.1) & (newton.history > 1e-9)]
    assert (tail[1:] <= 10 * tail[:-1] ** 2).all()


def test_one_step_is_the_newton_step_of_the_intensity_loss():
    """By differentiating the loss on all entries numerically and solving on the support, with entries leaving."""
    generator = rng(0, "step")
    m, p, k = 40, 9, 3
    A = generator.standard_normal((m, p))
    A /= np.sqrt(np.mean(A**2, axis=0))
    truth = np.zeros(p)
    truth[[1, 4, 7]] = [1, -2, 1.5]
    y = abs(A @ truth)
    x = np.zeros(p)
    x[[1, 3, 4, 7]] = [0.9, 0.1, -1.7, 1.4]

    def loss(w):
        return np.mean(((A @ w) ** 2 - y**2) ** 2) / 4

    def amplitude(w):
        return np.mean((abs(A @ w) - y) ** 2) / 2

    def gradient(f, w, h=1e-5):
        return np.array([(f(w + h * e) - f(w - h * e)) / (2 * h) for e in np.eye(p)])

    hessian = np.array([(gradient(loss, x + 1e-4 * e) - gradient(loss, x - 1e-4 * e)) / 2e-4 for e in np.eye(p)])
    moved = x - 0.95 * gradient(amplitude, x)
    T = np.sort(np.argsort(-abs(moved))[:k])
    J = np.setdiff1d(np.flatnonzero(x), T)
    assert len(J), "the case should let an entry go"
    assert np.linalg.eigvalsh(hessian[np.ix_(T, T)])[0] > 0
    wanted = np.zeros(p)
    wanted[T] = x[T] + np.linalg.solve(hessian[np.ix_(T, T)], hessian[np.ix_(T, J)] @ x[J] - gradient(loss, x)[T])
    found = newton_hard_thresholding(A, y, k, max_iter=1, start=x)
    if found.history[1] < found.history[0]:
        assert up_to_sign(found.coef, wanted) < 1e-5
    else:
        assert up_to_sign(found.coef, x) < 1e-12
    np.testing.assert_allclose(found.history[1], np.linalg.norm(abs(A @ wanted) - y) / np.linalg.norm(y), rtol=1e-4)


def test_the_start_is_the_leading_eigenvector_on_the_strongest_columns():
    A, _, y = system(120, 30, 3, 1)
    start = spectral_start(A, y, 4)
    support = np.flatnonzero(start)
    power = np.array([sum(y[i] ** 2 * A[i, j] ** 2 for i in range(120)) for j in range(30)])
    assert set(support) == set(np.argsort(-power)[:4])
    M = sum(y[i] ** 2 * np.outer(A[i, support], A[i, support]) for i in range(120))
    leading = np.linalg.eigh(M)[1][:, -1]
    assert abs(leading @ start[support]) == pytest.approx(np.linalg.norm(start))
    assert np.linalg.norm(start) == pytest.approx(np.sqrt(np.mean(y**2)))


@pytest.mark.parametrize("solve", ALL)
def test_units_of_columns_and_targets_do_not_matter(solve):
    A, x, y = system(200, 100, 4, 0)
    scale = np.logspace(-2, 2, 100)
    found = solve(A * scale, 1e6 * y, 4)
    assert up_to_sign(found.coef * scale / 1e6, x) < 1e-6


def test_noise_is_reported_as_residual():
    A, x, y = system(400, 150, 5, 0)
    noisy = abs(y + 0.02 * np.linalg.norm(y) / 20 * rng(0, "noise").standard_normal(400))
    found = newton_hard_thresholding(A, noisy, 5)
    assert found.residual == pytest.approx(0.02, rel=0.15)
    assert up_to_sign(found.coef, x) < 0.02


@pytest.mark.parametrize("solve", ALL)
def test_a_start_is_taken_and_float32_comes_back(solve):
    A, x, y = system(150, 80, 4, 0)
    found = solve(A.astype(np.float32), y.astype(np.float32), 4, start=x)
    assert found.coef.dtype == np.float32
    assert found.history[0] < 1e-6
    assert up_to_sign(found.coef, x) < 1e-6


def test_a_column_of_zeros_and_a_singular_hessian_do_no_harm():
    A, x, y = system(150, 80, 4, 0)
    A[:, np.flatnonzero(x == 0)[0]] = 0
    assert up_to_sign(newton_hard_thresholding(A, y, 4).coef, x) < 1e-8
    twice = np.hstack([A, A[:, x != 0]])
    assert newton_hard_thresholding(twice, y, 8).residual < 1e-3


@pytest.mark.parametrize("solve", ALL)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 7}, "k: got 7"),
        ({"k": 2.0}, "k: got 2.0"),
        ({"step": 0.0}, "step: got 0.0"),
        ({"tol": -1.0}, "tol: got -1.0"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"y": -np.ones(9)}, "y: got -1.0 at 0, want sizes"),
        ({"y": np.zeros(9)}, "y: got zeros only"),
        ({"y": np.ones(8)}, r"y: got shape \(8,\), want \(9\)"),
        ({"y": np.full(9, np.nan)}, "y: 9 entries not finite"),
        ({"A": np.ones(9)}, "A: got shape"),
        ({"A": np.full((9, 6), np.inf)}, "A: 54 entries not finite"),
        ({"start": np.ones(5)}, r"start: got shape \(5,\), want \(6\)"),
    ],
)
def test_bad_input(solve, change, message):
    arguments = {"A": rng(0).standard_normal((9, 6)), "y": np.ones(9), "k": 2} | change
    with pytest.raises(InputError, match=message):
        solve(**arguments)


def test_a_bad_truncation():
    with pytest.raises(InputError, match="truncation: got 0"):
        amplitude_flow(np.eye(3), np.ones(3), 1, truncation=0)

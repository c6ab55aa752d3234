"""Kronecker-structured sparse Bayesian learning: the posterior against the dense one, the updates, bad input."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.kronecker_bayes import (
    KroneckerPosterior,
    alternate,
    kronecker_bayes,
    nearest_product,
    product,
)
from ellzero.solvers.operators import Dense, Kronecker
from ellzero.solvers.sparse_bayes import ExactPosterior


def normal(generator, shape, complex_valued):
    x = generator.standard_normal(shape)
    return (x + 1j * generator.standard_normal(shape)) / np.sqrt(2) if complex_valued else x


def system(seed, sizes, *, snr=100.0, complex_valued=False):
    """Factors, y and w, with ``sizes`` of (rows, columns, nonzeros)."""
    generator = rng(seed, "kronecker", complex_valued)
    matrices = [normal(generator, (m, n), complex_valued) for m, n, _ in sizes]
    parts = []
    for _, n, k in sizes:
        part = np.zeros(n, dtype=complex if complex_valued else float)
        part[generator.choice(n, k, replace=False)] = 1 + normal(generator, k, complex_valued) / 3
        parts.append(part)
    w = reduce(np.kron, parts)
    y = reduce(np.kron, matrices) @ w
    noise = normal(generator, y.shape, complex_valued)
    return matrices, y + noise * np.linalg.norm(y) / np.linalg.norm(noise) / np.sqrt(snr), w


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4),
    complex_valued=st.booleans(),
)
def test_the_posterior_equals_the_dense_one(seed, sizes, complex_valued):
    generator = rng(seed, "posterior")
    matrices = [normal(generator, size, complex_valued) for size in sizes]
    factors = [generator.uniform(0.1, 2, n) * (generator.random(n) < 0.8) for _, n in sizes]
    A, gamma, noise = reduce(np.kron, matrices), product(factors).ravel(), 0.3
    y = normal(generator, len(A), complex_valued)
    got = KroneckerPosterior(matrices, y)(factors, noise)
    C = noise * np.eye(len(A)) + (A * gamma) @ A.conj().T
    mean = gamma * (A.conj().T @ np.linalg.solve(C, y))
    gain = gamma * np.einsum("ij,ij->j", A.conj(), np.linalg.solve(C, A)).real
    np.testing.assert_allclose(got.mean, mean, atol=1e-10)
    np.testing.assert_allclose(got.gain, gain, atol=1e-10)
    np.testing.assert_allclose(got.variance, gamma * (1 - gain), atol=1e-9)
    np.testing.assert_allclose(got.fitted, A @ mean, atol=1e-9)
    assert got.misfit == pytest.approx(np.linalg.slogdet(C)[1] + (y.conj() @ np.linalg.solve(C, y)).real)
    if not complex_valued:
        assert got.misfit == pytest.approx(ExactPosterior(Dense(A), y)(gamma, noise).misfit)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), shape=st.sampled_from([(3,), (3, 4), (2, 3, 4)]))
def test_turns_reach_the_minimum(seed, shape):
    power = rng(seed, "power").gamma(1.0, size=shape) + 0.05
    factors = alternate(power, [np.ones(n) for n in shape], tol=1e-12, max_iter=1000)

    def value(logs):
        gamma = product(np.split(np.exp(logs), np.cumsum(shape)[:-1]))
        return np.sum(np.log(gamma) + power / gamma)

    least = minimize(value, np.zeros(sum(shape)), options={"gtol": 1e-8}).fun
    assert value(np.log(np.concatenate(factors))) <= least + 1e-8
    assert all(np.linalg.norm(factor) == pytest.approx(1) for factor in factors[:-1])


@pytest.mark.parametrize("rule", [alternate, nearest_product])
def test_a_product_is_found_exactly(rule):
    generator = rng(0, "product")
    truth = [generator.uniform(0.1, 2, n) for n in (3, 5, 2)]
    found = rule(product(truth), [np.ones(n) for n in (3, 5, 2)])
    np.testing.assert_allclose(product(found), product(truth), rtol=1e-8)


def test_singular_vectors_are_nearest_for_two_factors():
    power = rng(0, "two").random((5, 7))
    left, size, right = np.linalg.svd(power)
    np.testing.assert_allclose(product(nearest_product(power)), size[0] * np.outer(left[:, 0], right[0]), atol=1e-12)


@pytest.mark.parametrize("update", ["svd", "alternate"])
@pytest.mark.parametrize("complex_valued", [False, True])
def test_it_finds_a_product_support(update, complex_valued):
    matrices, y, w = system(0, [(6, 10, 2), (6, 9, 2), (5, 8, 2)], snr=1000, complex_valued=complex_valued)
    fitted = kronecker_bayes(matrices, y, update=update)
    np.testing.assert_array_equal(fitted.support, np.flatnonzero(w))
    assert np.linalg.norm(fitted.mean - w) <= 0.05 * np.linalg.norm(w)
    np.testing.assert_allclose(reduce(np.kron, fitted.factors), fitted.gamma, atol=1e-12)
    assert fitted.converged
    assert fitted.noise == pytest.approx(np.mean(abs(y - reduce(np.kron, matrices) @ w) ** 2), rel=0.2)


def test_turns_never_lower_the_likelihood():
    matrices, y, _ = system(1, [(4, 6, 2), (4, 7, 2)], snr=20)
    for noise in (None, 0.1):
        fitted = kronecker_bayes(matrices, y, update="alternate", prune=0, tol=0, max_iter=60, noise=noise)
        assert np.diff(fitted.history).max() <= 1e-6 * abs(fitted.history).max()


def test_operators_and_scales_change_nothing():
    matrices, y, _ = system(2, [(6, 8, 2), (5, 7, 2), (4, 5, 1)])
    plain = kronecker_bayes(matrices, y)
    nested = Kronecker(Dense(matrices[0]), Kronecker(Dense(matrices[1]), Dense(matrices[2])))
    np.testing.assert_allclose(kronecker_bayes(nested, y).mean, plain.mean, atol=1e-12)
    scales = [10.0 ** rng(0, "scale", n).integers(-2, 3, n) for n in (8, 7, 5)]
    scaled = kronecker_bayes([matrix * scale for matrix, scale in zip(matrices, scales)], 3 * y)
    np.testing.assert_allclose(scaled.mean * reduce(np.kron, scales) / 3, plain.mean, atol=1e-8)


def test_a_single_factor_is_plain_learning():
    matrices, y, w = system(3, [(40, 60, 4)])
    fitted = kronecker_bayes(matrices, y, update="alternate", prune=1e-8)
    assert np.linalg.norm(fitted.mean - w) <= 0.2 * np.linalg.norm(w)
    assert len(fitted.factors) == 1


def test_nothing_to_explain():
    matrices, y, w = system(4, [(4, 5, 1), (4, 6, 1)], snr=1e4)
    fitted = kronecker_bayes(matrices, 0 * y)
    assert fitted.converged
    assert not fitted.mean.any()
    assert not fitted.gamma.any()
    empty = next(j for j in range(5) if not w.reshape(5, 6)[j].any())
    matrices[0][:, empty] = 0
    fitted = kronecker_bayes(matrices, y)
    assert not fitted.gamma.reshape(5, 6)[empty].any()
    np.testing.assert_allclose(fitted.mean, w, atol=0.05)


@pytest.mark.parametrize(
    ("X", "y", "options", "message"),
    [
        ([], np.ones(1), {}, "X: got list, want a list of matrices"),
        (np.eye(4), np.ones(4), {}, "X: got ndarray, want a list of matrices"),
        ([np.eye(2), np.ones(3)], np.ones(6), {}, r"X\[1\]: got shape \(3,\)"),
        ([np.eye(2), np.array([[np.nan]])], np.ones(2), {}, r"X\[1\]: 1 entry not finite"),
        ([np.eye(2), np.eye(3)], np.ones(5), {}, "y: got 5 rows, want 6, the product"),
        ([np.eye(2)], np.array([1, 1j * np.inf]), {}, "y: "),
        ([np.eye(2)], np.ones(2), {"update": "am"}, "update: got 'am', want one of alternate, svd"),
        ([np.eye(2)], np.ones(2), {"prune": 1.0}, "prune: got 1.0"),
        ([np.eye(2)], np.ones(2), {"noise": 0.0}, "noise: got 0.0"),
    ],
)
def test_bad_input(X, y, options, message):
    with pytest.raises(InputError, match=message):
        kronecker_bayes(X, y, **options)

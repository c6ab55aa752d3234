"""Sparse Bayesian learning: the posterior against a dense inverse, updates against the likelihood, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.operators import Dense, Kronecker
from ellzero.solvers.sparse_bayes import ExactPosterior, covariance, sparse_bayes


def system(seed, n, p):
    generator = rng(seed, "sparse bayes")
    return generator.standard_normal((n, p)), generator.standard_normal(n), generator


@settings(max_examples=40)
@given(seed=st.integers(0, 999), n=st.integers(1, 12), p=st.integers(1, 12), out=st.booleans())
def test_the_posterior_equals_the_dense_inverse(seed, n, p, out):
    X, y, generator = system(seed, n, p)
    gamma, noise = generator.uniform(0.1, 3, p), 0.3
    if out:
        gamma[:: 2 if p > 1 else 1] = 0
    got = ExactPosterior(Dense(X), y)(gamma, noise)
    C = noise * np.eye(n) + (X * gamma) @ X.T
    expected = np.diag(gamma) - (gamma[:, None] * X.T) @ np.linalg.solve(C, X * gamma)
    mean = gamma * (X.T @ np.linalg.solve(C, y))
    np.testing.assert_allclose(got.mean, mean, atol=1e-10)
    np.testing.assert_allclose(got.variance, np.diag(expected), atol=1e-10)
    np.testing.assert_allclose(got.fitted, X @ mean, atol=1e-9)
    np.testing.assert_allclose(got.gain[gamma > 0], 1 - np.diag(expected)[gamma > 0] / gamma[gamma > 0], atol=1e-10)
    assert not got.gain[gamma == 0].any()
    assert got.misfit == pytest.approx(np.linalg.slogdet(C)[1] + y @ np.linalg.solve(C, y))


@settings(max_examples=20)
@given(seed=st.integers(0, 999), update=st.sampled_from(["em", "majorise"]), learned=st.booleans())
def test_the_likelihood_never_falls(seed, update, learned):
    X, y, _ = system(seed, 15, 25)
    options = {"update": update, "noise": None if learned else 0.1, "tol": 0, "prune": 0}
    fitted = sparse_bayes(X, y, max_iter=60, **options)
    assert np.diff(fitted.history).max() <= 1e-7 * abs(fitted.history).max()
    assert len(fitted.history) == fitted.n_iter == 60
    assert not fitted.converged


@pytest.mark.parametrize(("update", "tol"), [("fixed_point", 1e-9), ("majorise", 1e-9), ("em", 1e-7)])
def test_it_ends_where_the_likelihood_is_stationary(update, tol):
    planted = planted_regression(60, 40, 5, snr=30, seed=3)
    fitted = sparse_bayes(planted.X, planted.y, update=update, noise=planted.noise_level**2, tol=tol, max_iter=20000)
    assert fitted.converged
    assert set(planted.support) <= set(fitted.support)
    assert len(fitted.support) <= 12 or update == "em"
    large = fitted.gamma > 1e-3
    gain = 1 - fitted.variance[large] / fitted.gamma[large]
    np.testing.assert_allclose(fitted.mean[large] ** 2, fitted.gamma[large] * gain, rtol=1e-4)
    assert fitted.variance[~large].max() <= 1e-3


def test_updates_agree_where_the_noise_is_known():
    planted = planted_regression(80, 50, 4, snr=50, seed=0)
    runs = [
        sparse_bayes(planted.X, planted.y, update=update, noise=planted.noise_level**2, tol=1e-6, max_iter=20000).mean
        for update in ("fixed_point", "majorise", "em")
    ]
    for mean in runs[1:]:
        assert np.linalg.norm(mean - runs[0]) <= 0.005 * np.linalg.norm(runs[0])


@pytest.mark.parametrize("update", ["fixed_point", "majorise", "em"])
def test_the_noise_is_learned_and_the_support_found(update):
    planted = planted_regression(300, 60, 6, snr=20, seed=1)
    fitted = sparse_bayes(planted.X, planted.y, update=update)
    assert fitted.noise == pytest.approx(planted.noise_level**2, rel=0.2)
    np.testing.assert_allclose(fitted.mean, planted.coef, atol=0.1)
    order = np.argsort(-abs(fitted.mean))[:6]
    assert set(order) == set(planted.support)


def test_scales_do_not_matter():
    planted = planted_regression(60, 90, 5, snr=100, amplitude="normal", seed=2)
    scale = 10.0 ** rng(0, "scale").integers(-3, 4, 90)
    plain = sparse_bayes(planted.X, planted.y)
    scaled = sparse_bayes(planted.X * scale, 7 * planted.y)
    np.testing.assert_allclose(scaled.mean * scale / 7, plain.mean, atol=1e-6)
    assert scaled.noise == pytest.approx(49 * plain.noise, rel=1e-5)


def test_targets_share_their_variances():
    planted = planted_regression(40, 100, 8, snr=100, amplitude="normal", seed=4)
    generator = rng(4, "targets")
    coef = np.zeros((100, 3))
    coef[planted.support] = generator.standard_normal((8, 3))
    Y = planted.X @ coef + 0.01 * generator.standard_normal((40, 3))
    together = sparse_bayes(planted.X, Y)
    assert together.mean.shape == (100, 3)
    assert np.linalg.norm(together.mean - coef) <= 0.02 * np.linalg.norm(coef)
    single = sparse_bayes(planted.X, planted.y)
    column = sparse_bayes(planted.X, planted.y[:, None])
    np.testing.assert_allclose(column.mean[:, 0], single.mean, atol=1e-12)
    np.testing.assert_allclose(column.history, single.history)


def test_the_covariance_is_that_of_what_is_in():
    planted = planted_regression(50, 30, 4, snr=10, seed=0)
    fitted = sparse_bayes(planted.X, planted.y)
    chosen = planted.X[:, fitted.support]
    expected = np.linalg.inv(chosen.T @ chosen / fitted.noise + np.diag(1 / fitted.gamma[fitted.support]))
    np.testing.assert_allclose(covariance(Dense(planted.X), fitted), expected, atol=1e-10)
    np.testing.assert_allclose(np.diag(expected), fitted.variance[fitted.support], atol=1e-10)


def test_sparse_matrices_and_operators_give_the_same():
    generator = rng(0, "operators")
    A, B = generator.standard_normal((5, 6)), generator.standard_normal((6, 7))
    y = generator.standard_normal(30)
    dense = sparse_bayes(np.kron(A, B), y).mean
    np.testing.assert_allclose(sparse_bayes(Kronecker(Dense(A), Dense(B)), y).mean, dense, atol=1e-10)
    np.testing.assert_allclose(sparse_bayes(sparse.csr_array(np.kron(A, B)), y).mean, dense, atol=1e-10)


def test_nothing_to_explain():
    X = rng(0, "zero").standard_normal((4, 3))
    fitted = sparse_bayes(X, np.zeros(4))
    assert not fitted.mean.any()
    assert fitted.converged
    assert not len(fitted.support)
    assert covariance(Dense(X), fitted).shape == (0, 0)
    X[:, 1] = 0
    fitted = sparse_bayes(X, X[:, 0])
    assert fitted.gamma[1] == 0
    np.testing.assert_allclose(fitted.mean, [1, 0, 0], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "fixed"}, "update: got 'fixed', want one of em, fixed_point, majorise"),
        ({"noise": 0}, "noise: got 0"),
        ({"noise": np.inf}, "noise: got inf"),
        ({"prune": 1}, "prune: got 1"),
        ({"tol": -1}, "tol: got -1"),
        ({"max_iter": 0}, "max_iter: got 0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        sparse_bayes(np.eye(3), np.ones(3), **options)


def test_bad_data():
    with pytest.raises(InputError, match="y: got 2 rows, want 3"):
        sparse_bayes(np.eye(3), np.ones(2))
    with pytest.raises(InputError, match="y: 1 entry not finite"):
        sparse_bayes(np.eye(3), np.array([1, np.nan, 1]))
    with pytest.raises(InputError, match="X: 1 entry not finite"):
        sparse_bayes(np.array([[np.inf]]), np.ones(1))

"""Message passing: its fixed point against the exact posterior, damping, operators, divergence, bad input."""

import numpy as np
import pytest
from scipy import sparse

from ellzero.data.generators import AR, planted_regression
from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.message_passing import MessagePosterior, ggamp_sbl, safe_damping, spectral_norm
from ellzero.solvers.operators import Dense, Kronecker, Scaled
from ellzero.solvers.sparse_bayes import ExactPosterior, sparse_bayes


@pytest.mark.parametrize("correlation", [None, AR(0.8)])
@pytest.mark.parametrize("targets", [(), (3,)])
def test_the_mean_it_ends_at_is_exact(correlation, targets):
    X = planted_regression(60, 90, 3, correlation=correlation, seed=0).X / np.sqrt(60)
    generator = rng(0, "posterior")
    y, gamma = generator.standard_normal((60, *targets)), generator.uniform(0, 2, 90)
    gamma[:30] = 0
    operator = Dense(X)
    got = MessagePosterior(operator, y, X**2, damping=safe_damping(operator), tol=1e-13, passes=20000)(gamma, 0.2)
    exact = ExactPosterior(operator, y)(gamma, 0.2)
    np.testing.assert_allclose(got.mean, exact.mean, atol=1e-9)
    np.testing.assert_allclose(got.fitted, exact.fitted, atol=1e-9)
    assert not got.variance[:30].any()
    if correlation is None:
        np.testing.assert_allclose(got.variance, exact.variance, atol=0.15)
        assert got.gain.sum() == pytest.approx(exact.gain.sum(), rel=0.05)


def test_the_spectral_norm():
    generator = rng(0, "norm")
    for scale in (np.ones(30), 1 / np.arange(1, 31)):
        X = generator.standard_normal((20, 30)) * scale
        assert spectral_norm(Dense(X)) == pytest.approx(np.linalg.norm(X, 2), rel=1e-2)
    assert spectral_norm(Dense(np.zeros((2, 3)))) == 0
    assert safe_damping(Dense(np.zeros((2, 3)))) == 1


def test_damping_falls_as_energy_gathers_in_few_directions():
    X = rng(0, "damping").standard_normal((125, 250))
    assert safe_damping(Dense(X)) == pytest.approx(0.97, abs=0.03)
    assert safe_damping(Dense(X + 1)) < 0.3
    n, p, theta = 125, 250, safe_damping(Dense(X + 1))
    bound = 1.1 * n * p * np.linalg.norm(X + 1, 2) ** 2 / np.linalg.norm(X + 1) ** 2
    assert bound * theta**2 + 2 * (p - n) * theta == pytest.approx(4 * p, rel=0.01)


def test_it_learns_variances_and_noise():
    planted = planted_regression(300, 80, 6, snr=20, seed=1)
    fitted = ggamp_sbl(planted.X, planted.y)
    exact = sparse_bayes(planted.X, planted.y, update="em", tol=1e-4)
    assert fitted.converged
    np.testing.assert_allclose(fitted.mean, exact.mean, atol=0.01)
    assert fitted.noise == pytest.approx(exact.noise, rel=0.02)
    np.testing.assert_allclose(fitted.variance[planted.support], exact.variance[planted.support], rtol=0.1)
    assert np.isnan(fitted.history).all()


def test_plain_messages_diverge_where_damped_ones_do_not():
    planted = planted_regression(125, 250, 12, snr=1e4, correlation=AR(0.9), amplitude="normal", seed=0)
    plain = ggamp_sbl(planted.X, planted.y, damping=1.0)
    assert not plain.converged
    damped = ggamp_sbl(planted.X, planted.y)
    assert damped.converged
    assert np.linalg.norm(damped.mean - planted.coef) <= 0.05 * np.linalg.norm(planted.coef)


def test_sparse_matrices_operators_and_single_precision():
    generator = rng(0, "operators")
    A, B = generator.standard_normal((8, 6)), generator.standard_normal((7, 5))
    X, w = np.kron(A, B), np.zeros(30)
    w[[3, 17]] = 1, -2
    y = X @ w + 0.1 * generator.standard_normal(56)
    dense = ggamp_sbl(X, y).mean
    np.testing.assert_allclose(ggamp_sbl(Kronecker(Dense(A), Dense(B)), y).mean, dense, atol=1e-8)
    np.testing.assert_allclose(ggamp_sbl(sparse.csr_array(X), y).mean, dense, atol=1e-8)
    np.testing.assert_allclose(ggamp_sbl(X.astype(np.float32), y).mean, dense, atol=1e-3)
    np.testing.assert_allclose(ggamp_sbl(Scaled(Dense(X), np.full(30, 2.0)), y).mean * 2, dense, atol=1e-8)


def test_one_size_of_entries_needs_no_squares():
    X = np.sign(rng(0, "signs").standard_normal((60, 120)))
    w = np.zeros(120)
    w[:5] = 1
    y = X @ w + 0.01 * rng(0, "noise").standard_normal(60)
    both = [ggamp_sbl(X, y, squares=squares).mean for squares in ("entries", "mean")]
    np.testing.assert_allclose(both[0], both[1], atol=1e-10)
    assert np.linalg.norm(both[0] - w) < 0.02


def test_targets_share_their_variances():
    generator = rng(1, "targets")
    X = generator.standard_normal((40, 100))
    coef = np.zeros((100, 4))
    coef[:10] = generator.standard_normal((10, 4))
    Y = X @ coef + 0.01 * generator.standard_normal((40, 4))
    fitted = ggamp_sbl(X, Y)
    assert fitted.mean.shape == (100, 4)
    assert np.linalg.norm(fitted.mean - coef) <= 0.02 * np.linalg.norm(coef)


def test_nothing_to_explain():
    X = rng(0, "zero").standard_normal((6, 4))
    assert not ggamp_sbl(X, np.zeros(6)).mean.any()
    X[:, 1] = 0
    fitted = ggamp_sbl(X, X[:, 0])
    assert fitted.gamma[1] == 0
    np.testing.assert_allclose(fitted.mean, [1, 0, 0, 0], atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0}, "damping: got 0"),
        ({"damping": 1.5}, "damping: got 1.5"),
        ({"damping": "none"}, "damping: got 'none'"),
        ({"squares": "no"}, "squares: got 'no'"),
        ({"passes": 0}, "passes: got 0"),
        ({"noise": -1}, "noise: got -1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        ggamp_sbl(np.eye(3), np.ones(3), **options)

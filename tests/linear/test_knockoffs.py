"""Knockoffs: moments and exchangeability, diagonals against a numeric minimum, the filter against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.utils.estimator_checks import check_estimator

from ellzero.data.generators import AR, planted_regression
from ellzero.errors import InputError
from ellzero.linear import KnockoffSelection
from ellzero.linear.knockoffs import estimated_covariance, gaussian_knockoffs, knockoff_diagonal, knockoff_threshold


def correlation(p, seed=0, rho=None):
    if rho is not None:
        return rho ** abs(np.subtract.outer(np.arange(p), np.arange(p)))
    A = np.random.default_rng(seed).standard_normal((p, p + 2))
    S = A @ A.T
    return S / np.sqrt(np.outer(np.diag(S), np.diag(S)))


def joint(S, s):
    return np.block([[S, S - np.diag(s)], [S - np.diag(s), S]])


@pytest.mark.filterwarnings("ignore")
def test_the_contract_of_scikit_learn():
    check_estimator(KnockoffSelection(n_alphas=8, cv=2))


@pytest.mark.parametrize("seed", range(4))
def test_the_diagonal_minimises_the_trace_of_the_joint_inverse(seed):
    S = correlation(4, seed)
    s = knockoff_diagonal(S)

    def cost(log_s):
        J = joint(S, np.exp(log_s))
        return np.trace(np.linalg.inv(J)) if np.linalg.eigvalsh(J)[0] > 1e-9 else 1e9

    start = np.log(knockoff_diagonal(S, "equicorrelated") / 2)
    found = minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 4000})
    assert cost(np.log(s)) <= found.fun * (1 + 1e-6)
    np.testing.assert_allclose(s, np.exp(found.x), rtol=1e-2)


@settings(deadline=None, max_examples=30)
@given(p=st.integers(1, 8), seed=st.integers(0, 99), method=st.sampled_from(["mvr", "equicorrelated"]))
def test_the_joint_covariance_is_one(p, seed, method):
    S = correlation(p, seed)
    s = knockoff_diagonal(S, method)
    assert (s > 0).all()
    assert np.linalg.eigvalsh(joint(S, s))[0] > -1e-8
    if method == "equicorrelated":
        np.testing.assert_allclose(s, min(1, 2 * np.linalg.eigvalsh(S)[0]), rtol=1e-6)


@pytest.mark.parametrize("method", ["mvr", "equicorrelated"])
def test_swapping_a_column_with_its_knockoff_changes_no_moment(method):
    S = correlation(3, rho=0.6) * np.outer([1, 10, 0.1], [1, 10, 0.1])
    mean = np.array([5.0, -3.0, 0.0])
    X = np.random.default_rng(0).multivariate_normal(mean, S, 200_000)
    K = gaussian_knockoffs(X, mean, S, method=method)
    units = np.sqrt(np.diag(S))
    found = np.cov(np.hstack([X, K]).T) / np.outer(np.tile(units, 2), np.tile(units, 2))
    want = joint(S / np.outer(units, units), knockoff_diagonal(S / np.outer(units, units), method))
    np.testing.assert_allclose(found, want, atol=0.02)
    np.testing.assert_allclose((K.mean(0) - mean) / units, 0, atol=0.02)
    np.testing.assert_array_equal(K, gaussian_knockoffs(X, mean, S, method=method))


def test_constant_columns_have_no_variance_and_others_that_of_their_units():
    X = np.random.default_rng(0).standard_normal((500, 3)) * [1, 1000, 0] + [0, 0, 7]
    S = estimated_covariance(X)
    assert not S[2].any()
    np.testing.assert_allclose(np.diag(S)[:2], X.var(0)[:2], rtol=0.02)


@settings(max_examples=60)
@given(w=st.lists(st.integers(-5, 5), min_size=1, max_size=12), fdr=st.floats(0.05, 0.95), plus=st.booleans())
def test_the_threshold_is_the_least_that_keeps_the_estimated_rate(w, fdr, plus):
    w = np.array(w, dtype=float)
    t = knockoff_threshold(w, fdr, plus)

    def rate(t):
        return (plus + sum(x <= -t for x in w)) / max(1, sum(x >= t for x in w))

    allowed = [abs(x) for x in w if x and rate(abs(x)) <= fdr]
    assert t == min(allowed, default=np.inf)


def test_the_right_columns_are_kept_whatever_their_units():
    data = planted_regression(200, 30, 8, snr=5.0, correlation=AR(0.4), seed=1)
    plain = KnockoffSelection(fdr=0.2, n_alphas=20).fit(data.X, data.y)
    assert set(np.flatnonzero(plain.support_)) >= set(data.support)
    assert plain.support_.sum() <= 10
    assert (plain.statistics_[plain.support_] >= plain.threshold_).all()
    X = data.X * np.logspace(-3, 3, 30)
    scaled = KnockoffSelection(fdr=0.2, n_alphas=20).fit(X, data.y)
    np.testing.assert_array_equal(scaled.support_, plain.support_)
    known = KnockoffSelection(fdr=0.2, n_alphas=20, covariance=correlation(30, rho=0.4)).fit(data.X, data.y)
    assert set(np.flatnonzero(known.support_)) >= set(data.support)
    classes = KnockoffSelection(fdr=0.2, n_alphas=20, loss="logistic").fit(data.X, np.where(data.y > 0, "a", "b"))
    assert set(np.flatnonzero(classes.support_)) >= set(data.support)
    assert classes.support_.sum() <= 12  # the rate holds on average: see the claims
    with pytest.raises(InputError, match="y: got 3 different labels, want two"):
        KnockoffSelection(loss="logistic").fit(data.X, np.arange(200) % 3)


def test_constant_columns_are_never_kept():
    data = planted_regression(80, 10, 6, snr=9.0, seed=0)
    X = np.insert(data.X, 3, 2.0, axis=1)
    model = KnockoffSelection(fdr=0.3, n_alphas=15).fit(X, data.y)
    assert model.statistics_[3] == 0
    assert not model.support_[3]
    nothing = KnockoffSelection().fit(np.ones((20, 2)), data.y[:20])
    assert nothing.threshold_ == np.inf
    assert not nothing.support_.any()


@pytest.mark.parametrize(("settings", "words"), [
    ({"fdr": 1.0}, "fdr: got 1.0"), ({"method": "sdp"}, "method: got 'sdp'"), ({"loss": "x"}, "loss: got 'x'"),
    ({"cv": 1}, "cv: got 1"), ({"plus": "yes"}, "plus: got 'yes'"), ({"n_alphas": 0}, "n_alphas: got 0"),
    ({"covariance": np.eye(3)}, r"covariance: got shape \(3, 3\), want \(10, 10\)"),
    ({"covariance": np.ones((10, 10))}, "covariance: its least eigenvalue"),
    ({"covariance": np.eye(10) + np.eye(10, k=1) / 3}, "covariance: is not symmetric"),
])  # fmt: skip
def test_bad_settings_are_named(settings, words):
    g = np.random.default_rng(0)
    with pytest.raises(InputError, match=words):
        KnockoffSelection(**settings).fit(g.standard_normal((30, 10)), g.standard_normal(30))

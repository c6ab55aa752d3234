"""The sparse Bayesian estimator: scikit-learn's contract, calibrated spread, the intercept, bad input."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from ellzero.data import sets
from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import SparseBayesianRegression


def test_messages_find_what_the_inverse_finds():
    planted = planted_regression(200, 60, 6, snr=10, seed=0)
    exact = SparseBayesianRegression("em", tol=1e-4).fit(planted.X, planted.y + 2)
    passed = SparseBayesianRegression(posterior="messages", tol=1e-4).fit(planted.X, planted.y + 2)
    np.testing.assert_allclose(passed.coef_, exact.coef_, atol=0.01)
    assert passed.intercept_ == pytest.approx(exact.intercept_, abs=0.01)
    std = [fitted.predict(planted.X, return_std=True)[1] for fitted in (exact, passed)]
    np.testing.assert_allclose(std[1], std[0], rtol=0.05)


def test_it_finds_the_coefficients_and_says_how_sure_it_is():
    shares = []
    for seed in range(10):
        planted = planted_regression(150, 40, 6, snr=5, amplitude="normal", seed=seed)
        fitted = SparseBayesianRegression(noise=planted.noise_level**2).fit(planted.X, planted.y)
        found = np.intersect1d(fitted.support_, planted.support)
        off = abs(fitted.coef_ - planted.coef)[found] / fitted.coef_std_[found]
        shares.extend(off <= 1.96)
    assert 0.88 <= np.mean(shares) <= 1


def test_predictions_are_spread_as_new_targets_are():
    planted = planted_regression(1200, 60, 8, snr=4, seed=5)
    fitted = SparseBayesianRegression().fit(planted.X[:200], planted.y[:200] + 3)
    mean, std = fitted.predict(planted.X[200:], return_std=True)
    assert 0.92 <= np.mean(abs(mean - planted.y[200:] - 3) <= 1.96 * std) <= 0.98
    assert (std > np.sqrt(fitted.noise_)).all()
    np.testing.assert_array_equal(fitted.predict(planted.X[200:]), mean)


def test_the_spread_equals_a_regression_with_a_flat_intercept():
    planted = planted_regression(30, 3, 3, snr=2, seed=1)
    X = planted.X + [5.0, 0.0, -2.0]
    fitted = SparseBayesianRegression().fit(X, planted.y)
    design = np.column_stack([np.ones(30), X[:, fitted.support_]])
    prior = np.diag(np.r_[0, 1 / fitted.gamma_[fitted.support_]])
    joint = np.linalg.inv(design.T @ design / fitted.noise_ + prior)
    expected = np.sqrt(fitted.noise_ + np.einsum("ij,jk,ik->i", design, joint, design))
    np.testing.assert_allclose(fitted.predict(X, return_std=True)[1], expected, rtol=1e-6)


def test_an_intercept_changes_nothing_else():
    planted = planted_regression(100, 30, 4, snr=10, seed=0)
    X = planted.X - planted.X.mean(axis=0)
    y = planted.y - planted.y.mean()
    plain = SparseBayesianRegression(fit_intercept=False, noise=0.1).fit(X, y)
    moved = SparseBayesianRegression(noise=0.1).fit(X + 2, y - 7)
    np.testing.assert_allclose(moved.coef_, plain.coef_, atol=1e-8)
    assert moved.intercept_ == pytest.approx(-7 - 2 * plain.coef_.sum())
    assert plain.intercept_ == 0


def test_sparse_and_dense_and_single_precision_agree():
    planted = planted_regression(80, 50, 5, snr=20, seed=0)
    X = np.where(abs(planted.X) > 1, planted.X, 0)
    dense, thin = SparseBayesianRegression().fit(X, planted.y), SparseBayesianRegression()
    np.testing.assert_allclose(thin.fit(sparse.csr_array(X), planted.y).coef_, dense.coef_, atol=1e-6)
    for a, b in zip(thin.predict(sparse.csr_array(X), return_std=True), dense.predict(X, return_std=True)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    single = SparseBayesianRegression().fit(X.astype(np.float32), planted.y.astype(np.float32))
    np.testing.assert_allclose(single.coef_, dense.coef_, atol=1e-3)


def test_a_real_table():
    table = sets.diabetes()
    fitted = SparseBayesianRegression().fit(table.X[:300], table.y[:300])
    assert fitted.converged_
    assert 3 <= len(fitted.support_) <= 9
    assert fitted.score(table.X[300:], table.y[300:]) > 0.45
    mean, std = fitted.predict(table.X[300:], return_std=True)
    assert 0.9 <= np.mean(abs(mean - table.y[300:]) <= 1.96 * std) <= 1


def test_an_end_before_rest_is_said():
    planted = planted_regression(30, 40, 5, snr=5, seed=0)
    with pytest.warns(ConvergenceWarning, match="still move after 3 steps"):
        SparseBayesianRegression(max_iter=3).fit(planted.X, planted.y)


@pytest.mark.parametrize(("settings", "message"), [
    ({"update": "map"}, "update: got 'map'"), ({"noise": -1}, "noise"), ({"posterior": "amp"}, "posterior: got 'amp'"),
])  # fmt: skip
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        SparseBayesianRegression(**settings).fit(np.eye(4), np.ones(4))

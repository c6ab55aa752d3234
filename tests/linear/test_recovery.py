"""The recovery estimators: scikit-learn's contract, intercepts, targets, warnings and bad input."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear.recovery import HardThresholdingPursuit, NullSpaceTuning

ALL = [NullSpaceTuning, HardThresholdingPursuit]


@pytest.mark.parametrize("estimator", ALL)
def test_it_recovers_with_an_intercept(estimator):
    planted = planted_regression(80, 200, 6, snr=np.inf, seed=1)
    fitted = estimator(k=6, fit_intercept=True).fit(planted.X, planted.y + 3)
    np.testing.assert_allclose(fitted.coef_, planted.coef, atol=1e-6)
    assert fitted.intercept_ == pytest.approx(3, abs=1e-6)
    assert fitted.n_nonzero_ == 6
    assert fitted.reached_
    assert fitted.residual_ <= 1e-6 * np.linalg.norm(planted.y)
    np.testing.assert_allclose(fitted.predict(planted.X), planted.y + 3, atol=1e-6)


@pytest.mark.parametrize("estimator", ALL)
def test_many_targets(estimator):
    planted = planted_regression(80, 200, 6, snr=np.inf, seed=1)
    y = np.stack([planted.y, -2 * planted.y], axis=1)
    fitted = estimator(k=6).fit(planted.X, y)
    assert fitted.coef_.shape == (2, 200)
    np.testing.assert_allclose(fitted.coef_, [planted.coef, -2 * planted.coef], atol=1e-8)
    assert fitted.predict(planted.X).shape == y.shape


def test_an_unknown_cardinality_is_estimated():
    planted = planted_regression(100, 300, 9, snr=np.inf, amplitude="normal", seed=0)
    assert NullSpaceTuning().fit(planted.X, planted.y).n_nonzero_ == 9
    noisy = planted_regression(200, 300, 9, snr=100, seed=0)
    fitted = NullSpaceTuning(noise_level=noisy.noise_level, ridge=0.01).fit(noisy.X, noisy.y)
    np.testing.assert_array_equal(np.flatnonzero(fitted.coef_), noisy.support)


@pytest.mark.parametrize("estimator", ALL)
def test_what_is_not_explained_is_said(estimator):
    planted = planted_regression(50, 20, 5, snr=5, seed=0)
    with pytest.warns(ConvergenceWarning, match="stayed above its bound"):
        fitted = estimator(k=2).fit(planted.X, planted.y)
    assert not fitted.reached_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_it_is_searched_like_any_estimator():
    planted = planted_regression(120, 60, 4, snr=20, seed=0)
    search = GridSearchCV(HardThresholdingPursuit(), {"k": [1, 2, 4]}, cv=3).fit(planted.X, planted.y)
    assert search.best_params_ == {"k": 4}


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(("k", "message"), [(0, "k: got 0"), (7, "k: got 7"), (2.0, "k: got 2.0")])
def test_bad_counts(estimator, k, message):
    with pytest.raises(InputError, match=message):
        estimator(k=k).fit(np.eye(6), np.ones(6))

"""Greedy and thresholded least squares: scikit-learn's contract, sparse and float32 input, named refusals."""

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import IterativeHardThresholding, OrthogonalMatchingPursuit

ALL = [OrthogonalMatchingPursuit, IterativeHardThresholding]


@pytest.fixture(scope="module")
def planted():
    return planted_regression(120, 60, 5, snr=50.0, seed=0)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csr_array, sparse.csc_matrix])
def test_k_columns_are_found_and_refitted(planted, estimator, form):
    fitted = estimator(k=5).fit(form(planted.X), planted.y + 2)
    assert set(np.flatnonzero(fitted.coef_)) == set(planted.support)
    plain = linear_model.LinearRegression().fit(planted.X[:, planted.support], planted.y + 2)
    np.testing.assert_allclose(fitted.coef_[planted.support], plain.coef_, atol=1e-6)
    assert fitted.intercept_ == pytest.approx(plain.intercept_, abs=1e-6)
    np.testing.assert_allclose(fitted.predict(form(planted.X)), plain.predict(planted.X[:, planted.support]), atol=1e-6)


@pytest.mark.parametrize("estimator", ALL)
def test_without_k_a_tenth_of_the_columns_is_kept(planted, estimator):
    assert np.count_nonzero(estimator().fit(planted.X, planted.y).coef_) == 6


def test_the_order_of_choice_is_kept(planted):
    fitted = OrthogonalMatchingPursuit(5).fit(planted.X, planted.y)
    centred = planted.X - planted.X.mean(0)
    correlation = abs(centred.T @ planted.y) / np.linalg.norm(centred, axis=0)
    assert fitted.support_[0] == np.argmax(correlation)
    assert fitted.n_iter_ == 5


def test_hard_thresholding_does_not_care_for_the_units_of_columns(planted):
    scale = np.logspace(-3, 3, 60)
    plain = IterativeHardThresholding(5).fit(planted.X, planted.y)
    scaled = IterativeHardThresholding(5).fit(planted.X * scale, planted.y)
    np.testing.assert_allclose(scaled.coef_ * scale, plain.coef_, atol=1e-8)


@pytest.mark.parametrize("estimator", ALL)
def test_float32_stays(planted, estimator):
    X, y = planted.X.astype(np.float32), planted.y.astype(np.float32)
    single, double = estimator().fit(X, y), estimator().fit(planted.X, planted.y)
    assert single.coef_.dtype == single.predict(X).dtype == np.float32
    assert double.coef_.dtype == np.float64
    np.testing.assert_allclose(single.coef_, double.coef_, atol=1e-3)


def test_they_work_in_pipelines_and_searches(planted):
    pipe = make_pipeline(StandardScaler(), OrthogonalMatchingPursuit())
    search = GridSearchCV(pipe, {"orthogonalmatchingpursuit__k": [1, 5, 40]}, cv=3).fit(planted.X, planted.y)
    assert search.best_params_ == {"orthogonalmatchingpursuit__k": 5}


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (OrthogonalMatchingPursuit(0), "k: got 0"),
        (OrthogonalMatchingPursuit(61), "k: got 61"), (OrthogonalMatchingPursuit(2.5), "k: got 2.5"),
        (IterativeHardThresholding(61), "k: got 61"), (IterativeHardThresholding(5, tol=-1.0), "tol: got -1.0"),
        (IterativeHardThresholding(5, max_iter=0), "max_iter: got 0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(planted, estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(planted.X, planted.y)

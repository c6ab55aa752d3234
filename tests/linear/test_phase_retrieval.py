"""The phase retrieval estimator: scikit-learn's contract, what is learned, and what is said when it fails."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from ellzero.errors import InputError
from ellzero.linear import SparsePhaseRetrieval
from ellzero.rng import rng


@pytest.fixture(scope="module")
def measured():
    generator = rng(0, "phase")
    X, w = generator.standard_normal((300, 200)), np.zeros(200)
    w[[3, 50, 120]] = [2.0, -1.0, 1.0]
    return X, w, abs(X @ w)


def test_it_finds_the_coefficients_and_predicts_sizes(measured):
    X, w, y = measured
    fitted = SparsePhaseRetrieval(3).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, w, atol=1e-8)
    assert fitted.residual_ < 1e-8
    assert fitted.converged_
    np.testing.assert_allclose(fitted.predict(X[:9]), y[:9], atol=1e-8)


def test_too_few_measurements_are_said(measured):
    X, _, y = measured
    with pytest.warns(ConvergenceWarning, match="above 0.001; the support may be wrong"):
        SparsePhaseRetrieval(2).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "message"), [({"k": 0}, "k: got 0"), ({"k": 201}, "k: got 201"), ({"enough": -1.0}, "enough: got -1")]
)
def test_bad_settings(measured, settings, message):
    with pytest.raises(InputError, match=message):
        SparsePhaseRetrieval(**settings).fit(measured[0], measured[2])


def test_signed_targets_are_refused(measured):
    with pytest.raises(InputError, match="y: got -"):
        SparsePhaseRetrieval(3).fit(measured[0], measured[0][:, 0])

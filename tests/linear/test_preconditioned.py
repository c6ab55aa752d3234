"""The preconditioned Lasso: scikit-learn's contract, the plain Lasso as a special case, penalties and bad input."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import Lasso, PreconditionedLasso, difficulty
from ellzero.rng import rng


def half_dependent(n=100, p=120, seed=0):
    """Half of the columns share a factor up to 1e-3; the truth uses three of them, which cancel, and two others."""
    generator = rng(seed, "half")
    X = generator.standard_normal((n, p))
    X[:, : p // 2] = generator.standard_normal((n, 1)) + 1e-3 * X[:, : p // 2]
    w = np.zeros(p)
    w[[1, 5, 9]] = np.array([1.0, 1.0, -2.0]) * 400
    w[[p - 1, p - 2]] = 0.7
    signal = X @ w
    return X, 3 + signal + 0.1 * generator.standard_normal(n), w


def test_without_directions_it_is_the_lasso_on_scaled_columns():
    planted = planted_regression(80, 100, 4, snr=9, seed=0)
    fitted = PreconditionedLasso(alpha=0.1, max_directions=0, tol=1e-10).fit(planted.X, planted.y + 1)
    centred = planted.X - planted.X.mean(0)
    scale = np.sqrt(np.mean(centred**2, axis=0))
    plain = Lasso(0.1, tol=1e-10).fit(centred / scale, planted.y + 1)
    np.testing.assert_allclose(fitted.coef_ * scale, plain.coef_, atol=1e-8)
    assert fitted.n_directions_ == 0
    assert fitted.converged_
    assert fitted.dual_gap_ <= 1e-10


def test_it_predicts_where_the_plain_lasso_fails():
    X, y, w = half_dependent()
    signal = 3 + X @ w
    found = PreconditionedLasso(5).fit(X, y)
    plain = PreconditionedLasso(5, max_directions=0, eps=1e-5).fit(X, y)
    risk, other = (np.mean((model.predict(X) - signal) ** 2) for model in (found, plain))
    assert found.n_directions_ == 1
    assert risk < 0.5 * other
    assert found.intercept_ == pytest.approx(3, abs=0.1)
    before, after = difficulty(X, 5).quantiles()[0.5]
    assert before < 0.01
    assert after > 0.5


def test_a_known_noise_level_sets_the_penalty():
    X, y, w = half_dependent()
    fitted = PreconditionedLasso(5, noise_level=0.1).fit(X, y)
    assert fitted.alpha_ == pytest.approx(0.1 * np.sqrt(2 * np.log(120) / 100))
    assert np.mean((fitted.predict(X) - 3 - X @ w) ** 2) < 0.02
    assert not hasattr(fitted, "cv_errors_")


def test_cross_validation_is_reported_and_repeats():
    X, y, _ = half_dependent()
    fitted = PreconditionedLasso(5, n_alphas=20).fit(X, y)
    assert fitted.alphas_.shape == fitted.cv_errors_.shape == (20,)
    assert fitted.alpha_ == fitted.alphas_[fitted.cv_errors_.argmin()]
    again = PreconditionedLasso(5, n_alphas=20).fit(X, y)
    np.testing.assert_array_equal(fitted.coef_, again.coef_)


def test_float32_and_no_intercept():
    X, y, _ = half_dependent()
    single = PreconditionedLasso(5, fit_intercept=False).fit(X.astype(np.float32), (y - 3).astype(np.float32))
    assert single.coef_.dtype == np.float32
    assert single.intercept_ == 0


def test_a_fit_that_falls_short_says_so():
    X, y, _ = half_dependent()
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        PreconditionedLasso(5, alpha=1e-4, max_iter=1, tol=1e-14).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k: got 0"), ({"k": 1.5}, "k: got 1.5"), ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"noise_level": -1.0}, "noise_level: got -1.0"), ({"share": 2.0}, "share: got 2.0"), ({"cv": 1}, "cv: got 1"),
        ({"spread": 0}, "spread: got 0"), ({"n_alphas": 0}, "n_alphas: got 0"), ({"eps": 2.0}, "eps: got 2.0"),
    ],
)  # fmt: skip
def test_bad_settings(settings, message):
    X, y, _ = half_dependent()
    with pytest.raises(InputError, match=message):
        PreconditionedLasso(**settings).fit(X, y)

"""The square-root and the absolute Lasso: optima by independent means, and what each is for."""

import numpy as np
import pytest
from scipy import optimize, sparse, stats
from sklearn.linear_model import QuantileRegressor

from ellzero.errors import InputError
from ellzero.linear import LADLasso, Lasso, SquareRootLasso

BOTH = [SquareRootLasso, LADLasso]


def data(seed=0, n=80, p=12, noise=0.5):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    return X, X[:, 0] - 0.7 * X[:, 2] + noise * rng.normal(size=n) + 3


@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_the_square_root_lasso_is_a_lasso_at_its_own_noise(alpha):
    X, y = data()
    ours = SquareRootLasso(alpha, tol=1e-11).fit(X, y)
    assert ours.converged_
    assert ours.noise_level_ == pytest.approx(np.sqrt(((y - ours.predict(X)) ** 2).mean()))
    # The two gradients agree where the Lasso's alpha is this one times the root mean square of the residual.
    plain = Lasso(alpha * ours.noise_level_, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.coef_, plain.coef_, atol=1e-6)


def test_its_alpha_needs_no_noise_level():
    supports = []
    X, y = data(n=200, p=100)
    for unit in (0.1, 1.0, 10.0):  # of signal and noise alike
        fitted = SquareRootLasso().fit(X, unit * y)
        supports.append(np.flatnonzero(fitted.coef_).tolist())
        assert fitted.alpha_ == pytest.approx(1.1 * stats.norm.ppf(1 - 0.05 / 200) / np.sqrt(200))
        assert fitted.noise_level_ == pytest.approx(0.5 * unit, rel=0.25)
    assert supports == [[0, 2]] * 3
    noise_alone = SquareRootLasso().fit(X, np.random.default_rng(7).normal(size=200) * 30)
    assert not noise_alone.coef_.any()


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_the_absolute_lasso_is_scikit_learns_median_regression(alpha):
    X, y = data()
    ours = LADLasso(alpha, tol=1e-9).fit(X, y)
    theirs = QuantileRegressor(quantile=0.5, alpha=alpha / 2, solver="highs").fit(X, y)  # its loss is half of ours
    assert ours.converged_
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-7)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-7)


def test_wild_targets_do_no_harm():
    X, y = data()
    wild = y.copy()
    wild[::16] += 1000
    robust, calm = LADLasso(0.05).fit(X, wild), LADLasso(0.05).fit(X, y)
    assert np.linalg.norm(robust.coef_ - calm.coef_) < 0.2
    assert np.linalg.norm(Lasso(0.05).fit(X, wild).coef_ - calm.coef_) > 10


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_and_float32(estimator, form):
    X, y = data()
    X[abs(X) < 0.5] = 0
    plain, other = estimator(0.05, tol=1e-9).fit(X, y), estimator(0.05, tol=1e-9).fit(form(X), y)
    np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-6)
    np.testing.assert_allclose(other.predict(form(X)), plain.predict(X), atol=1e-6)
    single = estimator(0.05, tol=1e-4).fit(form(X.astype(np.float32)), y)
    assert single.coef_.dtype == np.float32
    assert single.converged_


@pytest.mark.parametrize("estimator", BOTH)
def test_weights_of_samples_and_columns(estimator):
    X, y = data()
    counts = np.arange(len(y)) % 3
    repeated = np.repeat(np.arange(len(y)), counts)
    alpha = None if estimator is SquareRootLasso else 0.05
    weighted = estimator(alpha, tol=1e-9).fit(X, y, sample_weight=counts)
    again = estimator(alpha, tol=1e-9).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, again.coef_, atol=1e-6)
    factors = np.ones(12)
    factors[5], factors[0] = 0, np.inf
    fitted = estimator(0.3, weights=factors).fit(X, y)
    assert fitted.coef_[5] != 0
    assert fitted.coef_[0] == 0
    assert (estimator(0.05, positive=True).fit(X, y).coef_ >= 0).all()


@pytest.mark.parametrize("estimator", BOTH)
def test_paths_and_warm_starts(estimator):
    X, y = data(n=40, p=60)
    whole = estimator(tol=1e-8).path(X, y, n_alphas=6, eps=0.2)
    assert whole.converged.all()
    warm = estimator(whole.alphas[4], tol=1e-8, warm_start=True).fit(X, y)
    np.testing.assert_allclose(warm.coef_, whole.coefs[:, 4], atol=1e-4)
    cold = warm.n_iter_
    assert warm.fit(X, y).n_iter_ == 1 <= cold
    narrow = warm.fit(np.c_[np.zeros(len(X)), X[:, :59]], y)  # an empty column where one was in use
    assert narrow.converged_
    assert narrow.coef_[0] == 0


def test_no_other_point_is_lower():
    X, y = data(n=30, p=4)
    for estimator, loss in (
        (SquareRootLasso(0.2), lambda r: np.sqrt((r**2).mean())),
        (LADLasso(0.2), lambda r: abs(r).mean()),
    ):
        fitted = estimator.set_params(tol=1e-9).fit(X, y)

        def cost(v, loss=loss):
            return loss(y - X @ v[:4] - v[4]) + 0.2 * abs(v[:4]).sum()

        here = np.r_[fitted.coef_, fitted.intercept_]
        found = optimize.minimize(cost, here + 0.1, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
        assert cost(here) <= found.fun + 1e-9


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (LADLasso(0.0), "alpha: got 0.0, want a number above 0"), (LADLasso(-1.0), "alpha: got -1.0"),
        (SquareRootLasso(-1.0), "alpha: got -1.0"), (SquareRootLasso(tol=-1), "tol: got -1"),
        (LADLasso(0.1, weights=np.ones(3)), r"weights: got shape \(3,\)"),
        (SquareRootLasso(0.1, weights=np.ones(3)), r"weights: got shape \(3,\)"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*data())

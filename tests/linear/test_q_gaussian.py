"""Heavy-tailed errors and groups: the likelihood by other means, robustness, units, the mixed model's limit."""

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from ellzero.errors import InputError
from ellzero.linear import GeneralizedLinearEstimator, Lasso, QGaussianRegression
from ellzero.parts.datafits_heavy import QGaussian
from ellzero.parts.penalties import L1, MCP


def data(seed=0, n=120, p=6, noise=0.5, wild=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    y = X[:, 0] - 0.7 * X[:, 2] + noise * rng.normal(size=n) + 3
    y[:wild] += 40
    return X, y


@pytest.mark.parametrize("q", [1.3, 2.0])
def test_without_a_penalty_it_is_the_likelihood_of_students_t(q):
    X, y = data(wild=8)
    fitted = QGaussianRegression(q, 0.0, tol=1e-9).fit(X, y)
    nu = (3 - q) / (q - 1)

    def minus(v):
        return -stats.t(nu, scale=np.exp(v[7])).logpdf(y - X @ v[:6] - v[6]).mean()

    here = np.r_[fitted.coef_, fitted.intercept_, np.log(fitted.scale_)]
    found = optimize.minimize(minus, here + 0.02, method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.x, here, atol=1e-3)
    assert minus(here) <= found.fun + 1e-7


def test_at_q_1_it_is_the_lasso_of_its_own_scale():
    X, y = data()
    ours = QGaussianRegression(1, 0.1, tol=1e-9).fit(X, y)
    squares = ((y - ours.predict(X)) ** 2).mean()
    assert squares / ours.scale_**2 + 0.1 * abs(ours.coef_).sum() / ours.scale_ == pytest.approx(1, abs=1e-4)
    plain = Lasso(0.1 * ours.scale_, tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.coef_, plain.coef_, atol=1e-6)


def test_wild_targets_do_no_harm_and_units_are_units():
    (X, y), (_, calm) = data(wild=12), data()
    fitted = QGaussianRegression(1.8, 0.01).fit(X, y)
    assert np.linalg.norm(fitted.coef_ - QGaussianRegression(1.8, 0.01).fit(X, calm).coef_) < 0.15
    assert fitted.intercept_ == pytest.approx(3, abs=0.2)
    large = QGaussianRegression(1.8, 0.01).fit(X, 1000 * y)
    np.testing.assert_allclose(large.coef_, 1000 * fitted.coef_, rtol=1e-3, atol=1e-1)
    assert large.scale_ == pytest.approx(1000 * fitted.scale_, rel=1e-3)
    given = QGaussianRegression(1.8, 0.01, scale=fitted.scale_).fit(X, y)
    np.testing.assert_allclose(given.coef_, fitted.coef_, atol=1e-4)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_float32_and_sample_weights(form):
    X, y = data(wild=6)
    X[abs(X) < 0.3] = 0
    plain = QGaussianRegression(1.5, 0.02).fit(X, y)
    np.testing.assert_allclose(QGaussianRegression(1.5, 0.02).fit(form(X), y).coef_, plain.coef_, atol=1e-6)
    single = QGaussianRegression(1.5, 0.02, tol=1e-4).fit(form(X.astype(np.float32)), y)
    assert single.coef_.dtype == np.float32
    assert single.converged_
    counts = np.arange(len(y)) % 3
    repeated = np.repeat(np.arange(len(y)), counts)
    weighted = QGaussianRegression(1.5, 0.02, tol=1e-8).fit(X, y, sample_weight=counts)
    again = QGaussianRegression(1.5, 0.02, tol=1e-8).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, again.coef_, atol=1e-4)


def grouped(seed=0, groups=30, size=6, spread=2.0):
    X, y = data(seed, groups * size)
    labels = np.array([f"site {i:02d}" for i in range(groups)])[np.arange(groups * size) % groups]
    u = spread * np.random.default_rng(seed + 99).normal(size=groups)
    return X, y + u[np.arange(groups * size) % groups], labels, u


def test_gaussian_groups_are_the_mixed_model():
    X, y, labels, _ = grouped()
    fitted = QGaussianRegression(1, 0.0, tol=1e-9).fit(X, y, groups=labels)
    Z = (labels[:, None] == fitted.groups_).astype(float)
    A = np.c_[X, np.ones(len(y))]

    def minus(logs):  # the restricted or the plain marginal likelihood bracket what the turns come to
        V = np.exp(2 * logs[0]) * np.eye(len(y)) + np.exp(2 * logs[1]) * Z @ Z.T
        W = np.linalg.inv(V)
        beta = np.linalg.solve(A.T @ W @ A, A.T @ W @ y)
        r = y - A @ beta
        return np.linalg.slogdet(V)[1] + r @ W @ r

    found = optimize.minimize(minus, np.log([fitted.scale_, fitted.group_scale_]), method="Nelder-Mead")
    np.testing.assert_allclose(np.exp(found.x), [fitted.scale_, fitted.group_scale_], rtol=0.02)
    # At these scales coefficients are those of generalised least squares: (V / s^2) whitens the rows.
    V = fitted.scale_**2 * np.eye(len(y)) + fitted.group_scale_**2 * Z @ Z.T
    W = np.linalg.inv(V)
    beta = np.linalg.solve(A.T @ W @ A, A.T @ W @ y)
    np.testing.assert_allclose(np.r_[fitted.coef_, fitted.intercept_], beta, atol=1e-5)


def test_groups_are_found_beside_outliers():
    X, y, labels, u = grouped(1)
    y = y.copy()
    y[::15] += 60
    fitted = QGaussianRegression(1.8, 0.01).fit(X, y, groups=labels)
    assert np.corrcoef(fitted.group_intercepts_, u)[0, 1] > 0.9
    assert np.linalg.norm(fitted.coef_ - [1, 0, -0.7, 0, 0, 0]) < 0.25
    alone = QGaussianRegression(1.8, 0.01).fit(X, y)
    assert np.linalg.norm(alone.coef_ - [1, 0, -0.7, 0, 0, 0]) > np.linalg.norm(fitted.coef_ - [1, 0, -0.7, 0, 0, 0])
    known = fitted.predict(X[:3], groups=labels[:3]) - fitted.predict(X[:3])
    np.testing.assert_allclose(known, fitted.group_intercepts_[:3])
    np.testing.assert_array_equal(fitted.predict(X[:2], groups=["elsewhere", "zzz"]), fitted.predict(X[:2]))


def test_it_is_reached_by_capability_too():
    X, y = data(wild=6)
    general = GeneralizedLinearEstimator(QGaussian(1.5, 0.5), MCP(0.3, 10.0)).fit(X, y)
    assert general.solver_ == "conjugate gradient"
    assert general.converged_
    assert (general.coef_ != 0).tolist() == [True, False, True, False, False, False]
    whole = GeneralizedLinearEstimator(QGaussian(1.5, 0.5), L1(1.0)).path(X, y, n_alphas=4, eps=0.05)
    assert whole.converged.all()
    at = QGaussianRegression(1.5, 0.5 * whole.alphas[2], scale=0.5).fit(X, y)
    np.testing.assert_allclose(at.coef_, whole.coefs[:, 2], atol=1e-4)
    assert not hasattr(QGaussianRegression(), "path")


def test_an_exact_fit_of_many_rows_has_a_scale_all_the_same():
    X, y = data(n=20, p=40)
    fitted = QGaussianRegression(1.5, 0.1).fit(X, np.round(y))
    assert fitted.converged_
    assert fitted.scale_ >= 0.1 * abs(fitted.coef_).sum() > 0


def test_a_constant_target():
    X, _ = data()
    fitted = QGaussianRegression().fit(X, np.full(120, 2.5))
    assert not fitted.coef_.any()
    assert fitted.intercept_ == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("estimator", "options", "words"),
    [
        (QGaussianRegression(3.0), {}, "q: got 3.0"), (QGaussianRegression(1.5, -1.0), {}, "alpha: got -1.0"),
        (QGaussianRegression(scale=0.0), {}, "scale: got 0.0"), (QGaussianRegression(tol=-1), {}, "tol: got -1"),
        (QGaussianRegression(), {"groups": np.zeros(3)}, r"groups: got shape \(3,\), want \(120,\)"),
        (QGaussianRegression(positive=True), {"groups": np.zeros(120)}, "positive: got True beside groups"),
        (QGaussianRegression(weights=np.ones(3)), {"groups": np.zeros(120)}, r"weights: got shape \(3,\)"),
        (QGaussianRegression(weights=np.ones(3)), {}, r"weights: got shape \(3,\)"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(estimator, options, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*data(), **options)

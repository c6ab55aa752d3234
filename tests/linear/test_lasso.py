"""The Lasso family: scikit-learn's optima in every storage, weights, certificates, starts and paths."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning

from ellzero.data.generators import AR, planted_regression
from ellzero.errors import InputError
from ellzero.linear import ElasticNet, Lasso, MCPRegression, SCADRegression
from ellzero.parts import penalties

ALL = [Lasso, ElasticNet, MCPRegression, SCADRegression]
CONVEX = [(Lasso, linear_model.Lasso), (ElasticNet, linear_model.ElasticNet)]
FORMS = [np.ascontiguousarray, np.asfortranarray, sparse.csr_array, sparse.csc_array, sparse.csr_matrix]
convex = pytest.mark.parametrize(("ours", "theirs"), CONVEX, ids=["lasso", "elastic net"])


def data(n=60, p=90, seed=0):
    planted = planted_regression(n, p, min(8, p), snr=5.0, correlation=AR(0.5), seed=seed)
    X = planted.X.copy()
    X[abs(X) < 0.7] = 0
    return X, X @ planted.coef + 0.3 * np.random.default_rng(seed).standard_normal(n) + 3


def gap(X, y, fitted, alpha, weight=None):
    """The relative duality gap of the Lasso, from scratch."""
    share = np.ones(len(y)) / len(y) if weight is None else weight / weight.sum()
    y = y - share @ y
    X = X - share @ X
    residual = y - X @ fitted.coef_
    theta = residual * min(1, alpha / abs(X.T @ (share * residual)).max())
    primal = share @ residual**2 / 2 + alpha * abs(fitted.coef_).sum()
    return (primal - share @ (2 * y * theta - theta**2) / 2) / (share @ y**2 / 2)


@convex
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(60, 90), (90, 20)])
@pytest.mark.parametrize("settings", [{}, {"positive": True}, {"fit_intercept": False}])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_scikit_learns(ours, theirs, form, shape, settings, weighted):
    X, y = data(*shape)
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(float) if weighted else None
    fitted = ours(0.05, tol=1e-12, **settings).fit(form(X), y, sample_weight=weight)
    plain = theirs(alpha=0.05, tol=1e-14, max_iter=10**6, **settings).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(fitted.coef_, plain.coef_, atol=1e-7)
    assert fitted.intercept_ == pytest.approx(plain.intercept_, abs=1e-7)
    assert fitted.converged_
    assert fitted.dual_gap_ <= 1e-12
    np.testing.assert_allclose(fitted.predict(form(X)), plain.predict(X), atol=1e-6)


@pytest.mark.parametrize("form", [np.ascontiguousarray, sparse.csr_array])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gap_that_is_reported_is_the_gap(form, tol, weighted):
    X, y = data(80, 400)
    weight = np.random.default_rng(1).random(80) if weighted else None
    fitted = Lasso(0.02, tol=tol).fit(form(X), y, sample_weight=weight)
    assert gap(X, y, fitted, 0.02, weight) <= fitted.dual_gap_ * 1.01 + 1e-14
    assert fitted.dual_gap_ <= tol


@pytest.mark.parametrize("estimator", ALL)
def test_a_row_of_weight_zero_is_absent_and_twice_is_two(estimator):
    X, y = data(60, 20)
    repeats = np.random.default_rng(0).integers(0, 3, 60)
    weighted = estimator(0.05, tol=1e-10).fit(X, y, sample_weight=5.0 * repeats)
    repeated = estimator(0.05, tol=1e-10).fit(np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)
    assert weighted.intercept_ == pytest.approx(repeated.intercept_, abs=1e-6)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("form", [np.asfortranarray, sparse.csc_array])
def test_columns_may_be_free_or_excluded(estimator, form):
    X, y = data(60, 20)
    weights = np.ones(20)
    weights[:2], weights[2:4] = 0, np.inf
    fitted = estimator(10.0, weights=weights, tol=1e-10).fit(form(X), y)
    assert not fitted.coef_[2:].any()
    plain = linear_model.LinearRegression().fit(X[:, :2], y)
    np.testing.assert_allclose(fitted.coef_[:2], plain.coef_, atol=1e-6)
    loose = estimator(0.01, weights=weights, tol=1e-6).fit(form(X), y)
    assert not loose.coef_[2:4].any()
    assert loose.coef_[4:].any()


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("form", FORMS)
def test_input_is_left_alone_and_may_be_read_only(estimator, form):
    X, y = data()
    given, before = form(X), X.copy()
    parts = [given.data] if sparse.issparse(given) else [given]
    for part in (*parts, y):
        part.setflags(write=False)
    estimator(0.05).fit(given, y)
    np.testing.assert_array_equal(given.toarray() if sparse.issparse(given) else given, before)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("form", FORMS)
def test_float32_stays(estimator, form):
    X, y = data()
    single = estimator(0.05, tol=1e-4).fit(form(X.astype(np.float32)), y.astype(np.float32))
    double = estimator(0.05, tol=1e-8).fit(form(X), y)
    assert single.coef_.dtype == single.predict(form(X.astype(np.float32))).dtype == np.float32
    assert single.converged_
    np.testing.assert_allclose(single.coef_, double.coef_, atol=0.02)


def test_a_column_far_from_zero_costs_no_digits():
    X, y = data(60, 20)
    shifted = X + np.logspace(0, 7, 20)
    np.testing.assert_allclose(Lasso(0.05, tol=1e-10).fit(shifted, y).coef_, Lasso(0.05, tol=1e-10).fit(X, y).coef_,
                               atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("estimator", ALL)
def test_a_warm_start_is_less_work(estimator):
    X, y = data(80, 300)
    fitted = estimator(0.03, warm_start=True, tol=1e-9).fit(X, y)
    cold, coef = fitted.n_iter_, fitted.coef_.copy()
    fitted.fit(X, y)
    assert fitted.n_iter_ == 1 < cold
    np.testing.assert_allclose(fitted.coef_, coef, atol=1e-9)
    fitted.fit(X[:, :50], y)  # another number of columns starts afresh
    assert fitted.coef_.shape == (50,)


@convex
def test_a_path_is_its_single_fits(ours, theirs):
    X, y = data()
    done = ours(tol=1e-11).path(sparse.csr_array(X), y, n_alphas=12)
    assert done.coefs.shape == (90, 12)
    assert not done.coefs[:, 0].any()
    assert done.converged.all()
    for i in (3, 11):
        single = ours(done.alphas[i], tol=1e-11).fit(X, y)
        np.testing.assert_allclose(done.coefs[:, i], single.coef_, atol=1e-6)
        assert done.intercepts[i] == pytest.approx(single.intercept_, abs=1e-6)
    chosen = ours(tol=1e-11).path(X, y, alphas=[0.1, 0.5])
    np.testing.assert_array_equal(chosen.alphas, [0.5, 0.1])


@pytest.mark.parametrize("estimator", [MCPRegression, SCADRegression])
def test_large_coefficients_are_not_shrunk(estimator):
    planted = planted_regression(200, 50, 3, snr=50.0, seed=1)
    fitted = estimator(0.3, 2.5, tol=1e-9).fit(planted.X, planted.y)
    assert set(np.flatnonzero(fitted.coef_)) == set(planted.support)
    plain = linear_model.LinearRegression().fit(planted.X[:, planted.support], planted.y)
    np.testing.assert_allclose(fitted.coef_[planted.support], plain.coef_, atol=1e-6)
    assert abs(Lasso(0.3).fit(planted.X, planted.y).coef_).sum() < 0.8 * abs(plain.coef_).sum()


@pytest.mark.parametrize(
    ("estimator", "penalty"),
    [(MCPRegression(0.1), penalties.MCP(0.1)), (SCADRegression(0.1), penalties.SCAD(0.1))],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_what_is_not_convex_ends_stationary(estimator, penalty, form):
    X, y = data(100, 300)
    fitted = estimator.fit(form(X), y)
    residual = y - X @ fitted.coef_ - fitted.intercept_
    far = penalty.subdifferential_distance(fitted.coef_, -X.T @ residual / len(y))
    assert fitted.converged_
    assert far.max() <= 1.1e-6 * abs(X.T @ (y - y.mean())).max() / len(y)


def test_a_huge_gamma_is_the_lasso():
    X, y = data()
    plain = Lasso(0.1, tol=1e-10).fit(X, y).coef_
    for estimator in (MCPRegression, SCADRegression):
        np.testing.assert_allclose(estimator(0.1, 1e9, tol=1e-10).fit(X, y).coef_, plain, atol=1e-5)


def test_text_like_rows_go_by_columns_and_agree_with_dense():
    """Wide and very sparse: descent on the columns themselves, certified like all else."""
    generator = np.random.default_rng(0)
    X = sparse.random_array((400, 3000), density=0.004, rng=generator, format="csr")
    y = X @ np.where(generator.random(3000) < 0.02, 1.0, 0.0) + 0.02 * generator.standard_normal(400) + 1
    weight = generator.random(400)
    kept = Lasso(tol=1e-10).path(X, y, n_alphas=20, sample_weight=weight)
    dense = Lasso(tol=1e-10).path(X.toarray(), y, n_alphas=20, sample_weight=weight)
    assert kept.converged.all()
    np.testing.assert_allclose(kept.alphas, dense.alphas)
    np.testing.assert_allclose(kept.coefs, dense.coefs, atol=1e-5)


def test_more_rows_than_columns_needs_one_gram_matrix():
    X, y = data(500, 20)
    done = Lasso(tol=1e-12).path(X, y, n_alphas=30)
    for i in (5, 29):
        plain = linear_model.Lasso(done.alphas[i], tol=1e-14, max_iter=10**6).fit(X, y)
        np.testing.assert_allclose(done.coefs[:, i], plain.coef_, atol=1e-8)
    assert done.gaps.max() <= 1e-12


def test_the_bits_do_not_depend_on_the_threads():
    code = (
        "import hashlib\nimport numpy as np\nfrom ellzero.linear import Lasso\n"
        "g = np.random.default_rng(0)\nX = g.standard_normal((470, 9000))\nX[abs(X) < 1] = 0\n"
        "y = X[:, :40].sum(axis=1) + g.standard_normal(470)\n"
        "for form in (np.asarray, np.asfortranarray):\n"
        "    done = Lasso(tol=1e-8).path(form(X), y, n_alphas=2, eps=0.5)\n"
        "    print(done.converged.all(), hashlib.sha256(done.coefs.tobytes() + done.gaps.tobytes()).hexdigest())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={**kept, "OMP_NUM_THREADS": threads}).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert outputs.pop().count("True") == 2


@pytest.mark.parametrize("estimator", ALL)
def test_a_fit_that_falls_short_says_so(estimator):
    planted = planted_regression(50, 80, 10, snr=2.0, seed=0)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        fitted = estimator(0.01, max_iter=1, tol=1e-12).fit(planted.X, planted.y)
    assert not fitted.converged_
    assert fitted.dual_gap_ > 1e-12


def test_missing_values_and_text_are_refused_by_column():
    pandas = pytest.importorskip("pandas")
    X, y = data(60, 3)
    frame = pandas.DataFrame(X, columns=["age", "bmi", "city"])
    frame.loc[[4, 9], "bmi"] = np.nan
    with pytest.raises(InputError, match=r"column 'bmi' has 2 missing values .*row 4.*SimpleImputer"):
        Lasso().fit(frame, y)
    with pytest.raises(InputError, match=r"column '1' has 2 missing values"):
        Lasso().fit(frame.to_numpy(), y)
    fitted = Lasso().fit(frame.fillna(0), y)
    with pytest.raises(InputError, match="column 'bmi' has 2 missing values"):
        fitted.predict(frame)
    frame["bmi"], frame["city"] = 0.0, "Paris"
    with pytest.raises(InputError, match=r"column 'city' holds text \('Paris'\).*OneHotEncoder"):
        Lasso().fit(frame, y)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (Lasso(-1.0), "alpha: got -1.0"), (Lasso("1"), "alpha: got '1'"), (Lasso(tol=-1.0), "tol: got -1.0"),
        (Lasso(max_iter=0), "max_iter: got 0"), (Lasso(weights=[1.0, 1.0]), r"weights: got shape \(2,\), want \(90,\)"),
        (Lasso(weights=np.full(90, -1.0)), "weights"), (ElasticNet(l1_ratio=2.0), "l1_ratio: got 2.0"),
        (MCPRegression(gamma=1.0), "gamma: got 1.0"), (SCADRegression(gamma=2.0), "gamma: got 2.0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*data())


def test_bad_input_is_refused_by_name():
    X, y = data()
    with pytest.raises(InputError, match="sample_weight: got shape"):
        Lasso().fit(X, y, sample_weight=np.ones(3))
    with pytest.raises(InputError, match="sample_weight: got -1 to"):
        Lasso().fit(X, y, sample_weight=np.r_[-1, np.ones(59)])
    with pytest.raises(InputError, match=r"eps: got 1\.0"):
        Lasso().path(X, y, eps=1.0)
    with pytest.raises(InputError, match="alphas given"):
        ElasticNet(l1_ratio=0.0).path(X, y)

"""The generalized estimator: which solver, scikit-learn's contract, and the same optima as scikit-learn's own."""

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from ellzero.errors import InputError
from ellzero.linear import GeneralizedLinearEstimator
from ellzero.linear.generalized import pick
from ellzero.parts.datafits import Absolute, Huber, Logistic, Poisson, Quadratic, SquaredHinge, SquareRoot
from ellzero.parts.datafits_survival import Cox
from ellzero.parts.penalties import L0, L1, L21, MCP, Box, ElasticNet, GroupL2, Nuclear, SparseGroup


def data(seed=0, n=80, p=10):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    return X, X[:, 0] - 0.7 * X[:, 2] + 0.5 * rng.normal(size=n) + 3


def counts(seed=0):
    X, y = data(seed)
    return X, np.random.default_rng(seed).poisson(np.exp(0.5 * (y - 3))).astype(float)


@pytest.mark.parametrize(
    ("datafit", "penalty", "solver"),
    [
        (Quadratic(), L1(1.0), "coordinate descent"), (Quadratic(), MCP(1.0), "coordinate descent"),
        (Quadratic(), Box(0.0, 1.0), "coordinate descent"), (Quadratic(), GroupL2(1.0, 2), "proximal Newton"),
        (Quadratic(), Nuclear(1.0), "FISTA"), (Absolute(), L1(1.0), "linear programs"),
        (Absolute(), GroupL2(1.0, 2), "proximal Newton"), (Logistic(), SparseGroup(1.0, 2), "proximal Newton"),
        (Poisson(), ElasticNet(1.0), "proximal Newton"), (Cox(), L1(1.0), "proximal Newton"),
        (SquaredHinge(), Box(0.0, 1.0), "FISTA"),
    ],
)  # fmt: skip
def test_the_solver_follows_from_what_the_parts_can_do(datafit, penalty, solver):
    assert pick(datafit, penalty).name == solver
    assert pick(Quadratic(), L1(1.0), outputs=3).name == "proximal Newton"


@pytest.mark.parametrize(
    ("datafit", "penalty", "words"),
    [
        (L1(1.0), L1(1.0), "got L1, which lacks 'gradient'"),
        (Huber(), Huber(), "got Huber, which lacks 'prox'"),
        (Absolute(), Nuclear(1.0), "Absolute with Nuclear; the datafit lacks 'hessian_diagonal'"),
        (None, "l1", "got str, which lacks"),
    ],
)
def test_the_missing_capability_is_named(datafit, penalty, words):
    with pytest.raises(InputError, match=words):
        GeneralizedLinearEstimator(datafit, penalty).fit(*data())


@pytest.mark.parametrize("form", [np.asarray, np.asfortranarray, sparse.csr_array, sparse.csc_matrix])
def test_ridge_poisson_is_scikit_learns(form):
    X, y = counts()
    theirs = linear_model.PoissonRegressor(alpha=0.3, tol=1e-10, max_iter=1000).fit(X, y)
    ours = GeneralizedLinearEstimator(Poisson(), ElasticNet(0.3, 0.0), tol=1e-10).fit(form(X), y)
    assert ours.converged_
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.predict(form(X)), theirs.predict(X), rtol=1e-5)
    assert ours.solver_ == "proximal Newton"


def test_huber_is_scikit_learns_at_its_own_scale():
    X, y = data()
    y[:8] += 20
    theirs = linear_model.HuberRegressor(epsilon=1.35, alpha=0.0, tol=1e-10, max_iter=1000).fit(X, y)
    # The joint optimum over the scale sigma is, at that sigma, a Huber fit with delta = epsilon * sigma.
    ours = GeneralizedLinearEstimator(Huber(1.35 * theirs.scale_), L1(0.0), tol=1e-10).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    robust = GeneralizedLinearEstimator(Huber(0.5), L1(0.05)).fit(X, y)
    plain = GeneralizedLinearEstimator(Quadratic(), L1(0.05)).fit(X, y)
    truth = np.zeros(10)
    truth[[0, 2]] = 1, -0.7
    assert np.linalg.norm(robust.coef_ - truth) < 0.5 * np.linalg.norm(plain.coef_ - truth)


def test_labels_of_any_kind():
    X, y = data()
    words = np.where(y > 3, "yes", "no")
    for datafit in (Logistic(), SquaredHinge()):
        fitted = GeneralizedLinearEstimator(datafit, MCP(0.03)).fit(X, words)
        assert set(fitted.predict(X)) == {"yes", "no"}
        assert fitted.score(X, words) == (fitted.predict(X) == words).mean() > 0.8
        assert ((fitted.decision_function(X) > 0) == (fitted.predict(X) == "yes")).all()
    assert not hasattr(GeneralizedLinearEstimator(), "decision_function")
    with pytest.raises(InputError, match="y: got 3 classes, want two for Logistic"):
        GeneralizedLinearEstimator(Logistic()).fit(X, np.arange(80) % 3)
    with pytest.raises(InputError, match="y: got 1 class"):
        GeneralizedLinearEstimator(Logistic()).fit(X, np.ones(80))


def test_several_targets_keep_scikit_learns_shapes():
    X, y = data()
    Y = np.stack([y, -y, y**2], axis=1)
    fitted = GeneralizedLinearEstimator(Quadratic(), L21(0.2)).fit(X, Y)
    theirs = linear_model.MultiTaskLasso(alpha=0.2, tol=1e-12, max_iter=10_000).fit(X, Y)
    assert fitted.coef_.shape == (3, 10)
    np.testing.assert_allclose(fitted.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(fitted.predict(X), theirs.predict(X), atol=1e-3)
    one = GeneralizedLinearEstimator(Quadratic(), L21(0.2)).fit(X, Y[:, :1])
    assert one.coef_.shape == (1, 10)
    assert one.predict(X).shape == (80, 1)
    low = GeneralizedLinearEstimator(Quadratic(), Nuclear(0.2)).fit(X, Y)
    assert low.converged_
    assert low.solver_ == "FISTA"


@pytest.mark.parametrize("datafit", [Quadratic(), Huber(), Poisson(), Absolute()])
def test_a_path_is_its_fits(datafit):
    X, y = counts(1)
    whole = GeneralizedLinearEstimator(datafit, L1(1.0), tol=1e-9).path(X, y, n_alphas=5, eps=0.1)
    assert whole.coefs.shape == (10, 5)
    alone = GeneralizedLinearEstimator(datafit, L1(whole.alphas[3]), tol=1e-9).fit(X, y)
    np.testing.assert_allclose(whole.coefs[:, 3], alone.coef_, atol=1e-5)


def test_a_warm_start_saves_working_sets():
    X, y = counts(2)
    estimator = GeneralizedLinearEstimator(Poisson(), L1(0.01), warm_start=True, tol=1e-9)
    first = estimator.fit(X, y).coef_.copy()
    estimator.fit(X, y)
    assert estimator.n_iter_ == 1
    np.testing.assert_allclose(estimator.coef_, first, atol=1e-7)
    estimator.fit(X[:, :5], y)  # another width starts afresh
    assert estimator.coef_.shape == (5,)


@pytest.mark.parametrize("datafit", [Huber(), Poisson(), SquareRoot()])
def test_float32_stays(datafit):
    X, y = counts(3)
    single = GeneralizedLinearEstimator(datafit, L1(0.05), tol=1e-5).fit(X.astype(np.float32), y)
    double = GeneralizedLinearEstimator(datafit, L1(0.05)).fit(X, y)
    assert single.converged_
    assert single.coef_.dtype == np.float32
    np.testing.assert_allclose(single.coef_, double.coef_, atol=1e-2)


def test_searches_choose_among_penalties():
    X, y = counts(4)
    grid = {"penalty": [L1(0.01), L1(10.0), MCP(0.1)]}
    search = GridSearchCV(GeneralizedLinearEstimator(Poisson()), grid, cv=3).fit(X, y)
    assert search.best_params_["penalty"] != L1(10.0)
    assert clone(search.best_estimator_).penalty == search.best_params_["penalty"]


def test_a_fit_that_falls_short_says_so():
    X, y = data(n=40, p=200)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        fitted = GeneralizedLinearEstimator(Huber(0.3), L1(0.001), max_iter=1, tol=1e-12).fit(X, y)
    assert not fitted.converged_


@pytest.mark.parametrize(
    ("estimator", "change", "words"),
    [
        (GeneralizedLinearEstimator(Poisson(), L1(0.1)), lambda y: y - 100, "y: got .*, want counts at least 0"),
        (GeneralizedLinearEstimator(Huber(), L1(0.1), tol=-1), lambda y: y, "tol: got -1"),
        (GeneralizedLinearEstimator(Huber(), L1(0.1), max_iter=0), lambda y: y, "max_iter: got 0"),
        (GeneralizedLinearEstimator(Huber(), L1(0.1, weights=np.ones(3))), lambda y: y, r"weights: got shape \(3,\)"),
    ],
)
def test_bad_settings_are_refused_by_name(estimator, change, words):
    X, y = data()
    with pytest.raises(InputError, match=words):
        estimator.fit(X, change(y))
    with pytest.raises(InputError, match="alpha"):
        GeneralizedLinearEstimator(Huber(), L0(0.1)).path(X, y)

"""Sparse logistic regression: scikit-learn's optima, two classes and more, probabilities, certificates."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, scale

from ellzero.errors import InputError
from ellzero.linear import SparseLogisticRegression


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return scale(X), y


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(X)[:500], y[:500]


def objective(model, X, y, alpha, l1_ratio=1.0):
    loss = -np.log(model.predict_proba(X)[np.arange(len(y)), np.searchsorted(model.classes_, y)]).mean()
    return loss + alpha * (l1_ratio * abs(model.coef_).sum() + (1 - l1_ratio) / 2 * (model.coef_**2).sum())


@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.1, 1.0), (0.01, 1.0), (0.02, 0.5)])
def test_two_classes_reach_scikit_learns_objective(cancer, alpha, l1_ratio):
    X, y = cancer
    ours = SparseLogisticRegression(alpha, l1_ratio=l1_ratio, tol=1e-9).fit(X, y)
    theirs = LogisticRegression(C=1 / (alpha * len(y)), l1_ratio=l1_ratio, solver="saga", tol=1e-7, max_iter=10_000)
    theirs.fit(X, y)
    assert ours.converged_
    assert ours.coef_.shape == (1, 30)
    best = objective(theirs, X, y, alpha, l1_ratio)
    assert best - 1e-6 <= objective(ours, X, y, alpha, l1_ratio) <= best + 1e-9
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)


def test_without_intercept_it_is_liblinears_optimum(cancer):
    X, y = cancer
    ours = SparseLogisticRegression(0.02, fit_intercept=False, tol=1e-10).fit(X, y)
    theirs = LogisticRegression(
        C=1 / (0.02 * len(y)), l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-8, max_iter=1000
    ).fit(X, y)
    assert objective(ours, X, y, 0.02) == pytest.approx(objective(theirs, X, y, 0.02), abs=1e-7)
    # liblinear's own intercept is penalised; ours, free, can only do better.
    free = SparseLogisticRegression(0.02, tol=1e-10).fit(X, y)
    bound = LogisticRegression(C=1 / (0.02 * len(y)), l1_ratio=1.0, solver="liblinear", tol=1e-8, max_iter=1000)
    assert objective(free, X, y, 0.02) <= objective(bound.fit(X, y), X, y, 0.02) + 1e-9


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_many_classes_reach_scikit_learns_objective(digits, alpha):
    X, y = digits
    ours = SparseLogisticRegression(alpha, tol=1e-8).fit(X, y)
    theirs = LogisticRegression(C=1 / (alpha * len(y)), l1_ratio=1.0, solver="saga", tol=1e-5, max_iter=3000)
    theirs.fit(X, y)
    assert ours.converged_
    assert ours.coef_.shape == (10, 64)
    best = objective(theirs, X, y, alpha)
    assert best - 2e-5 <= objective(ours, X, y, alpha) <= best + 1e-8
    assert ours.intercept_.sum() == pytest.approx(0, abs=1e-8)


def test_grouped_columns_live_and_die_in_all_classes(digits):
    X, y = digits
    fitted = SparseLogisticRegression(0.05, grouped=True).fit(X, y)
    used = fitted.coef_.any(axis=0)
    assert 0 < used.sum() < 64
    assert fitted.coef_[:, used].all()
    assert fitted.converged_
    single = SparseLogisticRegression(0.05).fit(X, y)
    assert (single.coef_[:, single.coef_.any(axis=0)] == 0).any()


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize("classes", [2, 3])
def test_sparse_and_float32(form, classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < classes] - 3, np.array(["a", "b", "c"])[y[y < classes]]
    X = np.where(abs(X) > 1, X, 0)
    plain = SparseLogisticRegression(0.01, tol=1e-9).fit(X, y)
    other = SparseLogisticRegression(0.01, tol=1e-9).fit(form(X), y)
    np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-6)
    np.testing.assert_allclose(other.predict_proba(form(X)), plain.predict_proba(X), atol=1e-6)
    single = SparseLogisticRegression(0.01, tol=1e-4).fit(form(X.astype(np.float32)), y)
    assert single.coef_.dtype == np.float32
    assert single.converged_
    assert (single.predict(X) == plain.predict(X)).all()


def test_probabilities_are_consistent(digits, cancer):
    for X, y in (digits, cancer):
        fitted = SparseLogisticRegression(0.02).fit(X, y)
        probability = fitted.predict_proba(X)
        np.testing.assert_allclose(probability.sum(1), 1)
        assert (fitted.classes_[probability.argmax(1)] == fitted.predict(X)).all()
        np.testing.assert_allclose(np.exp(fitted.predict_log_proba(X)), probability)
        # An intercept that is free makes the mean probability of each class its share.
        np.testing.assert_allclose(probability.mean(0), np.bincount(y) / len(y), atol=1e-6)


def test_sample_weights_weights_and_signs(cancer):
    X, y = cancer
    counts = np.arange(len(y)) % 3
    repeated = np.repeat(np.arange(len(y)), counts)
    weighted = SparseLogisticRegression(0.02, tol=1e-10).fit(X, y, sample_weight=counts)
    plain = SparseLogisticRegression(0.02, tol=1e-10).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, plain.coef_, atol=1e-6)
    factors = np.ones(30)
    factors[0], factors[1] = 0, np.inf
    fitted = SparseLogisticRegression(0.1, weights=factors).fit(X, y)
    assert fitted.coef_[0, 0] != 0
    assert fitted.coef_[0, 1] == 0
    assert (SparseLogisticRegression(0.02, positive=True).fit(-X, y).coef_ >= 0).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_paths_and_warm_starts(digits, grouped):
    X, y = digits[0][:200], digits[1][:200]
    whole = SparseLogisticRegression(grouped=grouped, tol=1e-8).path(X, y, n_alphas=5, eps=0.1)
    assert whole.coefs.shape == (64, 10, 5)
    assert whole.converged.all()
    estimator = SparseLogisticRegression(whole.alphas[3], grouped=grouped, tol=1e-8, warm_start=True).fit(X, y)
    np.testing.assert_allclose(estimator.coef_.T, whole.coefs[..., 3], atol=1e-4)
    estimator.fit(X, y)
    assert estimator.n_iter_ == 1
    estimator.fit(X, y % 2)  # other classes start afresh
    assert estimator.coef_.shape == (1, 64)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (SparseLogisticRegression(-1.0), "alpha: got -1.0"), (SparseLogisticRegression(tol=-1.0), "tol: got -1.0"),
        (SparseLogisticRegression(l1_ratio=2.0), "l1_ratio: got 2.0"),
        (SparseLogisticRegression(grouped=True, l1_ratio=0.5), "l1_ratio: got 0.5 with grouped=True"),
        (SparseLogisticRegression(grouped="yes"), "grouped: got 'yes'"),
        (SparseLogisticRegression(weights=[1.0, 2.0]), r"weights: got shape \(2,\), want \(30,\)"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(cancer, estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*cancer)
    with pytest.raises(InputError, match="y: got 1 class"):
        SparseLogisticRegression().fit(cancer[0], np.ones(len(cancer[1])))

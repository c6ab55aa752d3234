"""Cross-validated sparse logistic regression: folds by hand, both rules, classes, refusals."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.preprocessing import scale
from sklearn.utils.estimator_checks import check_estimator

from ellzero.errors import InputError
from ellzero.linear import SparseLogisticRegression, SparseLogisticRegressionCV


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return scale(X)[::2], y[::2]


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return scale(X), np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.mark.filterwarnings("ignore")
def test_the_contract_of_scikit_learn():
    check_estimator(SparseLogisticRegressionCV(n_alphas=2, eps=0.2, cv=2, tol=1e-9))


@pytest.mark.parametrize("name", ["cancer", "iris"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_it_is_the_loop_over_folds_and_alphas(request, name, form):
    X, y = request.getfixturevalue(name)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    fitted = SparseLogisticRegressionCV(n_alphas=6, eps=0.01, cv=folds, tol=1e-9).fit(form(X), y)
    assert fitted.loss_path_.shape == fitted.error_path_.shape == fitted.gaps_.shape == (6, 3)
    assert (fitted.gaps_ <= 1e-9).all()
    losses, wrong = np.empty((6, 3)), np.empty((6, 3))
    for f, (train, held) in enumerate(folds.split(X, y)):
        for a, alpha in enumerate(fitted.alphas_):
            alone = SparseLogisticRegression(alpha, tol=1e-9).fit(X[train], y[train])
            losses[a, f] = log_loss(y[held], alone.predict_proba(X[held]), labels=alone.classes_)
            wrong[a, f] = (alone.predict(X[held]) != y[held]).mean()
    np.testing.assert_allclose(fitted.loss_path_, losses, atol=1e-5)
    np.testing.assert_allclose(fitted.error_path_, wrong, atol=1e-12)
    sizes = np.array([len(held) for _, held in folds.split(X, y)])
    means = losses @ sizes / sizes.sum()
    assert fitted.alpha_ == fitted.alphas_[means.argmin()]
    deviation = np.sqrt(((losses - means[:, None]) ** 2) @ (sizes / sizes.sum()) / 2)
    within = means <= means.min() + deviation[means.argmin()]
    assert fitted.alpha_1se_ == fitted.alphas_[within.argmax()] >= fitted.alpha_
    alone = SparseLogisticRegression(fitted.alpha_, tol=1e-9).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, alone.coef_, atol=1e-4)
    assert fitted.converged_


def test_one_standard_error_is_sparser(cancer):
    X, y = cancer
    best = SparseLogisticRegressionCV(n_alphas=20, eps=0.01, cv=4).fit(X, y)
    plain = SparseLogisticRegressionCV(n_alphas=20, eps=0.01, cv=4, one_standard_error=True).fit(X, y)
    assert plain.alpha_1se_ == best.alpha_1se_ > best.alpha_
    assert np.count_nonzero(plain.coef_) < np.count_nonzero(best.coef_)
    by_error = SparseLogisticRegressionCV(n_alphas=20, eps=0.01, cv=4, criterion="error").fit(X, y)
    np.testing.assert_allclose(by_error.error_path_, best.error_path_)
    assert by_error.mean_.min() == by_error.mean_[by_error.alphas_ == by_error.alpha_][0]


def test_grouped_weighted_and_given_alphas(iris):
    X, y = iris
    fitted = SparseLogisticRegressionCV(alphas=[0.01, 0.1], grouped=True, cv=3).fit(X, y)
    assert (fitted.alphas_ == [0.1, 0.01]).all()
    assert fitted.coef_.shape == (3, 4)
    weights = np.r_[np.ones(140), np.zeros(10)]
    folds = [(np.arange(150)[1::2], np.arange(150)[::2]), (np.arange(150)[::2], np.arange(150)[1::2])]
    short = [(train[train < 140], held[held < 140]) for train, held in folds]
    weighted = SparseLogisticRegressionCV(alphas=[0.01, 0.1], cv=folds, tol=1e-9).fit(X, y, sample_weight=weights)
    plain = SparseLogisticRegressionCV(alphas=[0.01, 0.1], cv=short, tol=1e-9).fit(X[:140], y[:140])
    np.testing.assert_allclose(weighted.loss_path_, plain.loss_path_, atol=1e-6)
    np.testing.assert_allclose(weighted.coef_, plain.coef_, atol=1e-4)
    grouped = SparseLogisticRegressionCV(n_alphas=3, eps=0.1, cv=GroupKFold(3))
    assert grouped.fit(X, y, groups=np.arange(150) % 5).loss_path_.shape == (3, 3)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (SparseLogisticRegressionCV(criterion="auc"), "criterion: got 'auc'"),
        (SparseLogisticRegressionCV(one_standard_error=2), "one_standard_error: got 2"),
        (SparseLogisticRegressionCV(n_alphas=0), "n_alphas: got 0"),
        (SparseLogisticRegressionCV(alphas=[]), r"alphas: got \[\]"),
        (SparseLogisticRegressionCV(l1_ratio=0.0), "penalty: no alpha makes all"),
        (SparseLogisticRegressionCV(cv=[(np.arange(99), np.arange(99, 150))], alphas=[0.1]), "fold 0 trains without"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(iris, estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*iris)
    folds = [(np.arange(0, 150, 2), np.arange(1, 150, 2))]
    weights = (np.arange(150) % 2 == 0) * 1.0
    with pytest.raises(InputError, match="sample_weight: got only zeros in the held-out part of fold 0"):
        SparseLogisticRegressionCV(cv=folds, alphas=[0.1]).fit(*iris, sample_weight=weights)

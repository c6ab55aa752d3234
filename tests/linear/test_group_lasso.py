"""The group Lasso: optima of the plain and the sparse form by independent means, labels, weights, sparse input."""

import numpy as np
import pytest
from scipy import optimize, sparse

from ellzero.errors import InputError
from ellzero.linear import GroupLasso, Lasso

LABELS = np.array(["a", "b", "a", "c", "b", "b", "d", "d", "c"])


def data(seed=0, n=60):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 9))
    X[:, 2] += X[:, 0]
    return X, X[:, 0] - X[:, 2] + 0.5 * X[:, 3] + 0.3 * rng.normal(size=n) + 2


def objective(X, y, w, b, alpha, ratio=0.0, weights=None):
    names = np.unique(LABELS)
    norms = np.array([np.linalg.norm(w[name == LABELS]) for name in names])
    factors = np.sqrt([(name == LABELS).sum() for name in names]) if weights is None else np.asarray(weights)
    penalty = ratio * abs(w).sum() + (1 - ratio) * (factors @ norms)
    return ((y - X @ w - b) ** 2).mean() / 2 + alpha * penalty


@pytest.mark.parametrize(("alpha", "ratio"), [(0.02, 0.0), (0.2, 0.0), (0.1, 0.4)])
def test_no_other_point_is_lower(alpha, ratio):
    X, y = data()
    ours = GroupLasso(LABELS, alpha, l1_ratio=ratio, tol=1e-10).fit(X, y)
    assert ours.converged_
    best = objective(X, y, ours.coef_, ours.intercept_, alpha, ratio)
    found = optimize.minimize(
        lambda v: objective(X, y, v[:9], v[9], alpha, ratio), np.r_[ours.coef_, ours.intercept_] + 0.05,
        method="Powell", options={"maxiter": 30, "xtol": 1e-9, "ftol": 1e-13},
    )  # fmt: skip
    assert best <= found.fun + 1e-9
    assert found.fun <= best + 1e-3  # the search came near


def test_a_group_lives_or_dies_together():
    X, y = data()
    fitted = GroupLasso(LABELS, 0.15).fit(X, y)
    assert fitted.groups_.tolist() == ["a", "b", "c", "d"]
    for name, norm in zip(fitted.groups_, fitted.group_norms_):
        assert (fitted.coef_[name == LABELS] != 0).all() == (norm > 0)
    assert (fitted.group_norms_[[0, 2]] > 0).all()
    assert (fitted.group_norms_[[1, 3]] == 0).all()


def test_groups_of_one_are_the_lasso():
    X, y = data()
    plain = Lasso(0.1, tol=1e-10).fit(X, y)
    for groups in (1, np.arange(9)):
        single = GroupLasso(groups, 0.1, tol=1e-10).fit(X, y)
        np.testing.assert_allclose(single.coef_, plain.coef_, atol=1e-7)
    ratio = GroupLasso(3, 0.1, l1_ratio=1.0, tol=1e-10).fit(X, y)
    np.testing.assert_allclose(ratio.coef_, plain.coef_, atol=1e-7)


def test_weights_free_a_group_or_exclude_it():
    X, y = data()
    fitted = GroupLasso(LABELS, 0.5, weights=[1, 0, np.inf, 2], tol=1e-10).fit(X, y)
    assert fitted.group_norms_[1] > 0
    assert fitted.group_norms_[2] == 0
    residual = y - fitted.predict(X)
    np.testing.assert_allclose(X[:, LABELS == "b"].T @ residual, 0, atol=1e-7)
    assert residual.sum() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_float32_counts_and_signs(form):
    X, y = data()
    X[abs(X) < 0.5] = 0
    plain = GroupLasso(LABELS, 0.05, tol=1e-9).fit(X, y)
    other = GroupLasso(LABELS, 0.05, tol=1e-9).fit(form(X), y)
    np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-7)
    single = GroupLasso(LABELS, 0.05, tol=1e-5).fit(form(X.astype(np.float32)), y)
    assert single.coef_.dtype == np.float32
    assert single.converged_
    counts = np.arange(len(y)) % 3
    weighted = GroupLasso(LABELS, 0.05, tol=1e-10).fit(form(X), y, sample_weight=counts)
    repeated = np.repeat(np.arange(len(y)), counts)
    again = GroupLasso(LABELS, 0.05, tol=1e-10).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, again.coef_, atol=1e-6)
    assert (GroupLasso(LABELS, 0.05, positive=True).fit(X, -y).coef_ >= 0).all()


def test_paths_and_warm_starts():
    X, y = data()
    whole = GroupLasso(LABELS, tol=1e-9).path(X, y, n_alphas=6, eps=0.05)
    assert whole.converged.all()
    assert (whole.coefs[:, 0] == 0).all()
    estimator = GroupLasso(LABELS, whole.alphas[4], tol=1e-9, warm_start=True).fit(X, y)
    np.testing.assert_allclose(estimator.coef_, whole.coefs[:, 4], atol=1e-5)
    assert estimator.fit(X, y).n_iter_ == 1


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (GroupLasso(4), "groups: got the size 4, want a divisor of the 9 columns"), (GroupLasso(0), "groups: got 0"),
        (GroupLasso(LABELS[:5]), r"groups: got shape \(5,\), want \(9,\)"),
        (GroupLasso(LABELS, weights=[1.0]), r"weights: got shape \(1,\), want \(4,\)"),
        (GroupLasso(LABELS, -1.0), "alpha: got -1.0"), (GroupLasso(LABELS, l1_ratio=2), "l1_ratio: got 2"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(*data())

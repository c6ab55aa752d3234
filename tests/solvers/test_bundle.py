"""Bundles: every fit is the one-by-one fit, its certificate is true, and neither storage nor threads change it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.linear.bundles import cross_validate_path, fit_bundle
from ellzero.parts.datafits import Logistic
from ellzero.parts.penalties import ElasticNet
from ellzero.solvers import coordinate_descent, prox_newton
from ellzero.solvers.bundle import Bundle
from ellzero.solvers.bundle_path import alpha_grid, iterate

LOSSES = ("quadratic", "logistic")


def data(loss, n=60, p=90, seed=0):
    g = np.random.default_rng(seed)
    X = g.standard_normal((n, p)) + 0.3 * g.standard_normal((n, 1)) + 0.5
    X[g.random((n, p)) < 0.4] = 0
    y = X[:, :5] @ np.array([2, -1.5, 1, 1, -1]) + g.standard_normal(n)
    return X, y if loss == "quadratic" else (y > np.median(y)) * 1.0


def weights_of(n, seed=1):
    """All rows, a fold, a bootstrap, real weights."""
    g = np.random.default_rng(seed)
    return np.column_stack(
        [np.ones(n), np.arange(n) % 5 > 0, np.bincount(g.integers(n, size=n), minlength=n), g.random(n)]
    )


def objective(loss, X, y, r, w, b, alpha, ratio):
    """In plain words; labels 0 and 1."""
    z = X @ w + b
    losses = (y - z) ** 2 / 2 if loss == "quadratic" else np.logaddexp(0, -(2 * y - 1) * z)
    return r @ losses / r.sum() + alpha * (ratio * abs(w).sum() + (1 - ratio) * w @ w / 2)


def alone(loss, X, y, r, alpha, ratio, intercept):
    options = {"fit_intercept": intercept, "sample_weight": r, "tol": 1e-10}
    penalty = ElasticNet(alpha, ratio)
    if loss == "quadratic":
        return coordinate_descent.solve(X, y, penalty, **options)
    return prox_newton.solve(X, 2 * y - 1, Logistic(), penalty, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("ratio", "intercept"), [(1.0, True), (1.0, False), (0.6, True)])
def test_every_fit_is_the_one_by_one_fit(loss, ratio, intercept):
    X, y = data(loss)
    weights = np.tile(weights_of(len(y)), 3)
    alphas = np.repeat([0.3, 0.1, 0.02], 4) * (1 if loss == "quadratic" else 0.3)
    fits = fit_bundle(X, y, alphas, weights=weights, loss=loss, l1_ratio=ratio, fit_intercept=intercept, tol=1e-8)
    assert fits.converged.all()
    assert (fits.gaps <= 1e-8).all()
    for b, alpha in enumerate(alphas):
        r = weights[:, b]
        ours = objective(loss, X, y, r, fits.coefs[:, b], fits.intercepts[b], alpha, ratio)
        one = alone(loss, X, y, r, alpha, ratio, intercept)
        theirs = objective(loss, X, y, r, one.coef, one.intercept, alpha, ratio)
        assert abs(ours - theirs) <= 1e-7
        null = objective(loss, X, y, r, np.zeros(X.shape[1]), 0.0, alpha, ratio)
        assert ours - theirs <= fits.gaps[b] * null + 1e-9  # the certificate bounds what is left
        if not intercept:
            assert fits.intercepts[b] == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", [np.ascontiguousarray, np.asfortranarray, sparse.csr_array, sparse.csc_matrix])
def test_storage_changes_nothing(loss, form):
    X, y = data(loss)
    plain = cross_validate_path(X, y, loss=loss, cv=4, n_alphas=8, eps=0.05, tol=1e-9)
    other = cross_validate_path(form(X), y, loss=loss, cv=4, n_alphas=8, eps=0.05, tol=1e-9)
    np.testing.assert_allclose(other.scores, plain.scores, atol=1e-5)
    np.testing.assert_allclose(other.coefs, plain.coefs, atol=1e-4)
    np.testing.assert_allclose(other.alphas, plain.alphas)


@pytest.mark.parametrize("loss", LOSSES)
def test_sparse_input_is_never_densified(loss, monkeypatch):
    X, y = data(loss, p=400)
    X = sparse.csr_array(X * (np.random.default_rng(0).random(X.shape) < 0.1))

    def refuse(*_, **__):
        raise AssertionError("densified")

    for kind in (sparse.csr_array, sparse.csc_array):
        monkeypatch.setattr(kind, "toarray", _narrow(kind.toarray, refuse))
        monkeypatch.setattr(kind, "todense", refuse)
    assert (cross_validate_path(X, y, loss=loss, cv=3, n_alphas=5, eps=0.3).gaps <= 1e-6).all()


def _narrow(toarray, refuse):
    """Columns may be taken out, the whole may not."""
    return lambda self, *a, **k: refuse() if min(self.shape) > 50 and max(self.shape) >= 400 else toarray(self, *a, **k)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_is_kept_and_certified(loss):
    X, y = data(loss)
    fits = fit_bundle(X.astype(np.float32), y, [0.1, 0.05], loss=loss, tol=1e-4)
    assert fits.coefs.dtype == np.float32
    assert fits.converged.all()
    exact = fit_bundle(X, y, [0.1, 0.05], loss=loss)
    np.testing.assert_allclose(fits.coefs, exact.coefs, atol=0.02)


@pytest.mark.parametrize("loss", LOSSES)
def test_threads_change_no_bit(loss):
    X, y = data(loss, n=120, p=300)
    one, two = (cross_validate_path(X, y, loss=loss, cv=8, n_alphas=12, n_threads=k) for k in (1, 2))
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_cross_validated_path_is_the_loop_over_folds(loss):
    X, y = data(loss, n=80)
    folds = [(np.flatnonzero(np.arange(80) % 4 != k), np.flatnonzero(np.arange(80) % 4 == k)) for k in range(4)]
    found = cross_validate_path(X, y, loss=loss, cv=folds, n_alphas=7, eps=0.05, tol=1e-9)
    assert (found.gaps <= 1e-9).all()
    for f, (train, held) in enumerate(folds):
        for a, alpha in enumerate(found.alphas):
            one = alone(loss, X[train], y[train], None, alpha, 1.0, True)
            score = objective(loss, X[held], y[held], np.ones(len(held)), one.coef, one.intercept, 0.0, 1.0)
            assert found.scores[a, f] == pytest.approx(2 * score if loss == "quadratic" else score, abs=1e-5)
    assert found.mean[found.best] == found.mean.min()
    limit = found.mean.min() + found.standard_error[found.best]
    assert found.one_standard_error == np.flatnonzero(found.mean <= limit)[0] <= found.best


def test_targets_that_differ_share_one_matrix():
    X, y = data("quadratic")
    g = np.random.default_rng(3)
    targets = np.column_stack([g.permutation(y) for _ in range(40)])
    fits = fit_bundle(X, targets, 0.1, tol=1e-8)
    for b in range(0, 40, 7):
        one = alone("quadratic", X, targets[:, b], None, 0.1, 1.0, True)
        np.testing.assert_allclose(fits.coefs[:, b], one.coef, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 30), st.integers(1, 40), st.sampled_from(LOSSES), st.floats(0.02, 0.9))
def test_gaps_hold_on_odd_shapes(seed, n, p, loss, share):
    """Constant and repeated columns, more columns than rows and fewer: fits end at most a little short of tol."""
    g = np.random.default_rng(seed)
    X = g.standard_normal((n, p)).round(1)
    X[:, 0] = 1.0
    X[:, -1] = X[:, p // 2]
    y = g.standard_normal(n) if loss == "quadratic" else np.arange(n) % 2.0
    found = cross_validate_path(X, y, loss=loss, cv=2, alphas=[share, share / 5], tol=1e-7)
    assert (found.gaps <= 1e-6).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alphas": 0.0}, "alphas: got 0.0, want numbers above 0"),
        ({"alphas": [0.1, 0.1, 0.1]}, "alphas: got 3 beside"),
        ({"tol": 0.0}, "tol: got 0"),
        ({"l1_ratio": 0.0}, "l1_ratio: got 0"),
        ({"loss": "hinge"}, "loss: got 'hinge'"),
        ({"weights": -np.ones((60, 2))}, "weights: got -1.0, want numbers of at least 0"),
        ({"weights": np.eye(60)[:, :2] * 0}, "weights: column 0 is all zero"),
        ({"weights": np.ones((59, 2))}, "weights: got 59 rows, want 60"),
        ({"targets": np.arange(60) % 3, "loss": "logistic"}, "targets: got 3 different labels"),
        ({"X": np.full((60, 90), np.nan)}, "5400 entries not finite"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(change, words):
    X, y = data("quadratic")
    inputs = {"X": X, "targets": y, "alphas": [0.1, 0.2], "weights": np.ones((60, 2))} | change
    with pytest.raises(InputError, match=words):
        fit_bundle(**inputs)


def test_a_fold_with_one_class_is_refused():
    X, y = data("logistic")
    folds = [(np.flatnonzero(y == 1), np.flatnonzero(y == 0))]
    with pytest.raises(InputError, match="cv: fold 0 trains with one class only"):
        cross_validate_path(X, y, loss="logistic", cv=folds)
    with pytest.raises(InputError, match="fold 0 has no held-out rows"):
        cross_validate_path(X, y, loss="logistic", cv=[(np.arange(60), [])])
    with pytest.raises(InputError, match="want row numbers below 60"):
        cross_validate_path(X, y, loss="logistic", cv=[(np.arange(60), [60])])
    with pytest.raises(InputError, match="weights: problem 1 sees one class only"):
        fit_bundle(X, y, 0.1, weights=np.column_stack([np.ones(60), y]), loss="logistic")


def test_one_product_serves_all_problems(monkeypatch):
    X, y = data("quadratic")
    bundle, seen = Bundle(X, np.tile(y[:, None], 20)), []
    monkeypatch.setattr(bundle.operator, "rmatmat", lambda u: seen.append(u.shape) or X.T @ u)
    assert bundle.gradients(np.ones((20, 60))).shape == (20, 90)
    assert seen == [(60, 20)]


@pytest.mark.parametrize("loss", ["quadratic", "logistic"])
def test_small_alphas_need_not_begin_where_problems_are_empty(loss):
    """They are led up to: the fits are those of the whole path, and few columns come along."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 400))
    z = X[:, :4].sum(1) + 0.3 * generator.standard_normal(60)
    y = z if loss == "quadratic" else (z > 0) * 1.0
    weights = np.column_stack([np.arange(60) % 3 != k for k in range(3)]).astype(float)
    bundle = Bundle(X, y, weights, loss=loss)
    top = alpha_grid(bundle, n_alphas=1)[0]
    options = {"tol": 1e-8, "max_iter": 100}
    (_, fits), *_ = iterate(bundle, np.array([0.1 * top]), **options)
    assert (fits.gap <= 1e-8).all()
    assert len(bundle.pool.ids) < 200
    other = Bundle(X, y, weights, loss=loss)
    *_, (_, last) = iterate(other, np.geomspace(top, 0.1 * top, 30), **options)
    np.testing.assert_allclose(bundle.coefficients(fits), other.coefficients(last), atol=1e-3)

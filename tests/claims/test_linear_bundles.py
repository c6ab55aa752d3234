"""Related regressions solved together: the fits and p-values of a loop, each certified, with far fewer looks at X."""

import numpy as np
import pytest

from ellzero.data.generators import AR, planted_regression
from ellzero.data.sets import feature_selection, missing
from ellzero.linear.bundles import cross_validate_path, folds_of_rows
from ellzero.linear.resampling import permutation_test
from ellzero.parts.datafits import Logistic
from ellzero.parts.penalties import L1
from ellzero.rng import rng
from ellzero.solvers import coordinate_descent, prox_newton
from ellzero.solvers.operators import Dense, Operator

TOL = 1e-6
LOSSES = ("quadratic", "logistic")


class Watched(Operator):
    """Counts the products with all of X', however many vectors they take."""

    def __init__(self, x):
        self.inner, self.looks = Dense(x), 0
        self.shape, self.dtype, self.selective = self.inner.shape, self.inner.dtype, self.inner.selective

    def matmat(self, w):
        return self.inner.matmat(w)

    def rmatmat(self, u):
        self.looks += 1
        return self.inner.rmatmat(u)

    def columns(self, index):
        return self.inner.columns(index)

    def column_norms(self):
        return self.inner.column_norms()

    def products(self, index, u):
        return self.inner.products(index, u)

    def restricted(self, index, w):
        return self.inner.restricted(index, w)


def table(n, p, seed, loss):
    planted = planted_regression(n, p, 10, snr=3.0, correlation=AR(0.5), seed=seed)
    return planted.X, planted.y if loss == "quadratic" else (planted.y > 0) * 1.0


def one_path(X, y, alphas, loss, weight=None, tol=TOL):
    """A sequential path with warm starts."""
    options = {"alphas": alphas, "sample_weight": weight, "tol": tol}
    if loss == "quadratic":
        return coordinate_descent.path(X, y, L1(1.0), **options)
    return prox_newton.path(X, 2 * y - 1, Logistic(), L1(1.0), **options)


def held_out(X, y, loss, path):
    z = X @ path.coefs + path.intercepts
    return ((y[:, None] - z) ** 2 if loss == "quadratic" else np.logaddexp(0, -(2 * y - 1)[:, None] * z)).mean(0)


def objectives(X, y, loss, alphas, coefs, intercepts):
    z = X @ coefs + intercepts
    losses = (y[:, None] - z) ** 2 / 2 if loss == "quadratic" else np.logaddexp(0, -(2 * y - 1)[:, None] * z)
    return losses.mean(0) + alphas * abs(coefs).sum(0)


def cross_validated(X, y, loss, folds, n_alphas, looped):
    """Certificates of all fits; ``looped`` folds and the fit to all rows against a loop; looks at X of both."""
    together = Watched(X)
    found = cross_validate_path(together, y, loss=loss, cv=folds, n_alphas=n_alphas, eps=0.01, tol=TOL)
    assert found.gaps.shape == (n_alphas, folds + 1)
    assert (found.gaps <= TOL).all()
    fold = folds_of_rows(y if loss == "logistic" else None, len(y), folds, 0)
    alone = Watched(X)
    path = one_path(alone, y, found.alphas, loss)
    ours, theirs = (objectives(X, y, loss, found.alphas, p.coefs, p.intercepts) for p in (found, path))
    null = objectives(X, y, loss, 0 * found.alphas, 0 * path.coefs, path.intercepts[0])
    assert (abs(ours - theirs) <= 1.01 * TOL * null).all()
    for k in range(looped):
        path = one_path(alone, y, found.alphas, loss, weight=(fold != k) * 1.0)
        want = held_out(X[fold == k], y[fold == k], loss, path)
        np.testing.assert_allclose(found.scores[:, k], want, rtol=0.01)
    loop = alone.looks * (folds + 1) / (looped + 1)
    print(f"\n{loss}, {X.shape[0]} x {X.shape[1]}, {folds} folds x {n_alphas} alphas: worst gap "
          f"{found.gaps.max():.1e}; {together.looks} looks at X against {loop:.0f} one by one")  # fmt: skip
    assert 5 * together.looks <= loop


def permuted(X, y, loss, draws, n_alphas):
    """p-values of the largest coefficient are those of a loop, fit by fit."""
    together, alone = Watched(X), Watched(X)
    test = permutation_test(
        together, y, statistic="max_coef", n_permutations=draws, loss=loss, n_alphas=n_alphas, tol=1e-8
    )
    assert test.gap <= 1e-8
    generator, values = rng(0, "permutation"), []
    for target in [y, *(generator.permutation(y) for _ in range(draws))]:
        path = one_path(alone, target, test.alphas, loss, tol=1e-8)
        values.append(abs(path.coefs).max(0))
    values = np.stack(values, axis=1)
    far = abs(values[:, 1:] - test.null).max() / values.max()
    p_values = (values >= values[:, :1] * (1 - 1e-9)).mean(1)
    print(f"\n{loss}, {X.shape[0]} x {X.shape[1]}, {draws} permutations x {n_alphas} alphas: statistics differ by "
          f"{far:.1e}; {together.looks} looks at X against {alone.looks} one by one")  # fmt: skip
    np.testing.assert_allclose(test.p_values, p_values, atol=1e-12)
    assert 10 * together.looks <= alone.looks


@pytest.mark.claim("S170")
@pytest.mark.parametrize("loss", LOSSES)
def test_folds_and_alphas_together_are_the_loop_with_fewer_looks_at_the_data(loss):
    cross_validated(*table(80, 200, 0, loss), loss, folds=10, n_alphas=20, looped=1)


@pytest.mark.claim("S170")
def test_permutations_together_have_the_p_values_of_the_loop():
    permuted(*table(40, 80, 1, "logistic"), "logistic", draws=19, n_alphas=5)


@pytest.mark.slow
@pytest.mark.claim("S170")
@pytest.mark.parametrize("loss", LOSSES)
def test_ten_folds_of_a_hundred_alphas_are_all_certified(loss):
    cross_validated(*table(500, 2000, 0, loss), loss, folds=10, n_alphas=100, looped=1)


@pytest.mark.slow
@pytest.mark.claim("S170")
@pytest.mark.parametrize("loss", LOSSES)
def test_two_hundred_permutations_have_the_p_values_of_the_loop(loss):
    size = (100, 500) if loss == "quadratic" else (60, 200)  # for the sake of the loop
    permuted(*table(*size, 2, loss), loss, draws=200, n_alphas=20)


@pytest.mark.slow
@pytest.mark.claim("S170")
@pytest.mark.skipif(missing("linear/colon.mat") is not None, reason=str(missing("linear/colon.mat")))
def test_gene_expression_of_colon_tissue():
    colon = feature_selection("colon")
    X, y = (colon.X - colon.X.mean(0)) / colon.X.std(0), colon.y.astype(float)
    cross_validated(X, y, "logistic", folds=10, n_alphas=100, looped=1)
    permuted(X, y, "logistic", draws=60, n_alphas=20)

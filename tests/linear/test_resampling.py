"""Bootstraps and permutations against loops of scikit-learn's single fits; what is uniform where nothing is there."""

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import bootstrap_path, permutation_test
from ellzero.rng import rng


@pytest.fixture(scope="module")
def planted():
    return planted_regression(60, 25, 4, snr=3.0, seed=0)


def single(X, y, alpha, weights=None):
    return linear_model.Lasso(alpha=alpha, tol=1e-13, max_iter=10**5).fit(X, y, sample_weight=weights)


def logistic(X, y, alpha):
    model = linear_model.LogisticRegression(C=1 / (alpha * len(y)), l1_ratio=1, solver="saga", tol=1e-10,
                                            max_iter=10**5, random_state=0)  # fmt: skip
    return model.fit(X, y)


def share_as_large(values, exact=1e-7):
    """Of all draws, those that reach the first."""
    return np.mean(values >= values[0] - exact)


class TestBootstrap:
    @pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
    def test_it_is_the_loop_of_weighted_fits(self, planted, form):
        found = bootstrap_path(form(planted.X), planted.y, n_bootstraps=5, n_alphas=6, eps=0.05, tol=1e-10, seed=3)
        stream, coefs = rng(3, "bootstrap"), []
        for _ in range(5):
            counts = np.bincount(stream.integers(60, size=60), minlength=60).astype(float)
            coefs.append([single(planted.X, planted.y, alpha, counts).coef_ for alpha in found.alphas])
        coefs = np.array(coefs).transpose(0, 2, 1)
        np.testing.assert_allclose(found.mean, coefs.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.deviation, coefs.std(0, ddof=1), atol=1e-5)
        np.testing.assert_allclose(found.frequency, (coefs != 0).mean(0))
        assert 0 < found.gap <= 1e-10
        assert found.redrawn == 0

    def test_what_is_there_is_chosen_always_and_noise_seldom(self, planted):
        found = bootstrap_path(planted.X, planted.y, n_bootstraps=40, alphas=[0.3 * abs(planted.coef).max()])
        assert found.frequency.shape == (25, 1)
        truth = planted.coef != 0
        assert found.frequency[truth].min() > 0.8
        assert found.frequency[~truth].mean() < 0.3

    def test_draws_of_one_class_are_drawn_again(self, planted):
        y = np.zeros(60)
        y[:2] = 1
        found = bootstrap_path(planted.X, y, loss="logistic", n_bootstraps=20, n_alphas=3)
        assert found.redrawn > 0
        assert np.isfinite(found.mean).all()


class TestPermutation:
    def test_p_values_of_the_largest_coefficient_are_those_of_the_loop(self, planted):
        y = planted.y[::-1].copy()  # next to nothing to find: p-values between the ends
        found = permutation_test(planted.X, y, statistic="max_coef", n_permutations=12, n_alphas=5, eps=0.2, tol=1e-10)
        stream = rng(0, "permutation")
        draws = [y, *(stream.permutation(y) for _ in range(12))]
        loop = np.array([[abs(single(planted.X, d, alpha).coef_).max() for d in draws] for alpha in found.alphas])
        np.testing.assert_allclose(found.observed, loop[:, 0], atol=1e-5)
        np.testing.assert_allclose(found.null, loop[:, 1:], atol=1e-5)
        assert found.p_values.tolist() == [share_as_large(row) for row in loop]
        ranks = np.array([[share_as_large(np.roll(row, -i)) for i in range(13)] for row in loop]).min(0)
        assert found.p_value == np.mean(ranks <= ranks[0])

    def test_p_values_of_the_score_are_those_of_the_loop(self, planted):
        folds = [(np.flatnonzero(np.arange(60) % 3 != f), np.flatnonzero(np.arange(60) % 3 == f)) for f in range(3)]
        y = planted.y[::-1].copy()
        found = permutation_test(planted.X, y, cv=folds, n_permutations=9, n_alphas=5, eps=0.2, tol=1e-10)
        stream = rng(0, "permutation")
        draws = [y, *(stream.permutation(y) for _ in range(9))]

        def score(d, alpha):
            errors = [(single(planted.X[a], d[a], alpha).predict(planted.X[b]) - d[b]) ** 2 for a, b in folds]
            return np.mean(errors)

        loop = np.array([min(score(d, alpha) for alpha in found.alphas) for d in draws])
        assert found.observed == pytest.approx(loop[0], abs=1e-5)
        np.testing.assert_allclose(found.null, loop[1:], atol=1e-5)
        assert found.p_value == share_as_large(-loop)

    def test_p_values_of_logistic_fits_are_those_of_the_loop(self, planted):
        X, y = planted.X[:, :6], (planted.y > 0).astype(int)
        found = permutation_test(X, y, statistic="max_coef", loss="logistic", n_permutations=8, alphas=[0.1, 0.05],
                                 tol=1e-10)  # fmt: skip
        stream = rng(0, "permutation")
        draws = [y, *(stream.permutation(y) for _ in range(8))]
        loop = np.array([[abs(logistic(X, d, alpha).coef_).max() for d in draws] for alpha in found.alphas])
        np.testing.assert_allclose(found.null, loop[:, 1:], atol=1e-4)
        assert found.p_values.tolist() == [share_as_large(row, 1e-5) for row in loop]

    @pytest.mark.parametrize("options", [
        {}, {"statistic": "max_coef"}, {"loss": "logistic"}, {"loss": "logistic", "statistic": "max_coef"},
    ])  # fmt: skip
    def test_a_signal_is_found(self, planted, options):
        y = (planted.y > 0).astype(int) if "loss" in options else planted.y
        found = permutation_test(planted.X, y, n_permutations=39, n_alphas=6, cv=3, **options)
        assert found.p_value <= (0.1 if "statistic" in options else 1 / 40)
        assert found.gap <= 1e-6

    def test_the_number_of_problems_at_once_changes_nothing(self, planted, monkeypatch):
        options = {"statistic": "max_coef", "n_permutations": 20, "n_alphas": 4, "tol": 1e-10}
        whole = permutation_test(planted.X, planted.y, **options)
        monkeypatch.setattr("ellzero.linear.resampling._CHUNK", 4)
        parts = permutation_test(planted.X, planted.y, **options)
        np.testing.assert_array_equal(whole.alphas, parts.alphas)
        np.testing.assert_allclose(whole.null, parts.null, atol=1e-6)
        assert whole.p_values.tolist() == parts.p_values.tolist()

    def test_the_data_is_a_draw_like_any_other(self, planted):
        """Folds balanced by the data's own labels would suit the data better than its permutations."""
        y = (planted.y > 0).astype(int)
        options = {"loss": "logistic", "cv": 3, "n_permutations": 1, "alphas": [0.1, 0.05], "tol": 1e-10}
        first = permutation_test(planted.X, y, **options)
        second = permutation_test(planted.X, rng(0, "permutation").permutation(y), **options)
        assert second.observed == pytest.approx(first.null[0], rel=1e-6)


@pytest.mark.parametrize(("call", "words"), [
    (lambda X, y: permutation_test(X, y, statistic="scroe"), "did you mean 'score'"),
    (lambda X, y: permutation_test(X, y, n_permutations=0), "n_permutations: got 0"),
    (lambda X, y: permutation_test(X, y, cv=1), "cv: got 1"),
    (lambda X, y: permutation_test(X, y, loss="logistic"), "y: got 60 different labels, want two"),
    (lambda X, y: permutation_test(X, np.arange(60) == 0, loss="logistic", n_permutations=1), "so few of one class"),
    (lambda X, y: permutation_test(X, y[:50]), "targets: got 50 rows, want 60"),
    (lambda X, y: permutation_test(X * np.nan, y), "not finite"),
    (lambda X, y: bootstrap_path(X, y, n_bootstraps=1), "n_bootstraps: got 1"),
    (lambda X, y: bootstrap_path(X, y, alphas=[0.0]), "alphas: got 0.0"),
    (lambda X, y: bootstrap_path(X, y, l1_ratio=0), "l1_ratio: got 0"),
    (lambda X, y: bootstrap_path(X, np.zeros(60), loss="logistic"), "y: got 1 different labels"),
])  # fmt: skip
def test_bad_input_is_named(planted, call, words):
    with pytest.raises(InputError, match=words):
        call(planted.X, planted.y)

"""Alpha by cross-validation: scikit-learn's errors and minimum, the one-standard-error rule beside it."""

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model
from sklearn.model_selection import GroupKFold, KFold

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import ElasticNetCV, Lasso, LassoCV

FOLDS = KFold(4, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def planted():
    return planted_regression(120, 40, 5, snr=4.0, seed=0)


@pytest.mark.parametrize("form", [np.ascontiguousarray, np.asfortranarray, sparse.csr_array, sparse.csc_matrix])
def test_errors_and_minimum_are_scikit_learns(planted, form):
    ours = LassoCV(n_alphas=40, eps=1e-3, cv=FOLDS, tol=1e-10).fit(form(planted.X), planted.y)
    theirs = linear_model.LassoCV(alphas=40, eps=1e-3, cv=FOLDS, tol=1e-10, max_iter=10**5).fit(planted.X, planted.y)
    np.testing.assert_allclose(ours.alphas_, theirs.alphas_)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    assert ours.alpha_ == pytest.approx(theirs.alpha_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)


def test_the_elastic_net_chooses_its_mix(planted):
    ratios = [0.1, 0.5, 0.9, 1.0]
    ours = ElasticNetCV(ratios, n_alphas=30, eps=1e-3, cv=FOLDS, tol=1e-10).fit(planted.X, planted.y)
    theirs = linear_model.ElasticNetCV(l1_ratio=ratios, alphas=30, eps=1e-3, cv=FOLDS, tol=1e-10, max_iter=10**5)
    theirs.fit(planted.X, planted.y)
    assert ours.l1_ratio_ == theirs.l1_ratio_
    assert ours.alpha_ == pytest.approx(theirs.alpha_)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    assert ours.alphas_.shape == (4, 30)


def test_one_standard_error_is_the_sparsest_that_the_data_cannot_tell_from_the_best(planted):
    best = LassoCV(cv=FOLDS).fit(planted.X, planted.y)
    sparser = LassoCV(cv=FOLDS, one_standard_error=True).fit(planted.X, planted.y)
    assert (best.alpha_, best.alpha_1se_) == (sparser.alpha_, sparser.alpha_1se_)
    place = int(best.mse_mean_.argmin())
    assert best.alphas_[place] == best.alpha_
    np.testing.assert_allclose(best.mse_se_, best.mse_path_.std(axis=1, ddof=1) / 2)
    bound = best.mse_mean_[place] + best.mse_se_[place]
    chosen = list(best.alphas_).index(best.alpha_1se_)
    assert best.alpha_1se_ > best.alpha_
    assert best.mse_mean_[chosen] <= bound < best.mse_mean_[chosen - 1]
    assert set(planted.support) <= set(np.flatnonzero(sparser.coef_))
    assert np.count_nonzero(sparser.coef_) < np.count_nonzero(best.coef_)
    np.testing.assert_allclose(sparser.coef_, Lasso(best.alpha_1se_).fit(planted.X, planted.y).coef_, atol=1e-3)


def test_noise_is_left_out_by_the_rule():
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((100, 300)), generator.standard_normal(100)
    assert not LassoCV(one_standard_error=True).fit(X, y).coef_.any()


def test_weights_of_rows_are_repetitions(planted):
    repeats = np.random.default_rng(0).integers(0, 3, 120)
    rows = np.repeat(np.arange(120), repeats)
    folds = [(np.flatnonzero(np.arange(120) % 3 != f), np.flatnonzero(np.arange(120) % 3 == f)) for f in range(3)]
    again = [(np.flatnonzero(rows % 3 != f), np.flatnonzero(rows % 3 == f)) for f in range(3)]
    weighted = LassoCV(n_alphas=20, cv=folds, tol=1e-10).fit(planted.X, planted.y, sample_weight=repeats)
    repeated = LassoCV(n_alphas=20, cv=again, tol=1e-10).fit(planted.X[rows], planted.y[rows])
    np.testing.assert_allclose(weighted.mse_path_, repeated.mse_path_, rtol=1e-6)
    np.testing.assert_allclose(weighted.mse_se_, repeated.mse_se_, rtol=1e-6)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)


def test_groups_reach_the_splitter(planted):
    groups = np.arange(120) // 10
    fitted = LassoCV(cv=GroupKFold(3), n_alphas=10).fit(planted.X, planted.y, groups=groups)
    folds = list(GroupKFold(3).split(planted.X, planted.y, groups))
    np.testing.assert_array_equal(fitted.mse_path_, LassoCV(cv=folds, n_alphas=10).fit(planted.X, planted.y).mse_path_)
    with pytest.raises(ValueError, match="groups"):
        LassoCV(cv=GroupKFold(3)).fit(planted.X, planted.y)


def test_settings_of_the_lasso_hold(planted):
    weights = np.ones(40)
    weights[planted.support[0]] = np.inf
    fitted = LassoCV(positive=True, weights=weights, fit_intercept=False, alphas=[0.3, 0.1]).fit(planted.X, planted.y)
    assert (fitted.coef_ >= 0).all()
    assert fitted.coef_[planted.support[0]] == fitted.intercept_ == 0
    np.testing.assert_array_equal(fitted.alphas_, [0.3, 0.1])


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (LassoCV(n_alphas=0), "n_alphas: got 0"), (LassoCV(eps=2.0), "eps: got 2.0"), (LassoCV(tol=-1), "tol: got -1"),
        (LassoCV(one_standard_error="yes"), "one_standard_error"), (LassoCV(alphas=[]), "alphas"),
        (LassoCV(alphas=[-1.0]), "alphas: got -1"), (ElasticNetCV(0.0), "l1_ratio"), (ElasticNetCV("a"), "l1_ratio"),
        (ElasticNetCV([0.5, 2.0]), "l1_ratio: got 2"), (ElasticNetCV([]), "l1_ratio"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(planted, estimator, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(planted.X, planted.y)


def test_bad_weights_are_refused_by_name(planted):
    with pytest.raises(InputError, match="sample_weight: got shape"):
        LassoCV().fit(planted.X, planted.y, sample_weight=np.ones(3))
    with pytest.raises(InputError, match="zeros in a part of fold 0"):
        LassoCV(cv=KFold(2)).fit(planted.X, planted.y, sample_weight=np.r_[np.zeros(60), np.ones(60)])


@pytest.mark.parametrize("estimator", [LassoCV, ElasticNetCV])
def test_folds_solved_together_are_those_of_one_by_one_fits(planted, estimator):
    """Weights of 1 take the other road; every fit is certified on both."""
    settings = {"n_alphas": 15, "eps": 0.01, "cv": FOLDS, "tol": 1e-9}
    together = estimator(**settings).fit(planted.X, planted.y)
    alone = estimator(**settings, weights=np.ones(40)).fit(planted.X, planted.y)
    assert together.gaps_.shape == alone.gaps_.shape
    assert max(together.gaps_.max(), alone.gaps_.max(), together.dual_gap_) <= 1e-9
    np.testing.assert_allclose(together.mse_path_, alone.mse_path_, rtol=1e-3)
    assert together.alpha_ == alone.alpha_

    def objective(fit):
        residual = planted.y - planted.X @ fit.coef_ - fit.intercept_
        ratio = getattr(fit, "l1_ratio", 1.0)
        price = ratio * abs(fit.coef_).sum() + (1 - ratio) / 2 * (fit.coef_**2).sum()
        return residual @ residual / (2 * len(residual)) + fit.alpha_ * price

    assert objective(together) == pytest.approx(objective(alone), rel=1e-7)

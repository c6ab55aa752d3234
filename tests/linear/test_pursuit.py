"""Orthogonal matching pursuit for users: the function and the estimator, with every loss."""

import numpy as np
import pytest
from scipy import sparse
from sklearn import linear_model

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import OrthogonalMatchingPursuit, orthogonal_mp

LOSSES = ["squared", "square_root", "absolute"]


@pytest.fixture(scope="module")
def planted():
    return planted_regression(120, 60, 5, snr=50.0, seed=0)


@pytest.mark.parametrize("gram", [False, True])
def test_the_function_is_scikit_learns(gram):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((50, 120))
    X /= np.linalg.norm(X, axis=0)
    Y = generator.standard_normal((50, 9))
    np.testing.assert_allclose(
        orthogonal_mp(X, Y, 7, gram=gram), linear_model.orthogonal_mp(X, Y, n_nonzero_coefs=7), atol=1e-10
    )
    assert orthogonal_mp(X, Y[:, 0]).shape == (120,)
    assert np.count_nonzero(orthogonal_mp(X, Y[:, 0])) == 12
    np.testing.assert_allclose(orthogonal_mp(sparse.csc_array(X), Y, 3, gram=gram), orthogonal_mp(X, Y, 3))


@pytest.mark.parametrize("gram", [False, True])
def test_many_targets_choose_what_one_chooses(gram):
    generator = np.random.default_rng(1)
    X, Y = generator.standard_normal((90, 800)), generator.standard_normal((90, 40))
    together = orthogonal_mp(X, Y, 20, gram=gram)
    for t in range(0, 40, 13):
        np.testing.assert_array_equal(together[:, t] != 0, orthogonal_mp(X, Y[:, t], 20, gram=gram) != 0)


def test_a_tolerance_ends_each_target_by_itself():
    generator = np.random.default_rng(2)
    X, Y = generator.standard_normal((50, 120)), generator.standard_normal((50, 9))
    for gram in (False, True):
        coef = orthogonal_mp(X, Y, 40, tol=0.3, gram=gram)
        left = np.linalg.norm(Y - X @ coef, axis=0) / np.linalg.norm(Y, axis=0)
        assert (left <= 0.3).all()
        assert (left > 0.1).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_the_penalty_finds_how_many(planted, loss, penalty, form):
    alpha = {"squared": 0.1, "square_root": 0.15, "absolute": 0.15}[loss]
    alpha = alpha / 2 if penalty == "l0" else alpha
    fitted = OrthogonalMatchingPursuit(loss=loss, penalty=penalty, alpha=alpha).fit(form(planted.X), planted.y + 2)
    assert set(fitted.support_) == set(planted.support)
    assert fitted.ended_
    assert fitted.n_iter_ == 5
    assert fitted.intercept_ == pytest.approx(2, abs=0.2)
    np.testing.assert_allclose(fitted.coef_, planted.coef, atol=0.2)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_targets(planted, loss):
    Y = np.stack([planted.y + 1, -2 * planted.y], axis=1)
    fitted = OrthogonalMatchingPursuit(5, loss=loss).fit(planted.X, Y)
    assert fitted.coef_.shape == (2, 60)
    assert fitted.predict(planted.X).shape == (120, 2)
    alone = OrthogonalMatchingPursuit(5, loss=loss).fit(planted.X, Y[:, 0])
    np.testing.assert_allclose(fitted.coef_[0], alone.coef_, atol=1e-9)
    assert fitted.intercept_[0] == pytest.approx(alone.intercept_)
    np.testing.assert_array_equal(fitted.support_[1], alone.support_)


def test_wild_targets_do_not_disturb_the_absolute_loss(planted):
    y = planted.y.copy()
    y[:6] += 100
    fitted = OrthogonalMatchingPursuit(5, loss="absolute").fit(planted.X, y)
    assert set(fitted.support_) == set(planted.support)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "huber"}, "loss: got 'huber'"), ({"penalty": "mcp"}, "penalty: got 'mcp'"),
        ({"alpha": -1.0}, "alpha: got -1.0"), ({"k": 0}, "k: got 0"), ({"weights": np.ones(3)}, "weights: got shape"),
        ({"tol": -1.0}, "tol: got -1.0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(planted, settings, words):
    with pytest.raises(InputError, match=words):
        OrthogonalMatchingPursuit(**settings).fit(planted.X, planted.y)


def test_bad_counts_of_the_function():
    for k in (0, 5, 1.5):
        with pytest.raises(InputError, match="n_nonzero_coefs: got"):
            orthogonal_mp(np.eye(4), np.ones(4), k)

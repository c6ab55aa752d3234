"""Ridge, Lasso, OMP and IHT as methods: one point per budget, in raw units, tuned alike."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import linear_model

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import frontier
from ellzero.linear.frontier import IHT, OMP, Lasso, Ridge, r_squared
from ellzero.protocol import Data, Fitted, Method

SPARSE = [Lasso(), OMP(), IHT()]
by_name = pytest.mark.parametrize("method", SPARSE, ids=lambda method: method.name)


def make(n=120, p=30, k=5, seed=0, scale=None):
    planted = planted_regression(n, p, k, snr=20.0, seed=seed)
    X = planted.X * (1 if scale is None else scale) + 3
    names = tuple(f"c{j}" for j in range(p))
    cut = 2 * n // 3
    return planted, Data((X[:cut], planted.y[:cut] + 7), (X[cut:], planted.y[cut:] + 7), {"columns": names})


@by_name
def test_one_point_per_budget_in_the_order_given(method):
    planted, data = make()
    budgets = [20, 1, 5, 5, 25]
    found = list(method.frontier(data, budgets, 0))
    assert [point.realised for point in found] == budgets
    assert all(isinstance(point, Fitted) for point in found)
    assert isinstance(method, Method)
    assert set(found[2].model.support) == set(planted.support)
    assert found[2].score(data.validation) > 0.8
    assert found[2].time(data.validation) > 0


@by_name
def test_more_columns_than_rows(method):
    _, data = make(60, 200, 5)
    found = list(method.frontier(data, [1, 10, 200], 0))
    assert [point.realised for point in found[:2]] == [1, 10]
    assert all(np.isfinite(point.model.values).all() for point in found)


@pytest.mark.parametrize("method", [Ridge(), *SPARSE], ids=lambda method: method.name)
def test_units_of_columns_do_not_matter(method):
    scale = np.logspace(-4, 4, 30)
    _, data = make()
    _, scaled = make(scale=scale)
    for plain, moved in zip(method.frontier(data, [3, 10], 0), method.frontier(scaled, [3, 10], 0)):
        np.testing.assert_allclose(
            plain.model.predict(data.validation[0]), moved.model.predict(scaled.validation[0]), atol=1e-5
        )


@pytest.mark.parametrize("method", [Ridge(), *SPARSE], ids=lambda method: method.name)
def test_constant_columns_carry_nothing(method):
    _, data = make()
    (X, y), (V, u) = data.train, data.validation
    constant = Data((np.c_[X, np.full(len(X), 0.1), np.zeros(len(X))], y), (np.c_[V, np.full((len(V), 2), 9.0)], u), {})
    budgets = [] if method.dense else [4]
    (plain,), (padded,) = method.frontier(data, budgets, 0), method.frontier(constant, budgets, 0)
    assert not {30, 31} & set(padded.model.support)
    assert padded.score(constant.validation) == pytest.approx(plain.score(data.validation), abs=1e-9)


@pytest.mark.parametrize("shape", [(90, 20), (40, 100)])
def test_ridge_is_scikit_learns(shape):
    _, data = make(*shape)
    X, y = data.train
    (found,) = Ridge(alpha=0.3).frontier(data, [], 0)
    scaled = (X - X.mean(0)) / X.std(0)
    theirs = linear_model.Ridge(alpha=0.3 * len(y)).fit(scaled, y)
    np.testing.assert_allclose(found.model.predict(X), theirs.predict(scaled), atol=1e-8)
    assert found.realised == shape[1]


def test_the_blend_goes_from_shrunk_to_refitted():
    _, data = make()
    X, y = data.train
    refit, half, shrunk = (next(Lasso(blend=b).frontier(data, [5], 0)).model for b in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(refit.support, shrunk.support)
    plain = linear_model.LinearRegression().fit(X[:, refit.support], y)
    np.testing.assert_allclose(refit.values, plain.coef_, atol=1e-8)
    assert refit.intercept == pytest.approx(plain.intercept_, abs=1e-8)
    np.testing.assert_allclose(half.values, (refit.values + shrunk.values) / 2, atol=1e-10)
    assert abs(shrunk.values).sum() < abs(refit.values).sum()


def test_the_lasso_lands_between_two_alphas():
    """With few alphas on the path, the search between two of them still finds the count that was asked for."""
    _, data = make(200, 60, 20)
    found = [point.realised for point in Lasso(n_alphas=4).frontier(data, range(1, 21), 0)]
    assert found == list(range(1, 21))


@pytest.mark.parametrize("method", [Ridge(), *SPARSE], ids=lambda method: method.name)
def test_candidates_begin_with_the_method_and_repeat_by_seed(method):
    found = method.candidates(9, 0)
    assert found[0] == method
    assert len(found) == len({repr(candidate) for candidate in found}) == 9
    assert found == method.candidates(9, 0)
    assert found[1:] != method.candidates(9, 1)[1:]
    assert method.candidates(1, 0) == [method]


def test_an_l2_shrinks_the_refit():
    _, data = make()
    plain, shrunk = (next(OMP(l2=l2).frontier(data, [5], 0)).model for l2 in (0.0, 1.0))
    np.testing.assert_array_equal(plain.support, shrunk.support)
    assert abs(shrunk.values).sum() < 0.8 * abs(plain.values).sum()


def test_r_squared():
    y = np.array([1.0, 2.0, 3.0])
    assert r_squared(y, y) == 1
    assert r_squared(y, np.full(3, 2.0)) == 0
    with pytest.raises(InputError, match="all 2 targets"):
        r_squared(np.ones(2), np.ones(2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"blend": 1.5}, "blend: got 1.5"), ({"blend": -0.1}, "blend"), ({"l2": -1.0}, "l2: got -1.0")],
)
def test_bad_settings(settings, words):
    with pytest.raises(InputError, match=words):
        replace(Lasso(), **settings)
    with pytest.raises(InputError, match="alpha: got 0"):
        Ridge(alpha=0)


@by_name
@pytest.mark.parametrize("budget", [0, 31, 2.5])
def test_bad_budgets(method, budget):
    _, data = make()
    with pytest.raises(InputError, match="budgets"):
        list(method.frontier(data, [budget], 0))


def test_the_methods_are_listed_by_name():
    assert list(frontier.methods()) == ["ridge", "lasso", "omp", "iht"]

"""The methods of the task regression: one point per budget, in raw units, tuned alike."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import linear_model

from ellzero.data.generators import planted_regression
from ellzero.errors import InputError
from ellzero.linear import frontier
from ellzero.linear.frontier import (
    HTP,
    IHT,
    MCP,
    NST,
    OMP,
    SBL,
    SCAD,
    AdaptiveLasso,
    ElasticNet,
    Lasso,
    Ridge,
    SquareRootOMP,
    r_squared,
)
from ellzero.protocol import Data, Fitted, Method

EXACT = [Lasso(), OMP(), IHT(), ElasticNet(), AdaptiveLasso(), MCP(), SCAD(), HTP(), NST()]
SPARSE = [*EXACT, SquareRootOMP(), SBL()]
by_name = pytest.mark.parametrize("method", SPARSE, ids=lambda method: method.name)


def make(n=120, p=30, k=5, seed=0, scale=None):
    planted = planted_regression(n, p, k, snr=20.0, seed=seed)
    X = planted.X * (1 if scale is None else scale) + 3
    names = tuple(f"c{j}" for j in range(p))
    cut = 2 * n // 3
    return planted, Data((X[:cut], planted.y[:cut] + 7), (X[cut:], planted.y[cut:] + 7), {"columns": names})


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
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
    assert found[0].realised == 1
    assert found[1].realised == 10 if method in EXACT else 1 <= found[1].realised <= 10
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
    for method in SPARSE:
        if settings.keys() <= vars(method).keys():
            with pytest.raises(InputError, match=words):
                replace(method, **settings)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Ridge(alpha=0), "alpha: got 0"), (lambda: ElasticNet(l1_ratio=0), "l1_ratio: got 0"),
        (lambda: AdaptiveLasso(power=0), "power: got 0"), (lambda: AdaptiveLasso(ridge=-1), "ridge: got -1"),
        (lambda: MCP(gamma=1), "gamma: got 1"), (lambda: SCAD(gamma=2), "gamma: got 2"),
        (lambda: SquareRootOMP(alpha=0), "alpha: got 0"), (lambda: HTP(step=-1), "step: got -1"),
        (lambda: NST(ridge=-1), "ridge: got -1"), (lambda: SBL(noise=-1), "noise: got -1"),
    ],
)  # fmt: skip
def test_bad_settings_of_one(build, words):
    with pytest.raises(InputError, match=words):
        build()


@by_name
@pytest.mark.parametrize("budget", [0, 31, 2.5])
def test_bad_budgets(method, budget):
    _, data = make()
    with pytest.raises(InputError, match="budgets"):
        list(method.frontier(data, [budget], 0))


def test_the_methods_are_listed_by_name():
    found = frontier.methods()
    assert list(found)[:4] == ["ridge", "lasso", "omp", "iht"]
    assert {type(method) for method in found.values()} == {type(method) for method in [Ridge(), *SPARSE]}


@pytest.mark.parametrize("method", [SquareRootOMP(), SBL()], ids=lambda method: method.name)
def test_what_ends_by_itself_stays_within_the_budget(method):
    planted, data = make()
    found = list(method.frontier(data, [3, 5, 25], 0))
    assert [point.realised for point in found[:2]] == [3, 5]
    assert 5 <= found[2].realised < 25
    assert set(found[1].model.support) == set(planted.support)


def test_an_adaptive_weight_is_the_inverse_of_a_ridge_coefficient():
    """At power 1 and a tiny ridge the first column of the path has the largest |correlation| times |ridge|."""
    _, data = make()
    X, y = data.train
    scaled = (X - X.mean(0)) / X.std(0)
    ridge = abs(linear_model.Ridge(alpha=1e-6).fit(scaled, y).coef_)
    first = np.argmax(abs(scaled.T @ (y - y.mean())) * ridge)
    assert next(AdaptiveLasso(ridge=1e-8).frontier(data, [1], 0)).model.support.tolist() == [first]


def test_concave_penalties_do_not_shrink_what_is_large():
    _, data = make()
    for method in (MCP(gamma=1.5), SCAD(gamma=2.1)):
        concave, refit = (next(replace(method, blend=b).frontier(data, [5], 0)).model for b in (1.0, 0.0))
        np.testing.assert_allclose(concave.values, refit.values, rtol=1e-3)

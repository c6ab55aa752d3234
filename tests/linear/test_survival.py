"""Cox regression: the optimum and the baseline hazard by independent loops, forms of y, concordance, road to curves."""

import numpy as np
import pytest
from scipy import optimize, sparse

from ellzero.errors import InputError
from ellzero.linear import CoxRegression
from ellzero.linear.survival import concordance


def data(seed=0, n=120, p=6, tied=True):
    """Exponential times of hazard exp(x_0 - x_2 / 2), lost from sight at random, in whole months if tied."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    times = rng.exponential(np.exp(-(X[:, 0] - 0.5 * X[:, 2])))
    lost = rng.exponential(2.0, n)
    seen = times <= lost
    y = np.minimum(times, lost)
    return X, np.stack([np.ceil(8 * y) if tied else y, seen], axis=1)


def loss(X, y, w, ties):
    """Minus the mean log partial likelihood, by the definition."""
    z, total = X @ w, 0.0
    for t in np.unique(y[y[:, 1] == 1, 0]):
        dead = np.flatnonzero((y[:, 0] == t) & (y[:, 1] == 1))
        risk = np.exp(z[y[:, 0] >= t]).sum()
        tied = np.exp(z[dead]).sum()
        for place, i in enumerate(dead):
            total += np.log(risk - (place / len(dead) * tied if ties == "efron" else 0)) - z[i]
    return total / len(y)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize(("alpha", "ratio"), [(0.02, 1.0), (0.05, 0.5)])
def test_the_optimum_is_that_of_a_search(ties, alpha, ratio):
    X, y = data()
    ours = CoxRegression(alpha, l1_ratio=ratio, ties=ties, tol=1e-10).fit(X, y)
    assert ours.converged_

    def cost(v):  # positive and negative parts make the penalty smooth
        w = v[:6] - v[6:]
        return loss(X, y, w, ties) + alpha * (ratio * v.sum() + (1 - ratio) / 2 * w @ w)

    found = optimize.minimize(cost, np.full(12, 0.1), bounds=[(0, None)] * 12, options={"ftol": 1e-14, "gtol": 1e-9})
    np.testing.assert_allclose(ours.coef_, found.x[:6] - found.x[6:], atol=2e-4)
    mine = cost(np.r_[np.maximum(ours.coef_, 0), np.maximum(-ours.coef_, 0)])
    assert mine <= found.fun + 1e-9


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_the_baseline_is_the_sum_of_deaths_over_risks(ties):
    X, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y))
    fitted = CoxRegression(0.02, ties=ties).fit(X, y, sample_weight=weights)
    power, hazard = np.exp(X @ fitted.coef_), []
    for t in fitted.baseline_times_:
        dead = (y[:, 0] == t) & (y[:, 1] == 1)
        risk, tied, mass = (weights * power)[y[:, 0] >= t].sum(), (weights * power)[dead].sum(), weights[dead].mean()
        late = np.arange(dead.sum()) / dead.sum() * (ties == "efron")
        hazard.append((mass / (risk - late * tied)).sum())
    assert (np.diff(fitted.baseline_times_) > 0).all()
    np.testing.assert_allclose(fitted.baseline_hazard_, np.cumsum(hazard), rtol=1e-10)


def test_curves_are_the_truth_where_there_is_much_data():
    X, y = data(1, n=4000, tied=False)
    fitted = CoxRegression(1e-4).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, [1, 0, -0.5, 0, 0, 0], atol=0.1)
    times = np.array([0.0, 0.1, 0.5, 1.0])
    curves = fitted.predict_survival(X[:50], times)
    truth = np.exp(-times * np.exp(X[:50, 0] - 0.5 * X[:50, 2])[:, None])
    assert abs(curves - truth).max() < 0.06
    assert (curves[:, 0] == 1).all()


def test_forms_of_y_agree():
    X, y = data()
    plain = CoxRegression(0.02).fit(X, y)
    fields = np.array([(bool(e), t) for t, e in y], dtype=[("event", bool), ("time", float)])
    np.testing.assert_array_equal(CoxRegression(0.02).fit(X, fields).coef_, plain.coef_)
    assert concordance(fields, plain.predict(X)) == plain.score(X, y) > 0.7
    every = np.stack([y[:, 0], np.ones(len(y))], axis=1)
    np.testing.assert_array_equal(CoxRegression(0.02).fit(X, y[:, 0]).coef_, CoxRegression(0.02).fit(X, every).coef_)
    later = np.stack([np.exp(y[:, 0]), y[:, 1]], axis=1)  # only the order of times counts
    np.testing.assert_allclose(CoxRegression(0.02).fit(X, later).coef_, plain.coef_, atol=1e-12)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_float32_and_weights(form):
    X, y = data()
    X[abs(X) < 0.5] = 0
    plain, other = CoxRegression(0.02, tol=1e-9).fit(X, y), CoxRegression(0.02, tol=1e-9).fit(form(X), y)
    np.testing.assert_allclose(other.coef_, plain.coef_, atol=1e-7)
    single = CoxRegression(0.02, tol=1e-5).fit(form(X.astype(np.float32)), y)
    assert single.coef_.dtype == np.float32
    counts = np.arange(len(y)) % 3
    repeated = np.repeat(np.arange(len(y)), counts)
    weighted = CoxRegression(0.02, tol=1e-10).fit(X, y, sample_weight=counts)
    again = CoxRegression(0.02, tol=1e-10).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, again.coef_, atol=1e-6)
    np.testing.assert_allclose(weighted.baseline_hazard_, again.baseline_hazard_, rtol=1e-6)
    factors = np.array([np.inf, 0, 1, 1, 1, 1])
    fitted = CoxRegression(0.1, weights=factors).fit(X, y)
    assert fitted.coef_[0] == 0 != fitted.coef_[1]
    assert (CoxRegression(0.02, positive=True).fit(X, y).coef_ >= 0).all()


def test_paths_and_warm_starts():
    X, y = data()
    whole = CoxRegression(tol=1e-9).path(X, y, n_alphas=6, eps=0.05)
    assert whole.converged.all()
    assert (whole.coefs[:, 0] == 0).all()
    estimator = CoxRegression(whole.alphas[4], tol=1e-9, warm_start=True).fit(X, y)
    np.testing.assert_allclose(estimator.coef_, whole.coefs[:, 4], atol=1e-6)
    assert estimator.fit(X, y).n_iter_ == 1


def test_concordance_counts_pairs():
    y = np.array([[1, 1], [2, 0], [2, 1], [3, 1]])
    assert concordance(y, [4, 3, 2, 1]) == pytest.approx(4 / 5)  # the lost sample outlives the death at its time
    assert concordance(y, [1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert concordance(y, [0, 0, 0, 0]) == 0.5
    with pytest.raises(InputError, match="no two times"):
        concordance([[2, 1], [1, 0]], [0, 0])


@pytest.mark.parametrize(
    ("estimator", "y", "words"),
    [
        (CoxRegression(), None, "y: got None"), (CoxRegression(), np.ones((120, 2)) * 2, "y: got the event 2.0"),
        (CoxRegression(), np.c_[np.arange(120.0), np.zeros(120)], "y: got no event"),
        (CoxRegression(), np.ones((120, 3)), "y: got shape"),
        (CoxRegression(ties="exact"), np.arange(120.0), "ties: got 'exact'"),
        (CoxRegression(-1.0), np.arange(120.0), "alpha: got -1.0"),
        (CoxRegression(l1_ratio=2.0), np.arange(120.0), "l1_ratio: got 2.0"),
        (CoxRegression(), np.zeros(120, dtype=[("a", float), ("b", float)]), "y: got the fields a, b"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(estimator, y, words):
    with pytest.raises(InputError, match=words):
        estimator.fit(data()[0], y)

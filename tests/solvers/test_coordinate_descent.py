"""Coordinate descent: certified optima, whatever the storage, the weights, the path or the threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import linear_model

from ellzero.data.generators import AR, planted_regression
from ellzero.errors import InputError
from ellzero.parts import penalties
from ellzero.solvers.certificates import l1_l2
from ellzero.solvers.coordinate_descent import alpha_max, iterate, path, solve
from ellzero.solvers.operators import Dense


def data(n=60, p=90, seed=0, rho=0.5):
    planted = planted_regression(n, p, 8, snr=5.0, correlation=AR(rho), seed=seed)
    return planted.X, planted.y + 3


def objective(X, y, fit, penalty):
    residual = y - X @ fit.coef - fit.intercept
    return residual @ residual / (2 * len(y)) + penalty.value(fit.coef)


@pytest.mark.parametrize("shape", [(60, 90), (90, 30)])
@pytest.mark.parametrize("share", [0.7, 0.1, 0.003])
def test_lasso_is_scikit_learns(shape, share):
    X, y = data(*shape)
    alpha = share * alpha_max(X, y, penalties.L1(1.0))
    ours = solve(X, y, penalties.L1(alpha), tol=1e-13)
    theirs = linear_model.Lasso(alpha=alpha, tol=1e-14, max_iter=1_000_000).fit(X, y)
    assert ours.converged
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-7)
    assert ours.intercept == pytest.approx(theirs.intercept_, abs=1e-7)


def test_elastic_net_is_scikit_learns():
    X, y = data()
    alpha = 0.1 * alpha_max(X, y, penalties.ElasticNet(1.0, 0.6))
    ours = solve(X, y, penalties.ElasticNet(alpha, 0.6), tol=1e-13)
    theirs = linear_model.ElasticNet(alpha=alpha, l1_ratio=0.6, tol=1e-14, max_iter=1_000_000).fit(X, y)
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-7)


@pytest.mark.parametrize(
    "penalty",
    [penalties.L1(0.05), penalties.ElasticNet(0.05, 0.5), penalties.L1(0.05, positive=True)],
    ids=["l1", "elastic net", "positive"],
)
@pytest.mark.parametrize("fit_intercept", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), tol=st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_the_gap_bounds_the_suboptimality_and_kkt_holds(penalty, fit_intercept, seed, tol):
    X, y = data(40, 60, seed)
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 2.0, np.inf], size=60, p=[0.05, 0.3, 0.3, 0.3, 0.05])
    penalty = type(penalty)(**{**vars(penalty), "weights": weights})
    best = solve(X, y, penalty, tol=1e-12, fit_intercept=fit_intercept)
    rough = solve(X, y, penalty, tol=tol, max_iter=1, fit_intercept=fit_intercept)
    shifted = y - y.mean() if fit_intercept else y
    at_zero = shifted @ shifted / (2 * len(y))
    suboptimality = (objective(X, y, rough, penalty) - objective(X, y, best, penalty)) / at_zero
    assert best.converged
    assert -1e-11 <= suboptimality <= rough.gap + 1e-11
    residual = y - X @ best.coef - best.intercept
    far = penalty.subdifferential_distance(best.coef, -X.T @ residual / len(y))
    assert far.max() <= 1e-5
    assert (best.coef[np.isinf(weights)] == 0).all()
    if penalty.positive:
        assert (best.coef >= 0).all()


@pytest.mark.parametrize("rows", [sparse.csc_array, sparse.csr_array, sparse.csc_matrix])
def test_sparse_is_dense(rows):
    X = sparse.random_array((80, 120), density=0.1, rng=np.random.default_rng(3), format="csc").toarray()
    y = X[:, :5].sum(axis=1) + 1 + 0.01 * np.random.default_rng(1).standard_normal(80)
    dense = path(X, y, penalties.L1(1.0), n_alphas=12, tol=1e-12)
    kept = path(rows(X), y, penalties.L1(1.0), n_alphas=12, tol=1e-12)
    np.testing.assert_allclose(dense.alphas, kept.alphas, rtol=1e-10)
    np.testing.assert_allclose(dense.coefs, kept.coefs, atol=1e-7)
    assert kept.converged.all()


def test_sparse_design_is_not_densified(monkeypatch):
    X = sparse.random_array((200, 3000), density=0.01, rng=np.random.default_rng(0), format="csc")
    y = np.asarray(X[:, [0]].todense()).ravel() + 0.01 * np.random.default_rng(1).standard_normal(200)
    dense = type(X).toarray

    def small_only(self, *args, **kwargs):
        assert self.shape[0] * self.shape[1] < X.shape[0] * X.shape[1] / 4
        return dense(self, *args, **kwargs)

    monkeypatch.setattr(type(X), "toarray", small_only)
    monkeypatch.setattr(sparse.csr_array, "toarray", small_only)
    fit = solve(X, y, penalties.L1(0.3 * alpha_max(X, y, penalties.L1(1.0))))
    assert fit.converged


@pytest.mark.parametrize("penalty", [penalties.L1(1.0), penalties.ElasticNet(1.0, 0.7)], ids=["l1", "elastic net"])
def test_a_path_is_its_single_fits(penalty):
    X, y = data()
    done = path(X, y, penalty, n_alphas=15, tol=1e-12)
    assert (np.diff(done.alphas) < 0).all()
    assert not done.coefs[:, 0].any()
    assert done.coefs[:, 1].any()
    assert done.alphas[-1] == pytest.approx(1e-2 * done.alphas[0])
    for i in (3, 9, 14):
        single = solve(X, y, type(penalty)(**{**vars(penalty), "alpha": done.alphas[i]}), tol=1e-12)
        np.testing.assert_allclose(done.coefs[:, i], single.coef, atol=1e-6)
        assert done.intercepts[i] == pytest.approx(single.intercept, abs=1e-6)


def test_alphas_are_sorted_and_a_path_can_be_left():
    X, y = data()
    walk = iterate(X, y, penalties.L1(1.0), alphas=[0.01, 0.5, 0.1])
    assert next(walk)[0] == 0.5
    assert next(walk)[0] == 0.1


def test_alpha_max_solves_free_columns_out():
    X, y = data()
    weights = np.ones(90)
    weights[:3] = 0
    top = alpha_max(X, y, penalties.L1(1.0, weights=weights))
    above = solve(X, y, penalties.L1(1.0001 * top, weights=weights), tol=1e-12)
    below = solve(X, y, penalties.L1(0.999 * top, weights=weights), tol=1e-12)
    assert not above.coef[3:].any()
    assert below.coef[3:].any()
    design = np.c_[np.ones(60), X[:, :3]]
    np.testing.assert_allclose(above.coef[:3], np.linalg.lstsq(design, y, rcond=None)[0][1:], atol=1e-7)


@pytest.mark.parametrize(
    "penalty",
    [penalties.MCP(0.1), penalties.SCAD(0.1), penalties.LogSum(0.05, 0.5), penalties.L0(0.05), penalties.Lq(0.1, 0.5)],
    ids=lambda p: type(p).__name__,
)
def test_other_penalties_end_stationary(penalty):
    X, y = data(100, 40)
    fit = solve(X, y, penalty, tol=1e-8)
    assert fit.converged
    residual = y - X @ fit.coef - fit.intercept
    far = penalty.subdifferential_distance(fit.coef, -X.T @ residual / len(y))
    assert far.max() <= 1e-7 * abs(X.T @ (y - y.mean())).max() / len(y)


def test_mcp_leaves_large_coefficients_alone():
    planted = planted_regression(200, 50, 3, snr=50.0, seed=1)
    mcp = solve(planted.X, planted.y, penalties.MCP(0.3, 1.5), tol=1e-8).coef
    assert set(np.flatnonzero(mcp)) == set(planted.support)
    refit = np.linalg.lstsq(
        planted.X[:, planted.support] - planted.X[:, planted.support].mean(0), planted.y - planted.y.mean(), rcond=None
    )[0]
    np.testing.assert_allclose(mcp[planted.support], refit, atol=1e-6)


def test_a_penalty_without_twin_runs_on_the_plain_loop():
    class Mine:
        weights, positive, alpha = None, False, 0.1

        def prox(self, x, step):
            return np.sign(x) * max(abs(x) - 0.1 * step, 0)

        def value(self, w):
            return 0.1 * abs(w).sum()

        def subdifferential_distance(self, w, gradient):
            return penalties.L1(0.1).subdifferential_distance(w, gradient)

    X, y = data(30, 20)
    np.testing.assert_allclose(
        solve(X, y, Mine(), tol=1e-9).coef, solve(X, y, penalties.L1(0.1), tol=1e-12).coef, atol=1e-6
    )


def test_duplicate_and_constant_columns_and_more_columns_than_rows():
    X, y = data(20, 10)
    X = np.hstack([X, X, np.full((20, 1), 5.0), np.zeros((20, 1))])
    fit = solve(X, y, penalties.L1(0.01), tol=1e-8)
    assert fit.converged
    assert fit.coef[-1] == fit.coef[-2] == 0
    assert np.isfinite(fit.coef).all()


def test_float32_stays_and_is_close():
    X, y = data()
    alpha = 0.1 * alpha_max(X, y, penalties.L1(1.0))
    single = solve(X.astype(np.float32), y.astype(np.float32), penalties.L1(alpha), tol=1e-5)
    double = solve(X, y, penalties.L1(alpha), tol=1e-10)
    assert single.coef.dtype == np.float32
    assert single.converged
    np.testing.assert_allclose(single.coef, double.coef, atol=2e-3)


def test_a_start_changes_nothing_but_the_work():
    X, y = data()
    penalty = penalties.L1(0.1)
    cold = solve(X, y, penalty, tol=1e-12)
    warm = solve(X, y, penalty, tol=1e-12, start=cold.coef)
    assert warm.n_iter == 0
    np.testing.assert_allclose(warm.coef, cold.coef)


def test_unreachable_tolerance_is_reported():
    X, y = data()
    fit = solve(X, y, penalties.L1(0.001), tol=0.0, max_iter=2)
    assert not fit.converged
    assert fit.gap > 0


def test_constant_target_gives_zero():
    X, _ = data()
    fit = solve(X, np.full(60, 2.0), penalties.L1(0.1))
    assert fit.converged
    assert not fit.coef.any()
    assert fit.intercept == 2.0


def test_our_loop_does_not_depend_on_threads():
    code = (
        "import numpy as np\nfrom ellzero.data.generators import planted_regression\n"
        "from ellzero.parts import penalties\n"
        "from ellzero.solvers.coordinate_descent import solve\nd = planted_regression(60, 90, 8, seed=0)\n"
        "print(solve(d.X, d.y, penalties.L1(0.1), tol=1e-12).coef.tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1"},
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_bad_input():
    X, y = data()
    with pytest.raises(InputError, match="y: got shape"):
        solve(X, y[:-1], penalties.L1(1.0))
    with pytest.raises(InputError, match="weights: got shape"):
        solve(X, y, penalties.L1(1.0, weights=np.ones(3)))
    with pytest.raises(InputError, match="tol"):
        solve(X, y, penalties.L1(1.0), tol=-1.0)
    with pytest.raises(InputError, match="max_iter"):
        solve(X, y, penalties.L1(1.0), max_iter=0)
    with pytest.raises(InputError, match="lacks 'prox'"):
        solve(X, y, object())
    bare = type("Bare", (), {"shape": X.shape, "dtype": X.dtype, "columns": None, "restricted": None})()
    bare.matvec = bare.rmatvec = lambda v: v
    with pytest.raises(InputError, match="lacks 'gram'"):
        solve(bare, y, penalties.L1(1.0), fit_intercept=False)
    with pytest.raises(InputError, match="no alpha makes all"):
        path(X, y, penalties.ElasticNet(1.0, 0.0))
    with pytest.raises(InputError, match="L0"):
        path(X, y, penalties.L0(1.0))
    with pytest.raises(InputError, match="n_alphas"):
        path(X, y, penalties.L1(1.0), n_alphas=0)
    with pytest.raises(InputError, match="eps"):
        path(X, y, penalties.L1(1.0), eps=1.0)
    with pytest.raises(InputError, match="start"):
        solve(Dense(X), y, penalties.L1(1.0), start=np.ones(2))
    assert l1_l2(penalties.L1(0.0)) is None

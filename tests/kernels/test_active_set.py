"""The exact search ends where optimality holds, from any start, with free, excluded and dependent coordinates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.kernels import active_set as module
from ellzero.kernels import live
from ellzero.kernels.active_set import ActiveSet
from ellzero.kernels.coordinate_descent import coordinate_descent
from ellzero.parts import penalties


def problem(n, m, seed, dtype=np.float64, copies=False):
    generator = np.random.default_rng(seed)
    x, y = generator.standard_normal((n, m)), generator.standard_normal(n)
    if copies and m > 3:
        x[:, 1], x[:, 3] = x[:, 0], -2 * x[:, 2]
    x = x.astype(dtype)
    return np.ascontiguousarray(x.T @ x / n), (x.T @ y.astype(dtype) / n).astype(dtype), generator


def violation(gram, c, w, bounds, ridge, positive):
    """The largest violation of optimality."""
    out = np.isinf(bounds)
    assert not w[out].any()
    if positive:
        assert (w >= 0).all()
    slope = gram.astype(np.float64) @ w - c + ridge * w
    bounds = np.where(out, 0, bounds)
    resting = np.maximum((-slope if positive else abs(slope)) - bounds, 0)
    return np.where(w != 0, abs(slope + bounds * np.sign(w)), resting)[~out].max(initial=0)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(2, 60), m=st.integers(1, 40), seed=st.integers(0, 10**6), share=st.sampled_from([0.5, 0.1, 0.01]),
    ridge=st.sampled_from([0.0, 0.1]), positive=st.booleans(), copies=st.booleans(), warm=st.booleans(),
    single=st.booleans(),
)  # fmt: skip
def test_optimality_holds(n, m, seed, share, ridge, positive, copies, warm, single):
    dtype = np.float32 if single else np.float64
    gram, c, generator = problem(n, m, seed, dtype, copies)
    bounds = share * abs(c).max() * generator.choice([0, 1, 1, 2, np.inf], m).astype(np.float64)
    w = np.zeros(m, dtype)
    if warm:
        w = (generator.standard_normal(m) * (generator.random(m) < 0.3)).astype(dtype)
        w[np.isinf(bounds)] = 0
        w = abs(w) if positive else w
    gradient = (gram @ w - c).astype(dtype)
    ActiveSet().solve(gram, w, gradient, bounds, np.full(m, ridge), positive=positive, tol=1e-6 if single else 1e-12)
    assert violation(gram, c, w, bounds, ridge, positive) <= (1e-3 if single else 1e-8)
    np.testing.assert_allclose(gradient, gram @ w - c, atol=1e-3 if single else 1e-9)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("positive", [True, False])
def test_it_is_where_descent_ends(compiled, positive, monkeypatch):
    if not compiled:
        monkeypatch.setattr(module, "CHOICE", module.CHOICE._replace(module=None))
    gram, c, generator = problem(80, 30, 3)
    weights = generator.choice([0.0, 1.0, 2.0, np.inf], 30)
    penalty = penalties.ElasticNet(0.1, 0.7, positive=positive)
    slow, gradient = np.zeros(30), -c
    coordinate_descent(gram, slow, gradient, penalty, weights=weights, tol=1e-14, max_sweeps=10**5)
    w, gradient = np.zeros(30), -c.copy()
    ridge = np.where(np.isinf(weights), 0, 0.03 * weights)
    assert ActiveSet().solve(gram, w, gradient, 0.07 * weights, ridge, positive=positive, tol=1e-12)
    np.testing.assert_allclose(w, slow, atol=1e-10)


def test_the_factor_serves_a_path_and_a_larger_gram_matrix():
    gram, c, _ = problem(100, 60, 5)
    kept, w, gradient = ActiveSet(), np.zeros(20), -c[:20].copy()
    for size in (20, 40, 60):
        w, old = np.r_[w, np.zeros(size - len(w))], len(w)
        gradient = np.r_[gradient, (gram[:size, :size] @ w - c[:size])[old:]]
        for share in (0.5, 0.2, 0.1, 0.05, 0.2):
            bounds, none = np.full(size, share * abs(c).max()), np.zeros(size)
            assert kept.solve(gram, w, gradient, bounds, none, tol=1e-12)
            fresh, slope = np.zeros(size), -c[:size].copy()
            ActiveSet().solve(gram, fresh, slope, bounds, none, tol=1e-12)
            np.testing.assert_allclose(w, fresh, atol=1e-10)
            assert set(kept.order[: kept.count]) == set(np.flatnonzero(w))
            if live:
                lower = np.tril(kept.factor[: kept.count, : kept.count])
                used = kept.order[: kept.count]
                np.testing.assert_allclose(lower @ lower.T, gram[np.ix_(used, used)], atol=1e-10)


def test_more_coordinates_than_rank():
    """At a weak penalty the support has the rank of the matrix, and dependent coordinates change places."""
    gram, c, _ = problem(15, 60, 7)
    w, gradient, kept = np.zeros(60), -c.copy(), ActiveSet()
    for share in np.geomspace(0.9, 1e-4, 60):
        bounds = np.full(60, share * abs(c).max())
        kept.solve(gram, w, gradient, bounds, np.zeros(60), tol=1e-12)
        assert violation(gram, c, w, bounds, 0.0, False) <= 1e-9
        assert np.count_nonzero(w) <= 15


def test_work_grows_with_what_has_changed():
    gram, c, _ = problem(100, 60, 5)
    kept, w, gradient = ActiveSet(), np.zeros(60), -c.copy()
    kept.solve(gram, w, gradient, np.full(60, 0.05), np.zeros(60), tol=1e-12)
    if live:
        assert kept.work(w) < ActiveSet().work(w)


def test_bad_input():
    gram, c, _ = problem(9, 4, 0)
    with pytest.raises(InputError, match="gram: got shape"):
        ActiveSet().solve(gram[:3, :3], np.zeros(4), -c, np.ones(4), np.ones(4))
    with pytest.raises(InputError, match="bounds"):
        ActiveSet().solve(gram, np.zeros(4), -c, np.ones(3), np.ones(4))
    if live:
        with pytest.raises(TypeError, match="gradient: got"):
            ActiveSet().solve(gram, np.zeros(4), (-c).astype(np.float32), np.ones(4), np.ones(4))

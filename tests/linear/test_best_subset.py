"""Bundled fits against another solver; the exact search against enumeration; bounds that are never wrong."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from ellzero.errors import InputError
from ellzero.linear.best_subset import best_subset
from ellzero.linear.restricted import fit_restricted


def problem(seed, n=60, d=8, signal=1.0):
    g = np.random.default_rng(seed)
    X = g.standard_normal((n, d))
    X = X @ (0.6 * g.standard_normal((d, d)) / np.sqrt(d) + np.eye(d))  # columns that lean on one another
    y = np.where(X[:, :3] @ [1, -1, 0.5] * signal + g.logistic(size=n) > 0, 1.0, -1.0)
    y[:2] = -1, 1
    return X, y


def objective(theta, Z, y, s, alpha):
    margin = y * (Z @ theta[:-1] + theta[-1])
    return s @ np.logaddexp(0, -margin) + alpha / 2 * theta[:-1] @ theta[:-1]


@pytest.mark.parametrize("k", [1, 5, 24, 25, 40])  # gathered columns up to 24, shared products above
@pytest.mark.parametrize("with_gram", [False, True])
def test_a_bundle_gives_what_each_fit_gives_alone(k, with_gram):
    g = np.random.default_rng(k)
    X = g.standard_normal((120, 40)) * g.uniform(0.5, 2, 40)
    labels = np.where(g.standard_normal((3, 120)) + X[:, :3].T > 0, 1.0, -1.0)
    weights = g.dirichlet(np.ones(120), 3)
    supports = np.stack([g.permutation(40)[:k] for _ in range(5)])
    which, alpha = np.array([0, 1, 2, 0, 1]), np.array([1e-3, 1e-2, 1e-1, 1, 1e-2])
    gram = np.stack([X.T @ (s[:, None] * X) for s in weights]) if with_gram else None
    fits = fit_restricted(X, labels, weights, supports, which, alpha, gram=gram)
    for i in range(5):
        Z, y, s = X[:, supports[i]], labels[which[i]], weights[which[i]]
        theta = np.append(fits.coef[i], fits.intercept[i])
        value = objective(theta, Z, y, s, alpha[i])
        assert fits.value[i] == pytest.approx(value, abs=1e-12)
        peer = minimize(objective, theta, (Z, y, s, alpha[i]), method="BFGS", options={"gtol": 1e-9})
        assert value <= peer.fun + 1e-10
        model = LogisticRegression(C=1 / alpha[i], tol=1e-10, max_iter=10_000).fit(Z, y, sample_weight=s)
        np.testing.assert_allclose(theta, np.append(model.coef_, model.intercept_), atol=2e-4)
        slope = s * y / (1 + np.exp(y * (Z @ theta[:-1] + theta[-1])))
        np.testing.assert_allclose(fits.dual[i], slope, atol=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), k=st.integers(1, 3), log_alpha=st.floats(-3, 0))
def test_the_table_finds_what_enumeration_finds(seed, k, log_alpha):
    X, y = problem(seed)
    alpha = 10**log_alpha
    supports = np.array(list(itertools.combinations(range(8), k)))
    s = np.full((1, 60), 1 / 60)
    values = fit_restricted(X, y[None], s, supports, np.zeros(len(supports), int), alpha).value
    found = best_subset(X, y, k, alpha=alpha)
    assert found.optimal
    assert found.value == pytest.approx(values.min(), abs=1e-9)
    assert found.bound <= found.value + 1e-9
    assert values[np.flatnonzero((supports == found.support).all(1))[0]] == pytest.approx(values.min(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_integer_program_agrees_with_the_table(seed):
    X, y = problem(seed, n=80, d=9)
    weights = np.random.default_rng(seed).uniform(0.2, 1, 80)
    table = best_subset(X, y, 3, alpha=0.1, weights=weights)
    program = best_subset(X, y, 3, alpha=0.1, weights=weights, enumerate_up_to=0)
    assert program.optimal
    assert program.value == pytest.approx(table.value, abs=2e-6)
    assert program.support.tolist() == table.support.tolist()


def test_most_supports_are_cut_without_a_fit():
    X, y = problem(0, n=300, d=40, signal=2.0)
    found = best_subset(X, y, 3)
    assert found.optimal
    assert found.support.tolist() == [0, 1, 2]
    print(f"{found.n_fits} fits for 9880 supports")
    assert found.n_fits < 5000


def test_a_search_out_of_time_says_how_far_it_came():
    g = np.random.default_rng(0)
    X, y = g.standard_normal((200, 60)), np.where(g.standard_normal(200) > 0, 1.0, -1.0)
    rushed = best_subset(X, y, 4, time_limit=1e-9)
    assert not rushed.optimal
    assert 0 <= rushed.bound < rushed.value
    full = best_subset(X[:, :12], y, 2)
    assert full.optimal


def test_every_bound_holds_for_every_support():
    """The planes of any dual point lie below the objective everywhere, also where a fit ended early."""
    from ellzero.linear.best_subset import _FAN, _Search

    X, y = problem(3)
    s = np.full(60, 1 / 60)
    supports = np.array(list(itertools.combinations(range(8), 2)))
    zeros = np.zeros(len(supports), int)
    values = fit_restricted(X, y[None], s[None], supports, zeros, 0.05).value
    for tol in (1e-12, 1e-2):
        duals = fit_restricted(X, y[None], s[None], supports, zeros, 0.05, tol=tol).dual
        heights, gains = _Search(X, y, s, 2, 0.05).cuts(duals)
        for t, height in zip(_FAN, heights.T):
            planes = height[:, None] - t * t * gains[:, supports].sum(2)
            assert (planes <= values + 1e-12).all()
    own = np.arange(len(supports))
    exact = fit_restricted(X, y[None], s[None], supports, zeros, 0.05, tol=1e-20).dual
    heights, gains = _Search(X, y, s, 2, 0.05).cuts(exact)
    np.testing.assert_allclose((heights[:, :1] - gains[:, supports].sum(2))[own, own], values, atol=1e-9)


def test_a_constant_column_and_a_copy_do_no_harm():
    X, y = problem(1)
    X = np.column_stack([X, np.ones(60), X[:, 0]])
    found = best_subset(X, y, 2, alpha=0.05)
    plain = best_subset(X[:, :8], y, 2, alpha=0.05)
    assert found.optimal
    assert found.value <= plain.value + 1e-12
    assert 8 not in found.support


@pytest.mark.parametrize(("options", "message"), [
    ({"y": np.ones(60)}, r"y: got the labels \[1.0\], want both -1 and 1"),
    ({"y": np.arange(60.0)}, "y: got the labels"),
    ({"y": np.ones(59)}, r"y: got shape \(59,\)"),
    ({"k": 0}, "k: got 0"), ({"k": 9}, "k: got 9"), ({"alpha": 0}, "alpha: got 0"),
    ({"weights": -np.ones(60)}, "weights: want numbers at least 0"),
    ({"start": np.array([0, 0])}, "start: got"), ({"start": np.array([0, 8])}, "start: got"),
    ({"start": np.array([0])}, "start: got shape"), ({"time_limit": 0}, "time_limit: got 0"),
    ({"enumerate_up_to": -1}, "enumerate_up_to: got -1"),
    ({"X": np.full((60, 8), np.nan)}, "X: 480 entries not finite"),
])  # fmt: skip
def test_bad_input_is_named(options, message):
    X, y = problem(0)
    given = {"X": X, "y": y, "k": 2} | options
    with pytest.raises(InputError, match=message):
        best_subset(given.pop("X"), given.pop("y"), given.pop("k"), **given)

"""The two identities against tight fits of other solvers, loose fits told apart, explanations, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from ellzero.errors import InputError
from ellzero.linear.representer import L1Representer, NuclearRepresenter, refactored
from ellzero.parts.datafits import Huber, Logistic, Quadratic
from ellzero.parts.penalties import L1
from ellzero.parts.penalties_matrix import Nuclear
from ellzero.solvers.coordinate_descent import solve


def lasso(seed=0, n=60, p=20, weights=None):
    g = np.random.default_rng(seed)
    X = g.standard_normal((n, p)) * (g.random((n, p)) < 0.6)
    y = X[:, :4] @ [2, -1, 1, 0.5] + 0.3 * g.standard_normal(n) + 5
    fit = solve(X, y, L1(0.1, weights=weights), tol=1e-14)
    return X, y, fit


def proximal(X, y, datafit, prox, shape, steps=20_000):
    """Accelerated proximal gradient with restarts: slow, plain, and exact to rounding."""
    rate = 1 / (np.linalg.norm(X.reshape(len(X), -1), 2) ** 2 * datafit.lipschitz(y))
    w = v = np.zeros(shape)
    t = 1.0
    for _ in range(steps):
        slope = np.tensordot(datafit.gradient(y, np.tensordot(X, v, len(shape))), X, 1)
        new = prox(v - rate * slope, rate)
        t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        v = new + (before - 1) / t * (new - w)
        if ((v - new) * (new - w)).sum() < 0:
            t, v = 1.0, new
        if abs(new - w).max() < 1e-16:
            break
        w = new
    return w


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_shares_add_up_to_each_prediction(seed):
    X, y, fit = lasso(seed)
    found = L1Representer.of(X, y, fit.coef, fit.intercept, alpha=0.1)
    new = np.random.default_rng(seed + 1).standard_normal((7, 20))
    np.testing.assert_allclose(
        found.contributions(new).sum(1) + fit.intercept, new @ fit.coef + fit.intercept, atol=1e-8
    )
    assert found.error < 1e-8
    assert found.sample_weights.sum() == pytest.approx(0, abs=1e-8)  # the intercept is free


def test_one_share_is_the_kernel_times_the_weight():
    X, y, fit = lasso()
    found = L1Representer.of(X, y, fit.coef, fit.intercept, alpha=0.1)
    residual = y - X @ fit.coef - fit.intercept
    want = residual[3] / (60 * 0.1) * (abs(fit.coef) * X[3] * X[8]).sum()
    assert found.contributions(X)[8, 3] == pytest.approx(want, rel=1e-9)


def test_penalty_and_sample_weights_are_followed():
    g = np.random.default_rng(1)
    weights = g.uniform(0.5, 2, 20)
    X, y, fit = lasso(weights=weights)
    assert L1Representer.of(X, y, fit.coef, fit.intercept, alpha=0.1, weights=weights).error < 1e-8
    shares = g.uniform(0.2, 2, 60)
    root = np.sqrt(shares / shares.mean())
    plain = solve(X * root[:, None], y * root, L1(0.1), fit_intercept=False, tol=1e-14)
    assert L1Representer.of(X, y, plain.coef, alpha=0.1, sample_weight=shares).error < 1e-8
    with pytest.warns(ConvergenceWarning, match="miss the predictions"):
        assert L1Representer.of(X, y, plain.coef, alpha=0.1).error > 1e-2


@pytest.mark.parametrize("datafit", [Logistic(), Huber(0.5)])
def test_other_losses(datafit):
    X, y, _ = lasso()
    y = np.sign(y - y.mean()) if isinstance(datafit, Logistic) else y - 5
    coef = proximal(X, y, datafit, L1(0.05).prox, (20,))
    assert 0 < np.count_nonzero(coef) < 20
    found = L1Representer.of(X, y, coef, alpha=0.05, datafit=datafit)
    assert found.error < 1e-7
    np.testing.assert_allclose(found.contributions(X).sum(1), X @ coef, atol=1e-7)


def test_sparse_rows_give_the_same_and_a_loose_fit_is_told():
    X, y, fit = lasso()
    dense = L1Representer.of(X, y, fit.coef, fit.intercept, alpha=0.1)
    thin = L1Representer.of(sparse.csr_array(X), y, fit.coef, fit.intercept, alpha=0.1)
    np.testing.assert_allclose(thin.contributions(sparse.csr_array(X)), dense.contributions(X), atol=1e-12)
    loose = np.where(fit.coef != 0, fit.coef + 0.05, 0)
    with pytest.warns(ConvergenceWarning, match="lower its tol"):
        L1Representer.of(X, y, loose, fit.intercept, alpha=0.1)


def test_explanations_are_sorted_and_signed():
    X, y, fit = lasso()
    found = L1Representer.of(X, y, fit.coef, fit.intercept, alpha=0.1)
    shares = found.contributions(X[:1])[0]
    told = found.explain(X[0], top=3)
    assert told.proponents.tolist() == np.argsort(-shares)[:3].tolist()
    assert told.opponents.tolist() == np.argsort(shares)[:3].tolist()
    np.testing.assert_allclose(told.support, np.sort(shares)[::-1][:3])
    assert (told.support > 0).all()
    assert (told.against < 0).all()
    empty = L1Representer.of(X, y, np.zeros(20), y.mean(), alpha=9.0)
    assert empty.contributions(X).shape == (60, 60)
    assert not len(empty.explain(X[0]).proponents)


def test_the_low_rank_identity():
    g = np.random.default_rng(0)
    X, Z = g.standard_normal((200, 8)), g.standard_normal((200, 6))
    truth = g.standard_normal((8, 2)) @ g.standard_normal((2, 6))
    y = np.einsum("ij,jk,ik->i", X, truth, Z) + 0.5 * g.standard_normal(200)
    pairs = np.einsum("ij,ik->ijk", X, Z)
    W = proximal(pairs, y, Quadratic(), Nuclear(0.5).prox, (8, 6))
    U, s, Vt = np.linalg.svd(W)
    r = int((s > 1e-9).sum())
    assert 1 <= r < 6
    found = NuclearRepresenter.of(X, Z, y, U[:, :r], s[:r], Vt[:r].T, alpha=0.5)
    assert found.error < 1e-8
    new_x, new_z = g.standard_normal((5, 8)), g.standard_normal((5, 6))
    want = np.einsum("ij,jk,ik->i", new_x, W, new_z)
    np.testing.assert_allclose(found.contributions(new_x, new_z).sum(1), want, atol=1e-7)
    P, Q = (U[:, :r] * s[:r] ** 0.5) @ U[:, :r].T, (Vt[:r].T * s[:r] ** 0.5) @ Vt[:r]
    one = found.sample_weights[4] * (new_x[2] @ P @ X[4]) * (Z[4] @ Q @ new_z[2])
    assert found.contributions(new_x, new_z)[2, 4] == pytest.approx(one, rel=1e-9)
    told = found.explain(new_x[0], new_z[0], top=4)
    assert len(told.proponents) == 4


def test_a_factorisation_of_ratings_by_alternating_least_squares():
    """alpha / 2 (|A|^2 + |B|^2) has the optimum of alpha |A B'|_*; users and items as one-hot rows."""
    g = np.random.default_rng(3)
    users, items = np.divmod(g.permutation(30 * 20)[:400], 20)
    y = (g.standard_normal((30, 3)) @ g.standard_normal((3, 20)))[users, items] + 0.3 * g.standard_normal(400)
    alpha, A, B = 0.01, g.standard_normal((30, 8)), g.standard_normal((20, 8))
    for _ in range(4000):
        for ours, own, other, theirs in ((A, users, items, B), (B, items, users, A)):
            for i in range(len(ours)):
                F = theirs[other[own == i]]
                ours[i] = np.linalg.solve(F.T @ F / 400 + alpha * np.eye(8), F.T @ y[own == i] / 400)
        if _ % 50 == 0 and abs(A.T @ A - B.T @ B).max() < 1e-13 and _ > 1000:
            break
    U, s, V = refactored(A, B)
    np.testing.assert_allclose((U * s) @ V.T, A @ B.T, atol=1e-10)
    keep = s > 1e-6 * s[0]
    X, Z = (
        sparse.csr_array((np.ones(400), (np.arange(400), at)), (400, size)) for at, size in ((users, 30), (items, 20))
    )
    found = NuclearRepresenter.of(X, Z, y, U[:, keep], s[keep], V[:, keep], alpha=alpha)
    assert found.error < 1e-4
    told = found.explain(X[[0]], Z[[0]])
    assert told.proponents.size + told.opponents.size > 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda X, y, w: L1Representer.of(X, y, w, alpha=0), "alpha: got 0"),
    (lambda X, y, w: L1Representer.of(X, y, w[:3], alpha=1), r"coef: got shape \(3,\)"),
    (lambda X, y, w: L1Representer.of(X, y[:5], w, alpha=1), "y: got 5 targets, want 60"),
    (lambda X, y, w: L1Representer.of(X[0], y, w, alpha=1), "X: got shape"),
    (lambda X, y, w: L1Representer.of(X * np.nan, y, w, alpha=1), "X: 1200 entries not finite"),
    (lambda X, y, w: L1Representer.of(X, y, w, alpha=1, weights=np.zeros(20)), "is in use and not penalised"),
    (lambda X, y, w: L1Representer.of(X, y - 5, w, alpha=0.1).explain(X[0], 0), "top: got 0"),
    (lambda X, y, w: L1Representer.of(X, y - 5, w, alpha=0.1).contributions(X[:, :1]), "X: got 1 columns"),
    (lambda X, y, w: NuclearRepresenter.of(X, X, y, np.eye(20), -np.ones(20), np.eye(20), alpha=1), "singular: got -1"),
    (lambda X, y, w: NuclearRepresenter.of(X, X, y, np.eye(19), np.ones(19), np.eye(19), alpha=1), "X: got shape"),
    (lambda X, y, w: refactored(np.eye(3), np.eye(2)), "B: got shape"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:the samples' shares")
def test_bad_input_is_named(call, message):
    X, y, fit = lasso()
    with pytest.raises(InputError, match=message):
        call(X, y, fit.coef)

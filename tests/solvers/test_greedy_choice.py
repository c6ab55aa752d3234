"""Screening in single precision picks what the exact rule picks, also among near ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.rng import rng
from ellzero.solvers.greedy_choice import Exact, Screened, largest, screening_pays
from ellzero.solvers.operators import Centred, Dense
from ellzero.solvers.pursuit import omp


def near_ties(seed, n, p):
    """Columns in clusters of copies that differ by 1e-9 to 1e-3, of very different norms, and one of zeros."""
    generator = rng(seed, "ties")
    X = generator.standard_normal((n, max(1, p // 4)))[:, generator.integers(0, max(1, p // 4), p)]
    X = X + 10.0 ** generator.uniform(-9, -3, p) * generator.standard_normal((n, p))
    X *= np.exp(3 * generator.standard_normal(p))
    X[:, p // 2] = 0
    return X


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), p=st.integers(2, 300), seed=st.integers(0, 999))
def test_both_rules_pick_the_same(n, p, seed):
    X = near_ties(seed, n, p)
    operator = Dense(X)
    norms = operator.column_norms()
    residuals = rng(seed, "residuals").standard_normal((5, n)) * 10.0 ** rng(seed, "size").uniform(-100, 100, (5, 1))
    sizes = 3 * np.linalg.norm(residuals, axis=1)
    closed = (norms == 0) | (rng(seed, "closed").random((5, p)) < 0.3)
    closed[4] = True
    rules = [Exact(operator, norms), Screened(operator, norms)]
    for rule in rules:
        rule.score(residuals, sizes)
    rows = np.array([0, 2, 3, 4])
    (exact, strength), (screened, rough) = [rule.pick(rows, closed[rows]) for rule in rules]
    np.testing.assert_array_equal(exact[strength >= 0], screened[strength >= 0])
    np.testing.assert_allclose(rough, strength, rtol=1e-3)
    assert strength[3] == rough[3] == -1


def test_pursuit_is_the_same_with_and_without_screening(monkeypatch):
    X = near_ties(1, 150, 600)
    Y = rng(2).standard_normal((150, 6))
    assert screening_pays(Dense(X), 16)
    screened = omp(X, Y, 20)
    monkeypatch.setattr("ellzero.solvers.pursuit.screening_pays", lambda operator, products: False)
    for one, other in zip(screened, omp(X, Y, 20)):
        np.testing.assert_array_equal(one.support, other.support)


def test_it_is_for_large_dense_matrices_in_double():
    X = np.ones((300, 300))
    assert screening_pays(Dense(X), 16)
    assert not screening_pays(Dense(X), 15)
    assert not screening_pays(Dense(X[:10]), 100)
    assert not screening_pays(Dense(X.astype(np.float32)), 100)
    assert not screening_pays(Centred(Dense(X)), 100)


def test_ties_within_the_slack_go_to_the_first():
    scores = np.array([[1.0, 3.0, 3.5, 3.4], [0.0, 0.0, 0.0, 0.0]])
    columns, best = largest(scores, np.array([0.2, 0.0]))
    assert columns.tolist() == [2, 0]
    assert best.tolist() == [3.5, 0]
    assert largest(scores, np.array([0.5, 0.0]))[0][0] == pytest.approx(1)

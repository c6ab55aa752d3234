"""OMP against the definition, scikit-learn, and itself in Gram space and in batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import orthogonal_mp

from ellzero.errors import InputError
from ellzero.solvers.operators import Centred, Sparse
from ellzero.solvers.pursuit import omp, omp_gram


def by_definition(X, y, k):
    """Refit by least squares after each choice."""
    support, residual, norms = [], y.copy(), np.linalg.norm(X, axis=0)
    for _ in range(k):
        score = abs(X.T @ residual) / np.where(norms > 0, norms, np.inf)
        score[support] = -1
        support.append(int(np.argmax(score)))
        coef = np.linalg.lstsq(X[:, support], y, rcond=None)[0]
        residual = y - X[:, support] @ coef
    full = np.zeros(X.shape[1])
    full[support] = coef
    return support, full


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 30), p=st.integers(2, 40), seed=st.integers(0, 999), gram=st.booleans())
def test_it_is_the_definition(n, p, seed, gram):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) * np.exp(generator.standard_normal(p))
    y = generator.standard_normal(n)
    k = max(1, min(n, p) // 2)
    support, coef = by_definition(X, y, k)
    found = omp(X, y, k, gram=gram)
    assert list(found.support) == support
    np.testing.assert_allclose(found.coef(), coef, atol=1e-8 * abs(coef).max())
    for m in range(k + 1):
        residual = np.linalg.norm(y - X @ found.coef(m))
        assert found.residual_norms[m] == pytest.approx(residual, abs=1e-7 * np.linalg.norm(y))
    assert (np.diff(found.residual_norms) < 1e-12).all()


@pytest.mark.parametrize("gram", [False, True])
def test_it_is_scikit_learns_for_many_targets(gram):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((50, 120))
    X /= np.linalg.norm(X, axis=0)
    Y = generator.standard_normal((50, 9))
    theirs = orthogonal_mp(X, Y, n_nonzero_coefs=12)
    ours = omp(X, Y, 12, gram=gram)
    np.testing.assert_allclose(np.stack([run.coef() for run in ours], axis=1), theirs, atol=1e-10)
    for t in (0, 8):
        np.testing.assert_array_equal(omp(X, Y[:, t], 12, gram=gram).support, ours[t].support)


@pytest.mark.parametrize("gram", [False, True])
def test_ties_go_to_the_lowest_index_and_copies_are_never_chosen_twice(gram):
    generator = np.random.default_rng(1)
    X = generator.standard_normal((30, 17))
    X = np.hstack([np.zeros((30, 1)), X, X, -2 * X])
    y = generator.standard_normal(30)
    found = omp(X, y, 20, gram=gram)
    assert len(found.support) == 17
    assert found.support.max() <= 17
    assert 0 not in found.support


@pytest.mark.parametrize("gram", [False, True])
def test_it_ends_where_the_residual_is_rounding(gram):
    generator = np.random.default_rng(2)
    X = generator.standard_normal((40, 60))
    y = X[:, [3, 50]] @ [2.0, -1.0]
    found = omp(X, y, 30, gram=gram)
    assert sorted(found.support) == [3, 50]
    assert len(omp(X, np.zeros(40), 5, gram=gram).support) == 0
    assert not omp(X, np.zeros(40), 5, gram=gram).coef().any()


def test_sparse_centred_and_float32():
    generator = np.random.default_rng(3)
    X = sparse.random_array((60, 80), density=0.2, rng=generator, format="csc")
    y = generator.standard_normal(60)
    dense = X.toarray()
    want = omp(dense - dense.mean(axis=0), y, 10)
    found = omp(Centred(Sparse(X)), y, 10)
    np.testing.assert_array_equal(found.support, want.support)
    np.testing.assert_allclose(found.coef(), want.coef(), atol=1e-10)
    single = omp((dense - dense.mean(axis=0)).astype(np.float32), y, 5)
    assert single.coef().dtype == np.float32
    np.testing.assert_array_equal(single.support, want.support[:5])


def test_a_gram_matrix_and_products_are_enough():
    generator = np.random.default_rng(4)
    X, Y = generator.standard_normal((50, 30)), generator.standard_normal((50, 7))
    runs = omp_gram(X.T @ X, X.T @ Y, (Y**2).sum(0), 6)
    for run, want in zip(runs, omp(X, Y, 6)):
        np.testing.assert_array_equal(run.support, want.support)
        np.testing.assert_allclose(run.residual_norms, want.residual_norms, rtol=1e-9)
    one = omp_gram(X.T @ X, X.T @ Y[:, 0], Y[:, 0] @ Y[:, 0], 6, tol=0.9)
    assert 0 < len(one.support) <= len(runs[0].support)
    with pytest.raises(InputError, match=r"gram: got shape \(50, 30\)"):
        omp_gram(X, X.T @ Y, (Y**2).sum(0), 6)
    with pytest.raises(InputError, match=r"product: got shape \(5,\), want \(30\)"):
        omp_gram(X.T @ X, np.ones(5), 1.0, 6)
    with pytest.raises(InputError, match=r"squares: got shape \(1,\), want \(7\)"):
        omp_gram(X.T @ X, X.T @ Y, 1.0, 6)


def test_targets_in_several_chunks(monkeypatch):
    generator = np.random.default_rng(5)
    X, Y = generator.standard_normal((20, 30)), generator.standard_normal((20, 11))
    whole = {gram: omp(X, Y, 5, gram=gram) for gram in (False, True)}
    monkeypatch.setattr("ellzero.solvers.pursuit._BASES", 300)
    monkeypatch.setattr("ellzero.solvers.pursuit._PRODUCTS", 400)
    for gram, runs in whole.items():
        for run, want in zip(omp(X, Y, 5, gram=gram), runs, strict=True):
            np.testing.assert_array_equal(run.support, want.support)


def test_bad_input():
    X, y = np.eye(4), np.ones(4)
    for k in (0, 5, 1.5):
        with pytest.raises(InputError, match="k: got"):
            omp(X, y, k)
    with pytest.raises(InputError, match="y: got 3 rows"):
        omp(X, y[:3], 1)
    with pytest.raises(InputError, match="not finite"):
        omp(X, np.array([1, 2, 3, np.nan]), 1)
    with pytest.raises(InputError, match="tol: got -1"):
        omp(X, y, 1, tol=-1)
    with pytest.raises(InputError, match="k"):
        omp(X, y, 2).coef(-1)

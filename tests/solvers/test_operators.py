"""Every operator is the matrix that it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.solvers.operators import (
    Centred,
    Dense,
    Kronecker,
    Rows,
    RowWeighted,
    Scaled,
    Sparse,
    aslinear,
    centred,
    design,
    need,
)  # fmt: skip

rng = np.random.default_rng(0)


def matrix(n=7, p=5, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, p)).astype(dtype)
    x[generator.random((n, p)) < 0.4] = 0
    x[:, 0] = 0  # an empty column
    return x


def views(x, dtype=np.float64):
    """(operator, the matrix it stands for)."""
    n, p = x.shape
    generator = np.random.default_rng(1)
    scale, weights = generator.standard_normal(p).astype(dtype), generator.random(n).astype(dtype)
    means, rows = generator.standard_normal(p).astype(dtype), np.array([n - 1, 0, 0, 2])
    small = generator.standard_normal((2, 3)).astype(dtype)
    for base in (Dense(x), Dense(np.asfortranarray(x)), Sparse(sparse.csc_array(x)), Sparse(sparse.csr_array(x))):
        yield base, x
        yield Centred(base), x - x.mean(axis=0)
        yield Centred(base, means), x - means
        yield Scaled(base, scale), x * scale
        yield RowWeighted(base, weights), weights[:, None] * x
        yield Rows(base, rows), x[rows]
        yield Kronecker(base, Dense(small)), np.kron(x, small)
        yield Kronecker(Dense(small), base), np.kron(small, x)
        yield Scaled(Centred(Rows(base, rows)), scale), (x[rows] - x[rows].mean(axis=0)) * scale
        yield RowWeighted(Centred(base, means), weights), weights[:, None] * (x - means)
        yield Centred(base, means, weights), x - np.outer(weights, means)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8, deadline=None)
@given(n=st.integers(3, 9), p=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_algebra_is_the_matrix(dtype, n, p, seed):
    tol = 1e-10 if dtype == np.float64 else 1e-4
    generator = np.random.default_rng(seed)
    for operator, full in views(matrix(n, p, seed, dtype), dtype):
        w = generator.standard_normal((full.shape[1], 3)).astype(dtype)
        u = generator.standard_normal((full.shape[0], 3)).astype(dtype)
        some = generator.integers(0, full.shape[1], 4)
        other = generator.integers(0, full.shape[1], 2)
        assert operator.shape == full.shape
        assert operator.dtype == dtype
        for ours, plain in [
            (operator.matmat(w), full @ w), (operator.rmatmat(u), full.T @ u),
            (operator.matvec(w[:, 0]), full @ w[:, 0]), (operator.rmatvec(u[:, 0]), full.T @ u[:, 0]),
            (operator.columns(some), full[:, some]), (operator.gram(some), full[:, some].T @ full[:, some]),
            (operator.gram(some, other), full[:, some].T @ full[:, other]),
            (operator.column_norms(), np.linalg.norm(full, axis=0)),
            (operator.products(some, u[:, 0]), full[:, some].T @ u[:, 0]),
            (operator.restricted(other[:1], w[:1, 0]), full[:, other[:1]] @ w[:1, 0]),
        ]:  # fmt: skip
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, plain, atol=tol, rtol=tol * 10)


def test_sparse_is_never_densified(monkeypatch):
    x = Sparse(sparse.random_array((50, 40), density=0.1, rng=0, format="csc"))
    monkeypatch.setattr(type(x.x), "toarray", lambda *_, **__: pytest.fail("densified"))
    operator = Centred(x)
    operator.rmatvec(operator.matvec(np.ones(40)))
    operator.column_norms()


def test_duplicate_entries_add():
    x = sparse.coo_array((np.array([1.0, 2.0]), (np.array([0, 0]), np.array([1, 1]))), shape=(2, 2)).tocsc()
    np.testing.assert_allclose(Sparse(x).column_norms(), [0, 3])


@pytest.mark.parametrize("kind", [np.asarray, np.asfortranarray, sparse.csc_array])
def test_centred_solves_the_intercept_out(kind):
    x, y = matrix(9, 3), np.arange(9.0)
    operator, target, centring = centred(kind(x), y, True)
    coef = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(operator.matvec(coef) - target, x @ coef + centring.intercept(coef) - y, atol=1e-12)
    free, same, none = centred(kind(x), y, False)
    np.testing.assert_array_equal(same, y)
    assert none.intercept(coef) == 0
    np.testing.assert_allclose(free.matvec(coef), x @ coef)


@pytest.mark.parametrize("kind", [np.ascontiguousarray, np.asfortranarray, sparse.csc_array, sparse.csr_array])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_design_has_the_loss_of_the_weighted_rows(kind, weighted, fit_intercept):
    generator = np.random.default_rng(0)
    x, y = matrix(9, 3), generator.standard_normal(9) + 4
    weight = generator.integers(0, 4, 9).astype(float) if weighted else None
    operator, target, centring = design(kind(x), y, fit_intercept, weight)
    share = np.ones(9) / 9 if weight is None else weight / weight.sum()
    for coef in (np.zeros(3), np.array([1.0, 2.0, 3.0])):
        rest = y - x @ coef
        b = share @ rest if fit_intercept else 0.0
        residual = target - operator.matvec(coef)
        assert residual @ residual / 9 == pytest.approx(share @ (rest - b) ** 2)
        assert centring.intercept(coef) == pytest.approx(b)
        np.testing.assert_allclose(operator.rmatvec(residual) / 9, x.T @ (share * (rest - b)), atol=1e-12)
    np.testing.assert_allclose(
        operator.gram(np.arange(3)), operator.columns(np.arange(3)).T @ operator.columns(np.arange(3))
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [10.0, 1e3, 1e6, 1e9])
def test_a_mean_far_from_zero_costs_no_digits(dtype, far):
    """Also where the algebra would cancel: such a matrix is centred in a copy."""
    generator = np.random.default_rng(0)
    x = (np.round(generator.standard_normal((200, 4)) * 64) / 64 + far).astype(dtype)
    x[:, 3] = far  # constant
    exact = x.astype(np.float64) - x.astype(np.float64).mean(axis=0)
    operator, _, _ = design(np.asfortranarray(x), np.arange(200.0), True)
    residual = generator.standard_normal(200).astype(dtype)
    residual -= residual.mean()
    tol = 2e-3 if dtype == np.float32 else 1e-6
    np.testing.assert_allclose(operator.rmatvec(residual), exact.T @ residual, atol=tol * np.linalg.norm(residual))
    np.testing.assert_allclose(operator.gram(np.arange(4)), exact.T @ exact, atol=tol * 200)
    assert not operator.columns(np.array([3])).any()


def test_bad_input():
    with pytest.raises(InputError, match="X: 1 entry not finite"):
        Dense(np.array([[1.0, np.nan]]))
    with pytest.raises(InputError, match="X: 1 entry not finite"):
        Sparse(sparse.csc_array(np.array([[1.0, np.inf]])))
    with pytest.raises(InputError, match="X: got shape"):
        Dense(np.ones(3))
    with pytest.raises(InputError, match="no entries"):
        Sparse(sparse.csc_array((0, 3)))
    with pytest.raises(InputError, match="scipy sparse"):
        Sparse(np.eye(2))
    with pytest.raises(InputError, match="scale: got shape"):
        Scaled(Dense(np.eye(3)), np.ones(2))
    with pytest.raises(InputError, match="rows: got"):
        Rows(Dense(np.eye(3)), np.array([3]))
    with pytest.raises(InputError, match="row numbers"):
        Rows(Dense(np.eye(3)), np.array([0.5]))
    with pytest.raises(InputError, match=r"omp: got object, which lacks 'rmatvec'"):
        need("omp", object(), "rmatvec")
    with pytest.raises(InputError, match="sample_weight: got -1 to 1"):
        design(np.eye(3), np.ones(3), True, np.array([1, -1, 1]))
    with pytest.raises(InputError, match="sample_weight: got only zeros"):
        design(np.eye(3), np.ones(3), True, np.zeros(3))
    with pytest.raises(InputError, match="sample_weight: got shape"):
        design(np.eye(3), np.ones(3), True, np.ones(2))
    assert aslinear(np.eye(2, dtype=int)).dtype == np.float64

"""ADMM in graph form: against a linear program and a Lasso solved elsewhere, in both array libraries, bad input."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import Lasso

from ellzero.errors import InputError
from ellzero.parts.penalties import L1
from ellzero.rng import rng
from ellzero.solvers.admm import Graph, admm


@dataclass(frozen=True)
class Exactly:
    """The set that holds one point."""

    point: Any

    def prox(self, v, step):
        return self.point


@dataclass(frozen=True)
class HalfSquare:
    """``0.5 |z - y|^2``."""

    y: Any

    def prox(self, v, step):
        return (v + step * self.y) / (1 + step)


def system(n, p, columns=3):
    generator = rng(n, "admm", p)
    A, w = generator.standard_normal((n, p)), np.zeros((p, columns))
    w[:3] = generator.standard_normal((3, columns))
    return A, A @ w + 0.1 * generator.standard_normal((n, columns))


def test_least_sums_of_sizes_are_those_of_a_linear_program():
    A, b = system(12, 20)
    found = admm(A, Exactly(b), L1(1.0), 3, tol=1e-6, max_iter=20_000)
    assert found.converged
    np.testing.assert_allclose(A @ found.coef, b, atol=1e-4)
    for column, coef in zip(b.T, found.coef.T):
        program = linprog(np.ones(40), A_eq=np.hstack([A, -A]), b_eq=column)
        assert abs(coef).sum() == pytest.approx(program.fun, rel=1e-4)


@pytest.mark.parametrize(("n", "p"), [(30, 12), (12, 30)])
def test_it_solves_a_lasso(n, p):
    A, y = system(n, p)
    found = admm(A, HalfSquare(y), L1(2.0), 3, tol=1e-9, max_iter=20_000)
    expected = Lasso(2.0 / n, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(A, y).coef_.T
    assert found.converged
    np.testing.assert_allclose(found.coef, expected, atol=1e-6)
    np.testing.assert_array_equal(found.coef == 0, expected == 0)
    np.testing.assert_allclose(found.image, A @ found.coef, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_give_the_same(dtype):
    torch = pytest.importorskip("torch")
    A, y = (x.astype(dtype) for x in system(30, 12))
    plain = admm(A, HalfSquare(y), L1(2.0), 3)
    found = admm(torch.from_numpy(A), HalfSquare(torch.from_numpy(y)), L1(2.0), 3)
    assert found.coef.dtype is getattr(torch, dtype)
    assert plain.coef.dtype == dtype
    np.testing.assert_allclose(found.coef.numpy(), plain.coef, atol=1e-3 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize(("n", "p"), [(9, 4), (4, 9)])
def test_the_projection_is_the_nearest_pair(n, p):
    A, image = system(n, p, 2)
    coef = rng(0, "coef").standard_normal((p, 2))
    stacked = np.vstack([A, np.eye(p)])
    expected = np.linalg.lstsq(stacked, np.vstack([image, coef]), rcond=None)[0]
    np.testing.assert_allclose(Graph(A).project(image, coef), expected, atol=1e-10)


def test_it_goes_on_where_it_ended():
    A, y = system(30, 12)
    graph = Graph(A)
    first = admm(graph, HalfSquare(y), L1(2.0), 3, tol=1e-7)
    again = admm(graph, HalfSquare(y), L1(1.9), 3, tol=1e-7, start=first)
    cold = admm(graph, HalfSquare(y), L1(1.9), 3, tol=1e-7)
    assert again.converged
    assert again.n_iter < cold.n_iter
    np.testing.assert_allclose(again.coef, cold.coef, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.ones(3)}, r"a: got shape \(3,\)"),
        ({"a": np.array([[np.nan]])}, "a: 1 entry not finite"),
        ({"penalty": np.ones(2)}, "admm: got ndarray, which lacks 'prox'"),
        ({"columns": 0}, "columns: got 0"),
        ({"rho": 0.0}, "rho: got 0.0"),
        ({"relax": 2.0}, "relax: got 2.0"),
        ({"tol": -1.0}, "tol: got -1.0"),
        ({"max_iter": 0}, "max_iter: got 0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"a": np.eye(2), "image": HalfSquare(np.ones((2, 1))), "penalty": L1(1.0), "columns": 1, **change}
    with pytest.raises(InputError, match=message):
        admm(**arguments)


def test_a_start_of_another_shape():
    A, y = system(6, 4)
    first = admm(A, HalfSquare(y), L1(1.0), 3)
    with pytest.raises(InputError, match="start: "):
        admm(A, HalfSquare(y[:, :2]), L1(1.0), 2, start=first)

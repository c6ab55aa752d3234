"""Forests in a graph: no cycle, no fill, exact solutions, every node once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ellzero.errors import InputError
from ellzero.rng import rng
from ellzero.solvers.forests import Forest, Neighbours, forest_partition


def matrix(p, degree, seed):
    """A sparse symmetric positive definite matrix on a random graph."""
    generator = rng(seed, "graph")
    W = sparse.random_array((p, p), density=min(1.0, degree / p), rng=generator, format="csr")
    W = W + W.T - 2 * sparse.dia_array((W.diagonal()[None], [0]), shape=(p, p))
    W = sparse.csr_array(W)
    W.eliminate_zeros()
    degrees = np.asarray(W.sum(axis=1)).ravel() + 0.1
    return sparse.csr_array(sparse.dia_array((degrees[None], [0]), shape=(p, p)) - W)


def is_forest(A, nodes):
    inner = A[nodes][:, nodes]
    edges = (inner.nnz - (inner.diagonal() != 0).sum()) // 2
    return edges == len(nodes) - connected_components(inner, directed=False)[0]


@given(p=st.integers(1, 60), degree=st.floats(0.5, 6), seed=st.integers(0, 999))
def test_a_forest_has_no_cycle_no_fill_and_cannot_grow(p, degree, seed):
    A = matrix(p, degree, seed)
    order = rng(seed, "order").permutation(p).tolist()
    nodes = Neighbours(A).forest(order)
    assert is_forest(A, np.array(nodes))
    for v in set(range(p)) - set(nodes):
        assert not is_forest(A, np.array([*nodes, v]))
    forest = Forest(A, nodes)
    assert sorted(forest.nodes) == sorted(nodes)
    block = A[forest.nodes][:, forest.nodes]
    assert forest.factor.L.nnz + forest.factor.U.nnz == block.nnz + len(nodes)
    wanted = rng(seed, "wanted").standard_normal(len(nodes))
    np.testing.assert_allclose(block @ forest.solve(wanted), wanted, atol=1e-10)


def test_the_order_decides_who_is_taken():
    triangle = sparse.csr_array(np.ones((3, 3)) + 3 * np.eye(3))
    assert Neighbours(triangle).forest([2, 0, 1]) == [2, 0]
    assert Neighbours(triangle).forest([1, 2, 0]) == [1, 2]


@given(p=st.integers(1, 60), degree=st.floats(0.5, 8), seed=st.integers(0, 99))
def test_the_partition_takes_every_node_once(p, degree, seed):
    A = matrix(p, degree, seed)
    parts = forest_partition(A)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(p))
    assert all(is_forest(A, part) for part in parts)


def test_a_grid_takes_two_or_three():
    line = sparse.dia_array((np.ones((2, 30)), [-1, 1]), shape=(30, 30))
    eye = sparse.eye_array(30)
    grid = sparse.csr_array(5 * sparse.eye_array(900) - sparse.kron(line, eye) - sparse.kron(eye, line))
    parts = forest_partition(grid)
    assert len(parts) <= 3
    assert len(parts[0]) >= 450


def test_a_dense_matrix_is_refused():
    with pytest.raises(InputError, match="A: got ndarray, want a scipy sparse matrix"):
        Neighbours(np.eye(3))

"""Bounds and formulas against other ways to the same numbers."""

import math

import numpy as np
import pytest
from scipy import integrate, sparse

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex
from ellzero.retrieval.growth import Growth, false_positive_plot, grow_index
from ellzero.retrieval.theory import (
    effective_dimension,
    empirical_margin,
    expected_overlap,
    false_positive_rate,
    flips_at_most,
    flops_uniformity,
    max_index_size,
    projection_dimension,
)  # fmt: skip


@pytest.mark.parametrize("k", [2, 3, 7.5, 40])
@pytest.mark.parametrize("s", [-0.9, -0.2, 0.0, 0.3, 0.8, 1.0])
def test_the_share_of_a_cap_is_its_integral(k, s):
    """The angle to a random direction has the density sin(t)^(k - 2)."""
    whole = integrate.quad(lambda t: math.sin(t) ** (k - 2), 0, math.pi)[0]
    cap = integrate.quad(lambda t: math.sin(t) ** (k - 2), 0, math.acos(s))[0]
    assert false_positive_rate(s, k) == pytest.approx(cap / whole, abs=1e-8)
    assert false_positive_rate(s, k, 3) == pytest.approx(1 - (1 - cap / whole) ** 3, abs=1e-7)


def test_sizes_are_the_inverse_and_tiny_rates_are_kept():
    for s, k, error in ((0.5, 32, 0.05), (0.2, 8, 0.5), (0.7, 64, 0.01)):
        n = max_index_size(s, k, error)
        assert false_positive_rate(s, k, n) <= error < false_positive_rate(s, k, n + max(n * 1e-9, 1))
    assert max_index_size(1.0, 8) == math.inf
    assert max_index_size(-1.0, 8) == 0
    assert 0 < false_positive_rate(0.9, 128, 10) == pytest.approx(10 * false_positive_rate(0.9, 128), rel=1e-6)
    assert false_positive_rate(np.array([0.1, 0.5]), np.array([[8], [16]]), 100).shape == (2, 2)
    assert false_positive_rate(0.3, 8, 0) == 0
    for bad in ((1.5, 8, 1), (0.5, 1, 1), (0.5, 8, -1)):
        with pytest.raises(InputError):
            false_positive_rate(*bad)


def test_the_dimension_is_the_least_that_the_bound_accepts():
    for mu, error, documents in ((0.1, 0.05, 1), (0.5, 0.01, 1000), (1.0, 0.3, 1)):
        k = projection_dimension(mu, error, documents=documents)
        assert flips_at_most(mu, k, documents=documents) <= error * (1 + 1e-9)
        assert k == 1 or flips_at_most(mu, k - 1, documents=documents) > error * (1 - 1e-9)
    for bad in (0.0, -0.1, 1.2):
        with pytest.raises(InputError, match="margin"):
            projection_dimension(bad)


def test_margins_by_hand():
    Q, X = np.array([[1.0, 1, 0], [0, 0, 1]]), np.array([[2.0, 1, 0], [1, 0, 0], [0, 1, 5], [1, 1, 5]])
    margins, ranked = empirical_margin(sparse.csr_array(Q), sparse.csr_array(X), depth=3)
    assert ranked.tolist() == [[0, 3, 1], [2, 3, 0]]
    assert margins[0, 0] == pytest.approx(1 / (math.sqrt(2) * math.sqrt(26)))
    assert margins[0, 1] == pytest.approx(2 / (math.sqrt(2) * math.sqrt(2)))
    assert math.isnan(margins[1, 0])  # a tie
    with pytest.raises(InputError, match="depth"):
        empirical_margin(Q, X, depth=5)


def test_effective_dimension_of_known_spectra():
    draw = np.random.default_rng(0)
    assert effective_dimension(draw.standard_normal((20_000, 10))) == pytest.approx(10, rel=0.01)
    assert effective_dimension(np.outer(draw.standard_normal(50), np.ones(8)) + 3) == pytest.approx(1)
    with pytest.raises(InputError, match="all rows are equal"):
        effective_dimension(np.ones((4, 3)))


def test_overlap_is_the_mean_over_all_pairs_also_of_an_index():
    draw = np.random.default_rng(1)
    X, Q = draw.random((30, 12)) < 0.3, draw.random((7, 12)) < 0.2
    pairs = (Q[:, None] & X[None]).sum(2).mean()
    assert expected_overlap(Q, X) == pytest.approx(pairs)
    index = ImpactIndex.build(sparse.csr_array(X.astype(np.float32)))
    assert expected_overlap(sparse.csr_array(Q.astype(np.float32)), index) == pytest.approx(pairs)
    assert flops_uniformity(index) == pytest.approx(flops_uniformity(X))
    assert flops_uniformity(np.eye(6)) == pytest.approx(1)
    assert flops_uniformity(np.eye(6)[:, [0] * 3 + [1] * 3][:1]) >= 1
    assert flops_uniformity(np.array([[1, 0, 0, 0]])) == pytest.approx(4)
    with pytest.raises(InputError, match="columns"):
        expected_overlap(Q[:, :5], X)
    with pytest.raises(InputError, match="no entries"):
        flops_uniformity(np.zeros((3, 3)))


def test_a_grown_collection_keeps_what_is_to_be_found():
    draw = np.random.default_rng(2)
    D, E = draw.standard_normal((200, 12)), draw.standard_normal((10, 12))
    best = np.argmax(E @ D.T, 1)
    qrels, ids = {str(q): {f"d{d}": 1} for q, d in enumerate(best)}, [f"d{d}" for d in range(200)]
    systems = {"whole": (E, D), "part": (E[:, :3], D[:, :3]), "sparse": (sparse.csr_array(E), sparse.csr_array(D))}
    grown = grow_index(systems, qrels, range(10), ids, [20, 60, 200], seeds=(0, 1), measure="RR@10")
    np.testing.assert_array_equal(grown.values["whole"], 1.0)
    np.testing.assert_array_equal(grown.values["sparse"], 1.0)
    part = grown.values["part"]
    assert part.shape == (2, 3)
    assert (np.diff(part, axis=1) <= 1e-12).all()  # nested: a document more never helps a fixed answer
    assert grown.losses()["part"] > 0.2
    with pytest.raises(InputError, match="sizes"):
        grow_index(systems, qrels, range(10), ids, [2])
    with pytest.raises(InputError, match="systems"):
        grow_index({"bad": (E, D[:5])}, qrels, range(10), ids, [20])


def test_plots_hold_a_line_each():
    pytest.importorskip("plotly")
    figure = false_positive_plot(0.5, (8, 64))
    assert [line.name for line in figure.data] == ["8 dimensions", "64 dimensions"]
    assert all(np.diff(line.y).min() >= 0 for line in figure.data)
    drawn = Growth([10, 100], {"a": np.array([[0.5, 0.25], [0.5, 0.3]])}, "nDCG@10").plot()
    np.testing.assert_allclose(drawn.data[0].y, [1, 0.55])

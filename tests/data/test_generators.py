"""Generators: the stated ratio, the exact counts and the stated structure are what comes out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.data import generators as g
from ellzero.errors import InputError
from ellzero.registry import entries

MODEST = settings(deadline=None, max_examples=40)
SEEDS, SNRS = st.integers(0, 1000), st.floats(0.01, 1e4) | st.just(float("inf"))
CORRELATIONS = st.one_of(
    st.just(None),
    st.builds(g.AR, st.floats(-0.95, 0.95)),
    st.builds(g.Equicorrelated, st.floats(0, 0.95)),
    st.builds(g.Block, st.floats(0, 0.95), st.integers(1, 5)),
)


def ratio(signal, observed):
    noise = ((observed - signal) ** 2).sum()
    return np.inf if noise == 0 else (signal**2).sum() / noise


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


@MODEST
@given(
    n=st.integers(1, 30), p=st.integers(1, 30), share=st.floats(0, 1), snr=SNRS, correlation=CORRELATIONS, seed=SEEDS,
    amplitude=st.sampled_from(["signs", "normal", "decay"]),
)  # fmt: skip
def test_planted_regression(n, p, share, snr, correlation, seed, amplitude):
    k = round(share * p)
    arguments = {"snr": snr, "correlation": correlation, "amplitude": amplitude, "seed": seed}
    found = g.planted_regression(n, p, k, **arguments)
    assert found.X.shape == (n, p)
    assert np.array_equal(np.flatnonzero(found.coef), found.support)
    assert len(found.support) == k
    assert same(found, g.planted_regression(n, p, k, **arguments))
    if k == 0:
        assert found.snr == 0
        if np.isfinite(snr):
            assert np.sqrt((found.y**2).mean()) == pytest.approx(1)
    else:
        assert ratio(found.X @ found.coef, found.y) == pytest.approx(snr, rel=1e-6)
        rms = np.sqrt(((found.y - found.X @ found.coef) ** 2).mean())
        assert found.noise_level == pytest.approx(rms, rel=1e-6)


def test_amplitudes():
    sizes = {kind: abs(g.planted_regression(5, 40, 8, amplitude=kind).coef) for kind in ("signs", "decay", "normal")}
    assert sorted(sizes["signs"])[-8:] == [1] * 8
    np.testing.assert_allclose(sorted(sizes["decay"])[-8:], sorted(1 / np.arange(1, 9)))
    assert sizes["normal"][sizes["normal"] > 0].min() >= 0.1
    signs = g.planted_regression(5, 400, 400).coef
    assert abs(signs.mean()) < 0.2


@pytest.mark.parametrize(
    "correlation", [g.Independent(), g.AR(0.7), g.AR(-0.4), g.Equicorrelated(0.5), g.Block(0.6, 3)]
)
def test_the_design_has_the_stated_covariance(correlation):
    """60,000 rows: an entry's standard error is at most 0.006, and 36 entries are looked at."""
    X = correlation.draw(np.random.default_rng(0), 60_000, 6)
    stated = correlation.covariance(6)
    np.testing.assert_allclose(X.T @ X / len(X), stated, atol=0.03)
    np.testing.assert_allclose(np.diag(stated), 1)
    assert np.linalg.eigvalsh(stated)[0] > 0


def test_the_stated_covariances_are_the_known_ones():
    np.testing.assert_allclose(g.AR(0.5).covariance(3), [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    np.testing.assert_allclose(g.Equicorrelated(0.5).covariance(2), [[1, 0.5], [0.5, 1]])
    np.testing.assert_allclose(g.Block(0.5, 2).covariance(3), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])


def test_the_support_is_drawn_evenly():
    counts = np.bincount(np.concatenate([g.planted_regression(1, 6, 2, seed=s).support for s in range(600)]))
    assert counts.sum() == 1200
    assert abs(counts - 200).max() < 60  # the standard deviation is 11.5


@MODEST
@given(
    n=st.integers(1, 20), d=st.integers(1, 12), atoms=st.integers(1, 20), share=st.floats(0, 1), snr=SNRS,
    positive=st.booleans(), seed=SEEDS,
)  # fmt: skip
def test_sparse_signals(n, d, atoms, share, snr, positive, seed):
    k = round(share * atoms)
    found = g.sparse_signals(n, d, atoms, k, snr=snr, positive=positive, seed=seed)
    assert (np.count_nonzero(found.codes, axis=1) == k).all()
    np.testing.assert_allclose(np.linalg.norm(found.dictionary, axis=1), 1)
    sizes = abs(found.codes[found.codes != 0])
    assert ((sizes >= 0.5) & (sizes <= 1.5)).all()
    assert not positive or (found.codes >= 0).all()
    if atoms <= d:
        np.testing.assert_allclose(found.dictionary @ found.dictionary.T, np.eye(atoms), atol=1e-12)
    if k and found.noise_level:
        assert ratio(found.codes @ found.dictionary, found.signals) == pytest.approx(snr, rel=1e-6)
    elif k:
        np.testing.assert_array_equal(found.signals, found.codes @ found.dictionary)
    assert same(found, g.sparse_signals(n, d, atoms, k, snr=snr, positive=positive, seed=seed))


@MODEST
@given(
    trees=st.integers(1, 4), branching=st.lists(st.integers(1, 3), max_size=3), exclusive=st.booleans(), seed=SEEDS,
    d=st.integers(1, 40),
)  # fmt: skip
def test_planted_features(trees, branching, exclusive, seed, d):
    make = lambda: g.planted_features(  # noqa: E731
        60, d, trees=trees, branching=branching, p_root=0.5, p_child=0.3, exclusive=exclusive, seed=seed, dtype=float
    )
    found = make()
    widths = [trees * int(np.prod(branching[:level])) for level in range(len(branching) + 1)]
    assert found.activations.shape == (60, sum(widths))
    assert found.directions.shape == (sum(widths), d)
    roots = np.flatnonzero(found.parent < 0)
    assert roots.tolist() == list(range(trees))
    on = found.activations > 0
    for child in range(trees, sum(widths)):
        assert found.parent[child] < child
        assert not (on[:, child] & ~on[:, found.parent[child]]).any()
    children = np.bincount(found.parent[trees:], minlength=sum(widths))
    assert children.tolist() == [count for level, count in enumerate([*branching, 0]) for _ in range(widths[level])]
    if exclusive:
        for parent in range(sum(widths)):
            assert on[:, found.parent == parent].sum(axis=1).max(initial=0) <= 1
    np.testing.assert_allclose(found.x, found.activations @ found.directions, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1)
    assert same(found, make())


@pytest.mark.parametrize("exclusive", [False, True])
def test_feature_probabilities(exclusive):
    found = g.planted_features(40_000, 16, trees=2, branching=(3,), p_root=0.4, p_child=0.3, exclusive=exclusive)
    on = found.activations > 0
    np.testing.assert_allclose(on[:, :2].mean(axis=0), 0.4, atol=0.015)
    np.testing.assert_allclose(on[:, 2:].mean(axis=0), 0.12, atol=0.01)
    assert found.mean_l0 == pytest.approx(2 * 0.4 + 6 * 0.12, abs=0.04)
    assert found.x.dtype == np.float32


def test_superposed_features():
    found = g.superposed_features(20_000, 8, 60, mean_l0=5, zipf=1.5, snr=10, dtype=float)
    rates = (found.activations > 0).mean(axis=0)
    assert found.mean_l0 == pytest.approx(5, abs=0.1)
    assert rates[0] == 1  # the share of the first would exceed 1, so it is capped and the rest solved again
    assert rates[9] / rates[39] == pytest.approx(4**1.5, rel=0.25)
    assert ratio(found.activations @ found.directions, found.x) == pytest.approx(10)
    assert found.directions.shape == (60, 8)
    assert (g.superposed_features(50, 4, 6, mean_l0=6).activations > 0).all()


def test_streams_are_apart():
    """Another seed changes everything; another ratio changes the noise's size and nothing else."""
    a, b, c = (g.planted_regression(20, 10, 3, snr=s, seed=i) for s, i in ((1, 0), (1, 1), (4, 0)))
    assert not np.array_equal(a.X, b.X)
    assert np.array_equal(a.X, c.X)
    assert np.array_equal(a.coef, c.coef)
    np.testing.assert_allclose(a.y - a.X @ a.coef, 2 * (c.y - c.X @ c.coef))


BAD = [
    (lambda: g.planted_regression(0, 3, 1), "n: got 0"),
    (lambda: g.planted_regression(3, 0, 0), "p: got 0"),
    (lambda: g.planted_regression(3, 3, 4), "k: got 4"),
    (lambda: g.planted_regression(3, 3, -1), "k: got -1"),
    (lambda: g.planted_regression(3, 3, 1.0), "k: got 1.0"),
    (lambda: g.planted_regression(3, 3, 1, snr=0), "snr"),
    (lambda: g.planted_regression(3, 3, 1, snr=float("nan")), "snr"),
    (lambda: g.planted_regression(3, 3, 1, amplitude="sign"), "did you mean 'signs'"),
    (lambda: g.planted_regression(3, 3, 1, seed=-1), "seed"),
    (lambda: g.planted_regression(3, 3, 1, correlation=0.5), "correlation: got 0.5"),
    (lambda: g.AR(1), "rho"),
    (lambda: g.Equicorrelated(-0.1), "rho"),
    (lambda: g.Block(0.5, 0), "size"),
    (lambda: g.sparse_signals(3, 3, 4, 5), "k: got 5"),
    (lambda: g.sparse_signals(3, 0, 4, 1), "d: got 0"),
    (lambda: g.sparse_signals(3, 3, 4, 1, snr=-1), "snr"),
    (lambda: g.planted_features(0), "n: got 0"),
    (lambda: g.planted_features(3, trees=0), "trees"),
    (lambda: g.planted_features(3, branching=(0,)), "branching"),
    (lambda: g.planted_features(3, p_root=0), "p_root"),
    (lambda: g.planted_features(3, p_child=1.5), "p_child"),
    (lambda: g.planted_features(3, p_child=0.5, exclusive=True), "3 exclusive children"),
    (lambda: g.superposed_features(3, 2, 4, mean_l0=5), "mean_l0"),
    (lambda: g.superposed_features(3, 2, 0), "features"),
    (lambda: g.superposed_features(3, 2, 4, zipf=-1), "zipf"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_every_generator_is_registered_with_an_example():
    found = {entry.name: entry for entry in entries("generator")}
    assert set(found) >= {"planted_regression", "sparse_signals", "planted_features", "superposed_features"}
    for entry in found.values():
        assert entry.example() is not None

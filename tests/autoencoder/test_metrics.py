"""Explained variance over a whole set, against one sum in float64; PCA against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import decomposition

from ellzero.autoencoder import PCA, SparseAutoencoder, evaluate
from ellzero.autoencoder.metrics import explained_variance
from ellzero.errors import InputError


def rows(n, d=7, seed=0):
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((n, d)) @ draw.standard_normal((d, d)) + 4).astype(np.float32)


@pytest.mark.parametrize("n", [1, 5, 2047, 2048, 4097])
def test_variance_is_summed_over_the_whole_set_before_it_is_divided(n):
    sae, x = SparseAutoencoder.from_preset("topk", d_in=7, d_sae=20, k=2), rows(n)
    x[: n // 2] *= 100  # the parts that the sums are made in differ much in spread
    found = evaluate(sae, x)
    with torch.no_grad():
        x_hat, z = sae(torch.from_numpy(x)).double().numpy(), sae.encode(x).numpy()
    error = ((x.astype(np.float64) - x_hat) ** 2).sum()
    spread = ((x - x.mean(0, dtype=np.float64)) ** 2).sum()
    if n == 1:
        assert found["fvu"] == np.inf
    else:
        assert found["fvu"] == pytest.approx(error / spread, rel=1e-6)
    assert found["explained_variance"] == explained_variance(sae, x) == 1 - found["fvu"]
    assert found["l0"] == (z != 0).sum() / n
    assert found["dead"] == (z == 0).all(0).mean()


def test_a_large_mean_costs_no_digits():
    x = rows(3000).astype(np.float64) - 4
    for shift in (0.0, 1000.0):
        part = (x + shift).astype(np.float32)
        assert evaluate(PCA.fit(part, 3), part)["fvu"] == pytest.approx(evaluate(PCA.fit(x, 3), x)["fvu"], rel=1e-3)


def test_nothing_to_explain_is_explained_by_the_mean():
    x = np.ones((5, 3), np.float32)
    assert evaluate(PCA(torch.eye(3)[:1], torch.ones(3)), x)["fvu"] == 0.0


@pytest.mark.parametrize("x", [np.ones((0, 4), np.float32), np.ones(4, np.float32), np.full((2, 4), np.nan), [[1.0]]])
def test_rows_that_cannot_be_judged_are_refused(x):
    with pytest.raises(InputError, match="x: "):
        evaluate(SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2), x)


@given(n=st.integers(2, 60), d=st.integers(1, 9), seed=st.integers(0, 99), data=st.data())
def test_components_are_those_of_scikit_learn(n, d, seed, data):
    k = data.draw(st.integers(1, min(n - 1, d)))
    x = rows(n, d, seed)
    ours, theirs = PCA.fit(x, k), decomposition.PCA(k, svd_solver="full").fit(x.astype(np.float64))
    z = ours.encode(torch.from_numpy(x))
    back = theirs.inverse_transform(theirs.transform(x.astype(np.float64)))
    scale = abs(x).max()
    np.testing.assert_allclose(ours.decode(z), back, atol=1e-4 * scale)
    np.testing.assert_allclose(ours.components @ ours.components.T, np.eye(k), atol=1e-5)
    assert evaluate(ours, x)["explained_variance"] == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-4)
    assert (ours.components.gather(1, ours.components.abs().argmax(1, keepdim=True)) > 0).all()
    smaller = PCA.fit(x, max(k - 1, 1))
    assert torch.equal(smaller.components, ours.components[: max(k - 1, 1)])


def test_a_pca_comes_back_from_its_file(tmp_path):
    x = rows(50)
    saved = PCA.fit(x, 3)
    saved.save(tmp_path)
    loaded = PCA.load(tmp_path)
    assert torch.equal(loaded.components, saved.components)
    assert torch.equal(loaded.encode(torch.from_numpy(x)), saved.encode(torch.from_numpy(x)))
    content = (tmp_path / "pca.safetensors").read_bytes()
    for damaged in (content[:-7], b"", b"no file of ours"):
        (tmp_path / "pca.safetensors").write_bytes(damaged)
        with pytest.raises(InputError, match=r"pca\.safetensors"):
            PCA.load(tmp_path)


def test_pca_refuses_what_it_cannot_code():
    with pytest.raises(InputError, match="k: got 8"):
        PCA.fit(rows(20), 8)
    with pytest.raises(InputError, match="k: got 0"):
        PCA.fit(rows(20), 0)
    with pytest.raises(InputError, match="x: "):
        PCA.fit(rows(20)[0], 1)
    with pytest.raises(InputError, match=r"x: got shape \(2, 6\)"):
        PCA.fit(rows(20), 2).encode(torch.zeros(2, 6))

"""Explained variance over a whole set, against one sum in float64; PCA against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import decomposition

from ellzero.autoencoder import PCA, SparseAutoencoder, evaluate
from ellzero.autoencoder.metrics import coherence_bound, density_histogram, explained_variance, firing_shares
from ellzero.data import FeatureModel
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


class Linear:
    """Codes by one matrix, with signs: what the metrics ask of an autoencoder and nothing more."""

    def __init__(self, W_enc, W_dec, b_dec, least=0.0):
        self.W_enc, self.W_dec, self.b_dec = (torch.as_tensor(w, dtype=torch.float32) for w in (W_enc, W_dec, b_dec))
        self.d_in, self.d_sae, self.least = len(self.b_dec), len(self.W_dec), least

    def encode(self, x):
        z = (x - self.b_dec) @ self.W_enc
        return z.where(z.abs() > self.least, torch.zeros(()))

    def decode(self, z):
        return z @ self.W_dec + self.b_dec


def linear(d=6, m=9, least=1.0, seed=0):
    draw = np.random.default_rng(seed)
    return Linear(draw.standard_normal((d, m)), draw.standard_normal((m, d)), draw.standard_normal(d), least)


@pytest.mark.parametrize("n", [1, 60, 5000])
def test_sizes_angles_and_shares_are_those_of_one_computation_over_all_rows(n):
    sae, x = linear(), rows(n, 6, seed=1)
    if n > 1:
        x[3] = 0
    found = evaluate(sae, x, dense_above=0.6)
    z = sae.encode(torch.from_numpy(x)).double().numpy()
    assert n == 1 or (z < 0).any()
    x, x_hat = x.astype(np.float64), z @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy()
    size, size_hat = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    some = size > 0
    assert found["shrinkage"] == pytest.approx((size_hat[some] / size[some]).mean(), rel=1e-5)
    assert found["cosine"] == pytest.approx(((x * x_hat).sum(1)[some] / (size * size_hat)[some]).mean(), rel=1e-5)
    codes = np.linalg.norm(z * np.linalg.norm(sae.W_dec.double().numpy(), axis=1), axis=1)
    away = np.linalg.norm(x - sae.b_dec.double().numpy(), axis=1)
    assert found["norm_match"] == pytest.approx(np.linalg.lstsq(away[:, None], codes)[0][0], rel=1e-5)
    shares = (z != 0).mean(0)
    assert found["l0"] == pytest.approx((z != 0).sum(1).mean())
    assert found["dense"] == (shares > 0.6).mean()
    np.testing.assert_allclose(firing_shares(sae, x.astype(np.float32)), shares)


@pytest.mark.parametrize("cuts", [[0], [1, 700, 701], [2047, 2500, 2500]])
def test_a_stream_of_batches_scores_as_the_whole(cuts):
    sae, x = linear(), rows(3000, 6)
    parts = np.split(x, cuts)
    for batches in (parts, (torch.from_numpy(part) for part in parts)):
        batches = iter(batches)
        found, whole = evaluate(sae, batches), evaluate(sae, x)
        assert found == pytest.approx(whole, rel=1e-9)
    np.testing.assert_array_equal(firing_shares(sae, iter(parts)), firing_shares(sae, x))


def test_codes_of_an_orthogonal_dictionary_are_as_long_as_what_they_tell():
    model = FeatureModel(16, 16, probability=0.2, magnitude="exponential", orthogonalize=300)
    sae = Linear(model.atoms.T, model.atoms, np.zeros(16), least=1e-4)
    found = evaluate(sae, model.sample(2000)[0])
    assert found["norm_match"] == pytest.approx(1, abs=1e-3)
    assert found["fvu"] < 1e-5
    stretched = Linear(model.atoms.T / 3, model.atoms * 3, np.zeros(16), least=1e-4)
    assert evaluate(stretched, model.sample(2000)[0])["norm_match"] == pytest.approx(1, abs=1e-3)


@given(d=st.integers(2, 8), m=st.integers(1, 12), seed=st.integers(0, 200))
def test_the_bound_on_coherence_is_one(d, m, seed):
    model = FeatureModel(d, m, probability=0.4, magnitude="exponential", seed=seed)
    f, atoms = torch.from_numpy(model.sample(50)[1]), torch.from_numpy(model.atoms)
    cosines = (model.atoms.astype(np.float64) @ model.atoms.T) - np.eye(m)
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], f.shape).astype(np.float32))
    for codes in (f, f * signs):
        assert coherence_bound(codes, atoms) <= abs(cosines).max() + 1e-6
    if m > 1:
        pair = torch.zeros(1, m)
        pair[0, :2] = torch.tensor([2.0, 3.0])
        # atoms 0 and 1 alone: the bound is their cosine
        assert coherence_bound(pair, 5 * atoms) == pytest.approx(abs(cosines[0, 1]), abs=1e-6)
    assert coherence_bound(torch.eye(m), atoms) == 0


@given(st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), min_size=1, max_size=50), st.integers(1, 30))
def test_every_latent_is_in_one_bin_or_dead(shares, bins):
    found = density_histogram(shares, bins=bins, lowest=1e-4)
    assert found["counts"].sum() + found["dead"] == len(shares)
    assert found["dead"] == shares.count(0.0)
    for i, count in enumerate(found["counts"]):
        low, high = found["edges"][i], found["edges"][i + 1]
        low = 0 if i == 0 else low
        inside = sum((low <= s < high or (i == bins - 1 and s == high)) and s > 0 for s in shares)
        assert count == inside


def test_what_is_no_share_is_refused():
    with pytest.raises(InputError, match="shares: got"):
        density_histogram([0.5, 1.5])
    with pytest.raises(InputError, match="lowest: got 0"):
        density_histogram([0.5], lowest=0)
    with pytest.raises(InputError, match="x: got no rows"):
        evaluate(linear(), iter([]))
    with pytest.raises(InputError, match="dense_above: got 2"):
        evaluate(linear(), rows(5, 6), dense_above=2)
    with pytest.raises(InputError, match="want"):
        evaluate(linear(), iter([rows(5, 6), rows(5, 7)]))


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

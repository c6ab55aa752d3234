"""Scores against planted features: oracles by brute force, perfect and useless dictionaries, refusals."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.autoencoder.recovery import (
    absolute_cosines,
    firing,
    match,
    mean_correlation,
    recovered,
    recovery,
    uniqueness,
)
from ellzero.data import FeatureModel
from ellzero.errors import InputError


class Known:
    """Codes that are given, row by row."""

    def __init__(self, W_dec, table):
        self.W_dec, self.table = torch.as_tensor(W_dec), table

    def encode(self, x):
        return torch.stack([self.table[tuple(row.tolist())] for row in x])


@given(d=st.integers(2, 5), m=st.integers(1, 5), n=st.integers(1, 5), seed=st.integers(0, 500))
def test_the_pairing_is_the_best_of_all(d, m, n, seed):
    draw = np.random.default_rng(seed)
    W, atoms = draw.standard_normal((m, d)), draw.standard_normal((n, d))
    cosines = np.array([[abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for b in atoms] for a in W])
    small, large = min(m, n), max(m, n)
    table = cosines if m <= n else cosines.T
    best = max(sum(table[i, p[i]] for i in range(small)) for p in permutations(range(large), small))
    found = match(W, atoms)
    assert len(found.latents) == small == len(set(found.latents)) == len(set(found.features))
    np.testing.assert_allclose(found.cosines, cosines[found.latents, found.features])
    assert found.cosines.sum() == pytest.approx(best)
    assert (np.diff(found.features) > 0).all()
    assert mean_correlation(W, atoms) == pytest.approx(best / small)
    assert recovered(W, atoms, 0.7) == (found.cosines > 0.7).sum() / n
    assert uniqueness(W, atoms) == len({int(row.argmax()) for row in cosines}) / m


def test_order_sign_and_length_of_latents_do_not_matter():
    atoms = FeatureModel(10, 30).atoms
    draw = np.random.default_rng(0)
    order = draw.permutation(30)
    W = torch.from_numpy(atoms[order] * draw.uniform(0.5, 2, (30, 1)).astype(np.float32))
    W[::2] *= -1
    found = match(W, atoms)
    np.testing.assert_array_equal(order[found.latents], np.arange(30))
    assert mean_correlation(W, atoms) == pytest.approx(1, abs=1e-6)
    assert recovered(W, atoms) == uniqueness(W, atoms) == 1
    assert uniqueness(W[:1].expand(6, -1), atoms) == pytest.approx(1 / 6)
    assert recovered(W[:15], atoms) == 0.5
    assert mean_correlation(torch.zeros(4, 10), atoms) == 0


@given(n=st.integers(1, 40), m=st.integers(1, 6), features=st.integers(1, 6), seed=st.integers(0, 300))
def test_firing_is_scored_as_by_scikit_learn(n, m, features, seed):
    draw = np.random.default_rng(seed)
    z = draw.standard_normal((n, m)) * (draw.random((n, m)) < 0.4)
    f = draw.random((n, features)) * (draw.random((n, features)) < 0.4)
    latents = draw.integers(-1, m, features)
    found = firing(torch.from_numpy(z), f, latents)
    for i, latent in enumerate(latents):
        told = z[:, latent] != 0 if latent >= 0 else np.zeros(n, bool)
        if not f[:, i].any():
            assert np.isnan([found.precision[i], found.recall[i], found.f1[i]]).all()
            continue
        want = precision_recall_fscore_support(f[:, i] != 0, told, average="binary", zero_division=0)[:3]
        np.testing.assert_allclose([found.precision[i], found.recall[i], found.f1[i]], want)


def test_all_scores_at_once_are_each_one_alone():
    model = FeatureModel(12, 20, probability=0.15, seed=4)
    x, f = model.sample(3000)
    draw = np.random.default_rng(0)
    W = (model.atoms + 0.3 * draw.standard_normal((20, 12))).astype(np.float32)[draw.permutation(20)[:16]]
    z = torch.from_numpy(draw.standard_normal((len(x), 16)).astype(np.float32)).relu()
    sae = Known(W, {tuple(row.tolist()): code for row, code in zip(torch.from_numpy(x), z)})
    table = sae.table
    z = torch.stack([table[tuple(row.tolist())] for row in torch.from_numpy(x)])  # equal rows have one code
    found = recovery(sae, model.atoms, x, f, above=0.8)
    pairs = match(W, model.atoms)
    latents = np.full(20, -1)
    latents[pairs.features] = pairs.latents
    alone = firing(z, f, latents)
    assert found == pytest.approx({
        "mcc": mean_correlation(W, model.atoms), "recovered": recovered(W, model.atoms, 0.8),
        "uniqueness": uniqueness(W, model.atoms), "precision": alone.precision.mean(),
        "recall": alone.recall.mean(), "f1": alone.f1.mean(),
    })  # fmt: skip


def test_a_trained_autoencoder_finds_the_planted_features_and_a_fresh_one_does_not():
    model = FeatureModel(16, 24, probability=0.08, magnitude="folded_normal", size=1.5, spread=0.3, noise=0.02)
    x, f = model.sample(8000)
    sae = SparseAutoencoder.from_preset("topk", d_in=16, d_sae=24, k=2)
    before = recovery(sae, model.atoms, x[:2000], f[:2000])
    SAETrainer(sae, lr=0.01, batch_size=256, steps=400).fit(x[2000:])
    after = recovery(sae, model.atoms, x[:2000], f[:2000])
    assert before["recovered"] == 0
    assert after["recovered"] >= 0.8
    assert after["mcc"] >= 0.9
    assert after["f1"] > before["f1"] + 0.3  # two always fire, of none to six that should
    latents = absolute_cosines(sae.W_dec, model.atoms).argmax(0)
    assert np.nanmean(firing(sae.encode(torch.from_numpy(x[:2000])), f[:2000], latents).recall) > 0.65


def test_what_does_not_fit_is_refused():
    atoms = np.eye(4)
    with pytest.raises(InputError, match="atoms: have 4 dimensions and W_dec 3"):
        match(np.eye(3), atoms)
    with pytest.raises(InputError, match="W_dec: got"):
        match(np.ones(3), atoms)
    with pytest.raises(InputError, match="above: got 1"):
        recovered(atoms, atoms, 1.0)
    with pytest.raises(InputError, match="want 4, one for each feature"):
        firing(np.ones((2, 4)), np.ones((2, 4)), [0, 1])
    with pytest.raises(InputError, match="want -1 to 3"):
        firing(np.ones((2, 4)), np.ones((2, 4)), [0, 1, 2, 4])
    with pytest.raises(InputError, match="want equal"):
        firing(np.ones((2, 4)), np.ones((3, 4)), [0, 1, 2, 3])
    sae = SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2)
    for rows in (2, 4):
        with pytest.raises(InputError, match=f"f: has {rows} rows and x has 3"):
            recovery(sae, atoms.astype(np.float32), np.ones((3, 4), np.float32), np.ones((rows, 4)))

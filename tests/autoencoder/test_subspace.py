"""The rank of activations against NumPy's SVD, and first weights that lie within it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.autoencoder.inputs import ExpectedNorm
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.subspace import initialize_in_subspace, rank_report
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError


def low(rows=800, d=24, rank=5, seed=0, noise=0.0):
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((d, d)))[0][:rank]
    x = draw.standard_normal((rows, rank)) * np.arange(rank, 0, -1) @ basis + 100
    return (x + noise * draw.standard_normal(x.shape)).astype(np.float32), basis


def test_the_report_is_the_svd_of_centred_rows():
    x, basis = low()
    report = rank_report(x)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(report.values[:5], values[:5] / np.sqrt(len(x)), rtol=1e-6)
    shares = values**2 / (values**2).sum()
    assert report.count(0.99) == np.searchsorted(np.cumsum(shares), 0.99) + 1
    assert report.count(1.0) <= 24
    assert report.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    np.testing.assert_allclose(
        abs(report.directions[:5] @ basis.T @ basis @ report.directions[:5].T), np.eye(5), atol=1e-4
    )
    split = rank_report(iter([x[:100], torch.from_numpy(x[100:])]))
    np.testing.assert_allclose(split.values[:5], report.values[:5], rtol=1e-6)
    assert split.rows == 800
    wide = np.random.default_rng(1).standard_normal((4000, 8)).astype(np.float32)
    assert rank_report(wide).effective_rank == pytest.approx(8, abs=0.05)


@pytest.mark.parametrize("preset", ["topk", "batchtopk", "relu_l1"])
@torch.no_grad()
def test_the_weights_lie_in_the_directions_and_the_scale_is_the_best(preset):
    x, basis = low()
    sae = SparseAutoencoder.from_preset(preset, d_in=24, d_sae=64, k=4)
    assert initialize_in_subspace(sae, x, share=0.9999) == 5
    atoms = sae.W_dec.numpy()
    np.testing.assert_allclose(atoms @ basis.T @ basis, atoms, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-5)
    sae.train()
    t = torch.from_numpy(x)

    def error(factor):
        z = sae.codes(t)[0] * factor
        return float((t - sae.b_dec - z @ sae.W_dec).square().sum())

    assert error(1.0) < min(error(0.97), error(1.03))
    unscaled = SparseAutoencoder.from_preset(preset, d_in=24, d_sae=64, k=4)
    initialize_in_subspace(unscaled, x, dimensions=5, scale=False)
    assert torch.equal(unscaled.W_dec, sae.W_dec)
    torch.testing.assert_close(unscaled.W_enc, unscaled.W_dec.T)
    ratio = sae.W_enc / unscaled.W_enc
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=1e-4)


def test_training_keeps_to_it_and_normalised_inputs_are_seen():
    x, _ = low(noise=0.01)
    found = {}
    for begin in (False, True):
        sae = SparseAutoencoder.from_preset("topk", d_in=24, d_sae=256, k=4, inputs=ExpectedNorm())
        if begin:
            initialize_in_subspace(sae, x)
        SAETrainer(sae, lr=0.003, batch_size=100, steps=40).fit(x)
        found[begin] = evaluate(sae, x)["fvu"]
    assert found[True] < found[False]


def test_what_cannot_be_is_refused_by_name():
    x, _ = low(50)
    sae = SparseAutoencoder.from_preset("topk", d_in=24, d_sae=64, k=4)
    tied = SparseAutoencoder.from_preset("k_sparse", d_in=24, d_sae=64, k=4)
    with pytest.raises(InputError, match="scale: got True for a tied encoder"):
        initialize_in_subspace(tied, x)
    assert initialize_in_subspace(tied, x, scale=False) <= 5
    with pytest.raises(InputError, match="dimensions: got 25"):
        initialize_in_subspace(sae, x, dimensions=25)
    with pytest.raises(InputError, match="share"):
        initialize_in_subspace(sae, x, share=0)
    with pytest.raises(InputError, match="rows are equal"):
        rank_report(np.ones((4, 3), dtype=np.float32))
    with pytest.raises(InputError, match="x: got"):
        rank_report(np.ones((4, 3), dtype=np.int64))
    gone = SparseAutoencoder.from_preset("jumprelu", d_in=24, d_sae=64, k=4, initial=1e6)
    with pytest.raises(InputError, match="not active on any row"):
        initialize_in_subspace(gone, x)

"""Normalisation of inputs: what the encoder sees, that it is undone, and that training through it is on its rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ellzero.autoencoder import SAETrainer, SparseAutoencoder, attach, evaluate
from ellzero.autoencoder.afa import zf_plot
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm, RowNorm, Whitening, directions
from ellzero.autoencoder.recovery import recovery
from ellzero.errors import InputError
from ellzero.parts.constraints import TopK

ALL = (ExpectedNorm(), RowNorm(), RowNorm("root"), LayerNorm(), Whitening())
BY_ROW = (RowNorm(), RowNorm("root"), LayerNorm())


def draw(rows=300, d=6, seed=0):
    """Rows with a mean, correlated, and of very different norms."""
    stream = np.random.default_rng(seed)
    mix = stream.standard_normal((d, d)) * np.linspace(0.2, 3, d)
    x = (stream.standard_normal((rows, d)) @ mix + stream.standard_normal(d)) * stream.uniform(0.3, 5, (rows, 1))
    return torch.from_numpy(x.astype(np.float32))


def by_hand(inputs, x):
    """Normalised rows, and how a reconstruction of them is undone, in float64 and row by row."""
    x = x.double()
    d = x.shape[1]
    if isinstance(inputs, ExpectedNorm):
        scale = math.sqrt(d) / sum(float(row @ row) ** 0.5 for row in x) * len(x)
        return x * scale, lambda y: y / scale
    if isinstance(inputs, RowNorm):
        size = torch.stack([(row @ row).sqrt() for row in x])[:, None] / (
            math.sqrt(d) if inputs.length == "root" else 1
        )
        return x / size, lambda y: y * size
    if isinstance(inputs, LayerNorm):
        mean = x.sum(1, keepdim=True) / d
        deviation = ((x - mean).square().sum(1, keepdim=True) / (d - 1)).sqrt()
        return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean
    mean = x.mean(0)
    covariance = torch.from_numpy(np.cov(x.numpy().T, bias=True))
    covariance = covariance + 1e-3 * covariance.trace() / d * torch.eye(d)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    return (x - mean) @ torch.linalg.inv(root), lambda y: y @ root + mean


@pytest.mark.parametrize("inputs", ALL, ids=repr)
def test_codes_and_reconstructions_are_those_of_normalised_rows(inputs):
    x = draw()
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
    bare = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3)
    with torch.no_grad():
        for one in (sae, bare):
            one.b_enc.add_(0.1)
            one.b_dec.add_(torch.linspace(-1, 1, 6))
        sae.fit_inputs(x)
        rows, undo = by_hand(inputs, x)
        torch.testing.assert_close(sae.normalized(x), rows.float(), atol=2e-4, rtol=2e-4)
        seen = sae.normalized(x)
        assert torch.equal(sae.encode(x), bare.encode(seen))
        code = sae.encode(x, sparse=True)
        torch.testing.assert_close(sae(x), undo(bare(seen).double()).float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sae.decode(code, x), sae(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("inputs", ALL, ids=repr)
@given(rows=st.integers(2, 40), d=st.integers(2, 9), seed=st.integers(0, 50))
def test_undoing_gives_back_the_rows(inputs, rows, d, seed):
    x = draw(rows, d, seed)
    sae = SparseAutoencoder.from_preset("topk", d_in=d, d_sae=4, k=1, inputs=inputs)
    sae.fit_inputs(x)
    back = inputs.undo(sae, sae.normalized(x), x)
    # the 1e-5 of layer norm is not undone, as in the files that have it
    torch.testing.assert_close(back, x, atol=2e-3, rtol=2e-3)


def test_statistics_are_those_promised():
    x = draw(2000, 5)
    for inputs in ALL:
        sae = SparseAutoencoder.from_preset("topk", d_in=5, d_sae=8, k=2, inputs=inputs)
        sae.fit_inputs(x)
        seen = sae.normalized(x)
        if isinstance(inputs, ExpectedNorm):
            assert float(seen.norm(dim=1).mean()) == pytest.approx(math.sqrt(5), rel=1e-5)
        elif isinstance(inputs, RowNorm):
            wanted = torch.full((2000,), math.sqrt(5) if inputs.length == "root" else 1.0)
            torch.testing.assert_close(seen.norm(dim=1), wanted, rtol=1e-5, atol=1e-5)
        elif isinstance(inputs, LayerNorm):
            torch.testing.assert_close(seen.mean(1), torch.zeros(2000), atol=1e-5, rtol=0)
            torch.testing.assert_close(seen.std(1), torch.ones(2000), atol=1e-3, rtol=0)
        else:
            shares = np.linalg.eigvalsh(np.cov(seen.T.numpy(), bias=True))
            assert shares.max() <= 1.001  # the ridge holds back what hardly varies
            assert (shares > 0.9).sum() >= 3
            exact = Whitening(0.0).fit(x)
            white = (x - exact["input_mean"]) @ exact["input_matrix"]
            assert np.allclose(np.cov(white.T.numpy(), bias=True), np.eye(5), atol=1e-3)
            assert torch.allclose(exact["input_matrix"], exact["input_matrix"].T, atol=1e-5)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "relu_l1", "gated"])
@pytest.mark.parametrize("inputs", ALL, ids=repr)
def test_training_through_it_is_training_on_normalised_rows(inputs, name):
    x = draw(600)
    sae = SparseAutoencoder.from_preset(name, d_in=6, d_sae=14, k=3, inputs=inputs)
    bare = SparseAutoencoder.from_preset(name, d_in=6, d_sae=14, k=3)
    options = {"lr": 0.01, "batch_size": 64, "steps": 20, "engine": "dense"}
    found = SAETrainer(sae, **options).fit(x)
    seen = sae.normalized(x)
    wanted = SAETrainer(bare, **options).fit(seen)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-4)
    for key, value in bare.state_dict().items():
        torch.testing.assert_close(sae.state_dict()[key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("inputs", ALL, ids=repr)
def test_metrics_are_of_the_input(inputs):
    x = draw()
    sae = SparseAutoencoder.from_preset("batchtopk", d_in=6, d_sae=14, k=3, inputs=inputs)
    SAETrainer(sae, lr=0.01, batch_size=64, steps=30).fit(x)
    scores = evaluate(sae, x)
    with torch.no_grad():
        x_hat = sae(x).double()
    centred = x.double() - x.double().mean(0)
    fvu = float((x.double() - x_hat).square().sum() / centred.square().sum())
    assert scores["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert scores["fvu"] < 1
    assert scores["shrinkage"] == pytest.approx(float((x_hat.norm(dim=1) / x.double().norm(dim=1)).mean()), rel=1e-4)
    z, away = sae.encode(x).detach().double(), (sae.normalized(x) - sae.b_dec).detach().double()
    slope = (z.norm(dim=1) * away.norm(dim=1)).sum() / away.square().sum()
    assert scores["norm_match"] == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("inputs", BY_ROW, ids=repr)
def test_a_spliced_model_reads_reconstructions_in_its_own_units(inputs):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), draw(7, 4)
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs).eval()
    with torch.no_grad(), attach(model, {"0": sae}, error_term=False):
        spliced = model(x)
    with torch.no_grad():
        torch.testing.assert_close(spliced, sae(model[0](x)).relu(), atol=1e-5, rtol=1e-5)
        plain = model(x)
        with attach(model, {"0": sae}, error_term=True):
            assert torch.equal(model(x), plain)


def test_a_row_of_zeros_stays_one():
    for inputs in (RowNorm(), RowNorm("root"), LayerNorm(0.0)):
        sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
        x = torch.zeros(2, 6)
        assert not sae.normalized(x).any()
        assert not sae(x).any()


def test_what_cannot_be_done_is_named():
    x = draw()
    for inputs in BY_ROW:
        sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
        with pytest.raises(InputError, match=rf"x: {type(inputs).__name__} is undone row by row, want decode\(z, x\)"):
            sae.decode(sae.encode(x))
    for inputs in (ExpectedNorm(), Whitening()):
        sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
        with pytest.raises(InputError, match=f"inputs: {type(inputs).__name__} is not fitted yet"):
            sae.encode(x)
        with pytest.raises(InputError, match="not fitted yet"):
            sae.decode(torch.zeros(1, 14))
        with pytest.raises(InputError, match="x: got no rows"):
            sae.fit_inputs(x[:0])
    with pytest.raises(InputError, match="all rows are zero"):
        ExpectedNorm().fit(torch.zeros(3, 4))
    with pytest.raises(InputError, match=r"no inverse with a ridge of 0\.0"):
        Whitening(0.0).fit(torch.ones(3, 4))
    with pytest.raises(InputError, match="rows of one number"):
        LayerNorm().apply(None, torch.ones(3, 1))
    with pytest.raises(InputError, match="ridge: got -1"):
        Whitening(-1.0)
    with pytest.raises(InputError, match="length: got 'two', want one of one, root"):
        RowNorm("two")
    with pytest.raises(InputError, match="eps: got -1"):
        LayerNorm(-1.0)


@pytest.mark.parametrize("inputs", ["layer_norm", LayerNorm, 3])
def test_what_is_no_normalisation_is_refused(inputs):
    with pytest.raises(InputError, match=r"inputs: got .*, want None or one of ExpectedNorm"):
        SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
    with pytest.raises(InputError, match=r"inputs: got .*, want None or one of ExpectedNorm"):
        SparseAutoencoder(6, 14, select=TopK(3), inputs=inputs)


@pytest.mark.parametrize("inputs", [ExpectedNorm(), LayerNorm(), Whitening()], ids=repr)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(inputs, tmp_path):
    x, ends = draw(300), []
    for folder, kill in ((None, False), (tmp_path, True), (tmp_path, False)):
        sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
        trainer = SAETrainer(sae, lr=0.01, batch_size=32, steps=16)
        if kill:
            left = iter(range(9))
            sae.b_dec.register_hook(lambda gradient, left=left: next(left) * 0 + gradient)
            with pytest.raises(StopIteration):
                trainer.fit(x, checkpoint=folder, every=4)
            continue
        trainer.fit(x, checkpoint=folder, every=4)
        ends.append(sae.state_dict())
    for key, one in ends[0].items():
        assert torch.equal(ends[1][key], one)


@pytest.mark.parametrize("inputs", [None, ExpectedNorm(), Whitening()], ids=repr)
def test_directions_are_what_a_unit_of_a_latent_adds(inputs):
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
    sae.fit_inputs(draw())
    with torch.no_grad():
        added = sae.decode(torch.eye(14)) - sae.decode(torch.zeros(1, 14))
        torch.testing.assert_close(directions(sae), added, atol=1e-4, rtol=1e-4)


def test_known_features_are_sought_in_the_units_of_the_input():
    x = draw()
    atoms = nn.functional.normalize(torch.from_numpy(np.random.default_rng(1).standard_normal((5, 6))).float(), dim=1)
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=5, k=2, inputs=Whitening())
    sae.fit_inputs(x)
    with torch.no_grad():
        sae.W_dec.copy_(atoms @ sae.input_matrix)
    assert recovery(sae, atoms, x, np.ones((len(x), 5)))["mcc"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("inputs", ALL, ids=repr)
def test_norms_of_codes_stand_against_norms_of_normalised_rows(inputs):
    x = draw()
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
    sae.fit_inputs(x)
    bare = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3)
    found, wanted = zf_plot(sae, x), zf_plot(bare, sae.normalized(x))
    assert len(vars(found)) >= 4
    for key, one in vars(wanted).items():
        np.testing.assert_allclose(vars(found)[key], one, rtol=1e-5)

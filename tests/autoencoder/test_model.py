"""The autoencoder: codes and gradients against a reference written out by hand, thresholds, constraints, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.autoencoder.codes import SparseCode
from ellzero.autoencoder.model import SparseAutoencoder, UnitNorm
from ellzero.autoencoder.objective import SquaredError
from ellzero.autoencoder.selectors import CalibratedThreshold
from ellzero.errors import InputError
from ellzero.parts.constraints import Threshold, TopK

PRESETS = (
    "relu_l1", "gated", "topk", "batchtopk", "jumprelu", "k_sparse", "abs_topk", "matryoshka", "msae",
    "hierarchical_topk",
)  # fmt: skip
ROWWISE = ("topk", "k_sparse", "abs_topk", "msae", "hierarchical_topk")
BATCHWISE = ("batchtopk", "matryoshka")


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def build(name, d_in=6, d_sae=20, k=3, seed=0):
    """With biases that are not zero, so that a forgotten one shows."""
    sae = SparseAutoencoder.from_preset(name, d_in=d_in, d_sae=d_sae, k=k, seed=seed)
    with torch.no_grad():
        if not sae.encoder.tied:
            sae.W_enc.add_(0.2 * draw(d_in, d_sae, seed=1))
        sae.b_enc.add_(0.3 * draw(d_sae, seed=2))
        sae.b_dec.add_(draw(d_in, seed=3))
    return sae


def by_hand(sae, x, name, k):
    """Row by row in float64: pre-activation, rectification, selection, reconstruction."""
    weights = {key: value.detach().double().numpy() for key, value in sae.named_parameters()}
    W_dec, b_dec, b_enc = weights["W_dec"], weights["b_dec"], weights["b_enc"]
    W_enc = weights.get("W_enc", W_dec.T)
    rows = x.double().numpy() - (0 if name == "k_sparse" else b_dec)
    pre = np.stack([[row @ W_enc[:, j] + b_enc[j] for j in range(sae.d_sae)] for row in rows])
    z = pre.copy() if name in ("k_sparse", "abs_topk") else np.maximum(pre, 0)
    if name == "gated":
        z = np.where(pre > 0, np.maximum((pre - b_enc) * np.exp(weights["r_mag"]) + weights["b_mag"], 0), 0)
    if name == "jumprelu":
        z = np.where(pre > weights["threshold"], pre, 0)
    if name in ROWWISE:
        for row in z:
            score = abs(row) if name == "abs_topk" else row
            row[sorted(range(len(row)), key=lambda j: (-score[j], j))[k:]] = 0
    if name in BATCHWISE:
        flat = z.reshape(-1)
        flat[sorted(range(flat.size), key=lambda j: (-flat[j], j))[k * len(x) :]] = 0
    return z, z @ W_dec + b_dec


@pytest.mark.parametrize("name", PRESETS)
@given(rows=st.integers(1, 9), k=st.integers(1, 20), seed=st.integers(0, 99))
def test_codes_and_reconstructions_are_those_written_out_by_hand(name, rows, k, seed):
    sae, x = build(name, k=k, seed=seed).train(), draw(rows, 6, seed=seed)
    z, x_hat = by_hand(sae, x, name, k)
    np.testing.assert_allclose(sae.encode(x).detach(), z, atol=2e-5)
    np.testing.assert_allclose(sae(x).detach(), x_hat, atol=5e-5)


@pytest.mark.parametrize("name", sorted({*PRESETS} - {"gated", "jumprelu", "k_sparse"}))
def test_the_gradient_is_the_dense_one_on_the_support_and_zero_elsewhere(name):
    sae, x = build(name).train(), draw(7, 6)
    (x - sae(x)).square().sum().backward()
    found = {key: value.grad.clone() for key, value in sae.named_parameters()}
    support = sae.encode(x).detach() != 0
    with torch.no_grad():
        e = sae(x) - x
        z, g = sae.encode(x), 2 * e @ sae.W_dec.T * support
        wanted = {"W_dec": z.T @ (2 * e), "W_enc": (x - sae.b_dec).T @ g, "b_enc": g.sum(0)}
        wanted["b_dec"] = 2 * e.sum(0) - sae.W_enc @ g.sum(0)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-4)
    never = ~support.any(0)
    assert never.any() or name == "relu_l1"
    assert not found["W_enc"][:, never].any()


@pytest.mark.parametrize("name", PRESETS)
@given(rows=st.integers(0, 6), k=st.integers(1, 20), seed=st.integers(0, 20))
def test_sparse_codes_say_the_same_as_dense_ones(name, rows, k, seed):
    sae, x = build(name, k=k).train(), draw(rows, 6, seed=seed)
    with torch.no_grad():
        z, code = sae.encode(x), sae.encode(x, sparse=True)
        assert isinstance(code, SparseCode)
        torch.testing.assert_close(code.dense(20), z, atol=1e-5, rtol=1e-5)
        assert code.values.shape[1] == (int((z != 0).sum(1).max()) if rows else 0)
        assert (code.values.abs().diff(dim=1) <= 0).all()
        assert not code.indices[code.values == 0].any()
        torch.testing.assert_close(sae.decode(code), sae.decode(z), atol=1e-5, rtol=1e-5)


def test_a_permutation_of_the_latents_permutes_the_codes():
    order = torch.from_numpy(np.random.default_rng(5).permutation(20))
    for name in PRESETS:
        one, other, x = build(name).train(), build(name).train(), draw(8, 6)
        with torch.no_grad():
            for key in ("W_dec", "b_enc"):
                getattr(other, key).copy_(getattr(one, key)[order])
            if not one.encoder.tied:
                other.W_enc.copy_(one.W_enc[:, order])
            torch.testing.assert_close(other.encode(x), one.encode(x)[:, order])
            torch.testing.assert_close(other(x), one(x))


@given(k=st.integers(1, 6), rows=st.integers(1, 40), seed=st.integers(0, 50))
def test_the_threshold_keeps_what_the_batch_selection_keeps(k, rows, seed):
    a = draw(rows, 6, seed=seed).relu()
    threshold = float(CalibratedThreshold(k).find(a)[0])
    positive = int((a > 0).sum())
    assert int((a > threshold).sum()) == min(k * rows, positive)
    assert threshold >= 0


def test_a_calibrated_row_does_not_depend_on_the_rows_beside_it():
    sae, x = build("batchtopk"), draw(400, 6)
    sae.eval()
    with pytest.raises(InputError, match="not calibrated"):
        sae.encode(x)
    sae.calibrate(x)
    z = sae.encode(x)
    assert (z > 0).sum() == 3 * 400
    assert torch.equal(sae.encode(x[17:18]) > 0, z[17:18] > 0)
    assert sae.threshold.shape == (20,)
    sae.train()
    assert (sae.encode(x[:50]) > 0).sum() == 150


def test_rescaling_makes_it_the_autoencoder_of_scaled_input():
    for name in PRESETS:
        sae, x = build(name), draw(50, 6)
        if sae.calibrates:
            sae.calibrate(x)
        sae.eval()
        with torch.no_grad():
            z, x_hat = sae.encode(x), sae(x)
            sae.rescale(7.5)
            torch.testing.assert_close(sae.encode(7.5 * x), 7.5 * z, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(sae(7.5 * x), 7.5 * x_hat, atol=1e-4, rtol=1e-4)


@given(seed=st.integers(0, 50))
def test_the_unit_norm_is_kept_by_projection_and_left_alone_by_the_tangent(seed):
    W, g = UnitNorm().project(draw(5, 4, seed=seed)), draw(5, 4, seed=seed + 100)
    torch.testing.assert_close(W.norm(dim=1), torch.ones(5))
    tangent = UnitNorm().tangent(W, g)
    assert (tangent * W).sum(1).abs().max() < 1e-5
    torch.testing.assert_close(tangent + (g * W).sum(1, keepdim=True) * W, g)
    assert not UnitNorm().project(torch.zeros(1, 3)).any()


def test_the_start_is_unit_rows_tied_and_fixed_by_the_seed():
    one, same, other = (build("topk", seed=s) for s in (1, 1, 2))
    fresh = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=20, k=3)
    torch.testing.assert_close(fresh.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(fresh.W_enc, fresh.W_dec.T)
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)


def test_other_dtypes_come_in_the_dtype_of_the_weights():
    sae, x = build("topk"), draw(5, 6)
    z = sae.encode(x)
    assert torch.equal(sae.encode(x.numpy()), z)
    assert torch.equal(sae.encode(x.double()), z)
    assert torch.equal(sae.encode(x.numpy().astype(np.float64)), z)
    half = sae.encode(x.to(torch.bfloat16))
    assert half.dtype == torch.float32
    assert sae.double().encode(x).dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (np.zeros((3, 5), np.float32), r"x: got shape \(3, 5\), want \(any, 6\)"), (np.zeros(6, np.float32), "2 axes"),
        (np.zeros((3, 6), np.int64), "x: got dtype int64"), (torch.full((2, 6), torch.nan), "x: 12 entries not finite"),
        (torch.full((2, 6), torch.inf), "not finite"), ([[0.0] * 6], "x: got list"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_encoded_are_refused_by_name(x, named):
    for name in PRESETS:
        sae = build(name)
        if sae.calibrates:
            sae.calibrate(draw(10, 6))
        for mode in (True, False):
            with pytest.raises(InputError, match=named):
                sae.train(mode).encode(x)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": 0}, "k: got 0"), ({"k": 21}, "k: got 21"), ({"k": 2.5}, "k: got 2.5"), ({"d_in": 0}, "d_in"),
        ({"d_sae": 0}, "d_sae|k: got"), ({"d_sae": 2.0}, "d_sae|k: got"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_by_name(options, named):
    for name in PRESETS:
        with pytest.raises(InputError, match=named):
            SparseAutoencoder.from_preset(name, **{"d_in": 6, "d_sae": 20, "k": 3, **options})


def test_an_unknown_preset_gets_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'topk'"):
        SparseAutoencoder.from_preset("topkk", d_in=4, d_sae=8)


def test_calibration_needs_rows_and_a_selection_over_the_batch():
    with pytest.raises(InputError, match="x: got no rows"):
        build("batchtopk").calibrate(torch.empty(0, 6))
    with pytest.raises(InputError, match="calibrate"):
        build("topk").calibrate(draw(4, 6))


def test_decode_refuses_codes_of_another_width():
    with pytest.raises(InputError, match=r"z: got shape \(2, 19\)"):
        build("topk").decode(torch.zeros(2, 19))


def test_parts_are_joined_by_the_caller_too():
    sae = SparseAutoencoder(4, 9, select=TopK(2), decoder=None, objective=[SquaredError()], architecture="topk")
    assert (sae.encode(draw(5, 4)) > 0).sum(1).max() <= 2
    with torch.no_grad():
        sae.W_dec.mul_(3)
    sae.normalize()
    assert sae.W_dec.norm(dim=1).min() > 2
    relu = SparseAutoencoder(4, 9, select=Threshold(0.0))
    assert torch.equal(relu.encode(draw(5, 4)), relu.activations(draw(5, 4)))

"""Loss terms against their formulas written out by hand; which weights each one moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.objective import L0, L1, AuxK, GateReconstruction, NormMatch, SquaredError, Step
from ellzero.errors import InputError


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def a_step(rows=9, dead=(), spread=3.0, steer=1.0, seed=0):
    """One step in float64 of a TopK autoencoder of 5 features and 12 latents."""
    sae = SparseAutoencoder.from_preset("topk", d_in=5, d_sae=12, k=2).double().train()
    with torch.no_grad():
        sae.b_dec.add_(draw(5, seed=8))
    x = draw(rows, 5, seed=seed)
    z, pre = sae.codes(x)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(dead)] = True
    return Step(sae, x, pre, z, sae.decode(z), mask, spread, steer)


def test_the_squared_error_is_the_mean_over_rows_over_the_variance():
    step = a_step()
    rows = [((x - y) ** 2).sum().item() for x, y in zip(step.x, step.x_hat)]
    assert SquaredError()(step).item() == pytest.approx(sum(rows) / 9 / 3)


def test_predicting_the_mean_costs_one():
    x = draw(50, 5)
    spread = float(x.var(0, correction=0).sum())
    step = Step(None, x, x, x, x.mean(0).expand(50, 5), torch.zeros(5), spread)
    assert float(SquaredError()(step)) == pytest.approx(1.0)


@given(alpha=st.floats(0, 10), steer=st.floats(0.01, 10), seed=st.integers(0, 20))
def test_the_price_is_on_codes_times_the_norms_of_the_decoder(alpha, steer, seed):
    step = a_step(steer=steer, seed=seed)
    with torch.no_grad():
        step.sae.W_dec.mul_(2)
    z = step.z.detach().numpy()
    wanted = alpha * steer * (z * 2).sum(1).mean() / np.sqrt(3.0)
    assert L1(alpha)(step).item() == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@given(dead=st.sets(st.integers(0, 11), min_size=1), k=st.integers(1, 12), seed=st.integers(0, 30))
def test_dead_latents_reconstruct_the_error_as_written_out_by_hand(dead, k, seed):
    step = a_step(dead=dead, seed=seed)
    W, pre = step.sae.W_dec.detach().numpy(), step.pre.detach().numpy()
    e = (step.x - step.x_hat).detach().numpy()
    e_hat = np.zeros_like(e)
    for i, row in enumerate(pre):
        for j in sorted(dead, key=lambda j: (-row[j], j))[:k]:
            e_hat[i] += max(row[j], 0) * W[j]
    wanted = ((e - e_hat) ** 2).sum() / ((e - e.mean(0)) ** 2).sum() / 32
    assert AuxK(k=k)(step).item() == pytest.approx(wanted, rel=1e-9)


def test_only_dead_latents_learn_from_the_error():
    step = a_step(rows=40, dead=(1, 4, 7))
    AuxK(k=2)(step).backward()
    gradient = step.sae.W_dec.grad
    assert set(gradient.abs().sum(1).nonzero().squeeze(1).tolist()) <= {1, 4, 7}
    assert gradient.any()
    assert set(step.sae.b_enc.grad.nonzero().squeeze(1).tolist()) <= {1, 4, 7}


def test_without_dead_latents_or_an_error_that_varies_there_is_no_auxiliary_loss():
    for step in (a_step(), a_step(rows=1, dead=(2,))):
        found = AuxK()(step)
        assert found == 0
        assert torch.isfinite(found)
    assert AuxK(weight=0)(a_step(dead=(2,))) == 0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: L1(-1.0), "alpha"), (lambda: L1(0.0, target=3), "alpha"), (lambda: L1(1.0, target=0), "target"),
        (lambda: AuxK(-1.0), "weight"), (lambda: AuxK(k=0), "k: "), (lambda: AuxK(dead_after=0), "dead_after"),
        (lambda: AuxK(k=1.5), "k: "),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(make, named):
    with pytest.raises(InputError, match=named):
        make()


def a_step_of(name, rows=9, spread=3.0, steer=1.0, progress=1.0):
    """One step in float64 of another preset, with weights that are not those of the start."""
    sae = SparseAutoencoder.from_preset(name, d_in=5, d_sae=12, k=2).double().train()
    with torch.no_grad():
        for place, parameter in enumerate(sae.parameters()):
            parameter.add_(0.2 * draw(*parameter.shape, seed=20 + place).abs())
    x = draw(rows, 5)
    z, pre = sae.codes(x)
    mask = torch.zeros(12, dtype=torch.bool)
    return Step(sae, x, pre, z, sae.decode(z), mask, spread, steer, progress)


def test_the_price_on_a_count_is_the_count_and_moves_thresholds_alone():
    step = a_step_of("jumprelu", steer=2.0)
    loss = L0(0.1)(step)
    on = int((step.pre > step.sae.threshold).sum())
    assert loss.item() == pytest.approx(0.1 * 2.0 * on / 9)
    loss.backward()
    assert step.sae.W_enc.grad is None or not step.sae.W_enc.grad.any()
    u = (step.pre - step.sae.threshold).detach() / step.sae.gradient.bandwidth
    wanted = -0.2 * (u.abs() < 0.5).double().sum(0) / step.sae.gradient.bandwidth / 9
    torch.testing.assert_close(step.sae.threshold.grad, wanted)


def test_a_warm_price_grows_from_nothing():
    for term in (L0(0.1, warm=0.5), L1(0.1, warm=0.5)):
        full = term(a_step_of("jumprelu", progress=0.5)).item()
        assert term(a_step_of("jumprelu", progress=0.0)).item() == 0
        assert term(a_step_of("jumprelu", progress=0.25)).item() == pytest.approx(full / 2)
        assert term(a_step_of("jumprelu", progress=0.9)).item() == pytest.approx(full)


def test_the_gate_reconstructs_through_a_decoder_that_it_cannot_move():
    step = a_step_of("gated")
    sae = step.sae
    loss = GateReconstruction()(step)
    guess = step.pre.relu() @ sae.W_dec + sae.b_dec
    assert loss.item() == pytest.approx(((step.x - guess) ** 2).sum(1).mean().item() / 3)
    loss.backward()
    assert sae.W_dec.grad is None
    assert sae.r_mag.grad is None
    assert sae.b_enc.grad.any()
    priced = L1(0.3, of="gate")(step).item()
    assert priced == pytest.approx(0.3 * float((step.pre.relu() @ sae.W_dec.norm(dim=1)).mean()) / 3**0.5)


def test_the_norms_of_codes_and_inputs_are_matched():
    step = a_step_of("topk")
    sae = step.sae
    gap = (step.z * sae.W_dec.norm(dim=1)).norm(dim=1) - (step.x - sae.b_dec).norm(dim=1)
    assert NormMatch(0.4)(step).item() == pytest.approx(0.4 * (gap**2).mean().item() / 3)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: L0(-1.0), "alpha"), (lambda: L0(0.1, target=0), "target"), (lambda: L0(0.1, warm=2.0), "warm"),
        (lambda: NormMatch(-1.0), "weight"), (lambda: L0(0.0, target=3), "alpha"),
    ],
)  # fmt: skip
def test_settings_of_terms_that_cannot_be_are_refused(make, named):
    with pytest.raises(InputError, match=named):
        make()

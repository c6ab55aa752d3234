"""Matching pursuit: its steps against a loop, its derivative against autograd, and that what is left never grows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.autoencoder import pursuit
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.pursuit import MatchingPursuit, matching_pursuit
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError
from ellzero.parts.constraints import Threshold, TopK


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def atoms(m, d, seed=1, dtype=torch.float64):
    return torch.nn.functional.normalize(draw(m, d, seed=seed, dtype=dtype), dim=1)


def by_hand(x, W, steps, tolerance=0.0, absolute=False):
    """One row after another; plain tensors, so that autograd sees the formula."""
    codes, left = [], []
    for row in x:
        rest, z, enough = row, row.new_zeros(len(W)), tolerance * float(row.detach().norm())
        for _ in range(steps):
            correlations = [float((w * rest).sum().detach()) for w in W]
            j = max(range(len(W)), key=lambda i: (abs(correlations[i]) if absolute else correlations[i], -i))
            a = (W[j] * rest).sum() if absolute else (W[j] * rest).sum().relu()
            if float(rest.detach().norm()) <= enough or abs(float(a.detach())) < 1e-14 * float(row.detach().norm()):
                break
            z = z + a * torch.nn.functional.one_hot(torch.tensor(j), len(W)).to(row)
            rest = rest - a * W[j]
        codes.append(z)
        left.append(rest)
    return torch.stack(codes), torch.stack(left)


def dense(found, m):
    return found.values.new_zeros(len(found.values), m).scatter_add(1, found.indices, found.values)


@settings(deadline=None)
@given(
    rows=st.integers(1, 5), m=st.integers(1, 12), d=st.integers(1, 6), steps=st.integers(1, 8), absolute=st.booleans(),
    tolerance=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 50),
)  # fmt: skip
def test_it_is_the_loop_written_out_with_what_autograd_gives_for_it(rows, m, d, steps, absolute, tolerance, seed):
    x, W = draw(rows, d, seed=seed).requires_grad_(), atoms(m, d, seed=seed + 1).requires_grad_()
    wanted, left = by_hand(x, W, steps, tolerance, absolute)
    found = matching_pursuit(x, W, steps, tolerance=tolerance, absolute=absolute)
    torch.testing.assert_close(dense(found, m), wanted)
    torch.testing.assert_close(found.rest, left)
    weight, other = draw(rows, m, seed=3), draw(rows, d, seed=4)
    of_wanted = torch.autograd.grad((wanted * weight).sum() + (left * other).sum(), (x, W), allow_unused=True)
    of_found = torch.autograd.grad((dense(found, m) * weight).sum() + (found.rest * other).sum(), (x, W))
    for one, two in zip(of_found, of_wanted):
        torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two, atol=1e-9, rtol=1e-7)


def test_an_atom_that_comes_again_adds_up_and_has_the_gradient_of_the_sum():
    # two atoms 60 degrees apart, taken in turn
    W = torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    found = matching_pursuit(x, W, 6, absolute=True)
    assert found.indices.tolist() == [[1, 0, 1, 0, 1, 0]]
    wanted, _ = by_hand(x, W, 6, absolute=True)
    torch.testing.assert_close(dense(found, 2), wanted)
    assert torch.autograd.gradcheck(lambda x, W: matching_pursuit(x, W, 6, absolute=True)[0], (x, W))


@settings(deadline=None)
@given(rows=st.integers(1, 20), m=st.integers(1, 60), d=st.integers(1, 16), seed=st.integers(0, 99),
       absolute=st.booleans())  # fmt: skip
def test_what_is_left_never_grows_and_pythagoras_holds(rows, m, d, seed, absolute):
    x, W = draw(rows, d, seed=seed, dtype=torch.float32), atoms(m, d, seed=seed + 1, dtype=torch.float32)
    whole = matching_pursuit(x, W, 12, absolute=absolute)
    before = x.square().sum(1)
    for steps in range(1, 13):
        part = matching_pursuit(x, W, steps, absolute=absolute)
        assert torch.equal(part.values, whole.values[:, :steps])  # more steps only add
        after = part.rest.square().sum(1)
        assert (after <= before * (1 + 1e-6)).all()
        torch.testing.assert_close(after + part.values[:, -1].square(), before, atol=1e-5, rtol=1e-5)
        before = after


def test_the_gram_matrix_and_the_residual_choose_alike(monkeypatch):
    x, W = draw(200, 24, dtype=torch.float32), atoms(64, 24, dtype=torch.float32)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(pursuit, "_gram_pays", lambda *sizes, pays=pays: pays)
        found.append(matching_pursuit(x, W, 20))
    torch.testing.assert_close(found[0].rest.norm(dim=1), found[1].rest.norm(dim=1), atol=1e-4, rtol=1e-4)
    assert (found[0].indices[:, :5] == found[1].indices[:, :5]).all()
    monkeypatch.setattr(pursuit, "_HELD", 64 * 7)  # seven rows at a time
    torch.testing.assert_close(matching_pursuit(x, W, 20), found[1])


def test_the_backward_pass_keeps_neither_rows_by_latents_nor_rows_by_steps_by_features():
    rows, d, m, steps = 64, 32, 4096, 16
    x, W = draw(rows, d, dtype=torch.float32), atoms(m, d, dtype=torch.float32).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        matching_pursuit(x, W, steps).values.sum().backward()
    assert sum(t.numel() for t in kept if t.shape != W.shape) <= rows * (2 * steps + d)


def make(k=3, d_sae=20, **options):
    sae = SparseAutoencoder.from_preset("mp_sae", d_in=6, d_sae=d_sae, k=k, **options)
    with torch.no_grad():
        sae.b_dec.copy_(draw(6, seed=8))
    return sae


def test_the_autoencoder_codes_what_the_pursuit_finds_and_any_number_of_steps_serves():
    sae, x = make(), draw(50, 6, dtype=torch.float32)
    wanted, left = by_hand((x - sae.b_dec).double().detach(), sae.W_dec.double().detach(), 3)
    torch.testing.assert_close(sae.encode(x).double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((x - sae(x)).double(), left, atol=1e-5, rtol=1e-5)
    errors = [(x - sae.at(k)(x)).square().sum(1) for k in range(1, 12)]
    assert all((b <= a + 1e-5).all() for a, b in itertools.pairwise(errors))
    assert (make(tolerance=0.9).encode(x) != 0).sum() < (sae.encode(x) != 0).sum()
    assert (make(absolute=True).encode(x) < 0).any()
    assert not hasattr(sae, "W_enc")


def test_it_trains_and_repeats_to_the_bit():
    codes = np.random.default_rng(0).uniform(1, 2, (2000, 24)) * (np.random.default_rng(1).random((2000, 24)) < 0.1)
    x = (codes @ atoms(24, 12).numpy() + 2).astype(np.float32)
    found = []
    for _ in range(2):
        sae = SparseAutoencoder.from_preset("mp_sae", d_in=12, d_sae=32, k=3)
        SAETrainer(sae, lr=0.01, batch_size=128, steps=150).fit(x)
        found.append(sae)
    assert all(torch.equal(a, b) for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values()))
    rows = torch.from_numpy(x)
    assert (rows - found[0](rows)).square().sum() < 0.2 * (rows - rows.mean(0)).square().sum()
    torch.testing.assert_close(found[0].W_dec.norm(dim=1), torch.ones(32))


def test_bad_input_is_told():
    with pytest.raises(InputError, match="tolerance"):
        MatchingPursuit(tolerance=1.5)
    with pytest.raises(InputError, match="steps: got 0"):
        matching_pursuit(draw(2, 3), atoms(4, 3), 0)
    loose = SparseAutoencoder(3, 4, encoder=MatchingPursuit(), select=TopK(2), decoder=None)
    with pytest.raises(InputError, match="decoder: got None, want UnitNorm"):
        loose.encode(draw(2, 3, dtype=torch.float32))
    other = SparseAutoencoder(3, 4, encoder=MatchingPursuit(), select=Threshold(0.0))
    with pytest.raises(InputError, match="select: got Threshold, want TopK"):
        other.encode(draw(2, 3, dtype=torch.float32))

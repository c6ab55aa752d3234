"""The optimiser of rows against torch's Adam between a projection, a clip and a normalisation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ellzero.autoencoder.model import SparseAutoencoder, UnitNorm
from ellzero.autoencoder.optimizer import RowAdam
from ellzero.errors import InputError


def gradients(sae, seed):
    draw = np.random.default_rng(seed)
    for parameter in sae.parameters():
        parameter.grad = torch.from_numpy(draw.standard_normal(parameter.shape)).to(parameter)


@given(clip=st.sampled_from([None, 0.1, 1e6]), constrained=st.booleans(), seed=st.integers(0, 20))
def test_it_is_adam_between_projection_clip_and_normalisation(clip, constrained, seed):
    mine, other = (SparseAutoencoder.from_preset("topk", d_in=5, d_sae=9, k=2).double() for _ in range(2))
    decoder = UnitNorm()
    with torch.no_grad():
        for sae in (mine, other):
            sae.W_dec.copy_(decoder.project(sae.W_dec))
    optimizer = RowAdam(mine.parameters(), lr=0.01, clip=clip, unit=[mine.W_dec] if constrained else [])
    adam = torch.optim.Adam(other.parameters(), lr=0.01, eps=6.25e-10)
    for step in range(4):
        gradients(mine, 100 * seed + step)
        gradients(other, 100 * seed + step)
        optimizer.step()
        with torch.no_grad():
            if constrained:
                other.W_dec.grad = decoder.tangent(other.W_dec, other.W_dec.grad)
            if clip is not None:
                nn.utils.clip_grad_norm_(other.parameters(), clip)
            adam.step()
            if constrained:
                other.W_dec.copy_(decoder.project(other.W_dec))
    for (name, p), q in zip(mine.named_parameters(), other.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=name)


def test_its_state_is_kept():
    one, other = (SparseAutoencoder.from_preset("topk", d_in=5, d_sae=9, k=2) for _ in range(2))
    first, second = (RowAdam(sae.parameters(), lr=0.01, unit=[sae.W_dec]) for sae in (one, other))
    gradients(one, 0)
    first.step()
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for sae, optimizer in ((one, first), (other, second)):
        gradients(sae, 1)
        optimizer.step()
    for p, q in zip(one.parameters(), other.parameters()):
        assert torch.equal(p, q)


def test_silent_latents_are_left_alone_where_asked():
    for skip in (True, False):
        sae = SparseAutoencoder.from_preset("topk", d_in=5, d_sae=9, k=2)
        optimizer = RowAdam(sae.parameters(), lr=0.01, unit=[sae.W_dec], skip_silent=skip)
        gradients(sae, 0)
        optimizer.step()
        gradients(sae, 1)
        with torch.no_grad():
            sae.W_enc.grad[:, 4] = 0
            sae.W_dec.grad[4] = 0
        before = sae.W_enc[:, 4].clone(), sae.W_dec[4].clone()
        optimizer.step()
        assert torch.equal(sae.W_enc[:, 4], before[0]) == skip
        assert torch.equal(sae.W_dec[4], before[1]) == skip


@pytest.mark.parametrize(("options", "named"), [({"lr": 0.0}, "lr"), ({"lr": 0.1, "betas": (1.0, 0.9)}, "betas")])
def test_settings_that_cannot_be_are_refused(options, named):
    with pytest.raises(InputError, match=named):
        RowAdam([nn.Parameter(torch.zeros(2))], **options)


def test_a_closure_is_refused():
    with pytest.raises(InputError, match="closure"):
        RowAdam([nn.Parameter(torch.zeros(2))], lr=0.1).step(lambda: 0.0)

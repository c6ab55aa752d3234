"""Autoencoders trained to agree: the price, its derivative, and what no price leaves as it was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.mutual import imbalance, mmcs, orthogonal_rows, tied_topk, train_mutually
from ellzero.autoencoder.stability import shared_features
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError

D = np.random.default_rng(0)
X = (D.standard_normal((500, 6)) @ D.standard_normal((6, 8))).astype(np.float32)
OPTIONS = {"lr": 0.01, "batch_size": 50, "steps": 40}


def pair(**options):
    return [SAETrainer(tied_topk(8, 16, 3, seed=seed), **{**OPTIONS, **options}) for seed in range(2)]


def test_agreement_is_the_best_one_to_one_pairing_and_its_derivative_that_of_the_cosines():
    one, other = (torch.from_numpy(D.standard_normal((5, 4))).requires_grad_() for _ in range(2))
    found = mmcs(one, other)
    unit = lambda x: x / x.norm(dim=1, keepdim=True)  # noqa: E731
    table = unit(one) @ unit(other).T
    best = max(
        itertools.permutations(range(5)), key=lambda order: table.detach()[torch.arange(5), list(order)].sum().item()
    )
    want = table[torch.arange(5), list(best)].mean()
    torch.testing.assert_close(found, want)
    for got, other_way in zip(torch.autograd.grad(found, (one, other)), torch.autograd.grad(want, (one, other))):
        torch.testing.assert_close(got, other_way)
    assert mmcs(one, one[[3, 0, 4, 1, 2]]).item() == pytest.approx(1)


def test_imbalance():
    assert imbalance(torch.full((20,), 0.1), 2.0) == pytest.approx(0, abs=1e-9)
    one_sided = torch.zeros(20)
    one_sided[:2] = 1.0
    want = (18 * 0.1**3 + 2 * 0.9**3) / 20 / 0.1**3
    assert imbalance(one_sided, 2.0) == pytest.approx(want)


def test_orthogonal_rows():
    rows = orthogonal_rows(12, 8, 0)
    torch.testing.assert_close(rows[:8] @ rows[:8].T, torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[8:] @ rows[8:].T, torch.eye(4), atol=1e-5, rtol=0)


def test_without_a_price_each_is_trained_as_alone():
    both, apart = pair(), pair()
    train_mutually(both, X, alpha=0.0, redraw_above=None)
    for one, other in zip(both, apart):
        other.fit(X)
        for name, tensor in other.sae.state_dict().items():
            assert torch.equal(tensor, one.sae.state_dict()[name]), name


@pytest.mark.parametrize("matching", ["hungarian", "greedy"])
def test_a_price_brings_agreement_and_repeats_itself(matching):
    found = {}
    for alpha in (0.0, 1.0, 1.0):
        both = pair()
        out = train_mutually(both, X, alpha=alpha, warm=5, every=4, matching=matching, redraw_above=None)
        found.setdefault(alpha, []).append((float(mmcs(both[0].sae.W_dec, both[1].sae.W_dec)), both, out))
    assert found[1.0][0][0] > found[0.0][0][0] + 0.1
    first, again = found[1.0]
    assert torch.equal(first[1][0].sae.W_dec, again[1][0].sae.W_dec)
    assert first[2].trained.losses == again[2].trained.losses
    assert list(first[2].agreement) == list(range(1, 41, 4))
    assert not first[1][0].sae.training


def test_an_uneven_start_is_drawn_anew():
    both = pair()
    with torch.no_grad():
        both[1].sae.b_enc[:3] = 1e3  # always the same three
    out = train_mutually(both, X, redraw_after=10)
    assert out.redrawn == (1,)
    assert train_mutually(pair(), X, redraw_after=10, redraw_above=50).redrawn == ()


def test_shared_features():
    one, other = (SparseAutoencoder.from_preset("topk", d_in=64, d_sae=40, k=3, seed=seed) for seed in range(2))
    assert shared_features([one, one]).share == 1.0
    far = shared_features([one, other])
    assert far.share == 0.0
    turned = SparseAutoencoder.from_preset("topk", d_in=64, d_sae=40, k=3)
    order = torch.from_numpy(np.random.default_rng(0).permutation(40))
    with torch.no_grad():
        turned.W_dec.copy_(one.W_dec[order])
        turned.W_enc.copy_(one.W_enc[:, order])
        assert shared_features([one, turned]).share == 1.0
        turned.W_enc[:, :10] *= -1  # the same directions, other detectors
    found = shared_features([one, turned, other])
    assert found.by_pair[0, 1] == pytest.approx(0.75)
    assert found.share == pytest.approx(0.25)
    assert found.decoder > found.encoder
    with pytest.raises(InputError, match="saes: got 1"):
        shared_features([one])
    with pytest.raises(InputError, match="features, want equal"):
        shared_features([one, SparseAutoencoder.from_preset("topk", d_in=8, d_sae=40, k=3)])


@pytest.mark.parametrize(
    ("options", "named"),
    [({"alpha": -1}, "alpha"), ({"warm": 0}, "warm"), ({"every": 0}, "every"), ({"matching": "x"}, "matching")],
)
def test_settings_that_cannot_be_are_refused_by_name(options, named):
    with pytest.raises(InputError, match=named):
        train_mutually(pair(), X, **options)
    with pytest.raises(InputError, match="trainers: got 1"):
        train_mutually(pair()[:1], X)
    with pytest.raises(InputError, match="steps: got"):
        train_mutually([pair()[0], pair(steps=3)[0]], X)
    one = pair()[0]
    with pytest.raises(InputError, match="twice"):
        train_mutually([one, one], X)

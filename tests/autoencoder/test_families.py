"""Families by hand, matching of dictionaries, and steering with the residual left in place."""

import numpy as np
import pytest
import torch
from scipy import sparse

from ellzero.autoencoder.dictionaries import match_dictionaries
from ellzero.autoencoder.families import Family, coactivation, feature_families
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.steering import steer
from ellzero.errors import InputError


def chain():
    """Latent 0 fires always, 1 below it, 2 below 1, and 3 apart from 1 and 2."""
    z = np.zeros((40, 5))
    z[:, 0], z[:20, 1], z[:8, 2], z[25:40, 3] = 1, 2, 3, 4
    return z


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, torch.from_numpy])
def test_a_child_hangs_below_its_nearest_ancestor(form):
    families = feature_families(form(chain()))
    assert families[0] == Family(0, frozenset({0, 1, 2, 3}), ((0, 1), (0, 3), (1, 2)))
    together, counts = coactivation(form(chain()))
    assert counts.tolist() == [40, 20, 8, 15, 0]
    assert together.toarray()[1].tolist() == [20, 0, 8, 0, 0]


def test_rounds_take_parents_out_and_equal_families_become_one():
    assert [family.parent for family in feature_families(chain(), rounds=1)] == [0]
    assert [sorted(family.members) for family in feature_families(chain(), rounds=2)] == [[0, 1, 2, 3], [1, 2]]
    assert len(feature_families(chain(), rounds=3, overlap=0.4)) == 1
    assert feature_families(np.eye(4)) == []
    assert feature_families(np.zeros((3, 4))) == []


def test_threshold_is_on_the_rarer_ones_rows():
    z = np.zeros((100, 2))
    z[:50, 0], z[46:56, 1] = 1, 1  # four of the rarer one's ten rows
    assert len(feature_families(z, threshold=0.39)) == 1
    assert feature_families(z, threshold=0.41) == []
    for bad in ({"threshold": 2}, {"overlap": -1}, {"rounds": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            feature_families(z, **bad)
    with pytest.raises(InputError, match="z: got 1 axes"):
        feature_families(np.ones(3))


def test_latents_that_split_are_new_or_are_lost():
    small = np.eye(4)[:3]
    large = np.array([[1, 0.2, 0, 0], [1, 0, 0.2, 0], [0, 2, 0, 0], [0, 0, 0, 1.0]])
    found = match_dictionaries(small, large)
    assert found.split == {0: [0, 1]}
    assert found.matches == {0: [0, 1], 1: [2]}
    assert found.novel.tolist() == [3]
    assert found.lost.tolist() == [2]
    with pytest.raises(InputError, match="want equal"):
        match_dictionaries(small, large[:, :3])


def test_steering_changes_one_direction_and_keeps_the_rest():
    sae = SparseAutoencoder.from_preset("topk", d_in=12, d_sae=30, k=4).eval()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32))
    z = sae.encode(x).detach()
    moved = steer(sae, x, {7: 2.0})
    wanted = x + (2.0 - z[:, 7:8]) * sae.W_dec[7].detach()
    wanted *= x.norm(dim=1, keepdim=True) / wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved, wanted)
    added = x + 2.0 * sae.W_dec[7].detach()
    added *= x.norm(dim=1, keepdim=True) / added.norm(dim=1, keepdim=True)
    torch.testing.assert_close(steer(sae, x.numpy(), {7: 2.0}, how="add"), added)
    torch.testing.assert_close(steer(sae, x, {7: 0.0}, how="add"), x)  # nothing asked for, nothing changed
    for bad in ({}, {30: 1.0}, {1: float("nan")}):
        with pytest.raises(InputError, match="latents"):
            steer(sae, x, bad)

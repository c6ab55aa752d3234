"""Text that a model writes: its distribution, budget and nucleus; and latents that fire on noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.autoencoder.faithful import fake_feature_ratio, sample_tokens
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.errors import InputError
from ellzero.models.reference import reference_language_model
from ellzero.models.transformer import TransformerConfig

CONFIG = TransformerConfig(vocabulary=12, width=8, depth=2, heads=2, key_heads=1, hidden=16, context=16)


def net():
    model = CONFIG.build(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    return model


class Foreign(nn.Module):
    """The same model in other clothes: no cache, an output with logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        out = type("Output", (), {})()
        out.logits = self.inner(tokens)
        return out


def test_the_budget_is_exact_and_a_sequence_is_its_own():
    model = net()
    found = sample_tokens(model, 1, 100, seed=3)
    assert sum(len(row) - 1 for row in found) == 100
    assert all(row[0] == 1 and len(row) <= 16 for row in found)
    assert found == sample_tokens(model, 1, 100, seed=3, batch=3)
    assert found != sample_tokens(model, 1, 100, seed=4)
    assert sample_tokens(model, 1, 190, seed=3)[:6] == found[:6]
    assert sample_tokens(Foreign(model), 1, 60, seed=3, length=16) == sample_tokens(model, 1, 60, seed=3)
    state = torch.get_rng_state()
    sample_tokens(model.train(), 1, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
@torch.no_grad()
def test_first_tokens_follow_the_models_distribution(temperature, top_p):
    model = net().eval()
    chance = torch.softmax(model(torch.tensor([[1]]))[0, -1].double() / temperature, -1).numpy()
    order = np.argsort(-chance, kind="stable")
    nucleus = order[: int(np.searchsorted(np.cumsum(chance[order]), top_p)) + 1] if top_p < 1 else order
    want = np.zeros(12)
    want[nucleus] = chance[nucleus] / chance[nucleus].sum()
    drawn = [
        row[1] for row in sample_tokens(model, 1, 4000, length=2, temperature=temperature, top_p=top_p, batch=4000)
    ]
    seen = np.bincount(drawn, minlength=12) / 4000
    assert (seen[want == 0] == 0).all()
    assert abs(seen - want).max() < 4 * 0.5 / np.sqrt(4000)


def test_latents_that_fire_on_noise_are_counted():
    model, tokenizer = reference_language_model()
    sae = SparseAutoencoder.from_preset("relu_l1", d_in=128, d_sae=16, k=2)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc[:4] = 1.0  # always on, the others never
        sae.b_enc[4:] = -1.0
    assert fake_feature_ratio(model, "layers.1", sae.eval(), tokens=300, tokenizer=tokenizer) == 0.25
    assert fake_feature_ratio(model, "layers.1", sae, tokens=300, context=32) == 0.25


def test_what_cannot_be_is_refused_by_name():
    model = net()
    for options, named in (
        ({"tokens": 0}, "tokens"), ({"length": 17}, "length"), ({"length": 1}, "length"),
        ({"temperature": 0}, "temperature"), ({"top_p": 0}, "top_p"),
        ({"bos": -1}, "bos"), ({"batch": 0}, "batch"), ({"model": 3}, "model"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            sample_tokens(**{"model": model, "bos": 1, "tokens": 10, **options})
    sae = SparseAutoencoder.from_preset("topk", d_in=8, d_sae=16, k=2)
    with pytest.raises(InputError, match="vocabulary: got none"):
        fake_feature_ratio(Foreign(model), "inner.layers.1", sae)
    with pytest.raises(InputError, match="above"):
        fake_feature_ratio(model, "layers.1", sae, above=1)

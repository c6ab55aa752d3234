"""Training inside a model: the loss against one written out by hand, what is left alone, a killed run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.autoencoder.end_to_end import EndToEndTrainer, course
from ellzero.autoencoder.inputs import ExpectedNorm
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.spliced_loss import cross_entropy_recovered
from ellzero.errors import InputError
from ellzero.models.transformer import TransformerConfig

TOKENS = [list(np.random.default_rng(i).integers(0, 20, 16 + 5 * i)) for i in range(6)]
CONFIG = TransformerConfig(vocabulary=20, width=8, depth=4, heads=2, key_heads=1, hidden=16, context=16)


def net():
    model = CONFIG.build(seed=1)
    with torch.no_grad():  # a fresh one predicts almost evenly
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim == 2 else 1)
    return model


def make(preset="relu_l1", **options):
    return SparseAutoencoder.from_preset(preset, d_in=8, d_sae=24, k=3, **options)


KINDS = {
    "local": {"kl": 0, "local": 1}, "e2e": {}, "downstream": {"downstream": 2.0},
    "all": {"downstream": 1.0, "local": 0.5},
}  # fmt: skip


def by_hand(model, sae, kind, tokens, alpha):
    """All terms for unpadded windows, with hooks of its own and the divergence summed up entry by entry."""
    terms = {"kl": 1, "downstream": 0, "local": 0, **KINDS[kind]}
    held = {}

    def run(replace):
        layers = [model.layers[i] for i in (1, 2, 3)]

        def hook(i):
            def on(module, inputs, out):
                held[i] = out
                return replace(out) if i == 0 and replace is not None else None

            return on

        handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
        out = model(tokens)
        for handle in handles:
            handle.remove()
        return out, [held[1], held[2]], held[0]

    with torch.no_grad():
        plain, before, x = run(None)
    codes = []

    def replace(out):
        codes.append(sae.encode(out.reshape(-1, 8)))
        return sae.decode(codes[0]).reshape(out.shape)

    told, after, _ = run(replace)
    p, q = torch.softmax(plain.double(), -1), torch.log_softmax(told.double(), -1)
    # KL(original || spliced): the average is over the original's predictions
    kl = (p * (p.log() - q)).sum(-1).mean()
    ds = sum((a - b).square().mean() for a, b in zip(before, after)) / 2
    local = (x - sae.decode(codes[0]).reshape(x.shape)).square().mean()
    l1 = alpha * (codes[0] * sae.W_dec.norm(dim=1)).sum(1).mean() / 8
    return terms["kl"] * kl + terms["downstream"] * ds + terms["local"] * local + l1


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_written_out_by_hand(kind):
    model, tokens = net().eval(), torch.tensor([row[:16] for row in TOKENS])
    sae = make()
    trainer = EndToEndTrainer(sae, model, "layers.1", alpha=0.3, lr=1e-9, steps=1, sequences=6, **KINDS[kind])
    trainer.fit(tokens=tokens.tolist(), context=16)
    sae.train()
    found = trainer.loss(torch.arange(6))
    want = by_hand(model, sae, kind, tokens, 0.3)
    assert found.item() == pytest.approx(want.item(), rel=1e-5)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    got = torch.autograd.grad(found, [getattr(sae, name) for name in names])
    for name, one, other in zip(names, got, torch.autograd.grad(want, [getattr(sae, name) for name in names])):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=name)
    if kind == "e2e":  # the divergence the other way round is another number
        loss = cross_entropy_recovered(
            model, "layers.1", sae.eval(), tokens=tokens.tolist(), context=16, drop_bos=False
        )
        swapped = found.detach().item() - 0.3 * float(sae.encode(_rows(model, tokens)).detach().sum(1).mean()) / 8
        assert swapped > 0
        assert loss.kl == pytest.approx(swapped, rel=0.2)  # of all but the last position of each window


def _rows(model, tokens):
    held = []
    handle = model.layers[1].register_forward_hook(lambda module, inputs, out: held.append(out))
    model(tokens)
    handle.remove()
    return held[0].detach().reshape(-1, 8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["relu_l1", "topk", "batchtopk"])
def test_it_learns_and_leaves_the_model_alone(kind, preset):
    model = net().train()
    model.norm.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    sae = make(preset, inputs=ExpectedNorm())
    trainer = EndToEndTrainer(sae, model, "layers.1", alpha=0.01, lr=0.01, steps=40, sequences=4, **KINDS[kind])
    found = trainer.fit(tokens=TOKENS)
    losses = list(found.losses.values())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert asked == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not sae.training
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    assert sae.decode(sae.encode(torch.ones(2, 8)), torch.ones(2, 8)).shape == (2, 8)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    class Killed(Exception):
        pass

    def run(kill_at=None, **options):
        sae = make()
        trainer = EndToEndTrainer(sae, net(), "layers.1", lr=0.01, steps=20, sequences=2, downstream=1.0)
        plain, count = trainer.loss, []

        def loss(chosen):
            count.append(1)
            if len(count) == kill_at:
                raise Killed
            return plain(chosen)

        trainer.loss = loss
        trainer.fit(tokens=TOKENS, **options)
        return sae

    whole = run()
    with pytest.raises(Killed):
        run(13, checkpoint=tmp_path, every=5)
    again = run(checkpoint=tmp_path, every=5)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_later_modules_and_the_course():
    model = net()
    found = EndToEndTrainer(make(), model, "layers.1.attention", downstream=1.0)
    assert found.later == ["layers.2.attention", "layers.3.attention"]
    assert EndToEndTrainer(make(), model, "layers.1", downstream=1.0, later=["layers.3"]).later == ["layers.3"]
    assert EndToEndTrainer(make(), model, "layers.1").later == []
    rates = [course(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2, rel=0.01)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kl": 0}, "kl, downstream, local: got 0"), ({"alpha": -1}, "alpha"), ({"lr": 0}, "lr"),
        ({"steps": 0}, "steps"), ({"hook": "layers.9"}, "layers.9"),
        ({"hook": "layers.3", "downstream": 1.0}, "later: found no module"),
        ({"sae": 3}, "sae: got int"), ({"model": 3}, "model: got int"), ({"sequences": 0}, "sequences"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(options, named):
    settings = {"sae": make(), "model": net(), "hook": "layers.1", **options}
    with pytest.raises(InputError, match=named):
        EndToEndTrainer(**settings)


def test_an_autoencoder_of_another_width_is_refused():
    sae = SparseAutoencoder.from_preset("topk", d_in=5, d_sae=9, k=2)
    with pytest.raises(InputError, match=r"takes 5 features, but 'layers\.1' gives 8"):
        EndToEndTrainer(sae, net(), "layers.1").fit(tokens=TOKENS)

"""Spliced autoencoders: outputs stay to the bit, edits move them by what they say, derivatives flow where asked."""

import copy

import pytest
import torch
from torch import nn

from ellzero.autoencoder import SparseAutoencoder
from ellzero.autoencoder.splice import attach
from ellzero.errors import InputError
from ellzero.models import TransformerConfig
from ellzero.models.sites import locate

transformers = pytest.importorskip("transformers")

TOKENS = torch.tensor([[1, 5, 7, 3, 2], [1, 9, 4, 4, 8]])


def ours():
    return TransformerConfig(vocabulary=12, width=8, depth=3, heads=2, key_heads=1, hidden=16).build(0).eval()


def hugging_face(family):
    sizes = {"vocab_size": 12, "bos_token_id": None, "eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            config = transformers.GPT2Config(n_embd=8, n_layer=3, n_head=2, n_positions=16, **sizes)
            return transformers.GPT2LMHeadModel(config).eval()
        wide = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, **wide, **sizes)).eval()


MODELS = {"ours": ours, "gpt2": lambda: hugging_face("gpt2"), "llama": lambda: hugging_face("llama")}


def logits(model, tokens=TOKENS):
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def autoencoder(d=8, m=20, k=3, seed=0, name="topk"):
    sae = SparseAutoencoder.from_preset(name, d_in=d, d_sae=m, k=k, seed=seed).eval()
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.1, 0.1, d))
    return sae


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_with_the_error_term_nothing_changes_and_the_codes_are_seen(model):
    sae = autoencoder()
    with torch.no_grad():
        before = logits(model)
        rows = []
        hook = model.get_submodule(locate(model, "layers.1")).register_forward_hook(
            lambda m, i, out: rows.append(out if isinstance(out, torch.Tensor) else out[0]), prepend=True
        )
        with attach(model, {"layers.1": sae, "layers.2": autoencoder(seed=1)}) as splice:
            assert torch.equal(logits(model), before)
            assert splice.latents["layers.1"].shape == splice.latents["layers.2"].shape == (2, 5, 20)
            torch.testing.assert_close(splice.latents["layers.1"].reshape(10, 20), sae.encode(rows[-1].reshape(10, 8)))
        hook.remove()
        assert splice.latents == {}
        assert torch.equal(logits(model), before)


def test_without_it_the_reconstruction_takes_the_place(model):
    """Against a hook of torch's own."""
    sae = autoencoder()

    def replace(module, inputs, out):
        x = out if isinstance(out, torch.Tensor) else out[0]
        y = sae(x.reshape(-1, 8)).view_as(x)
        return y if isinstance(out, torch.Tensor) else (y, *out[1:])

    with torch.no_grad():
        with attach(model, {"layers.1": sae}, error_term=False) as splice:
            found = logits(model)
        hook = model.get_submodule(splice.names[0]).register_forward_hook(replace)
        wanted = logits(model)
        hook.remove()
        assert torch.equal(found, wanted)
        assert not torch.allclose(found, logits(model), atol=1e-3)


def test_an_edit_adds_its_difference_and_nothing_else():
    model, sae, seen = ours(), autoencoder(), []

    def edit(z):
        z = z.clone()
        z[..., 4] += 2.0
        return z

    with torch.no_grad():
        plain = []
        model.layers[1].register_forward_hook(lambda m, i, out: plain.append(out))
        with attach(model, {"layers.1": sae}, edit={"layers.1": edit}):
            model.layers[1].register_forward_hook(lambda m, i, out: seen.append(out))
            logits(model)
    torch.testing.assert_close(seen[0], plain[0] + 2 * sae.W_dec[4])


@pytest.mark.parametrize("error_term", [True, False])
def test_positions_left_out_are_not_touched(error_term):
    model, sae = ours(), autoencoder()
    mask = torch.tensor([[False, True, True, False, True], [False, True, False, True, True]])
    outs = []
    model.layers[1].register_forward_hook(lambda m, i, out: outs.append(out))  # before the splice
    options = {"error_term": error_term, "edit": {"layers.1": lambda z: 3 * z + 1}}
    with torch.no_grad():
        found = {}
        for name, positions in {"all": None, "mask": mask, "function": lambda x: mask, "slice": slice(1, None)}.items():
            with attach(model, {"layers.1": sae}, positions=positions, **options) as splice:
                after = model.layers[1].register_forward_hook(lambda m, i, out: outs.append(out))
                logits(model)
                codes = splice.latents["layers.1"]
                after.remove()
            found[name] = outs[-1]
            chosen = {"all": torch.ones_like(mask), "slice": torch.arange(5).expand(2, 5) > 0}.get(name, mask)
            assert torch.equal(outs[-1][~chosen], outs[-2][~chosen])
            assert not torch.isclose(outs[-1][chosen], outs[-2][chosen]).all(-1).any()
            assert not codes[~chosen].any()
            assert codes[chosen].any(-1).all()
            torch.testing.assert_close(outs[-1][chosen], found["all"][chosen])
    splice = attach(model, {"layers.1": sae}, positions=mask)
    splice.positions = mask[:, :3]
    logits(model, TOKENS[:, :3])
    with pytest.raises(InputError, match=r"positions: got torch\.bool"):
        logits(model)
    splice.remove()


def test_derivatives_reach_autoencoder_and_model_when_asked():
    """End to end: the same gradients as of a model that was written with the autoencoder inside."""
    model, sae = ours(), autoencoder()
    inside, twin = copy.deepcopy(model), copy.deepcopy(sae)
    tail = inside.layers[1].forward
    inside.layers[1].forward = lambda *a, **k: twin(tail(*a, **k).reshape(-1, 8)).view(2, 5, 8)
    with attach(model, {"layers.1": sae}, error_term=False, gradient=True) as splice:
        logits(model).square().sum().backward()
        codes = splice.latents["layers.1"]
        assert codes.grad.shape == (2, 5, 20)
    logits(inside).square().sum().backward()
    for (name, one), (_, other) in zip(sae.named_parameters(), twin.named_parameters()):
        assert one.grad.abs().max() > 0
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for one, other in zip(model.parameters(), inside.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_gradient_of_a_code_is_what_it_does_to_the_output():
    """By finite differences of an edit, through a frozen model and a frozen autoencoder."""
    model, sae = ours().double(), autoencoder().double()
    for part in (model, sae):
        part.requires_grad_(False)
    with attach(model, {"layers.1": sae}, gradient=True) as splice:
        logits(model)[0, -1, 3].backward()
        gradient = splice.latents["layers.1"].grad[0, 2]
        latent = int(splice.latents["layers.1"][0, 2].argmax())
    found = []
    for step in (1e-5, -1e-5):
        bump = torch.zeros(2, 5, 20, dtype=torch.float64)
        bump[0, 2, latent] = step
        with attach(model, {"layers.1": sae}, edit={"layers.1": lambda z, bump=bump: z + bump}):
            found.append(float(logits(model)[0, -1, 3]))
    assert float(gradient[latent]) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("error_term", [True, False])
def test_otherwise_no_derivative_sees_the_autoencoder(error_term):
    model, sae = ours(), autoencoder()
    with attach(model, {"layers.1": sae}, error_term=error_term):
        logits(model).sum().backward()
    assert all(p.grad is None for p in sae.parameters())
    first = model.layers[0].feed_forward.down.weight.grad
    if error_term:
        plain = ours()
        logits(plain).sum().backward()
        assert torch.equal(first, plain.layers[0].feed_forward.down.weight.grad)
    else:
        assert first is None


def test_tuples_and_images_and_any_module():
    class Pair(nn.Module):
        def forward(self, x):
            return (x * 2, "kept", x)

    net = nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU())
    x, sae = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4) / 50.0, autoencoder()
    with torch.no_grad():
        plain = net(x)
        with attach(net, {"0": sae}) as splice:
            assert torch.equal(net(x), plain)
            assert splice.latents["0"].shape == (2, 3, 3, 20)
        with attach(net, {"1": sae}, error_term=False):
            found = net(x)
        rows = plain.permute(0, 2, 3, 1).reshape(-1, 8)
        torch.testing.assert_close(found, sae(rows).view(2, 3, 3, 8).permute(0, 3, 1, 2))
        pair = nn.Sequential(Pair())
        with attach(pair, {"0": sae}, error_term=False):
            first, word, other = pair(torch.ones(4, 8))
        torch.testing.assert_close(first, sae(torch.full((4, 8), 2.0)))
        assert word == "kept"
        assert torch.equal(other, torch.ones(4, 8))


def test_a_model_of_less_precision_keeps_it():
    model, sae = ours().bfloat16(), autoencoder()
    with torch.no_grad():
        before = logits(model)
        assert before.dtype == torch.bfloat16
        with attach(model, {"layers.1": sae}):
            assert torch.equal(logits(model), before)
        with attach(model, {"layers.1": sae}, error_term=False):
            assert logits(model).dtype == torch.bfloat16


def test_what_cannot_be_spliced_is_refused():
    model, sae = ours(), autoencoder()
    for saes, words in [
        ({}, "saes: got none"), ({"layers.9": sae}, "has 3 layers"), ({"layers.1": nn.ReLU()}, "it has no encode"),
        ({"layers.1": sae, "layers.-2": sae}, "a second time"), ({"nothing": sae}, "hook: no module"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            attach(model, saes)
    with pytest.raises(InputError, match="edit: got"):
        attach(model, {"layers.1": sae}, edit={"layers.2": lambda z: z})
    for options, words in [
        ({"edit": {"layers.1": lambda z: z[..., :3]}}, r"edit: gave \(2, 5, 3\)"),
        ({"edit": {"layers.1": lambda z: None}}, "edit: gave NoneType"),
        ({"positions": torch.ones(2, 5)}, "positions: got torch.float32"),
    ]:
        with attach(model, {"layers.1": sae}, **options), pytest.raises(InputError, match=words):
            logits(model)
    with attach(model, {"layers.1": autoencoder(d=6)}), pytest.raises(InputError, match="gives 8 features, but"):
        logits(model)
    assert not model.layers[1]._forward_hooks

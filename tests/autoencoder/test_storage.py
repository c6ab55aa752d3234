"""Files with the names of SAELens: a round trip to the bit, foreign files as their library reads them, damage named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.errors import InputError

X = np.random.default_rng(0).standard_normal((900, 6)).astype(np.float32)
ARCHITECTURE = {"relu_l1": "standard", "topk": "topk", "batchtopk": "jumprelu"}


def trained(name):
    sae = SparseAutoencoder.from_preset(name, d_in=6, d_sae=14, k=3)
    SAETrainer(sae, lr=0.01, batch_size=64, steps=40).fit(X + 1)
    return sae


@pytest.mark.parametrize("name", list(ARCHITECTURE))
def test_what_was_saved_comes_back_to_the_bit(name, tmp_path):
    sae = trained(name)
    sae.save(tmp_path / "new" / "folder")
    loaded = SparseAutoencoder.load(tmp_path / "new" / "folder")
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded.encode(X), sae.encode(X))
        assert torch.equal(loaded(torch.from_numpy(X)), sae(torch.from_numpy(X)))
        assert torch.equal(loaded.train().encode(X), sae.encode(X))
    loaded.save(tmp_path / "again")
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "new" / "folder" / file).read_bytes()


@pytest.mark.parametrize("name", list(ARCHITECTURE))
def test_names_and_shapes_are_those_of_saelens(name, tmp_path):
    sae = trained(name)
    sae.save(tmp_path)
    config, tensors = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    wanted = {"W_enc": (6, 14), "b_enc": (14,), "W_dec": (14, 6), "b_dec": (6,)}
    if name == "batchtopk":
        wanted["threshold"] = (14,)
    assert {key: tuple(value.shape) for key, value in tensors.items()} == wanted
    assert config["architecture"] == ARCHITECTURE[name]
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (6, 14, "float32")
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert config.get("k") == (3 if name == "topk" else None)


def foreign(folder, architecture, tensors, **config):
    save_file(tensors, folder / "sae_weights.safetensors")
    shape = tensors["W_enc"].shape
    whole = {"architecture": architecture, "d_in": shape[0], "d_sae": shape[1], "dtype": "float32",
             "device": "cuda", "normalize_activations": "none", "metadata": {"hook_name": "x"}, **config}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(whole))


def some_tensors(**more):
    draw = np.random.default_rng(3)
    shapes = {"W_enc": (6, 14), "b_enc": (14,), "W_dec": (14, 6), "b_dec": (6,)}
    return {key: torch.from_numpy(draw.standard_normal(s).astype(np.float32)) for key, s in shapes.items()} | more


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_a_file_of_saelens_is_read_as_that_library_does(architecture, subtracted, rescaled, tmp_path):
    threshold = torch.linspace(0, 1, 14)
    tensors = some_tensors(**({"threshold": threshold} if architecture == "jumprelu" else {}))
    foreign(tmp_path, architecture, tensors, k=4, apply_b_dec_to_input=subtracted,
            rescale_acts_by_decoder_norm=rescaled and architecture == "topk")  # fmt: skip
    x = torch.from_numpy(X)
    pre = (x - tensors["b_dec"] * subtracted) @ tensors["W_enc"] + tensors["b_enc"]
    norms = tensors["W_dec"].norm(dim=1) if rescaled and architecture == "topk" else torch.ones(14)
    pre = pre * norms
    z = pre.relu()
    if architecture == "topk":
        z = torch.zeros_like(z).scatter(1, pre.topk(4).indices, pre.topk(4).values.relu())
    if architecture == "jumprelu":
        z = z * (pre > threshold)
    sae = SparseAutoencoder.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), z, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(sae(x), z / norms @ tensors["W_dec"] + tensors["b_dec"], atol=1e-4, rtol=1e-4)


def test_half_precision_files_are_widened(tmp_path):
    tensors = {key: value.to(torch.bfloat16) for key, value in some_tensors().items()}
    foreign(tmp_path, "standard", tensors, dtype="bfloat16")
    assert torch.equal(SparseAutoencoder.load(tmp_path).W_dec, tensors["W_dec"].float())


def test_a_selection_over_the_batch_is_not_saved_before_it_is_calibrated(tmp_path):
    with pytest.raises(InputError, match="threshold: not calibrated"):
        SparseAutoencoder.from_preset("batchtopk", d_in=6, d_sae=14, k=3).save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "gated"}, "architecture: got 'gated', want one of stand"), ({"architecture": None}, "arch"),
        ({"d_in": 0}, "d_in is 0"), ({"d_sae": "14"}, "d_sae is '14'"), ({"d_in": 7}, r"W_enc has shape \(6, 14\)"),
        ({"architecture": "topk"}, "k is None"), ({"architecture": "topk", "k": 15}, "k is 15"),
        ({"architecture": "jumprelu"}, "lacks the tensor threshold"), ({"ellzero": {"version": 2}}, "version 2"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"ellzero": {"version": 1, "weights": "0" * 64}}, "does not belong"), ({"ellzero": []}, "format version"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(change, named, tmp_path):
    foreign(tmp_path, **{"architecture": "standard", "tensors": some_tensors()})
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=named):
        SparseAutoencoder.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    sae = trained("topk")
    with pytest.raises(InputError, match=r"cfg\.json"):
        SparseAutoencoder.load(tmp_path / "nothing")
    for file in ("cfg.json", "sae_weights.safetensors"):
        sae.save(tmp_path)
        content = (tmp_path / file).read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"\xff\xfe\x00", b"[1, 2]"):
            (tmp_path / file).write_bytes(damaged)
            with pytest.raises(InputError, match=file):
                SparseAutoencoder.load(tmp_path)
        (tmp_path / file).unlink()
        with pytest.raises(InputError, match=file):
            SparseAutoencoder.load(tmp_path)
    foreign(tmp_path, "standard", some_tensors(b_enc=torch.full((14,), torch.nan)))
    with pytest.raises(InputError, match="b_enc: 14 entries not finite"):
        SparseAutoencoder.load(tmp_path)

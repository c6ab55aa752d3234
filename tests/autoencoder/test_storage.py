"""Our own folder: a round trip of every preset and normalisation, files of SAELens and older ones, damage named."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ellzero.autoencoder import SAETrainer, SparseAutoencoder
from ellzero.autoencoder.adaptive import fit_probe
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm, RowNorm, Whitening
from ellzero.autoencoder.presets import PRESETS
from ellzero.errors import InputError
from ellzero.parts.constraints import Threshold, TopK

X = np.random.default_rng(0).standard_normal((900, 6)).astype(np.float32)
ARCHITECTURE = {"relu_l1": "standard", "gated": "gated", "topk": "topk", "batchtopk": "jumprelu",
                "abs_topk": "abstopk", "jumprelu": "jumprelu"}  # fmt: skip
INPUTS = (None, ExpectedNorm(), RowNorm(), RowNorm("root"), LayerNorm(), LayerNorm(0.01), Whitening())


def trained(name):
    sae = SparseAutoencoder.from_preset(name, d_in=6, d_sae=14, k=3)
    SAETrainer(sae, lr=0.01, batch_size=64, steps=40).fit(X + 1)
    return sae


def drawn(name, inputs=None):
    """With random numbers in every tensor, fitted and calibrated."""
    sae = SparseAutoencoder.from_preset(name, d_in=6, d_sae=14, k=3, inputs=inputs)
    stream = np.random.default_rng(4)
    with torch.no_grad():
        for one in sae.parameters():
            one.add_(torch.from_numpy(0.2 * stream.standard_normal(tuple(one.shape))))
        sae.normalize()
    sae.fit_inputs(torch.from_numpy(X))
    if name == "adaptive_k":
        fit_probe(sae, X, np.abs(X[:, 0]) * 2)
    if sae.calibrates:
        sae.calibrate(torch.from_numpy(X))
    return sae.eval()


@pytest.mark.parametrize("inputs", INPUTS, ids=repr)
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_comes_back_with_every_normalisation(name, inputs, tmp_path):
    sae = drawn(name, inputs)
    sae.save(tmp_path)
    loaded = SparseAutoencoder.load(tmp_path)
    assert not loaded.training
    assert loaded.preset == name
    x = torch.from_numpy(X)
    with torch.no_grad():
        if loaded.inputs == inputs:
            assert torch.equal(loaded.encode(x), sae.encode(x))
            assert torch.equal(loaded(x), sae(x))
        else:  # the factor went into the weights
            assert isinstance(inputs, ExpectedNorm)
            torch.testing.assert_close(loaded.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(loaded(x), sae(x), atol=1e-5, rtol=1e-5)
    loaded.save(tmp_path / "again")
    once, twice = (json.loads((folder / "cfg.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    assert once == twice


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_what_was_loaded_can_be_trained_on(name, tmp_path):
    sae = drawn(name)
    sae.save(tmp_path)
    loaded = SparseAutoencoder.load(tmp_path)
    assert loaded.objective == sae.objective
    assert (loaded.recommended, loaded.encoder, loaded.decoder) == (sae.recommended, sae.encoder, sae.decoder)
    wanted = (Threshold(0.0), None) if sae.calibrates else (sae.select, sae.infer)
    assert repr((loaded.select, loaded.infer)) == repr(wanted)
    assert not loaded.calibrates


def test_a_factor_of_all_rows_is_folded_where_the_encoder_has_weights(tmp_path):
    for name in ("relu_l1", "gated", "topk", "batchtopk", "jumprelu", "matryoshka"):
        drawn(name, ExpectedNorm()).save(tmp_path / name)
        assert SparseAutoencoder.load(tmp_path / name).inputs is None
        assert "input_scale" not in load_file(tmp_path / name / "sae_weights.safetensors")
    for name in ("k_sparse", "mp_sae", "top_afa"):  # tied, or the selection sees the norm of the row
        drawn(name, ExpectedNorm()).save(tmp_path / name)
        assert SparseAutoencoder.load(tmp_path / name).inputs == ExpectedNorm()
        assert json.loads((tmp_path / name / "cfg.json").read_text())["architecture"] == "ellzero"


def test_files_of_the_first_version_are_read(tmp_path):
    tensors = some_tensors(threshold=torch.linspace(0, 1, 14))
    foreign(tmp_path, "jumprelu", tensors, apply_b_dec_to_input=True)
    digest = hashlib.sha256((tmp_path / "sae_weights.safetensors").read_bytes()).hexdigest()
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "ellzero": {"version": 1, "weights": digest}}))
    sae, x = SparseAutoencoder.load(tmp_path), torch.from_numpy(X)
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), pre.relu() * (pre > tensors["threshold"]), atol=1e-4, rtol=1e-4)


def test_what_is_no_plain_value_is_not_written(tmp_path):
    sae = SparseAutoencoder(6, 14, select=TopK(3), score=lambda sae, scores, beside: scores)
    with pytest.raises(InputError, match="score of an autoencoder of Linear and TopK: a function cannot be written"):
        sae.save(tmp_path)
    sae = SparseAutoencoder(6, 14, select=Threshold(torch.zeros(14)))
    with pytest.raises(InputError, match="select of an autoencoder of Linear and Threshold: a Tensor cannot"):
        sae.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inputs", [ExpectedNorm(), Whitening()], ids=repr)
def test_a_normalisation_is_not_saved_before_it_is_fitted(inputs, tmp_path):
    sae = SparseAutoencoder.from_preset("topk", d_in=6, d_sae=14, k=3, inputs=inputs)
    for name in ("ellzero", "saelens"):
        with pytest.raises(InputError, match="not fitted"):
            sae.save(tmp_path / "x", format=name)
    assert not (tmp_path / "x").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.floats() | st.sampled_from(
        ["relu", "signed", "parts.constraints.TopK", "parts.constraints.BatchTopK", "autoencoder.encoders.Gated",
         "parts.schedules.Linear", "autoencoder.model.SparseAutoencoder", "os.path.join", "", "..", "parts.gradients.x",
         "autoencoder.objective.AuxK", "autoencoder.inputs.Whitening", "autoencoder.model.UnitNorm"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["part", "k", "axis", "rule", "map", "number", "start", "levels"]), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip
SLOTS = ("select", "encoder", "score", "gradient", "infer", "decoder", "objective", "inputs", "architecture",
         "recommended", "preset", "other")  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    drawn("hierarchical_topk").save(folder)
    return folder, json.loads((folder / "cfg.json").read_text())


@given(slot=st.sampled_from(SLOTS), part=JSON)
def test_whatever_the_parts_say_an_error_names_the_file(saved, slot, part):
    folder, config = saved
    own = {**config["ellzero"], "parts": {**config["ellzero"]["parts"], slot: part}}
    (folder / "cfg.json").write_text(json.dumps({**config, "ellzero": own}))
    try:
        SparseAutoencoder.load(folder)
    except InputError as error:
        said = str(error)
        assert "cfg.json" in said or "sae_weights" in said


@given(key=st.sampled_from(["architecture", "d_in", "d_sae", "ellzero", "k", "dtype"]), value=JSON)
def test_whatever_the_settings_say_an_error_names_the_file(saved, key, value):
    folder, config = saved
    (folder / "cfg.json").write_text(json.dumps({**config, key: value}))
    try:
        SparseAutoencoder.load(folder)
    except InputError as error:
        said = str(error)
        assert "cfg.json" in said or "sae_weights" in said


def test_parts_of_other_kinds_are_refused(saved):
    folder, config = saved
    for part, named in (
        ({"part": "autoencoder.model.SparseAutoencoder", "d_in": 3, "d_sae": 4}, "has no part for"),
        ({"part": "parts.selection.check_axis"}, "has no part for"), ({"part": "errors.InputError"}, "has no part for"),
        ({"part": "parts.constraints.TopK", "k": 3, "z": 1}, "has no argument 'z'"),
        ({"part": "parts.constraints.TopK", "k": -3}, "TopK: k: got -3"), ({"part": 3}, "got 3"), ({}, "got None"),
        ({"part": "parts.constraints.TopK"}, "cannot be made of"), (3, "no part for that place"),
        ({"part": "parts.constraints.TopK", "k": 99}, "k: got 99"), ({"part": "parts.gradients.Masked"}, "no part for"),
    ):  # fmt: skip
        own = {**config["ellzero"], "parts": {**config["ellzero"]["parts"], "select": part}}
        (folder / "cfg.json").write_text(json.dumps({**config, "ellzero": own}))
        with pytest.raises(InputError, match=named):
            SparseAutoencoder.load(folder)


def test_tensors_that_do_not_fit_the_parts_are_named(tmp_path):
    for change, named in (
        ({"W_enc": None}, "lacks the tensor W_enc"), ({"b_dec": torch.zeros(7)}, r"b_dec has shape \(7,\)"),
        ({"r_mag": torch.zeros(14)}, "a tensor: got 'r_mag'"), ({"W_dec": torch.zeros(2, 2)}, "W_dec has shape"),
        ({"b_enc": torch.full((14,), torch.inf)}, "14 entries not finite"),
    ):  # fmt: skip
        drawn("topk").save(tmp_path)
        tensors = {key: one for key, one in (load_file(tmp_path / "sae_weights.safetensors") | change).items()
                   if one is not None}  # fmt: skip
        save_file(tensors, tmp_path / "sae_weights.safetensors")
        config = json.loads((tmp_path / "cfg.json").read_text())
        digest = hashlib.sha256((tmp_path / "sae_weights.safetensors").read_bytes()).hexdigest()
        config["ellzero"]["weights"] = digest
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=named):
            SparseAutoencoder.load(tmp_path)


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
    if ARCHITECTURE[name] == "jumprelu":
        wanted["threshold"] = (14,)
    if name == "gated":
        wanted = {"W_enc": (6, 14), "b_gate": (14,), "W_dec": (14, 6), "b_dec": (6,), "b_mag": (14,), "r_mag": (14,)}
    assert {key: tuple(value.shape) for key, value in tensors.items()} == wanted
    assert config["architecture"] == ARCHITECTURE[name]
    assert (config["d_in"], config["d_sae"], config["dtype"]) == (6, 14, "float32")
    assert config["apply_b_dec_to_input"] is True
    assert config["normalize_activations"] == "none"
    assert config.get("k") == (3 if name in ("topk", "abs_topk") else None)


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
        ({"architecture": "gatd"}, "architecture: got 'gatd', want one of stand"), ({"architecture": None}, "arch"),
        ({"architecture": "gated"}, "lacks the tensor b_gate"), ({"architecture": "ellzero"}, "got 'ellzero'"),
        ({"d_in": 0}, "d_in is 0"), ({"d_sae": "14"}, "d_sae is '14'"), ({"d_in": 7}, r"W_enc has shape \(6, 14\)"),
        ({"architecture": "topk"}, "k is None"), ({"architecture": "topk", "k": 15}, "k is 15"),
        ({"architecture": "jumprelu"}, "lacks the tensor threshold"), ({"ellzero": {"version": 3}}, "version 3"),
        ({"normalize_activations": "norm"}, "normalize_activations: got 'norm'"),
        ({"ellzero": {"version": True}}, "version True"), ({"ellzero": {"version": 2}}, "does not belong"),
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


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    sae = drawn("topk")
    with torch.no_grad():
        sae.b_enc[3] = torch.nan
    with pytest.raises(InputError, match="b_enc of preset 'topk': 1 entry not finite"):
        sae.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()

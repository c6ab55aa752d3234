"""Files of other libraries: hand-made ones read by their definition, round trips, refusals, damage."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ellzero.autoencoder import SparseAutoencoder
from ellzero.autoencoder.adaptive import fit_probe
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm, RowNorm, Whitening
from ellzero.autoencoder.nested import NestedReconstruction
from ellzero.autoencoder.presets import PRESETS
from ellzero.errors import InputError

D, M, K = 6, 14, 3
X = torch.from_numpy(np.random.default_rng(0).standard_normal((60, D)).astype(np.float32)) * 2 + 1
INPUTS = {
    "none": None, "expected": ExpectedNorm(), "unit": RowNorm(), "root": RowNorm("root"), "layer": LayerNorm(),
    "layer_eps": LayerNorm(0.01), "white": Whitening(),
}  # fmt: skip
FOLDED = ("none", "expected", "white")
JUMPS = ("batchtopk", "jumprelu", "matryoshka", "mutual_choice", "feature_choice", "relu_l1")
TOPKS = ("topk", "msae", "hierarchical_topk", "g_sae", "csr")
# format: preset: the normalisations that it can hold
HOLDS = {
    "saelens": {
        **dict.fromkeys((*JUMPS, *TOPKS, "gated", "abs_topk"), (*FOLDED, "unit", "root", "layer")),
        "mp_sae": ("none", "root", "layer"),
    },
    "dictionary_learning": dict.fromkeys((*JUMPS, *TOPKS, "gated"), FOLDED),
    "sparsify": dict.fromkeys(TOPKS, FOLDED),
    "gemma_scope": dict.fromkeys(JUMPS, FOLDED),
    "openai": {"relu_l1": FOLDED, **dict.fromkeys((*TOPKS, "k_sparse"), ("layer",))},
}  # fmt: skip


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def drawn(name, inputs=None):
    """With random numbers in every tensor, fitted and calibrated."""
    sae = SparseAutoencoder.from_preset(name, d_in=D, d_sae=M, k=K, inputs=inputs)
    with torch.no_grad():
        for i, one in enumerate(sae.parameters()):
            one.add_(0.2 * numbers(*one.shape, seed=i))
        sae.normalize()
    sae.fit_inputs(X)
    if name == "adaptive_k":
        fit_probe(sae, X, X[:, 0].abs().clamp_max(9))
    if sae.calibrates:
        sae.calibrate(X)
    return sae.eval()


def same(one, other, x=X):
    with torch.no_grad():
        torch.testing.assert_close(one.encode(x), other.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one(x), other(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("told", list(INPUTS))
@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("format", list(HOLDS))
def test_what_a_format_holds_comes_back_and_the_rest_is_refused_by_name(format, name, told, tmp_path):
    sae = drawn(name, INPUTS[told])
    if told in HOLDS[format].get(name, ()):
        sae.save(tmp_path / "x", format=format)
        same(SparseAutoencoder.load(tmp_path / "x", format=format), sae)
        same(SparseAutoencoder.load(tmp_path / "x"), sae)
        return
    with pytest.raises(InputError, match=f"format: '{format}' cannot hold preset '{name}'") as caught:
        sae.save(tmp_path / "x", format=format)
    if name in HOLDS[format] and told not in FOLDED:
        assert type(INPUTS[told]).__name__ in str(caught.value)
    assert not (tmp_path / "x").exists()


# -- files written by hand, from the definition of each format


def select(pre, k, by=None):
    """The ``k`` largest of each row, or by something else."""
    kept = (pre if by is None else by).topk(k).indices
    return torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))


def layer_norm(x):
    mean = x.mean(1, keepdim=True)
    deviation = x.std(1, keepdim=True)
    return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean


def agree(sae, z, x_hat):
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(X), z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(sae(X), x_hat, atol=1e-5, rtol=1e-5)


def lens(folder, config, tensors):
    folder.mkdir(exist_ok=True, parents=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    whole = {"d_in": D, "d_sae": M, "dtype": "float32", "device": "cuda", "metadata": {"hook_name": "x"}, **config}
    (folder / "cfg.json").write_text(json.dumps(whole))
    return SparseAutoencoder.load(folder)


def weights(**more):
    return {"W_enc": numbers(D, M, seed=1), "b_enc": numbers(M, seed=2), "W_dec": numbers(M, D, seed=3),
            "b_dec": numbers(D, seed=4), **more}  # fmt: skip


@pytest.mark.parametrize("subtracted", [True, False])
def test_a_gated_one_of_saelens(subtracted, tmp_path):
    t = weights(b_gate=numbers(M, seed=5), b_mag=numbers(M, seed=6), r_mag=0.3 * numbers(M, seed=7))
    del t["b_enc"]
    sae = lens(tmp_path, {"architecture": "gated", "apply_b_dec_to_input": subtracted}, t)
    x = X - t["b_dec"] * subtracted
    z = (x @ t["W_enc"] + t["b_gate"] > 0) * (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
    agree(sae, z, z @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("normalised", ["layer_norm", "constant_norm_rescale"])
def test_rows_normalised_one_by_one_in_saelens(normalised, tmp_path):
    t = weights()
    sae = lens(tmp_path, {"architecture": "standard", "normalize_activations": normalised}, t)
    x, undo = layer_norm(X)
    if normalised == "constant_norm_rescale":
        factor = math.sqrt(D) / X.norm(dim=1, keepdim=True)
        x, undo = X * factor, lambda y: y / factor
    z = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    agree(sae, z, undo(z @ t["W_dec"] + t["b_dec"]))


def test_the_largest_magnitudes_of_saelens(tmp_path):
    t = weights()
    sae = lens(tmp_path, {"architecture": "abstopk", "k": K}, t)
    pre = (X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    z = select(pre, K, pre.abs())
    agree(sae, z, z @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("key", ["activation_fn", "activation_fn_str"])
def test_settings_of_older_releases_of_saelens(key, tmp_path):
    t = weights(scaling_factor=torch.linspace(0.5, 2, M))
    config = {key: "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False, "hook_point": "x",
              "finetuning_scaling_factor": True, "sae_lens_training_version": None}  # fmt: skip
    sae = lens(tmp_path, config, t)
    z = select(((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu(), K)
    agree(sae, z, (z * t["scaling_factor"]) @ t["W_dec"] + t["b_dec"])
    with pytest.raises(InputError, match="activation_fn is 'tanh-relu', want 'relu' or 'topk'"):
        lens(tmp_path, {key: "tanh-relu"}, t)


def test_a_factor_that_was_not_folded_in_saelens(tmp_path):
    t = weights()
    for told in ("expected_average_only_in", True):
        sae = lens(tmp_path / str(told), {"normalize_activations": told}, t)
        with pytest.raises(InputError, match="inputs: ExpectedNorm is not fitted yet"):
            sae.encode(X)
    (tmp_path / "True" / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    sae = SparseAutoencoder.load(tmp_path / "True")
    z = ((X * 0.25 - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    agree(sae, z, (z @ t["W_dec"] + t["b_dec"]) / 0.25)
    (tmp_path / "True" / "activation_scaler.json").write_text('{"scaling_factor": 0}')
    with pytest.raises(InputError, match="scaling_factor: got 0"):
        SparseAutoencoder.load(tmp_path / "True")


def test_whitening_that_was_not_folded_in_saelens(tmp_path):
    t, mean, matrix = weights(), numbers(D, seed=8), torch.eye(D) * 2 + 0.1 * numbers(D, D, seed=9)
    lens(tmp_path, {"normalize_activations": "covariance_whitening"}, t)
    inverse = torch.linalg.inv(matrix)
    save_file({"mean": mean.double(), "matrix": matrix.double(), "inverse_matrix": inverse.double().contiguous()},
              tmp_path / "activation_whitening.safetensors")  # fmt: skip
    sae = SparseAutoencoder.load(tmp_path)
    z = (((X - mean) @ matrix - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    agree(sae, z, (z @ t["W_dec"] + t["b_dec"]) @ inverse + mean)


def by_steps(t, steps):
    """Matching pursuit row by row."""
    z = torch.zeros(len(X), M)
    for i, row in enumerate(X - t["b_dec"]):
        rest = row.clone()
        for _ in range(steps):
            best = int((t["W_dec"] @ rest).argmax())
            value = float((t["W_dec"][best] @ rest).relu())
            z[i, best] += value
            rest = rest - value * t["W_dec"][best]
    return z


def test_matching_pursuit_of_saelens(tmp_path):
    t = {"W_dec": torch.nn.functional.normalize(numbers(M, D, seed=3)), "b_dec": numbers(D, seed=4)}
    config = {"architecture": "matching_pursuit", "max_iterations": K, "residual_threshold": 0,
              "stop_on_duplicate_support": False}  # fmt: skip
    z = by_steps(t, K)
    agree(lens(tmp_path, config, t), z, z @ t["W_dec"] + t["b_dec"])
    for change, named in (({"residual_threshold": 0.01}, "residual_threshold is 0.01"),
                          ({"stop_on_duplicate_support": True}, "stop_on_duplicate_support is True"),
                          ({"max_iterations": 0}, "max_iterations is 0")):  # fmt: skip
        with pytest.raises(InputError, match=named):
            lens(tmp_path, config | change, t)
    with pytest.raises(InputError, match="want unit rows"):
        lens(tmp_path, config, t | {"W_dec": 2 * t["W_dec"]})


def learnt(folder, content, **trainer):
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(content, folder / "ae.pt")
    if trainer:
        (folder / "config.json").write_text(
            json.dumps({"trainer": {"lr": 1e-3, **trainer}, "buffer": {"d_submodule": D}})
        )
    return SparseAutoencoder.load(folder)


def linear(t, **more):
    return {"encoder.weight": t["W_enc"].T.contiguous(), "decoder.weight": t["W_dec"].T.contiguous(), **more}


@pytest.mark.parametrize("bias", ["bias", "b_dec"])
def test_rectified_ones_of_dictionary_learning(bias, tmp_path):
    t = weights()
    z = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    content = linear(t, **{"encoder.bias": t["b_enc"], bias: t["b_dec"]})
    for settings in ({}, {"dict_class": "AutoEncoder"}):
        agree(learnt(tmp_path / str(len(settings)), content, **settings), z, z @ t["W_dec"] + t["b_dec"])
    agree(SparseAutoencoder.load(tmp_path / "0" / "ae.pt"), z, z @ t["W_dec"] + t["b_dec"])
    z = (X @ t["W_enc"] + t["b_enc"]).relu()
    content = linear(t, **{"encoder.bias": t["b_enc"], "decoder.bias": t["b_dec"]})
    agree(learnt(tmp_path / "new", content), z, z @ t["W_dec"] + t["b_dec"])


def test_a_gated_one_of_dictionary_learning(tmp_path):
    t = weights()
    more = {"gate_bias": numbers(M, seed=5), "mag_bias": numbers(M, seed=6), "r_mag": 0.3 * numbers(M, seed=7)}
    product = (X - t["b_dec"]) @ t["W_enc"]
    z = (product + more["gate_bias"] > 0) * (more["r_mag"].exp() * product + more["mag_bias"]).relu()
    agree(learnt(tmp_path, linear(t, decoder_bias=t["b_dec"], **more)), z, z @ t["W_dec"] + t["b_dec"])


def test_selections_of_dictionary_learning(tmp_path):
    t = weights()
    post = ((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    more = {"encoder.bias": t["b_enc"], "b_dec": t["b_dec"], "k": torch.tensor(K, dtype=torch.int)}
    content = linear(t, **more, threshold=torch.tensor(1.5))
    z = select(post, K)
    agree(learnt(tmp_path, content, dict_class="AutoEncoderTopK", k=K), z, z @ t["W_dec"] + t["b_dec"])
    older = {key: one for key, one in content.items() if key not in ("k", "threshold")}
    agree(learnt(tmp_path, older, dict_class="AutoEncoderTopK", k=K), z, z @ t["W_dec"] + t["b_dec"])
    z = post * (post > 1.5)
    agree(learnt(tmp_path, content, dict_class="BatchTopKSAE", k=K), z, z @ t["W_dec"] + t["b_dec"])
    matryoshka = t | {"k": more["k"], "threshold": torch.tensor(1.5), "group_sizes": torch.tensor([4, M - 4])}
    agree(learnt(tmp_path, matryoshka, dict_class="MatryoshkaBatchTopKSAE"), z, z @ t["W_dec"] + t["b_dec"])
    untrained = matryoshka | {"threshold": torch.tensor(-1.0)}
    with pytest.raises(InputError, match=r"threshold is -1\.0: MatryoshkaBatchTopKSAE was not trained long enough"):
        learnt(tmp_path, untrained, dict_class="MatryoshkaBatchTopKSAE")
    pre, threshold = X @ t["W_enc"] + t["b_enc"], torch.linspace(0, 2, M)
    z = (pre * (pre > threshold)).relu()
    found = learnt(tmp_path, t | {"threshold": threshold}, dict_class="JumpReluAutoEncoder")
    agree(found, z, z @ t["W_dec"] + t["b_dec"])


def sparse(folder, content, **config):
    save_file({key: one.contiguous() for key, one in content.items()}, folder / "sae.safetensors")
    whole = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K,
             "multi_topk": False, "skip_connection": False, "d_in": D, **config}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps({key: one for key, one in whole.items() if one is not None}))
    return SparseAutoencoder.load(folder)


def test_those_of_sparsify(tmp_path):
    t = weights()
    content = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    pre = (X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    z = select(pre.relu(), K)
    agree(sparse(tmp_path, content), z, z @ t["W_dec"] + t["b_dec"])
    found = sparse(tmp_path, content, multi_topk=True)
    agree(found, z, z @ t["W_dec"] + t["b_dec"])
    assert found.objective[0] == NestedReconstruction((K, 4 * K), (1.0, 1 / 8), axis="rank")
    z = select(pre, K, pre.abs())
    agree(sparse(tmp_path, content, signed=True), z, z @ t["W_dec"] + t["b_dec"])
    for change, named in (
        ({"transcode": True}, "transcode is True"), ({"skip_connection": True}, "skip_connection is True"),
        ({"activation": "groupmax"}, "activation is 'groupmax'"), ({"k": None}, "k is None"), ({"k": 99}, "k is 99"),
        ({"num_latents": 0}, "encoder.weight has shape"), ({"d_in": None}, "d_in is None"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            sparse(tmp_path, content, **change)


def test_the_number_of_latents_of_sparsify_may_be_a_multiple(tmp_path):
    t = {"encoder.weight": numbers(2 * D, D), "encoder.bias": numbers(2 * D), "W_dec": numbers(2 * D, D, seed=1),
         "b_dec": numbers(D)}  # fmt: skip
    assert sparse(tmp_path, t, num_latents=0, expansion_factor=2).d_sae == 2 * D


def test_those_of_gemma_scope(tmp_path):
    t = weights(threshold=torch.linspace(0, 2, M))
    np.savez(tmp_path / "params.npz", **{key: one.numpy() for key, one in t.items()})
    pre = X @ t["W_enc"] + t["b_enc"]
    z = pre.relu() * (pre > t["threshold"])
    for path in (tmp_path, tmp_path / "params.npz"):
        agree(SparseAutoencoder.load(path), z, z @ t["W_dec"] + t["b_dec"])
    lower = {"w" + key[1:] if key.startswith("W") else key: one for key, one in t.items()}
    factor = torch.linspace(1, 2, M)
    np.savez(tmp_path / "other.npz", **{key: one.numpy() for key, one in lower.items()}, scaling_factor=factor.numpy())
    agree(SparseAutoencoder.load(tmp_path / "other.npz"), z, (z * factor) @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize("after", ["ReLU", "Identity", None])
def test_those_of_openai(after, tmp_path):
    t = weights()
    content = {**linear(t), "pre_bias": t["b_dec"], "latent_bias": t["b_enc"],
               "activation": "TopK" if after else "ReLU", "stats_last_nonzero": torch.zeros(M, dtype=torch.long),
               "activation_state_dict": {"k": K, "postact_fn": after} if after else {}}  # fmt: skip
    torch.save(content, tmp_path / "autoencoder.pt")
    x, undo = layer_norm(X) if after else (X, lambda y: y)
    z = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    z = select(z, K) if after else z
    z = z if after == "Identity" else z.relu()
    for path in (tmp_path, tmp_path / "autoencoder.pt"):
        agree(SparseAutoencoder.load(path), z, undo(z @ t["W_dec"] + t["b_dec"]))
    for change, named in (
        ({"activation": "Tanh"}, "activation: got 'Tanh'"), ({"latent_bias": 3}, "latent_bias is int, want a tensor"),
        ({"activation": "TopK", "activation_state_dict": {"k": 0}}, "k is 0"),
        ({"decoder.weight": t["W_dec"]}, "decoder.weight has shape"),
        ({"activation": "TopK", "activation_state_dict": 3}, "activation_state_dict is int"),
        ({"activation": "TopK", "activation_state_dict": {"k": 2, "postact_fn": "Tanh"}}, "postact_fn: got 'Tanh'"),
    ):  # fmt: skip
        torch.save(content | change, tmp_path / "other.pt")
        with pytest.raises(InputError, match=named):
            SparseAutoencoder.load(tmp_path / "other.pt")


# -- what is written is what the format says


def test_names_and_shapes_of_what_is_written(tmp_path):
    drawn("topk").save(tmp_path / "a", format="sparsify")
    shapes = {key: tuple(one.shape) for key, one in load_file(tmp_path / "a" / "sae.safetensors").items()}
    assert shapes == {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    drawn("batchtopk").save(tmp_path / "b.npz", format="gemma_scope")
    with np.load(tmp_path / "b.npz") as found:
        shapes = {key: found[key].shape for key in found.files}
    assert shapes == {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,), "threshold": (M,)}
    drawn("gated").save(tmp_path / "c", format="dictionary_learning")
    found = torch.load(tmp_path / "c" / "ae.pt", weights_only=True)
    assert {key: tuple(one.shape) for key, one in found.items()} == {
        "encoder.weight": (M, D), "decoder.weight": (D, M), "gate_bias": (M,), "mag_bias": (M,), "r_mag": (M,),
        "decoder_bias": (D,),
    }  # fmt: skip
    trainer = json.loads((tmp_path / "c" / "config.json").read_text())["trainer"]
    assert trainer == {"dict_class": "GatedAutoEncoder", "activation_dim": D, "dict_size": M}
    drawn("topk", LayerNorm()).save(tmp_path / "d.pt", format="openai")
    found = torch.load(tmp_path / "d.pt", weights_only=True)
    assert (found["activation"], found["activation_state_dict"]) == ("TopK", {"k": K, "postact_fn": "ReLU"})
    assert tuple(found["encoder.weight"].shape) == (M, D)


# -- damage and foreign content


def test_folders_and_files_that_tell_no_format(tmp_path):
    with pytest.raises(InputError, match=r"holds no autoencoder, want one of cfg\.json with sae_weights"):
        SparseAutoencoder.load(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match=r"got a \.txt file, want a folder, \.npz or \.pt"):
        SparseAutoencoder.load(tmp_path / "x.txt")
    with pytest.raises(InputError, match="format: got 'saelen', want one of auto, ellzero"):
        SparseAutoencoder.load(tmp_path, format="saelen")
    with pytest.raises(InputError, match="format: got 'auto', want one of ellzero"):
        drawn("topk").save(tmp_path, format="auto")
    for format in HOLDS:
        with pytest.raises(InputError, match=r"nothing.*: cannot be read"):
            SparseAutoencoder.load(tmp_path / "nothing", format=format)


FILES = {"saelens": ("topk", ["cfg.json", "sae_weights.safetensors"]),
         "sparsify": ("topk", ["cfg.json", "sae.safetensors"]),
         "dictionary_learning": ("topk", ["ae.pt", "config.json"]), "gemma_scope": ("jumprelu", ["params.npz"]),
         "openai": ("relu_l1", ["autoencoder.pt"])}  # fmt: skip


@pytest.mark.parametrize("format", list(FILES))
def test_torn_files_are_named(format, tmp_path):
    name, files = FILES[format]
    for file in files:
        for damage in (lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff\xfe\x00", lambda b: b[:-9]):
            drawn(name).save(tmp_path, format=format)
            content = (tmp_path / file).read_bytes()
            (tmp_path / file).write_bytes(damage(content))
            with pytest.raises(InputError, match=file.replace(".", r"\.")):
                SparseAutoencoder.load(tmp_path, format=format)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """For each format a folder, and what its files hold."""
    found = {}
    for format, (name, files) in FILES.items():
        folder = tmp_path_factory.mktemp(format)
        drawn(name).save(folder, format=format)
        found[format] = folder, {file: (folder / file).read_bytes() for file in files}
    return found


def fresh(written, format):
    folder, contents = written[format]
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("format", list(FILES))
@given(data=st.data())
def test_flipped_bytes_are_an_error_that_names_the_file_or_other_numbers(written, format, data):
    folder = fresh(written, format)
    file = folder / data.draw(st.sampled_from(FILES[format][1]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        SparseAutoencoder.load(folder, format=format)
    except InputError as error:
        said = str(error)
        assert folder.name in said


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_with_code_are_not_opened(tmp_path, capsys):
    for file in ("ae.pt", "autoencoder.pt"):
        torch.save({"encoder.weight": numbers(M, D), "more": Code()}, tmp_path / file)
        with pytest.raises(InputError, match=rf"{file}: holds more than weights, or is damaged; it is not opened"):
            SparseAutoencoder.load(tmp_path / file)
        (tmp_path / file).write_bytes(pickle.dumps(Code()))
        with pytest.raises(InputError, match=file):
            SparseAutoencoder.load(tmp_path / file)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Code()], dtype=object))
    with pytest.raises(InputError, match=r"params\.npz: cannot be read as arrays of NumPy \(Object arrays"):
        SparseAutoencoder.load(tmp_path / "params.npz")
    assert "executed" not in capsys.readouterr().out
    torch.save([1, 2], tmp_path / "ae.pt")
    with pytest.raises(InputError, match=r"ae\.pt: holds list, want a dictionary of tensors by name"):
        SparseAutoencoder.load(tmp_path / "ae.pt")


VALUES = (
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.sampled_from(["k", "dict_class"]), st.integers(0, 5), max_size=2)
    | st.sampled_from(["topk", "standard", "gated", "abstopk", "jumprelu", "matching_pursuit", "layer_norm", "relu",
                       "constant_norm_rescale", "expected_average_only_in", "AutoEncoder", "BatchTopKSAE"])
)  # fmt: skip
KEYS = {
    "saelens": ("cfg.json", ["architecture", "d_in", "d_sae", "k", "normalize_activations", "apply_b_dec_to_input",
                             "dtype", "activation_fn", "activation_fn_kwargs", "rescale_acts_by_decoder_norm",
                             "metadata"]),
    "sparsify": ("cfg.json", ["activation", "expansion_factor", "num_latents", "k", "multi_topk", "d_in", "signed",
                              "transcode", "skip_connection", "normalize_decoder"]),
    "dictionary_learning": ("config.json", ["trainer", "buffer", "dict_class", "k"]),
}  # fmt: skip


@pytest.mark.parametrize("format", list(KEYS))
@given(data=st.data())
def test_whatever_the_settings_say_an_error_names_the_file(written, format, data):
    folder = fresh(written, format)
    file, keys = folder / KEYS[format][0], KEYS[format][1]
    config = json.loads(file.read_text())
    changed = config["trainer"] if format == "dictionary_learning" and data.draw(st.booleans()) else config
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)):
        changed[key] = data.draw(VALUES)
    file.write_text(json.dumps(config))
    try:
        SparseAutoencoder.load(folder, format=format)
    except InputError as error:
        said = str(error)
        assert folder.name in said

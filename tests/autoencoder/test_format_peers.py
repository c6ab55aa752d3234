"""Files against the libraries they are of: each reads what we write, and we read what it writes, for the same numbers.

Each test skips where its library is not installed (see the ``bench`` extra and ``constraints.txt``).
``test_formats`` has files made by hand.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ellzero.autoencoder import SparseAutoencoder
from ellzero.autoencoder.inputs import ExpectedNorm, LayerNorm, RowNorm, Whitening

pytestmark = pytest.mark.slow  # importing them takes ten seconds

D, M, K = 12, 40, 4
X = torch.from_numpy(np.random.default_rng(0).standard_normal((200, D)).astype(np.float32)) * 2 + 1
FOLDED = (None, ExpectedNorm(), Whitening())
JUMPS = ("batchtopk", "jumprelu", "matryoshka", "mutual_choice", "feature_choice")
TOPKS = ("topk", "msae", "hierarchical_topk", "g_sae", "csr")


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def drawn(name, inputs=None):
    sae = SparseAutoencoder.from_preset(name, d_in=D, d_sae=M, k=K, inputs=inputs)
    with torch.no_grad():
        for i, one in enumerate(sae.parameters()):
            one.add_(0.2 * numbers(*one.shape, seed=i))
        sae.normalize()
    sae.fit_inputs(X)
    if sae.calibrates:
        sae.calibrate(X)
    return sae.eval()


def fill(peer):
    """Random numbers in every parameter of a peer."""
    with torch.no_grad():
        for i, one in enumerate(peer.parameters()):
            one.copy_(0.3 * numbers(*one.shape, seed=10 + i).to(one))
    return peer


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# -- SAELens


@pytest.mark.parametrize("inputs", [*FOLDED, RowNorm(), RowNorm("root"), LayerNorm()], ids=repr)
@pytest.mark.parametrize("name", ["relu_l1", "gated", "abs_topk", "mp_sae", *JUMPS, *TOPKS])
@torch.no_grad()
def test_saelens_reads_ours(name, inputs, tmp_path):
    peer = pytest.importorskip("sae_lens")
    if name == "mp_sae" and inputs in (ExpectedNorm(), Whitening(), RowNorm()):
        pytest.skip("a tied encoder holds no factor; see test_formats")
    ours = drawn(name, inputs)
    ours.save(tmp_path / "a", format="saelens")
    theirs = peer.SAE.load_from_disk(tmp_path / "a")
    close(theirs.encode(X), ours.encode(X))
    close(theirs(X), ours(X))
    theirs.save_model(tmp_path / "b")
    close(SparseAutoencoder.load(tmp_path / "b")(X), ours(X))
    ours.save(tmp_path / "own")
    if json.loads((tmp_path / "own" / "cfg.json").read_text())["architecture"] != "ellzero":
        close(peer.SAE.load_from_disk(tmp_path / "own")(X), ours(X))
    else:  # refused, and not read as something else
        with pytest.raises(KeyError, match="ellzero"):
            peer.SAE.load_from_disk(tmp_path / "own")


@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("kind", ["standard", "gated", "topk", "topk_rescaled", "abstopk", "jumprelu"])
@torch.no_grad()
def test_ours_reads_saelens(kind, subtracted, normalised, tmp_path):
    peer = pytest.importorskip("sae_lens")
    config = {"architecture": kind.removesuffix("_rescaled"), "d_in": D, "d_sae": M, "dtype": "float32",
              "device": "cpu", "apply_b_dec_to_input": subtracted, "normalize_activations": normalised}  # fmt: skip
    if "topk" in kind:
        config |= {"k": K, "rescale_acts_by_decoder_norm": kind == "topk_rescaled"}
    theirs = fill(peer.SAE.from_dict(config))
    if kind == "jumprelu":
        theirs.threshold.abs_()
    theirs.save_model(tmp_path)
    ours = SparseAutoencoder.load(tmp_path)
    close(ours.encode(X), theirs.encode(X))
    close(ours(X), theirs(X))


# -- dictionary_learning


@pytest.mark.parametrize("inputs", FOLDED, ids=repr)
@pytest.mark.parametrize("name", ["relu_l1", "gated", *JUMPS, *TOPKS])
@torch.no_grad()
def test_dictionary_learning_reads_ours(name, inputs, tmp_path):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    ours = drawn(name, inputs)
    ours.save(tmp_path, format="dictionary_learning")
    theirs, _ = load_dictionary(str(tmp_path), "cpu")
    close(theirs(X), ours(X))
    if not (name == "relu_l1" and inputs is not None):  # that class brings the decoder's rows to norm 1 as it reads
        close(theirs.encode(X), ours.encode(X))


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder",
                                  "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])  # fmt: skip
@torch.no_grad()
def test_ours_reads_dictionary_learning(kind, tmp_path):
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    module = next(one for one in (dictionary, top_k, batch_top_k, matryoshka_batch_top_k) if hasattr(one, kind))
    more = {"AutoEncoderTopK": (K,), "BatchTopKSAE": (K,), "MatryoshkaBatchTopKSAE": (K, [10, M - 10])}.get(kind, ())
    theirs = fill(getattr(module, kind)(D, M, *more))
    if hasattr(theirs, "threshold"):
        theirs.threshold.copy_(theirs.threshold.abs())
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": M, **({"k": K} if more else {})}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    ours = SparseAutoencoder.load(tmp_path)
    close(ours.encode(X), theirs.encode(X))
    close(ours(X), theirs(X))


# -- sparsify


def codes(theirs, x):
    found = theirs.encode(x)
    return torch.zeros(len(x), M).scatter(1, found.top_indices, found.top_acts)


@pytest.mark.parametrize("inputs", FOLDED, ids=repr)
@pytest.mark.parametrize("name", TOPKS)
@torch.no_grad()
def test_sparsify_reads_ours(name, inputs, tmp_path):
    peer = pytest.importorskip("sparsify")
    ours = drawn(name, inputs)
    ours.save(tmp_path, format="sparsify")
    theirs = peer.SparseCoder.load_from_disk(tmp_path)
    close(codes(theirs, X), ours.encode(X))
    close(theirs(X).sae_out, ours(X))


@pytest.mark.parametrize("multi", [True, False])
@torch.no_grad()
def test_ours_reads_sparsify(multi, tmp_path):
    peer = pytest.importorskip("sparsify")
    theirs = fill(peer.SparseCoder(D, peer.SparseCoderConfig(num_latents=M, k=K, multi_topk=multi)))
    theirs.save_to_disk(tmp_path)
    ours = SparseAutoencoder.load(tmp_path)
    close(ours.encode(X), codes(theirs, X))
    found = theirs.encode(X)  # its forward pass tells the reconstruction at 4 k with multi_topk
    close(ours(X), theirs.decode(found.top_acts, found.top_indices))

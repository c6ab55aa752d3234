"""A folder of activations: every row in each pass, files of all formats, and what is no such folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ellzero.autoencoder.many import train_many
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.shards import Shards
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError


def planted(n, d=12, features=20, seed=0):
    draw = np.random.default_rng(seed)
    codes = draw.exponential(size=(n, features)) * (draw.random((n, features)) < 0.1)
    atoms = np.random.default_rng(99).standard_normal((features, d))
    return (codes @ atoms + 1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    X = planted(3000)
    save_file({"X": X[:1000]}, tmp_path / "a.safetensors")
    np.save(tmp_path / "b.npy", X[1000:1700])
    np.savez(tmp_path / "c.npz", X=X[1700:2200])
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(X[2200:], columns=[f"f{i}" for i in range(12)])
    frame.to_parquet(tmp_path / "d.parquet")
    (tmp_path / "notes.txt").write_text("not activations")
    return tmp_path, X


def test_each_pass_has_every_row_once_in_an_order_of_its_own(folder):
    path, X = folder
    shards = Shards(path)
    passes = [torch.cat([rows for (rows,) in shards.batches(epoch)]).numpy() for epoch in (0, 0, 1)]
    assert (passes[0] == passes[1]).all()
    assert not (passes[0] == passes[2]).all()
    for rows in passes:
        assert (np.sort(rows, axis=0) == np.sort(X, axis=0)).all()


def test_an_autoencoder_trains_on_a_folder_as_on_the_array(folder):
    path, X = folder
    found = {}
    for name, acts in (("folder", path), ("text", str(path)), ("array", X)):
        sae = SparseAutoencoder.from_preset("topk", d_in=12, d_sae=40, k=3)
        SAETrainer(sae, lr=0.01, batch_size=128, steps=150).fit(acts)
        found[name] = evaluate(sae, X)["fvu"]
    assert found["folder"] == found["text"]
    assert found["folder"] == pytest.approx(found["array"], rel=0.3)


def test_several_at_once_read_each_file_once(folder):
    path, _ = folder
    options = {"lr": 0.01, "batch_size": 128, "steps": 30}
    alone = SparseAutoencoder.from_preset("topk", d_in=12, d_sae=40, k=3)
    SAETrainer(alone, **options).fit(path)
    both = {name: SparseAutoencoder.from_preset(name, d_in=12, d_sae=40, k=3) for name in ("topk", "batchtopk")}
    train_many({name: SAETrainer(sae, **options) for name, sae in both.items()}, path)
    assert torch.equal(both["topk"].W_dec, alone.W_dec)


def test_what_is_no_folder_of_activations_is_refused(tmp_path):
    with pytest.raises(InputError, match="want a folder"):
        SAETrainer(SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2)).fit(tmp_path / "none")
    with pytest.raises(InputError, match="has none of"):
        Shards(tmp_path)
    np.save(tmp_path / "wide.npy", np.ones((5, 3), np.float32))
    with pytest.raises(InputError, match=r"want \(any, 4\)"):
        SAETrainer(SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2), batch_size=2).fit(tmp_path)

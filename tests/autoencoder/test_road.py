"""The road of a user with a Hugging Face model and a text file, each command in a clean process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
import hugging_face_folder

CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("ELLZERO", "HF_"))}


def ellzero(folder, *arguments):
    """One command in a fresh process, without a hub."""
    command = [sys.executable, "-m", "ellzero.cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**CLEAN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model's folder, a text file, and what the first command made of them."""
    from ellzero.models import reference_texts

    place = tmp_path_factory.mktemp("road")
    hugging_face_folder.write(place / "model")
    (place / "book.txt").write_text("\n\n".join(reference_texts("validation")[:40]), encoding="utf-8")
    out = ellzero(
        place, "train", "autoencoder", "--model", "model", "--hook", "layers.2", "--texts", "book.txt", "--preset",
        "topk", "--d-sae", 256, "--k", 16, "--steps", 150, "--batch-size", 512, "--lr", 0.005, "--out", "sae",
    )  # fmt: skip
    return place, out


def test_the_folder_is_the_reference_model(place):
    """So that what is recovered below is of a model that knows something."""
    import torch

    from ellzero.models import load_model, reference_language_model

    ours, tokenizer = reference_language_model()
    theirs, coder = load_model(place[0] / "model")
    text = (place[0] / "book.txt").read_text(encoding="utf-8")[:3000]
    tokens = tokenizer.encode(text)
    assert coder.encode(text, add_special_tokens=False) == tokens
    with torch.no_grad():
        row = torch.tensor([[1, *tokens[:100]]])
        torch.testing.assert_close(theirs(row).logits, ours(row), atol=2e-3, rtol=1e-3)


def test_it_is_trained_and_measured_on_texts_held_out(place):
    folder, out = place
    record = json.loads((folder / "sae" / "training.json").read_text())
    assert record["module"] == "model.layers.2"
    assert record["documents"][1] >= 1
    scores, loss = record["scores"], record["loss"]
    assert f"explained variance {scores['explained_variance']:.4f}" in out
    assert "L0 16 active latents per token" in out
    assert re.search(r"dead \d+ of 256 latents", out)
    assert f"{loss['recovered']:.4f} of the cross-entropy recovered against the mean" in out
    assert scores["explained_variance"] > 0.5
    assert scores["dead"] < 0.3
    assert 0.7 < loss["recovered"] < 1
    assert loss["cross_entropy"] < loss["spliced"] < loss["ablated"]


def test_another_process_measures_the_same(place):
    from ellzero.autoencoder import SparseAutoencoder, cross_entropy_recovered, evaluate
    from ellzero.autoencoder.from_model import held_out
    from ellzero.models import ActivationStream, load_model

    folder, _ = place
    record = json.loads((folder / "sae" / "training.json").read_text())
    sae, (model, tokenizer) = SparseAutoencoder.load(folder / "sae"), load_model(folder / "model")
    texts = held_out(folder / "book.txt")
    found = evaluate(sae, ActivationStream(model, hook="layers.2", texts=texts, tokenizer=tokenizer))
    assert found == pytest.approx(record["scores"], rel=1e-4)
    loss = cross_entropy_recovered(model, "layers.2", sae, texts=texts, tokenizer=tokenizer)
    assert loss.recovered == pytest.approx(record["loss"]["recovered"], abs=1e-4)


def test_its_latents_become_a_page(place):
    folder, _ = place
    out = ellzero(folder, "browse", "sae")
    assert "page: sae/latents.html" in out
    assert "cross-entropy recovered 0." in out
    page = (folder / "sae" / "latents.html").read_text(encoding="utf-8")
    assert "Latents of sae" in page
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_saelens_reads_the_folder(place):
    sae_lens = pytest.importorskip("sae_lens")
    torch = pytest.importorskip("torch")
    from ellzero.autoencoder import SparseAutoencoder

    folder, _ = place
    ours = SparseAutoencoder.load(folder / "sae")
    theirs = sae_lens.SAE.load_from_disk(str(folder / "sae"), device="cpu")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 128), dtype=np.float32))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), ours.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=1e-5)

"""``ellzero train autoencoder`` and ``ellzero browse`` do what the functions do, and refuse by name."""

import json

import pytest

from ellzero.models import reference_texts

TRAIN = ("train", "autoencoder", "--model", "reference", "--hook", "layers.1")
SMALL = ("--d-sae", 64, "--k", 4, "--steps", 10, "--batch-size", 64, "--lr", 0.005)


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(reference_texts("validation")[:10]), encoding="utf-8")
    return "book.txt"


def test_options_reach_the_function_and_json_is_the_record(ellzero, book, tmp_path):
    arguments = ("--texts", book, *SMALL, "--option", "dead_after=77", "--seed", 3, "--ablation", "zero")
    code, out, err = ellzero(*TRAIN, *arguments, "--out", "sae", "--json", "--quiet")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record == json.loads((tmp_path / "sae" / "training.json").read_text())
    assert record["options"] == {"dead_after": 77}
    assert (record["d_sae"], record["k"], record["steps"], record["seed"]) == (64, 4, 10, 3)
    assert record["loss"]["ablation"] == "zero"
    code, out, err = ellzero("browse", "sae", "--tokens", 500, "--examples", 2)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "page: sae/latents.html"
    code, out, err = ellzero("browse", "sae", "--hook", "layers.9")
    assert code == 2
    assert "has 4 layers" in err


def test_a_taken_autoencoder_knows_its_model(ellzero, book, tmp_path):
    task = ("autoencoder", "--model", "reference", "--hook", "layers.1", "--texts", book)
    code, _, err = ellzero("compare", *task, "--option", "rows=600", "--option", "steps=5", "--option", "width=40",
                           "--methods", "topk,pca", "--budgets", 4, "--out", "run", "--quiet")  # fmt: skip
    assert code == 0, err
    assert ellzero("take", "run", "--method", "topk", "--budget", 4, "--out", "model")[0] == 0
    code, out, err = ellzero("browse", "model", "--tokens", 500)
    assert (code, err) == (0, "")
    assert "cross-entropy recovered" in out
    assert "layers.1" in (tmp_path / "model" / "latents.html").read_text()
    assert ellzero("apply", "model", book)[0] == 0  # the page beside it leaves the model whole


@pytest.mark.parametrize(("arguments", "words"), [
    (("train", "autoencodr"), "no such command 'autoencodr'; did you mean 'autoencoder'"),
    (("train",), "missing command after 'train'; want one of autoencoder"),
    (("brows",), "no such command 'brows'; did you mean 'browse'"),
    (("browse", "nowhere"), "nowhere"),
    ((*TRAIN, "--out", "sae", "--preset", "topkk"), "did you mean 'topk'"),
    ((*TRAIN, "--out", "sae", "--option", "dead_afer=3"), "did you mean 'dead_after'"),
    ((*TRAIN, "--out", "sae", "--option", "dead_after"), "want key=value"),
    ((*TRAIN, "--out", "sae", "--option", "a=1", "--option", "a=2"), "'a' twice"),
    ((*TRAIN, "--out", "."), "is not empty"),
    ((*TRAIN, "--out", "sae", "--texts", "absent.txt"), "absent.txt"),
    ((*TRAIN, "--out", "sae", "--ablation", "men"), "did you mean 'mean'"),
    (("train", "autoencoder", "--model", "./absent", "--hook", "layers.1", "--out", "sae"), "nothing at"),
    (("train", "autoencoder", "--model", "reference", "--out", "sae"), "missing option '--hook'"),
    ((*TRAIN, "--out", "sae", "--presett", "topk"), "did you mean '--preset'"),
])  # fmt: skip
def test_bad_input_is_one_line(ellzero, tmp_path, arguments, words):
    (tmp_path / "mine.txt").write_text("mine")
    code, out, err = ellzero(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "sae" / "cfg.json").exists()


def test_a_folder_that_names_no_model_wants_one(ellzero, tmp_path):
    from ellzero.autoencoder import SparseAutoencoder

    SparseAutoencoder.from_preset("topk", d_in=4, d_sae=8, k=2).save(tmp_path / "sae")
    code, _, err = ellzero("browse", "sae")
    assert (code, err) == (2, "ellzero: --model: got none, and nothing in sae names one\n")
    code, _, err = ellzero("browse", "sae", "--model", "reference")
    assert (code, err) == (2, "ellzero: --hook: got none, and nothing in sae names one\n")

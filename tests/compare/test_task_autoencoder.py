"""The task ``autoencoder``: each source of activations, documents kept whole, artefacts that load elsewhere, noise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ellzero.autoencoder import PCA, SparseAutoencoder, sources
from ellzero.cli.app import run as command_line
from ellzero.cli.outputs import write
from ellzero.compare import apply, compare, take
from ellzero.compare.tasks.autoencoder import Autoencoder
from ellzero.data import sets
from ellzero.errors import InputError
from ellzero.models import ActivationStream, reference_language_model, reference_texts
from ellzero.protocol import Task

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SHORT = {"steps": 12, "rows": 600, "batch_size": 64, "width": 40}


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    """1,000 sums of a few of 40 directions in 12 dimensions, in 25 documents."""
    draw = np.random.default_rng(0)
    codes = draw.exponential(size=(1000, 40)) * (draw.random((1000, 40)) < 0.07)
    path = tmp_path_factory.mktemp("array") / "acts.npz"
    X = (codes @ draw.standard_normal((40, 12)) + 1).astype(np.float32)
    np.savez(path, X=X, documents=np.arange(1000) % 25)
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A small GPT-2 with its tokenizer, written by its own library, and texts."""
    folder = tmp_path_factory.mktemp("gpt2")
    texts = [text for text in sets.texts("tinyshakespeare") if len(text) > 40][:60]
    words = sorted({word for text in texts for word in text.split()})
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *words])}, "<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    coder = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")
    config = transformers.GPT2Config(
        vocab_size=len(coder), n_embd=16, n_layer=3, n_head=2, n_positions=32, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    coder.save_pretrained(folder / "model")
    with open(folder / "texts.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return folder


def make(kind, array, gpt2):
    if kind == "reference":
        return Autoencoder(**SHORT)
    if kind == "gpt2":
        return Autoencoder(model=str(gpt2 / "model"), hook="layers.1", texts=str(gpt2 / "texts.jsonl"), **SHORT)
    return Autoencoder(str(array), **SHORT)


KINDS = ("reference", "gpt2", "array")


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_contract_and_documents_stay_whole(kind, array, gpt2):
    task = make(kind, array, gpt2)
    assert isinstance(task, Task)
    assert Autoencoder.from_spec(json.loads(json.dumps(task.to_spec()))) == task
    assert json.loads(json.dumps(task.describe())) == task.describe()
    X, origin = task._source().rows
    assert X.dtype == np.float32
    assert len(X) == 600
    parts = {seed: task._split(seed) for seed in (0, 1)}
    for seed, rows in parts.items():
        assert sorted(np.concatenate(rows).tolist()) == list(range(600))
        found = [set(origin[part]) for part in rows]
        total = len(set.union(*found))
        assert total == sum(map(len, found))
        assert len(found[1]) == len(found[2]) == total // 5
        data = task.data(seed)
        assert (data.train == X[rows[0]]).all()
        assert (data.validation == X[rows[1]]).all()
    assert set(parts[0][2]) == set(parts[1][2])
    assert set(parts[0][1]) != set(parts[1][1])
    assert (task.test() == X[parts[0][2]]).all()
    assert len(task.refit_data(0, "all").train) == len(parts[0][0]) + len(parts[0][1])


def test_the_reference_rows_are_what_the_model_gives():
    task = Autoencoder(hook="layers.1", rows=100)
    model, tokenizer = reference_language_model()
    chosen = sources.enough(reference_texts(), 100)
    stream = ActivationStream(model, hook="layers.1", texts=chosen, tokenizer=tokenizer, batch_size=4096, buffer=4096)
    everything = stream.collect(8192)
    keys = {row.tobytes() for row in everything}
    X, origin = task._source().rows
    assert X.shape == (100, 128)
    assert all(row.tobytes() in keys for row in X)
    assert len(set(origin)) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_comparison_to_the_same_codes_in_a_fresh_process(kind, array, gpt2, tmp_path):
    task = make(kind, array, gpt2)
    names = ["pca", "relu-l1", "topk", "batchtopk"] if kind == "array" else ["batchtopk"]
    run = compare(task, names, [3, 5], out=tmp_path / "run")
    assert not run.failures
    assert run.complete
    X = np.array(task.test())
    np.save(tmp_path / "rows.npy", X)
    for name in names:
        out = tmp_path / name
        taken = take(run.folder, name, 3, out)
        code = PCA.load(out) if name == "pca" else SparseAutoencoder.load(out)
        found = apply(out, tmp_path / "rows.npy")
        latents, values = found.columns["latents"], found.columns["values"]
        assert ((latents >= 0) == (values != 0)).all()
        assert (found.columns["active"] == (values != 0).sum(1)).all()
        assert (np.diff(abs(values), axis=1) <= 0).all()
        with torch.no_grad():
            z = code.encode(torch.from_numpy(X)).numpy()
            x_hat = code.decode(torch.from_numpy(z)).numpy()
        for row, places, numbers in zip(z, latents, values):
            assert dict(zip(places[places >= 0], numbers[places >= 0])) == {j: row[j] for j in np.flatnonzero(row)}
        np.testing.assert_allclose(found.columns["squared_error"], ((X - x_hat) ** 2).sum(1), rtol=1e-4, atol=1e-5)
        fvu = found.columns["squared_error"].sum() / ((X - X.mean(0, dtype=np.float64)) ** 2).sum()
        assert taken.fidelity == pytest.approx(1 - fvu, abs=1e-6)
        assert f"explained variance {1 - fvu:.4f}" in found.note
        write(found, tmp_path / f"{name}.npz")
    code = """
        import sys
        from ellzero.cli.app import run
        for name in sys.argv[1].split(","):
            assert run(["apply", name, "rows.npy", "--out", f"fresh-{name}.npz"]) == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(code), ",".join(names)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    for name in names:
        here, there = np.load(tmp_path / f"{name}.npz"), np.load(tmp_path / f"fresh-{name}.npz")
        assert set(here) == set(there) == {"active", "squared_error", "latents", "values"}
        assert all((here[key] == there[key]).all() for key in here)


def test_texts_give_the_latents_that_peak_in_them(gpt2, tmp_path):
    task = make("gpt2", None, gpt2)
    fitted = next(iter(task.methods()["topk"].frontier(task.data(0), [3], 0)))
    fitted.save(tmp_path)
    (tmp_path / "new.txt").write_text("the king and the queen\n\nwho is there\n")
    found = task.apply(tmp_path, str(tmp_path / "new.txt"))
    assert found.columns["tokens"].tolist() == [5, 3]
    stream = sources.stream(task.model, task.hook, ["the king and the queen", "who is there"])
    rows, origin = stream.collect(return_documents=True)
    z = fitted.model.encode(rows).detach().numpy()
    for text in range(2):
        peaks = z[origin == text].max(0)
        np.testing.assert_allclose(found.columns["peaks"][text], np.sort(peaks)[::-1][:16])
        latents = found.columns["latents"][text]
        assert (peaks[latents[latents >= 0]] == found.columns["peaks"][text][latents >= 0]).all()
        assert found.columns["active"][text] == pytest.approx((z[origin == text] != 0).sum(1).mean())


def test_of_noise_no_method_explains_more_than_a_dictionary_can(tmp_path):
    d, width, k = 64, 64, 2
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).standard_normal((3000, d)).astype(np.float32))
    task = Autoencoder(str(tmp_path / "noise.npy"), steps=150, width=width)
    # k directions hold a chi-square share of a row; this bounds the mean of the largest over all choices of k.
    most = ((math.sqrt(k) + math.sqrt(2 * math.log(math.comb(width, k)))) ** 2 + 1) / d
    assert most < 0.5
    for name, method in task.methods().items():
        fitted = next(iter(method.frontier(task.data(0), [k], 0)))
        for part in (task.data(0).validation, task.test()):
            found = fitted.score(part)
            assert found < most
            if name == "pca":
                assert found == pytest.approx(k / d, abs=0.01)


def test_real_activations_are_told_better_than_noise_of_the_same_covariance(tmp_path):
    X, _ = Autoencoder(rows=3000)._source().rows
    noise = np.random.default_rng(0).multivariate_normal(X.mean(0), np.cov(X.T), len(X)).astype(np.float32)
    scores = {}
    for name, rows in (("real", X), ("noise", noise)):
        np.save(tmp_path / f"{name}.npy", rows)
        task = Autoencoder(str(tmp_path / f"{name}.npy"), steps=100, width=256, batch_size=256)
        scores[name] = next(iter(task.methods()["topk"].frontier(task.data(0), [8], 0))).score(task.test())
    assert scores["real"] > scores["noise"] + 0.05


def test_neighbours_in_a_file_without_documents_stay_together(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((1000, 5)))
    for part in Autoencoder(str(tmp_path / "x.npy"))._split(0):
        assert (np.diff(part) > 1).sum() < 100
        assert len(part) % 10 == 0


def test_safetensors_sparse_files_and_columns_are_read(array, tmp_path):
    with np.load(array) as file:
        X, documents = file["X"], file["documents"]
    save_file({"X": X, "documents": documents}, tmp_path / "x.safetensors")
    one, other = Autoencoder(str(array)), Autoencoder(str(tmp_path / "x.safetensors"))
    assert one.describe()["digest"] == other.describe()["digest"]
    np.savetxt(tmp_path / "x.csv", X, delimiter=",", header=",".join("abcdefghijkl"), comments="", fmt="%.9g")
    assert (Autoencoder(str(tmp_path / "x.csv"))._source().rows[0] == X).all()


def test_a_changed_file_is_another_question(tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", draw.random((200, 6)).astype(np.float32))
    task = Autoencoder(str(tmp_path / "x.npy"), steps=3, width=12)
    run = compare(task, ["topk"], [2], out=tmp_path / "run")
    np.save(tmp_path / "x.npy", draw.random((200, 6)).astype(np.float32))
    with pytest.raises(InputError, match="changed since"):
        take(run.folder, "topk", 2, tmp_path / "model")


def test_paragraphs_of_a_text_file_become_documents(tmp_path):
    (tmp_path / "t.txt").write_text("\n\n".join(sets.texts("wikitext2")[:200]))
    X, origin = Autoencoder(texts=str(tmp_path / "t.txt"), rows=300)._source().rows
    assert X.shape == (300, 128)
    assert 10 <= len(set(origin)) < 100


def test_budgets_fit_the_width(array):
    task = Autoencoder(str(array))
    data = task.data(0)
    assert data.info["d_sae"] == 48
    assert task.budgets(data) == (4, 8, 12)
    assert Autoencoder(str(array), width=5).budgets(Autoencoder(str(array), width=5).data(0)) == (4, 5)
    task.check_budgets(task.budgets(data))
    for bad in (0.5, 13, 2.5, float("nan")):
        with pytest.raises((InputError, ValueError), match=r"budgets|cannot convert"):
            task.check_budgets([bad])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"eval": "a:b"}, "eval: the task autoencoder takes none"), ({"target": "y"}, "target: the task"),
        ({"data": "x.npy", "model": "reference"}, "model: got 'reference' beside data"),
        ({"data": "x.npy", "hook": "layers.0"}, "hook: got"), ({"data": "x.npy", "texts": "t.txt"}, "texts: got"),
        ({"model": "gpt2"}, "hook: got none"), ({"extra": {"widht": 3}}, "widht: .*did you mean 'width'"),
        ({"extra": {"steps": "many"}}, "steps: got 'many'"), ({"extra": {"width": 0}}, "width"),
        ({"extra": {"rows": "20"}}, "rows: got 20"), ({"extra": {"batch_size": "-1"}}, "batch_size: got '-1'"),
        ({"data": "missing.npy"}, "missing.npy: no such file"), ({"hook": "layers.9"}, "hook: got 'layers.9'"),
        ({"texts": "missing.txt"}, "missing.txt: no such file"), ({"model": "./nowhere", "hook": "x"}, "nowhere"),
        ({"hook": "lairs.2"}, "hook"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=named):
        Autoencoder.from_options(**options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("X", "named"),
    [
        (np.ones((49, 4)), "gives 49 rows, want at least 50"), (np.ones((60, 4)), "all 60 rows are equal"),
        (np.full((60, 4), np.nan), "nan"), (np.ones(60), "2 axes"), (np.full((60, 4), 1e300), "not finite"),
    ],
    ids=["few", "equal", "nan", "vector", "huge"],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_refused(X, named, tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=f"(?i){named}"):
        Autoencoder.from_options(data=str(tmp_path / "x.npy"))


def test_documents_must_fit_and_be_many(tmp_path):
    X = np.random.default_rng(0).random((60, 4))
    np.savez(tmp_path / "short.npz", X=X, documents=np.arange(59))
    np.savez(tmp_path / "few.npz", X=X, documents=np.arange(60) % 9)
    (tmp_path / "few.txt").write_text("one paragraph\n\nand another one")
    for options, named in (
        ({"data": "short.npz"}, "documents has 59"), ({"data": "few.npz"}, "gives 9 documents"),
        ({"texts": "few.txt"}, "gives 1 documents"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            Autoencoder.from_options(**{key: str(tmp_path / value) for key, value in options.items()})


def test_apply_refuses_what_does_not_fit(array, tmp_path):
    task = Autoencoder(str(array), **SHORT)
    next(iter(task.methods()["topk"].frontier(task.data(0), [3], 0))).save(tmp_path)
    np.save(tmp_path / "wide.npy", np.ones((2, 13)))
    with pytest.raises(InputError, match="13 columns, want 12"):
        task.apply(tmp_path, str(tmp_path / "wide.npy"))
    with pytest.raises(InputError, match="no such file"):
        task.apply(tmp_path, str(tmp_path / "missing.npy"))
    (tmp_path / "new.txt").write_text("a text, but no model to read it")
    with pytest.raises(InputError, match="suffix"):
        task.apply(tmp_path, str(tmp_path / "new.txt"))
    np.save(tmp_path / "one.npy", np.ones((1, 12)))
    assert len(task.apply(tmp_path, str(tmp_path / "one.npy")).columns["active"]) == 1


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random((60, 4)))
    for arguments, named in (
        (["--hook", "layers.7"], "layers.7"),
        (["--data", "x.npy", "--budgets", "1.5"], "whole numbers of active latents"),
        (["--data", "x.npy", "--budgets", "5"], "want a number at most 4"),
    ):
        assert command_line(["compare", "autoencoder", *arguments]) == 2
        message = capfd.readouterr().err
        assert named in message
        assert len(message.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]

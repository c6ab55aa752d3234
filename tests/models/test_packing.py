"""finalize: the same outputs, sparse only where measured, saved and read back under another instruction set."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from ellzero.errors import InputError  # noqa: E402
from ellzero.layouts.nn import SparseConv2d, SparseLinear  # noqa: E402
from ellzero.models import packing as module_under_test  # noqa: E402
from ellzero.models.packing import finalize, load_finalized, report  # noqa: E402


def prune(model, density=0.05, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.mul_(torch.rand(module.weight.shape, generator=g) < density)
    return model.eval()


def mlp(density=0.05):
    torch.manual_seed(0)
    layers = nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10)
    return prune(nn.Sequential(*layers), density)


def convnet():
    torch.manual_seed(0)
    first, second = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 64, 1)
    return prune(nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(64 * 64, 10)))


@pytest.mark.parametrize("layout", ["auto", "csr", "condensed", "bitmask"])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_outputs_stay_and_the_dense_model_comes_back(layout, build):
    model = build()
    x = torch.randn(16, 512) if build is mlp else torch.randn(4, 8, 8, 8)
    with torch.no_grad():
        before = model(x)
        done = finalize(model, x, layout)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
        rows = done.report()
        assert [row.name for row in rows] == [
            n for n, m in build().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
        ]
        if layout != "auto":
            assert {row.chosen for row in rows} == {layout}
            assert sum(isinstance(m, SparseLinear | SparseConv2d) for m in model.modules()) == len(rows)
        for row in rows:
            assert row.density == pytest.approx(0.05, abs=0.02)
            assert (row.nbytes < row.dense_nbytes) == (row.chosen != "dense")
        assert rows[0].name in str(done)
        done.remove()
        assert not any(isinstance(m, SparseLinear | SparseConv2d) for m in model.modules())
        assert torch.equal(model(x), before)
        done.remove()


def measured(monkeypatch, times):
    """The clock in the test's hands: what each candidate takes."""

    def fake(modules, x, repeats):
        return {name: times.get(name, 9.0) for name in modules}

    monkeypatch.setattr(module_under_test, "interleaved", fake)


def test_a_layer_becomes_sparse_only_where_that_is_a_tenth_faster(monkeypatch):
    model, x = mlp(), torch.randn(4, 512)
    monkeypatch.setattr(module_under_test, "_whole_is_faster", lambda *given: True)
    measured(monkeypatch, {"dense": 1.0, "csr": 0.95})
    assert {row.chosen for row in finalize(model, x).report()} == {"dense"}
    measured(monkeypatch, {"dense": 1.0, "csr": 0.9, "condensed": 0.8})
    done = finalize(model, x)
    assert {row.chosen for row in done.report()} == {"condensed"}
    assert done.report()[0].speedup == pytest.approx(1.25)
    done.remove()
    monkeypatch.setattr(module_under_test, "_whole_is_faster", lambda *given: False)
    done = finalize(model, x)
    assert {row.chosen for row in done.report()} == {"dense"}
    assert not any(isinstance(m, SparseLinear) for m in model.modules())


def test_measurements_are_kept_and_belong_to_their_machine(tmp_path, monkeypatch):
    model, x, cache = mlp(), torch.randn(4, 512), tmp_path / "cache.json"
    finalize(model, x, cache=cache).remove()
    table = json.loads(cache.read_text())["measured"]
    assert len(table) == 3

    def never(*given):
        raise AssertionError("measured again")

    monkeypatch.setattr(module_under_test, "interleaved", never)
    finalize(model, x, cache=cache).remove()
    with pytest.raises(AssertionError, match="measured again"):
        finalize(model, torch.randn(64, 512), cache=cache)  # another batch
    monkeypatch.setattr(module_under_test, "place", lambda: {"isa": "other"})
    with pytest.raises(AssertionError, match="measured again"):
        finalize(model, x, cache=cache)
    cache.write_text("[1]")
    with pytest.raises(InputError, match="is not a table of measurements"):
        finalize(model, x, cache=cache)


def test_the_report_says_where_dense_arithmetic_is_faster(monkeypatch):
    model, x = mlp(), torch.randn(4, 512)
    done = finalize(model, x, "csr", compare=True, repeats=1)
    assert all(set(row.others) == {"bfloat16", "int8"} and min(row.others.values()) > 0 for row in done.report())
    done.remove()
    measured(monkeypatch, {"dense": 1.0, "csr": 0.5, "bfloat16": 0.6, "int8": 0.2})
    done = finalize(model, x, "csr", compare=True)
    assert done.report()[0].note == "dense int8 is 2.5x faster"
    assert "dense int8 is 2.5x faster" in str(done)


def test_report_of_a_model(monkeypatch):
    model, x = mlp(), torch.randn(4, 512)
    before = report(model, x, repeats=1)
    assert not any(isinstance(m, SparseLinear) for m in model.modules())
    head, *lines = before.splitlines()
    assert head.split() == ["layer", "shape", "density", "chosen", "bytes", "dense", "us", "foretold", "fp32", "bf16",
                            "int8", "faster"]  # fmt: skip
    assert [line.split()[1] for line in lines] == ["1024x512", "512x1024", "10x512"]
    with pytest.raises(InputError, match="example_input: got none"):
        report(model)
    done = finalize(model, x, "csr", compare=True, repeats=1)
    for row in done.report():
        assert set(row.predicted) == {"dense", "csr"}
        assert all(0 < spent < 1 for spent in row.predicted.values())
    assert report(model) == str(done)
    for line in report(model, x, repeats=1).splitlines()[1:]:
        _, _, _, chosen, *numbers = line.split()
        assert chosen == "csr"
        assert all(float(number) > 0 for number in numbers[:7])
    done.remove()


SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_packing import convnet
from ellzero.models.packing import load_finalized
model = convnet()
with torch.no_grad():
    for p in model.parameters(): p.zero_()
x = torch.load({folder_out!r} + "/x.pt")
done = load_finalized({folder_out!r} + "/model.safetensors", model, x)
with torch.no_grad(): torch.save(model(x), {folder_out!r} + "/out.pt")
print(done.place["isa"])
"""


@pytest.mark.parametrize("isa", ["same", "avx2", "base", "reference"])
def test_saved_and_read_in_another_process_under_another_instruction_set(tmp_path, isa):
    from pathlib import Path

    from ellzero import kernels

    if isa not in ("same", "reference") and isa not in kernels.show_config()["available"]:
        pytest.skip(f"this machine has no {isa}")
    model, x = convnet(), torch.randn(2, 8, 8, 8)
    done = finalize(model, x, "csr")
    done.save(tmp_path / "model.safetensors")
    torch.save(x, tmp_path / "x.pt")
    with torch.no_grad():
        want = model(x)
    code = SCRIPT.format(folder=str(Path(__file__).parent), folder_out=str(tmp_path))
    import os

    environment = {**os.environ, **({} if isa == "same" else {"ELLZERO_ISA": isa})}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == (done.place["isa"] if isa == "same" else isa)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), want, rtol=1e-4, atol=1e-5)


def test_a_hugging_face_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=100, tie_word_embeddings=True)  # fmt: skip
    torch.manual_seed(0)
    model = prune(transformers.LlamaForCausalLM(config))
    tokens = torch.randint(0, 100, (2, 12))
    with torch.no_grad():
        before = model(tokens).logits
        done = finalize(model, {"input_ids": tokens}, "row-group", include="model.layers.*", group=8)
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)
    assert len(done.report()) == 14
    done.save(tmp_path / "llama.safetensors")
    other = transformers.LlamaForCausalLM(config).eval()
    load_finalized(tmp_path / "llama.safetensors", other, {"input_ids": tokens})
    with torch.no_grad():
        torch.testing.assert_close(other(tokens).logits, before, rtol=1e-4, atol=1e-4)


def test_bad_input(tmp_path):
    x = torch.randn(2, 512)
    for call, words in [
        (lambda: finalize(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4)), "no layer of Sequential"),
        (lambda: finalize(mlp(), x, "crs"), "layout: got 'crs'"),
        (lambda: finalize(mlp(), x, "nm"), "nonzeros within 4 columns"),
        (lambda: finalize(mlp(), x, include="9"), "include: no module"),
        (lambda: finalize(mlp(), x, at_least=0.5), "at_least"),
        (lambda: finalize("model", x), "model: got str"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            call()
    finalize(mlp(), x, "csr").save(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="which the Sequential has not"):
        load_finalized(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(3, 3)), x)
    bigger = nn.Sequential(*mlp(), nn.BatchNorm1d(10))
    with pytest.raises(InputError, match=r"does not fit the Sequential, first at '5\.bias'"):
        load_finalized(tmp_path / "m.safetensors", bigger, x)

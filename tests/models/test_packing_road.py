"""The road of a sparse model in clean processes: a folder with zeros, finalised, saved, read under another CPU level.

The second process measures the layouts anew and must give the outputs of the first.
"""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ellzero import kernels  # noqa: E402

FIRST = """
import sys, torch
from ellzero.models import finalize, load_model
folder = sys.argv[1]
model, _ = load_model(folder + "/hf")
tokens = torch.load(folder + "/tokens.pt")
with torch.no_grad():
    dense = model(input_ids=tokens).logits
    done = finalize(model, {"input_ids": tokens}, "csr", include="model.layers.*", cache=folder + "/cache.json")
    sparse = model(input_ids=tokens).logits
torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-4)
done.save(folder + "/packed.safetensors")
torch.save(sparse, folder + "/first.pt")
print(done.place["isa"], sum(row.chosen != "dense" for row in done.report()))
"""

SECOND = """
import sys, torch, transformers
from ellzero.models import load_finalized, report
folder = sys.argv[1]
model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(folder + "/hf")).eval()
tokens = torch.load(folder + "/tokens.pt")
done = load_finalized(folder + "/packed.safetensors", model, {"input_ids": tokens}, include="model.layers.*", repeats=1,
                      cache=folder + "/cache.json")
with torch.no_grad():
    torch.save(model(input_ids=tokens).logits, folder + "/second.pt")
measured = all(spent > 0 for row in done.report() for spent in row.seconds.values())
print(done.place["isa"], measured, max(len(row.seconds) for row in done.report()))
"""


def run(code, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_hugging_face_folder_goes_the_whole_road(tmp_path):
    config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                                      num_key_value_heads=2, vocab_size=64)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape) < 0.1)
    model.save_pretrained(tmp_path / "hf")
    torch.save(torch.randint(0, 64, (2, 8)), tmp_path / "tokens.pt")
    isa, packed = run(FIRST, tmp_path)
    assert isa == kernels.show_config()["isa"]
    assert int(packed) == 7
    again, measured, candidates = run(SECOND, tmp_path, ELLZERO_ISA="base" if isa != "base" else "reference")
    assert again != isa
    assert measured == "True"
    assert int(candidates) >= 3  # measured anew, each layout that fits among them
    first, second = (torch.load(tmp_path / name) for name in ("first.pt", "second.pt"))
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)

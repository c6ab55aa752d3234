"""What the MLM head takes beside its input and parameters, told by the peak of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from ellzero.retrieval.heads import MLMHead, MLMTransform
from ellzero.retrieval.states import TokenBatch

width, pooling = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(2)

def batch(b, L):
    full = torch.ones(b, L, dtype=torch.bool)
    return TokenBatch(torch.randn(b, L, width, requires_grad=True), torch.zeros(b, L, dtype=torch.int64), full, ~full)

def run(given, head):
    out = head(given)
    (out * torch.linspace(0, 1, out.shape[1])).sum().backward()
    return given.states.grad, head.embeddings.grad

torch.manual_seed(0)
run(batch(1, 4), MLMHead(torch.randn(50, width), transform=MLMTransform(width), pooling=pooling))
given, head = batch(32, 512), MLMHead(0.05 * torch.randn(30522, width), transform=MLMTransform(width), pooling=pooling)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
to_states, to_embeddings = run(given, head)
assert to_states.abs().sum() > 0 and to_embeddings.abs().sum() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "pooling"), [(384, "max"), (768, "max"), (768, "sum")])
def test_a_batch_of_32_times_512_tokens_fits_in_300_mb(width, pooling):
    """Forward and backward over 30 522 pieces, gradients of the states and of every parameter included.

    The tensor of all logits would be 2 GB. The products alone are 0.8 to 3 TFLOP, hence the minute that a case takes.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(width), pooling], capture_output=True, text=True, check=True
    )
    print(f"width {width}, {pooling}: {float(done.stdout):.0f} MB")
    assert float(done.stdout) < 300

"""Products with sparse weights against dense ones: ours and the peers interleaved in one process.

    python benchmarks/kernels.py [--threads 1] [--repeats 15] [--out docs/tables/kernels.md]

Times are of the calling thread's processor for one thread (so that other processes on a busy machine count little), and
of the clock for more. Weights are random, uniform, and rotated: enough copies that together they do not fit in the
last cache, where ``batch`` is 1. Every row of the table gives medians as the ratio "dense float32 of torch / this".
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from ellzero.kernels import show_config
from ellzero.layouts.condensed import Condensed
from ellzero.layouts.grouped import CSR, RowGroup
from ellzero.layouts.nm import NM
from ellzero.layouts.nn import SparseConv2d, SparseLinear
from ellzero.parts.constraints import NM as KeepNM

warnings.filterwarnings("ignore")
G = np.random.default_rng(0)
CACHE = 48 << 20


def interleaved(ways, repeats, clock):
    """Median seconds of each way; a way is called with the number of the round."""
    times = {name: [] for name in ways}
    for i in range(-2, repeats):
        for name, run in ways.items():
            started = clock()
            run(i)
            spent = clock() - started
            if i >= 0:
                times[name].append(spent)
    return {name: float(np.median(spent)) for name, spent in times.items()}


def masked(rows, columns, density, group=1):
    """Gaussian entries on a uniform random pattern that ``group`` neighbouring rows share."""
    keep = np.repeat(G.random((rows // group, columns)) < density, group, axis=0)
    return np.where(keep, G.standard_normal((rows, columns)), 0).astype(np.float32)


def copies(nbytes, batch):
    return max(1, min(12, -(-CACHE // nbytes))) if batch == 1 else 1


def rotating(items, call):
    return lambda i: call(items[i % len(items)])


def dense_ways(rows, columns, batch):
    """torch in float32, bfloat16 and int8, and NumPy's BLAS."""
    n = copies(rows * columns * 4, batch)
    weights = [torch.randn(rows, columns) for _ in range(n)]
    x = torch.randn(batch, columns)
    ways = {"dense float32": rotating(weights, lambda w: F.linear(x, w))}
    halves, half = [w.bfloat16() for w in weights], x.bfloat16()
    ways["dense bfloat16"] = rotating(halves, lambda w: F.linear(half, w))
    linears = []
    for w in weights:
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = w
        linears.append(torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), dtype=torch.qint8))
    ways["dense int8"] = rotating(linears, lambda m: m(x))
    arrays, turned = [w.numpy() for w in weights], np.ascontiguousarray(x.numpy().T)
    ways["NumPy"] = rotating(arrays, lambda w: w @ turned)
    return ways, turned


def sparse_ways(rows, columns, batch, density, x, threads):
    """Our layouts on feature-major arrays, and SciPy's and torch's CSR."""
    ways = {}
    n = copies(int(rows * columns * density * 6), batch)
    matrices = [masked(rows, columns, density) for _ in range(n)]
    for name, kind in (("CSR", CSR), ("condensed", Condensed)):
        if name == "condensed":
            fan_in = max(int(columns * density), 1)
            keep = np.argsort(G.random((n, rows, columns)), axis=-1)[..., :fan_in]
            made = []
            for places in keep:
                W = np.zeros((rows, columns), np.float32)
                np.put_along_axis(W, places, G.standard_normal(places.shape).astype(np.float32), axis=1)
                made.append(kind.from_dense(W))
            del keep
        else:
            made = [kind.from_dense(W) for W in matrices]
        ways[name] = rotating(made, lambda m: m.matmul(x, n_threads=threads))
    for group in (4, 8):
        grouped = [masked(rows, columns, density, group) for _ in range(n)]
        for dtype in (None, "int8"):
            made = [RowGroup.from_dense(W, group=group, dtype=dtype) for W in grouped]
            label = f"row group {group}" + (" int8" if dtype else "")
            ways[label] = rotating(made, lambda m: m.matmul(x, n_threads=threads))
    theirs = [scipy.sparse.csr_matrix(W) for W in matrices]
    ways["SciPy CSR"] = rotating(theirs, lambda m: m @ x)
    tensors, columns_first = [torch.from_numpy(W).to_sparse_csr() for W in matrices], torch.from_numpy(x)
    ways["torch CSR"] = rotating(tensors, lambda m: m @ columns_first)
    return ways


def two_of_four(rows, columns, x, threads, n):
    made = []
    for _ in range(n):
        W = G.standard_normal((rows, columns)).astype(np.float32)
        made.append(NM.from_dense(np.where(KeepNM(2, 4).support(np.abs(W)), W, 0), n=2, m=4))
    return {"2:4": rotating(made, lambda m: m.matmul(x, n_threads=threads))}


def training(density, batch, rows=768, columns=3072):
    """Forward, both gradients, transposes included: a module of ours against nn.Linear (and sparseprop, if there)."""
    W = masked(rows, columns, density)
    dense = torch.nn.Linear(columns, rows)
    dense.weight.data = torch.from_numpy(W)
    ours = SparseLinear.from_linear(dense, "csr")
    x, grad = torch.randn(batch, columns, requires_grad=True), torch.randn(batch, rows)

    def step(module):
        def run(i):
            module(x).backward(grad)
            x.grad = None
            for p in module.parameters():
                p.grad = None

        return run

    ways = {"dense float32": step(dense), "SparseLinear": step(ours)}
    try:
        from sparseprop.modules import SparseLinear as Theirs

        ways["sparseprop"] = step(Theirs(W, torch.nn.Parameter(dense.bias.detach().clone())))
    except ImportError:
        pass
    return ways


def convolution(channels, side, density):
    conv = torch.nn.Conv2d(channels, channels, 1)
    conv.weight.data = torch.from_numpy(masked(channels, channels, density, 4)).reshape(channels, channels, 1, 1)
    loose = torch.nn.Conv2d(channels, channels, 1)
    loose.weight.data = torch.from_numpy(masked(channels, channels, density)).reshape(channels, channels, 1, 1)
    x = torch.randn(1, channels, side, side)
    ours, single = SparseConv2d.from_conv(conv, "row-group"), SparseConv2d.from_conv(loose, "csr")
    return {"dense float32": lambda i: conv(x), "row group 4": lambda i: ours(x), "CSR": lambda i: single(x)}


def bounds():
    """What memory and the arithmetic units give one thread here."""
    big, out = np.ones(64 << 20, np.float32), np.empty((512, 512), np.float32)
    read = min(_timed(lambda: big.sum()) for _ in range(5))
    a = G.standard_normal((512, 512)).astype(np.float32)
    multiply = min(_timed(lambda: np.matmul(a, a, out=out)) for _ in range(20))
    return big.nbytes / read, 2 * 512**3 / multiply


def _timed(run):
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    config = show_config()
    bandwidth, flops = bounds()
    lines = [
        f"{given.threads} thread(s), kernels {config['isa']}, OpenBLAS core {config['blas_core']}, "
        f"memory read {bandwidth / 1e9:.0f} GB/s, NumPy's product {flops / 1e9:.0f} GFLOP/s.", "",
        "| product | density | times as fast as torch's dense float32 |", "|---|---|---|",
    ]  # fmt: skip

    def say(label, density, seconds, operations=None):
        reference = seconds.pop("dense float32")
        shown = "; ".join(f"{name} {reference / spent:.2f}" for name, spent in seconds.items())
        rate = "" if operations is None else f" (dense {operations / reference / 1e9:.0f} GFLOP/s)"
        lines.append(f"| {label}{rate} | {density:g} | {shown} |")
        print(lines[-1], flush=True)

    print("\n".join(lines))
    with torch.inference_mode():
        for rows, columns, batch in [(768, 3072, 64), (768, 3072, 256), (768, 3072, 1), (4096, 4096, 1)]:
            dense, x = dense_ways(rows, columns, batch)
            for density in (0.5, 0.4, 0.2, 0.1, 0.05):
                ways = {**dense, **sparse_ways(rows, columns, batch, density, x, given.threads)}
                if batch == 1 and density == 0.5:
                    ways |= two_of_four(rows, columns, x, given.threads, copies(rows * columns * 2, 1))
                found = interleaved(ways, given.repeats, clock)
                say(f"{rows} x {columns}, batch {batch}", density, found, 2 * rows * columns * batch)
        for channels, side in ((512, 14), (256, 28), (1024, 7)):
            for density in (0.2, 0.1):
                found = interleaved(convolution(channels, side, density), given.repeats, clock)
                say(f"1 x 1 convolution, {channels} channels, {side} x {side}", density, found)
    for density in (0.1, 0.05):
        found = interleaved(training(density, 64), given.repeats, clock)
        say("training step, 768 x 3072, batch 64", density, found)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

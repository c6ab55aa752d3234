"""Products with sparse weights against dense ones: ours and the peers interleaved in one process.

    python benchmarks/kernels.py [--threads 1 2] [--repeats 11] [--out docs/benchmarks-kernels.md] [--only TEXT]

Each way is timed in turn; medians, warm-up not counted. Two ratios to torch's dense float32 are shown: by CPU time per
thread, which other processes on a busy machine disturb little, and by the clock. Weights are random, uniform, and
rotated where ``batch`` is 1: enough copies that together they do not fit in the last cache.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from threadpoolctl import threadpool_limits
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
LIMIT = 3  # seconds


def interleaved(ways, repeats, threads):
    """Median (CPU seconds per thread, seconds of the clock) of each way; it is called with the number of the round.

    Each round has an order of its own, since a way finds in the caches what the one before it left there. A way that
    takes more CPU time than LIMIT in its second round is not run again, and its name says so.
    """
    times, long = {name: [] for name in ways}, {}
    for i in range(-2, repeats):
        for name in G.permutation([name for name in ways if name not in long]):
            cpu, clock = time.process_time(), time.perf_counter()
            ways[name](i)
            spent = (time.process_time() - cpu) / threads, time.perf_counter() - clock
            if i >= 0:
                times[name].append(spent)
            elif i == -1 and spent[0] > LIMIT:
                long[name] = spent
    once = {f"{name} (one run of {spent[0]:.0f} s)": np.array(spent) for name, spent in long.items()}
    return {name: np.median(spent, axis=0) for name, spent in times.items() if spent} | once


def masked(rows, columns, density, group=1):
    """Gaussian entries on a uniform random pattern that ``group`` neighbouring rows share."""
    keep = np.repeat(G.random((rows // group, columns)) < density, group, axis=0)
    return np.where(keep, G.standard_normal((rows, columns)), 0).astype(np.float32)


def copies(nbytes, batch):
    return max(1, min(40, -(-CACHE // nbytes))) if batch == 1 else 1


def again(stored, n):
    """The layout n times, each in memory of its own."""
    facts = stored.facts()
    return [stored, *(type(stored).from_parts({k: a.copy() for k, a in stored.tensors().items()}, facts)
                      for _ in range(n - 1))]  # fmt: skip


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
    W = masked(rows, columns, density)
    fan_in = max(int(columns * density), 1)
    places = np.argpartition(G.random((rows, columns)), fan_in, axis=-1)[:, :fan_in]
    even = np.zeros((rows, columns), np.float32)
    np.put_along_axis(even, places, G.standard_normal(places.shape).astype(np.float32), axis=1)
    made = {"CSR": CSR.from_dense(W), "condensed": Condensed.from_dense(even)}
    for group in (4, 8):
        grouped = masked(rows, columns, density, group)
        made[f"row group {group}"] = RowGroup.from_dense(grouped, group=group)
        made[f"row group {group} int8"] = RowGroup.from_dense(grouped, group=group, dtype="int8")
    for name, stored in made.items():
        ways[name] = rotating(again(stored, n), lambda m: m.matmul(x, n_threads=threads))
    theirs = scipy.sparse.csr_matrix(W)
    ways["SciPy CSR"] = rotating([theirs.copy() for _ in range(n)], lambda m: m @ x)
    tensor, columns_first = torch.from_numpy(W).to_sparse_csr(), torch.from_numpy(x)
    ways["torch CSR"] = rotating([tensor.clone() for _ in range(n)], lambda m: m @ columns_first)
    return ways


def two_of_four(rows, columns, x, threads, n):
    W = G.standard_normal((rows, columns)).astype(np.float32)
    stored = NM.from_dense(np.where(KeepNM(2, 4).support(np.abs(W)), W, 0), n=2, m=4)
    return {"2:4": rotating(again(stored, n), lambda m: m.matmul(x, n_threads=threads))}


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
        from sparseprop.modules.linear import SparseLinear as Theirs

        ways["sparseprop"] = step(Theirs(torch.from_numpy(W), torch.nn.Parameter(dense.bias.detach().clone())))
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
    """Bytes per second that one thread reads from memory, and the operations per second of NumPy's product."""
    big, out = np.ones(64 << 20, np.float32), np.empty((768, 768), np.float32)
    read = min(_timed(lambda: np.add.reduce(big)) for _ in range(5))
    a = G.standard_normal((768, 768)).astype(np.float32)
    multiply = min(_timed(lambda: np.matmul(a, a, out=out)) for _ in range(20))
    return big.nbytes / read, 2 * 768**3 / multiply


def _timed(run):
    started = time.thread_time()
    run()
    return time.thread_time() - started


# What is asked for: name, ways that count, sparsity -> times torch's dense float32.
GOALS = {
    "768 x 3072, batch 64": {"row group": {0.5: 2, 0.8: 5, 0.9: 12}, "CSR": {0.6: 1.3, 0.8: 3, 0.9: 6}},
    "768 x 3072, batch 256": {"row group": {0.5: 2, 0.8: 5, 0.9: 12}},
    "768 x 3072, batch 1": {"condensed": {0.9: 1.9}, "2:4": {0.5: 1.4}},
    "4096 x 4096, batch 1": {"condensed": {0.9: 5.5}, "2:4": {0.5: 1.7}},
}


def bound(way, density, batch, dense_seconds, rows, columns, bandwidth, flops):
    """Times as fast as dense that memory and the arithmetic units allow: the stored numbers are read once."""
    stored = 0.5 if way == "2:4" else density
    each = {"2:4": 4.25, "CSR": 6, "condensed": 6}.get(way, 1.5 if way.endswith("int8") else 4.5)
    work = 2 * rows * columns * stored * batch / flops
    read = rows * columns * stored * each / bandwidth if batch == 1 else 0
    return dense_seconds / max(work, read)


def measure(threads, repeats, only):
    """Lines of the table for one number of threads."""
    torch.set_num_threads(threads)
    with threadpool_limits(threads, user_api="blas"):
        bandwidth, flops = bounds()
        yield f"### {threads} thread{'s' * (threads > 1)}"
        yield ""
        rates = f"{bandwidth / 1e9:.0f} GB/s from memory; NumPy's product runs at {flops / 1e9:.0f} GFLOP/s"
        yield f"One thread reads {rates}."
        yield ""
        yield "| product | sparsity | way | by CPU time | by the clock | asked for | bound |"
        yield "|---|---|---|---|---|---|---|"
        for label, sparsity, found, size in measurements(threads, repeats, only):
            reference = found.pop("dense float32")
            rate = "" if size is None else f" ({2 * np.prod(size) / reference[0] / 1e9:.0f} GFLOP/s)"
            yield f"| {label} | {100 * sparsity:.0f} % | dense float32{rate} | 1 | 1 | | |"
            goals = GOALS.get(label, {})
            for name, spent in found.items():
                kind = "row group" if name.startswith("row group") and "int8" not in name else name
                goal = goals.get(kind, {}).get(round(sparsity, 2), "")
                most = ""
                if size is not None and name.split()[0] in ("CSR", "row", "condensed", "2:4"):
                    most = bound(name, 1 - sparsity, size[2], reference[0], *size[:2], bandwidth, flops)
                    most = f"{most:.1f} ({100 * reference[0] / spent[0] / most:.0f} %)"
                ratios = " | ".join(f"{ratio:.2f}" for ratio in reference / spent)
                yield f"| | | {name} | {ratios} | {goal} | {most} |"


def measurements(threads, repeats, only):
    """(label, sparsity, median times, size or None) of every product."""
    with torch.inference_mode():
        for rows, columns, batch in [(768, 3072, 64), (768, 3072, 256), (768, 3072, 1), (4096, 4096, 1)]:
            label = f"{rows} x {columns}, batch {batch}"
            if only not in label:
                continue
            dense, x = dense_ways(rows, columns, batch)
            for sparsity in (0.9, 0.8, 0.6, 0.5):
                if sparsity == 0.6 and batch != 64:
                    continue
                ways = {**dense, **sparse_ways(rows, columns, batch, 1 - sparsity, x, threads)}
                if batch == 1 and sparsity == 0.5:
                    ways |= two_of_four(rows, columns, x, threads, copies(rows * columns * 2, 1))
                yield label, sparsity, interleaved(ways, repeats, threads), (rows, columns, batch)
        for channels, side in ((512, 14), (256, 28), (1024, 7)):
            label = f"1 x 1 convolution, {channels} channels, {side} x {side}"
            for sparsity in (0.8, 0.9):
                if only in label:
                    yield (
                        label,
                        sparsity,
                        interleaved(convolution(channels, side, 1 - sparsity), repeats, threads),
                        None,
                    )
    for sparsity in (0.9, 0.95):
        label = "training step, 768 x 3072, batch 64"
        if only in label:
            yield label, sparsity, interleaved(training(1 - sparsity, 64), repeats, threads), None


HEAD = """# Products with sparse weights

Written by `benchmarks/kernels.py`: ours and the peers interleaved in one process, medians of {repeats}, warm-up not
counted, in another order each round. Ratios are times as fast as torch's dense float32 layer; "by CPU time" is per
thread. "Bound" is what reading the stored numbers once (batch 1) and the arithmetic rate of NumPy's product allow, with
the share of it that is reached by CPU time. What takes over {limit} s is run once. Kernels: `{isa}`;
OpenBLAS core: {core}; {note}

The training goal is 3x at 90 % and 7x at 95 %, and twice the sparseprop module; the goal of 1 x 1 convolutions is 2x;
row groups with int8 values are to beat dense int8.
"""

AVX2 = """
Measured on cores that other work may share: on a busy machine the clock's column means little, and figures by CPU time
vary by a third. int8 values are widened to float32, so that they save bytes and not multiplies.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    config = show_config()
    note = "this processor has AVX-512." if "avx512f" in config["cpu"] else "this processor has no AVX-512."
    head = HEAD.format(limit=LIMIT, repeats=given.repeats, isa=config["isa"], core=config["blas_core"], note=note)
    lines = [*(head + (AVX2 if config["isa"] == "avx2" else "")).splitlines(), ""]
    for threads in given.threads:
        for line in measure(threads, given.repeats, given.only):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()

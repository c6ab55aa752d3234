"""Products with sparse weights against dense ones: ours and the peers interleaved in one process.

    python benchmarks/kernels.py [--threads 1 2] [--repeats 11] [--markdown docs/benchmarks-kernels.md] [--only TEXT]

Each way is timed in turn; medians, warm-up not counted. Two ratios to torch's dense float32 are shown: by CPU time per
thread, which other processes on a busy machine disturb little, and by the clock. Weights are random, uniform, and
rotated where ``batch`` is 1: enough copies that together they do not fit in the last cache.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from ellzero.kernels import show_config
from ellzero.kernels._dispatch import CHOICE
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
    """Per thread: bytes a second from memory, operations a second of registers and of NumPy's product."""
    big, out = np.ones(64 << 20, np.float32), np.empty((768, 768), np.float32)
    read = min(_timed(lambda: np.add.reduce(big)) for _ in range(5))
    a = G.standard_normal((768, 768)).astype(np.float32)
    multiply = min(_timed(lambda: np.matmul(a, a, out=out)) for _ in range(20))
    peak = 2 * 768**3 / multiply
    if CHOICE.module is not None:
        done = CHOICE.module.fused_multiply_adds(1)
        peak = max(1e5 * done / _timed(lambda: CHOICE.module.fused_multiply_adds(100_000)) for _ in range(20))
    return big.nbytes / read, peak, 2 * 768**3 / multiply


def _timed(run):
    started = time.thread_time()
    run()
    return time.thread_time() - started


TRAINING = "training step, 768 x 3072, batch 64"
# What is asked for: name, ways that count, sparsity -> times torch's dense float32.
GOALS = {
    "768 x 3072, batch 64": {"row group 4": {0.5: 2, 0.8: 5, 0.9: 12}, "CSR": {0.6: 1.3, 0.8: 3, 0.9: 6}},
    "768 x 3072, batch 256": {"row group 4": {0.5: 2, 0.8: 5, 0.9: 12}},
    "768 x 3072, batch 1": {"condensed": {0.9: 1.9}, "2:4": {0.5: 1.4}},
    "4096 x 4096, batch 1": {"condensed": {0.9: 5.5}, "2:4": {0.5: 1.7}},
    TRAINING: {"SparseLinear": {0.9: 3, 0.95: 7}},
    "1 x 1 convolution": {"row group 4": {0.8: 2, 0.9: 2}},
}


def goal(label, way, sparsity):
    """What is asked of that way, or None."""
    known = next((ways for name, ways in GOALS.items() if label.startswith(name)), {})
    return known.get(way, {}).get(round(sparsity, 2))


def limit(way, sparsity, size, rates):
    """Seconds that no kernel can go below: the stored numbers read once (batch 1), and every product done once."""
    rows, columns, batch = size
    dense = way.startswith("dense") or way == "NumPy"
    stored = 1 if dense else 0.5 if way == "2:4" else 1 - sparsity
    each = 4 if dense else {"2:4": 4.25, "CSR": 6, "condensed": 6}.get(way, 1.5 if way.endswith("int8") else 4.5)
    read = rows * columns * stored * each / rates[0] if batch == 1 else 0
    return max(2 * rows * columns * stored * batch / rates[1], read)


def measurements(threads, repeats, only):
    """(label, sparsity, median times, size or None) of every product."""
    with torch.inference_mode():
        for rows, columns, batch in [(768, 3072, 64), (768, 3072, 256), (768, 3072, 1), (4096, 4096, 1)]:
            label = f"{rows} x {columns}, batch {batch}"
            if only not in label:
                continue
            dense, x = dense_ways(rows, columns, batch)
            for sparsity in (0.9, 0.8, 0.6, 0.5):
                if (sparsity == 0.6 and batch != 64) or (rows == 4096 and sparsity not in (0.9, 0.5)):
                    continue
                ways = {**dense, **sparse_ways(rows, columns, batch, 1 - sparsity, x, threads)}
                if batch == 1 and sparsity == 0.5:
                    ways |= two_of_four(rows, columns, x, threads, copies(rows * columns * 2, 1))
                yield label, sparsity, interleaved(ways, repeats, threads), (rows, columns, batch)
        for channels, side in ((512, 14), (256, 28), (1024, 7)):
            label = f"1 x 1 convolution, {channels} channels, {side} x {side}"
            for sparsity in (0.8, 0.9):
                if only in label:
                    ways = convolution(channels, side, 1 - sparsity)
                    yield label, sparsity, interleaved(ways, repeats, threads), (channels, channels, side * side)
    for sparsity in (0.9, 0.95):
        if only in TRAINING:
            yield TRAINING, sparsity, interleaved(training(1 - sparsity, 64), repeats, threads), (3 * 768, 3072, 64)


def table(found, rates, threads):
    """Lines: one per way, with a pair of columns per number of threads; the last column is of the first number."""
    head = " | ".join(f"{n} thread{'s' * (n > 1)}, by CPU time | by the clock" for n in threads)
    yield f"| product | sparsity | way | {head} | GFLOP/s | of the bound | asked for |"
    yield "|---|---|---|" + "---|" * (2 * len(threads) + 3)
    for (label, sparsity), runs in found.items():
        size, one = runs[threads[0]]
        for way, spent in one.items():
            cells = []
            for n in threads:
                mine = runs.get(n, (size, {}))[1].get(way)
                dense = runs.get(n, (size, {}))[1].get("dense float32")
                cells += ["-", "-"] if mine is None else [f"{ratio:.2f}" for ratio in dense / mine]
            least = limit(way.split(" (")[0], sparsity, size, rates)
            share = "dense" if way in ("dense bfloat16", "dense int8") else f"{100 * least / spent[0]:.0f} %"
            stored = 1 if way.startswith("dense") or way == "NumPy" else 0.5 if way == "2:4" else 1 - sparsity
            rate = 2 * np.prod(size) * stored / spent[0] / 1e9
            first = f"{label} | {100 * sparsity:.0f} %" if way == "dense float32" else " | "
            asked = goal(label, way, sparsity)
            yield (f"| {first} | {way} | {' | '.join(cells)} | {rate:.0f} | {'' if share == 'dense' else share} | "
                   f"{'' if asked is None else f'{asked}x'} |")  # fmt: skip


def against(found, rates, threads):
    """Lines: what was asked for, what was reached, and what the bound would allow."""
    yield "| product | sparsity | way | asked for | reached | bound | |"
    yield "|---|---|---|---|---|---|---|"
    for (label, sparsity), runs in found.items():
        size, one = runs[threads[0]]
        dense = one["dense float32"][0]
        for way, spent in one.items():
            asked = goal(label, way, sparsity)
            if asked is None:
                continue
            reached, most = dense / spent[0], dense / limit(way, sparsity, size, rates)
            word = "met" if reached >= asked else "missed" if most >= asked else "missed: the bound forbids it"
            yield (f"| {label} | {100 * sparsity:.0f} % | {way} | {asked}x | {reached:.2f}x | {most:.1f}x | {word} |")
        if label == TRAINING and "sparseprop" in one:
            ratio = one["sparseprop"][0] / one["SparseLinear"][0]
            yield (f"| {label} | {100 * sparsity:.0f} % | SparseLinear, against sparseprop | 2x | {ratio:.2f}x | | "
                   f"{'met' if ratio >= 2 else 'missed'} |")  # fmt: skip
        if label == "768 x 3072, batch 64" and sparsity in (0.8, 0.9):
            ours, theirs = one["row group 4 int8"][0], one["dense int8"][0]
            yield (f"| {label} | {100 * sparsity:.0f} % | row group 4 int8, against dense int8 | 1x | "
                   f"{theirs / ours:.2f}x | {theirs / limit('row group 4 int8', sparsity, size, rates):.1f}x | "
                   f"{'met' if theirs >= ours else 'missed'} |")  # fmt: skip


SIZES = [(16, 16), (64, 64), (256, 256), (100, 3000), (768, 3072), (3072, 768), (4096, 4096)]


def with_scipy(repeats):
    """((rows, columns), density, batch, times as fast as SciPy's CSR), one thread, plain arrays in and out."""
    for rows, columns in SIZES:
        for density in (0.01, 0.05, 0.1, 0.3, 0.5):
            if rows * columns * density < 1:
                continue
            W = masked(rows, columns, density)
            ours, theirs = CSR.from_dense(W), scipy.sparse.csr_matrix(W)
            for batch in (1, 8, 64):
                x = G.standard_normal((columns, batch) if batch > 1 else columns).astype(np.float32)
                yield (rows, columns), density, batch, _in_turn(ours, theirs, x, repeats)


def _in_turn(ours, theirs, x, repeats):
    """Times as fast as theirs; so many calls in a row that the clock's steps do not show."""
    work = theirs.nnz * x.size // theirs.shape[1]
    times = max(1, int(2e5 / (40 * (theirs.shape[0] + 100) + work)))

    def run(way):
        for _ in range(times):
            ours.matmul(x, n_threads=1) if way == 0 else theirs @ x

    spent = np.empty((repeats if work < 5e7 else 3, 2))
    for row in [np.empty(2), *spent]:
        for way in G.permutation(2):
            row[way] = _timed(lambda way=way: run(way))
    mine, their = np.median(spent, axis=0)
    return their / mine


def scipy_table(repeats):
    found = list(with_scipy(repeats))
    densities = sorted({density for _, density, _, _ in found})
    yield "| rows x columns | batch | " + " | ".join(f"{100 * d:g} % stored" for d in densities) + " |"
    yield "|---|---|" + "---|" * len(densities)
    for size in SIZES:
        for batch in (1, 8, 64):
            cells = {d: r for s, d, b, r in found if (s, b) == (size, batch)}
            row = " | ".join(f"{cells[d]:.2f}" if d in cells else "-" for d in densities)
            yield f"| {size[0]} x {size[1]} | {batch} | {row} |"
    size, density, batch, worst = min(found, key=lambda row: row[-1])
    yield ""
    yield f"The smallest ratio is {worst:.2f}: {size[0]} x {size[1]} at {100 * density:g} % stored, batch {batch}."


HEAD = """# Products with sparse weights

Written by `benchmarks/kernels.py --markdown FILE`: ours and the peers interleaved in one process, medians of {repeats},
warm-up not counted, in another order each round. Ratios are times as fast as torch's dense float32 layer with as many
threads; "by CPU time" is per thread. The machine had {cores} cores and a load of {load:.1f} when this began, so that
what else ran on it is in the clock's columns, and in part in the others. What takes over {limit} s is run once.
Kernels: `{isa}`; OpenBLAS core: {core}; this processor has {wide}AVX-512.

One thread does {peak:.0f} GFLOP/s in registers (multiply-adds that wait for nothing) and reads {read:.0f} GB/s from
memory; NumPy's product of 768 x 768 runs at {blas:.0f} GFLOP/s. The bound is the larger of two times: every stored
number multiplied at the first rate, and, at batch 1, every stored number and column read once at the second; "of the
bound" is the share that is reached by CPU time with {first} thread{s}. int8 values are widened to float32, so that they
save bytes and not multiplies.
"""


def page(threads, repeats, only):
    """The whole page, line by line."""
    config = show_config()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        rates = bounds()
    wide = "" if "avx512f" in config["cpu"] else "no "
    yield from HEAD.format(
        limit=LIMIT, repeats=repeats, isa=config["isa"], core=config["blas_core"], wide=wide, load=load,
        cores=os.cpu_count(), read=rates[0] / 1e9, peak=rates[1] / 1e9, blas=rates[2] / 1e9, first=threads[0],
        s="s" * (threads[0] > 1),
    ).splitlines()  # fmt: skip
    found = {}
    for n in threads:
        torch.set_num_threads(n)
        with threadpool_limits(n, user_api="blas"):
            for label, sparsity, spent, size in measurements(n, repeats, only):
                print(f"{n} threads: {label}, {100 * sparsity:.0f} %", file=sys.stderr, flush=True)
                found.setdefault((label, sparsity), {})[n] = size, spent
    yield from ["", "## What was asked for", "", *against(found, rates, threads)]
    yield from ["", "## Every product", "", *table(found, rates, threads)]
    torch.set_num_threads(1)
    if only in "SciPy":
        yield from ["", "## Against SciPy's CSR", "",
                    "Times as fast as `scipy.sparse.csr_matrix @ x` on NumPy arrays, one thread, by CPU time;",
                    "`CSR.matmul` with all that it checks.", "", *scipy_table(repeats)]  # fmt: skip
    yield from ["", f"The load was {os.getloadavg()[0]:.1f} at the end."]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    lines = []
    for line in page(given.threads, given.repeats, given.only):
        print(line, flush=True)
        lines.append(line)
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()

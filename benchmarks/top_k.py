"""Row top-k against torch.topk and a memory-bandwidth bound, interleaved in one process.

    python benchmarks/top_k.py [--rows 4096] [--columns 24576] [-k 32] [--threads N] [--repeats 7] [--input normal]

Prints medians and the spread of each, the ratio, and GB/s beside the rate at which the same threads read the same
array (its maximum over rows of 1 MiB). Warm-up is not counted. Sets are checked by values, since torch.topk breaks
ties as it likes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from ellzero import kernels
from ellzero.kernels.torch_ops import top_k as tensor_top_k
from ellzero.rng import rng


def make_input(kind: str, rows: int, columns: int) -> torch.Tensor:
    """``normal`` noise; ``relu`` of it (half zeros); ``ascending`` rows (each entry beats all before)."""
    x = torch.from_numpy(rng(0, "benchmark top_k").standard_normal((rows, columns), dtype=np.float32))
    if kind == "relu":
        return x.clamp_(min=0)
    return x.sort(dim=-1).values if kind == "ascending" else x


def interleave(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds per job and repeat; the jobs take turns, the first turn is warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def beside_matmuls(k: int, repeats: int) -> None:
    """Print what alternating with matrix products costs either side.

    torch's own row maximum stands beside as the control: a product evicts the rows from the cache for both, and only
    what ours loses beyond that could be a second pool of threads.
    """
    a, b, x = torch.randn(512, 512), torch.randn(512, 4096), torch.randn(256, 24576)
    jobs = {"ellzero": lambda: tensor_top_k(x, k), "torch.amax": lambda: x.amax(dim=1)}
    matmul = {"matmul": lambda: a @ b}
    print(f"one pool with torch: {kernels.show_config()['one_pool']}")
    for name, job in jobs.items():
        together = interleave(matmul | {name: job}, repeats)
        alone = interleave({name: job}, repeats) | interleave(matmul, repeats)
        for side in ("matmul", name):
            apart, mixed = (statistics.median(times[side]) * 1e3 for times in (alone, together))
            print(f"{side:16} alone {apart:.2f} ms, alternating (matmul, {name}) {mixed:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=24576)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--input", choices=["normal", "relu", "ascending"], default="normal")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = make_input(options.input, options.rows, options.columns)
    flat, k = x.reshape(-1), options.k
    chunk = min(flat.numel(), 1 << 18)
    blocks = flat[: flat.numel() // chunk * chunk].view(-1, chunk)
    ours, theirs = tensor_top_k(x, k), torch.topk(x, k)
    assert torch.equal(ours.values, theirs.values), "the kept values differ"
    assert torch.equal(x.gather(1, ours.indices), ours.values), "the indices do not point at the values"
    seconds = interleave(
        {
            "ellzero": lambda: tensor_top_k(x, k),
            "ellzero (NumPy)": lambda: kernels.top_k(x.numpy(), k, n_threads=options.threads),
            "torch.topk": lambda: torch.topk(x, k),
            "read bound": lambda: blocks.amax(dim=1),
        },
        options.repeats,
    )
    config = kernels.show_config()
    print(f"[{options.rows}, {options.columns}] float32 {options.input}, k = {k}, torch {torch.__version__}")
    print(f"live module {config['isa']}, {options.threads} threads, BLAS core {config['blas_core'] or 'unknown'}")
    gigabytes = x.numel() * x.element_size() / 1e9
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}"
        print(f"{name:16} {median * 1e3:9.1f} ms  ({spread} ms)  {gigabytes / median:6.1f} GB/s")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"torch.topk / ellzero: {median['torch.topk'] / median['ellzero']:.2f}")
    print(f"ellzero / read bound: {median['ellzero'] / median['read bound']:.2f}")
    beside_matmuls(k, 20 * options.repeats)


if __name__ == "__main__":
    main()

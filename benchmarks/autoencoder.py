"""One training step of a TopK autoencoder on its sparse engine against its encoder's product alone and against peers.

    python benchmarks/autoencoder.py [--d-sae 12288 24576] [--repeats 5] [--threads 2] [--peers all] [--wide]
    python benchmarks/autoencoder.py --device cuda [--d-sae 65536] [--repeats 20] [--precision highest]

d_in 768, k 32, batch 4096, float32. A step is encode, decode, loss, derivatives, projection of the decoder's, clipping
of the norm, Adam, and the decoder back to unit rows. The bound is the encoder's product alone, which no exact method
avoids. Jobs take turns in one process and the first turn is warm-up; seconds are medians of the processor clock (the
wall clock in brackets) and ratios are taken turn by turn. Memory is the peak of a step over what was held before it
and its gradients. Peers start from the same weights and see the same batches; the error (FVU) after the first and the
last step stands beside them. Nested: HierarchicalTopK at every level to 64 against plain TopK with k = 64.
``--wide`` trains 131,072 latents for three steps and prints the peak of the whole process.

``--device cuda`` lets ours, a dense step in torch and sparsify take turns on a GPU: tokens a second (medians between
events on the device), their errors, the memory added, and the share of the peak: the arithmetic of the encoder's
product over the time of the step, against what a product of 8192 x 8192 matrices reaches at the same precision.

sparsify and SAELens come with ``pip install ellzero[bench]``; dictionary-learning and overcomplete are installed by
themselves (``--no-deps``), since they bring torchvision, which must be of the same build as torch or transformers
cannot be imported, and which is not needed here. A peer that cannot be imported is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import io
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from table import race, ratio, setting
from torch import Tensor

from ellzero.kernels import triton_latents
from ellzero.kernels.row_adam import row_adam_, row_squares
from ellzero.kernels.torch_latents import decode_rows, encode_top_k, nested_rows
from ellzero.rng import rng

D_IN, BATCH, LR = 768, 4096, 1e-4


class Weights(NamedTuple):
    """``W_enc [m, d]`` (a column-ordered ``[d, m]``, transposed), ``b_enc [m]``, ``W_dec [m, d]``, ``b_dec [d]``."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def start(d_sae: int, device: str = "cpu") -> Weights:
    """Random unit rows, the encoder being the decoder's transpose."""
    rows = torch.from_numpy(rng(0, "benchmark autoencoder").standard_normal((d_sae, D_IN), dtype="float32"))
    rows = torch.nn.functional.normalize(rows, dim=1)
    made = Weights(rows.clone(), torch.zeros(d_sae), rows, torch.zeros(D_IN))
    return Weights(*(tensor.to(device) for tensor in made))


def batches(count: int) -> list[Tensor]:
    """Sums of a few of 2048 directions, with noise."""
    draw = rng(0, "benchmark activations")
    directions = torch.from_numpy(draw.standard_normal((2048, D_IN), dtype="float32"))
    made = []
    for _ in range(count):
        size = torch.from_numpy(draw.random((BATCH, 24), dtype="float32")) + 0.5
        which = torch.from_numpy(draw.integers(0, 2048, (BATCH, 24)))
        noise = torch.from_numpy(draw.standard_normal((BATCH, D_IN), dtype="float32"))
        made.append((decode_rows(size, which, directions) + noise) / 5)
    return made


def sparse_step(
    weights: Weights, moments: list[tuple[Tensor, Tensor]], x: Tensor, *, k: int, step: int, lr: float = LR,
    clip: float = 1.0, ends: Tensor | None = None,
) -> float:  # fmt: skip
    """One step of Adam on the error relative to the batch's variance, in place; with ``ends`` on the mean over levels.

    The pre-activations never exist as a whole, and every product but the encoder's costs what is in use.
    """
    spread = float((x - x.mean(0)).square().sum())
    for tensor in weights:
        tensor.requires_grad_()
    values, indices = encode_top_k(x, weights.W_enc, weights.b_enc, k, center=weights.b_dec)
    if ends is None:
        loss = (x - weights.b_dec - decode_rows(values, indices, weights.W_dec)).square().sum() / spread
    else:
        nested = nested_rows(values, indices, weights.W_dec, x - weights.b_dec, ends)
        loss = nested.errors.sum() / (len(ends) * spread)
    gradients = torch.autograd.grad(loss, weights)
    square = row_squares(gradients[2], weights.W_dec) + row_squares(gradients[0])
    square += sum(float(gradients[i].square().sum()) for i in (1, 3))
    scale = min(clip / (square**0.5 + 1e-6), 1.0)
    with torch.no_grad():
        for i, (tensor, gradient, (first, second)) in enumerate(zip(weights, gradients, moments)):
            rows = (t if t.ndim == 2 else t[None] for t in (tensor.detach(), gradient, first, second))
            row_adam_(*rows, lr=lr, step=step, clip_scale=scale, unit_norm=i == 2)
    return loss.item()


# -- engines: each maps (d_sae, k) to a function of (step, batch) that trains and returns the FVU


def ours(d_sae: int, k: int, ends: Tensor | None = None, device: str = "cpu") -> Callable[[int, Tensor], float]:
    weights = start(d_sae, device)
    moments = [(torch.zeros_like(t), torch.zeros_like(t)) for t in weights]
    return lambda step, x: sparse_step(weights, moments, x, k=k, step=step, ends=ends)


def sparsify(d_sae: int, k: int, device: str = "cpu") -> Callable[[int, Tensor], float]:
    """As its trainer does: fused encoder, parallel gradient removed, norm clipped, Adam, rows normalised."""
    if device == "cpu":  # where Triton is installed it would decode by it on the CPU too, which fails
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    package = importlib.import_module("sparsify")
    settings = package.SparseCoderConfig(num_latents=d_sae, k=k, normalize_decoder=True)
    coder = package.SparseCoder(D_IN, settings, device=device)
    given = start(d_sae)
    with torch.no_grad():
        coder.encoder.weight.copy_(given.W_enc)
        coder.W_dec.copy_(given.W_dec)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)

    def step(number: int, x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return out.fvu.item()

    return step


def dense(d_sae: int, k: int, device: str = "cpu") -> Callable[[int, Tensor], float]:
    """Plain torch: all activations of the batch, ``torch.topk``, dense products, its fused Adam."""
    weights = [tensor.requires_grad_() for tensor in start(d_sae, device)]
    optimizer = torch.optim.Adam(weights, lr=LR, eps=6.25e-10, fused=True)

    def step(number: int, x: Tensor) -> float:
        W_enc, b_enc, W_dec, b_dec = weights
        values, indices = ((x - b_dec) @ W_enc.T + b_enc).relu().topk(k)
        z = x.new_zeros(len(x), d_sae).scatter(1, indices, values)
        loss = (x - b_dec - z @ W_dec).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            W_dec.copy_(torch.nn.functional.normalize(W_dec, dim=1))
        optimizer.zero_grad()
        return loss.item()

    return step


def sae_lens(d_sae: int, k: int) -> Callable[[int, Tensor], float]:
    """As its trainer does: forward pass of training, norm clipped, Adam. Nothing is dead, so no auxiliary loss."""
    saes = importlib.import_module("sae_lens.saes.topk_sae")
    base = importlib.import_module("sae_lens.saes.sae")
    sae = saes.TopKTrainingSAE(saes.TopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=k))
    given = start(d_sae)
    with torch.no_grad():
        sae.W_enc.copy_(given.W_enc.T)
        sae.W_dec.copy_(given.W_dec)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(number: int, x: Tensor) -> float:
        out = sae.training_forward_pass(
            base.TrainStepInput(
                sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=number, is_logging_step=False
            )
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            return float((out.sae_out - x).square().sum() / (x - x.mean(0)).square().sum())

    return step


def dictionary_learning(d_sae: int, k: int) -> Callable[[int, Tensor], float]:
    """Its trainer's own ``update``."""
    trainers = importlib.import_module("dictionary_learning.trainers.top_k")
    trainer = trainers.TopKTrainer(
        steps=10_000, activation_dim=D_IN, dict_size=d_sae, k=k, layer=0, lm_name="none", lr=LR, warmup_steps=1,
        auxk_alpha=1 / 32, device="cpu",
    )  # fmt: skip
    given = start(d_sae)
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(given.W_enc)
        trainer.ae.decoder.weight.copy_(given.W_dec.T)
    trainer.scheduler.step()  # past the warm-up's rate of zero

    def step(number: int, x: Tensor) -> float:
        return trainer.update(number, x) / float((x - x.mean(0)).square().sum(1).mean())

    return step


def overcomplete(d_sae: int, k: int) -> Callable[[int, Tensor], float]:
    """As its ``train_sae`` does without monitoring; without batch normalisation, so that the model is the others'."""
    if "overcomplete" not in sys.modules:  # its own opening would import vision models
        if (found := importlib.util.find_spec("overcomplete")) is None:
            raise ImportError("No module named 'overcomplete'")
        package = types.ModuleType("overcomplete")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["overcomplete"] = package
    modules, saes = (importlib.import_module(f"overcomplete.sae{name}") for name in (".modules", ""))
    encoder = modules.MLPEncoder(D_IN, d_sae, norm_layer=lambda size: torch.nn.Identity())
    sae = saes.TopKSAE(D_IN, d_sae, top_k=k, encoder_module=encoder)
    given = start(d_sae)
    with torch.no_grad():
        encoder.final_block[0].weight.copy_(given.W_enc)
        encoder.final_block[0].bias.zero_()
        sae.dictionary._weights.copy_(given.W_dec)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(number: int, x: Tensor) -> float:
        optimizer.zero_grad()
        made = sae(x)[2]
        loss = (x - made).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


PEERS = {
    "sparsify": sparsify, "SAELens": sae_lens, "dictionary_learning": dictionary_learning,
    "overcomplete": overcomplete,
}  # fmt: skip


# -- measuring


def added_bytes(job: Callable[[], Any], gradients: int) -> int:
    """Peak of resident memory during ``job`` over what was held before it, less the gradients that it makes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before - gradients


def resident(name: str) -> int:
    """Bytes of one line of the process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compare(d_sae: int, k: int, names: list[str], repeats: int) -> None:
    """Print steps per engine, their ratios, memory and errors."""
    data = batches(2)
    engines = {"ellzero": ours(d_sae, k)}
    for name in names:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                engines[name] = PEERS[name](d_sae, k)
        except (ImportError, RuntimeError) as error:
            print(f"  {name} left out: {type(error).__name__}: {error}")
    fvu: dict[str, list[float]] = {name: [] for name in engines}

    def job(name: str) -> Callable[[], None]:
        return lambda: fvu[name].append(engines[name](len(fvu[name]) + 1, data[len(fvu[name]) % 2]))

    W, out = start(d_sae).W_enc, torch.empty(BATCH, d_sae)
    jobs: dict[str, Callable[[], Any]] = {"encoder's product": lambda: torch.mm(data[0], W.T, out=out)}
    times = race(jobs | {name: job(name) for name in engines}, repeats)
    del out
    flops = 2 * BATCH * D_IN * d_sae / statistics.median(times["encoder's product"].wall) / 1e9
    print(f"  encoder's product at {flops:.0f} GFLOP/s (wall)")
    gradients = 4 * (2 * D_IN * d_sae + d_sae + D_IN)
    for name, own in engines.items():
        step = len(fvu[name])
        added = added_bytes(lambda own=own, step=step: own(step + 1, data[step % 2]), gradients) / 2**30
        over = ratio(times[name], times["encoder's product"])
        line = f"{over:5.2f} of the product ({1 / over:4.0%} of the bound)"
        if name != "ellzero":
            line += f", {ratio(times[name], times['ellzero']):5.2f} of ours"
        print(f"  {name:20} {line}; adds {added:5.2f} GiB; FVU {fvu[name][0]:.4f} to {fvu[name][-1]:.4f}", flush=True)


def nested(d_sae: int, repeats: int) -> None:
    """Print HierarchicalTopK at every level to 64 beside plain TopK with k = 64."""
    data, count = batches(1)[0], {"TopK, k = 64": 0, "every level to 64": 0}
    engines = {"TopK, k = 64": ours(d_sae, 64), "every level to 64": ours(d_sae, 64, torch.arange(1, 65))}

    def job(name: str) -> Callable[[], None]:
        def run() -> None:
            count[name] += 1
            engines[name](count[name], data)

        return run

    times = race({name: job(name) for name in engines}, repeats)
    print(f"  every level / plain: {ratio(times['every level to 64'], times['TopK, k = 64']):.2f}")


def wide(d_sae: int, k: int) -> None:
    """Print seconds and the peak of the process for three steps."""
    data, engine = batches(1)[0], ours(d_sae, k)
    for step in range(1, 4):
        began = time.perf_counter()
        loss = engine(step, data)
        took = time.perf_counter() - began
        print(f"  d_sae {d_sae}: step {step}, {took:.1f} s, FVU {loss:.4f}, peak {resident('VmHWM') / 2**30:.1f} GiB")


def on_gpu(d_sae: int, k: int, repeats: int) -> None:
    """Print tokens a second, errors, memory and the share of the peak on the current GPU."""
    data = [batch.cuda() for batch in batches(2)]
    engines = {"ellzero": ours(d_sae, k, device="cuda"), "torch, dense": dense(d_sae, k, "cuda")}
    try:
        engines["sparsify"] = sparsify(d_sae, k, "cuda")
    except (ImportError, RuntimeError) as error:
        print(f"  sparsify left out: {type(error).__name__}: {error}")
    square, W = torch.randn(8192, 8192, device="cuda"), start(d_sae, "cuda").W_enc
    jobs: dict[str, Callable[[int], Any]] = {
        "peak": lambda step: square @ square,
        "encoder's product": lambda step: data[step % 2] @ W.T,
    }
    jobs |= {name: (lambda step, own=own: own(step + 1, data[step % 2])) for name, own in engines.items()}
    seconds, found = {name: [] for name in jobs}, {name: [] for name in jobs}
    added = dict.fromkeys(jobs, 0)
    for step in range(repeats + 3):
        for name, job in jobs.items():
            torch.cuda.synchronize()
            before, (began, ended) = torch.cuda.memory_allocated(), _events()
            torch.cuda.reset_peak_memory_stats()
            began.record()
            found[name].append(job(step))
            ended.record()
            torch.cuda.synchronize()
            if name not in engines:
                found[name].clear()
            if step >= 3:  # the first steps compile
                seconds[name].append(began.elapsed_time(ended) / 1e3)
                added[name] = max(added[name], torch.cuda.max_memory_allocated() - before)
    peak = 2 * 8192**3 / statistics.median(seconds["peak"])
    flops, gradients = 2 * BATCH * D_IN * d_sae, 4 * (2 * D_IN * d_sae + d_sae + D_IN)
    print(f"  a product reaches {peak / 1e12:.0f} TFLOP/s")
    for name in list(jobs)[1:]:
        took = sorted(seconds[name])
        line = f"{BATCH / statistics.median(took):12,.0f} tokens/s ({took[0] * 1e3:.2f} to {took[-1] * 1e3:.2f} ms)"
        line += f", {flops / statistics.median(took) / peak:4.0%} of the peak"
        if name in engines:
            line += f"; adds {(added[name] - gradients) / 2**30:.2f} GiB"
            line += f"; FVU {found[name][0]:.4f} to {found[name][-1]:.4f}"
        print(f"  {name:20} {line}", flush=True)


def _events() -> tuple[Any, Any]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, nargs="+", help="12288 and 24576 by default, on a GPU 65536")
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="highest", choices=["highest", "high"], help="high: TF32, on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="*", default=["all"], choices=["all", *PEERS])
    parser.add_argument("--wide", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no CUDA GPU is present: --device cuda measures nothing here")
        torch.set_float32_matmul_precision(given.precision)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {triton_latents.missing() or 'Triton'}")
        print(f"d_in {D_IN}, k {given.k}, batch {BATCH}, float32, products of {given.precision} precision")
        for d_sae in given.d_sae or [65_536]:
            print(f"d_sae {d_sae}")
            on_gpu(d_sae, given.k, given.repeats)
        return
    names = list(PEERS) if "all" in given.peers else given.peers
    print(f"d_in {D_IN}, k {given.k}, batch {BATCH}, float32, torch {torch.__version__} on {given.threads} thread(s)")
    print(f"{setting()}; torch's own product: {'MKL' if torch.backends.mkl.is_available() else 'OpenBLAS or Eigen'}")
    if given.wide:
        wide(131_072, given.k)
        return
    for d_sae in given.d_sae or [12288, 24576]:
        print(f"d_sae {d_sae}")
        compare(d_sae, given.k, names, given.repeats)
        nested(d_sae, given.repeats)


if __name__ == "__main__":
    main()

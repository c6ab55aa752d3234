"""Whole models, pruned and finalised, against their dense twins and ONNX Runtime: latency, size and accuracy.

    python benchmarks/finalized.py [--threads 1] [--repeats 11] [--markdown docs/benchmarks-finalized.md]

An MLP and a residual network on the 8 x 8 digits (trained here, then trained on under their mask), and the language
model that ships (pruned by magnitude, not trained again). All ways of a model are timed in turn in one process, by CPU
time per thread. ONNX Runtime needs the extra ``bench``; without it its columns are empty.
"""

import argparse
import copy
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ellzero.data import sets
from ellzero.kernels import show_config
from ellzero.models import MLPConfig, ResidualConfig, finalize, reference_language_model, reference_texts
from ellzero.models.reference import token_stream

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
SPARSITIES, BATCHES = (0.5, 0.8, 0.9, 0.95), (1, 64)
COLOURS = {"MLP": "#1b6ca8", "residual network": "#c8553d", "transformer": "#2a7f62"}


def weights(model):
    """The weights to prune: all layers but the last."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [m.weight for m in layers[:-1]]


def prune(model, sparsity):
    """Magnitude per layer; returns the masks."""
    masks = []
    with torch.no_grad():
        for w in weights(model):
            least = w.abs().flatten().kthvalue(max(round(sparsity * w.numel()), 1)).values
            masks.append((w.abs() > least).to(w.dtype))
            w.mul_(masks[-1])
    return masks


def fit(model, X, y, steps, masks=()):
    """AdamW on random batches; pruned weights stay zero."""
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        at = torch.randint(len(X), (64,), generator=draw)
        loss = F.cross_entropy(model(X[at]), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for w, mask in zip(weights(model), masks):
                w.mul_(mask)
    return model.eval()


class Language(nn.Module):
    """Tokens in, logits out, and nothing beside."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        out = self.model(tokens)
        return out if isinstance(out, torch.Tensor) else out.logits


def models(only):
    """(name, build(sparsity) -> model, inputs by batch, score(run) in %)."""
    table = sets.digits()
    X, y = torch.from_numpy((table.X / 16).astype(np.float32)), torch.from_numpy(table.y).long()
    for name, config, images, steps in (
        ("MLP", MLPConfig(64, 10, (768, 768)), X, 100),
        ("residual network", ResidualConfig(1, 10, 1, (32, 64, 128)), X.reshape(-1, 1, 8, 8), 50),
    ):
        if only not in name:
            continue
        dense = fit(config.build(0), images[:1300], y[:1300], steps).state_dict()

        def build(sparsity, config=config, dense=dense, images=images, steps=steps):
            model = config.build(0)
            model.load_state_dict(dense)
            return fit(model, images[:1300], y[:1300], steps // 3, prune(model, sparsity))

        def score(run, images=images):
            return 100 * float((torch.as_tensor(run(images[1300:])).argmax(-1) == y[1300:]).float().mean())

        yield name, build, {batch: images[:batch] for batch in BATCHES}, score
    if only not in "transformer":
        return
    _, tokenizer = reference_language_model()
    stream = token_stream(tokenizer, reference_texts("validation")[:8])
    rows = torch.from_numpy(np.asarray(stream[: 64 * 33]).reshape(64, 33)).long()

    def build(sparsity):
        model = Language(reference_language_model()[0]).eval()
        prune(model, sparsity)
        return model

    def score(run):
        return 100 * float((torch.as_tensor(run(rows[:, :-1])).argmax(-1) == rows[:, 1:]).float().mean())

    yield "transformer", build, {batch: rows[:batch, :-1] for batch in BATCHES}, score


def onnx_ways(model, x, threads):
    """The dense model in ONNX Runtime, float32 and dynamic int8; empty where it is not installed or cannot read it."""
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    ways = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, small = f"{folder}/plain.onnx", f"{folder}/int8.onnx"
        try:
            torch.onnx.export(
                model, (x,), plain, dynamo=False, input_names=["x"], output_names=["y"],
                dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            )  # fmt: skip
            quantize_dynamic(plain, small, weight_type=QuantType.QInt8)
            for name, path in (("ONNX Runtime", plain), ("ONNX Runtime int8", small)):
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                ways[name] = lambda given, session=session: session.run(None, {"x": given.numpy()})[0]
        except Exception as error:  # what an exporter cannot do is shown as missing
            print(f"  ONNX Runtime: {type(error).__name__} {str(error)[:90]}")
    return ways


def interleaved(ways, x, repeats, threads):
    """Median seconds of CPU time per thread; what takes under two milliseconds is run ten times as often."""
    times, draw = {name: [] for name in ways}, np.random.default_rng(0)
    started = time.process_time()
    ways["torch"](x)
    if time.process_time() - started < 2e-3 * threads:
        repeats *= 10
    with torch.inference_mode():
        for i in range(-2, repeats):
            for name in draw.permutation(list(ways)):
                started = time.process_time()
                ways[name](x)
                if i >= 0:
                    times[name].append((time.process_time() - started) / threads)
    return {name: float(np.median(spent)) for name, spent in times.items()}


def picture(points, path):
    """Speed-up over sparsity as an SVG: one line per model and batch."""
    width, height, left, bottom = 640, 400, 60, 50
    top = max([2.0, *(gain for line in points.values() for _, gain in line)]) * 1.1

    def place(sparsity, gain):
        return left + (sparsity - 0.45) / 0.55 * (width - left - 20), height - bottom - gain / top * (
            height - bottom - 20
        )

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
             '<rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for gain in np.arange(0, top, 1 if top < 8 else 2):
        x, y = place(0.45, gain)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{width - 20}" stroke="{"#888" if gain == 1 else "#ddd"}"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" font-size="12" text-anchor="end">{gain:g}x</text>')
    for sparsity in SPARSITIES:
        x, y = place(sparsity, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 18:.1f}" font-size="12" text-anchor="middle">{100 * sparsity:g} %</text>'
        )
    for i, ((name, batch), line) in enumerate(points.items()):
        at = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        dash = ' stroke-dasharray="6 4"' if batch == 1 else ""
        parts.append(f'<polyline points="{at}" fill="none" stroke="{COLOURS[name]}" stroke-width="2.5"{dash}/>')
        parts.append(f'<text x="{left + 14}" y="{34 + 17 * i}" font-size="13" fill="{COLOURS[name]}">'
                     f'{name}, batch {batch}{" (dashed)" if batch == 1 else ""}</text>')  # fmt: skip
    parts.append(f'<text x="{(width + left) / 2}" y="{height - 8}" font-size="13" text-anchor="middle">'
                 "sparsity; times as fast as the dense model in torch</text></svg>")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--markdown", type=Path, help="write the page, and its picture beside it")
    parser.add_argument("--only", default="", help="a part of a model's name")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config, load = show_config(), os.getloadavg()[0]
    wide = "AVX-512" if "avx512f" in config["cpu"] else "no AVX-512"
    lines = [
        "# Whole models, finalised", "",
        "Written by `benchmarks/finalized.py --markdown FILE`: milliseconds of CPU time per thread, all ways of a row",
        f"in turn, in one process; medians of {given.repeats} or more, {given.threads} thread(s), kernels",
        f"`{config['isa']}`, {wide}; the machine had {os.cpu_count()} cores and a load of {load:.1f} when this began.",
        "Accuracy in % stands in brackets (the transformer: next token); finalising leaves that of the pruned model as",
        "it is, int8 changes it. The transformer is pruned by magnitude and not trained again. Where no layer is",
        "sparse the network is left as it was, and its difference from the first column is the machine's noise.", "",
        "| model | batch | sparsity | torch | bf16 | finalised | speed-up | layers sparse | ONNX Runtime | its int8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    print("\n".join(lines))
    points = {}
    for name, build, inputs, score in models(given.only):
        for sparsity in SPARSITIES:
            model = build(sparsity)
            with torch.inference_mode():
                right = score(model)
            onnx = onnx_ways(model, inputs[BATCHES[1]], given.threads)
            for batch, x in inputs.items():
                dense, half = copy.deepcopy(model), copy.deepcopy(model).bfloat16()
                done = finalize(model, x, repeats=given.repeats)
                with torch.inference_mode():
                    kept = score(model)
                ways = {"torch": dense, "bf16": lambda g, half=half: half(g.bfloat16() if g.is_floating_point() else g),
                        "finalised": model, **onnx}  # fmt: skip
                spent = interleaved(ways, x, given.repeats, given.threads)
                sparse = sum(row.chosen != "dense" for row in done.report())
                gain = spent["torch"] / spent["finalised"]
                points.setdefault((name, batch), []).append((sparsity, gain if sparse else 1.0))
                cells = []
                for way in ("ONNX Runtime", "ONNX Runtime int8"):
                    cells.append(f"{1e3 * spent[way]:.2f} ({score(onnx[way]):.1f})" if way in spent else "-")
                lines.append(
                    f"| {name} | {batch} | {100 * sparsity:g} % | {1e3 * spent['torch']:.2f} ({right:.1f}) | "
                    f"{1e3 * spent['bf16']:.2f} | {1e3 * spent['finalised']:.2f} ({kept:.1f}) | "
                    f"{f'{gain:.2f}x' if sparse else 'left dense'} | "
                    f"{sparse} of {len(done.report())} | {cells[0]} | {cells[1]} |"
                )
                print(lines[-1], flush=True)
                done.remove()
    if given.markdown is not None:
        given.markdown.parent.mkdir(parents=True, exist_ok=True)
        given.markdown.write_text("\n".join([*lines, "", "![Speed-up over sparsity](images/finalized.svg)", ""]))
        picture(points, given.markdown.parent / "images" / "finalized.svg")


if __name__ == "__main__":
    main()

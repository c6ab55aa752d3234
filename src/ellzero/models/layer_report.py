"""What ``finalize`` and ``report`` say about a layer, and what the cost model of this machine foretells of it.

Lives here: ``LayerReport``, its table, ``foretold`` (a cost model per layout, calibrated once per process on this
machine's kernels). Does not live here: the measuring of a user's layers and the choice (``packing``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from ellzero.layouts.cost import CostModel, Hardware, Layer, Sample
from ellzero.layouts.nn import SparseLinear
from ellzero.rng import rng

__all__ = ["CANDIDATES", "LayerReport", "foretold", "interleaved", "machine_models", "table"]

CANDIDATES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "csr": ("csr", {}), "row-group-4": ("row-group", {"group": 4}), "row-group-8": ("row-group", {"group": 8}),
    "condensed": ("condensed", {}), "nm-2-4": ("nm", {"n": 2, "m": 4}),
}  # fmt: skip
"""What ``finalize("auto")`` tries, by label: a layout and its settings."""

# Shapes, batches and densities on which a layout's rates are measured: memory-bound and compute-bound ones.
_SHAPES = ((768, 1024, 1), (2048, 1024, 1), (512, 512, 64), (512, 1024, 32), (256, 2048, 64))
_DENSITY = 0.15
_TINY = (8, 8, 2)


@dataclass(frozen=True)
class LayerReport:
    """One layer: what was measured, and what was chosen. ``seconds`` maps each candidate to its median."""

    name: str
    kind: str
    shape: tuple[int, int]
    batch: int
    density: float
    chosen: str
    nbytes: int
    dense_nbytes: int
    seconds: Mapping[str, float]
    others: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the dense layer in bfloat16 and int8, where they were asked for."""
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the cost model of this machine foretells for the candidates, where they were asked for."""

    stored: float = 1.0
    """Share of the entries that the chosen layout stores, zeros among them included."""

    @property
    def speedup(self) -> float:
        """Dense time over the chosen one's."""
        return self.seconds["dense"] / self.seconds[self.chosen]

    @property
    def note(self) -> str:
        """Which dense arithmetic is faster than what was chosen; empty where none is."""
        faster = {name: spent for name, spent in self.others.items() if spent < self.seconds[self.chosen]}
        if not faster:
            return ""
        best = min(faster, key=faster.__getitem__)
        return f"dense {best} is {self.seconds[self.chosen] / faster[best]:.1f}x faster"


def table(rows: Iterable[LayerReport]) -> str:
    """One line per layer; times in microseconds."""

    def micro(seconds: float | None) -> str:
        return "-" if seconds is None else f"{1e6 * seconds:.1f}"

    head = ("layer", "shape", "density", "chosen", "bytes", "dense", "us", "foretold", "fp32", "bf16", "int8", "faster")
    cells = [head]
    for row in rows:
        cells.append((
            row.name, f"{row.shape[0]}x{row.shape[1]}", f"{row.density:.3f}", row.chosen, str(row.nbytes),
            str(row.dense_nbytes), micro(row.seconds[row.chosen]), micro(row.predicted.get(row.chosen)),
            micro(row.seconds["dense"]), micro(row.others.get("bfloat16")), micro(row.others.get("int8")),
            f"{row.speedup:.2f}x {row.note}".rstrip(),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = []
    for line in cells:
        parts = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1]))]
        lines.append("  ".join([*parts, line[-1]]).rstrip())
    return "\n".join(lines)


def interleaved(modules: Mapping[str, Callable], x: Any, repeats: int) -> dict[str, float]:
    """Median seconds of each module on ``x``, taken in turn so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in modules}
    with torch.inference_mode():
        for round_ in range(-2, repeats):
            for name, module in modules.items():
                started = time.perf_counter()
                module(x)
                spent = time.perf_counter() - started
                if round_ >= 0:
                    times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _random_layer(rows: int, columns: int, candidate: str) -> nn.Module:
    """A layer that keeps about ``_DENSITY`` of its weights on a pattern of the candidate's form; or a dense one."""
    name, options = CANDIDATES.get(candidate, ("dense", {}))
    draw, group = rng(0, "layer_report", candidate, str(rows), str(columns)), options.get("group", 1)
    keep = np.repeat(draw.random((rows // group, columns)) < _DENSITY, group, axis=0)
    if name == "nm":
        keep = np.tile(np.arange(options["m"]) < options["n"], (rows, columns // options["m"]))
    weight = np.where(keep | (name == "dense"), draw.standard_normal((rows, columns)), 0).astype(np.float32)
    linear = nn.Linear(columns, rows)
    linear.weight.data = torch.from_numpy(weight)
    return linear if name == "dense" else SparseLinear.from_linear(linear, name, **options).eval()


@lru_cache(maxsize=4)
def machine_models(threads: int, repeats: int = 5) -> Mapping[str, CostModel]:
    """A calibrated cost model per candidate of ``finalize``, for this process's kernels and that many threads."""
    models = {}
    for layout in ("dense", *CANDIDATES):
        overhead = _seconds(layout, *_TINY, repeats)
        samples = []
        for rows, columns, batch in _SHAPES:
            spent = _seconds(layout, rows, columns, batch, repeats)
            samples.append(Sample(_layer(layout, rows, columns, batch, _DENSITY), max(spent, 1.01 * overhead)))
        models[layout] = CostModel.calibrated(samples, Hardware(1.0, 1.0, overhead=overhead))
    return models


def _layer(candidate: str, rows: int, columns: int, batch: int, density: float) -> Layer:
    name, options = CANDIDATES.get(candidate, ("dense", {}))
    density = 1.0 if name == "dense" else options["n"] / options["m"] if name == "nm" else density
    return Layer(rows, columns, batch, density, name)


def _seconds(layout: str, rows: int, columns: int, batch: int, repeats: int) -> float:
    x = torch.from_numpy(rng(0, "layer_report", "x").standard_normal((batch, columns)).astype(np.float32))
    return interleaved({layout: _random_layer(rows, columns, layout)}, x, repeats)[layout]


def foretold(shape: tuple[int, int], batch: int, stored: Mapping[str, float]) -> dict[str, float]:
    """Seconds that the model of this machine gives each candidate; ``stored`` maps it to the density it stores."""
    models = machine_models(torch.get_num_threads())
    return {
        name: models[name].cost(_layer(name, *shape, batch, min(density, 1.0))).seconds
        for name, density in stored.items() if name in models
    }  # fmt: skip

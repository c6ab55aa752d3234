"""What a sparse layer should cost: time and energy from shapes, density, layout and a description of the hardware.

Lives here: ``Hardware``, ``CostModel``, its calibration on measured times, and the ceiling of a whole model. Does not
live here: any measurement (``models.packing``, ``benchmarks``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from ellzero.errors import InputError, check, check_integer
from ellzero.registry import register

__all__ = ["Cost", "CostModel", "Hardware", "Layer", "Sample"]

# Bytes per stored number: the value, and the share of its column, for 4-byte values.
_INDEX_BYTES = {
    "dense": 0.0, "csr": 2.0, "condensed": 2.0, "row-group": 0.5, "nm": 0.25, "bitmask": 0.0, "block": 0.0,
    "bank-balanced": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """A machine, in its own peaks.

    Parameters
    ----------
    flops : dense operations per second (a multiply and an add are two).
    bandwidth : bytes per second from where the weights lie.
    overhead : seconds that every layer costs, however small.
    ratios : sparsity ratios of bank-balanced units, 1/density: density is rounded up to the next one; empty where the
        kernels take any density (a CPU).
    joules_per_flop, joules_per_byte : for ``Cost.joules``.
    """

    flops: float
    bandwidth: float
    overhead: float = 0.0
    ratios: tuple[int, ...] = ()
    joules_per_flop: float = 1e-12
    joules_per_byte: float = 2e-11

    def __post_init__(self):
        for name in ("flops", "bandwidth"):
            check(name, getattr(self, name), above=0)
        for name in ("overhead", "joules_per_flop", "joules_per_byte"):
            check(name, getattr(self, name), at_least=0)
        for ratio in self.ratios:
            check_integer("ratios", ratio, at_least=1)

    def density(self, wanted: float) -> float:
        """The density at which this hardware really runs: the smallest supported one that holds ``wanted``."""
        if not self.ratios:
            return wanted
        return min((1 / ratio for ratio in (1, *self.ratios) if 1 / ratio >= wanted - 1e-12), default=1.0)


class Layer(NamedTuple):
    """``rows x columns`` weights, on ``batch`` columns of activations, at ``density`` in a layout."""

    rows: int
    columns: int
    batch: int
    density: float = 1.0
    layout: str = "dense"


class Sample(NamedTuple):
    """A layer and the seconds that it was measured to take."""

    layer: Layer
    seconds: float


class Cost(NamedTuple):
    """Seconds of one layer, what bounds them, and its energy."""

    seconds: float
    compute_seconds: float
    weight_seconds: float
    activation_seconds: float
    joules: float

    @property
    def bound(self) -> str:
        """``"compute"``, ``"weights"`` or ``"activations"``: the largest of the three."""
        named = zip(("compute", "weights", "activations"), self[1:4])
        return max(named, key=lambda item: item[1])[0]


@register(
    kind="metric", wing="network", name="CostModel", id="S089", source="arXiv:2207.08006",
    claim="sparse units pay until activations and what stays dense dominate",
)  # fmt: skip
@dataclass(frozen=True)
class CostModel:
    """A roofline per layer: ``overhead + max(operations / peak, weight bytes / rate, activation bytes / rate)``.

    The roofline of S4 (Yen et al., 2022), with the share of the peaks that a layout's kernel reaches. ``shares`` maps
    a layout to its ``(of flops, of bandwidth)``; layouts that are not in it reach both peaks.
    """

    hardware: Hardware
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def cost(self, layer: Layer, value_bytes: float = 4.0) -> Cost:
        """Seconds and joules of one layer; ``value_bytes`` is the size of a stored value and of an activation."""
        check("density", layer.density, at_least=0, at_most=1)
        hardware, share = self.hardware, self.shares.get(layer.layout, (1.0, 1.0))
        if layer.layout != "dense" and layer.layout not in _INDEX_BYTES:
            raise InputError(f"layout: got {layer.layout!r}, want one of {', '.join(_INDEX_BYTES)}")
        density = 1.0 if layer.layout == "dense" else hardware.density(layer.density)
        numbers = layer.rows * layer.columns * density
        operations = 2 * numbers * layer.batch
        weight = numbers * (value_bytes + _INDEX_BYTES[layer.layout])
        activation = (layer.rows + layer.columns) * layer.batch * value_bytes
        compute = operations / (hardware.flops * share[0])
        bandwidth = hardware.bandwidth * share[1]
        parts = (compute, weight / bandwidth, activation / bandwidth)
        joules = operations * hardware.joules_per_flop + (weight + activation) * hardware.joules_per_byte
        return Cost(hardware.overhead + max(parts), *parts, joules)

    def speedup(self, layers: Iterable[Layer], rest_seconds: float = 0.0) -> dict[str, float]:
        """Of a whole model against its dense twin.

        Returns
        -------
        dict : ``nominal`` (operations saved), ``realised`` (predicted time, ``rest_seconds`` of other work in both),
            ``ceiling`` (if the sparse layers cost nothing: what Amdahl's law leaves).
        """
        layers = list(layers)
        dense = sum(self.cost(layer._replace(layout="dense")).seconds for layer in layers)
        sparse = sum(self.cost(layer).seconds for layer in layers)
        kept = sum(
            layer.rows * layer.columns * layer.batch * (layer.layout == "dense" or layer.density) for layer in layers
        )
        whole = sum(layer.rows * layer.columns * layer.batch for layer in layers)
        stays = sum(self.cost(layer).seconds for layer in layers if layer.layout == "dense") + rest_seconds
        return {
            "nominal": whole / max(kept, 1e-300),
            "realised": (dense + rest_seconds) / max(sparse + rest_seconds, 1e-300),
            "ceiling": (dense + rest_seconds) / stays if stays > 0 else math.inf,
        }

    @classmethod
    def calibrated(cls, samples: Sequence[Sample], hardware: Hardware | None = None) -> CostModel:
        """The overhead, and for each layout the shares of both peaks, that fit measured times best.

        Least squares of the logarithms, from several starts. Each layout needs three samples; without ``hardware``
        the peaks are one operation and one byte per second, and the shares are then the kernels' own rates.
        """
        if not samples:
            raise InputError("samples: got none, want three per layout")
        base = hardware or Hardware(1.0, 1.0)
        overhead = base.overhead
        shares = {}
        for layout in sorted({sample.layer.layout for sample in samples}):
            of = [sample for sample in samples if sample.layer.layout == layout]
            if len(of) < 3:
                raise InputError(f"samples: got {len(of)} of the layout {layout!r}, want at least 3")
            shares[layout] = _fit(of, replace(base, overhead=overhead))
        return cls(replace(base, overhead=overhead), shares)


def _fit(samples: Sequence[Sample], hardware: Hardware) -> tuple[float, float]:
    layout = samples[0].layer.layout
    sizes = np.array([[s.layer.rows, s.layer.columns, s.layer.batch, s.layer.density] for s in samples])
    seconds = np.array([s.seconds for s in samples])
    rows, columns, batch, density = sizes.T
    operations = 2 * rows * columns * batch * (density if layout != "dense" else 1.0)
    rates = np.stack([operations, 4 * rows * columns + 4 * (rows + columns) * batch], axis=1) / seconds[:, None]
    measured = np.log(seconds)

    def off(logs: np.ndarray) -> np.ndarray:
        model = CostModel(hardware, {layout: (math.exp(logs[0]), math.exp(logs[1]))})
        return np.log([model.cost(s.layer).seconds for s in samples]) - measured

    starts = itertools.product(*(np.quantile(np.log(column), [0.3, 0.9]) for column in rates.T))
    peaks = np.log([hardware.flops, hardware.bandwidth])
    found = min((least_squares(off, np.array(start) - peaks) for start in starts), key=lambda fit: fit.cost)
    return math.exp(found.x[0]), math.exp(found.x[1])

"""What a ``Sparsifier`` kept where, counted, and what the run cost.

Lives here: ``Row``, ``Report`` and ``Cost``. Does not live here: the masks (``sparsifier``), times and layouts
(``models.finalize``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Cost", "Report", "Row"]


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of the prunable weights, as shares of a dense run of the same number of steps.

    Each weight counts once, as in a perceptron; a convolution uses its own at many places. A training step of a
    layer of density d costs ``3 d`` of its dense forward product, one forward and two backward; a step that reads the
    dense gradient costs ``2 d + 1``. Evci et al. (2020), appendix H.
    """

    training: float
    inference: float


@dataclass(frozen=True)
class Row:
    """One weight of the report."""

    name: str
    shape: tuple[int, ...]
    kept: int
    numel: int

    @property
    def density(self) -> float:
        """The kept fraction."""
        return self.kept / self.numel


@dataclass(frozen=True)
class Report:
    """What is kept where: ``density`` over the prunable weights, ``density_of_all`` over all parameters."""

    step: int
    rows: tuple[Row, ...]
    excluded: Mapping[str, str]
    excluded_numel: int
    cost: Cost = Cost(1.0, 1.0)

    @property
    def kept(self) -> int:
        """Kept entries of the prunable weights."""
        return sum(row.kept for row in self.rows)

    @property
    def density(self) -> float:
        """Kept fraction of the prunable weights, counted."""
        return self.kept / sum(row.numel for row in self.rows)

    @property
    def density_of_all(self) -> float:
        """Kept fraction of all parameters, the excluded ones counted as kept."""
        return (self.kept + self.excluded_numel) / (sum(row.numel for row in self.rows) + self.excluded_numel)

    def __str__(self) -> str:
        width = max(len(name) for name in [*(row.name for row in self.rows), *self.excluded, "all prunable"])
        lines = [f"{'weight':<{width}}  {'kept':>10}  {'of':>10}  density"]
        for row in self.rows:
            lines.append(f"{row.name:<{width}}  {row.kept:>10}  {row.numel:>10}  {row.density:.4f}")
        total = sum(row.numel for row in self.rows)
        lines.append(f"{'all prunable':<{width}}  {self.kept:>10}  {total:>10}  {self.density:.4f}")
        lines.append(f"with the {self.excluded_numel} excluded parameters: {self.density_of_all:.4f}")
        lines.append(f"multiply-adds of a dense run: training {self.cost.training:.3f}, use {self.cost.inference:.3f}")
        lines += [f"{name:<{width}}  excluded: {why}" for name, why in self.excluded.items()]
        return "\n".join(lines)

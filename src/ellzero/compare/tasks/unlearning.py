"""The task ``unlearning``: how near does a sparse network come to never having seen some of its rows?

Lives here: which rows are to be forgotten, the question and its densities. Does not live here: the data, the options
and the networks (``network``), the methods (``ellzero.network.unlearning_frontier``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from ellzero.compare.tasks.network import Network
from ellzero.errors import InputError, check, check_choice
from ellzero.network.unlearning_frontier import unlearning_methods
from ellzero.protocol import Data, Method
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["Unlearning"]


@register(
    kind="task", wing="network", id="S140", source="arXiv:2304.04934", extra="torch", name="unlearning",
    example=lambda: Unlearning(),
)  # fmt: skip
@dataclass(frozen=True)
class Unlearning(Network):
    """A classifier that is to forget rows: the mean gap to retraining of four metrics, against the kept share.

    The metrics are the error on the rows to forget, the share of them that a membership attack calls non-members, and
    the accuracies on retained rows and on rows held out; retraining is under the same masks. Jia et al. (2023).

    Parameters
    ----------
    forget : the share of the training rows, drawn at random, or ``"class=NAME"``.
    by : how the network is pruned first: ``"magnitude"`` or ``"synflow"``.

    The others are those of ``Network``, without the transformer, ``evaluate``, ``include`` and ``exclude``.
    """

    forget: str = "0.1"
    by: str = "magnitude"

    name: ClassVar[str] = "unlearning"
    default_methods: ClassVar[tuple[str, ...] | None] = None
    nets: ClassVar[tuple[str, ...]] = ("mlp", "residual")
    options: ClassVar[tuple[str, ...]] = ("steps", "batch_size", "groups", "net", "forget", "by")
    fidelity: ClassVar[str] = "gap to retraining"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    bound: ClassVar[float | None] = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("by", self.by, ("magnitude", "synflow"))
        object.__setattr__(self, "forget", str(self.forget))
        for option, given in (("eval", self.evaluate), ("include", self.include), ("exclude", self.exclude)):
            if given is not None:
                raise InputError(f"{option}: the task {self.name} takes none, got {given!r}")
        if not self.forget.startswith("class="):
            try:
                share = float(self.forget)
            except ValueError:
                raise InputError(f"forget: got {self.forget!r}, want a share such as 0.1, or class=NAME") from None
            check("forget", share, above=0, below=1)

    def _gone(self, y: np.ndarray, seed: int) -> np.ndarray:
        """True at the training rows that are to be forgotten."""
        if self.forget.startswith("class="):
            classes = self._rows().classes
            return y == classes.index(check_choice("forget", self.forget.removeprefix("class="), classes))
        gone = np.zeros(len(y), dtype=bool)
        gone[rng(seed, self.name, "forget").permutation(len(y))[: max(round(float(self.forget) * len(y)), 1)]] = True
        return gone

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As for ``Network``, with the rows to forget."""
        found = super().refit_data(seed, which)
        more: dict[str, Any] = {"forget": self._gone(found.train[1], seed), "by": self.by, "originals": {}}
        return replace(found, info={**found.info, **more})

    def methods(self) -> Mapping[str, Method]:
        """Retraining again (the gap between two runs of it), and five ways that cost less."""
        return unlearning_methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """From nearly empty to dense."""
        return (0.05, 0.1, 0.3, 1.0)

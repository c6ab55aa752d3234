"""The task ``pruning-at-initialisation``: is a mask that is chosen before training better than a random one?

Lives here: the question. Does not live here: the data, the options and the networks (``network``), the masks
(``ellzero.network.contenders``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ellzero.compare.tasks.network import Network
from ellzero.network import contenders
from ellzero.protocol import Method
from ellzero.registry import register

__all__ = ["PruningAtInitialisation"]


@register(
    kind="task", wing="network", source="arXiv:2009.08576", extra="torch", name="pruning-at-initialisation",
    example=lambda: PruningAtInitialisation(),
)  # fmt: skip
@dataclass(frozen=True)
class PruningAtInitialisation(Network):
    """A classifier under a mask that is chosen before training and stays: fidelity against the kept share.

    The parameters are those of ``Network``, without the transformer. Random masks with the same layer-wise densities
    (``random-snip-ratio``) say whether a score does more than spread the budget. Frankle et al. (2021).
    """

    name: ClassVar[str] = "pruning-at-initialisation"
    default_methods: ClassVar[tuple[str, ...] | None] = None
    nets: ClassVar[tuple[str, ...]] = ("mlp", "residual")

    def methods(self) -> Mapping[str, Method]:
        """Dense; random masks by four spreads; SNIP, SynFlow, magnitude, and a sample in proportion to magnitude."""
        return contenders.initial_methods(self._training)

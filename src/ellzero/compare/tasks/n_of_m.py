"""The task ``n-of-m``: how good is a network that keeps n of each m consecutive inputs of a unit?

Lives here: the patterns and their budgets. Does not live here: the data, the options and the networks (``network``),
the methods (``ellzero.network.contenders``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ellzero.compare.tasks.network import Network
from ellzero.errors import InputError
from ellzero.network import contenders
from ellzero.protocol import Data, Method
from ellzero.registry import register

__all__ = ["NOfM"]


@register(kind="task", wing="network", source="none", extra="torch", name="n-of-m", example=lambda: NOfM())
@dataclass(frozen=True)
class NOfM(Network):
    """A network in a pattern: fidelity against n / m.

    The parameters are those of ``Network``, and ``patterns``, the budgets being their shares n / m: on the command line
    ``2:4,1:4``. Where a layer's inputs are no multiple of m, the last group is smaller and keeps up to n of what it
    has, so the realised density can be higher than n / m.
    """

    patterns: tuple[str, ...] = ("2:4", "1:4", "1:8", "1:16")

    name: ClassVar[str] = "n-of-m"
    default_methods: ClassVar[tuple[str, ...] | None] = None
    options: ClassVar[tuple[str, ...]] = (*Network.options, "patterns")

    def __post_init__(self):
        super().__post_init__()
        given = self.patterns
        object.__setattr__(self, "patterns", tuple(given.split(",")) if isinstance(given, str) else tuple(given))
        if not self.patterns:
            raise InputError("patterns: got none, want some such as 2:4,1:16")
        seen: dict[float, str] = {}
        for pattern in self.patterns:
            n, m = _pattern(pattern)
            if n / m in seen:
                raise InputError(
                    f"patterns: got {seen[n / m]} and {pattern}, which keep the same share; want one of them"
                )
            seen[n / m] = pattern

    def _budgets(self) -> dict[float, tuple[int, int]]:
        return {n / m: (n, m) for n, m in map(_pattern, self.patterns)}

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As for ``Network``, with the pattern of each budget."""
        found = super().refit_data(seed, which)
        return replace(found, info={**found.info, "patterns": self._budgets()})

    def methods(self) -> Mapping[str, Method]:
        """Dense, one cut, SR-STE, decaying masks and staircases, each with two rules for what is dropped."""
        return contenders.pattern_methods(self._training)

    def budgets(self, data: Data) -> Sequence[float]:
        """The shares of the patterns."""
        return tuple(sorted(self._budgets()))

    def check_budgets(self, budgets: Sequence[float]) -> None:
        """Each is the share of a pattern."""
        known = self._budgets()
        for budget in budgets:
            if budget not in known:
                shares = ", ".join(f"{share:g} ({n}:{m})" for share, (n, m) in known.items())
                raise InputError(f"budgets: got {budget}, want the shares of patterns: {shares}")


def _pattern(text: Any) -> tuple[int, int]:
    n, colon, m = str(text).strip().partition(":")
    if not (colon and n.isdecimal() and m.isdecimal() and 1 <= int(n) < int(m)):
        raise InputError(f"patterns: got {text!r}, want n:m with n from 1 to m - 1, such as 2:4")
    return int(n), int(m)

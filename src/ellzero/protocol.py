"""The contracts between the wings and the comparison: Budget, Point, Fitted, Method, Data, Task.

Lives here: what every wing promises, as plain values and protocols. Does not live here: any implementation.
The lowest floor, so that wings can speak to ``compare`` without importing it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from ellzero.errors import check, check_choice

__all__ = ["Budget", "Data", "Fitted", "Method", "Output", "Point", "Task"]


@dataclass(frozen=True)
class Budget:
    """How much may be kept (coefficients, codes, weights) or seen (labels, rewards, observations).

    ``unit`` is the word on the axis: ``"coefficients"``, ``"L0"``, ``"density"``.
    """

    value: float
    unit: str
    of: Literal["kept", "seen"] = "kept"

    def __post_init__(self):
        check("budget", self.value, above=0)
        check_choice("of", self.of, ("kept", "seen"))


@dataclass(frozen=True)
class Point:
    """One fit of one method at one budget: what was aimed at, what it came to, and what it cost.

    ``target`` and ``realised`` are in the task's budget unit; ``fidelity`` is on the validation part;
    ``fit_seconds`` covers the fit of this point (for a path method, the time since the point before),
    ``run_seconds`` one run at the batch that the task states, ``nbytes`` the stored size.
    A failed fit has ``error`` and no fidelity. ``tuned`` are the settings that differ from the defaults.
    """

    method: str
    target: float
    realised: float | None
    fidelity: float | None
    fit_seconds: float
    run_seconds: float | None
    nbytes: int | None
    seed: int
    artefact: str | None = None
    trial: int = 0
    tuned: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    key: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Point:
        """The inverse of ``to_json``."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Data:
    """What a method may see: the training and the validation part, and facts about them. Never the test part.

    The parts' type is the task's own: ``(X, y)`` arrays, activations, or a pair of tensors.
    """

    train: Any
    validation: Any
    info: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Fitted(Protocol):
    """One fitted point. ``realised`` is the budget it really uses, ``nbytes`` its stored size."""

    realised: float
    nbytes: int

    def score(self, part: Any) -> float:
        """Fidelity on a part of the data (validation here, test in ``take``)."""

    def time(self, part: Any) -> float:
        """Median seconds of one run at the batch that the task states."""

    def save(self, directory: Path) -> None:
        """Write the wing's native artefact into an existing directory."""


@runtime_checkable
class Method(Protocol):
    """A way to make something sparse, with its settings as (dataclass) fields.

    ``frontier`` maps budgets to the wing's own dial (a path of alphas, k, the end of a schedule) and yields
    exactly one ``Fitted`` per budget, in the order given. Where ``dense`` is true the method has no budget: it
    yields one ``Fitted`` in all, the reference line of the plot.
    """

    name: str
    dense: bool

    def candidates(self, trials: int, seed: int) -> Sequence[Method]:
        """``trials`` variants of this method's settings to choose among on validation data; the first is itself."""

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[Fitted]:
        """Fit at each budget."""


@dataclass(frozen=True)
class Output:
    """What applying an artefact gives: named columns of equal length, and a note on what they are."""

    columns: Mapping[str, Any]
    note: str = ""


@runtime_checkable
class Task(Protocol):
    """A question with an answer key: data that is split once, a fidelity, a budget, and the methods to compare."""

    name: str
    fidelity: str
    better: Literal["higher", "lower"]
    bound: float | None
    unit: str
    of: Literal["kept", "seen"]
    batch: str

    def describe(self) -> Mapping[str, Any]:
        """Everything that fixes the question, as JSON: enters the key of each point."""

    def data(self, seed: int) -> Data:
        """The training and validation parts for one seed (the test part is the same for all seeds)."""

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """``"train"``: the same as ``data``; ``"all"``: train on training and validation together."""

    def test(self) -> Any:
        """The test part: read once, by ``take``."""

    def methods(self) -> Mapping[str, Method]:
        """The methods of this task by name."""

    def budgets(self, data: Data) -> Sequence[float]:
        """Budgets to use where the user names none."""

    def apply(self, directory: Path, source: str) -> Output:
        """Run a saved artefact on new data, in a fresh process."""

"""What ellzero holds: one entry per public part, method, recipe, preset, task and estimator.

Lives here: the ``register`` decorator, the list of entries, and the index file that ``ellzero methods`` reads
so that listing imports nothing heavy. Does not live here: any method, nor a rule of how to run one.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ellzero.errors import InputError

__all__ = ["Entry", "entries", "index", "load_all", "lookup", "register", "write_index"]

KINDS = (
    "penalty", "group_penalty", "matrix_penalty", "datafit", "constraint", "gradient", "score", "allocation",
    "schedule", "operator", "solver", "layout", "estimator", "method", "preset", "recipe", "task", "model", "metric",
    "generator", "dataset", "activity", "loss", "teacher",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One registered object; ``paper`` is its id (``S001`` to ``S170``) or ``None``."""

    name: str
    kind: str
    wing: str | None
    paper: str | None
    source: str
    claim: str | None
    extra: str | None
    summary: str
    module: str
    qualname: str
    target: Any = field(default=None, compare=False, repr=False)
    example: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    def row(self) -> dict[str, Any]:
        """What the index file keeps: everything but the live objects."""
        live = asdict(self, dict_factory=dict) if self.target is None else {**self.__dict__}
        return {key: value for key, value in live.items() if key not in ("target", "example")}


_ENTRIES: dict[tuple[str, str], Entry] = {}
INDEX = Path(__file__).with_name("methods.json")


def register(
    *,
    id: str | None = None,
    source: str,
    kind: str,
    wing: str | None = None,
    extra: str | None = None,
    claim: str | None = None,
    example: Callable[[], Any] | None = None,
    name: str | None = None,
) -> Callable[[Any], Any]:
    """Put a class or function into the registry.

    Parameters
    ----------
    id : the paper's id, ``"S080"``, or ``None`` for a part or baseline.
    source : where it is from, ``"arXiv:2503.17547"`` or ``"Zhang (2010)"``.
    kind : picks the laws that its tests run; one of ``KINDS``.
    wing : ``"linear"``, ``"network"``, ...; ``None`` for a shared part.
    extra : the optional dependency group it needs.
    claim : the claim in one line.
    example : builds a small valid instance, used by the laws.
    """
    if kind not in KINDS:
        raise InputError(f"kind: got {kind!r}, want one of {', '.join(KINDS)}")

    def add(target: Any) -> Any:
        own = name or target.__name__
        summary = (inspect.getdoc(target) or "").strip().split("\n", 1)[0]
        entry = Entry(
            own, kind, wing, id, source, claim, extra, summary,
            target.__module__, target.__qualname__, target, example,
        )  # fmt: skip
        before = _ENTRIES.get((kind, own))
        if before is not None and (before.module, before.qualname) != (entry.module, entry.qualname):
            raise InputError(f"register: {kind} {own!r} is registered twice, in {before.module} and {entry.module}")
        _ENTRIES[kind, own] = entry
        return target

    return add


def load_all() -> None:
    """Import every module of the package, so that every decorator has run. Needs the extras ``torch`` and ``hf``."""
    package = importlib.import_module("ellzero")
    for info in pkgutil.walk_packages(package.__path__, "ellzero."):
        last = info.name.rsplit(".", 1)[-1]
        if last != "__main__" and last not in ("_base", "_avx2", "_avx512", "_neon"):
            importlib.import_module(info.name)


def entries(kind: str | None = None, wing: str | None = None) -> Iterator[Entry]:
    """Live entries of the modules imported so far (``load_all`` imports them all), sorted by kind and name."""
    for (_, _), entry in sorted(_ENTRIES.items()):
        if (kind is None or entry.kind == kind) and (wing is None or entry.wing == wing):
            yield entry


def lookup(kind: str, name: str) -> Entry:
    """The live entry of that kind and name; ``InputError`` with the nearest name if there is none."""
    from ellzero.errors import check_choice

    check_choice(kind, name, [entry.name for entry in entries(kind)])
    return _ENTRIES[kind, name]


def write_index(path: Path = INDEX) -> None:
    """Write the index of all entries. ``python -m ellzero.registry`` calls it."""
    load_all()
    rows = [entry.row() for entry in entries()]
    path.write_text("[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n")


def index(path: Path = INDEX) -> list[dict[str, Any]]:
    """The rows of the index file; imports no method."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    from ellzero import registry as live  # the instance that the decorators fill, not this copy of it

    live.write_index()
    print(f"{len(live.index())} entries")

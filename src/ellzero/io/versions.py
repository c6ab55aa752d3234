"""Format versions: every older version is read, a newer one is refused by name.

Lives here: the table of upgrades, one step per kind and version, and ``bring_forward``, which runs them.
Does not live here: the upgrades themselves; each stands beside the format it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ellzero.errors import InputError, check_integer

__all__ = ["bring_forward", "check_version", "upgrade"]

_UPGRADES: dict[tuple[str, int], Callable[[Any, dict], tuple[Any, dict]]] = {}


def upgrade(kind: str, since: int) -> Callable:
    """Register the step from version ``since`` to ``since + 1`` of ``kind``.

    The function takes and returns ``(content, meta)``: the tensors by name (or the files by name), and the meta
    dictionary. A format's whole past stays readable as long as each step stands in the table.
    """
    check_integer("since", since, at_least=1)

    def add(step: Callable[[Any, dict], tuple[Any, dict]]) -> Callable[[Any, dict], tuple[Any, dict]]:
        if (kind, since) in _UPGRADES:
            raise InputError(f"upgrade: {kind!r} has two steps from version {since}")
        _UPGRADES[kind, since] = step
        return step

    return add


def check_version(path: Any, kind: str, found: int, wanted: int) -> None:
    """Refuse a version that is newer than ``wanted``, or older without an upgrade."""
    if found > wanted:
        raise InputError(
            f"{path}: is {kind!r} version {found}, written by a newer ellzero; "
            f"this one reads up to version {wanted}: update ellzero"
        )
    for step in range(found, wanted):
        if (kind, step) not in _UPGRADES:
            raise InputError(f"{path}: is {kind!r} version {found}, and no step from version {step} is known")


def bring_forward(path: Any, kind: str, found: int, wanted: int, content: Any, meta: dict) -> tuple[Any, dict]:
    """``(content, meta)`` of version ``found``, brought to version ``wanted`` step by step."""
    check_version(path, kind, found, wanted)
    for step in range(found, wanted):
        content, meta = _UPGRADES[kind, step](content, meta)
    return content, meta

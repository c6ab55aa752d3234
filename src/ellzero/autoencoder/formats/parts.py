"""Parts of an autoencoder as JSON: frozen values by their name and arguments.

Lives here: ``to_json`` and ``from_json``. Does not live here: any part, nor a list of them: whatever is a frozen
dataclass of ``ellzero.autoencoder`` or ``ellzero.parts`` and has arguments of plain values can be written. Reading
makes such values and nothing else; their own checks run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ellzero.errors import InputError

__all__ = ["from_json", "to_json"]

_FLOORS = ("autoencoder", "parts")
# Names of releases past, where a class was renamed or moved: old name to new.
_MOVED: dict[str, str] = {}


def to_json(value: Any, where: str) -> Any:
    """Plain values, sequences and mappings of them and frozen parts, as JSON; ``where`` is named in the error."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": repr(value)}
    if isinstance(value, list | tuple):
        return [to_json(one, where) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: to_json(one, where) for key, one in value.items()}}
    if is_dataclass(value) and not isinstance(value, type) and _name(type(value)) is not None:
        inner = {field.name: to_json(getattr(value, field.name), where) for field in fields(value) if field.init}
        return {"part": _name(type(value)), **inner}
    raise InputError(
        f"{where}: a {type(value).__name__} cannot be written to a file, want a frozen part of plain values"
    )


def from_json(value: Any, where: str) -> Any:
    """What ``to_json`` wrote; sequences come back as tuples."""
    if isinstance(value, list):
        return tuple(from_json(one, where) for one in value)
    if not isinstance(value, dict):
        return value
    if set(value) == {"number"} and value["number"] in ("inf", "-inf", "nan"):
        return float(value["number"])
    if set(value) == {"map"} and isinstance(value["map"], dict):
        return {key: from_json(one, where) for key, one in value["map"].items()}
    name = value.get("part")
    kind = _find(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError(f"{where}: got {name!r}, which this release has no part for")
    options = {key: from_json(inner, where) for key, inner in value.items() if key != "part"}
    known = {field.name for field in fields(kind) if field.init}
    for key in options:
        if key not in known:
            raise InputError(f"{where}: {name} has no argument {key!r} in this release")
    try:
        return kind(**options)
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: {name} cannot be made of {options} ({error})") from error


def _name(kind: type) -> str | None:
    """``"autoencoder.encoders.Linear"`` for that class; None for what is no frozen part."""
    module = kind.__module__.removeprefix("ellzero.")
    frozen = getattr(kind, "__dataclass_params__", None)
    if frozen is None or not frozen.frozen or module.split(".")[0] not in _FLOORS or "." in kind.__qualname__:
        return None
    return f"{module}.{kind.__qualname__}"


def _find(name: str) -> type | None:
    """The class of that name, if it is a frozen part."""
    name = _MOVED.get(name, name)
    module, _, kind = name.rpartition(".")
    words = module.split(".")
    if words[0] not in _FLOORS or not all(word.isidentifier() for word in (*words, kind)):
        return None
    try:
        found = getattr(importlib.import_module(f"ellzero.{module}"), kind, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and _name(found) == name else None

"""Methods and tasks as JSON: what enters a point's key, and what lets another process build them again.

Lives here: ``encode`` and ``decode`` of settings, and finding objects by ``module:object``, entry point or task name.
Does not live here: fitting, nor the run folder. Only classes are rebuilt, from their fields; nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.compare.tasks import TASKS
from ellzero.errors import InputError, check_choice, suggestion
from ellzero.protocol import Method, Task

__all__ = [
    "GROUP", "Contender", "changed", "contenders", "decode", "digest", "encode", "find_task", "load_object",
    "rebuild_method", "rebuild_task", "task_record",
]  # fmt: skip

GROUP = "ellzero.methods"
"""Entry points of this group, named ``TASK.NAME``, join that task's methods."""


@dataclass(frozen=True)
class Contender:
    """A method in a comparison; ``origin`` says where another process finds it again.

    ``"task"`` (one of the task's own), ``"entry point"``, ``"python"`` (an object given by the caller, rebuilt from its
    settings) or the ``module:object`` that named it.
    """

    method: Method
    origin: str

    @property
    def name(self) -> str:
        return self.method.name


def encode(value: Any) -> Any:
    """Settings as JSON; objects become their class and fields, arrays their digest.

    Raises
    ------
    InputError : for a value that has no stable form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.generic):
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, float) and not math.isfinite(plain):
            return {"float": repr(plain)}
        return plain
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encode(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"array": content, "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return {"object": f"{value.__module__}:{value.__qualname__}"}
    if dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        kind = type(value)
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": _fields(value)}
    raise InputError(f"settings: got {value!r} ({type(value).__name__}), want plain values, dataclasses or arrays")


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.init]
    else:
        names = sorted(name for name in vars(value) if not name.startswith("_"))
    return {name: encode(getattr(value, name)) for name in names}


def decode(value: Any) -> Any:
    """The inverse of ``encode``, up to lists, which come back as tuples; arrays cannot come back."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return float(value["float"])
    if "mapping" in value:
        return {key: decode(item) for key, item in value["mapping"].items()}
    if "object" in value:
        return load_object(value["object"])
    if "class" in value:
        kind = load_object(value["class"])
        if not isinstance(kind, type):
            raise InputError(f"{value['class']}: is no class, so its settings cannot be rebuilt")
        return kind(**{name: decode(item) for name, item in value["fields"].items()})
    raise InputError(f"settings: {next(iter(value), 'an empty object')!r} cannot be rebuilt from JSON")


def changed(method: Any, base: Any) -> dict[str, Any]:
    """The settings of ``method`` that differ from those of ``base``; entries of mappings count one by one."""
    before, now = _each(encode(base)["fields"]), _each(encode(method)["fields"])
    return {name: value for name, value in now.items() if before.get(name, ...) != value}


def _each(fields: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= value["mapping"] if isinstance(value, dict) and "mapping" in value else {name: value}
    return found


def digest(value: Any) -> str:
    """A short hash of a JSON value, the same in every process."""
    content = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def load_object(reference: str) -> Any:
    """The object that ``module:name`` names, looked up in the working directory too.

    Raises
    ------
    InputError : the module does not import, or has no such name.
    """
    module_name, _, path = reference.partition(":")
    if not module_name or not path:
        raise InputError(f"{reference!r}: want module:object")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        parts = module_name.split(".")
        if error.name not in [".".join(parts[: i + 1]) for i in range(len(parts))]:
            raise  # the module is there; what it imports is not
        raise InputError(
            f"{reference!r}: no module {module_name!r} is installed or in the working directory"
        ) from error
    except SyntaxError as error:
        raise InputError(f"{reference!r}: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise InputError(f"{reference!r}: {module_name} has no {name!r}{suggestion(name, dir(found))}")
        found = getattr(found, name)
    return found


def _as_method(found: Any, reference: str) -> Method:
    if isinstance(found, type) or (callable(found) and not isinstance(found, Method)):
        try:
            found = found()
        except TypeError as error:
            raise InputError(f"{reference}: cannot be made without arguments ({error})") from error
    if not isinstance(found, Method):
        missing = [name for name in ("name", "dense", "candidates", "frontier") if not hasattr(found, name)]
        raise InputError(f"{reference}: is no method, it lacks {', '.join(missing)}")
    return found


def _plugged(task: Task) -> dict[str, Any]:
    prefix = f"{task.name}."
    return {
        point.name.removeprefix(prefix): point for point in entry_points(group=GROUP) if point.name.startswith(prefix)
    }


def contenders(task: Task, methods: Any = None) -> list[Contender]:
    """The methods to compare, each with its origin.

    Parameters
    ----------
    methods : ``None`` for the task's ``default_methods`` (all, if it has none) and its entry points; else an iterable
        of names, ``module:object`` strings and Method objects (or a mapping with Method values).

    Raises
    ------
    InputError : an unknown name (with the nearest one), no method at all, or two of the same name.
    """
    own, plugged = dict(task.methods()), _plugged(task)
    if methods is None:
        usual = getattr(task, "default_methods", None) or own
        methods = [*usual, *(name for name in plugged if name not in own)]
    elif isinstance(methods, Mapping):
        methods = list(methods.values())
    elif isinstance(methods, str) or not isinstance(methods, Iterable):
        methods = [methods]
    chosen = [_contender(item, own, plugged) for item in methods]
    if not chosen:
        raise InputError(f"methods: got none, want one or more of {', '.join(own)}")
    for index, contender in enumerate(chosen):
        if contender.name in [before.name for before in chosen[:index]]:
            raise InputError(f"methods: got {contender.name!r} twice, want different names")
    return chosen


def _contender(item: Any, own: Mapping[str, Method], plugged: Mapping[str, Any]) -> Contender:
    if not isinstance(item, str):
        method = _as_method(item, f"methods: {type(item).__name__}")
        return Contender(method, "task" if _same(method, own.get(method.name)) else "python")
    if ":" in item:
        return Contender(_as_method(load_object(item), f"methods: {item}"), item)
    if item in own:
        return Contender(own[item], "task")
    if item in plugged:
        return Contender(_as_method(plugged[item].load(), f"methods: {item}"), "entry point")
    check_choice("methods", item, [*own, *plugged])
    raise AssertionError("unreachable")  # pragma: no cover


def _same(method: Method, other: Method | None) -> bool:
    return other is not None and encode(method) == encode(other)


def rebuild_method(task: Task, name: str, record: Mapping[str, Any]) -> Method:
    """The method of a run folder, in another process.

    Raises
    ------
    InputError : it is not there any more, or its settings are no longer the ones that were compared.
    """
    origin = record["origin"]
    if origin == "python":
        method = _as_method(decode(record["spec"]), name)
    else:
        method = contenders(task, [origin if ":" in origin else name])[0].method
    if encode(method) != record["spec"]:
        raise InputError(f"method {name!r}: its settings are no longer those of the run; compare again")
    return method


def find_task(name: str) -> type:
    """The class of a task by its name, or by ``module:object``; ``InputError`` with the nearest name if unknown."""
    if ":" in name:
        return load_object(name)
    check_choice("task", name, TASKS)
    return load_object(TASKS[name])


def task_record(task: Task) -> dict[str, Any]:
    """What a run folder and a taken model keep of a task; ``spec`` is None where the task cannot be rebuilt."""
    kind = type(task)
    words = {name: getattr(task, name) for name in ("name", "fidelity", "better", "bound", "unit", "of", "batch")}
    spec = task.to_spec() if hasattr(task, "to_spec") else None
    record = {**words, "class": f"{kind.__module__}:{kind.__qualname__}", "spec": spec}
    try:  # as it will be read back, so that a task compares equal to its record
        return json.loads(json.dumps({**record, "describe": dict(task.describe())}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"task {task.name!r}: describe() and to_spec() must be JSON ({error})") from error


def rebuild_task(record: Mapping[str, Any], where: Path) -> Task:
    """The task of a run folder or taken model, in another process."""
    if record.get("spec") is None:
        raise InputError(f"{where}: the task {record.get('name')!r} was given as an object without to_spec; use Python")
    return find_task(record["class"]).from_spec(record["spec"])

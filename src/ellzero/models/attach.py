"""The one door to a user's model: functions put onto its modules, or modules in the place of others.

Lives here: ``attach`` (splice, replace or observe what flows through a module), ``swap`` (exchange modules), and
``matching`` (modules by name pattern). Does not live here: what is put there. Nothing changes the model's code or
parameters, and ``.remove()`` leaves it giving bit-identical outputs.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check_choice

__all__ = ["Attached", "Attachment", "Handle", "attach", "matching", "swap"]

_SHOWN = 12


@dataclass(frozen=True)
class Attached:
    """One row of ``Handle.report()``."""

    name: str
    """Name of the module."""
    pattern: str
    """The pattern that chose it."""
    module: str
    """Its class."""
    calls: int
    """How often the function ran."""
    shape: tuple[int, ...] | None
    """Shape that it saw last."""
    density: float | None
    """Fraction of nonzero entries in what it returned (with ``measure=True``)."""
    change: float | None
    """Squared size of what it changed over that of what came (with ``measure=True``)."""


def matching(model: nn.Module, pattern: str, *, name: str = "pattern") -> dict[str, nn.Module]:
    """Modules whose dotted name fits a glob pattern (``*`` also crosses dots); ``""`` is the model itself.

    Raises
    ------
    InputError : when nothing fits, with the nearest names.
    """
    if not isinstance(pattern, str):
        raise InputError(f"{name}: got {pattern!r} ({type(pattern).__name__}), want a module name or glob pattern")
    found, known, seen = {}, [], set()
    for own, module in model.named_modules(remove_duplicate=False):
        known.append(own)
        if fnmatch.fnmatchcase(own, pattern) and (own or pattern == "") and id(module) not in seen:
            seen.add(id(module))
            found[own] = module
    if not found:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, near))}" if near else ""
        shown = [own for own in known if own]
        more = f", ... ({len(shown)} in all)" if len(shown) > _SHOWN else ""
        raise InputError(
            f"{name}: no module of {type(model).__name__} fits {pattern!r}{hint}; its modules: "
            f"{', '.join(shown[:_SHOWN])}{more}"
        )
    return found


class Attachment:
    """One function on one module: replaces the first tensor that goes in or comes out."""

    def __init__(self, name: str, pattern: str, module: nn.Module, function: Callable, error_term: bool, measure: bool):
        self.name, self.pattern, self.module, self.function = name, pattern, module, function
        self.error_term, self.measure = error_term, measure
        self.calls, self.shape = 0, None
        self._entries, self._sums = 0, None

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shape = tuple(x.shape)
        y = self.function(x)
        if y is None:  # it only looked
            return x
        if not isinstance(y, Tensor) or y.shape != x.shape:
            came = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise InputError(f"{self.name}: the attached function gave {came}, want a tensor of shape {self.shape}")
        y = y.to(x.dtype)
        if self.measure:
            self._count(x.detach(), y.detach())
        # The error term is a constant for the derivative: the value stays, the gradient flows through the function.
        return y + (x - y).detach() if self.error_term else y

    def _count(self, x: Tensor, y: Tensor) -> None:
        sums = torch.stack([(y != 0).sum().double(), (y - x).double().square().sum(), x.double().square().sum()])
        self._entries += x.numel()
        self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    def row(self) -> Attached:
        """What happened so far."""
        density = change = None
        if self._sums is not None:
            nonzero, changed, size = self._sums.tolist()
            density, change = nonzero / max(1, self._entries), (changed / size if size else 0.0)
        kind = type(self.module).__name__
        return Attached(self.name, self.pattern, kind, self.calls, self.shape, density, change)


class Handle:
    """What ``attach`` and ``swap`` return; as a context manager it removes itself at the end."""

    def __init__(self, attachments: list[Attachment], undo: list[Callable[[], None]]):
        self._attachments, self._undo = attachments, undo

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modules that were chosen."""
        return tuple(attachment.name for attachment in self._attachments)

    def report(self) -> tuple[Attached, ...]:
        """One row per module, in the order of the model; still there after ``remove``."""
        return tuple(attachment.row() for attachment in self._attachments)

    def remove(self) -> None:
        """Leave the model as it was. A second call does nothing."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach(
    model: nn.Module,
    places: Mapping[str, Callable],
    where: str = "output",
    *,
    error_term: bool = False,
    bind: bool = False,
    measure: bool = False,
) -> Handle:
    """Put functions onto the modules of a model, chosen by name.

    Parameters
    ----------
    places : from glob pattern to a function (or module) of one tensor that returns one of the same shape, or ``None``
        to leave it. Where a module returns a tuple, a list or a Hugging Face output, its first tensor is meant and the
        rest is passed on. A module that several patterns choose runs them in the order given.
    where : ``"output"``, or ``"input"`` for the module's first tensor argument, by position or else by keyword.
    error_term : add back what the function left out, as a constant: the model's values stay as they are (to
        rounding) while derivatives go through the function. Used to splice sparse autoencoders.
    bind : call each value as ``value(name, module)`` once per chosen module; what it returns is the function. For
        functions that keep something per module.
    measure : keep density and relative change for ``Handle.report()``.

    Raises
    ------
    InputError : a pattern that chooses nothing, or (when the model runs) a result of another shape.
    """
    _check_model(model, places)
    check_choice("where", where, ("output", "input"))
    attachments = []
    for pattern, value in places.items():
        if not callable(value):
            raise InputError(f"places[{pattern!r}]: got {type(value).__name__}, want a function or module")
        for name, module in matching(model, pattern, name="places").items():
            function = value(name, module) if bind else value
            if not callable(function):
                raise InputError(f"places[{pattern!r}]: gave {type(function).__name__} for {name!r}, want a function")
            attachments.append(Attachment(name, pattern, module, function, error_term, measure))
    undo = []
    for attachment in attachments:
        if where == "output":
            hook = attachment.module.register_forward_hook(_on_output(attachment))
        else:
            hook = attachment.module.register_forward_pre_hook(_on_input(attachment), with_kwargs=True)
        undo.append(hook.remove)
    return Handle(attachments, undo)


def _check_model(model: Any, places: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got {type(model).__name__}, want a torch module")
    if not isinstance(places, Mapping) or not places:
        raise InputError("places: got none, want a dictionary from module name or pattern to a function")


def _on_output(attachment: Attachment) -> Callable:
    def hook(module: nn.Module, arguments: tuple, output: Any) -> Any:
        return _with_first_tensor(output, attachment)

    return hook


def _with_first_tensor(output: Any, change: Attachment) -> Any:
    """``output`` with its first tensor changed; the container keeps its type."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):  # the outputs of Hugging Face are ordered dictionaries
        for key, value in output.items():
            if isinstance(value, Tensor):
                return type(output)(**{**output, key: change(value)})
    elif isinstance(output, tuple | list):
        for i, value in enumerate(output):
            if isinstance(value, Tensor):
                parts = [*output[:i], change(value), *output[i + 1 :]]
                return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    raise InputError(f"{change.name}: returns {type(output).__name__} without a tensor, want a module that returns one")


def _on_input(attachment: Attachment) -> Callable:
    def hook(module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        for i, value in enumerate(arguments):
            if isinstance(value, Tensor):
                return (*arguments[:i], attachment(value), *arguments[i + 1 :]), keywords
        for key, value in keywords.items():
            if isinstance(value, Tensor):
                return arguments, {**keywords, key: attachment(value)}
        raise InputError(f"{attachment.name}: is called without a tensor, want a module that takes one")

    return hook


def swap(model: nn.Module, places: Mapping[str, Callable[[str, nn.Module], nn.Module | None]]) -> Handle:
    """Put other modules in the place of some; ``.remove()`` puts the old ones back.

    ``places`` goes from glob pattern to ``make(name, module)``, which returns the new module, or ``None`` to leave the
    old one. A module that is used under several names is replaced under all of them; the first pattern that chooses
    a module decides, and modules inside a replaced one are left alone.
    """
    _check_model(model, places)
    chosen: dict[int, tuple[str, str, nn.Module, Callable]] = {}
    for pattern, make in places.items():
        if not callable(make):
            raise InputError(f"places[{pattern!r}]: got {type(make).__name__}, want make(name, module)")
        for name, module in matching(model, pattern, name="places").items():
            if name == "":
                raise InputError("places: the model itself cannot be swapped, want a module inside it")
            chosen.setdefault(id(module), (name, pattern, module, make))
    fresh: dict[int, nn.Module] = {}
    rows = []
    inside: set[int] = set()
    for key, (name, pattern, module, make) in sorted(chosen.items(), key=lambda item: item[1][0].count(".")):
        new = make(name, module) if key not in inside else None
        if new is None:
            continue
        if not isinstance(new, nn.Module):
            raise InputError(f"places[{pattern!r}]: gave {type(new).__name__} for {name!r}, want a torch module")
        new.train(module.training)
        fresh[key] = new
        inside.update(id(child) for child in module.modules())
        rows.append(Attachment(name, pattern, new, new, False, False))
    undo = []
    for parent in [*model.modules()]:
        for key, child in [*parent._modules.items()]:
            if child is not None and id(child) in fresh and id(parent) not in inside:
                parent._modules[key] = fresh[id(child)]
                undo.append(lambda parent=parent, key=key, child=child: parent._modules.__setitem__(key, child))
    return Handle(rows, undo)

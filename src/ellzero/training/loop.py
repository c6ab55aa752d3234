"""The training loop: steps, clipping, learning-rate schedule, averaging, mixed precision, checkpoints.

Lives here: ``train``, the ``Run`` that it drives (several can be driven over the same batches), and ``Batches``, an
endless stream of shuffled batches that knows its position.
Does not live here: losses (``losses``), masks (``masks``), what a checkpoint file is (``checkpoints``).
Killed at any moment and called again with the same arguments, a run ends with the same bits.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.rng import rng
from ellzero.training import checkpoints

__all__ = ["Batches", "Run", "Stateful", "Trained", "bar", "next_batch", "seeded", "skip", "train"]


class Stateful(Protocol):
    """Something with a state that a checkpoint keeps."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Batches:
    """Endless batches of rows, shuffled anew each epoch from ``(seed, epoch)``; the last short batch is kept.

    Parameters
    ----------
    *tensors : tensors with the same number of rows; a batch is a tuple of them, or the one alone.
    batch_size : rows per batch.
    seed : picks the order.
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int = 0):
        if not tensors:
            raise InputError("tensors: got none, want at least one")
        sizes = [len(tensor) for tensor in tensors]
        if len(set(sizes)) != 1 or sizes[0] == 0:
            raise InputError(f"tensors: got {sizes} rows, want the same number in each and at least one")
        self.tensors, self.rows = tensors, sizes[0]
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        self.epoch, self.row = 0, 0
        self._order: Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._order is None:
            order = rng(self.seed, "batches", self.epoch).permutation(self.rows)
            self._order = torch.from_numpy(order).to(self.tensors[0].device)
        rows = self._order[self.row : self.row + self.batch_size]
        self.row += len(rows)
        if self.row >= self.rows:
            self.epoch, self.row, self._order = self.epoch + 1, 0, None
        batch = tuple(torch.index_select(tensor, 0, rows) for tensor in self.tensors)  # thrice as fast as tensor[rows]
        return batch if len(batch) > 1 else batch[0]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {
            "epoch": self.epoch, "row": self.row, "seed": self.seed, "batch_size": self.batch_size, "rows": self.rows,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back there."""
        for name in ("seed", "batch_size", "rows"):
            if state[name] != getattr(self, name):
                raise InputError(f"{name}: got {getattr(self, name)}, want {state[name]}, as in the checkpoint")
        self.epoch, self.row, self._order = state["epoch"], state["row"], None


@dataclass(frozen=True)
class Trained:
    """What a run came to: ``losses[step]`` of the steps run by this call, its seconds, and averaged weights."""

    steps: int
    losses: Mapping[int, float]
    seconds: float
    averaged: Mapping[str, Tensor] = field(default_factory=dict)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Any,
    *,
    optimizer: torch.optim.Optimizer,
    steps: int,
    schedule: Callable[[float, float], float] | None = None,
    clip: float | None = None,
    average: float | None = None,
    precision: str = "float32",
    callbacks: Sequence[Callable[[int, float], None]] = (),
    parts: Mapping[str, Stateful] | None = None,
    generators: Mapping[str, torch.Generator | np.random.Generator] | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Trained:
    """Minimise ``loss(model, batch)`` for ``steps`` steps, resumable to the bit.

    Parameters
    ----------
    loss : gives a scalar tensor.
    batches : an iterator of batches. With ``state_dict`` (as ``Batches``) a resumed run goes to its position; without,
        the batches already used are drawn and passed over.
    schedule : factor on each group's learning rate, called as ``schedule(step, steps)`` before each step.
    clip : largest norm of all gradients together.
    average : decay of an exponential moving average of the parameters, returned as ``averaged``.
    precision : ``"float32"``, or ``"bfloat16"`` for autocast; the weights keep their dtype.
    callbacks : called as ``callback(step, loss)`` after each step, ``step`` counting from 1.
    parts : by name, what acts after each optimiser step through its own ``step()``, if it has one (a ``Sparsifier``),
        and is kept in checkpoints.
    generators : by name, generators that the loss or the model draw from, kept in checkpoints.
    checkpoint, every : folder and number of steps between checkpoints. A folder that has one is resumed from.
    seed : library calls that know only the global generators (dropout) draw from ``(seed, step)``; the global
        generators themselves are put back after each step.
    progress : show a bar.

    Raises
    ------
    InputError : a bad argument, a loss that is not finite (with the step), batches that end early, or a checkpoint of a
        run with another number of steps.
    """
    run = Run(
        model, loss, optimizer=optimizer, steps=steps, schedule=schedule, clip=clip, average=average,
        precision=precision, parts=parts, generators=generators, seed=seed,
    )  # fmt: skip
    check_integer("every", every, at_least=1)
    if not hasattr(batches, "__iter__"):
        raise InputError(f"batches: got {type(batches).__name__}, want an iterator of batches")
    source, batches = batches, iter(batches)
    first = _resume(run, checkpoint, source, batches) if checkpoint is not None else 0
    losses: dict[int, float] = {}
    start = time.perf_counter()
    model.train()
    with bar(progress, steps, first) as advance:
        for step in range(first + 1, steps + 1):
            losses[step] = run.step(step, next_batch(batches, step, steps))
            if checkpoint is not None and (step % every == 0 or step == steps):
                place = source.state_dict() if hasattr(source, "state_dict") else None
                checkpoints.save(checkpoint, step, {**run.state(step), "batches": place})
            for callback in callbacks:
                callback(step, losses[step])
            advance(losses[step])
    return Trained(steps, losses, time.perf_counter() - start, run.averaged)


@contextlib.contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch stand at ``(seed, step)`` inside and where they were outside."""
    devices = [device] if device.type == "cuda" else []
    before = torch.default_generator.get_state()
    with torch.random.fork_rng(devices=devices) if devices else contextlib.nullcontext():
        value = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
        torch.default_generator.manual_seed(value)
        if devices:
            torch.cuda.manual_seed(value)
        try:
            yield
        finally:
            torch.default_generator.set_state(before)


@contextlib.contextmanager
def bar(shown: bool, steps: int, first: int) -> Iterator[Callable[[float], None]]:
    """A bar with the last loss, if shown; gives what moves it on."""
    if not shown:
        yield lambda loss: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("training", total=steps, completed=first)
        yield lambda loss: bar.update(task, advance=1, description=f"loss {loss:.4g}")


def next_batch(batches: Iterator[Any], step: int, steps: int) -> Any:
    """The batch of a step; ``InputError`` where there is none."""
    try:
        return next(batches)
    except StopIteration:
        raise InputError(f"batches: got {step - 1}, want {steps}, one for each step") from None


def skip(source: Any, batches: Iterator[Any], place: Any, step: int, steps: int) -> None:
    """Put batches where they stood after ``step``: by their saved ``place``, or by drawing those that were used."""
    if place is not None:
        if not hasattr(source, "load_state_dict"):
            raise InputError("batches: cannot be put at a position, want Batches as in the checkpoint")
        source.load_state_dict(place)
        return
    for used in range(step):
        next_batch(batches, used + 1, steps)


def _resume(run: Run, folder: str | os.PathLike, source: Any, batches: Iterator[Any]) -> int:
    """Go to the newest checkpoint, if there is one, and return its step."""
    found = checkpoints.latest(folder)
    if found is None:
        return 0
    step, state = found
    run.restore(state, f"the one in {folder}")
    skip(source, batches, state["batches"], step, run.steps)
    return step


class Run:
    """A model in training, one step at a time; the arguments are those of ``train``."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        *,
        optimizer: torch.optim.Optimizer,
        steps: int,
        schedule: Callable[[float, float], float] | None = None,
        clip: float | None = None,
        average: float | None = None,
        precision: str = "float32",
        parts: Mapping[str, Stateful] | None = None,
        generators: Mapping[str, torch.Generator | np.random.Generator] | None = None,
        seed: int = 0,
    ):
        self.steps = check_integer("steps", steps, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        check_choice("precision", precision, ("float32", "bfloat16"))
        if clip is not None:
            check("clip", clip, above=0)
        if average is not None:
            check("average", average, at_least=0, below=1)
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.clip, self.average, self.parts, self.generators = clip, average, parts or {}, generators or {}
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.autocast = precision == "bfloat16"
        self.rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.averaged = {}
        if average is not None:
            self.averaged = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step(self, step: int, batch: Any) -> float:
        """One step (they count from 1), and its loss."""
        with seeded(self.seed, step, self.device):
            return self._step(step, batch)

    def _step(self, step: int, batch: Any) -> float:
        if self.schedule is not None:
            factor = self.schedule(step - 1, self.steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates):
                group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            value = self.loss(self.model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"loss: gave {got}, want a scalar tensor")
        found = value.item()
        if not math.isfinite(found):
            raise InputError(f"loss: got {found} at step {step}, want a finite number; lower the learning rate or clip")
        value.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        for part in self.parts.values():
            if callable(getattr(part, "step", None)):
                part.step()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters() if self.averaged else ():
                self.averaged[name].lerp_(parameter, 1 - self.average)
        return found

    def state(self, step: int) -> dict[str, Any]:
        """Everything that the next step depends on, beside the batches."""
        return {
            "step": step,
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generators": dict(self.generators),
            "averaged": self.averaged,
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Go back to what ``state`` gave; ``where`` names the checkpoint in errors.

        Raises
        ------
        InputError : the state of another run.
        """
        if state["steps"] != self.steps:
            raise InputError(f"steps: got {self.steps}, want {state['steps']}, as in the checkpoint, {where}")
        for name, mine in (("parts", self.parts), ("generators", self.generators)):
            if set(state[name]) != set(mine):
                raise InputError(f"{name}: got {sorted(mine)}, want {sorted(state[name])}, as in the checkpoint")
        if bool(state["averaged"]) != bool(self.averaged):
            raise InputError(
                f"average: got {self.average}, want {'one' if state['averaged'] else 'none'}, as in the checkpoint"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise InputError(f"checkpoint: {where} is of another model or optimiser ({error})") from error
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, generator in self.generators.items():
            checkpoints.restore_generator(generator, state["generators"][name])
        for name, tensor in self.averaged.items():
            tensor.copy_(state["averaged"][name])

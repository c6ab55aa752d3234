"""Several autoencoders in one pass over the activations.

Lives here: ``train_many``. Does not live here: the training of one (``trainer``), the forward pass through several
modules (``ellzero.models.joint_stream``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.autoencoder.shards import Shards
from ellzero.autoencoder.trainer import SAETrainer, as_tensor, streamed, thinned
from ellzero.errors import InputError, check_array, check_integer
from ellzero.models.activations import ActivationStream
from ellzero.models.joint_stream import JointStream
from ellzero.training import checkpoints
from ellzero.training.loop import Batches, Run, Trained, bar, next_batch, skip
from ellzero.training.threads import threads_for

__all__ = ["train_many"]


def train_many(
    trainers: Mapping[str, SAETrainer],
    acts: Any,
    *,
    beside: Any = None,
    progress: bool = False,
    checkpoint: Any = None,
    every: int = 1000,
) -> dict[str, Trained]:
    """Train autoencoders side by side; each ends with the same bits as when trained alone.

    Every batch is read, or computed by the model, once for all of them. Widths, presets, learning rates and engines may
    differ, and the modules that the activations are of.

    Parameters
    ----------
    trainers : by name; of one batch size, number of steps and seed.
    acts : for all of them, what ``SAETrainer.fit`` takes; or by the same names what each of them takes, with as
        many rows: arrays, or streams of one model that differ in the module alone, which then share one forward pass.
    beside : as for ``SAETrainer.fit``, given to all.
    progress : show a bar.
    checkpoint, every : a folder for all of them together, and the steps between two writings.

    Returns
    -------
    dict : what ``SAETrainer.fit`` gives, by name; seconds are those of each one's own steps.

    Raises
    ------
    InputError : no trainers, names that differ, an autoencoder twice, settings that must be shared and are not; else as
        ``SAETrainer.fit``.
    """
    _check(trainers)
    check_integer("every", every, at_least=1)
    samples, source, given = _read(trainers, acts, beside)
    with contextlib.ExitStack() as stack:
        courses = {key: stack.enter_context(one.course(samples.pop(key))) for key, one in trainers.items()}
        runs = {key: Run(one.sae, one.loss, **courses[key]) for key, one in trainers.items()}
        found = _train(trainers, runs, source, given, progress, checkpoint, every)
        for key, one in trainers.items():
            with threads_for(one.products):
                one.finish(runs[key].averaged)
    for one in trainers.values():
        one.sae.eval()
    return found


def _train(
    trainers: Mapping[str, SAETrainer], runs: Mapping[str, Run], source: Any, given: Callable[[Any, str], Any],
    progress: bool, checkpoint: Any, every: int,
) -> dict[str, Trained]:  # fmt: skip
    batches, steps = iter(source), next(iter(runs.values())).steps
    first = _resume(runs, checkpoint, source, batches) if checkpoint is not None else 0
    losses: dict[str, dict[int, float]] = {key: {} for key in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for one in trainers.values():
        one.sae.train()
    with bar(progress, steps, first) as advance:
        for step in range(first + 1, steps + 1):
            batch = next_batch(batches, step, steps)
            for key, run in runs.items():
                start = time.perf_counter()
                with threads_for(trainers[key].products):
                    losses[key][step] = run.step(step, given(batch, key))
                seconds[key] += time.perf_counter() - start
            if checkpoint is not None and (step % every == 0 or step == steps):
                place = source.state_dict() if hasattr(source, "state_dict") else None
                state = {key: run.state(step) for key, run in runs.items()}
                checkpoints.save(checkpoint, step, {"runs": state, "batches": place})
            advance(sum(found[step] for found in losses.values()) / len(runs))
    return {key: Trained(steps, losses[key], seconds[key], run.averaged) for key, run in runs.items()}


def _resume(runs: Mapping[str, Run], folder: Any, source: Any, batches: Iterator[Any]) -> int:
    found = checkpoints.latest(folder)
    if found is None:
        return 0
    step, state = found
    held = state.get("runs", {})
    if set(held) != set(runs):
        raise InputError(f"trainers: got {sorted(runs)}, want {sorted(held)}, as in the checkpoint in {folder}")
    for key, run in runs.items():
        run.restore(held[key], f"that of {key} in {folder}")
    skip(source, batches, state["batches"], step, next(iter(runs.values())).steps)
    return step


def _check(trainers: Any) -> None:
    if not isinstance(trainers, Mapping) or not trainers:
        raise InputError("trainers: got none, want a dictionary from name to SAETrainer")
    for key, one in trainers.items():
        if not isinstance(one, SAETrainer):
            raise InputError(f"trainers[{key!r}]: got {type(one).__name__}, want an SAETrainer")
    for name in ("batch_size", "steps", "seed"):
        values = {key: getattr(one, name) for key, one in trainers.items()}
        if len(set(values.values())) > 1:
            raise InputError(f"{name}: got {values}, want one for all that share a pass")
    if len({id(one.sae) for one in trainers.values()}) < len(trainers):
        raise InputError("trainers: got an autoencoder twice, want one for each")


def _read(
    trainers: Mapping[str, SAETrainer], acts: Any, beside: Any
) -> tuple[dict[str, Tensor], Any, Callable[[Any, str], Any]]:
    """A sample for each, the batches of all, and a function from a batch and a name to what that trainer takes."""
    if isinstance(acts, Mapping):
        if set(acts) != set(trainers):
            raise InputError(f"acts: got {sorted(acts)}, want {sorted(trainers)}, as trainers")
    else:
        acts = dict.fromkeys(trainers, acts)
    seed = next(iter(trainers.values())).seed
    folders = {one: Shards(one, seed=seed) for one in acts.values() if isinstance(one, str | Path)}
    acts = {key: folders[one] if isinstance(one, str | Path) else one for key, one in acts.items()}
    unique = list({id(one): one for one in acts.values()}.values())
    column = {key: next(i for i, one in enumerate(unique) if one is acts[key]) for key in trainers}
    first = {i: trainers[next(key for key in trainers if column[key] == i)] for i in range(len(unique))}
    for key, one in trainers.items():
        if one.sae.d_in != (wanted := first[column[key]].sae.d_in):
            raise InputError(f"trainers[{key!r}]: takes {one.sae.d_in} features, another of the same acts {wanted}")
    arrays = [hasattr(one, "shape") for one in unique]
    if all(arrays):
        samples, source = _arrays(unique, first, beside)
    elif any(arrays) or beside is not None:
        raise InputError("acts: got a stream beside an array, want arrays alone or streams alone")
    else:
        samples, source = _streams(unique, first)
    held = beside is not None

    def given(batch: Any, key: str) -> Any:
        parts = batch if isinstance(batch, tuple) else (batch,)
        return (parts[column[key]], parts[-1]) if held else parts[column[key]]

    placed = {key: samples[column[key]].to(one.sae.W_dec) for key, one in trainers.items()}
    return placed, source, given


def _arrays(unique: list[Any], first: Mapping[int, SAETrainer], beside: Any) -> tuple[list[Tensor], Batches]:
    rows = []
    for i, one in enumerate(unique):
        check_array("acts", one, ndim=2, shape=(len(unique[0]), first[i].sae.d_in), dtypes="f")
        rows.append(one.detach() if isinstance(one, Tensor) else as_tensor(one))
    samples = [thinned(one) for one in rows]
    if beside is not None:
        check_array("beside", beside, shape=(len(rows[0]), *(None,) * (beside.ndim - 1)))
        rows.append(beside if isinstance(beside, Tensor) else torch.as_tensor(np.asarray(beside)))
    return samples, Batches(*rows, batch_size=first[0].batch_size, seed=first[0].seed)


def _streams(unique: list[Any], first: Mapping[int, SAETrainer]) -> tuple[list[Tensor], Any]:
    widths = [first[i].sae.d_in for i in range(len(unique))]
    if len(unique) > 1 and not all(isinstance(one, ActivationStream) for one in unique):
        raise InputError("acts: got several streams that are not ActivationStreams, want these, or arrays")
    if len(unique) == 1:
        sample, batches = streamed(unique[0], widths[0], first[0])
        return [sample], batches
    joint = JointStream(unique)
    sample, batches = streamed(joint, sum(widths), first[0])
    if joint.widths != widths:
        raise InputError(f"acts: the modules give {joint.widths} features, want {widths}, as the autoencoders take")
    parts = [part.contiguous() for part in sample.split(widths, 1)]
    return parts, (tuple(part.contiguous() for part in batch.split(widths, 1)) for batch in batches)

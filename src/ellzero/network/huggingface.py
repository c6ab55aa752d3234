"""``SparsifierCallback``: a recipe inside Hugging Face's ``Trainer``.

Lives here: when the trainer's events call the ``Sparsifier``, and its state beside the trainer's checkpoints. Does not
live here: the masks (``sparsifier``), models and tokenizers (``models.huggingface``). Imports no transformers: a
callback is whatever answers the trainer's events.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ellzero.errors import InputError
from ellzero.io import artefacts
from ellzero.network.recipes import Recipe
from ellzero.network.report import Report
from ellzero.network.sparsifier import Sparsifier
from ellzero.training import checkpoints

__all__ = ["SparsifierCallback"]

KIND, VERSION, NAME = "sparsifier-state", 1, "sparsifier.safetensors"


class SparsifierCallback:
    """Give it to ``Trainer(callbacks=[...])``: the model is sparse by the recipe while it trains, and afterwards.

    The number of steps is the trainer's; gradient accumulation, mixed precision and several processes are seen to, and
    steps that a gradient scaler skips do not count. Each checkpoint gets a file ``sparsifier.safetensors``, from which
    ``trainer.train(resume_from_checkpoint=True)`` goes on with the same masks. When training ends the model is let go
    with its zeros; with ``load_best_model_at_end`` it has those of that checkpoint.

    Parameters
    ----------
    recipe, include, exclude, within : as for ``Sparsifier``.
    resume_from : the folder of the checkpoint to go on from, where it is not ``output_dir/checkpoint-STEP``.

    Attributes
    ----------
    sparsifier : of the run that goes on; None before and after. report : at the end of the last run.

    Raises
    ------
    InputError : when training begins: what ``Sparsifier`` refuses; a checkpoint without masks; resuming with a
        recipe whose weights stay dense underneath, which the trainer's checkpoints cannot hold (``training.train``
        resumes it).
    """

    def __init__(
        self, recipe: Recipe, *, include: Any = None, exclude: Any = None, within: Any = None,
        resume_from: str | os.PathLike | None = None,
    ):  # fmt: skip
        self.recipe, self.options = recipe, {"include": include, "exclude": exclude, "within": within}
        self.resume_from = resume_from
        self.sparsifier: Sparsifier | None = None
        self.report: Report | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Events that do not matter here."""
        if name.startswith("on_"):
            return lambda *args, **kwargs: None
        raise AttributeError(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **kwargs: Any) -> None:
        """Take hold of the model; after a resumption with the masks that were saved."""
        options, saved = dict(self.options), None
        if state.global_step:
            saved = self._saved(args, state.global_step)
            options["masks"] = saved["masks"]
        self.sparsifier = Sparsifier(model, self.recipe, optimizer=optimizer, steps=state.max_steps, **options)
        if saved is not None:
            self.sparsifier.load_state_dict(saved)

    def _saved(self, args: Any, step: int) -> Any:
        if self.recipe.through is not None:
            raise InputError("recipe: its weights stay dense underneath, want ellzero.training.train to resume it")
        folder = Path(args.output_dir) / f"checkpoint-{step}" if self.resume_from is None else Path(self.resume_from)
        if not (folder / NAME).is_file():
            raise InputError(f"resume_from: there is no {NAME} in {folder}, want the checkpoint's folder")
        tensors, meta = artefacts.load(folder / NAME, KIND, version=VERSION, backend="torch")
        return checkpoints.unpack(tensors, meta["skeleton"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Move the masks if it is time."""
        if getattr(optimizer, "step_was_skipped", False):
            self.sparsifier.skip()
        else:
            self.sparsifier.step()

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **kwargs: Any) -> None:
        """The counted density, beside the loss."""
        if self.sparsifier is not None and logs is not None and "loss" in logs:
            logs["density"] = self.sparsifier.report().density

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The masks, beside the checkpoint that was just written."""
        if self.sparsifier is not None and state.is_world_process_zero:
            tensors, skeleton = checkpoints.pack(self.sparsifier.state_dict())
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / NAME
            artefacts.save(path, tensors, {"skeleton": skeleton}, kind=KIND, version=VERSION)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go of the model, which keeps its zeros."""
        self.report = self.sparsifier.report()
        self.sparsifier.remove()
        self.sparsifier = None

"""``prune_to_target``: a trained network, what counts and how much of it may go, to a fast one that keeps the rest.

Lives here: the tries (one per density, each pruned while it trains on), the dense ones in bfloat16 and int8 beside
them, the choice, and the folder it is kept in. Does not live here: masks (``sparsifier``), recipes, layouts and their
measuring (``models.finalize``), the loop (``training``).
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from ellzero.errors import InputError, check, check_integer, require
from ellzero.io import atomic
from ellzero.models.huggingface import load_model
from ellzero.models.packing import Finalized, finalize, load_finalized
from ellzero.network.recipes import Recipe, dense, gmp
from ellzero.network.sparsifier import Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.training.loop import train

__all__ = ["Outcome", "Target", "Tried", "load_pruned", "prune_to_target"]

WEIGHTS, CARD = "finalized.safetensors", "card.json"


@dataclass(frozen=True)
class Target:
    """What is asked for: a loss of fidelity, seconds for the example input, or both; None asks nothing."""

    max_loss: float | None = None
    max_seconds: float | None = None

    def __post_init__(self):
        if self.max_loss is None and self.max_seconds is None:
            raise InputError("max_loss, max_seconds: got neither, want one of them or both")
        if self.max_loss is not None:
            check("max_loss", self.max_loss, at_least=0)
        if self.max_seconds is not None:
            check("max_seconds", self.max_seconds, above=0)

    def excess(self, loss: float, seconds: float) -> float:
        """How far a point is beyond: 0 where it meets the target; shares of the seconds, and fidelity as it is."""
        over = max(loss - self.max_loss, 0.0) if self.max_loss is not None else 0.0
        late = max(seconds / self.max_seconds - 1, 0.0) if self.max_seconds is not None else 0.0
        return over + late

    def rank(self, loss: float, seconds: float) -> tuple[float, float]:
        """The smallest is taken: what meets the target, then the fastest where a loss is granted, else the best."""
        return self.excess(loss, seconds), seconds if self.max_seconds is None else loss

    def __str__(self) -> str:
        parts = []
        if self.max_loss is not None:
            parts.append(f"a loss of at most {self.max_loss:g}")
        if self.max_seconds is not None:
            parts.append(f"at most {1e3 * self.max_seconds:g} ms")
        return " and ".join(parts)


@dataclass(frozen=True)
class Tried:
    """One point: ``loss`` of fidelity to the reference, median ``seconds`` for the example input, stored bytes."""

    name: str
    density: float
    fidelity: float
    loss: float
    seconds: float
    nbytes: int


@dataclass(frozen=True)
class Outcome:
    """What was tried, and the point that was taken: it meets the target, or is the nearest to it.

    ``reference`` is the fidelity that losses count from: the better of the model as it came and as it is after as many
    steps dense. ``beside`` are the dense ones: float32, bfloat16, int8 (those that run on this machine).
    """

    target: Target
    reference: float
    batch: int
    taken: Tried
    met: bool
    tried: tuple[Tried, ...]
    beside: tuple[Tried, ...]
    finalized: Finalized

    @property
    def model(self) -> nn.Module:
        """The network of the point that was taken."""
        return self.finalized.model

    @property
    def note(self) -> str:
        """The verdict in a line, with what dense arithmetic does better."""
        verdict = "is met by" if self.met else "is not met; the nearest is"
        better = [
            p.name for p in self.beside
            if self.target.rank(p.loss, p.seconds) < self.target.rank(self.taken.loss, self.taken.seconds)
        ]  # fmt: skip
        rest = f"; {', '.join(better)} would be taken before it" if better else ""
        return f"{self.target} at batch {self.batch} {verdict} {self.taken.name}{rest}"

    def __str__(self) -> str:
        lines = [f"{'':<16} {'density':>8} {'fidelity':>9} {'loss':>8} {'ms':>9} {'bytes':>12}"]
        for p in (*self.beside, *self.tried):
            mark = " *" if p is self.taken else ""
            lines.append(f"{p.name:<16} {p.density:>8.4f} {p.fidelity:>9.4f} {p.loss:>8.4f} {1e3 * p.seconds:>9.3f} "
                         f"{p.nbytes:>12}{mark}")  # fmt: skip
        return "\n".join([*lines, self.note])

    def save(self, folder: str | os.PathLike) -> None:
        """Weights in their layouts, the card, and the model's own configuration where it has one (Hugging Face)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = getattr(self.model, "config", None)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(folder)
        self.finalized.save(folder / WEIGHTS)
        atomic.write_text(folder / CARD, json.dumps(self.card, indent=1, sort_keys=True))

    @property
    def card(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "target": asdict(self.target), "reference": self.reference, "batch": self.batch, "met": self.met,
            "taken": asdict(self.taken), "tried": [asdict(p) for p in self.tried],
            "beside": [asdict(p) for p in self.beside], "note": self.note,
        }  # fmt: skip


def prune_to_target(
    model: nn.Module | str | os.PathLike,
    batches: Callable[[], Any],
    evaluate: Callable[[nn.Module], float],
    example_input: Any,
    *,
    max_loss: float | None = None,
    max_seconds: float | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    densities: Sequence[float] = (0.5, 0.2, 0.1, 0.05),
    recipe: Callable[[float], Recipe] = gmp,
    steps: int = 1000,
    lr: float = 1e-4,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    include: Any = None,
    exclude: Any = None,
    layout: str = "auto",
    repeats: int = 9,
    seed: int = 0,
) -> Outcome:
    """Prune while fine-tuning at several densities, finalise each, and take the one that meets the target.

    With ``max_loss`` the fastest that loses no more fidelity is taken; with ``max_seconds`` the best that is as fast;
    where none is, the nearest. Every try, a dense one too, starts from the model as it came and sees the same batches.

    Parameters
    ----------
    model : a module on the CPU (left as it is), or a place for ``load_model``, such as a Hugging Face folder.
    batches : called once per try, gives an iterator of at least ``steps`` batches.
    evaluate : fidelity of a model in evaluation mode, the larger the better; on rows that ``batches`` does not give.
    example_input : what the model is called with, at the batch size that counts; see ``finalize``.
    max_loss : fidelity that may be lost. max_seconds : median time of one call, on this machine and its threads.
    loss : ``loss(model, batch)``; default ``model(**batch).loss``, as Hugging Face's models have it.
    densities : kept shares to try. recipe : from a density to a recipe.
    steps, lr, optimizer, seed : of each training; AdamW with a cosine to zero, or ``optimizer(parameters)``.
    include, exclude : see ``Sparsifier``. layout, repeats : see ``finalize``.

    Raises
    ------
    InputError : a bad argument, a fidelity that is not a number, or what the parts refuse.
    """
    target = Target(max_loss, max_seconds)
    check_integer("steps", steps, at_least=1)
    check_integer("repeats", repeats, at_least=1)
    check("lr", lr, above=0)
    if not densities:
        raise InputError("densities: got none, want at least one")
    for density in densities:
        check("densities", density, above=0, below=1)
    first = model if isinstance(model, nn.Module) else load_model(model)[0]
    make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=lr))
    options = {"include": include, "exclude": exclude}
    tries = _Tries(first, batches, loss or _own_loss, evaluate, example_input, make, options, steps, repeats, seed)
    beside, tried, best = tries.beside(), [], None
    for density in densities:
        candidate, kept = tries.trained(recipe(density))
        done = finalize(candidate, example_input, layout, repeats=repeats)
        tried.append(tries.point(f"density {density:g}", kept, candidate))
        if best is None or target.rank(tried[-1].loss, tried[-1].seconds) < target.rank(best[0].loss, best[0].seconds):
            best = tried[-1], done
    met = target.excess(best[0].loss, best[0].seconds) == 0
    return Outcome(target, tries.reference, _rows(example_input), best[0], met, tuple(tried), beside, best[1])


class _Tries:
    """Trainings from the same start on the same batches, and points measured against the dense one of them."""

    def __init__(self, first, batches, loss, evaluate, example, make, options, steps, repeats, seed):
        self.first, self.batches, self.loss, self.evaluate, self.example = first, batches, loss, evaluate, example
        self.make, self.options, self.steps, self.repeats, self.seed = make, options, steps, repeats, seed
        as_it_came = _fidelity(evaluate, copy.deepcopy(first).eval())
        self.twin, _ = self.trained(dense())
        self.reference = max(as_it_came, _fidelity(evaluate, self.twin))

    def trained(self, plan: Recipe) -> tuple[nn.Module, float]:
        """A trained copy, and the density it came to."""
        own = copy.deepcopy(self.first)
        made = self.make(own.parameters())
        sparsifier = Sparsifier(own, plan, optimizer=made, steps=self.steps, **self.options)
        train(own, self.loss, self.batches(), optimizer=made, steps=self.steps, schedule=Cosine(1.0, 0.0), clip=1.0,
              parts={"sparsifier": sparsifier}, seed=self.seed)  # fmt: skip
        sparsifier.remove()
        return own.eval(), sparsifier.report().density

    def point(self, name: str, density: float, candidate: nn.Module) -> Tried:
        """Fidelity, time (in turn with the dense twin) and size."""
        fidelity = _fidelity(self.evaluate, candidate)
        seconds = _seconds({name: candidate, "": self.twin}, self.example, self.repeats)[name]
        return Tried(name, density, fidelity, self.reference - fidelity, seconds, _nbytes(candidate))

    def beside(self) -> tuple[Tried, ...]:
        """The dense twin in each arithmetic that this machine has for it."""
        points = [self.point("dense float32", 1.0, self.twin)]
        for name, narrowed in (("dense bfloat16", _half), ("dense int8", _int8)):
            try:
                points.append(self.point(name, 1.0, narrowed(self.twin)))
            except (RuntimeError, NotImplementedError):  # an operation that this arithmetic lacks here
                continue
        return tuple(points)


def load_pruned(
    folder: str | os.PathLike, example_input: Any, model: nn.Module | None = None, **options: Any
) -> tuple[Finalized, dict[str, Any]]:
    """The network that ``Outcome.save`` wrote, and its card; measured anew on a machine that is not the first.

    Parameters
    ----------
    model : the architecture with any weights; not needed for a model of Hugging Face, whose configuration is there.
    options : of ``finalize``, where it measures anew.

    Raises
    ------
    InputError : no such folder, or a file that is torn, foreign or of another architecture.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise InputError(f"folder: {folder} has no {CARD}, want one that Outcome.save wrote")
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if model is None:
        model = _architecture(folder)
    return load_finalized(folder / WEIGHTS, model, example_input, **options), card


def _architecture(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise InputError(f"model: got None, and {folder} has no config.json; want the architecture")
    transformers = require("transformers", "hf", "to build a Hugging Face model")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    make = getattr(transformers, (config.architectures or [""])[0], None)
    if make is None:
        raise InputError(f"model: {folder} names no known architecture ({config.architectures}); want it as model=")
    return make(config).eval()


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    found = model(**batch).loss if isinstance(batch, Mapping) else None
    if found is None:
        raise InputError("loss: got None, and the model gives none for its batch; want loss(model, batch)")
    return found


def _fidelity(evaluate: Callable[[nn.Module], float], model: nn.Module) -> float:
    with torch.no_grad():
        return check("evaluate", float(evaluate(model)))


def _call(model: nn.Module, given: Any) -> Any:
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, tuple | list) else model(given)


def _seconds(models: Mapping[str, nn.Module], given: Any, repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turn; the first two turns are warm-up."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(-2, repeats):
            for name, model in models.items():
                started = time.perf_counter()
                _call(model, given)
                if turn >= 0:
                    times[name].append(time.perf_counter() - started)
    return {name: statistics.median(spent) for name, spent in times.items()}


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    floating = lambda leaf: isinstance(leaf, Tensor) and leaf.is_floating_point()  # noqa: E731
    return trees.tree_map(lambda leaf: leaf.to(dtype) if floating(leaf) else leaf, tree)


def _half(model: nn.Module) -> nn.Module:
    """A copy in bfloat16 that takes and gives float32."""
    half = copy.deepcopy(model).bfloat16()
    half.register_forward_pre_hook(lambda _, args, kwargs: _cast((args, kwargs), torch.bfloat16), with_kwargs=True)
    half.register_forward_hook(lambda _, args, out: _cast(out, torch.float32))
    return half


def _int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in int8 (weights, and activations as they come), by torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its successor; the layer itself is unchanged
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def _nbytes(model: nn.Module) -> int:
    """Bytes of the stored tensors, tied ones once."""
    leaves = [leaf for leaf in trees.tree_leaves(dict(model.state_dict())) if isinstance(leaf, Tensor)]
    seen = {}
    for leaf in leaves:
        seen[leaf.data_ptr()] = leaf.numel() * leaf.element_size()
    return sum(seen.values())


def _rows(given: Any) -> int:
    first = next((leaf for leaf in trees.tree_leaves(given) if isinstance(leaf, Tensor)), None)
    return 1 if first is None or first.ndim == 0 else len(first)

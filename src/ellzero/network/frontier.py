"""Ways to make a network sparse, as methods of the comparison: fidelity against density, at equal training steps.

Lives here: ``RecipeMethod``, which trains a task's model under any recipe, and ``FittedNetwork``, what comes of it.
Does not live here: which methods there are (``contenders``), the recipes, the data, the split or the report
(``compare``). Every method trains the same model from the same first weights for the same number of steps.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.io import artefacts
from ellzero.io.atomic import write_json
from ellzero.network import packed
from ellzero.network.recipes import Recipe, dense, static
from ellzero.network.sparsifier import Report, Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import products, threads_for

__all__ = ["FittedNetwork", "RecipeMethod", "accuracy", "nats_per_token", "tensors", "variants"]

KIND, VERSION = "sparse-network", 1


def _tensor(X: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))


def tensors(part: tuple[Any, Any], tokens: bool = False) -> tuple[Tensor, Tensor]:
    """``(X, y)`` as a network takes them: float32 rows, or int64 tokens, and int64 targets."""
    X = torch.as_tensor(np.asarray(part[0]), dtype=torch.int64) if tokens else _tensor(part[0])
    return X, torch.as_tensor(np.asarray(part[1]), dtype=torch.int64)


def accuracy(model: nn.Module, X: Any, y: Any) -> float:
    """Share of rows whose largest logit is their class."""
    return float((predict(model, X).argmax(1) == np.asarray(y)).mean())


def predict(model: nn.Module, X: Any, batch: int = 1024) -> np.ndarray:
    """Logits ``[rows, classes]``, in evaluation mode."""
    was = model.training
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(rows) for rows in _tensor(X).split(batch)]).float().numpy()
    model.train(was)
    return found


def nats_per_token(model: nn.Module, X: Any, y: Any, batch: int = 128) -> float:
    """Mean cross-entropy of the tokens ``y [rows, length]`` that follow ``X [rows, length]``, in evaluation mode."""
    was, total = model.training, 0.0
    model.eval()
    inputs, targets = tensors((X, y), tokens=True)
    with torch.inference_mode():
        for rows, following in zip(inputs.split(batch), targets.split(batch)):
            logits = model(rows).float().flatten(0, 1)
            total += float(F.cross_entropy(logits, following.flatten(), reduction="sum"))
    model.train(was)
    return total / targets.numel()


def _next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses.next_token(model, torch.cat([batch[0][:, :1], batch[1]], dim=1))


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network, its report, and how it is judged.

    ``realised`` is the density counted over the prunable weights; ``nbytes`` are the stored bytes of all tensors,
    weights in compressed rows where that is smaller.
    """

    model: nn.Module
    report: Report
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def realised(self) -> float:
        """Nonzero entries over all entries of the prunable weights."""
        weights = dict(self.model.named_parameters())
        kept = sum(int(weights[row.name].count_nonzero()) for row in self.report.rows)
        return kept / sum(row.numel for row in self.report.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that ``save`` writes."""
        return packed.nbytes(packed.pack(self.model.state_dict())[0])

    def score(self, part: tuple[Any, Any]) -> float:
        """Fidelity on ``(X, y)``: accuracy, nats per token, or the user's own function."""
        judge = self.info.get("evaluate") or (nats_per_token if self.info.get("tokens") else accuracy)
        value = judge(self.model, *part)
        return float(check("eval", value.item() if hasattr(value, "item") else value))

    def time(self, part: tuple[Any, Any], repeats: int = 30) -> float:
        """Median seconds of a batch of 64 rows (8 of tokens), ordinary dense layers, one thread, after a warm-up."""
        tokens = bool(self.info.get("tokens"))
        rows = tensors(part, tokens)[0]
        rows = rows[torch.arange(8 if tokens else 64) % len(rows)]
        self.model.eval()
        found = []
        with torch.inference_mode(), threads_for(0):
            for _ in range(repeats + 5):
                start = time.perf_counter()
                self.model(rows)
                found.append(time.perf_counter() - start)
        return float(np.median(found[5:]))

    def save(self, directory: Path) -> None:
        """``model.safetensors`` (packed weights) and ``config.json`` (what rebuilds the module)."""
        tensors, shapes = packed.pack(self.model.state_dict())
        meta = {"shapes": shapes, "build": dict(self.info.get("spec", {})), "density": self.realised}
        artefacts.save(Path(directory) / "model.safetensors", tensors, meta, kind=KIND, version=VERSION)
        rows = {row.name: {"kept": row.kept, "shape": list(row.shape)} for row in self.report.rows}
        cost = {"training": self.report.cost.training, "inference": self.report.cost.inference}
        found = {"version": VERSION, **meta["build"], "weights": rows, "cost": cost}
        write_json(Path(directory) / "config.json", found)


def _every(steps: int) -> int:
    """About forty updates in a run."""
    return max(steps // 40, 1)


def _taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a function takes of the arguments that there are."""
    return {name: given[name] for name in inspect.signature(function).parameters if name in given}


def variants(method: Any, trials: int, seed: int, own: Sequence[str] = ()) -> list[Any]:
    """A method and ``trials - 1`` random draws from its ``space``: of its fields named ``own``, else its settings."""
    check_integer("trials", trials, at_least=1)
    stream, found = rng(seed, "candidates", method.name), [method]
    for _ in range(trials - 1):
        drawn = {name: choices[int(stream.integers(len(choices)))] for name, choices in method.space.items()}
        fields = {name: drawn.pop(name) for name in own if name in drawn}
        found.append(replace(method, settings={**method.settings, **drawn}, **fields))
    return found


@register(
    kind="method", wing="network", source="none", extra="torch", example=lambda: RecipeMethod("dense", dense)
)  # fmt: skip
@dataclass(frozen=True)
class RecipeMethod:
    """A recipe as a method of the comparison: the task's model trained under it, with SGD or AdamW, once per budget.

    Parameters
    ----------
    name : in the comparison.
    make : gives the recipe. Of ``density`` (the budget), ``n`` and ``m`` (its pattern, where the task has patterns),
        ``every`` (a fortieth of the run), ``epochs`` (the length of the run) and ``seed`` it gets those that it takes.
    settings : its further arguments by name; they win over those above.
    space : choices of ``lr``, ``weight_decay`` and settings, for tuning.
    lr, weight_decay, optimizer : ``"sgd"`` with momentum 0.9, or ``"adamw"``; the learning rate falls along a cosine.
    dense : whether it has no budget.
    start : ``start(model, data, density, seed)`` gives the first masks, and may scale the weights.
    finish : ``finish(model, data, density)`` changes the trained model.
        Both get the settings that they take.
    tune : the fraction of the run, at its end, that trains on what ``finish`` left.
    """

    name: str
    make: Callable[..., Recipe]
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    lr: float = 0.1
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    dense: bool = False
    start: Callable[..., Mapping[str, Tensor]] | None = None
    finish: Callable[..., None] | None = None
    tune: float = 0.0

    def __post_init__(self):
        check("lr", self.lr, above=0)
        check("weight_decay", self.weight_decay, at_least=0)
        check("tune", self.tune, at_least=0, below=1)
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        known = [name for part in self._parts for name in inspect.signature(part).parameters]
        for name in self.settings:
            if name not in known:
                raise InputError(f"settings: {self.name} takes no {name!r}{suggestion(name, known)}")
        self._recipe({"density": 0.5, "n": 1, "m": 16, "every": 1, "epochs": 10.0, "seed": 0})

    @property
    def _parts(self) -> list[Callable[..., Any]]:
        return [part for part in (self.make, self.start, self.finish) if part is not None]

    def _recipe(self, given: Mapping[str, Any]) -> Recipe:
        return self.make(**_taken(self.make, {**given, **self.settings}))

    def candidates(self, trials: int, seed: int) -> Sequence[RecipeMethod]:
        """The method itself and ``trials - 1`` random settings from its space."""
        return variants(self, trials, seed, own=("lr", "weight_decay"))

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedNetwork]:
        """One run for each budget; one in all for a dense method."""
        for budget in (1.0,) if self.dense else budgets:
            yield self._fit(data, budget, seed)

    def _fit(self, data: Data, budget: float, seed: int) -> FittedNetwork:
        info, tokens = data.info, bool(data.info.get("tokens"))
        steps, size = info["steps"], info["batch_size"]
        X, y = tensors(data.train, tokens)
        given = {"density": budget, "every": _every(steps), "epochs": steps * size / len(X), "seed": seed}
        given |= dict(zip(("n", "m"), info.get("patterns", {}).get(budget, ())))
        model = info["build"](seed)
        if not isinstance(model, nn.Module):
            raise InputError(f"model: the factory gave {type(model).__name__}, want a torch module")
        recipe, masks = self._recipe(given), None
        if self.start is not None:
            masks = self.start(model, data, budget, seed, **_taken(self.start, self.settings))
        batches, after = Batches(X, y, batch_size=size, seed=seed), int(self.tune * steps)
        report = self._train(model, recipe, masks, batches, steps - after, info)
        if self.finish is not None:
            self.finish(model.eval(), data, budget, **_taken(self.finish, self.settings))
        if after:
            weights = dict(model.named_parameters())
            masks = {row.name: weights[row.name].detach() != 0 for row in report.rows}
            later = self._train(model, static(), masks, batches, after, info)
            spent = [(1 - after / steps) * report.cost.training, after / steps * later.cost.training]
            report = replace(later, cost=replace(later.cost, training=sum(spent)))
        return FittedNetwork(model.eval(), _counted(report, model), info)

    def _train(
        self, model: nn.Module, recipe: Recipe, masks: Any, batches: Batches, steps: int, info: Mapping[str, Any]
    ) -> Report:
        optimizer = self._optimizer(model)
        sparsifier = Sparsifier(
            model, recipe, optimizer=optimizer, steps=steps, include=info.get("include"), exclude=info.get("exclude"),
            masks=masks,
        )  # fmt: skip
        loss = _next_token if info.get("tokens") else losses.classification
        with threads_for(products(model, batches.tensors[0][: batches.batch_size])):
            train(
                model, loss, batches, optimizer=optimizer, steps=steps, schedule=Cosine(1.0, 0.0), seed=batches.seed,
                parts={"sparsifier": sparsifier}, clip=5.0,
            )  # fmt: skip
        report = sparsifier.report()
        sparsifier.remove()
        return report

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)


def _counted(report: Report, model: nn.Module) -> Report:
    """The report with its entries counted in the model as it is, which a ``finish`` may have changed."""
    weights = dict(model.named_parameters())
    rows = tuple(replace(row, kept=int(weights[row.name].count_nonzero())) for row in report.rows)
    found = replace(report, rows=rows)
    return replace(found, cost=replace(report.cost, inference=found.density))

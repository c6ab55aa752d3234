"""Ways to make a network sparse, as methods of the comparison: accuracy against density, at equal training steps.

Lives here: ``Dense``, ``OneShot``, ``GradualMagnitude``, ``RigL`` and what they fit. Does not live here: the recipes
they run, the data, the split or the report (``compare``). Every method trains the same model from the same first
weights for the same number of steps; its tuned settings are its fields.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_integer
from ellzero.io import artefacts
from ellzero.io.atomic import write_json
from ellzero.network import packed
from ellzero.network.recipes import Recipe, dense, gmp, one_shot, rigl
from ellzero.network.sparsifier import Report, Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import products, threads_for

__all__ = ["Dense", "FittedNetwork", "GradualMagnitude", "OneShot", "RigL", "accuracy"]

KIND, VERSION = "sparse-network", 1


def _tensor(X: Any) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))


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
        """Fidelity on ``(X, y)``: accuracy, or the user's own function."""
        judge = self.info.get("evaluate") or accuracy
        value = judge(self.model, *part)
        return float(check("eval", value.item() if hasattr(value, "item") else value))

    def time(self, part: tuple[Any, Any], repeats: int = 30) -> float:
        """Median seconds of one batch of 64 rows, as ordinary dense layers on one thread, after a warm-up."""
        rows = _tensor(part[0])
        rows = rows[torch.arange(64) % len(rows)]
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
        write_json(Path(directory) / "config.json", {"version": VERSION, **meta["build"], "weights": rows})


def _draw(method: Any, trials: int, seed: int, space: Mapping[str, Sequence[Any]]) -> list[Any]:
    """The method itself and ``trials - 1`` random settings from its space."""
    check_integer("trials", trials, at_least=1)
    stream = rng(seed, "candidates", method.name)
    found = [method]
    for _ in range(trials - 1):
        drawn = {name: choices[int(stream.integers(len(choices)))] for name, choices in space.items()}
        found.append(replace(method, **drawn))
    return found


_TRAINING = {"lr": (0.02, 0.05, 0.1, 0.2), "weight_decay": (0.0, 1e-4, 1e-3)}


def _check_training(method: Any) -> None:
    check("lr", method.lr, above=0)
    check("weight_decay", method.weight_decay, at_least=0)


def _fit(method: Any, recipe: Recipe, data: Data, seed: int) -> FittedNetwork:
    """Train the task's model under a recipe: SGD with momentum, cosine learning rate, the task's steps."""
    info = data.info
    model = info["build"](seed)
    if not isinstance(model, nn.Module):
        raise InputError(f"model: the factory gave {type(model).__name__}, want a torch module")
    optimizer = torch.optim.SGD(model.parameters(), lr=method.lr, momentum=0.9, weight_decay=method.weight_decay)
    steps = info["steps"]
    sparsifier = Sparsifier(
        model, recipe, optimizer=optimizer, steps=steps, include=info.get("include"), exclude=info.get("exclude")
    )
    X, y = data.train
    batches = Batches(_tensor(X), torch.as_tensor(y, dtype=torch.int64), batch_size=info["batch_size"], seed=seed)
    with threads_for(products(model, _tensor(X[: info["batch_size"]]))):
        train(
            model, losses.classification, batches, optimizer=optimizer, steps=steps, schedule=Cosine(1.0, 0.0),
            seed=seed, parts={"sparsifier": sparsifier}, clip=5.0,
        )  # fmt: skip
    report = sparsifier.report()
    sparsifier.remove()
    return FittedNetwork(model.eval(), report, info)


def _every(steps: int) -> int:
    """About forty updates in a run."""
    return max(steps // 40, 1)


@register(kind="method", wing="network", source="none", extra="torch")
@dataclass(frozen=True)
class Dense:
    """Every weight kept: the reference line."""

    lr: float = 0.1
    weight_decay: float = 1e-4
    name: str = "dense"
    dense: bool = True

    def __post_init__(self):
        _check_training(self)

    def candidates(self, trials: int, seed: int) -> Sequence[Dense]:
        """Learning rates and weight decays."""
        return _draw(self, trials, seed, _TRAINING)

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedNetwork]:
        """One fit, whatever the budgets."""
        yield _fit(self, dense(), data, seed)


@register(kind="method", wing="network", source="arXiv:1506.02626", extra="torch")
@dataclass(frozen=True)
class OneShot:
    """Train dense, keep the largest weights at the fraction ``at`` of the run, train on. Han et al. (2015)."""

    lr: float = 0.1
    weight_decay: float = 1e-4
    at: float = 0.5
    allocation: str = "global"
    name: str = "one-shot"
    dense: bool = False

    def __post_init__(self):
        _check_training(self)
        one_shot(0.5, at=self.at, allocation=self.allocation)

    def candidates(self, trials: int, seed: int) -> Sequence[OneShot]:
        """Learning rates, weight decays and times of the cut."""
        return _draw(self, trials, seed, {**_TRAINING, "at": (0.3, 0.5, 0.7)})

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedNetwork]:
        """One run for each density."""
        for budget in budgets:
            yield _fit(self, one_shot(budget, at=self.at, allocation=self.allocation), data, seed)


@register(kind="method", wing="network", source="arXiv:1710.01878", extra="torch")
@dataclass(frozen=True)
class GradualMagnitude:
    """The smallest weights go along a cubic, within a layer or from all of them. Zhu and Gupta (2017)."""

    lr: float = 0.1
    weight_decay: float = 1e-4
    begin: float = 0.0
    end: float = 0.7
    allocation: str = "global"
    name: str = "gradual-global"
    dense: bool = False

    def __post_init__(self):
        _check_training(self)
        gmp(0.5, begin=self.begin, end=self.end, allocation=self.allocation)

    def candidates(self, trials: int, seed: int) -> Sequence[GradualMagnitude]:
        """Learning rates, weight decays and windows of the cubic."""
        return _draw(self, trials, seed, {**_TRAINING, "begin": (0.0, 0.1, 0.25), "end": (0.5, 0.7, 0.85)})

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedNetwork]:
        """One run for each density."""
        every = _every(data.info["steps"])
        for budget in budgets:
            recipe = gmp(budget, begin=self.begin, end=self.end, every=every, allocation=self.allocation)
            yield _fit(self, recipe, data, seed)


@register(kind="method", wing="network", source="arXiv:1911.11134", extra="torch")
@dataclass(frozen=True)
class RigL:
    """Sparse from the start: drop the smallest weights, grow by the dense gradient. Evci et al. (2020)."""

    lr: float = 0.1
    weight_decay: float = 1e-4
    drop: float = 0.3
    until: float = 0.75
    allocation: str = "erk"
    name: str = "rigl"
    dense: bool = False

    def __post_init__(self):
        _check_training(self)
        rigl(0.5, drop=self.drop, until=self.until, allocation=self.allocation)

    def candidates(self, trials: int, seed: int) -> Sequence[RigL]:
        """Learning rates, weight decays, drop fractions and ends of the turnover."""
        return _draw(self, trials, seed, {**_TRAINING, "drop": (0.2, 0.3, 0.5), "until": (0.6, 0.75, 0.9)})

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedNetwork]:
        """One run for each density."""
        every = _every(data.info["steps"])
        for budget in budgets:
            recipe = rigl(budget, every=every, drop=self.drop, until=self.until, allocation=self.allocation, seed=seed)
            yield _fit(self, recipe, data, seed)


def methods() -> dict[str, Any]:
    """The methods of the comparison by name."""
    gradual = [GradualMagnitude(allocation=name, name=f"gradual-{name}") for name in ("uniform", "erk", "global")]
    return {method.name: method for method in (Dense(), OneShot(), *gradual, RigL())}

"""The bed on which claims about sparse networks are checked: real digits, a perceptron, equal steps, paired seeds.

Large: 784-300-100-10 on 8,000 and 2,000 MNIST digits (``ELLZERO_DATA``), 945 steps of 128. Small: 64-128-64-10 on 1300
and 497 of the 8 x 8 digits, 250 steps of 64. SGD with momentum 0.9, weight decay 1e-4, cosine learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.data import sets
from ellzero.models.mlp import MLPConfig
from ellzero.network.frontier import accuracy
from ellzero.network.recipes import dense, gmp, rigl, set_, static
from ellzero.network.sparsifier import Report, Sparsifier
from ellzero.parts.schedules import Cosine
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import threads_for

# At 2 % of the weights, by seed.
METHODS = {
    "dense": lambda seed: dense(),
    "gmp": lambda seed: gmp(0.02, every=20),
    "rigl": lambda seed: rigl(0.02, every=20, seed=seed),
    "set": lambda seed: set_(0.02, every=20, seed=seed),
    "static erk": lambda seed: static(0.02, seed=seed),
    "static uniform": lambda seed: static(0.02, allocation="uniform", seed=seed),
}


@dataclass(frozen=True)
class Bed:
    """Rows in a fixed random order, the first ``split`` of them for training."""

    X: np.ndarray
    y: np.ndarray
    split: int
    hidden: tuple[int, ...]
    steps: int
    batch_size: int

    @property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        return self.X[self.split :], self.y[self.split :]

    @property
    def inner(self) -> Bed:
        """The training rows alone, a fifth of them held out: where settings are chosen."""
        return replace(self, X=self.X[: self.split], y=self.y[: self.split], split=self.split * 4 // 5)

    def model(self, seed: int) -> nn.Module:
        return MLPConfig(self.X.shape[1], 10, self.hidden).build(seed)

    def batches(self, seed: int, batch_size: int | None = None) -> Batches:
        X, y = torch.from_numpy(self.X[: self.split]), torch.from_numpy(self.y[: self.split])
        return Batches(X, y, batch_size=batch_size or self.batch_size, seed=seed)

    def accuracy(self, model: nn.Module) -> float:
        """In percent, on the rows held out."""
        return 100 * accuracy(model, *self.held_out)


def _bed(table: Any, scale: float, *settings: Any) -> Bed:
    order = rng(0, "claims", "rows").permutation(len(table.y))
    return Bed((table.X / scale)[order].astype(np.float32), table.y[order], *settings)


def small_bed() -> Bed:
    return _bed(sets.digits(), 16, 1300, (128, 64), 250, 64)


def mnist_bed() -> Bed:
    why = sets.missing("networks/mnist-t10k-images-idx3-ubyte.gz", "networks/mnist-t10k-labels-idx1-ubyte.gz")
    if why:
        pytest.skip(why)
    return _bed(sets.mnist().table(), 1, 8000, (300, 100), 945, 128)


def fit(
    bed: Bed, recipe: Any, seed: int, lr: float = 0.1, *, model: nn.Module | None = None, steps: int | None = None,
    masks: Mapping[str, torch.Tensor] | None = None, within: Mapping[str, torch.Tensor] | None = None,
    weight_decay: float = 1e-4, fused: bool = False,
) -> tuple[nn.Module, Report]:  # fmt: skip
    """One training run: the model, sparse where the recipe says, and its report. ``fused`` is torch's fused SGD."""
    model = bed.model(seed) if model is None else model
    steps = bed.steps if steps is None else steps
    rates = {"lr": lr, "momentum": 0.9, "weight_decay": weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **rates, fused=fused or None)
    sparsifier = Sparsifier(model, recipe, optimizer=optimizer, steps=steps, masks=masks, within=within)
    with threads_for(0):
        train(model, losses.classification, bed.batches(seed), optimizer=optimizer, steps=steps,
              schedule=Cosine(1.0, 0.0), clip=5.0, parts={"sparsifier": sparsifier})  # fmt: skip
    report = sparsifier.report()
    sparsifier.remove()
    return model, report


def run(bed: Bed, recipe: Any, seed: int, lr: float = 0.1, **options: Any) -> float:
    """Accuracy in percent of one training run."""
    return bed.accuracy(fit(bed, recipe, seed, lr, **options)[0])


def spread(values: Any) -> str:
    """Mean and standard error."""
    values = np.asarray(values)
    return f"{values.mean():.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}"

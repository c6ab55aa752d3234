"""Sequential attention: greedy choice of columns inside one training run of a network, by a softmax over the rest.

Lives here: the mask on the inputs that chooses as it trains, and the selector for scikit-learn.
Does not live here: the network (``models.mlp``), the loop (``training``), one-shot scores (``screening``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.linear.screening import target_of
from ellzero.models.mlp import MLPConfig
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training import losses
from ellzero.training.loop import Batches, train

__all__ = ["SequentialAttention", "SequentialMask"]


class SequentialMask(nn.Module):
    """``x * m``: m is 1 on the chosen inputs and a softmax over all others, so that these share one unit of attention.

    Everything is let through during warm-up. Then come ``ceil(k / per_step)`` phases of equal length; at the end of
    each the inputs with the largest logits join the chosen and the logits begin anew near 0. Call ``step()`` after
    every step of the optimiser (the training loop does, where the mask is one of its ``parts``).

    Parameters
    ----------
    inputs : entries of an example. ``k`` : how many are chosen, from 1 to ``inputs``.
    steps : of the whole training.
    start, stop : shares of the steps at which warm-up ends and the last phase ends.
    per_step : inputs chosen at a time.
    select_at : ``"end"`` of each phase, or ``"start"``, as published code does: the first choice then falls before
        the logits had a gradient, and is by chance.
    seed : of the logits' first values.

    Source: Yasuda et al. (2023), arXiv:2209.14881, algorithm 1.
    """

    def __init__(
        self, inputs: int, k: int, steps: int, *, start: float = 0.1, stop: float = 1.0, per_step: int = 1,
        select_at: str = "end", seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.k = check_integer("k", k, at_least=1, at_most=check_integer("inputs", inputs, at_least=1))
        self.per_step = check_integer("per_step", per_step, at_least=1)
        self.seed = check_integer("seed", seed, at_least=0)
        check("start", start, at_least=0, below=1)
        check("stop", stop, above=start, at_most=1)
        check_choice("select_at", select_at, ("end", "start"))
        phases = math.ceil(k / per_step)
        if check_integer("steps", steps, at_least=1) * (stop - start) < phases:
            raise InputError(f"steps: got {steps}, want at least {math.ceil(phases / (stop - start))} for {k} choices")
        first = 1 if select_at == "end" else 0
        self.opening = round(start * steps)
        self.times = [round(steps * (start + (stop - start) * (i + first) / phases)) for i in range(phases)]
        self.logits = nn.Parameter(self._fresh(inputs, 0))
        self.register_buffer("order", torch.full((k,), -1))
        self.register_buffer("count", torch.tensor(0))
        self._optimizer: torch.optim.Optimizer | None = None

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the optimiser's moments of the logits begin anew with them; else the last phase steers the next."""
        self._optimizer = optimizer

    def _fresh(self, inputs: int, phase: int) -> Tensor:
        return torch.from_numpy(1e-5 * rng(self.seed, "logits", phase).standard_normal(inputs)).float()

    @property
    def chosen(self) -> Tensor:
        """The inputs chosen so far, in order of choice."""
        return self.order[self.order >= 0]

    def mask(self) -> Float[Tensor, " inputs"]:
        """What the inputs are multiplied by at this moment."""
        kept = torch.zeros_like(self.logits, dtype=torch.bool)
        kept[self.chosen] = True
        if self.count < self.opening or kept.all():
            return torch.ones_like(self.logits)
        return torch.where(kept, 1.0, torch.softmax(self.logits.masked_fill(kept, -math.inf), 0))

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch inputs"]:
        return x * self.mask()

    @torch.no_grad()
    def step(self) -> None:
        """Count a step, and choose if a phase ends with it."""
        self.count += 1
        phase = math.ceil(len(self.chosen) / self.per_step)
        while phase < len(self.times) and self.count >= self.times[phase]:
            before = len(self.chosen)
            logits = self.logits.clone()
            logits[self.chosen] = -math.inf
            best = torch.argsort(logits, descending=True, stable=True)[: min(self.per_step, self.k - before)]
            self.order[before : before + len(best)] = best
            phase += 1
            self.logits.copy_(self._fresh(len(logits), phase))
            if self._optimizer is not None:
                self._optimizer.state.pop(self.logits, None)


@register(id="S050", source="arXiv:2209.14881", kind="estimator", wing="linear", extra="torch",
          claim="one training run chooses columns that a network uses better than one-shot scores do",
          example=lambda: SequentialAttention(2, steps=40))  # fmt: skip
class SequentialAttention(SelectorMixin, BaseEstimator):
    """Choose ``k`` columns greedily while one network trains on all: later choices know the earlier ones.

    For linear regression the choices are those of orthogonal matching pursuit (Yasuda et al., 2023, section 3, for a
    product in the place of the softmax). Measured with the softmax too: ``hidden=()``, plain gradient descent on whole
    batches and low coherence gave the order of OMP in 20 of 20 draws; Adam, which evens out the sizes of derivatives,
    finds the same columns in another order. With hidden units the choices follow what a network can use.

    Parameters
    ----------
    k : columns kept; default a tenth of them, at least 1.
    hidden : widths of the network's hidden layers; ``()`` for a linear model.
    steps, batch_size : of the training; a phase has about ``0.9 steps / k`` of them.
    lr, weight_decay, optimizer : ``"adam"`` or ``"sgd"``; the logits are not decayed.
    start, per_step, select_at : see ``SequentialMask``.
    seed : of first weights, batches and logits.

    Attributes
    ----------
    order_ : ``[k]`` columns in order of choice. support_ : ``[p]`` bool.

    Columns are standardised inside. The target is classes, or numbers (squared error).

    Raises
    ------
    InputError : k above the number of columns, fewer steps than choices, a bad setting.
    """

    def __init__(
        self, k=None, *, hidden=(67,), steps=2500, batch_size=256, lr=1e-3, weight_decay=1e-3, optimizer="adam",
        start=0.1, per_step=1, select_at="end", seed=0,
    ):  # fmt: skip
        self.k = k
        self.hidden = hidden
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.start = start
        self.per_step = per_step
        self.select_at = select_at
        self.seed = seed

    def fit(self, X: Any, y: Any) -> SequentialAttention:
        """Choose among the columns of ``X [n, p]`` for the target ``y [n]``."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        inputs = X.shape[1]
        k = max(1, inputs // 10) if self.k is None else check_integer("k", self.k, at_least=1, at_most=inputs)
        check("lr", self.lr, above=0)
        check("weight_decay", self.weight_decay, at_least=0)
        check_choice("optimizer", self.optimizer, ("adam", "sgd"))
        target, outputs, loss = _target(y)
        net = MLPConfig(inputs, outputs, tuple(self.hidden)).build(self.seed)
        mask = SequentialMask(
            inputs, k, self.steps, start=self.start, per_step=self.per_step, select_at=self.select_at, seed=self.seed
        )
        spread = X.std(0)
        rows = torch.from_numpy((X - X.mean(0)) / np.where(spread > 0, spread, 1)).float()
        batches = Batches(rows, target, batch_size=self.batch_size, seed=self.seed)
        groups = [{"params": [mask.logits]}, {"params": [*net.parameters()], "weight_decay": self.weight_decay}]
        optimizer = (torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD)(groups, lr=self.lr)
        mask.forget(optimizer)
        model = nn.Sequential(mask, net)
        train(model, loss, batches, optimizer=optimizer, steps=self.steps, seed=self.seed, parts={"mask": mask})
        self.order_ = mask.order.numpy().copy()
        self.support_ = np.zeros(inputs, dtype=bool)
        self.support_[self.order_] = True
        return self

    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _target(y: np.ndarray) -> tuple[Tensor, int, Any]:
    """The target as a tensor, how many outputs it needs, and its loss."""
    values, classes = target_of(y)
    if classes is not None:
        return torch.from_numpy(values.astype(np.int64)), classes, losses.classification
    spread = values.std()
    return torch.from_numpy((values - values.mean()) / (spread if spread > 0 else 1)).float(), 1, losses.regression

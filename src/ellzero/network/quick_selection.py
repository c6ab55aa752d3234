"""QuickSelection: columns ranked by an autoencoder whose weights are sparse in memory as well as in name.

Lives here: the sparse autoencoder, its evolution between epochs, and the selector for scikit-learn. Does not live here:
the sparse products and their gradients (``layouts``), masks on dense weights (``sparsifier``), the loop (``training``).
No matrix of the dense size is made at any time: weights, gradients and momentum are numbers at the stored places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.kernels.sparse import Pattern
from ellzero.layouts.grouped import CSR
from ellzero.layouts.nn import SparseLinear
from ellzero.registry import register
from ellzero.rng import rng, torch_generator
from ellzero.training.loop import Batches, train

__all__ = ["Evolution", "QuickSelection", "SparseAutoencoder", "evolved", "free_places", "reconstruction",
           "stored_rows"]  # fmt: skip

_SPREAD = 0.1  # standard deviation of new weights


def free_places(draw: np.random.Generator, size: int, taken: np.ndarray, count: int) -> np.ndarray:
    """``count`` distinct numbers below ``size``, uniform among those not ``taken``; costs what is asked for.

    Raises
    ------
    InputError : fewer places are free.
    """
    if count > size - len(taken):
        raise InputError(f"count: got {count}, want at most {size - len(taken)}, the places that are free")
    if size <= 4 * (len(taken) + count):  # crowded: the free places are as few as the taken ones
        free = np.setdiff1d(np.arange(size), taken, assume_unique=True)
        return draw.choice(free, count, replace=False)
    found = np.empty(0, np.int64)
    while len(found) < count:
        pool = np.concatenate([found, draw.integers(size, size=2 * (count - len(found)) + 16)])
        _, first = np.unique(pool, return_index=True)
        pool = pool[np.sort(first)]  # in the order of the draw: none is favoured
        found = pool[~np.isin(pool, taken)]
    return found[:count]


def stored_rows(shape: tuple[int, int], places: np.ndarray, value: np.ndarray) -> CSR:
    """Compressed rows of values at flat places that rise."""
    rows, columns = np.divmod(places, shape[1])
    ptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    return CSR(Pattern(ptr, columns, columns=shape[1]), value.astype(np.float32)[:, None])


def _sparse_layer(inputs: int, outputs: int, epsilon: float, draw: np.random.Generator) -> SparseLinear:
    """A layer with ``epsilon (inputs + outputs)`` weights N(0, 0.1^2) at random places, all of them where those are."""
    count = min(round(epsilon * (inputs + outputs)), inputs * outputs)
    places = np.sort(free_places(draw, inputs * outputs, np.empty(0, np.int64), count))
    value = _SPREAD * draw.standard_normal(count)
    return SparseLinear(stored_rows((outputs, inputs), places, value), torch.zeros(outputs))


def evolved(
    layout: CSR, memory: np.ndarray | None, drop: float, draw: np.random.Generator
) -> tuple[CSR, np.ndarray | None]:
    """SET on stored weights: the fraction ``drop`` nearest zero goes, of each sign, and as many come at free places.

    Survivors keep their value and ``memory`` (the optimiser's momentum); new ones start at N(0, 0.1^2) and 0.
    Mocanu et al. (2018), algorithm 1.
    """
    value, pattern = layout.value[:, 0], layout.pattern
    stays = np.ones(len(value), dtype=bool)
    for sign in (1, -1):
        mine = np.flatnonzero(np.sign(value) == sign)
        stays[mine[np.argsort(abs(value[mine]), kind="stable")[: int(drop * len(mine))]]] = False
    places = pattern.row_of() * layout.shape[1] + pattern.index.astype(np.int64)
    kept, missing = places[stays], int((~stays).sum())
    grown = free_places(draw, math.prod(layout.shape), kept, missing)
    order = np.argsort(np.concatenate([kept, grown]), kind="stable")
    values = np.concatenate([value[stays], _SPREAD * draw.standard_normal(missing)])[order]
    if memory is not None:
        memory = np.concatenate([memory[stays], np.zeros(missing, memory.dtype)])[order]
    return stored_rows(layout.shape, np.concatenate([kept, grown])[order], values), memory


class SparseAutoencoder(nn.Module):
    """``decoder(dropout(sigmoid(encoder(x))))``, both layers stored by rows; with ``"tanh"`` at the end, or nothing.

    Parameters
    ----------
    inputs, hidden : widths.
    epsilon : each layer has ``epsilon (inputs + hidden)`` weights, at most all.
    """

    def __init__(
        self, inputs: int, hidden: int, *, epsilon: float, dropout: float = 0.2, output: str = "linear", seed: int = 0
    ):
        super().__init__()
        self.encoder = _sparse_layer(inputs, hidden, epsilon, rng(seed, "quick_selection", "encoder"))
        self.decoder = _sparse_layer(hidden, inputs, epsilon, rng(seed, "quick_selection", "decoder"))
        self.dropout = nn.Dropout(dropout)
        self.output = output

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch inputs"]:
        out = self.decoder(self.dropout(self.encoder(x).sigmoid()))
        return out.tanh() if self.output == "tanh" else out

    def strength(self) -> np.ndarray:
        """``sum_j |W_ji|`` of each input i, float64 ``[inputs]``."""
        layout = self.encoder.layout
        sizes = abs(layout.value[:, 0]).astype(np.float64)
        return np.bincount(layout.pattern.index, weights=sizes, minlength=layout.shape[1])


class Evolution:
    """A part of the training loop: both layers evolve after every epoch but the last."""

    def __init__(
        self, model: SparseAutoencoder, optimizer: torch.optim.Optimizer, *, drop: float, epoch: int, epochs: int,
        seed: int = 0,
    ):  # fmt: skip
        self.model, self.optimizer, self.drop, self.seed = model, optimizer, drop, seed
        self.epoch, self.epochs, self.count = epoch, epochs, 0

    def step(self) -> None:
        """Count a step of the optimiser, and evolve if an epoch ends with it."""
        self.count += 1
        epoch, within = divmod(self.count, self.epoch)
        if not within and epoch < self.epochs:
            self.evolve(epoch)

    @torch.no_grad()
    def evolve(self, epoch: int) -> None:
        """Exchange weights in both layers, and hand the optimiser's momentum on."""
        for name in ("encoder", "decoder"):
            layer = getattr(self.model, name)
            buffer = self.optimizer.state.get(layer.value, {}).get("momentum_buffer")
            draw = rng(self.seed, "quick_selection", name, epoch)
            layout, memory = evolved(layer.layout, None if buffer is None else buffer.numpy()[:, 0], self.drop, draw)
            layer.rewire(layout)
            if buffer is not None:
                buffer.copy_(torch.from_numpy(memory)[:, None])

    def state_dict(self) -> dict[str, Any]:
        """Where it stands; the patterns are the model's."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back there."""
        self.count = state["count"]


def reconstruction(noise: float, generator: torch.Generator) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss of a denoising autoencoder: half the squared error of a row, the mean over rows."""

    def loss(model: nn.Module, rows: Float[Tensor, "batch inputs"]) -> Tensor:
        noisy = rows + noise * torch.randn(rows.t().shape, generator=generator).t() if noise else rows
        return 0.5 * (model(noisy) - rows).square().sum() / len(rows)

    return loss


@register(id="S123", source="arXiv:2012.00560", kind="estimator", wing="network", extra="torch",
          claim="ranks columns without labels as the dense autoencoder does, with a few percent of its weights",
          example=lambda: QuickSelection(2, hidden=8, epochs=2))  # fmt: skip
class QuickSelection(SelectorMixin, BaseEstimator):
    """Choose the ``k`` columns that a sparse denoising autoencoder holds on to most; no labels are needed.

    One hidden layer; both weight matrices have ``epsilon (p + hidden)`` entries, stored by rows, which evolve after
    each epoch but the last (new random weights there would pollute the ranking). The score of a column is the strength
    of its input, ``sum_j |W_ij|``. Atashgahi et al. (2022), algorithm 1.

    Parameters
    ----------
    k : columns kept; default a tenth of them, at least 1.
    hidden : width of the hidden layer.
    epsilon : weights per layer over ``p + hidden``.
    drop : fraction of weights exchanged after an epoch.
    epochs, batch_size, lr, momentum, weight_decay : of stochastic gradient descent on half the squared error of a row.
    dropout : of the hidden units. noise : standard deviation of what is added to the inputs.
    output : ``"linear"`` or ``"tanh"`` units.
    standardize : centre and scale the columns before; otherwise give them so that ``noise`` is small beside them.
    seed : of places, weights, batches, dropout and noise.

    Attributes
    ----------
    strength_ : float64 ``[p]``. order_ : ``[k]`` columns, the strongest first. support_ : bool ``[p]``.
    n_weights_ : stored weights of both layers. nbytes_ : bytes of their values and places.
    losses_ : the loss after each epoch's last step.

    Raises
    ------
    InputError : k above the number of columns, a bad setting, or a training that ran away (the step is named).
    """

    def __init__(
        self, k=None, *, hidden=1000, epsilon=13.0, drop=0.2, epochs=100, batch_size=100, lr=0.01, momentum=0.9,
        weight_decay=1e-5, dropout=0.2, noise=0.2, output="linear", standardize=True, seed=0,
    ):  # fmt: skip
        self.k = k
        self.hidden = hidden
        self.epsilon = epsilon
        self.drop = drop
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.noise = noise
        self.output = output
        self.standardize = standardize
        self.seed = seed

    def _check(self, inputs: int) -> int:
        k = max(1, inputs // 10) if self.k is None else check_integer("k", self.k, at_least=1, at_most=inputs)
        for name in ("hidden", "epochs", "batch_size"):
            check_integer(name, getattr(self, name), at_least=1)
        for name in ("epsilon", "lr"):
            check(name, getattr(self, name), above=0)
        for name in ("momentum", "dropout"):
            check(name, getattr(self, name), at_least=0, below=1)
        for name in ("weight_decay", "noise"):
            check(name, getattr(self, name), at_least=0)
        check("drop", self.drop, at_least=0, at_most=1)
        check_choice("output", self.output, ("linear", "tanh"))
        return k

    def fit(self, X: Any, y: Any = None) -> QuickSelection:
        """Rank the columns of ``X [n, p]``; ``y`` is not looked at."""
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        k = self._check(X.shape[1])
        if self.standardize:
            spread = X.std(0)
            X = (X - X.mean(0)) / np.where(spread > 0, spread, 1)
        batches = Batches(torch.from_numpy(X).float(), batch_size=self.batch_size, seed=self.seed)
        model = SparseAutoencoder(
            X.shape[1], self.hidden, epsilon=self.epsilon, dropout=self.dropout, output=self.output, seed=self.seed
        )
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        epoch = math.ceil(len(X) / self.batch_size)
        evolution = Evolution(model, optimizer, drop=self.drop, epoch=epoch, epochs=self.epochs, seed=self.seed)
        loss = reconstruction(self.noise, torch_generator(self.seed, "quick_selection", "noise"))
        done = train(model, loss, batches, optimizer=optimizer, steps=epoch * self.epochs, seed=self.seed,
                     parts={"evolution": evolution})  # fmt: skip
        self.losses_ = np.array([done.losses[epoch * (i + 1)] for i in range(self.epochs)])
        layouts = [model.encoder.layout, model.decoder.layout]
        self.n_weights_ = sum(layout.nnz for layout in layouts)
        self.nbytes_ = sum(layout.nbytes for layout in layouts)
        self.strength_ = model.strength()
        self.order_ = np.argsort(-self.strength_, kind="stable")[:k]
        self.support_ = np.zeros(X.shape[1], dtype=bool)
        self.support_[self.order_] = True
        return self

    def _get_support_mask(self):
        check_is_fitted(self)
        return self.support_

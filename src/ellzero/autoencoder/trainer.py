"""Training of sparse autoencoders on a matrix or a stream of activations.

Lives here: ``SAETrainer``: scale and start values from the data, dead latents, the steering of a price, and the
calibration at the end. Does not live here: the loop itself (``ellzero.training.loop``), loss terms (``objective``).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ellzero.autoencoder.codes import SparseCode, active, fired, share
from ellzero.autoencoder.model import SparseAutoencoder, UnitNorm
from ellzero.autoencoder.objective import Step
from ellzero.autoencoder.optimizer import RowAdam
from ellzero.autoencoder.shards import Shards
from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.parts.schedules import Linear
from ellzero.training.loop import Batches, Trained, train
from ellzero.training.threads import threads_for

__all__ = ["SAETrainer", "as_tensor", "geometric_median", "streamed", "thinned"]

_WARM, _DECAY = Linear(0.0, 1.0, 0.0, 0.05), Linear(1.0, 0.0, 0.8, 1.0)
_SAMPLE = 65_536
# Latents from which on the sparse engine is the faster one.
_WIDE = 512


def learning_rate_factor(step: float, total: float) -> float:
    """Linear warm-up over the first 5 % of the steps, linear decay to zero over the last 20 %."""
    return _WARM(min(step + 1, total), total) * _DECAY(step, total)


def geometric_median(x: Float[Tensor, "rows d"], *, rounds: int = 50, tolerance: float = 1e-6) -> Float[Tensor, " d"]:
    """The point with the smallest sum of distances to the rows, by Weiszfeld's iteration from the mean."""
    point = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - point).norm(dim=1).clamp_min(1e-9)
        following = (weight @ x) / weight.sum()
        moved, point = (following - point).norm(), following
        if moved <= tolerance * point.norm().clamp_min(1e-9):
            break
    return point


class SAETrainer:
    """Trains an autoencoder by Adam on its objective.

    The loss is of rows as ``sae.inputs`` normalises them, if it does. They are scaled so that a row's mean square is 1
    per feature, and the biases scaled back at the end; so learning rates mean the same for any model's activations.

    Parameters
    ----------
    sae : the autoencoder; trained in place.
    lr : peak learning rate; the variant's own by default, else ``2e-4 / sqrt(d_sae / 16384)`` (Gao et al., 2024).
    batch_size : rows per step.
    steps : of the optimiser.
    clip : largest norm of all gradients together.
    initialize : set ``b_dec`` to the geometric median of a sample first.
    betas : of Adam; the variant's own by default, else ``(0.9, 0.999)``.
    average : decay of a moving average of the weights, which replaces them at the end; None for none.
    engine : ``"dense"`` forms all activations of a batch; ``"sparse"`` never does, where the selection is by ``TopK``
        or ``BatchTopK``: the same losses but for rounding, in less memory. ``"auto"`` is sparse from 512 latents on.
    skip_silent : latents without gradient keep their weights and moments in a step; for very wide dictionaries.
    seed : of the order of rows.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        *,
        lr: float | None = None,
        batch_size: int = 4096,
        steps: int = 10_000,
        clip: float = 1.0,
        initialize: bool = True,
        betas: tuple[float, float] | None = None,
        average: float | None = None,
        engine: str = "auto",
        skip_silent: bool = False,
        seed: int = 0,
    ):
        if not isinstance(sae, SparseAutoencoder):
            raise InputError(f"sae: got {type(sae).__name__}, want a SparseAutoencoder")
        self.sae = sae
        if lr is None:
            lr = sae.recommended.get("lr", 2e-4 / math.sqrt(sae.d_sae / 16384))
        self.lr = check("lr", lr, above=0, below=math.inf)
        self.betas = sae.recommended.get("betas", (0.9, 0.999)) if betas is None else betas
        self.average, self.skip_silent = average, bool(skip_silent)
        check_choice("engine", engine, ("auto", "dense", "sparse"))
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.steps = check_integer("steps", steps, at_least=1)
        self.clip = check("clip", clip, above=0)
        self.seed = check_integer("seed", seed, at_least=0)
        self.initialize = bool(initialize)
        self.sparse = engine == "sparse" or (engine == "auto" and sae.d_sae >= _WIDE)
        self.state = _State(sae, self.lr, self.steps, self.sparse)
        self.sample: Tensor | None = None
        self.adam = RowAdam

    def fit(
        self, acts: Any, *, beside: Any = None, progress: bool = False, checkpoint: Any = None, every: int = 1000
    ) -> Trained:
        """Train on activations and leave the autoencoder in evaluation mode.

        Parameters
        ----------
        acts : ``[rows, d_in]`` as an array, a memory map or a tensor; an iterable of such batches (an
            ``ActivationStream``), gone through as often as the steps need where it can be; or a folder of .parquet,
            .safetensors, .npy or .npz files, read one at a time.
        beside : an array with as many rows, what the selection or a loss term wants beside each (a gradient, a label);
            then ``acts`` is an array too.
        progress : show a bar.
        checkpoint, every : a folder, and the steps between two writings; a run that was killed goes on from there and
            ends with the same bits.

        Raises
        ------
        InputError : activations that are no rows of ``d_in`` finite numbers, all equal, or fewer than the steps need;
            a loss that is not finite (a smaller ``lr`` helps).
        """
        sample, batches = self.source(acts, beside)
        with self.course(sample) as course, threads_for(self.products):
            found = train(self.sae, self.loss, batches, **course, progress=progress, checkpoint=checkpoint, every=every)
            self.finish(found.averaged)
        self.sae.eval()
        return found

    @property
    def products(self) -> int:
        """Multiply-adds of one of the five products in a step."""
        return self.batch_size * self.sae.d_in * self.sae.d_sae

    @contextlib.contextmanager
    def course(self, sample: Tensor) -> Iterator[dict[str, Any]]:
        """What ``ellzero.training.loop.Run`` needs beside model and loss; inside, the weights are of scaled rows."""
        sae = self.sae
        if sae.inputs is not None:
            if not sae.inputs.fitted(sae):
                sae.fit_inputs(sample)
            sample = sae.normalized(sample)
        if not bool((sample != sample[0]).any()):
            raise InputError(f"acts: all {len(sample)} rows are equal, want rows that vary")
        scale = math.sqrt(sae.d_in) / float(sample.square().sum(1).mean().sqrt())
        sample = sample * scale
        spread = float((sample - sample.mean(0)).square().sum(1).mean())
        self.sample = sample if sae.calibrates else None
        self.state = _State(sae, self.lr, self.steps, self.sparse, spread)
        self.state.scale = scale
        sae.rescale(scale)
        try:
            if self.initialize:
                with torch.no_grad():
                    sae.b_dec.copy_(geometric_median(sample))
            sae.normalize()
            yield {
                "optimizer": self.optimizer(), "steps": self.steps, "schedule": learning_rate_factor,
                "average": self.average, "parts": {"sae": self.state}, "seed": self.seed,
            }  # fmt: skip
        finally:
            self.sample = sae.progress = None
            sae.rescale(1 / scale)

    def optimizer(self) -> RowAdam:
        """Adam with the clip and the decoder's constraint."""
        sae = self.sae
        return self.adam(
            sae.parameters(), lr=self.lr, betas=self.betas, clip=self.clip, skip_silent=self.skip_silent,
            unit=[sae.W_dec] if isinstance(sae.decoder, UnitNorm) else [],
        )  # fmt: skip

    def finish(self, averaged: Mapping[str, Tensor]) -> None:
        """After the last step: averaged weights, the decoder's constraint, the threshold."""
        sae = self.sae
        sae.progress = None
        with torch.no_grad():
            for name, tensor in averaged.items():
                sae.get_parameter(name).copy_(tensor)
            sae.normalize()
        if sae.calibrates:
            sae.set_threshold(self.sample)

    def loss(self, sae: SparseAutoencoder, batch: Any) -> Tensor:
        """The objective on a batch of rows, or of rows and what is beside them."""
        rows, beside = batch if isinstance(batch, tuple) else (batch, None)
        return self.state.loss(sae.normalized(rows.to(sae.W_dec)) * self.state.scale, beside)

    def source(self, acts: Any, beside: Any = None) -> tuple[Tensor, Any]:
        """A sample of rows for scale, start and calibration, and the batches to train on."""
        width = self.sae.d_in
        if isinstance(acts, str | Path):
            acts = Shards(acts, seed=self.seed)
        if hasattr(acts, "shape"):
            check_array("acts", acts, ndim=2, shape=(None, width), dtypes="f")
            rows = acts.detach() if isinstance(acts, Tensor) else as_tensor(acts)
            sample = thinned(rows).to(self.sae.W_dec)
            if beside is None:
                return sample, Batches(rows, batch_size=self.batch_size, seed=self.seed)
            check_array("beside", beside, shape=(len(rows), *(None,) * (beside.ndim - 1)))
            beside = beside if isinstance(beside, Tensor) else torch.as_tensor(np.asarray(beside))
            return sample, Batches(rows, beside, batch_size=self.batch_size, seed=self.seed)
        if beside is not None:
            raise InputError("beside: got one beside a stream of activations, want acts as an array too")
        return streamed(acts, width, self)


def streamed(acts: Any, width: int, trainer: SAETrainer) -> tuple[Tensor, Iterator[Tensor]]:
    """A sample of a stream's rows, and its batches, which begin with that sample."""
    if not hasattr(acts, "__iter__"):
        raise InputError(f"acts: got {type(acts).__name__}, want an array, a tensor or an iterable of batches")
    size = trainer.batch_size
    stream = _rows(acts, width, size)
    first = list(itertools.islice(stream, max(min(_SAMPLE // size, trainer.steps), 1)))
    if not first:
        raise InputError(f"acts: got fewer rows than the batch size, want at least {size}")
    return torch.cat(first).to(trainer.sae.W_dec), itertools.chain(first, stream)


def thinned(rows: Tensor) -> Tensor:
    """A sample of rows, evenly spaced."""
    return rows[:: -(-len(rows) // _SAMPLE)]


def as_tensor(x: Any) -> Tensor:
    """A tensor over the array's memory if it is float32 (a memory map stays one), else a copy in float32."""
    x = np.asarray(x)
    with warnings.catch_warnings():  # that it may not be written to, which nobody does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _rows(acts: Any, width: int, size: int) -> Iterator[Tensor]:
    """Batches of exactly ``size`` rows, over and over; an iterator that cannot be repeated ends after one pass."""
    rest = torch.empty(0, width)
    for epoch in itertools.count():
        passes = acts.batches(epoch) if hasattr(acts, "batches") else acts
        some = False
        for rows in passes:
            rows = rows[0] if hasattr(acts, "batches") else rows
            check_array("acts", rows, ndim=2, shape=(None, width), dtypes="f", allow_empty=True)
            some = some or len(rows) > 0
            block = torch.cat([rest, torch.as_tensor(rows, dtype=torch.float32).detach().cpu()])
            whole = len(block) // size * size
            yield from block[:whole].split(size) if whole else ()
            rest = block[whole:]
        if epoch == 0 and not some:
            raise InputError("acts: got no rows, want activations")
        if not some or (iter(passes) is passes and not hasattr(acts, "batches")):
            return


class _State:
    """What moves during training beside the weights: rows since each latent fired, and the steered price.

    ``spread`` is the variance of the rows, summed over features; ``rate`` the running share of rows on which each
    latent fires, over the last hundred batches or so.
    """

    def __init__(self, sae: SparseAutoencoder, lr: float, steps: int, sparse: bool, spread: float = 1.0):
        self.sae, self.lr, self.steps, self.sparse, self.spread = sae, lr, steps, sparse, spread
        self.taken, self.scale = 0, 1.0
        self.across: Any = None
        self.rank = max((getattr(term, "rank", 0) for term in sae.objective), default=0)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self.rate = torch.zeros(sae.d_sae, device=sae.W_dec.device)
        self.log_price = 0.0
        self._target = next((t.target for t in sae.objective if getattr(t, "target", None)), None)
        self._dead_after = next((t.dead_after for t in sae.objective if hasattr(t, "dead_after")), None)

    def loss(self, x: Float[Tensor, "rows d_in"], beside: Any = None) -> Tensor:
        """The objective on one batch. The counts are brought up to date first: no live latent counts as dead."""
        sae = self.sae
        sae.progress = self.taken / max(self.steps - 1, 1)
        sae.rate = self.rate
        z, pre, wide = self._codes(x, beside)
        with torch.no_grad():
            often, many, rows = share(z, sae.d_sae), active(z), len(x)
            if self.across is not None:
                often, many, rows = self.across.count(often, many, rows)
            on = fired(z, sae.d_sae) if self.across is None else often > 0
            self.silent = (self.silent + rows).masked_fill(on, 0)
            self.rate.lerp_(often, 1 / min(self.taken + 1, 100))
            dead = self.silent > self._dead_after if self._dead_after is not None else torch.zeros_like(on)
            steer = self._steer(many) if self._target is not None else 1.0
        step = Step(
            sae, x, pre, z, sae.reconstruct(z), dead, self.spread, steer, sae.progress, self.rate, beside, wide,
            self.scale, self.across,
        )  # fmt: skip
        return sum(term(step) for term in sae.objective)

    def _codes(self, x: Tensor, beside: Any) -> tuple[Tensor | SparseCode, Tensor | None, SparseCode | None]:
        """Codes, pre-activations (of the dense engine) and more ranks than the codes (of the sparse one)."""
        sae = self.sae
        if not self.sparse or beside is not None or 4 * self.rank > sae.d_sae:
            return *sae.codes(x, beside), None
        wide = sae.sparsely(x, self.rank)
        if wide is None:
            return *sae.codes(x, beside), None
        k = getattr(sae.selection(x), "k", wide.values.shape[1])
        return (wide.first(k) if self.rank > k else wide), None, wide

    def _steer(self, active: float) -> float:
        """The factor on the price: up while more than the target are active, down while fewer.

        A controller with a proportional and an integral part, of the log of the excess. Adam moves weights by about
        ``lr`` a step, so the integral goes at that pace, whatever the number of steps.
        """
        gap = min(max(math.log(max(active, 1e-3) / self._target), -1.0), 1.0)
        self.log_price = min(max(self.log_price + 5 * self.lr * gap, -20.0), 20.0)
        return math.exp(self.log_price + gap)

    def step(self) -> None:
        """After the optimiser, which has kept the decoder's rows: learnt thresholds are not negative."""
        if isinstance(self.sae.threshold, nn.Parameter):
            with torch.no_grad():
                self.sae.threshold.clamp_(min=0)
        self.taken += 1

    def state_dict(self) -> Mapping[str, Any]:
        """For a checkpoint."""
        return {"silent": self.silent, "rate": self.rate, "taken": self.taken, "log_price": self.log_price}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.silent.copy_(state["silent"])
        self.rate.copy_(state["rate"])
        self.taken = state["taken"]
        self.log_price = state["log_price"]

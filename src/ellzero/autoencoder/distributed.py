"""Training of one autoencoder by several processes: each has some rows of every batch, or some of the latents.

Lives here: ``DistributedTrainer`` and ``Shard``. Does not live here: the start of the processes (``torchrun``, or
``torch.distributed.init_process_group``), training on one (``trainer``). The default process group is meant throughout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ellzero.autoencoder.codes import SparseCode
from ellzero.autoencoder.encoders import Linear
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.nested import NestedReconstruction
from ellzero.autoencoder.objective import L0, L1, AuxK, GateReconstruction, NormMatch, SquaredError, Step
from ellzero.autoencoder.optimizer import RowAdam
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError
from ellzero.kernels import torch_latents, torch_ops
from ellzero.parts.constraints import Threshold, TopK
from ellzero.parts.gradients import Masked
from ellzero.training import checkpoints
from ellzero.training.loop import Trained

__all__ = ["DistributedTrainer", "Shard"]

# Terms that are means over rows, or ask for the spread of the whole batch.
_BY_ROW = (SquaredError, L1, L0, AuxK, GateReconstruction, NormMatch, NestedReconstruction)


class DistributedTrainer(SAETrainer):
    """``SAETrainer`` over the processes of the default group; every one calls it with the same arguments.

    A plain autoencoder is held by each process; each takes its part of the rows of every batch, and gradients, dead
    latents and the steered price are of all rows. Of a ``Shard`` each process holds some of the latents and sees all
    rows. The losses are those of one process, but for the rounding of sums in another order, and the same on every
    process. Parameters are those of ``SAETrainer``; ``batch_size`` is that of all processes together.

    Raises
    ------
    InputError : no process group; a selection over the batch or a loss term that is no mean over rows.
    """

    def __init__(self, sae: SparseAutoencoder, **options: Any):
        _check_group()
        self.sharded = isinstance(sae, Shard)
        super().__init__(sae, **({**options, "engine": "sparse"} if self.sharded else options))
        self.adam = _ShardedAdam if self.sharded else _AveragedAdam
        if self.sharded:
            return
        if sae.calibrates or getattr(sae.select, "axis", -1) != -1:
            raise InputError(f"sae: selects by {type(sae.select).__name__} over the batch, want TopK or thresholds")
        for term in sae.objective:
            if type(term) not in _BY_ROW or getattr(term, "error", "squared") != "squared":
                raise InputError(f"sae: has the loss term {type(term).__name__}, which is no mean over rows")
        if self.batch_size < dist.get_world_size():
            raise InputError(f"batch_size: got {self.batch_size}, want {dist.get_world_size()} or more, a row for each")

    def fit(self, acts: Any, *, checkpoint: Any = None, **options: Any) -> Trained:
        """As ``SAETrainer.fit``. Each process keeps checkpoints in a folder of its own under ``checkpoint``.

        Killed and called again with as many processes, a run goes on from the newest step that all of them have.
        """
        if checkpoint is not None:
            checkpoint = Path(checkpoint) / f"rank-{dist.get_rank()}"
            _agree(checkpoint)
        return super().fit(acts, checkpoint=checkpoint, **options)

    @contextlib.contextmanager
    def course(self, sample: Tensor) -> Iterator[dict[str, Any]]:
        with super().course(sample) as course:
            if not self.sharded:
                self.state.across = _Rows()
            yield course

    def loss(self, sae: SparseAutoencoder, batch: Any) -> Tensor:
        """The objective; its value is that of the whole batch, its derivative that of this process's rows."""
        if self.sharded:
            return super().loss(sae, batch)
        world, rank = dist.get_world_size(), dist.get_rank()
        parts = batch if isinstance(batch, tuple) else (batch,)
        across, rows = self.state.across, len(parts[0])
        if rows < world:  # the short end of an epoch: every process takes all of it
            across.whole = True
            return super().loss(sae, batch)
        mine = tuple(part.tensor_split(world)[rank] for part in parts)
        across.whole, across.part = False, len(mine[0]) / rows
        value = super().loss(sae, mine if len(mine) > 1 else mine[0]) * across.part * world
        mean = value.detach().clone()
        dist.all_reduce(mean)
        return value - value.detach() + mean / world


class _Rows:
    """The other processes: each has ``part`` of the rows of the batch, or, of a short one, the ``whole``."""

    part, whole = 1.0, False

    def count(self, often: Tensor, many: float, rows: int) -> tuple[Tensor, float, int]:
        """Firing shares, active latents and the number of rows, of the whole batch."""
        if self.whole:
            return often, many, rows
        sums = torch.cat([often * rows, often.new_tensor([many * rows, rows])]).double()
        dist.all_reduce(sums)
        total = round(float(sums[-1]))
        return (sums[:-2] / total).to(often), float(sums[-2]) / total, total

    def spread(self, error: Tensor) -> Tensor:
        """``sum ||e - mean(e)||^2`` over all rows, times ``part``."""
        if self.whole:
            return (error - error.mean(0)).square().sum()
        sums = torch.cat([error.sum(0), error.new_tensor([len(error)])])
        dist.all_reduce(sums)
        spread = (error - sums[:-1] / sums[-1]).square().sum()
        dist.all_reduce(spread)
        return spread * self.part


class _AveragedAdam(RowAdam):
    """Steps by the mean of the gradients of all processes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        used = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([p.grad.reshape(-1) for p in used])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, part in zip(used, flat.split([p.numel() for p in used])):
            p.grad.copy_(part.view(p.shape))
        super().step(closure)


class _ShardedAdam(RowAdam):
    """Clips by the norm of the gradients of all shards and of ``b_dec``, the last one, which all processes hold."""

    def squares(self, used: list[Tensor]) -> float:
        own = used[0].new_tensor([super().squares(used[:-1])], dtype=torch.float64)
        dist.all_reduce(own)
        return float(own) + super().squares(used[-1:])


class Shard(SparseAutoencoder):
    """The latents of one process out of an autoencoder that all processes hold together.

    Process r of w holds latents ``r d_sae / w`` up to ``(r + 1) d_sae / w``, with ``b_dec`` on each. ``TopK`` is exact:
    each process names its ``k`` best, and of all these the ``k`` best are kept, ties to the lowest latent. Codes are
    those of the own latents; reconstructions are sums over processes. So every call is one of all processes.

    Parameters
    ----------
    whole : the autoencoder, of which the own part is copied: linear, by ``TopK``, with squared error and ``AuxK``.

    Raises
    ------
    InputError : no process group, latents that cannot be shared evenly, or another kind of autoencoder.
    """

    def __init__(self, whole: SparseAutoencoder):
        _check_group()
        world, rank = dist.get_world_size(), dist.get_rank()
        if whole.d_sae % world:
            raise InputError(f"whole: has {whole.d_sae} latents, want a multiple of {world}, the number of processes")
        kind = (type(whole.encoder), type(whole.select), type(whole.gradient), whole.score, whole.infer)
        if kind != (Linear, TopK, Masked, None, None) or whole.select.axis != -1:
            raise InputError(f"whole: got one that selects by {type(whole.select).__name__}, want a linear TopK")
        for term in whole.objective:
            if type(term) not in (SquaredError, AuxK):
                raise InputError(f"whole: has the loss term {type(term).__name__}, want SquaredError and AuxK alone")
        own = whole.d_sae // world
        super().__init__(
            whole.d_in, own, select=Threshold(0.0), encoder=whole.encoder, decoder=whole.decoder, inputs=whole.inputs,
            architecture=whole.architecture, recommended=whole.recommended, seed=None,
            objective=[_ShardAuxK(**_arguments(term)) if isinstance(term, AuxK) else term for term in whole.objective],
        )  # fmt: skip
        self.select, self.preset = whole.select, whole.preset
        self.rank, self.world, self._centre = rank, world, None
        self._whole_objective = whole.objective
        rows = slice(rank * own, (rank + 1) * own)
        with torch.no_grad():
            for name, mine in self.named_parameters():
                given = getattr(whole, name)
                mine.copy_(given if name == "b_dec" else given[:, rows] if name == "W_enc" else given[rows])

    def codes(self, x: Float[Tensor, "rows d_in"], beside: Any = None) -> tuple[Tensor, None]:
        """The codes of the own latents."""
        return self.sparsely(x).dense(self.d_sae), None

    def sparsely(self, x: Float[Tensor, "rows d_in"], least: int = 0) -> SparseCode:
        """The code of the own latents, as much of it as is among the ``k`` largest of all."""
        self._centre = _shared(self.b_dec)
        k, rule = self.select.k, self.encoder.rule
        center = self._centre if self.encoder.centred else None
        code = torch_latents.encode_top_k(
            x, self.encoder.rows(self), self.b_enc, min(k, self.d_sae), rule, center=center
        )
        kept = self.among(code.values.detach().abs() if rule == "absolute" else code.values.detach(), k)
        return SparseCode(code.values.where(kept, torch.zeros_like(code.values)), code.indices)

    def among(self, scores: Float[Tensor, "rows n"], k: int) -> Tensor:
        """Which of this process's scores, descending in each row, are among the ``k`` largest of all processes."""
        room = scores.new_full((len(scores), k), -torch.inf)
        room[:, : scores.shape[1]] = scores
        given = [torch.empty_like(room) for _ in range(self.world)]
        dist.all_gather(given, room)
        # lower processes hold lower latents, and each lists equal scores by latent: places break ties as latents do
        places: Int64[Tensor, "rows k"] = torch_ops.top_k(torch.cat(given, 1), k).indices
        kept = torch.zeros(len(scores), self.world * k, dtype=torch.bool, device=scores.device).scatter_(
            1, places, True
        )
        return kept[:, self.rank * k : self.rank * k + scores.shape[1]]

    def combine(self, z: Tensor | SparseCode) -> Float[Tensor, "rows d_in"]:
        """``z W_dec`` over the latents of all processes."""
        return _summed(super().combine(z))

    def whole(self) -> SparseAutoencoder:
        """The autoencoder of all latents, on every process, in evaluation mode."""
        sae = SparseAutoencoder(
            self.d_in, self.d_sae * self.world, select=self.select, encoder=self.encoder, decoder=self.decoder,
            inputs=self.inputs, architecture=self.architecture, recommended=self.recommended, seed=None,
            objective=self._whole_objective,
        ).to(self.W_dec)  # fmt: skip
        sae.preset = self.preset
        with torch.no_grad():
            for name, mine in self.named_parameters():
                if name == "b_dec":
                    sae.b_dec.copy_(mine)
                    continue
                mine = (mine.detach().T if name == "W_enc" else mine.detach()).contiguous()
                parts = [torch.empty_like(mine) for _ in range(self.world)]
                dist.all_gather(parts, mine)
                found = torch.cat(parts)
                getattr(sae, name).copy_(found.T if name == "W_enc" else found)
        for name in self.inputs.shapes(self.d_in) if self.inputs is not None else ():
            sae.register_buffer(name, getattr(self, name).clone())
        return sae.eval()


@dataclass(frozen=True)
class _ShardAuxK(AuxK):
    """``AuxK`` over the dead latents of all processes."""

    def __call__(self, step: Step) -> Tensor:
        sae = step.sae
        columns = self.chosen(step).nonzero().squeeze(1)
        count = torch.tensor(len(columns), device=step.x.device)
        dist.all_reduce(count)
        error = (step.x - step.x_hat).detach()
        spread = step.spread_of(error)
        if self.weight == 0 or not count > 0 or not spread > 0:
            return step.x.new_zeros(())
        k = min(self.k, int(count))
        rows = step.x - sae._centre if sae.encoder.centred else step.x
        pre = F.linear(rows, sae.encoder.rows(sae)[columns], sae.b_enc[columns])
        absolute = sae.encoder.rule == "absolute"
        indices = torch_ops.top_k(pre.detach().abs() if absolute else pre.detach(), min(k, len(columns))).indices
        values = pre.gather(1, indices)
        kept = sae.among(values.detach().abs() if absolute else values.detach(), k)
        values = (values if absolute else values.relu()).where(kept, torch.zeros_like(values))
        guess = _summed(torch_latents.decode_rows(values, indices, sae.W_dec[columns]))
        return self.weight * (error - guess).square().sum() / spread


def _arguments(term: AuxK) -> dict[str, Any]:
    return {field.name: getattr(term, field.name) for field in fields(term)}


# -- sums over processes. Every process forms the same loss, so the derivative by a part of a sum is that by the sum,
# and the derivative by what all share is the sum of what each process's latents add to it.


@torch.library.custom_op("ellzero::summed_over_processes", mutates_args=())
def _summed(part: Tensor) -> Tensor:
    out = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out)
    return out


@torch.library.custom_op("ellzero::shared_by_processes", mutates_args=())
def _shared(x: Tensor) -> Tensor:
    return x.detach().clone()


def _nothing(ctx, inputs, output) -> None:
    """No tensor is kept."""


def _add(ctx, grad: Tensor) -> Tensor:
    return _summed(grad)


_summed.register_fake(torch.empty_like)
_shared.register_fake(torch.empty_like)
_summed.register_autograd(lambda ctx, grad: grad, setup_context=_nothing)
_shared.register_autograd(_add, setup_context=_nothing)


def _check_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError("torch.distributed: no process group, want init_process_group first (torchrun starts one)")


def _agree(folder: Path) -> None:
    """Drop checkpoints that are newer than what some process has, so that all go on from one step."""
    found = checkpoints.latest(folder)
    step = torch.tensor(0 if found is None else found[0])
    dist.all_reduce(step, op=dist.ReduceOp.MIN)
    checkpoints.drop_after(folder, int(step))

"""Training of sparse encoders: heads on cached token states, or the whole model.

Lives here: ``SparseTrainer``: which candidates a query sees in a batch, their scores, and the optimiser. Does not live
here: the loop (``training.loop``), losses (``losses``), examples (``examples``), settings of papers (``recipes``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.activity import Flops
from ellzero.parts.schedules import Linear
from ellzero.retrieval.encoder import SparseEncoder
from ellzero.retrieval.examples import Examples
from ellzero.retrieval.heads import MLMHead, MLPHead
from ellzero.retrieval.losses import SpladeLoss
from ellzero.retrieval.states import TokenBatch
from ellzero.rng import rng
from ellzero.training.loop import Batches, Trained, train

__all__ = ["SparseTrainer"]

CANDIDATES = ("own", "positives", "all")


class _Clock:
    """How many steps were done, for ramps; kept in checkpoints."""

    def __init__(self, total: int):
        self.done, self.total = 0, total

    @property
    def progress(self) -> float:
        return min(self.done / self.total, 1.0)

    def step(self) -> None:
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]


class SparseTrainer:
    """Trains a sparse encoder by AdamW on a loss of scores and penalties.

    Parameters
    ----------
    encoder : trained in place.
    loss : a ``SpladeLoss``.
    teacher : an object with ``scores(query rows, document rows)``, for losses that learn from one.
    body : whether the backbone is trained too. Where it is not, examples may come from ``TokenStates``, and the weights
        of its own that a head shares stay as they are.
    lr : peak learning rate. rates : factors on it by pattern of the parameter's name, the first that fits; 0 freezes.
    steps, batch_size : of the optimiser; a batch is of examples.
    columns : of documents, only the columns of the batch's query terms and so many others, drawn anew each step, are
        computed. Scores stay exact where queries have no terms beside their own (tables and MLP heads), and a sum over
        columns such as ``Flops`` is estimated without bias. A step is then cheaper by about the vocabulary over
        ``columns``. None for all; an ``L0Mask``, which counts, needs all.
    candidates : what a query is scored against: its ``"own"`` list, the batch's ``"positives"`` and its own negatives
        (Formal et al., 2021), or ``"all"`` documents of the batch. Known answers of the query are never its negatives.
    warmup : share of the steps over which the rate rises; it falls to 0 at the end, or stays with ``decay=False``.
    weight_decay, clip : of AdamW, and the largest norm of all gradients.
    seed : of the order of examples and of dropout.
    """

    def __init__(
        self,
        encoder: SparseEncoder,
        loss: SpladeLoss,
        *,
        teacher: Any = None,
        body: bool = False,
        lr: float = 2e-3,
        rates: Mapping[str, float] | None = None,
        steps: int = 200,
        batch_size: int = 16,
        columns: int | None = None,
        candidates: str = "positives",
        warmup: float = 0.05,
        decay: bool = True,
        weight_decay: float = 0.0,
        clip: float | None = 1.0,
        precision: str = "float32",
        seed: int = 0,
    ):
        if not isinstance(encoder, SparseEncoder):
            raise InputError(f"encoder: got {type(encoder).__name__}, want a SparseEncoder")
        if not isinstance(loss, SpladeLoss):
            raise InputError(f"loss: got {type(loss).__name__}, want a SpladeLoss (its penalties may be None)")
        if teacher is not None and not hasattr(teacher, "scores"):
            raise InputError(f"teacher: got {type(teacher).__name__}, want one with scores(queries, documents)")
        self.encoder, self.loss, self.teacher, self.body = encoder, loss, teacher, bool(body)
        self.lr = check("lr", lr, above=0, below=math.inf)
        self.rates = dict(rates or {})
        self.steps = check_integer("steps", steps, at_least=1)
        self.batch_size = check_integer("batch_size", batch_size, at_least=1)
        self.columns = None if columns is None else self._sampled(columns)
        self.candidates = check_choice("candidates", candidates, CANDIDATES)
        self.warmup = check("warmup", warmup, at_least=0, below=1)
        self.weight_decay = check("weight_decay", weight_decay, at_least=0)
        self.decay, self.clip, self.precision = bool(decay), clip, precision
        self.seed = check_integer("seed", seed, at_least=0)
        self.model = encoder if self.body else _heads(encoder)

    def fit(
        self, examples: Examples, *, progress: bool = False, checkpoint: Any = None, every: int = 100
    ) -> Trained:  # fmt: skip
        """Train, and leave the encoder in evaluation mode.

        Parameters
        ----------
        progress : show a bar. checkpoint, every : a folder, and the steps between two writings; a run that was killed
            goes on from there and ends with the same bits.

        Raises
        ------
        InputError : a loss that is not finite, a loss that wants a teacher where there is none, nothing to train.
        """
        groups, frozen = self._groups()
        clock = _Clock(self.steps)

        def loss(model: nn.Module, rows: Tensor) -> Tensor:
            return self.batch_loss(examples, rows.numpy(), clock.progress)

        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            return train(
                self.model, loss, Batches(torch.arange(len(examples)), batch_size=self.batch_size, seed=self.seed),
                optimizer=torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay), steps=self.steps,
                schedule=self._rate, clip=self.clip, precision=self.precision, parts={"clock": clock}, seed=self.seed,
                progress=progress, checkpoint=checkpoint, every=every,
            )  # fmt: skip
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            self.encoder.eval()

    def batch_loss(self, examples: Examples, rows: np.ndarray, progress: float = 1.0) -> Tensor:
        """The loss of some examples, as a scalar."""
        asked, own = examples.asked[rows], examples.candidates[rows]
        wanted = np.unique(own[own >= 0])
        queries = self.encoder.query_vectors(examples.queries.take(asked))
        queries, documents, factor = self._vectors(queries, examples.documents.take(wanted), rows)
        shown, positive = self._shown(own, wanted)
        place = torch.from_numpy(np.searchsorted(wanted, shown).clip(0, len(wanted) - 1)).to(queries.device)
        out = torch.from_numpy(_hidden(examples, asked, own, shown, positive, wanted)).to(queries.device)
        scores = (queries @ documents.T).gather(1, place).masked_fill(out, -torch.inf)
        taught = None
        if self.teacher is not None:
            taught = self.teacher.scores(asked, np.maximum(shown, 0)).to(scores)
        at = torch.from_numpy(positive).to(queries.device)
        return self.loss(scores, queries, documents * factor, taught, positive=at, progress=progress)

    def _sampled(self, columns: int) -> int:
        """The number of columns, if heads and penalty allow for leaving some out."""
        check_integer("columns", columns, at_least=1)
        own = isinstance(self.encoder.query_head, MLPHead) or hasattr(self.encoder.query_head, "lookup")
        if not own or not isinstance(self.encoder.document_head, MLMHead):
            raise InputError("columns: some can be left out where queries have no terms beside their own (a table, an "
                             "MLP head) and documents have an MLM head")  # fmt: skip
        if self.encoder.document_terms is not None or not isinstance(self.loss.document_penalty, Flops | None):
            raise InputError("columns: document_terms and penalties other than Flops need all; want None")
        return columns

    def _vectors(
        self, queries: Tensor, documents: TokenBatch, rows: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Queries and documents in the columns that are computed, and what weighs those columns in a penalty."""
        size = queries.shape[1]
        if self.columns is None or self.columns >= size:
            return queries, self.encoder.document_vectors(documents), 1.0
        asked = (queries.detach() != 0).any(0).cpu().numpy()
        others = np.flatnonzero(~asked)
        drawn = rng(self.seed, "columns", *rows.tolist()).choice(
            others, min(self.columns, len(others)), replace=False
        )  # fmt: skip
        kept = torch.from_numpy(np.concatenate([np.flatnonzero(asked), drawn])).to(queries.device)
        # Others stand for those that were left out: a square in the penalty, so the root of how many each stands for.
        factor = torch.ones(len(kept), device=queries.device)
        factor[int(asked.sum()) :] = math.sqrt(len(others) / max(len(drawn), 1))
        head = self.encoder.document_head
        cut = {"embeddings": head.embeddings[kept], "bias": head.bias[kept]}
        return queries[:, kept], torch.func.functional_call(head, cut, (documents,)), factor

    def _shown(self, own: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of documents that each query is scored against, and the column of its positive."""
        count = len(own)
        if self.candidates == "own":
            return own, np.zeros(count, np.int64)
        if self.candidates == "positives":
            shared = np.broadcast_to(own[:, 0], (count, count))
            return np.concatenate([shared, own[:, 1:]], 1), np.arange(count)
        return np.broadcast_to(wanted, (count, len(wanted))), np.searchsorted(wanted, own[:, 0])

    def _groups(self) -> tuple[list[dict[str, Any]], list[Tensor]]:
        """Parameters by learning rate, and those that stay."""
        groups: dict[float, list[Tensor]] = {}
        frozen = []
        shared = set() if self.body else {id(parameter) for parameter in _bodies(self.encoder)}
        for name, parameter in self.model.named_parameters():
            factor = next((value for pattern, value in self.rates.items() if fnmatchcase(name, pattern)), 1.0)
            if not parameter.requires_grad:
                continue
            if factor == 0 or id(parameter) in shared:
                frozen.append(parameter)
            else:
                groups.setdefault(check("rates", factor, above=0), []).append(parameter)
        if not groups:
            raise InputError("rates: leave nothing to train; want a factor above 0 for some parameter of a head")
        return [{"params": params, "lr": self.lr * factor} for factor, params in groups.items()], frozen

    def _rate(self, step: float, total: float) -> float:
        rising = 1.0
        if self.warmup > 0:
            rising = Linear(0.0, 1.0, 0.0, self.warmup)(min(step + 1, total), total)
        return rising * (Linear(1.0, 0.0)(step, total) if self.decay else 1.0)


def _hidden(
    examples: Examples, asked: np.ndarray, own: np.ndarray, shown: np.ndarray, positive: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Where a candidate must not count: a place without a document, or another answer of the query."""
    known = examples.answers[asked][:, wanted].toarray()
    place = np.searchsorted(wanted, shown).clip(0, len(wanted) - 1)
    out = (shown < 0) | np.take_along_axis(known, place, 1) | (shown == own[:, :1])
    out[np.arange(len(out)), positive] = False
    return out


def _heads(encoder: SparseEncoder) -> nn.Module:
    """The heads as one model, each once."""
    if encoder.query_head is encoder.document_head:
        return nn.ModuleDict({"head": encoder.document_head})
    return nn.ModuleDict({"query_head": encoder.query_head, "document_head": encoder.document_head})


def _bodies(encoder: SparseEncoder) -> list[Tensor]:
    bodies = [encoder.backbone, *([encoder.query_backbone] if encoder.query_backbone is not None else [])]
    return [parameter for body in bodies for parameter in body.parameters()]

"""What a retriever learns from: losses of score tables, and their sum with penalties of activity.

Lives here: ``InfoNCE``, ``MarginMSE``, ``DistilKL``, ``Total`` and ``SpladeLoss``. Does not live here: where scores
come from (``encoder``, ``teachers``), what a query is given (``mining``), the penalties (``parts.activity``). A table
is ``[queries, candidates]``; a candidate that must not count has the score ``-inf``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.parts.schedules import Quadratic
from ellzero.registry import register
from ellzero.training.losses import distillation

__all__ = ["DistilKL", "InfoNCE", "MarginMSE", "SpladeLoss", "Total"]


def positives(scores: Tensor, positive: Any) -> Int[Tensor, " queries"]:
    """The column of each query's positive, from one for all, ``"diagonal"`` (in-batch), or one for each."""
    check_array("scores", scores, ndim=2, dtypes="f", finite=False)
    queries, candidates = scores.shape
    if isinstance(positive, str):
        if positive != "diagonal" or queries > candidates:
            raise InputError(f"positive: got {positive!r} for scores {tuple(scores.shape)}, want a column, columns, or "
                             "'diagonal' where there are as many candidates as queries")  # fmt: skip
        return torch.arange(queries, device=scores.device)
    if isinstance(positive, Tensor):
        if positive.shape != (queries,):
            raise InputError(f"positive: got shape {tuple(positive.shape)}, want one column for each of {queries}")
        return positive.to(scores.device)
    column = check_integer("positive", positive, at_least=0, at_most=candidates - 1)
    return torch.full((queries,), column, device=scores.device)


def _taught(scores: Tensor, teacher: Tensor | None) -> Tensor:
    if teacher is None:
        raise InputError("teacher: got none, want its scores of the same candidates")
    if teacher.shape != scores.shape:
        raise InputError(f"teacher: got shape {tuple(teacher.shape)}, want that of scores, {tuple(scores.shape)}")
    return teacher.detach().to(scores)


@register(id="S054", kind="loss", wing="retrieval", source="arXiv:2107.05720", extra="torch", example=lambda: InfoNCE())
@dataclass(frozen=True)
class InfoNCE:
    """``-log(exp(s_+ / T) / sum_c exp(s_c / T))``, mean over queries: in-batch, hard negatives, or both.

    Formal et al. (2021), equation 3, with one hard negative and the batch's other positives as candidates and T = 1:
    scores are products of vectors as they are, neither scaled nor normalised.

    Parameters
    ----------
    temperature : T, above 0.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check("temperature", self.temperature, above=0, below=math.inf)

    def __call__(
        self, scores: Float[Tensor, "queries candidates"], teacher: Tensor | None = None, *, positive: Any = 0
    ) -> Float[Tensor, ""]:
        """A scalar; ``positive`` is a column, one for each query, or ``"diagonal"``."""
        at = positives(scores, positive)
        return torch.nn.functional.cross_entropy(scores.float() / self.temperature, at)


@register(id="S144", kind="loss", wing="retrieval", source="arXiv:2010.02666", extra="torch",
          example=lambda: MarginMSE())  # fmt: skip
@dataclass(frozen=True)
class MarginMSE:
    """``((s_+ - s_-) - scale (t_+ - t_-))^2``, mean over queries and their negatives. Hofstätter et al. (2020).

    The teacher's scores ``t`` are raw, not probabilities: they set the scale of the student's, so a penalty's weight
    fits one teacher.

    Parameters
    ----------
    scale : of the teacher's margins; a cosine needs 20 or so, a cross-encoder's logits none.
    """

    scale: float = 1.0

    def __post_init__(self):
        check("scale", self.scale, above=0, below=math.inf)

    def __call__(
        self, scores: Float[Tensor, "queries candidates"], teacher: Tensor | None = None, *, positive: Any = 0
    ) -> Float[Tensor, ""]:
        """A scalar; without any negative there is no margin, which is refused."""
        at, taught = positives(scores, positive)[:, None], _taught(scores, teacher)
        negative = torch.isfinite(scores).scatter(1, at, False)
        if not bool(negative.any()):
            raise InputError(f"scores: got shape {tuple(scores.shape)} without a negative, want at least one")
        margin = (scores.gather(1, at) - scores).float()
        wanted = self.scale * (taught.gather(1, at) - taught).float()
        return (margin - wanted).masked_fill(~negative, 0).square().sum() / negative.sum()


@register(id="S073", kind="loss", wing="retrieval", source="arXiv:2411.04403", extra="torch",
          example=lambda: DistilKL())  # fmt: skip
@dataclass(frozen=True)
class DistilKL:
    """``KL(softmax(t) || softmax(s))`` over each query's candidates, mean over queries; no label is needed.

    Parameters
    ----------
    temperature : both sides are divided by it, and the loss multiplied by its square.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check("temperature", self.temperature, above=0, below=math.inf)

    def __call__(
        self, scores: Float[Tensor, "queries candidates"], teacher: Tensor | None = None, *, positive: Any = 0
    ) -> Float[Tensor, ""]:
        """A scalar. A candidate with score ``-inf`` counts on neither side."""
        taught, out = _taught(scores, teacher), ~torch.isfinite(scores)
        low = -1e9  # instead of -inf, whose products with 0 are no number
        return distillation(scores.float().masked_fill(out, low), taught.float().masked_fill(out, low),
                            self.temperature)  # fmt: skip


@register(kind="loss", wing="retrieval", source="none", extra="torch", example=lambda: Total(InfoNCE(), DistilKL()))
@dataclass(frozen=True, init=False)
class Total:
    """The weighted sum of several losses of one table: ``Total(DistilKL(), (0.5, InfoNCE()))``."""

    parts: tuple[tuple[float, Any], ...]

    def __init__(self, *parts: Any):
        if not parts:
            raise InputError("parts: got none, want one or more losses, or pairs of a weight and a loss")
        pairs = tuple(part if isinstance(part, tuple) else (1.0, part) for part in parts)
        for weight, loss in pairs:
            check("weight", weight, at_least=0, below=math.inf)
            if not callable(loss):
                raise InputError(f"parts: got {type(loss).__name__}, want losses")
        object.__setattr__(self, "parts", pairs)

    def __call__(self, scores: Tensor, teacher: Tensor | None = None, *, positive: Any = 0) -> Tensor:
        """A scalar."""
        return sum(weight * loss(scores, teacher, positive=positive) for weight, loss in self.parts)


@register(
    id="S054", kind="loss", wing="retrieval", source="arXiv:2107.05720", extra="torch",
    example=lambda: SpladeLoss(InfoNCE()), claim="sparsity is bought by a penalty that sets in slowly",
)  # fmt: skip
@dataclass(frozen=True)
class SpladeLoss:
    """``L_rank + r(t) (l_q F(queries) + l_d F(documents))``. Formal et al. (2021), equation 5.

    Without the ramp the vectors collapse to zeros within a few hundred steps.

    Parameters
    ----------
    main : a loss of scores.
    query_penalty, document_penalty : penalties of activity (``Flops()``, ``L0Mask(Flops(), 128)``), with their weights
        ``l_q`` and ``l_d``; None for none.
    query_weight, document_weight : ``l_q`` and ``l_d``; scores of hundreds want larger ones than cosines.
    ramp : r, from progress in [0, 1] to a factor: by default ``u^2`` over the first third of the run.
    """

    main: Any
    query_penalty: Any = None
    document_penalty: Any = None
    query_weight: float = 1.0
    document_weight: float = 1.0
    ramp: Any = field(default_factory=lambda: Quadratic(0.0, 1.0, 0.0, 1 / 3))

    def __post_init__(self):
        if not callable(self.main):
            raise InputError(f"main: got {type(self.main).__name__}, want a loss such as InfoNCE()")
        for name in ("query", "document"):
            penalty = getattr(self, f"{name}_penalty")
            if penalty is not None and not hasattr(penalty, "value"):
                raise InputError(f"{name}_penalty: got {type(penalty).__name__}, want one such as Flops(), or None")
            check(f"{name}_weight", getattr(self, f"{name}_weight"), at_least=0, below=math.inf)

    def __call__(
        self,
        scores: Float[Tensor, "queries candidates"],
        queries: Float[Tensor, "queries terms"],
        documents: Float[Tensor, "documents terms"],
        teacher: Tensor | None = None,
        *,
        positive: Any = 0,
        progress: float = 1.0,
    ) -> Float[Tensor, ""]:
        """A scalar of a batch's scores and of the vectors that they are products of; ``progress`` in [0, 1]."""
        loss = self.main(scores, teacher, positive=positive)
        factor = self.ramp(progress)
        for penalty, weight, vectors in (
            (self.query_penalty, self.query_weight, queries),
            (self.document_penalty, self.document_weight, documents),
        ):
            if penalty is not None and weight * factor > 0:
                loss = loss + weight * factor * penalty.value(vectors)
        return loss

    def parts(self) -> Sequence[Any]:
        """The penalties that there are, the queries' first."""
        return [penalty for penalty in (self.query_penalty, self.document_penalty) if penalty is not None]

"""Who says which candidate is better: scores of a dense, a sparse or any other model, and ensembles of them.

Lives here: ``DenseTeacher``, ``SparseTeacher`` and ``TeacherEnsemble``: ``scores(queries, documents)`` of rows, so that
one teacher serves a batch, a list of mined candidates, or all documents. Does not live here: what is learned from them
(``losses``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from ellzero.errors import InputError, check, check_array, check_choice
from ellzero.registry import register

__all__ = ["DenseTeacher", "SparseTeacher", "TeacherEnsemble", "minmax"]


def _places(queries: Any, documents: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of queries ``[b]`` and of documents ``[b, c]`` (or ``[c]``, the same for each query)."""
    queries, documents = np.asarray(queries), np.asarray(documents)
    if queries.ndim != 1 or documents.ndim not in (1, 2):
        raise InputError(f"documents: got shape {documents.shape} for queries {queries.shape}, want [b, c] or [c]")
    documents = np.broadcast_to(documents, (len(queries), documents.shape[-1]))
    return queries, documents


@dataclass(frozen=True, eq=False)
class DenseTeacher:
    """Products of dense vectors; cosines, where the rows have length 1.

    Parameters
    ----------
    queries, documents : ``[rows, d]``, arrays or tensors.
    """

    queries: Any
    documents: Any

    def __post_init__(self):
        for name in ("queries", "documents"):
            rows = torch.as_tensor(getattr(self, name)).detach().float()
            object.__setattr__(self, name, check_array(name, rows, ndim=2))
        if self.queries.shape[1] != self.documents.shape[1]:
            raise InputError(f"documents: got {self.documents.shape[1]} features, want {self.queries.shape[1]}")

    def scores(self, queries: Any, documents: Any) -> Float[Tensor, "b c"]:
        """Scores of the documents ``[b, c]`` or ``[c]`` for each of the queries ``[b]``, all given by row."""
        rows, columns = _places(queries, documents)
        asked, told = self.queries[torch.from_numpy(rows.copy())], self.documents
        wanted, place = np.unique(columns, return_inverse=True)  # a batch shares most of its candidates
        table = asked @ told[torch.from_numpy(wanted)].T
        return table.gather(1, torch.from_numpy(place.reshape(columns.shape)))


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """Products of sparse rows: BM25's, or another sparse encoder's.

    Parameters
    ----------
    queries, documents : scipy CSR ``[rows, terms]``.
    """

    queries: Any
    documents: Any

    def __post_init__(self):
        for name in ("queries", "documents"):
            if not sparse.issparse(getattr(self, name)):
                raise InputError(f"{name}: got {type(getattr(self, name)).__name__}, want a scipy sparse matrix")
            object.__setattr__(self, name, sparse.csr_array(getattr(self, name)))
        if self.queries.shape[1] != self.documents.shape[1]:
            raise InputError(f"documents: got {self.documents.shape[1]} terms, want {self.queries.shape[1]}")

    def scores(self, queries: Any, documents: Any) -> Float[Tensor, "b c"]:
        """As ``DenseTeacher.scores``."""
        rows, columns = _places(queries, documents)
        wanted, place = np.unique(columns, return_inverse=True)
        table = (self.queries[rows] @ self.documents[wanted].T).toarray()
        return torch.from_numpy(np.take_along_axis(table, place.reshape(columns.shape), 1).astype(np.float32))


def minmax(scores: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Each list to [0, 1]; a list of one element or of equal ones, which says nothing, to 0."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (scores - low) / spread.clamp_min(torch.finfo(scores.dtype).tiny), 0.0)


@register(id="S073", kind="teacher", wing="retrieval", source="arXiv:2411.04403", extra="torch",
          example=lambda: TeacherEnsemble([DenseTeacher(np.eye(2), np.eye(2))]),
          claim="teachers of different kinds agree on a scale of their own lists")  # fmt: skip
@dataclass(frozen=True, eq=False)
class TeacherEnsemble:
    """The weighted mean of teachers, each scaled over a query's own list of candidates. Geng et al. (2024).

    ``z = scale sum_m a_m (s_m - min s_m) / (max s_m - min s_m)``, the extremes over the candidates of one query, so
    that a cosine and a sum of impacts count alike. A list of one element gives 0.

    Parameters
    ----------
    teachers : objects with ``scores(queries, documents)``.
    weights : one per teacher, of sum 1; None for equal ones.
    scale : of the result; the softmax of the student's loss needs 10 to 30.
    normalise : ``"minmax"``, or ``"none"``.
    """

    teachers: Sequence[Any]
    weights: Sequence[float] | None = None
    scale: float = 20.0
    normalise: str = "minmax"

    def __post_init__(self):
        object.__setattr__(self, "teachers", tuple(self.teachers))
        if not self.teachers or not all(hasattr(teacher, "scores") for teacher in self.teachers):
            raise InputError(f"teachers: got {[type(t).__name__ for t in self.teachers]}, want one or more with scores")
        weights = [1 / len(self.teachers)] * len(self.teachers) if self.weights is None else list(self.weights)
        if len(weights) != len(self.teachers) or abs(sum(weights) - 1) > 1e-6 or min(weights) < 0:
            raise InputError(f"weights: got {weights}, want {len(self.teachers)} of at least 0, of sum 1")
        object.__setattr__(self, "weights", tuple(float(weight) for weight in weights))
        check("scale", self.scale, above=0, below=float("inf"))
        check_choice("normalise", self.normalise, ("minmax", "none"))

    def scores(self, queries: Any, documents: Any) -> Float[Tensor, "b c"]:
        """As ``DenseTeacher.scores``."""
        return self.combine([teacher.scores(queries, documents) for teacher in self.teachers])

    def combine(self, tables: Sequence[Float[Tensor, "b c"]]) -> Float[Tensor, "b c"]:
        """One table of the teachers' tables."""
        if len(tables) != len(self.teachers):
            raise InputError(f"tables: got {len(tables)}, want one for each of the {len(self.teachers)} teachers")
        scaled = [minmax(table) if self.normalise == "minmax" else table for table in tables]
        return self.scale * sum(weight * table for weight, table in zip(self.weights, scaled))

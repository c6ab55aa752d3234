"""Sparse probes as methods of the comparison: how well concepts are told from k neurons each, and the probes' file.

Lives here: a method per ranking, the dense probe, the fitted probes with ``save`` and ``load``. Does not live here: the
rankings (``neurons``), activations and concepts (the task). Neurons are standardised on the training part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.io import artefacts
from ellzero.linear.neurons import RANKINGS, balanced_weights, select_neurons
from ellzero.linear.probing import concept_scores, standardised
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng

__all__ = ["BATCH", "KIND", "VERSION", "FittedProbes", "Probes", "methods"]

BATCH = 1000
KIND, VERSION = "sparse-probes", 1
_COMPARED = tuple(name for name in RANKINGS if name != "exact")  # the exact search is for small k and d alone


@dataclass(frozen=True, eq=False)
class FittedProbes:
    """One linear probe per concept: ``columns, values`` ``[L, k]``, ``intercepts [L]``, in the neurons' own units."""

    columns: np.ndarray
    values: np.ndarray
    intercepts: np.ndarray
    neurons: int
    concepts: tuple[str, ...]

    @property
    def realised(self) -> float:
        """Neurons per concept."""
        return float(self.columns.shape[1])

    @property
    def nbytes(self) -> int:
        """Values, intercepts, and four bytes per place."""
        return self.values.nbytes + self.intercepts.nbytes + 4 * self.columns.size

    def log_odds(self, X: np.ndarray) -> np.ndarray:
        """``[n, L]`` for activations ``[n, neurons]``."""
        return np.stack([X[:, own] @ w + b for own, w, b in zip(self.columns, self.values, self.intercepts)], axis=1)

    def score(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """F1 on ``(X, y [n, L])``, a mean over concepts."""
        X, y = part
        return float(concept_scores(np.asarray(y).T > 0, self.log_odds(X).T > 0)[0].mean())

    def time(self, part: tuple[np.ndarray, np.ndarray]) -> float:
        """Median seconds for 1000 rows (those of the part, repeated)."""
        X = np.ascontiguousarray(np.resize(part[0], (BATCH, part[0].shape[1])))
        spans = []
        for _ in range(12):
            start = time.perf_counter()
            self.log_odds(X)
            spans.append(time.perf_counter() - start)
        return float(np.median(spans[2:]))

    def save(self, directory: Path) -> None:
        """Write ``probes.safetensors`` into an existing folder."""
        tensors = {"columns": self.columns, "values": self.values, "intercepts": self.intercepts}
        meta = {"neurons": self.neurons, "concepts": list(self.concepts)}
        artefacts.save(Path(directory) / "probes.safetensors", tensors, meta, KIND, VERSION)

    @classmethod
    def load(cls, directory: Path) -> FittedProbes:
        """The inverse of ``save``; ``InputError`` for a missing, torn, foreign or newer file."""
        path = Path(directory) / "probes.safetensors"
        tensors, meta = artefacts.load(path, KIND, version=VERSION)
        columns, values = tensors["columns"], tensors["values"]
        if columns.shape != values.shape or len(columns) != len(meta["concepts"]) or columns.max() >= meta["neurons"]:
            raise InputError(f"{path}: its weights do not fit its {len(meta['concepts'])} concepts")
        return cls(columns, values, tensors["intercepts"], meta["neurons"], tuple(meta["concepts"]))


@register(id="S031", source="arXiv:2305.01610", kind="method", wing="linear", name="sparse probes",
          claim="few neurons carry many concepts", example=lambda: Probes())  # fmt: skip
@dataclass(frozen=True)
class Probes:
    """k neurons per concept by one ranking, and a ridge-logistic fit on them; ``alpha`` is tuned.

    ``dense`` reads every neuron: the reference line.
    """

    ranking: str = "adaptive"
    alpha: float = 1e-2
    dense: bool = False

    def __post_init__(self):
        check_choice("ranking", self.ranking, RANKINGS)
        check("alpha", self.alpha, above=0)

    @property
    def name(self) -> str:
        """``"all neurons"``, or the ranking in words."""
        return "all neurons" if self.dense else self.ranking.replace("_", " ")

    def candidates(self, trials: int, seed: int) -> Sequence[Probes]:
        """The method itself, and ridge weights from 1e-4 to 1, one in each part of that range."""
        more = check_integer("trials", trials, at_least=1) - 1
        stream = rng(seed, "probes", self.name)
        places = (stream.permutation(more) + stream.random(more)) / max(more, 1)
        return [self, *(replace(self, alpha=float(10 ** (-4 + 4 * place))) for place in places)]

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedProbes]:
        """All concepts and budgets together."""
        X, y = data.train
        neurons = X.shape[1]
        counts = [neurons] if self.dense else [_count(budget, neurons) for budget in budgets]
        labels = np.where(np.asarray(y).T > 0, 1.0, -1.0)
        constant = np.flatnonzero(abs(labels.sum(1)) == labels.shape[1])
        if len(constant):
            raise InputError(f"y: {data.info['concepts'][constant[0]]!r} is the same in every training row, want both")
        Z, mean, spread = standardised(np.asarray(X, dtype=np.float64))
        found = select_neurons(Z, labels, balanced_weights(labels), sorted(set(counts)), self.ranking, self.alpha)
        for k in counts:
            columns, fits = found[k]
            values = fits.coef / spread[columns]
            intercepts = fits.intercept - (values * mean[columns]).sum(1)
            yield FittedProbes(columns.astype(np.int32), values, intercepts, neurons, tuple(data.info["concepts"]))


def _count(budget: float, neurons: int) -> int:
    if budget != int(budget):
        raise InputError(f"budgets: got {budget:g}, want whole numbers of neurons")
    return int(check("budgets", int(budget), at_least=1, at_most=neurons))


def methods() -> dict[str, Any]:
    """The methods that the task ``probing`` compares, by name."""
    own = (Probes("mean_difference", dense=True), *(Probes(ranking) for ranking in _COMPARED))
    return {method.name: method for method in own}

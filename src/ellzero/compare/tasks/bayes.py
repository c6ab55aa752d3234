"""The task ``bayes``: how far can the probabilities of a sparse network be trusted?

Lives here: the scores of probabilities as fidelities, and the question. Does not live here: the data, the options and
the networks (``network``), the methods (``ellzero.network.variational_frontier``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ellzero.compare.tasks import network_rows
from ellzero.compare.tasks.network import Network
from ellzero.compare.tasks.network_rows import module_of
from ellzero.compare.tasks.tables import kept_columns
from ellzero.errors import InputError, check_choice, check_integer
from ellzero.io import artefacts
from ellzero.network.variational import predictive
from ellzero.network.variational_frontier import JUDGES, KIND, bayes_methods, judged, load_variational
from ellzero.protocol import Data, Method, Output
from ellzero.registry import register

__all__ = ["Bayes"]


@register(
    kind="task", wing="network", id="S160", source="arXiv:2402.11025", extra="torch", name="bayes",
    example=lambda: Bayes(),
)  # fmt: skip
@dataclass(frozen=True)
class Bayes(Network):
    """A classifier whose probabilities are to be trusted: log loss, calibration or accuracy against the kept share.

    Parameters
    ----------
    judge : ``"log_loss"`` (which counts accuracy and calibration together), ``"calibration_error"`` (15 bins),
        ``"brier"`` or ``"accuracy"``.
    samples : draws of the weights that a Bayesian network's probabilities are averaged over; 0 for its mean weights.

    The others are those of ``Network``, for the perceptron and one's own model, without ``evaluate``. A weight of a
    Bayesian network counts once and has two numbers, a mean and a deviation: see the bytes too. Li et al. (2024).
    """

    judge: str = "log_loss"
    samples: int = 10

    name: ClassVar[str] = "bayes"
    default_methods: ClassVar[tuple[str, ...] | None] = None
    nets: ClassVar[tuple[str, ...]] = ("mlp",)
    options: ClassVar[tuple[str, ...]] = ("steps", "batch_size", "include", "exclude", "groups", "judge", "samples")

    def __post_init__(self):
        super().__post_init__()
        check_choice("judge", self.judge, JUDGES)
        samples = int(self.samples) if isinstance(self.samples, str) and self.samples.isdecimal() else self.samples
        object.__setattr__(self, "samples", check_integer("samples", samples, at_least=0))
        if self.evaluate is not None:
            raise InputError(f"eval: the task {self.name} takes none, want --option judge={self.judge}")

    @property
    def fidelity(self) -> str:
        """The word on the axis."""
        return self.judge.replace("_", " ")

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Higher for accuracy, lower for all else."""
        return "higher" if self.judge == "accuracy" else "lower"

    @property
    def bound(self) -> float | None:
        """The best possible fidelity."""
        return 1.0 if self.judge == "accuracy" else 0.0

    def refit_data(self, seed: int, which: Literal["train", "all"]) -> Data:
        """As for ``Network``, with the judge of probabilities."""
        found = super().refit_data(seed, which)
        more: dict[str, Any] = {"evaluate": judged(self.judge, self.samples), "samples": self.samples}
        return replace(found, info={**found.info, **more})

    def methods(self) -> Mapping[str, Method]:
        """SSVI, and deterministic ones: dense, RigL, gradual magnitude pruning."""
        return bayes_methods()

    def budgets(self, data: Data) -> Sequence[float]:
        """Densities where the methods part."""
        return (0.02, 0.05, 0.1, 0.3)

    def apply(self, directory: Path, source: str) -> Output:
        """Class and probability of each row of a file; of a Bayesian network the mean over its draws."""
        directory = Path(directory)
        found = artefacts.inspect(directory / "model.safetensors")
        if found["kind"] != KIND:
            return network_rows.apply_network(directory, source)
        model, samples = load_variational(directory, lambda spec: module_of(spec, 0))
        spec = found["meta"]["build"]
        X = kept_columns(source, (), spec["columns"], spec["columns"]) / spec.get("scale", 1.0)
        rows = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))
        probability = predictive(model, rows, samples)
        best = probability.argmax(1)
        columns = {"class": np.asarray(spec["classes"])[best], "probability": probability[np.arange(len(best)), best]}
        return Output(columns, f"the most probable class, and its probability over {samples or 'no'} draws")

"""Sparse Bayesian networks as methods of the comparison, beside deterministic ones that are judged by the same scores.

Lives here: ``VariationalMethod``, ``FittedVariational``, the judges of probabilities, the list of methods and the way
back from a saved network. Does not live here: the layers (``variational``), the metrics (``calibration``), the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.io import artefacts
from ellzero.io.atomic import write_json
from ellzero.network import packed
from ellzero.network.calibration import brier_score, calibration_error, log_loss
from ellzero.network.contenders import SGD, recipe_methods
from ellzero.network.frontier import FittedNetwork, tensors, variants
from ellzero.network.report import Cost, Report, Row
from ellzero.network.variational import SupportUpdates, elbo, layers_of, predictive, sparse_variational
from ellzero.parts.schedules import Cosine
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.training import losses
from ellzero.training.loop import Batches, train
from ellzero.training.threads import threads_for

__all__ = ["JUDGES", "KIND", "FittedVariational", "VariationalMethod", "bayes_methods", "load_variational"]

KIND, VERSION = "variational-network", 1

JUDGES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "log_loss": log_loss,
    "calibration_error": calibration_error,
    "brier": brier_score,
    "accuracy": lambda probability, y: float((probability.argmax(1) == np.asarray(y)).mean()),
}
"""Scores of class probabilities; the last is better when higher, the others when lower."""


@dataclass(frozen=True)
class FittedVariational(FittedNetwork):
    """A sparse Bayesian network; ``realised`` counts its active weights, each of which has a mean and a deviation.

    ``nbytes`` are the stored bytes: places, means, spreads and all that is not variational.
    """

    @property
    def realised(self) -> float:
        """Active entries over all entries of the variational layers."""
        return self.report.density

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that ``save`` writes."""
        return packed.nbytes(self.model.state_dict())

    def save(self, directory: Path) -> None:
        """``model.safetensors`` (places, means, spreads) and ``config.json`` (what rebuilds the module)."""
        counts = {row.name.removesuffix(".weight"): row.kept for row in self.report.rows}
        meta = {"build": dict(self.info.get("spec", {})), "counts": counts, "samples": self.info["samples"]}
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        artefacts.save(Path(directory) / "model.safetensors", state, meta, kind=KIND, version=VERSION)
        write_json(Path(directory) / "config.json", {"version": VERSION, **meta["build"], "density": self.realised})


@dataclass(frozen=True)
class _Counts:
    """An allocation that is given."""

    given: Mapping[str, int]

    def counts(self, shapes: Any, density: float, scores: Any = None) -> Mapping[str, int]:
        return self.given


def load_variational(directory: Path, build: Callable[[Mapping[str, Any]], nn.Module]) -> tuple[nn.Module, int]:
    """A saved network and how many draws its probabilities take; ``build(spec)`` gives the dense module.

    Raises
    ------
    InputError : no such file, another kind, or weights that do not fit the module.
    """
    state, meta = artefacts.load(Path(directory) / "model.safetensors", KIND, version=VERSION, backend="torch")
    model = sparse_variational(build(meta["build"]), 1.0, allocation=_Counts(meta["counts"]),
                               include=[f"{name}.weight" for name in meta["counts"]])  # fmt: skip
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{directory}: the weights do not fit the model ({error})") from error
    return model.eval(), int(meta["samples"])


@register(
    kind="method", wing="network", id="S160", source="arXiv:2402.11025", extra="torch", name="ssvi",
    example=lambda: VariationalMethod(),
)  # fmt: skip
@dataclass(frozen=True)
class VariationalMethod:
    """Sparse subspace variational inference as a method of the comparison, trained by Adam. Li et al. (2024).

    Parameters
    ----------
    name : in the comparison.
    settings : ``lr``, ``prior``, ``sigma``, ``temperature`` of the objective, ``drop``, ``until``, ``criterion``.
    space : choices of settings, for tuning.
    """

    name: str = "ssvi"
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    dense: bool = False

    def __post_init__(self):
        for setting in (*self.settings, *self.space):
            check_choice("settings", setting, _SETTINGS)

    def candidates(self, trials: int, seed: int) -> Sequence[VariationalMethod]:
        """The method itself and ``trials - 1`` random settings from its space."""
        return variants(self, trials, seed)

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedVariational]:
        """One network for each density."""
        for budget in budgets:
            yield self._fit(data, budget, seed)

    def _fit(self, data: Data, budget: float, seed: int) -> FittedVariational:
        info, own = data.info, {**_SETTINGS, **self.settings}
        (X, y), steps = tensors(data.train), check_integer("steps", info["steps"], at_least=1)
        dense = info["build"](seed)
        model = sparse_variational(dense, budget, sigma=own["sigma"], seed=seed, include=info.get("include"),
                                   exclude=info.get("exclude"))  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=check("lr", own["lr"], above=0))
        updates = SupportUpdates(model, optimizer, steps=steps, every=max(steps // 40, 1),
                                 **{name: own[name] for name in ("drop", "until", "criterion")})  # fmt: skip
        loss = elbo(losses.classification, len(X), prior=own["prior"], temperature=own["temperature"])
        with threads_for(0):
            train(model, loss, Batches(X, y, batch_size=info["batch_size"], seed=seed), optimizer=optimizer,
                  steps=steps, schedule=Cosine(1.0, 0.0), clip=5.0, seed=seed, parts={"support": updates})  # fmt: skip
        return FittedVariational(model.eval(), _report(model, steps), info)


_SETTINGS = {"lr": 0.02, "prior": 1.0, "sigma": 0.01, "temperature": 0.1, "drop": 0.3, "until": 0.75,
             "criterion": "size_snr"}  # fmt: skip


def _report(model: nn.Module, steps: int) -> Report:
    layers = layers_of(model)
    rows = tuple(Row(f"{name}.weight", tuple(layer.layout.shape), layer.value.numel(),
                     layer.layout.shape[0] * layer.layout.shape[1]) for name, layer in layers.items())  # fmt: skip
    active = {id(p) for layer in layers.values() for p in (layer.value, layer.rho)}
    others = {name: p for name, p in model.named_parameters() if id(p) not in active}
    density = sum(row.kept for row in rows) / sum(row.numel for row in rows)
    return Report(steps, rows, dict.fromkeys(others, "a number"), sum(p.numel() for p in others.values()),
                  Cost(density, density))  # fmt: skip


def bayes_methods() -> dict[str, Any]:
    """SSVI, and deterministic: dense, RigL and gradual magnitude pruning by one threshold."""
    plain = recipe_methods(SGD, linear=False)
    space = {"lr": (0.01, 0.02, 0.04), "temperature": (0.03, 0.1, 0.3, 1.0), "sigma": (1e-3, 1e-2, 5e-2),
             "prior": (0.3, 1.0)}  # fmt: skip
    methods = [VariationalMethod(space=space), *(plain[name] for name in ("dense", "rigl", "gradual-global"))]
    return {method.name: method for method in methods}


def judged(judge: str, samples: int) -> Callable[[nn.Module, Any, Any], float]:
    """``evaluate(model, X, y)`` of the comparison: a score of the probabilities that a model gives."""
    score = JUDGES[judge]
    return lambda model, X, y: score(predictive(model, tensors((X, y))[0], samples), np.asarray(y))

"""Ways to code activations with few numbers, as methods of the comparison: explained variance against L0.

Lives here: ``PrincipalComponents``, ``Trained`` (any preset) and what they fit. Does not live here: the data, the split
or the report (``compare``). Every autoencoder has the same width, steps and batches.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ellzero.autoencoder import storage
from ellzero.autoencoder.metrics import evaluate, explained_variance
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.pca import PCA
from ellzero.autoencoder.presets import PRESETS, preset
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError, check, check_integer
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training.threads import threads_for

__all__ = ["FittedCode", "PrincipalComponents", "Trained", "methods"]

BATCH = 512


@dataclass(frozen=True)
class FittedCode:
    """An autoencoder or a PCA with the mean number of active latents on validation rows (``realised``)."""

    model: Any
    realised: float

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that ``save`` writes."""
        if isinstance(self.model, PCA):
            parts = [self.model.components, self.model.mean]
        else:
            parts = storage.tensors(self.model).values()
        return sum(part.numel() * part.element_size() for part in parts)

    def score(self, part: Any) -> float:
        """Explained variance, 1 - FVU over all rows of the part."""
        return explained_variance(self.model, part)

    def time(self, part: Any, repeats: int = 15) -> float:
        """Median seconds to encode and decode 512 rows on one thread, after a warm-up."""
        rows = torch.as_tensor(np.resize(np.asarray(part[:BATCH], dtype=np.float32), (BATCH, part.shape[1])))
        found = []
        with torch.inference_mode(), threads_for(0):
            for _ in range(repeats + 3):
                start = time.perf_counter()
                self.model.decode(self.model.encode(rows))
                found.append(time.perf_counter() - start)
        return float(np.median(found[3:]))

    def save(self, directory: Path) -> None:
        """``cfg.json`` and ``sae_weights.safetensors``, or ``pca.safetensors``."""
        self.model.save(directory)


def _count(budget: float, most: int, of: str) -> int:
    """A budget as a whole number of active latents."""
    check("budget", budget, at_least=1)
    if float(budget) != int(budget):
        raise InputError(f"budget: got {budget}, want a whole number of active latents")
    if budget > most:
        raise InputError(f"budget: got {budget}, want at most {most}, the number of {of}")
    return int(budget)


@register(kind="method", wing="autoencoder", source="Pearson (1901)", extra="torch")
@dataclass(frozen=True)
class PrincipalComponents:
    """The best linear code of width k, all of it active on every row: the dense baseline at the same L0."""

    name: str = "pca"
    dense: bool = False

    def candidates(self, trials: int, seed: int) -> Sequence[PrincipalComponents]:
        """Itself: nothing to tune."""
        check_integer("trials", trials, at_least=1)
        return [self]

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedCode]:
        """The leading components of one eigendecomposition."""
        width = data.train.shape[1]
        counts = [_count(budget, width, "input features") for budget in budgets]
        full = PCA.fit(data.train, max(counts, default=1))
        for k in counts:
            model = PCA(full.components[:k].contiguous(), full.mean)
            yield FittedCode(model, evaluate(model, data.validation)["l0"])


# Batches without firing after which a latent counts as dead in these short runs.
_DEAD = 40
# Presets that need more of each row than its activation, and one that takes no budget but finds its own.
_ELSEWHERE = ("adaptive_k", "g_sae", "top_afa")


@register(
    kind="method", wing="autoencoder", id="S136", source="arXiv:2406.04093", extra="torch",
    example=lambda: Trained("topk"),
)  # fmt: skip
@dataclass(frozen=True)
class Trained:
    """An autoencoder trained for each budget: the preset of that name (with hyphens), its ``k`` being the budget.

    ``lr`` is the peak learning rate of Adam.
    """

    name: str
    lr: float = 0.01
    dense: bool = False

    def __post_init__(self):
        preset(self.preset)
        check("lr", self.lr, above=0)

    @property
    def preset(self) -> str:
        """The name in ``ellzero.autoencoder.presets``."""
        return self.name.replace("-", "_") if isinstance(self.name, str) else self.name

    def candidates(self, trials: int, seed: int) -> Sequence[Trained]:
        """Itself, then learning rates drawn log-uniformly between 0.003 and 0.03."""
        check_integer("trials", trials, at_least=1)
        stream = rng(seed, "candidates", self.name)
        drawn = 0.003 * 10 ** stream.uniform(0, 1, trials - 1)
        return [self, *(replace(self, lr=float(f"{lr:.3g}")) for lr in drawn)]

    def frontier(self, data: Data, budgets: Sequence[float], seed: int) -> Iterator[FittedCode]:
        """One training run for each budget, with the task's width, steps and batch size."""
        info = data.info
        for budget in budgets:
            k = _count(budget, info["d_sae"], "latents")
            sae = self.build(data.train.shape[1], info["d_sae"], k, seed, info["batch_size"])
            trainer = SAETrainer(sae, lr=self.lr, batch_size=info["batch_size"], steps=info["steps"], seed=seed)
            trainer.fit(data.train)
            if sae.calibrates:  # on rows that were not trained on, where a little more is active
                sae.calibrate(torch.from_numpy(data.validation))
            yield FittedCode(sae, evaluate(sae, data.validation)["l0"])

    def build(self, d_in: int, d_sae: int, k: int, seed: int, batch: int) -> SparseAutoencoder:
        """The autoencoder before training; in these short runs a latent counts as dead after 40 batches."""
        make = preset(self.preset)
        options = {"dead_after": _DEAD * batch} if "dead_after" in inspect.signature(make).parameters else {}
        return make(d_in, d_sae, k, seed=seed, **options)


def methods() -> dict[str, Any]:
    """The methods of the comparison by name: PCA, and every preset with a budget that learns from activations alone."""
    names = [name.replace("_", "-") for name in PRESETS if name not in _ELSEWHERE]
    return {"pca": PrincipalComponents(), **{name: Trained(name) for name in names}}

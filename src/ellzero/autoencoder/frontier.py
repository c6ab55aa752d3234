"""Ways to code activations with few numbers, as methods of the comparison: explained variance against L0.

Lives here: ``PrincipalComponents``, ``ReLUL1``, ``TopK``, ``BatchTopK`` and what they fit. Does not live here: the
data, the split or the report (``compare``). Every autoencoder has the same width, steps and batches.
"""

from __future__ import annotations

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
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError, check, check_integer
from ellzero.protocol import Data
from ellzero.registry import register
from ellzero.rng import rng
from ellzero.training.threads import threads_for

__all__ = ["BatchTopK", "FittedCode", "PrincipalComponents", "ReLUL1", "TopK", "methods"]

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


@dataclass(frozen=True)
class _Trained:
    """Settings that all trained autoencoders share. ``lr`` is the peak learning rate of Adam."""

    lr: float = 0.01

    def __post_init__(self):
        check("lr", self.lr, above=0)

    def candidates(self, trials: int, seed: int) -> Sequence[Any]:
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
            sae = self._build(data.train.shape[1], info["d_sae"], k, seed, info["batch_size"])
            trainer = SAETrainer(sae, lr=self.lr, batch_size=info["batch_size"], steps=info["steps"], seed=seed)
            trainer.fit(data.train)
            if sae.calibrates:  # on rows that were not trained on, where a little more is active
                sae.calibrate(torch.from_numpy(data.validation))
            yield FittedCode(sae, evaluate(sae, data.validation)["l0"])


@register(kind="method", wing="autoencoder", source="arXiv:2309.08600", extra="torch")
@dataclass(frozen=True)
class ReLUL1(_Trained):
    """Rectified codes; during training the L1 price is steered to the budget. Cunningham et al. (2023)."""

    name: str = "relu-l1"
    dense: bool = False

    def _build(self, d_in: int, d_sae: int, k: int, seed: int, batch: int) -> SparseAutoencoder:
        return SparseAutoencoder.from_preset("relu_l1", d_in=d_in, d_sae=d_sae, k=k, seed=seed)


@register(kind="method", wing="autoencoder", id="S136", source="arXiv:2406.04093", extra="torch")
@dataclass(frozen=True)
class TopK(_Trained):
    """The k largest activations of each row. Gao et al. (2024)."""

    name: str = "topk"
    dense: bool = False

    def _build(self, d_in: int, d_sae: int, k: int, seed: int, batch: int) -> SparseAutoencoder:
        return SparseAutoencoder.from_preset("topk", d_in=d_in, d_sae=d_sae, k=k, seed=seed, dead_after=_DEAD * batch)


@register(kind="method", wing="autoencoder", source="arXiv:2412.06410", extra="torch")
@dataclass(frozen=True)
class BatchTopK(_Trained):
    """k activations per row on average over the batch, a threshold at inference. Bussmann et al. (2024)."""

    name: str = "batchtopk"
    dense: bool = False

    def _build(self, d_in: int, d_sae: int, k: int, seed: int, batch: int) -> SparseAutoencoder:
        build = SparseAutoencoder.from_preset
        return build("batchtopk", d_in=d_in, d_sae=d_sae, k=k, seed=seed, dead_after=_DEAD * batch)


# Batches without firing after which a latent counts as dead in these short runs.
_DEAD = 40


def methods() -> dict[str, Any]:
    """The methods of the comparison by name."""
    return {method.name: method for method in (PrincipalComponents(), ReLUL1(), TopK(), BatchTopK())}

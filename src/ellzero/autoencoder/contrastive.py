"""Codes that search well: the same item's codes close together, others apart.

Lives here: the loss term ``Contrastive``. Does not live here: InfoNCE itself (``ellzero.training.losses``), or an index
over codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.autoencoder.codes import SparseCode
from ellzero.autoencoder.objective import Step
from ellzero.errors import InputError, check, check_array, check_choice, check_integer
from ellzero.training.losses import info_nce

__all__ = ["Contrastive"]


@dataclass(frozen=True)
class Contrastive:
    """``weight`` times the InfoNCE of codes scaled to length 1, over the batch. CSR (2025).

    Parameters
    ----------
    temperature : cosines are divided by it.
    positives : what a row's code should be nearest to. ``"ranks"``: its own with ``factor`` times as many latents.
        ``"same"``: itself, the second pass of the paper's code, which only drives others away. ``"pairs"``: the code of
        the row's partner, ``beside`` being partners ``[rows, d_in]``. ``"labels"``: the codes of all rows with the same
        label, ``beside`` being whole numbers ``[rows]``.
    """

    weight: float = 0.1
    temperature: float = 0.2
    positives: str = "ranks"
    factor: int = 4

    def __post_init__(self):
        check("weight", self.weight, at_least=0)
        check("temperature", self.temperature, above=0)
        check_choice("positives", self.positives, ("ranks", "same", "pairs", "labels"))
        check_integer("factor", self.factor, at_least=2)

    def __call__(self, step: Step) -> Tensor:
        if self.weight == 0:
            return step.x.new_zeros(())
        sae = step.sae
        z = step.z.dense(sae.d_sae) if isinstance(step.z, SparseCode) else step.z
        other, labels = z, None
        if self.positives == "ranks":
            k = getattr(sae.select, "k", None)
            if not isinstance(k, int):
                raise InputError(f"select: got {type(sae.select).__name__}, want TopK: positives='ranks' needs its k")
            other = step.ranked(min(self.factor * k, sae.d_sae)).dense(sae.d_sae)
        elif self.positives == "pairs":
            partners = check_array("beside", _given(step), ndim=2, shape=tuple(step.x.shape), dtypes="f")
            other = sae.codes(sae.normalized(partners.to(step.x)) * step.scale)[0]
        elif self.positives == "labels":
            labels = check_array("beside", _given(step), ndim=1, shape=(len(z),), dtypes="iu")
        return self.weight * info_nce(z, other, temperature=self.temperature, labels=labels)


def _given(step: Step) -> Any:
    if step.beside is None:
        raise InputError("beside: got none, want partners or labels: SAETrainer.fit(x, beside=...)")
    return step.beside if isinstance(step.beside, Tensor) else torch.as_tensor(step.beside)

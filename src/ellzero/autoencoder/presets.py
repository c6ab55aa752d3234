"""Variants of the sparse autoencoder: each a row of parts with its defaults in view.

Lives here: ``relu_l1``, ``topk``, ``batchtopk``, and ``preset`` to find one by name. Does not live here: code of any
part. All take ``(d_in, d_sae, k)`` first, ``k`` being the number of latents active on a row, on average at least.
"""

from __future__ import annotations

from collections.abc import Callable

from ellzero.autoencoder.model import CalibratedThreshold, SparseAutoencoder, UnitNorm
from ellzero.autoencoder.objective import L1, AuxK, SquaredError
from ellzero.errors import check_choice, check_integer
from ellzero.parts.constraints import BatchTopK, Threshold, TopK
from ellzero.parts.gradients import Masked
from ellzero.registry import register

__all__ = ["batchtopk", "preset", "relu_l1", "topk"]


@register(kind="preset", wing="autoencoder", source="arXiv:2309.08600", extra="torch", example=lambda: relu_l1(4, 8, 2))
def relu_l1(d_in: int, d_sae: int, k: int = 32, *, alpha: float = 0.01, seed: int = 0) -> SparseAutoencoder:
    """Rectified codes under an L1 price that is steered until ``k`` are active on average. Cunningham et al. (2023).

    ``alpha`` is the price at the start: a low one, since latents that a high one silences do not come back.
    """
    check_integer("k", k, at_least=1, at_most=d_sae)
    return SparseAutoencoder(
        d_in, d_sae, select=Threshold(0.0), gradient=Masked(), decoder=UnitNorm(),
        objective=[SquaredError(), L1(alpha, target=k)], architecture="standard", seed=seed,
    )  # fmt: skip


@register(
    kind="preset", wing="autoencoder", id="S136", source="arXiv:2406.04093", extra="torch",
    claim="a cleaner frontier of fidelity against sparsity than ReLU + L1", example=lambda: topk(4, 8, 2),
)  # fmt: skip
def topk(d_in: int, d_sae: int, k: int = 32, *, dead_after: int = 10_000_000, seed: int = 0) -> SparseAutoencoder:
    """The ``k`` largest activations of each row; dead latents learn from the error. Gao et al. (2024)."""
    return SparseAutoencoder(
        d_in, d_sae, select=TopK(k), gradient=Masked(), decoder=UnitNorm(),
        objective=[SquaredError(), AuxK(1 / 32, max(d_in // 2, 1), dead_after)], architecture="topk", seed=seed,
    )  # fmt: skip


@register(
    kind="preset", wing="autoencoder", source="arXiv:2412.06410", extra="torch", example=lambda: batchtopk(4, 8, 2),
    claim="at equal mean L0 a better reconstruction than TopK",
)  # fmt: skip
def batchtopk(d_in: int, d_sae: int, k: int = 32, *, dead_after: int = 10_000_000, seed: int = 0) -> SparseAutoencoder:
    """``k`` activations per row on average over the batch, at inference a threshold. Bussmann et al. (2024)."""
    return SparseAutoencoder(
        d_in, d_sae, select=BatchTopK(k), gradient=Masked(), infer=CalibratedThreshold(k), decoder=UnitNorm(),
        objective=[SquaredError(), AuxK(1 / 32, max(d_in // 2, 1), dead_after)], architecture="jumprelu", seed=seed,
    )  # fmt: skip


PRESETS = {"relu_l1": relu_l1, "topk": topk, "batchtopk": batchtopk}


def preset(name: str) -> Callable[..., SparseAutoencoder]:
    """The preset of that name; ``InputError`` with the nearest one otherwise."""
    return PRESETS[check_choice("preset", name, PRESETS)]

"""Variants of the sparse autoencoder: each a row of parts with its defaults in view.

Lives here: the presets, and ``preset`` to find one by name. Does not live here: code of any part. All take
``(d_in, d_sae, k)`` first, ``k`` being the number of latents active on a row, on average at least. ``dead_after`` is
the number of rows without firing after which a latent counts as dead; ``inputs``, which every preset takes, how inputs
are normalised (``ellzero.autoencoder.inputs``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ellzero.autoencoder.adaptive import AdaptiveTopK, ProbeLoss, RelativeL1
from ellzero.autoencoder.afa import PrefixNorm
from ellzero.autoencoder.choice import AuxZipf, FeatureChoice
from ellzero.autoencoder.contrastive import Contrastive
from ellzero.autoencoder.encoders import Gated, Linear
from ellzero.autoencoder.gradient_aware import GradientAware
from ellzero.autoencoder.inputs import check_inputs
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.nested import NestedReconstruction
from ellzero.autoencoder.objective import L0, L1, AuxK, GateReconstruction, NormMatch, SquaredError
from ellzero.autoencoder.pursuit import MatchingPursuit
from ellzero.autoencoder.selectors import CalibratedThreshold, Jump, LatentThresholds, ScheduledTopK
from ellzero.errors import InputError, check_choice, check_integer
from ellzero.parts.constraints import BatchTopK, Threshold, TopK
from ellzero.parts.gradients import Rectangle
from ellzero.parts.schedules import Linear as LinearSchedule
from ellzero.registry import register

__all__ = [
    "abs_topk", "adaptive_k", "batchtopk", "csr", "feature_choice", "g_sae", "gated", "hierarchical_topk", "jumprelu",
    "k_sparse", "matryoshka", "mp_sae", "msae", "mutual_choice", "preset", "relu_l1", "top_afa", "topk",
]  # fmt: skip

PRESETS: dict[str, Callable[..., SparseAutoencoder]] = {}


def variant(name: str, source: str, id: str | None = None, claim: str | None = None) -> Callable[[Any], Any]:
    """Checks the sizes that every preset takes, registers it and lists it under its name."""

    def add(build: Callable[..., SparseAutoencoder]) -> Callable[..., SparseAutoencoder]:
        @functools.wraps(build)
        def checked(
            d_in: int, d_sae: int, k: int = 32, *, inputs: Any = None, **options: Any
        ) -> SparseAutoencoder:  # fmt: skip
            check_integer("d_in", d_in, at_least=1)
            check_integer("d_sae", d_sae, at_least=1)
            sae = build(d_in, d_sae, check_integer("k", k, at_least=1, at_most=d_sae), **options)
            sae.inputs, sae.preset = check_inputs(inputs), name
            return sae

        PRESETS[name] = checked
        return register(
            kind="preset", wing="autoencoder", id=id, source=source, extra="torch", claim=claim,
            example=lambda: checked(4, 8, 2),
        )(checked)  # fmt: skip

    return add


def _revive(d_in: int, dead_after: int) -> AuxK:
    return AuxK(1 / 32, max(d_in // 2, 1), dead_after)


@variant("relu_l1", "arXiv:2309.08600")
def relu_l1(d_in: int, d_sae: int, k: int = 32, *, alpha: float = 0.01, seed: int = 0) -> SparseAutoencoder:
    """Rectified codes under an L1 price that is steered until ``k`` are active on average. Cunningham et al. (2023).

    ``alpha`` is the price at the start: a low one, since latents that a high one silences do not come back.
    """
    return SparseAutoencoder(
        d_in, d_sae, select=Threshold(0.0), objective=[SquaredError(), L1(alpha, target=k)], seed=seed
    )


@variant("gated", "arXiv:2404.16014", claim="half the active latents of ReLU + L1 at equal fidelity")
def gated(d_in: int, d_sae: int, k: int = 32, *, alpha: float = 0.01, seed: int = 0) -> SparseAutoencoder:
    """A gate says which latents are on, a rescaled copy how strongly; only the gate is priced. Rajamanoharan (2024).

    The L1 price on the rectified gate is steered until ``k`` are active on average.
    """
    return SparseAutoencoder(
        d_in, d_sae, encoder=Gated(), select=Threshold(0.0), architecture="gated", seed=seed,
        objective=[SquaredError(), L1(alpha, target=k, of="gate"), GateReconstruction()],
    )  # fmt: skip


@variant("topk", "arXiv:2406.04093", "S136", "a cleaner frontier of fidelity against sparsity than ReLU + L1")
def topk(
    d_in: int, d_sae: int, k: int = 32, *, multi: bool = False, dead_after: int = 10_000_000, seed: int = 0
) -> SparseAutoencoder:
    """The ``k`` largest activations of each row; dead latents learn from the error. Gao et al. (2024).

    ``multi`` adds an eighth of the loss at ``4 k`` active latents, which keeps the code useful at other ``k``.
    """
    error = NestedReconstruction((k, min(4 * k, d_sae)), (1.0, 1 / 8), axis="rank") if multi else SquaredError()
    return SparseAutoencoder(
        d_in, d_sae, select=TopK(k), objective=[error, _revive(d_in, dead_after)], architecture="topk", seed=seed
    )


@variant("batchtopk", "arXiv:2412.06410", claim="at equal mean L0 a better reconstruction than TopK")
def batchtopk(d_in: int, d_sae: int, k: int = 32, *, dead_after: int = 10_000_000, seed: int = 0) -> SparseAutoencoder:
    """``k`` activations per row on average over the batch, at inference a threshold. Bussmann et al. (2024)."""
    return SparseAutoencoder(
        d_in, d_sae, select=BatchTopK(k), infer=CalibratedThreshold(k), architecture="jumprelu", seed=seed,
        objective=[SquaredError(), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("jumprelu", "arXiv:2407.14435", "S147", "at equal L0 as good a reconstruction as TopK or better")
def jumprelu(
    d_in: int, d_sae: int, k: int = 32, *, alpha: float = 0.001, bandwidth: float = 0.05, initial: float = 0.05,
    log: bool = False, warm: float = 0.2, seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """A threshold for each latent, learnt on the number of active ones. Rajamanoharan et al. (2024).

    The L0 price grows to ``alpha`` over the first ``warm`` of the run and is steered until ``k`` are active on average.
    ``bandwidth`` and ``initial`` are in units of inputs whose mean square is 1 per feature. The paper has 0.001 for
    both, of inputs whose whole mean square is 1, and ``log`` thresholds; runs of some hundred steps need more room.

    Measured on a language model of width 128 (512 latents, 500 steps of 512 rows, 3 seeds): 0.131 of the variance
    unexplained at L0 33.9, where TopK leaves 0.127 at 32; not better than TopK in so short a run.
    """
    return SparseAutoencoder(
        d_in, d_sae, encoder=Linear("signed"), select=Jump(initial, log), gradient=Rectangle(bandwidth),
        objective=[SquaredError(), L0(alpha, target=k, warm=warm)], architecture="jumprelu", seed=seed,
        recommended={"betas": (0.0, 0.999)},
    )  # fmt: skip


@variant("k_sparse", "arXiv:1312.5663", "S033", "features that classify digits better than pixels or PCA")
def k_sparse(
    d_in: int, d_sae: int, k: int = 32, *, start: int | None = None, factor: int = 1, seed: int = 0
) -> SparseAutoencoder:
    """The ``k`` largest signed activations, tied weights without norm constraint. Makhzani and Frey (2013).

    Training begins with ``start`` active latents (100, or ``k`` if that is more) and comes down to ``k`` over its first
    half, so that none dies; ``factor * k`` are kept in evaluation mode, 1 to 3 in the paper.

    Measured on 10,000 MNIST digits (1000 units, k 25, factor 3, 2 seeds): a logistic regression on the codes 94.8 %, on
    pixels 90.3, on 64 principal components 90.7.
    """
    check_integer("factor", factor, at_least=1)
    first = min(max(k, 100), d_sae) if start is None else check_integer("start", start, at_least=k, at_most=d_sae)
    return SparseAutoencoder(
        d_in, d_sae, encoder=Linear("signed", centred=False, tied=True), decoder=None, architecture="topk", seed=seed,
        select=ScheduledTopK(LinearSchedule(float(first), float(k), 0.0, 0.5), k), infer=TopK(min(factor * k, d_sae)),
        objective=[SquaredError()],
    )  # fmt: skip


@variant("abs_topk", "arXiv:2510.00404", "S094", "one signed latent for the two directions of a feature")
def abs_topk(d_in: int, d_sae: int, k: int = 32, *, dead_after: int = 10_000_000, seed: int = 0) -> SparseAutoencoder:
    """The ``k`` pre-activations of largest magnitude, with their signs. AbsTopK (2025).

    Measured on planted features of either sign (1 seed): mean correlation with them 0.97, of TopK 0.73, of TopK with
    twice the latents 1.00; on a language model level with TopK.
    """
    return SparseAutoencoder(
        d_in, d_sae, encoder=Linear("absolute"), select=TopK(k), architecture="topk", seed=seed,
        objective=[SquaredError(), _revive(d_in, dead_after)],
    )  # fmt: skip


def _widths(d_sae: int, groups: int) -> tuple[int, ...]:
    """Prefixes that double up to the whole width."""
    return tuple(sorted({max(d_sae >> j, 1) for j in range(groups)}))


@variant("matryoshka", "arXiv:2503.17547", "S080", "general latents are not absorbed by special ones")
def matryoshka(
    d_in: int, d_sae: int, k: int = 32, *, levels: Sequence[int] | None = None, bias: bool = False,
    dead_after: int = 10_000_000, seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """BatchTopK whose first latents reconstruct by themselves too. Bussmann et al. (2025).

    ``levels`` are the cumulative widths, five that double up to ``d_sae`` by default; ``bias`` counts ``b_dec`` alone
    as one more level, as the authors' code does.

    Measured on planted trees without noise (3 seeds): the parent's latent fires on 0.87 of the rows with parent and
    child, that of BatchTopK on 0.45; 0.003 of the variance unexplained, against none.
    """
    levels = _widths(d_sae, 5) if levels is None else tuple(levels)
    if levels[-1] != d_sae:
        raise InputError(f"levels: got {levels}, want them to end with d_sae, {d_sae}")
    return SparseAutoencoder(
        d_in, d_sae, select=BatchTopK(k), infer=CalibratedThreshold(k), architecture="jumprelu", seed=seed,
        objective=[NestedReconstruction(levels, axis="prefix", bias=bias), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("msae", "arXiv:2502.20578", "S096", "one autoencoder that is good at every number of active latents")
def msae(
    d_in: int, d_sae: int, k: int = 32, *, levels: Sequence[int] | None = None, decreasing: bool = False, seed: int = 0
) -> SparseAutoencoder:
    """The error at several numbers of active latents, doubling up to the width. Zaigrajew et al. (2025).

    ``levels`` run from ``k / 4`` up to ``d_sae`` by doubling unless given. ``decreasing`` weighs them n, n - 1, ..., 1
    from the sparsest. In evaluation mode ``k`` are active; ``sae.at(k)`` sets another number.

    Measured on a language model of width 128 (levels and k of 4, 8, 16, 32; 2 seeds): 0.275, 0.214, 0.168, 0.138 of the
    variance unexplained, where TopK trained at 16 leaves 0.371, 0.240, 0.172, 0.147.
    """
    if levels is None:
        first = max(k // 4, 1)
        levels = sorted({min(first << j, d_sae) for j in range((d_sae // first).bit_length() + 1)})
    n = len(levels)
    weights = tuple((n - j if decreasing else 1.0) / (n * (n + 1) / 2 if decreasing else n) for j in range(n))
    nested = NestedReconstruction(tuple(levels), weights, axis="rank", error="normalised")
    return SparseAutoencoder(d_in, d_sae, select=TopK(k), objective=[nested], architecture="topk", seed=seed)


@variant("hierarchical_topk", "arXiv:2505.24473", "S082", "one autoencoder on the frontier of one for each k")
def hierarchical_topk(
    d_in: int, d_sae: int, k: int = 32, *, levels: Sequence[int] | None = None, dead_after: int = 10_000_000,
    seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """The mean error over every number of active latents up to ``2 k``, or over ``levels``. HierarchicalTopK (2025).

    In evaluation mode ``k`` are active; ``sae.at(k)`` sets another number.

    Measured on a language model of width 128 (k of 4, 8, 16, 32; 2 seeds): 0.278, 0.215, 0.165, 0.133 of the variance
    unexplained, where TopK trained at 16 leaves 0.371, 0.240, 0.172, 0.147; those trained at 4 and 32 0.257 and 0.128.
    At 64 of 128 dimensions it is 0.094, against 0.055 of a TopK made for that.
    """
    levels = tuple(range(1, min(2 * k, d_sae) + 1)) if levels is None else tuple(levels)
    return SparseAutoencoder(
        d_in, d_sae, select=TopK(k), architecture="topk", seed=seed,
        objective=[NestedReconstruction(levels, axis="rank"), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("mp_sae", "arXiv:2506.03093", "S068", "finds features that are orthogonal only under a condition")
def mp_sae(
    d_in: int, d_sae: int, k: int = 32, *, tolerance: float = 0.0, absolute: bool = False, seed: int = 0
) -> SparseAutoencoder:
    """``k`` steps of matching pursuit in the encoder's place. MP-SAE (2025).

    A row stops early once what is left is at most ``tolerance`` of it; ``absolute`` allows signed codes. ``sae.at(k)``
    sets another number of steps, and what is left never grows with them.
    """
    return SparseAutoencoder(
        d_in, d_sae, encoder=MatchingPursuit(tolerance, absolute), select=TopK(k), objective=[SquaredError()],
        architecture="matching_pursuit", seed=seed,
    )  # fmt: skip


@variant("mutual_choice", "arXiv:2411.02124", "S081", "fewer dead latents and a lower error than TopK at equal L0")
def mutual_choice(
    d_in: int, d_sae: int, k: int = 32, *, share: float = 0.1, dead_after: int = 10_000_000, seed: int = 0
) -> SparseAutoencoder:
    """BatchTopK; latents that fire less than ``share`` of what Zipf's law expects learn from the error. Ayonrinde."""
    return SparseAutoencoder(
        d_in, d_sae, select=BatchTopK(k), infer=CalibratedThreshold(k), architecture="jumprelu", seed=seed,
        objective=[SquaredError(), AuxZipf(1 / 32, max(d_in // 2, 1), dead_after, share)],
    )  # fmt: skip


@variant("feature_choice", "arXiv:2411.02124", "S081", "no dead latents")
def feature_choice(
    d_in: int, d_sae: int, k: int = 32, *, allocation: str = "zipf", gamma: float | None = None, beta: float = 0.0,
    after: float = 0.5, share: float = 0.1, dead_after: int = 10_000_000, seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """Each latent chooses its rows, ``k`` per row in all, after mutual choice for the first half. Ayonrinde (2024).

    The frequent latents may choose more, by Zipf's law: of ``gamma`` and ``beta``, or fitted to the first half. At
    inference each latent has a threshold.
    """
    select = FeatureChoice(k, allocation, gamma, beta, after)
    return SparseAutoencoder(
        d_in, d_sae, select=select, infer=LatentThresholds(select), architecture="jumprelu", seed=seed,
        objective=[SquaredError(), AuxZipf(1 / 32, max(d_in // 2, 1), dead_after, share)],
    )  # fmt: skip


@variant("adaptive_k", "arXiv:2508.17320", "S165", "at equal mean L0 a better reconstruction than TopK")
def adaptive_k(
    d_in: int, d_sae: int, k: int = 32, *, k_min: int | None = None, k_max: int | None = None, alpha: float = 0.005,
    dead_after: int = 10_000_000, seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """More latents for complex rows: ``k_min`` to ``k_max`` by a linear probe, ``k`` on average. AdaptiveK (2025).

    ``fit_probe(sae, x, complexity)`` comes before training, and ``SAETrainer.fit(x, beside=complexity)`` lets the probe
    learn on in the last tenth. ``k / 4`` and ``4 k`` unless given, a ratio as that of the paper's 20 and 320.
    """
    k_min, k_max = max(k // 4, 1) if k_min is None else k_min, min(4 * k, d_sae) if k_max is None else k_max
    return SparseAutoencoder(
        d_in, d_sae, select=AdaptiveTopK(k_min, k_max, float(k)), architecture="adaptive_topk", seed=seed,
        objective=[SquaredError(), RelativeL1(alpha), ProbeLoss(), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("top_afa", "arXiv:2503.24277", "S107", "finds how many latents a row needs by itself")
def top_afa(
    d_in: int, d_sae: int, k: int = 32, *, weight: float = 0.1, dead_after: int = 10_000_000, seed: int = 0
) -> SparseAutoencoder:
    """The largest latents, until their norm is the input's. top-AFA (2025).

    The number active is what the norms ask for, often many, and ``k`` says nothing. ``weight`` is that of the squared
    difference of the norms. With planted orthogonal features the number is the true one. The paper's reconstruction as
    good as TopK's did not show on activations of width 128: 151 of 256 latents were active, and 1.7 times as much was
    left unexplained as by TopK with as many (0.052 and 0.030 after 150 steps of 256 rows).
    """
    return SparseAutoencoder(
        d_in, d_sae, select=PrefixNorm(), architecture="top_afa", seed=seed,
        objective=[SquaredError(), NormMatch(weight), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("g_sae", "arXiv:2411.10397", "S078", "a spliced model loses less than with TopK")
def g_sae(
    d_in: int, d_sae: int, k: int = 32, *, beta: float = 1.0, form: str = "multiply", dead_after: int = 10_000_000,
    seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """The ``k`` latents that are large and that a model's loss feels. g-SAE (2024).

    ``with_gradients`` gives rows and gradients for ``SAETrainer.fit(x, beside=gradients)``. Without gradients beside
    them, as at inference, rows keep their ``k`` largest latents.
    """
    return SparseAutoencoder(
        d_in, d_sae, select=TopK(k), score=GradientAware(beta, form), architecture="topk", seed=seed,
        objective=[SquaredError(), _revive(d_in, dead_after)],
    )  # fmt: skip


@variant("csr", "arXiv:2503.01776", "S088", "codes of k entries that search better than embeddings cut to k")
def csr(
    d_in: int, d_sae: int, k: int = 32, *, positives: str = "ranks", weight: float = 0.1, temperature: float = 0.2,
    dead_after: int = 30 * 4096, seed: int = 0,
) -> SparseAutoencoder:  # fmt: skip
    """Sparse codes of embeddings for search, tied weights and a contrastive term of ``weight``. CSR (2025).

    ``positives`` and ``temperature`` as for ``Contrastive``; partners or labels go to ``SAETrainer.fit(x, beside=)``.
    """
    levels = (k, min(4 * k, d_sae)) if k < d_sae else (k,)
    return SparseAutoencoder(
        d_in, d_sae, encoder=Linear(tied=True), select=TopK(k), decoder=None, architecture="topk", seed=seed,
        objective=[
            NestedReconstruction(levels, (1.0, 1 / 8)[: len(levels)], axis="rank"), AuxK(1 / 32, 512, dead_after),
            Contrastive(weight, temperature, positives),
        ], recommended={"lr": 4e-4},
    )  # fmt: skip


def preset(name: str) -> Callable[..., SparseAutoencoder]:
    """The preset of that name; ``InputError`` with the nearest one otherwise."""
    return PRESETS[check_choice("preset", name, PRESETS)]

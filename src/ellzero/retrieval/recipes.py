"""How the learned sparse retrievers are trained: one value for each paper, with its defaults in view.

Lives here: ``TrainingRecipe`` and one registered function for each published way, ``RECIPES``. Does not live here: the
heads (``presets``), losses, mining, and the run of a recipe over a collection (``from_corpus``).
Learning rates and steps are for heads on a frozen sentence encoder; a paper's own, for the whole model, are in its
function's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.parts.activity import Flops, L0Mask
from ellzero.registry import register
from ellzero.retrieval.losses import DistilKL, InfoNCE, MarginMSE, SpladeLoss
from ellzero.retrieval.presets import METHODS, RetrievalMethod

__all__ = ["RECIPES", "RETRIEVERS", "TEACHERS", "TrainingRecipe", "recipe"]

RETRIEVERS = ("random", "bm25", "dense", "self")
TEACHERS = ("dense", "bm25")


@dataclass(frozen=True, eq=False)
class TrainingRecipe:
    """What is trained, on which candidates, from whom.

    Parameters
    ----------
    method : heads, pooling and saturation.
    loss : a ``SpladeLoss``.
    negatives : whose best documents hard negatives are drawn from, of ``RETRIEVERS``: several take turns. ``"self"`` is
        the encoder of the round before (the untrained one, in the first).
    hard : so many negatives of each query, drawn from the best ``depth``; 0 for the batch's other documents alone.
    rounds : of mining and training; each begins with a fresh encoder.
    teachers : of ``TEACHERS``, scaled over each list and averaged; none where the loss needs none.
    shares : of the teachers in the mean, of sum 1; None for equal ones. scale : of the result.
    below : a candidate whose teacher's score exceeds this share of the positive's is no negative; None to keep all.
    positive : whether the answer is among the candidates. Where queries are cut out of the documents it is too easy,
        and the student learns from how the teacher orders the others.
    candidates, columns, lr, rates, steps, batch_size : of ``SparseTrainer``.
    """

    method: RetrievalMethod
    loss: SpladeLoss
    negatives: tuple[str, ...] = ()
    hard: int = 0
    depth: int = 50
    rounds: int = 1
    teachers: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None
    scale: float = 10.0
    below: float | None = None
    positive: bool = True
    candidates: str = "positives"
    columns: int | None = None
    lr: float = 1e-3
    rates: Mapping[str, float] = field(default_factory=dict)
    steps: int = 160
    batch_size: int = 16

    def __post_init__(self):
        for name in self.negatives:
            check_choice("negatives", name, RETRIEVERS)
        for name in self.teachers:
            check_choice("teachers", name, TEACHERS)
        check_integer("hard", self.hard, at_least=0)
        check_integer("depth", self.depth, at_least=max(self.hard, 1))
        check_integer("rounds", self.rounds, at_least=1)
        check("scale", self.scale, above=0, below=float("inf"))
        if self.below is not None:
            check("below", self.below, above=0, at_most=1)
        if bool(self.hard) != bool(self.negatives):
            raise InputError(f"hard: got {self.hard} of {self.negatives or 'nobody'}, want both or neither")
        if not self.positive and (self.hard < 2 or not self.teachers or self.candidates == "positives"):
            raise InputError("positive: without it, want teachers, hard of 2 or more, and candidates 'own' or 'all'")

    def penalised(self, factor: float) -> TrainingRecipe:
        """The same with penalties of that many times the weight: the dial between quality and terms."""
        check("factor", factor, at_least=0, below=float("inf"))
        loss = replace(
            self.loss, query_weight=self.loss.query_weight * factor, document_weight=self.loss.document_weight * factor
        )
        return replace(self, loss=loss)


RECIPES: dict[str, Callable[..., TrainingRecipe]] = {}
# Gains and biases move faster than the matrices of a head.
_RATES = {"*gain": 10.0, "*bias": 10.0}


def _recipe(**about: Any) -> Callable[[Callable[..., TrainingRecipe]], Callable[..., TrainingRecipe]]:
    def add(make: Callable[..., TrainingRecipe]) -> Callable[..., TrainingRecipe]:
        RECIPES[make.__name__] = make
        return register(kind="recipe", wing="retrieval", extra="hf", example=make, name=f"train_{make.__name__}",
                        **about)(make)  # fmt: skip

    return add


def recipe(name: str, **options: Any) -> TrainingRecipe:
    """The recipe of that name; hyphens count as underscores."""
    known = name.replace("-", "_") if isinstance(name, str) else name
    return RECIPES[check_choice("recipe", known, RECIPES)](**options)


@_recipe(id="S054", source="arXiv:2107.05720")
def splade(query_weight: float = 3e-3, document_weight: float = 1e-3) -> TrainingRecipe:
    """InfoNCE with one BM25 negative and the batch's positives, FLOPs on both sides. Formal et al. (2021a).

    The whole model: Adam 2e-5, 150,000 steps of 124, warm-up 6,000, the ramp over 50,000.
    """
    return TrainingRecipe(
        METHODS["splade"], SpladeLoss(InfoNCE(), Flops(), Flops(), query_weight, document_weight),
        negatives=("bm25",), hard=1, rates=_RATES,
    )  # fmt: skip


@_recipe(id="S144", source="arXiv:2109.10086")
def splade_v2(query_weight: float = 1e-2, document_weight: float = 8e-3) -> TrainingRecipe:
    """MarginMSE in two rounds, the second on negatives that the first one's student mined. Formal et al. (2021b).

    The whole model: as ``splade``, 250,000 steps, margins of a cross-encoder.
    """
    return TrainingRecipe(
        METHODS["splade_v2"], SpladeLoss(MarginMSE(), Flops(), Flops(), query_weight, document_weight),
        negatives=("bm25", "self"), hard=3, rounds=2, teachers=("dense", "bm25"), candidates="own", rates=_RATES,
    )  # fmt: skip


@_recipe(id="S044", source="arXiv:2205.04733", claim="a stronger teacher on mined negatives beats random ones")
def splade_pp(query_weight: float = 1e-2, document_weight: float = 8e-3) -> TrainingRecipe:
    """MarginMSE on negatives of an ensemble: BM25, dense, the student's last round. Formal et al. (2022).

    The whole model: MarginMSE of a cross-encoder, weights 0.1 and 0.08, 150,000 steps of 128, 2e-5, decay 0.01. Heads
    alone, 240 documents and 10 queries of MED, three seeds: nDCG@10 0.731 against 0.693 with random negatives; BM25
    negatives without a teacher gain nothing (0.688).
    """
    return TrainingRecipe(
        METHODS["splade_v2"], SpladeLoss(MarginMSE(), Flops(), Flops(), query_weight, document_weight),
        negatives=("bm25", "dense", "self"), hard=3, rounds=2, teachers=("dense", "bm25"), below=0.95,
        candidates="own", rates=_RATES,
    )  # fmt: skip


@_recipe(id="S144", source="arXiv:2109.10086")
def splade_doc(document_weight: float = 1e-3) -> TrainingRecipe:
    """Binary queries; InfoNCE with one BM25 negative, FLOPs of documents. Formal et al. (2021b), section 3.2."""
    return TrainingRecipe(
        METHODS["splade_doc"], SpladeLoss(InfoNCE(), None, Flops(), document_weight=document_weight),
        negatives=("bm25",), hard=1, columns=512, rates=_RATES,
    )  # fmt: skip


@_recipe(id="S069", source="arXiv:2106.14807")
def unicoil() -> TrainingRecipe:
    """InfoNCE with seven BM25 negatives, no penalty: the input's own terms are few. Lin and Ma (2021)."""
    return TrainingRecipe(
        METHODS["unicoil"], SpladeLoss(InfoNCE()), negatives=("bm25",), hard=7, lr=5e-3, rates={"*bias": 2.0},
    )  # fmt: skip


@_recipe(id="S073", source="arXiv:2411.04403", claim="idf in the score and teachers of two kinds train a head without "
         "queries' inference")  # fmt: skip
def inference_free(document_weight: float = 5e-2) -> TrainingRecipe:
    """IDF queries; KL to a dense and a sparse teacher over mined candidates, FLOPs of documents. Geng et al. (2024).

    The whole model: pre-training with in-batch lists, then this; 2e-5 to 5e-5.
    """
    return TrainingRecipe(
        METHODS["inference_free"], SpladeLoss(DistilKL(), None, Flops(), document_weight=document_weight),
        negatives=("dense", "bm25"), hard=5, teachers=("dense", "bm25"), shares=(0.7, 0.3), candidates="own",
        columns=300, rates=_RATES,
    )  # fmt: skip


@_recipe(id="S098", source="arXiv:2504.14839")
def l0_mask(document_weight: float = 5e-2, threshold: int = 128) -> TrainingRecipe:
    """``inference_free`` whose penalty spares documents of at most ``threshold`` terms. Geng et al. (2025)."""
    base = inference_free()
    penalty = L0Mask(Flops(), threshold)
    return replace(
        base, loss=replace(base.loss, document_penalty=penalty, document_weight=document_weight), columns=None
    )


@_recipe(id="S098", source="arXiv:2504.14839")
def l0_activation(document_weight: float = 5e-2) -> TrainingRecipe:
    """``inference_free`` with ``log(1 + log(1 + relu))``, so that the penalty acts on counts. Geng et al. (2025)."""
    base = inference_free(document_weight)
    return replace(base, method=replace(base.method, saturation="log1p_log1p"))


@_recipe(id="S098", source="arXiv:2504.14839")
def l0_both(document_weight: float = 5e-2, threshold: int = 128) -> TrainingRecipe:
    """``l0_mask`` and ``l0_activation`` together."""
    base = l0_mask(document_weight, threshold)
    return replace(base, method=replace(base.method, saturation="log1p_log1p"))


@_recipe(id="S054", source="arXiv:2107.05720")
def label_free(document_weight: float = 5e-2) -> TrainingRecipe:
    """IDF queries cut out of the documents, taught by the body's own cosines and BM25; no label is seen.

    From all-MiniLM-L6-v2 on MED, texts cut to 128 tokens, three seeds: nDCG@10 0.752, 0.725, 0.717 at 100 to 110 terms
    a document, BM25 0.700; the settings were chosen among eight by the same queries. On Cranfield a neighbouring
    setting (weight 0.03, 160 tokens, one seed) stayed behind BM25: 0.32 to 0.37.
    """
    return replace(inference_free(document_weight), positive=False, negatives=("dense",))

"""What a language model loses when it reads an autoencoder's reconstruction in the place of its own activations.

Lives here: ``cross_entropy_recovered`` and ``SplicedLoss``. Does not live here: the splice itself (``splice``), scores
of the reconstruction alone (``metrics``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.autoencoder.splice import attach
from ellzero.errors import InputError, check_choice
from ellzero.models.activations import ActivationStream, evaluating
from ellzero.registry import register

__all__ = ["SplicedLoss", "cross_entropy_recovered", "logits", "predicts_next"]

ABLATIONS = ("mean", "zero")
# Positions whose logits are looked at together: 200 MB of float32 for 50,000 tokens.
_ROWS = 1024
# Entries of the codes of one forward pass: 256 MB of float32.
_BLOCK = 2**26


@dataclass(frozen=True)
class SplicedLoss:
    """Losses in nats per token, over ``tokens`` predictions."""

    recovered: float
    """``(ablated - spliced) / (ablated - cross_entropy)``: 1 where nothing is lost, 0 where as much as by ablation.

    NaN where the ablation makes no difference.
    """
    cross_entropy: float
    """Of the model as it is."""
    spliced: float
    """With the reconstruction in the place of the activation."""
    ablated: float
    """With the activation ablated."""
    delta: float
    """``spliced - cross_entropy``."""
    kl: float
    """``KL(as it is || spliced)`` of the predictions."""
    ablation: str
    """``"mean"`` or ``"zero"``."""
    tokens: int
    """How many predictions."""
    special_tokens: bool
    """Whether special tokens were spliced and predicted too."""

    @property
    def statement(self) -> str:
        """One line that says what was measured."""
        ablated = "the mean" if self.ablation == "mean" else "zeros"
        special = "special tokens included" if self.special_tokens else "special tokens left as they are"
        return (
            f"{self.recovered:.4f} of the cross-entropy recovered against {ablated} in the place of the activations "
            f"({self.cross_entropy:.4f} nats per token as it is, {self.spliced:.4f} spliced, {self.ablated:.4f} "
            f"ablated; KL {self.kl:.4f}; {self.tokens} predictions, {special})"
        )


@register(kind="metric", wing="autoencoder", source="arXiv:2406.04093", id="S136", extra="torch")
@torch.no_grad()
def cross_entropy_recovered(
    model: nn.Module,
    hook: str,
    sae: Any,
    *,
    texts: Iterable[str] | None = None,
    tokens: Iterable[Sequence[int]] | None = None,
    tokenizer: Any = None,
    ablation: str = "mean",
    context: int | None = None,
    sequences: int | None = None,
    drop_bos: bool = True,
) -> SplicedLoss:
    """How much of a language model's next-token loss survives the reconstruction at one module.

    Parameters
    ----------
    model : gives logits ``[batch, time, vocabulary]`` of the next token, or an output with ``logits``.
    hook : the module, as ``ellzero.models.sites.locate`` reads it.
    sae : anything with ``d_in``, ``encode`` and ``decode``, in the mode it is in.
    texts, tokens, tokenizer, context : as for ``ActivationStream``; give held-out ones.
    sequences : windows per forward pass; by default 16, or as many as codes fit into 256 MB.
    ablation : what recovery is measured against: the activations' ``"mean"`` over these tokens, or ``"zero"``. The
        latter is the weaker baseline, and makes recovery look better.
    drop_bos : leave special tokens as they are, and count no prediction of or from one.

    Raises
    ------
    InputError : no text, a model without such logits, or an autoencoder of another width.
    """
    check_choice("ablation", ablation, ABLATIONS)
    if not predicts_next(model):
        raise InputError(f"model: got {type(model).__name__}, want a model that predicts the next token")
    if sequences is None:  # the codes of one forward pass must fit into memory
        sequences = min(max(_BLOCK // ((context or 128) * getattr(sae, "d_sae", 1)), 1), 16)
    stream = ActivationStream(
        model, hook=hook, texts=texts, tokens=tokens, tokenizer=tokenizer, context=context, sequences=sequences,
        drop_bos=drop_bos,
    )  # fmt: skip
    constant = _Constant(_mean(stream) if ablation == "mean" else torch.zeros(sae.d_in))
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    with evaluating(model):
        for tokens_in, keywords, counts, _ in stream.passes():
            here = torch.from_numpy(counts).to(tokens_in.device)
            predicted = here[:, :-1] & here[:, 1:]
            if not bool(predicted.any()):
                continue
            targets = tokens_in[:, 1:][predicted]
            found = [logits(model, tokens_in, keywords)[:, :-1][predicted]]
            for part in (sae, constant):
                with attach(model, {stream.name: part}, error_term=False, positions=here):
                    found.append(logits(model, tokens_in, keywords)[:, :-1][predicted])
            sums += _losses(found, targets)
            count += len(targets)
    if count == 0:
        raise InputError("texts: got no two tokens that follow each other, want longer ones")
    plain, spliced, ablated, kl = (sums / count).tolist()
    lost = ablated - plain
    recovered = (ablated - spliced) / lost if lost != 0 else float("nan")
    return SplicedLoss(recovered, plain, spliced, ablated, spliced - plain, kl, ablation, count, not drop_bos)


def predicts_next(model: nn.Module) -> bool:
    """Whether a model has a head, and not one for masked tokens; a model of foreign make gets the benefit of doubt."""
    if type(model).__name__.endswith("ForMaskedLM"):
        return False
    return not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is not None


class _Constant:
    """Tells the same whatever comes: an ablation, as an autoencoder."""

    def __init__(self, value: Tensor):
        self.value, self.d_in = value, len(value)

    def encode(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.value.to(z).expand(len(z), -1)


def _mean(stream: ActivationStream) -> Tensor:
    total, count = 0.0, 0
    for rows in stream:
        total, count = total + rows.double().sum(0), count + len(rows)
    return (total / count).float()


def logits(model: nn.Module, tokens: Tensor, keywords: dict[str, Any]) -> Tensor:
    """The next-token logits ``[batch, time, vocabulary]`` of a model of any make."""
    out = model(tokens, **keywords)
    out = getattr(out, "logits", out)
    if not isinstance(out, Tensor) or out.ndim != 3 or out.shape[:2] != tokens.shape:
        raise InputError(
            f"model: {type(model).__name__} gives no logits [batch, time, vocabulary], want a language model"
        )
    return out


def _losses(found: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Sums over rows of three cross-entropies, and of the divergence between the first two."""
    sums = torch.zeros(4, dtype=torch.float64)
    for low in range(0, len(targets), _ROWS):
        logs = [part[low : low + _ROWS].float().log_softmax(-1) for part in found]
        place = targets[low : low + _ROWS, None]
        sums[:3] += torch.stack([-log.gather(1, place).double().sum() for log in logs]).cpu()
        sums[3] += float((logs[0].exp() * (logs[0] - logs[1])).sum(1).double().sum())
    return sums

"""The MLM head that a checkpoint brings along, and one for a body that was trained without.

Lives here: ``mlm_head`` and ``unit_head``. Does not live here: what the heads do (``heads``), reading of folders
(``models.huggingface``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ellzero.errors import InputError
from ellzero.retrieval.backbone import Backbone, is_causal
from ellzero.retrieval.heads import MLMHead, MLMTransform, UnitTransform

__all__ = ["has_mlm_head", "mlm_head", "unit_head"]

# Where a masked language model keeps its dense layer, its norm, its output embeddings and the name of its activation.
FAMILIES = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "hidden_act"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector", "activation"),  # DistilBERT
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", None),  # RoBERTa and those after it
    ("head.dense", "head.norm", "decoder", "classifier_activation"),  # ModernBERT
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", None),  # ELECTRA
)


def has_mlm_head(model: nn.Module) -> bool:
    """Whether a model has logits over its vocabulary."""
    return model.get_output_embeddings() is not None


def mlm_head(backbone: Backbone, make: type[MLMHead] = MLMHead, **options: Any) -> MLMHead:
    """The head of the backbone's own model, its parameters shared and not copied.

    Parameters
    ----------
    make : ``MLMHead`` or ``ClsMLMHead``. options : as for it; with ``columns`` the embeddings are cut, and copied.

    Raises
    ------
    InputError : a model without such a head, or of a family that is not known.
    """
    model = backbone.model
    if not has_mlm_head(model):
        raise InputError(f"model: got {type(model).__name__}, which has no logits; want one such as BertForMaskedLM")
    if is_causal(model):
        transform, out = None, model.get_output_embeddings()
        options = {"positions": "echo" if backbone.echo else "all", **options}
    else:
        transform, out = _borrowed(model)
    weight, bias = out.weight, out.bias
    if (columns := options.get("columns")) is not None:
        at = torch.as_tensor(columns, dtype=torch.int64)
        weight, bias = weight.detach()[at], None if bias is None else bias.detach()[at]
    made = make(weight, bias, transform=transform, vocabulary=len(out.weight), **options)
    made.tied = columns is None
    return made


def _borrowed(model: nn.Module) -> tuple[MLMTransform, nn.Linear]:
    """The transform of a masked language model, its layers the model's own, and its output embeddings."""
    for dense, norm, decoder, act in FAMILIES:
        if all(_has(model, name) for name in (dense, norm, decoder)):
            dense, norm, decoder = (model.get_submodule(name) for name in (dense, norm, decoder))
            activation = getattr(model.config, act) if act else "gelu"
            made = MLMTransform(dense.in_features, dense.out_features, activation, norm.eps, dense.bias is not None)
            made.dense, made.norm = dense, norm
            return made, decoder
    raise InputError(f"model: the head of {type(model).__name__} is of no known family, want one like BERT, "
                     "DistilBERT, RoBERTa, ModernBERT or ELECTRA")  # fmt: skip


def _has(model: nn.Module, name: str) -> bool:
    for part in name.split("."):
        model = getattr(model, part, None)
    return isinstance(model, nn.Module)


def unit_head(
    backbone: Backbone, make: type[MLMHead] = MLMHead, *, gain: float = 3.0, shift: float = -0.2, columns: Any = None,
    **options: Any,
) -> MLMHead:  # fmt: skip
    """A head for a body that was trained without one: logits begin as ``gain (cos(h_i, E_j) + shift)``.

    E are the input embeddings at unit length, and stay as they are. A vocabulary cut to the pieces of the collection
    (``columns``) makes training faster.
    """
    E = F.normalize(backbone.model.get_input_embeddings().weight.detach().float(), dim=1)
    size = len(backbone.vocabulary)
    E = F.pad(E, (0, 0, 0, size - len(E))) if columns is None else E[torch.as_tensor(columns, dtype=torch.int64)]
    if E.shape[1] != backbone.width:
        raise InputError(f"backbone: embeds pieces with {E.shape[1]} entries and has states of {backbone.width}, want "
                         "equal widths, or a model with an MLM head")  # fmt: skip
    head: Head = make(
        E, shift, transform=UnitTransform(backbone.width, gain), vocabulary=size, columns=columns, **options
    )
    head.embeddings.requires_grad_(False)
    return head

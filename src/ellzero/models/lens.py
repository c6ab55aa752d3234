"""What a direction of the residual stream does to the next token, and how tokens are shown to a person.

Lives here: ``logit_lens`` and ``pieces``. Does not live here: any direction, or any page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.models.tokenizer import Tokenizer
from ellzero.models.transformer import Transformer

__all__ = ["logit_lens", "pieces"]

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f")


def logit_lens(model: nn.Module, width: int) -> Callable[[Float[Tensor, "n d"]], Float[Tensor, "n vocabulary"]] | None:
    """A function from directions to the logits that they add, through the final norm and the unembedding.

    ``unembed(norm(v)) - unembed(norm(0))``: the norm forgets the length of ``v``, so only comparisons between tokens
    mean something, and biases that every direction would share are taken out.

    Returns
    -------
    The function, or None where the model has no unembedding of that width, or puts layers between the two.
    """
    if isinstance(model, Transformer):
        norm, weight, bias = model.norm, model.embedding.weight, None
    else:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if not isinstance(head, nn.Linear) or type(model).__name__.endswith("ForMaskedLM"):
            return None
        norm, weight, bias = _final_norm(model), head.weight, head.bias
    if weight.shape[1] != width:
        return None

    @torch.no_grad()
    def lens(directions: Tensor) -> Tensor:
        v = directions.to(weight)
        return F.linear(norm(v), weight, bias) - F.linear(norm(torch.zeros_like(v[:1])), weight, bias)

    return lens


def _final_norm(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm that stands outside all blocks; nothing where there is none."""
    found = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _FINAL_NORMS and not any(part.isdecimal() for part in name.split("."))
    ]
    return found[-1] if found else lambda x: x


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Each token as text by itself; with the space before it where the tokenizer keeps one, or leaves it implied."""
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.decode([t]) or ("<pad>", "<bos>")[t] for t in map(int, tokens)]
    raw = [str(piece) for piece in tokenizer.convert_ids_to_tokens([int(t) for t in tokens])]
    marked = any(piece.startswith(("Ġ", "▁")) for piece in raw)
    out = []
    for token, piece in zip(tokens, raw):
        if piece.startswith("▁"):
            out.append(" " + piece[1:].replace("▁", " "))
        elif piece in tokenizer.all_special_tokens:
            out.append(piece)
        elif marked:  # bytes as letters, or the inside of a word
            out.append(tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) or piece)
        else:  # whole words, or pieces of them
            out.append(piece[2:] if piece.startswith("##") else f" {piece}")
    return out

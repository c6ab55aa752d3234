"""What a language model is reading at each token, beside what its neurons do there: the rows of a sparse probe.

Lives here: concepts that a text tells about its own tokens, and the activations of one module at the same places.
Does not live here: the probes (``probing``), streams of activations without labels (``ellzero.models``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.models.attach import attach, matching
from ellzero.models.windows import cut_texts, padded
from ellzero.rng import rng

__all__ = ["CONCEPTS", "ConceptRows", "concept_rows"]


def _line(text: str, start: int) -> str:
    return text[text.rfind("\n", 0, start) + 1 :].split("\n", 1)[0]


def _quoted(text: str, start: int) -> bool:
    return text.count('"', text.rfind("\n", 0, start) + 1, start) % 2 == 1


CONCEPTS: dict[str, Callable[[str, int, int], bool]] = {
    "after a line break": lambda text, a, b: a > 0 and text[a - 1] == "\n",
    "inside a word": lambda text, a, b: a > 0 and text[a : a + 1].isalpha() and text[a - 1].isalpha(),
    "capital": lambda text, a, b: text[a:b].strip()[:1].isupper(),
    "digit": lambda text, a, b: text[a:b].strip().isdigit(),
    "sign": lambda text, a, b: bool(text[a:b].strip()) and not any(c.isalnum() for c in text[a:b]),
    "speaker": lambda text, a, b: text[a:b] != "\n" and _line(text, a).endswith(":") and len(_line(text, a)) < 30,
    "heading": lambda text, a, b: text[a:b] != "\n" and _line(text, a).strip().startswith("= "),
    "in quotation marks": lambda text, a, b: _quoted(text, a),
}
"""What a token may be, by the whole text and the token's place ``[a, b)`` in it. The model saw only what is before b,
so "speaker" and "heading" hold what it can guess at best."""


@dataclass(frozen=True, eq=False)
class ConceptRows:
    """``X [n, d]`` float32 activations, ``y [n, L]`` 0 or 1, each row's document and token, the concepts' names."""

    X: np.ndarray
    y: np.ndarray
    documents: np.ndarray
    tokens: np.ndarray
    concepts: tuple[str, ...]


def concept_rows(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    hook: str,
    *,
    where: str = "output",
    concepts: Sequence[str] = tuple(CONCEPTS),
    context: int = 128,
    rows: int | None = None,
    seed: int = 0,
) -> ConceptRows:
    """Activations of one module at the tokens of texts, with what each token is.

    Parameters
    ----------
    model, tokenizer : as of ``ellzero.models``; the tokenizer decodes to bytes or text, one token at a time.
    texts : documents; each is cut into windows of ``context`` tokens.
    hook : name of a module; ``where`` ``"output"`` or ``"input"``. The neurons of a gated feed-forward layer are the
        input of its last map (``"layers.1.feed_forward.down"`` of ours).
    concepts : names from ``CONCEPTS``.
    rows : how many tokens to keep, drawn by ``seed``; all by default. Their order is that of the texts.

    Raises
    ------
    InputError : an unknown concept or module, no texts, a module whose output is not ``[batch, time, d]``.
    """
    for concept in concepts:
        check_choice("concepts", concept, CONCEPTS)
    check_choice("where", where, ("output", "input"))
    if len(matching(model, hook, name="hook")) > 1:
        raise InputError(f"hook: {hook!r} fits several modules, want the name of one")
    windows = cut_texts(texts, tokenizer, context, drop_bos=True)
    if not windows:
        raise InputError("texts: got no token, want some text")
    X = torch.cat([_activations(model, hook, where, windows[i : i + 32]) for i in range(0, len(windows), 32)])
    documents = np.concatenate([np.full(window.counts.sum(), window.document) for window in windows])
    tokens = np.concatenate([window.tokens[window.counts] for window in windows])
    chosen = np.arange(len(documents))
    if rows is not None and check_integer("rows", rows, at_least=1) < len(chosen):
        chosen = np.sort(rng(seed, "concepts").permutation(len(chosen))[:rows])
    y = np.zeros((len(chosen), len(concepts)), dtype=np.int8)
    for document in np.unique(documents[chosen]) if concepts else ():
        places = np.flatnonzero(documents == document)
        text, starts, ends = _spans(tokenizer, tokens[places])
        for row in np.flatnonzero(documents[chosen] == document):
            i = chosen[row] - places[0]
            y[row] = [CONCEPTS[concept](text, starts[i], ends[i]) for concept in concepts]
    return ConceptRows(X.numpy()[chosen], y, documents[chosen], tokens[chosen], tuple(concepts))


def _spans(tokenizer: Any, tokens: np.ndarray) -> tuple[str, list[int], list[int]]:
    """The text of a document, and where in it each token begins and ends."""
    pieces = {token: tokenizer.decode([token]) for token in set(tokens.tolist())}
    parts = [pieces[token] for token in tokens.tolist()]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return "".join(parts), [end - len(part) for end, part in zip(ends, parts)], ends


@torch.no_grad()
def _activations(model: nn.Module, hook: str, where: str, windows: Sequence[Any]) -> Float[Tensor, "rows d"]:
    tokens, real, counts = padded(windows)
    found: list[Tensor] = []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with attach(model, {hook: lambda x: found.append(x)}, where):
        model(torch.from_numpy(tokens).to(device), attention_mask=torch.from_numpy(real).long().to(device))
    if not found or found[0].ndim != 3 or tuple(found[0].shape[:2]) != tokens.shape:
        shape = tuple(found[0].shape) if found else None
        raise InputError(f"hook: {hook!r} gives {shape} for tokens {tokens.shape}, want (batch, time, d)")
    return found[0][torch.from_numpy(counts).to(device)].float().cpu()

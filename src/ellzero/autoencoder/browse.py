"""The latents of an autoencoder on texts, as one page: where each fires hardest, how often, and what it promotes.

Lives here: ``activity`` (which latents fire on which tokens), ``examples`` (their strongest contexts), ``browse``.
Does not live here: the look of the page (``browse_page``), the scores in its head (``metrics``, ``spliced_loss``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn

from ellzero.autoencoder.browse_page import render
from ellzero.autoencoder.inputs import directions
from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.splice import attach
from ellzero.autoencoder.spliced_loss import cross_entropy_recovered, predicts_next
from ellzero.errors import check_integer
from ellzero.io import atomic
from ellzero.models.activations import ActivationStream, evaluating
from ellzero.models.lens import logit_lens, pieces

__all__ = ["Activity", "Examples", "activity", "browse", "examples"]

BINS = 20
"""Bars of a latent's histogram."""
# Entries of the codes that exist at once: 128 MB of float32.
_BLOCK = 2**25


@dataclass(frozen=True, eq=False)
class Activity:
    """Which latents are active on which tokens.

    ``tokens [n]`` are those that count, window after window; ``starts [windows + 1]`` says where each window begins;
    ``codes [n, d_sae]`` is a scipy CSC array.
    """

    tokens: np.ndarray
    starts: np.ndarray
    codes: sparse.csc_array


@dataclass(frozen=True, eq=False)
class Examples:
    """The strongest contexts of every latent, latent by latent, the strongest first.

    Example e is of ``latent[e]`` and shows the tokens from ``start[e]``, ``length[e]`` of them; ``values`` holds the
    activations on them, example after example.
    """

    latent: np.ndarray
    start: np.ndarray
    length: np.ndarray
    values: np.ndarray


@torch.no_grad()
def activity(
    model: nn.Module, hook: str, sae: Any, *, texts: Sequence[str], tokenizer: Any, context: int | None = None,
    most: int = 100_000,
) -> Activity:  # fmt: skip
    """The codes of the first ``most`` tokens of a stream over the texts, special tokens left out."""
    check_integer("most", most, at_least=1)
    probe = ActivationStream(model, hook=hook, texts=texts, tokenizer=tokenizer, context=context)
    sequences = min(32, max(_BLOCK // (probe.context * sae.d_sae), 1))
    stream = ActivationStream(model, hook=hook, texts=texts, tokenizer=tokenizer, context=context, sequences=sequences)
    tokens, lengths, parts, seen = [], [], [], 0
    with evaluating(model), attach(model, {stream.name: sae}) as splice:
        for batch, keywords, counts, _ in stream.passes():
            splice.positions = torch.from_numpy(counts).to(batch.device)
            model(batch, **keywords)
            codes = splice.latents[stream.name][splice.positions].float().cpu().numpy()
            parts.append(sparse.csr_array(codes))
            tokens.append(batch.cpu().numpy()[counts])
            lengths.extend(counts.sum(1))
            seen += len(codes)
            if seen >= most:
                break
    codes = sparse.csc_array(sparse.vstack(parts)[:most])
    codes.sort_indices()
    starts = np.minimum(np.concatenate([[0], np.cumsum(lengths)]), most)
    return Activity(np.concatenate(tokens)[:most], np.unique(starts), codes)


def examples(found: Activity, *, per_latent: int = 8, before: int = 14, after: int = 8) -> Examples:
    """The contexts of every latent's strongest activations, one from a window at most, ties to the earlier one.

    A context is the token with the largest absolute value, with at most so many before and after it from its window.
    """
    check_integer("per_latent", per_latent, at_least=1)
    check_integer("before", before, at_least=0)
    check_integer("after", after, at_least=0, at_most=200 - before)
    n, d_sae = found.codes.shape
    place, size = found.codes.indices.astype(np.int64), abs(found.codes.data)
    latent = np.repeat(np.arange(d_sae), np.diff(found.codes.indptr))
    window = np.searchsorted(found.starts, place, side="right") - 1
    peak = _first(np.lexsort((place, -size, window, latent)), latent, window)  # the largest of each window
    peak = peak[np.lexsort((place[peak], -size[peak], latent[peak]))]
    rank = np.arange(len(peak)) - np.searchsorted(latent[peak], latent[peak], side="left")
    peak = peak[rank < per_latent]
    start = np.maximum(found.starts[window[peak]], place[peak] - before)
    length = np.minimum(found.starts[window[peak] + 1], place[peak] + after + 1) - start
    of = np.repeat(np.arange(len(peak)), length)
    shown = start[of] + np.arange(len(of)) - np.repeat(np.cumsum(length) - length, length)
    known, wanted = latent * n + place, latent[peak][of] * n + shown  # both in the order of the columns
    at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
    values = np.where(known[at] == wanted, found.codes.data[at], 0.0) if len(known) else np.zeros(0)
    return Examples(latent[peak], start, length, values.astype(np.float32))


def _first(order: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Of every run of equal keys, in that order, the first entry."""
    if not len(order):
        return order
    new = np.zeros(len(order), dtype=bool)
    new[0] = True
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    return order[new]


def histograms(codes: sparse.csc_array, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[d_sae, bins]`` of the sizes of each latent's activations from 0 to its largest, ``[d_sae]``."""
    d_sae = codes.shape[1]
    latent, size = np.repeat(np.arange(d_sae), np.diff(codes.indptr)), abs(codes.data)
    largest = np.zeros(d_sae, dtype=np.float32)
    np.maximum.at(largest, latent, size)
    bar = np.minimum((size / largest[latent] * bins).astype(np.int64), bins - 1)
    return np.bincount(latent * bins + bar, minlength=d_sae * bins).reshape(d_sae, bins), largest


def promoted(model: nn.Module, sae: Any, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens ``[d_sae, 2 * most]`` whose logits each latent raises most, then lowers most, and by how much."""
    lens = logit_lens(model, sae.d_in)
    if lens is None:
        return None
    tokens, values = [], []
    for rows in directions(sae).detach().split(256):
        logits = lens(rows).float()
        k = min(most, logits.shape[1])
        high, low = logits.topk(k), logits.topk(k, largest=False)
        tokens.append(torch.cat([high.indices, low.indices], dim=1).cpu().numpy())
        values.append(torch.cat([high.values, low.values], dim=1).cpu().numpy())
    return np.concatenate(tokens), np.concatenate(values)


def browse(
    sae: Any,
    model: nn.Module,
    hook: str,
    texts: Sequence[str],
    tokenizer: Any,
    out: str | Path,
    *,
    title: str = "Latents",
    tokens: int = 100_000,
    per_latent: int = 8,
    context: int | None = None,
    ablation: str = "mean",
    top: int = 8,
) -> dict[str, Any]:
    """Write one HTML page that holds everything it shows and asks no host for anything.

    Parameters
    ----------
    sae : a ``SparseAutoencoder`` of the output of ``hook``.
    model, hook, texts, tokenizer, context : as for ``ActivationStream``.
    out : the file.
    title : of the page.
    tokens : at most so many are gone through.
    per_latent, top : examples of each latent; tokens that it promotes, and that it suppresses.
    ablation : against which cross-entropy recovered is measured.

    Returns
    -------
    dict : the scores in the page's head, and ``bytes``.

    Raises
    ------
    InputError : no text, an autoencoder of another width, a file that cannot be written.
    """
    check_integer("top", top, at_least=1)
    found = activity(model, hook, sae, texts=texts, tokenizer=tokenizer, context=context, most=tokens)
    shown = examples(found, per_latent=per_latent)
    scores = _scores(sae, model, hook, texts, tokenizer, context, ablation)
    page = render(title, _facts(sae, hook, found, scores), _payload(found, shown, promoted(model, sae, top), tokenizer))
    atomic.write_text(out, page)
    return {**{key: value for key, value in scores.items() if key != "loss"}, "bytes": len(page.encode())}


def _scores(
    sae: Any, model: nn.Module, hook: str, texts: Sequence[str], tokenizer: Any, context: int | None, ablation: str
) -> dict[str, Any]:
    stream = ActivationStream(model, hook=hook, texts=texts, tokenizer=tokenizer, context=context)
    scores: dict[str, Any] = evaluate(sae, stream)
    if not predicts_next(model):  # everything else can still be shown
        return {**scores, "loss": "not measured, the model predicts no next token"}
    loss = cross_entropy_recovered(
        model, hook, sae, texts=texts, tokenizer=tokenizer, context=context, ablation=ablation
    )
    return {**scores, "ce_recovered": loss.recovered, "loss": loss.statement}


def _facts(sae: Any, hook: str, found: Activity, scores: dict[str, Any]) -> list[tuple[str, str]]:
    dead, dense = round(scores["dead"] * sae.d_sae), round(scores["dense"] * sae.d_sae)
    return [
        ("autoencoder", f"{sae.d_sae} latents of {sae.d_in} features, {getattr(sae, 'architecture', '')}"),
        ("read at", hook),
        ("tokens shown", f"{len(found.tokens)} in {len(found.starts) - 1} windows, special tokens left out"),
        ("L0", f"{scores['l0']:.4g} active latents per token"),
        ("explained variance", f"{scores['explained_variance']:.4f}"),
        ("dead latents", f"{dead} of {sae.d_sae} are active on no token of these texts"),
        ("dense latents", f"{dense} are active on more than a tenth of the tokens"),
        ("cross-entropy", scores["loss"]),
    ]


def _payload(found: Activity, shown: Examples, lens: Any, tokenizer: Any) -> dict[str, Any]:
    """Numbers as the page reads them. Activations of an example are in 127ths of the latent's largest."""
    counts, largest = histograms(found.codes)
    used = np.unique(np.concatenate([found.tokens, lens[0].ravel()] if lens else [found.tokens]))
    scale = np.repeat(largest[shown.latent], shown.length)
    d_sae = found.codes.shape[1]
    return {
        "words": pieces(tokenizer, used),
        "tokens": np.searchsorted(used, found.tokens).astype(np.int32),
        "fires": np.diff(found.codes.indptr).astype(np.int32),
        "largest": largest,
        "histograms": counts.astype(np.int32),
        "bins": BINS,
        "first": np.searchsorted(shown.latent, np.arange(d_sae + 1)).astype(np.int32),
        "start": shown.start.astype(np.int32),
        "length": shown.length.astype(np.uint8),
        "values": np.rint(127 * shown.values / np.maximum(scale, 1e-30)).astype(np.int8),
        "promoted": np.searchsorted(used, lens[0]).astype(np.int32) if lens else None,
        "promotion": lens[1].astype(np.float32) if lens else None,
    }

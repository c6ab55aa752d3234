"""From a model and texts to an autoencoder in a folder, with what it loses on texts held out.

Lives here: ``train_on_model``, the file ``training.json`` beside the weights, and ``held_out`` to find the same texts
again. Does not live here: training itself (``trainer``), the scores (``metrics``, ``spliced_loss``), the page
(``browse``).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ellzero.autoencoder.metrics import evaluate
from ellzero.autoencoder.model import SparseAutoencoder
from ellzero.autoencoder.presets import preset as find_preset
from ellzero.autoencoder.sources import read_documents
from ellzero.autoencoder.spliced_loss import ABLATIONS, SplicedLoss, cross_entropy_recovered, predicts_next
from ellzero.autoencoder.trainer import SAETrainer
from ellzero.errors import InputError, check, check_choice, check_integer, suggestion
from ellzero.io import atomic
from ellzero.models.activations import ActivationStream
from ellzero.models.huggingface import load_model
from ellzero.rng import rng

__all__ = ["TrainedOnModel", "held_out", "read_record", "train_on_model"]

RECORD = "training.json"
FORMAT, VERSION = "ellzero autoencoder training", 1
HELD_OUT = 0.1
"""Share of the documents that is not trained on."""
# Activations that are kept in memory, in bytes; more are computed anew for every pass.
_MEMORY = 2 * 2**30


@dataclass(frozen=True, eq=False)
class TrainedOnModel:
    """A trained autoencoder, and its scores on the held-out documents."""

    sae: SparseAutoencoder
    scores: dict[str, float]
    """What ``evaluate`` gives."""
    loss: SplicedLoss | None
    """What the model loses; None where it predicts no next token."""
    record: dict[str, Any]
    """The content of ``training.json``."""


def train_on_model(
    model: str | Path,
    hook: str,
    texts: str | Path | None = None,
    *,
    preset: str = "topk",
    d_sae: int | None = None,
    k: int = 32,
    steps: int = 2000,
    batch_size: int = 1024,
    lr: float | None = None,
    context: int | None = None,
    ablation: str = "mean",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> TrainedOnModel:
    """Train an autoencoder on what one module of a model gives for texts, and measure it on others.

    Parameters
    ----------
    model : a folder or id of Hugging Face, a file of ``ellzero.models.save``, or ``"reference"``.
    hook : the module, as ``ellzero.models.sites.locate`` reads it, such as ``"layers.3"``.
    texts : a .txt file (its paragraphs are joined into documents), a .jsonl file with a field ``text``, or a folder of
        .txt files; the texts that ship where there is none. A tenth of the documents is held out.
    preset, d_sae, k, options : of ``SparseAutoencoder.from_preset``; 4 latents per feature by default. Where the preset
        takes ``dead_after`` and ``options`` does not name it: a twentieth of the run, at least 40 batches and at most
        10 million rows.
    steps, batch_size, lr, checkpoint, progress : of ``SAETrainer``. A training that was killed goes on from its
        ``checkpoint``.
    context : tokens of a window.
    ablation : against which cross-entropy recovered is measured.
    out : a new or empty folder for the weights and ``training.json``.

    Raises
    ------
    InputError : a model, module, text file or option that is not there, or ``out`` that is not empty.
    """
    check_choice("ablation", ablation, ABLATIONS)
    check_integer("steps", steps, at_least=1)
    check_integer("batch_size", batch_size, at_least=1)
    build = find_preset(preset)
    settings = _options(build, preset, options or {}, steps * batch_size, batch_size)
    target = _empty(out)
    net, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"model: {model} has no tokenizer beside it to read texts")
    train, rest = _split(read_documents(None if texts is None else str(texts)), seed)
    reading = {"hook": hook, "tokenizer": tokenizer, "context": context, "seed": seed}
    width = _width(net, train, reading)
    d_sae = check_integer("d_sae", 4 * width if d_sae is None else d_sae, at_least=1)
    sae = build(width, d_sae, k, seed=seed, **settings)
    trainer = SAETrainer(sae, lr=lr, batch_size=batch_size, steps=steps, seed=seed)
    stream = ActivationStream(net, texts=train, batch_size=batch_size, buffer=max(65_536, batch_size), **reading)
    acts = stream.collect() if 4 * width * stream.rows <= _MEMORY else stream
    trainer.fit(acts, progress=progress, checkpoint=checkpoint)
    if target is not None:
        sae.save(target)
    scores, loss = evaluate(sae, ActivationStream(net, texts=rest, **reading)), None
    if predicts_next(net):
        asked = {"texts": rest, "tokenizer": tokenizer, "context": context, "ablation": ablation}
        loss = cross_entropy_recovered(net, hook, sae, **asked)
    record = {
        "format": FORMAT, "version": VERSION, "model": str(model), "hook": hook, "module": stream.name,
        "texts": None if texts is None else str(texts), "context": stream.context, "preset": preset, "d_in": width,
        "d_sae": d_sae, "k": k, "options": settings, "steps": steps, "batch_size": batch_size, "lr": trainer.lr,
        "seed": seed, "rows": stream.rows, "documents": [len(train), len(rest)], "scores": scores,
        "loss": None if loss is None else asdict(loss),
    }  # fmt: skip
    if target is not None:
        atomic.write_json(target / RECORD, record)
    return TrainedOnModel(sae, scores, loss, record)


def _options(build: Any, name: str, options: Mapping[str, Any], rows: int, batch_size: int) -> dict[str, Any]:
    """Options that the preset takes, with a ``dead_after`` that suits the length of the run."""
    known = [key for key in inspect.signature(build).parameters if key not in ("d_in", "d_sae", "k", "seed")]
    for key in options:
        if key not in known:
            wanted = f"want one of {', '.join(known)}" if known else "it takes none"
            raise InputError(f"{key}: is no option of the preset {name}, {wanted}{suggestion(key, known)}")
    settings = dict(options)
    if "dead_after" in known:
        settings.setdefault("dead_after", min(max(rows // 20, 40 * batch_size), 10_000_000))
    return settings


def _empty(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(
            f"out: {target} is {'a file' if target.is_file() else 'not empty'}, want a new or empty folder"
        )
    target.mkdir(parents=True, exist_ok=True)
    return target


def _split(texts: list[str], seed: int) -> tuple[list[str], list[str]]:
    order = rng(seed, "autoencoder", "held out").permutation(len(texts))
    few = max(round(HELD_OUT * len(texts)), 1)
    return [texts[i] for i in sorted(order[few:])], [texts[i] for i in sorted(order[:few])]


def held_out(texts: str | Path | None, seed: int = 0) -> list[str]:
    """The documents that ``train_on_model`` did not train on."""
    return _split(read_documents(None if texts is None else str(texts)), seed)[1]


def _width(net: nn.Module, texts: list[str], reading: Mapping[str, Any]) -> int:
    """Features of the module's output, from the longest of the first documents."""
    longest = max(texts[:16], key=len)
    probe = ActivationStream(net, texts=[longest], sequences=1, batch_size=1, buffer=1, **reading)
    return next(iter(probe)).shape[1]


def read_record(directory: str | Path) -> dict[str, Any] | None:
    """What ``train_on_model`` wrote beside the weights, or None where there is no such file.

    Raises
    ------
    InputError : a file that is torn, foreign or of a newer version.
    """
    path = Path(directory) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read, it is torn or foreign ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: is no record of an autoencoder's training")
    check(f"{path}: version", record.get("version"), at_most=VERSION)
    return record

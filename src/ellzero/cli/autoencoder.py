"""The commands of the autoencoder wing: ``ellzero train autoencoder`` and ``ellzero browse``.

Lives here: their options, and what they print. Does not live here: training, scores or the page
(``ellzero.autoencoder``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ellzero.cli import show
from ellzero.errors import InputError

__all__ = ["browse", "train", "train_autoencoder"]

train = typer.Typer(help="Train a model of one wing.", rich_markup_mode=None)


@train.command("autoencoder")
def train_autoencoder(
    model: Annotated[str, typer.Option(help="A model: folder, id, file, or reference.")],
    hook: Annotated[str, typer.Option(help="The module whose output is told, such as layers.3.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    texts: Annotated[
        str | None, typer.Option(help="A .txt or .jsonl file or a folder; those that ship if none.")
    ] = None,
    preset: Annotated[str, typer.Option(help="The variant.")] = "topk",
    d_sae: Annotated[int | None, typer.Option(help="Latents; 4 per feature if not given.")] = None,
    k: Annotated[int, typer.Option(help="Active latents per token.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Tokens per step.")] = 1024,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; by the width if not given.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    ablation: Annotated[str, typer.Option(help="mean or zero: what recovery is measured against.")] = "mean",
    option: Annotated[
        list[str] | None, typer.Option(help="Another option of the preset, key=value; repeat it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and split.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder to go on from after an interruption.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a sparse autoencoder on a model's activations; measure it on texts held out."""
    from ellzero.autoencoder.from_model import train_on_model

    done = train_on_model(
        model, hook, texts, preset=preset, d_sae=d_sae, k=k, steps=steps, batch_size=batch_size, lr=lr,
        context=context, ablation=ablation, seed=seed, options=_options(option), out=out, checkpoint=checkpoint,
        progress=not quiet and sys.stderr.isatty(),
    )  # fmt: skip
    record, scores = done.record, done.scores
    if as_json:
        show.as_json(record)
        return
    print(
        f"{record['preset']}: {record['d_sae']} latents on {record['module']} ({record['d_in']} features), "
        f"{record['steps']} steps of {record['batch_size']} of {record['rows']} tokens"
    )
    print(f"held out, {record['documents'][1]} documents:")
    print(f"  explained variance {scores['explained_variance']:.4f}")
    print(f"  L0 {scores['l0']:.4g} active latents per token")
    print(f"  dead {round(scores['dead'] * record['d_sae'])} of {record['d_sae']} latents")
    print(f"  {'the model predicts no next token' if done.loss is None else done.loss.statement}")
    print(f"autoencoder: {out}")


def browse(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An autoencoder's folder.")],
    model: Annotated[str | None, typer.Option(help="The model; the one that it was trained on if not given.")] = None,
    hook: Annotated[str | None, typer.Option(help="The module; where it was trained if not given.")] = None,
    texts: Annotated[str | None, typer.Option(help="A .txt or .jsonl file or a folder; held-out ones if none.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page; latents.html in DIR if not given.")] = None,
    tokens: Annotated[int, typer.Option(help="At most so many are gone through.")] = 100_000,
    examples: Annotated[int, typer.Option(help="Of each latent.")] = 8,
    context: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    ablation: Annotated[str, typer.Option(help="mean or zero: what recovery is measured against.")] = "mean",
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Write one page of an autoencoder's latents: strongest examples, histograms, promoted tokens."""
    from ellzero.autoencoder import SparseAutoencoder, sources
    from ellzero.autoencoder.browse import browse as write_page
    from ellzero.autoencoder.from_model import held_out
    from ellzero.models import load_model

    sae = SparseAutoencoder.load(directory)
    known = _known(directory)
    model, hook = model or known.get("model"), hook or known.get("hook")
    for name, value in (("model", model), ("hook", hook)):
        if value is None:
            raise InputError(f"--{name}: got none, and nothing in {directory} names one")
    if texts is None and "seed" in known:
        documents = held_out(known["texts"], known["seed"])
    else:
        documents = sources.read_documents(texts or known.get("texts"))
    net, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"--model: {model} has no tokenizer beside it to read texts")
    page = out if out is not None else directory / "latents.html"
    scores = write_page(
        sae, net, hook, sources.enough(documents, tokens), tokenizer, page, title=f"Latents of {directory.name}",
        tokens=tokens, per_latent=examples, context=context or known.get("context"), ablation=ablation,
    )  # fmt: skip
    if as_json:
        show.as_json({**scores, "page": str(page)})
    else:
        recovered = f", cross-entropy recovered {scores['ce_recovered']:.4f}" if "ce_recovered" in scores else ""
        print(f"L0 {scores['l0']:.4g}, dead {round(scores['dead'] * sae.d_sae)} of {sae.d_sae}{recovered}")
        print(f"page: {page}")


def _known(directory: Path) -> dict[str, Any]:
    """Model, module and texts, from the record of a training or the card of a taken model."""
    from ellzero.autoencoder.from_model import read_record
    from ellzero.compare.applying import CARD, read_card
    from ellzero.compare.specs import rebuild_task

    if (record := read_record(directory)) is not None:
        return record
    if not (directory / CARD).is_file():
        return {}
    task = rebuild_task(read_card(directory)["task"], directory)
    if not hasattr(task, "site"):
        raise InputError(f"{directory}: was taken from the task {task.name}, want an autoencoder")
    if task.dataset is not None:
        return {}
    model, hook = task.site()
    return {"model": model, "hook": hook, "texts": task.texts}


def _options(given: list[str] | None) -> dict[str, Any]:
    """``key=value`` pairs; a value is read as JSON where it is some, else as text."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--option: got {text!r}, want key=value")
        if name in found:
            raise InputError(f"--option: got {name!r} twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found

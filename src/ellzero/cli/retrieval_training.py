"""The command ``ellzero train retrieval``.

Lives here: its options, the files that it reads, and what it prints. Does not live here: the training
(``ellzero.retrieval.from_corpus``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ellzero.cli import show
from ellzero.cli.autoencoder import train
from ellzero.errors import InputError, check, check_integer

__all__ = ["train_retrieval"]

RECORD = "training.json"


@train.command("retrieval")
def train_retrieval(
    corpus: Annotated[Path, typer.Argument(metavar="FILE", help="Documents, JSON lines.")],
    model: Annotated[Path, typer.Option(help="A folder with a sentence encoder or language model.")],
    out: Annotated[Path, typer.Option(help="A new folder for the encoder.")],
    recipe: Annotated[str, typer.Option(help="How it is trained; label-free needs no queries.")] = "label-free",
    queries: Annotated[Path | None, typer.Option(help="Queries: .jsonl, or .tsv of ids and texts.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements of documents, TREC's or BEIR's.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Instead: JSON lines with query (text) and document (id).")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the optimiser; the recipe's if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Queries per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    penalty: Annotated[float, typer.Option(help="Factor on the recipe's penalties: more, fewer terms.")] = 1.0,
    terms: Annotated[int | None, typer.Option(help="Keep that many of a document's terms.")] = None,
    length: Annotated[int, typer.Option(help="Tokens at which a text is cut.")] = 256,
    body: Annotated[bool, typer.Option("--body", help="Train the whole model, not the heads alone.")] = False,
    seed: Annotated[int, typer.Option(help="Of order and draws.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder to go on from after an interruption.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a sparse encoder on a collection, with judged queries or without any label."""
    from dataclasses import replace

    from ellzero.retrieval import Backbone, read_jsonl
    from ellzero.retrieval.from_corpus import train_on_corpus
    from ellzero.retrieval.recipes import recipe as find_recipe

    if out.exists():
        raise InputError(f"--out: {out} is there already, want a new folder")
    given = {"steps": steps, "batch_size": batch_size, "lr": lr}
    made = find_recipe(recipe).penalised(check("--penalty", penalty, at_least=0))
    made = replace(made, **{name: value for name, value in given.items() if value is not None})
    if terms is not None:
        check_integer("--terms", terms, at_least=1)
    documents = list(read_jsonl(corpus))
    if not documents:
        raise InputError(f"FILE: {corpus} has no documents")
    ids, texts = [name for name, _ in documents], [text for _, text in documents]
    asked, answers = _judged(ids, queries, qrels, pairs)
    if asked is None and made.positive:
        raise InputError(f"--queries: got none, and the recipe {recipe} learns from answers; label-free does not")
    backbone = Backbone.load(model, length)
    done = train_on_corpus(
        made, backbone, texts, asked, answers, body=body, seed=seed, checkpoint=checkpoint,
        progress=not quiet and sys.stderr.isatty(),
    )  # fmt: skip
    encoder = done.encoder
    encoder.document_terms = terms if terms is not None else encoder.document_terms
    sample = encoder.encode_document(texts[:200])
    encoder.save(out)
    record = {
        "recipe": recipe, "model": str(model), "documents": len(texts), "queries": len(asked or []),
        "steps": made.steps,
        "batch_size": made.batch_size, "lr": made.lr, "penalty": penalty, "terms": terms, "body": body, "seed": seed,
        "columns": len(encoder.vocabulary), "rounds": list(done.rounds),
        "terms_per_document": sample.nnz / sample.shape[0],
    }  # fmt: skip
    (out / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if as_json:
        show.as_json(record)
        return
    for number, each in enumerate(done.rounds, 1):
        print(f"round {number}: {each['examples']} examples, {made.steps} steps, loss {each['first']:.4g} to "
              f"{each['last']:.4g}")  # fmt: skip
    print(f"{record['terms_per_document']:.1f} terms a document (of the first {sample.shape[0]})")
    for term, weight in encoder.decode(sample[[0]], 8)[0]:
        print(f"  {term} {weight:.3g}")
    print(f"encoder: {out}")


def _judged(ids: Sequence[str], queries: Path | None, qrels: Path | None, pairs: Path | None) -> tuple[Any, Any]:
    """Texts of queries and which documents answer them, or neither."""
    import numpy as np
    from scipy import sparse

    from ellzero.retrieval import read_qrels, read_topics

    if (queries is None) != (qrels is None) or (pairs is not None and queries is not None):
        raise InputError("--queries: want queries and qrels together, or pairs, or none of them")
    place = {name: row for row, name in enumerate(ids)}
    if queries is not None:
        judged = read_qrels(qrels)
        asked = read_topics(queries)
        found = [(row, place[document]) for row, (name, _) in enumerate(asked)
                 for document, value in judged.get(name, {}).items() if value >= 1 and document in place]  # fmt: skip
        texts, source = [text for _, text in asked], qrels
    elif pairs is not None:
        texts, found = _pairs(pairs, place)
        source = pairs
    else:
        return None, None
    if not found:
        raise InputError(f"{source}: names no document of the collection as an answer")
    rows, columns = np.array(found).T
    return texts, sparse.csr_array((np.ones(len(found), bool), (rows, columns)), shape=(len(texts), len(ids)))


def _pairs(path: Path, place: dict[str, int]) -> tuple[list[str], list[tuple[int, int]]]:
    rows: dict[str, int] = {}
    found = []
    if not path.is_file():
        raise InputError(f"--pairs: {path} is no file")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            query, document = record["query"], str(record["document"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number} is no JSON object with 'query' and 'document'") from error
        if document not in place:
            raise InputError(f"{path}: line {number} names the document {document!r}, which is not there")
        found.append((rows.setdefault(str(query), len(rows)), place[document]))
    return list(rows), found

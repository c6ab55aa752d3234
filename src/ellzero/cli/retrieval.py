"""The commands of the retrieval wing: ``ellzero index`` and ``ellzero search``.

Lives here: their options, and what they print. Does not live here: indexes, weights, measures
(``ellzero.retrieval``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ellzero.cli import show
from ellzero.errors import InputError, check_choice

__all__ = ["index", "search"]

WEIGHTS = "bm25.safetensors"
FORMS = ("bm25", "vectors", "ciff")


def index(
    collection: Annotated[Path, typer.Argument(metavar="FILE", help=".jsonl of texts or vectors, or .ciff.")],
    out: Annotated[Path, typer.Option(help="The index's folder; a complete index there is replaced at the end.")],
    form: Annotated[str | None, typer.Option(help=f"{', '.join(FORMS)}; by the file if not given.")] = None,
    variant: Annotated[str, typer.Option(help="Of BM25: lucene, robertson, atire, bm25l, bm25+.")] = "lucene",
    k1: Annotated[float, typer.Option(help="Of BM25: saturation.")] = 1.2,
    b: Annotated[float, typer.Option(help="Of BM25: share of length.")] = 0.75,
    stemmer: Annotated[str, typer.Option(help="A Snowball language, or none.")] = "english",
    scale: Annotated[float | None, typer.Option(help="Weight of one level; needed by vectors of fractions.")] = None,
    block_size: Annotated[int, typer.Option(help="Documents that share a bound.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Index a collection: texts by BM25, or sparse vectors that an encoder wrote."""
    from ellzero.retrieval import ImpactIndex, JsonVectors

    if not collection.is_file():
        raise InputError(f"FILE: {collection} is no file")
    form = _form(collection) if form is None else check_choice("--form", form, FORMS)
    if form == "bm25":
        made = _index_texts(collection, out, variant, k1, b, stemmer, block_size)
    elif form == "ciff":
        made = ImpactIndex.from_ciff(collection, path=out, block_size=block_size, scale=scale)
    else:
        vectors = JsonVectors(collection)
        made = ImpactIndex.build(vectors, vocabulary=vectors.vocabulary, path=out, block_size=block_size, scale=scale)
    record = {
        "index": str(out), "form": form, "documents": made.documents, "terms": made.terms, "postings": made.postings,
        "nbytes": made.nbytes,
    }  # fmt: skip
    if as_json:
        show.as_json(record)
    else:
        print(f"{made.documents} documents, {made.terms} terms, {made.postings} postings, "
              f"{made.nbytes / max(made.postings, 1):.2f} bytes a posting")  # fmt: skip
        print(f"index: {out}")


def _form(collection: Path) -> str:
    if collection.suffix == ".ciff":
        return "ciff"
    with open(collection, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return "vectors" if '"vector"' in first else "bm25"


def _index_texts(collection: Path, out: Path, variant: str, k1: float, b: float, stemmer: str, block_size: int) -> Any:
    """Index and weights; if killed between the two, the terms differ and ``search`` refuses the pair."""
    from ellzero.retrieval import BM25Vectorizer, ImpactIndex, Words, read_jsonl

    ids, texts = [], []
    for name, text in read_jsonl(collection):
        ids.append(name)
        texts.append(text)
    if not ids:
        raise InputError(f"FILE: {collection} has no documents")
    model = BM25Vectorizer(variant, k1=k1, b=b, tokenizer=Words(stemmer=None if stemmer == "none" else stemmer))
    X = model.fit_transform(texts)
    made = ImpactIndex.build(X, ids, vocabulary=model.vocabulary_, path=out, block_size=block_size)
    model.save(out / WEIGHTS)
    return made


def search(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `ellzero index` wrote.")],
    query: Annotated[
        str | None, typer.Argument(help="One query; typed line by line if neither this nor --queries.")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="A .jsonl or .tsv file of queries with ids.")] = None,
    k: Annotated[int, typer.Option(help="Hits of a query.")] = 10,
    out: Annotated[Path | None, typer.Option(help="A TREC run file; printed if not given.")] = None,
    algorithm: Annotated[str, typer.Option(help="auto, exhaustive or bmp.")] = "auto",
    alpha: Annotated[float, typer.Option(help="Below 1: faster, and not exact.")] = 1.0,
    beta: Annotated[float, typer.Option(help="Below 1: only this share of a query's terms.")] = 1.0,
    qrels: Annotated[Path | None, typer.Option(help="Judgements; prints measures of the run.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why the first hit matches.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print hits as JSON.")] = False,
) -> None:
    """Search an index: one query, a file of queries, or line by line."""
    from ellzero.retrieval import ImpactIndex, evaluate, means, read_qrels, read_topics, write_run

    if query is not None and queries is not None:
        raise InputError("--queries: got a query beside it, want one of the two")
    held = ImpactIndex.load(directory)
    encode = _encoder(directory, held)
    options = {"algorithm": algorithm, "alpha": alpha, "beta": beta}
    if queries is None and query is None:
        return _typed(held, encode, k, options, explain)
    asked = read_topics(queries) if queries is not None else [("1", query)]
    found = held.search(encode([text for _, text in asked]), k, **options)
    run = found.as_run([name for name, _ in asked])
    if out is not None:
        write_run(out, run)
        print(f"{len(run)} queries, {found.algorithm}: {found.why}; run: {out}", file=sys.stderr)
    elif as_json:
        show.as_json(run)
    else:
        for place, (name, _) in enumerate(asked):
            _print_hits(name if queries is not None else None, *found[place])
            _print_reasons(held, encode, asked[place][1], found.ids[place], explain)
    if qrels is not None:
        for name, value in means(evaluate(run, read_qrels(qrels))).items():
            print(f"{name} {value:.4f}", file=sys.stderr if as_json else sys.stdout)
    return None


def _encoder(directory: Path, held: Any) -> Any:
    """From texts to queries: the saved BM25 weights' tokens, else words as they stand in the vocabulary."""
    from collections import Counter

    from ellzero.retrieval import BM25Vectorizer

    if (directory / WEIGHTS).is_file():
        model = BM25Vectorizer.load(directory / WEIGHTS)
        if model.vocabulary_ != held.vocabulary:
            raise InputError(f"{directory / WEIGHTS}: has other terms than the index; index the collection again")
        return model.transform_queries
    if held.vocabulary is None:
        raise InputError(f"{directory}: its terms have no names, so a text cannot be a query")
    return lambda texts: [dict(Counter(text.split())) for text in texts]


def _typed(held: Any, encode: Any, k: int, options: dict[str, Any], explain: bool) -> None:
    """One query a line until the input ends."""
    if sys.stdin.isatty():
        print("a query a line; an empty one ends", file=sys.stderr)
    for line in sys.stdin:
        if not line.strip():
            break
        found = held.search(encode([line.strip()]), k, **options)
        _print_hits(None, *found[0])
        _print_reasons(held, encode, line.strip(), found.ids[0], explain)
        print(flush=True)


def _print_hits(name: str | None, ids: Any, scores: Any) -> None:
    if not len(ids):
        print("nothing matches" if name is None else f"{name}\tnothing matches")
    for rank, (document, score) in enumerate(zip(ids.tolist(), scores.tolist()), 1):
        print(*([] if name is None else [name]), rank, document, f"{score:.4f}", sep="\t")


def _print_reasons(held: Any, encode: Any, text: str, ids: Any, wanted: bool) -> None:
    if not wanted or not len(ids):
        return
    said = held.explain(encode([text]), ids[0])
    for row in said["terms"]:
        print(f"  {row['term']}: {row['query']:.4g} x {row['document']:.4g} = {row['score']:.4f}")

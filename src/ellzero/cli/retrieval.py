"""The commands of the retrieval wing that stand around an index: ``ellzero index``, ``search`` and ``export``.

Lives here: their options, and what they print. Does not live here: ``encode`` and ``serve`` (beside it), indexes,
weights, measures (``ellzero.retrieval``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ellzero.cli import show
from ellzero.compare.specs import load_object
from ellzero.errors import InputError, check_choice
from ellzero.retrieval.encoders import (
    BM25_FILE,
    FOLDER,
    as_encoder,
    find_encoder,
    keep_encoder,
    load_encoder,
    standing,
)  # fmt: skip

__all__ = ["corpus_file", "export", "index", "named_encoder", "open_index", "query_encoder", "search"]

FORMS = ("bm25", "encoded", "vectors", "ciff")


def index(
    collection: Annotated[
        Path, typer.Argument(metavar="FILE", help=".jsonl of texts or vectors, .ciff, or a folder: encoded, or BEIR's.")
    ],
    out: Annotated[Path, typer.Option(help="The index's folder; a complete index there is replaced at the end.")],
    form: Annotated[str | None, typer.Option(help=f"{', '.join(FORMS)}; by the file if not given.")] = None,
    variant: Annotated[str, typer.Option(help="Of BM25: lucene, robertson, atire, bm25l, bm25+.")] = "lucene",
    k1: Annotated[float, typer.Option(help="Of BM25: saturation.")] = 1.2,
    b: Annotated[float, typer.Option(help="Of BM25: share of length.")] = 0.75,
    stemmer: Annotated[str, typer.Option(help="A Snowball language, or none.")] = "english",
    scale: Annotated[float | None, typer.Option(help="Weight of one level; needed by vectors of fractions.")] = None,
    block_size: Annotated[int, typer.Option(help="Documents that share a bound.")] = 64,
    order: Annotated[
        str, typer.Option(help="Of the documents: none, or bp, by graph bisection: slow to make, faster to search.")
    ] = "none",
    shards: Annotated[int | None, typer.Option(help="Of encoded documents: so many indexes, searched as one.")] = None,
    engine: Annotated[str, typer.Option(help="Where shards are built: here, or ray.")] = "here",
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Index a collection: texts by BM25, or sparse vectors that an encoder wrote."""
    from ellzero.retrieval import ImpactIndex, JsonVectors

    collection = corpus_file(collection)
    form = _form(collection) if form is None else check_choice("--form", form, FORMS)
    if shards is not None and form != "encoded":
        raise InputError(f"--shards: got {form}, want encoded documents; `ellzero encode` makes them")
    if form == "bm25":
        made = _index_texts(collection, out, variant, k1, b, stemmer, block_size, order)
    elif form == "encoded":
        made = _index_encoded(collection, out, block_size, scale, shards, engine, order)
    else:
        if form == "ciff":
            made = ImpactIndex.from_ciff(collection, path=out, block_size=block_size, scale=scale, order=order)
        else:
            rows = JsonVectors(collection)
            made = _index_rows(rows, out, block_size, scale, order)
        keep_encoder(None, out)
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


def corpus_file(path: Path) -> Path:
    """A file, the documents of one of BEIR's folders, or a folder of encoded documents."""
    if (path / "corpus.jsonl").is_file():
        return path / "corpus.jsonl"
    if not path.is_file() and not (path / "job.json").is_file():
        raise InputError(f"FILE: {path} is no file, nor a folder of encoded documents or of BEIR's")
    return path


def _form(collection: Path) -> str:
    if collection.is_dir():
        return "encoded"
    if collection.suffix == ".ciff":
        return "ciff"
    with open(collection, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return "vectors" if '"vector"' in first else "bm25"


def _index_texts(
    collection: Path, out: Path, variant: str, k1: float, b: float, stemmer: str, block_size: int, order: str
) -> Any:
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
    made = ImpactIndex.build(X, ids, vocabulary=model.vocabulary_, path=out, block_size=block_size, order=order)
    model.save(out / BM25_FILE)
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return made


def _index_encoded(
    collection: Path, out: Path, block_size: int, scale: float | None, shards: int | None, engine: str, order: str
) -> Any:
    """Rows of an encoded corpus, which memory need not hold, and the encoder that made them."""
    from ellzero.retrieval import Encoded, ShardedIndex

    rows = Encoded(collection)
    scale = rows.scale() if scale is None else scale
    if shards is not None:
        if order != "none":
            raise InputError(f"--order: got {order} with --shards, want an index of one piece")
        made = ShardedIndex.build(rows, path=out, shards=shards, engine=engine, block_size=block_size, scale=scale)
    else:
        made = _index_rows(rows, out, block_size, scale, order)
    keep_encoder(standing(collection), out)
    return made


def _index_rows(rows: Any, out: Path, block_size: int, scale: float | None, order: str) -> Any:
    """Pairs of rows and ids as they come; an order of the whole needs all of them in memory."""
    from scipy import sparse

    from ellzero.retrieval import ImpactIndex

    options = {"vocabulary": rows.vocabulary, "path": out, "block_size": block_size, "scale": scale}
    if order == "none":
        return ImpactIndex.build(rows, **options)
    pairs = list(rows)
    whole = sparse.csr_array(sparse.vstack([X for X, _ in pairs], format="csr"))
    return ImpactIndex.build(whole, [name for _, names in pairs for name in names], order=order, **options)


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
    encoder: Annotated[
        str | None, typer.Option(help="What encodes queries: a file, a folder or module:object, if none stands there.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the shards of an index are searched: here, or ray.")] = "here",
    explain: Annotated[bool, typer.Option("--explain", help="Say why the first hit matches.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print hits as JSON.")] = False,
) -> None:
    """Search an index: one query, a file of queries, or line by line."""
    from ellzero.retrieval import evaluate, means, read_qrels, read_topics, write_run

    if query is not None and queries is not None:
        raise InputError("--queries: got a query beside it, want one of the two")
    held = open_index(directory, engine)
    encode = query_encoder(directory, held, encoder)
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


def open_index(directory: Path, engine: str = "here") -> Any:
    """The index in a folder, of one piece or in shards."""
    from ellzero.retrieval import ImpactIndex, ShardedIndex
    from ellzero.retrieval.sharded import is_sharded

    return ShardedIndex.load(directory, engine=engine) if is_sharded(directory) else ImpactIndex.load(directory)


def query_encoder(directory: Path, held: Any, given: str | None) -> Any:
    """From texts to queries: by the encoder that is given or stands beside the index, else words that are its terms."""
    from collections import Counter

    model = find_encoder(directory) if given is None else named_encoder(given)
    if model is not None:
        if list(model.vocabulary) != held.vocabulary:
            where = directory if given is None else given
            raise InputError(f"{where}: the encoder has other terms than the index; index the collection again")
        return model.encode_query
    if held.vocabulary is None:
        raise InputError(f"{directory}: its terms have no names, so a text cannot be a query")
    return lambda texts: [dict(Counter(text.split())) for text in texts]


def named_encoder(given: str) -> Any:
    """An encoder by its path, or an object by ``module:object``."""
    if ":" in given and not Path(given).exists():
        found = load_object(given)
        return as_encoder("--encoder", found() if isinstance(found, type) else found)
    return load_encoder(given)


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


def export(
    directory: Annotated[Path, typer.Argument(metavar="INDEX", help="What `ellzero index` wrote.")],
    form: Annotated[str, typer.Option(help="ciff, vectors, pisa, opensearch or qdrant.")],
    out: Annotated[Path, typer.Option(help="A file; pisa: what its files begin with; the last two: a new folder.")],
    name: Annotated[str, typer.Option(help="Of the engine's index (opensearch).")] = "ellzero",
    field: Annotated[str, typer.Option(help="That holds the terms (opensearch, qdrant).")] = "terms",
) -> None:
    """Write an index for another engine."""
    from ellzero.retrieval import ImpactIndex
    from ellzero.retrieval.exporting import export as write

    held = ImpactIndex.load(directory)
    write(held, form, out, name=name, field=field)
    print(f"{held.documents} documents as {form}: {out}")

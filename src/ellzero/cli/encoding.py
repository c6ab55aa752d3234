"""``ellzero encode``: a corpus as sparse rows, by a job that goes on where it was stopped.

Lives here: its options, and how far it is. Does not live here: the job (``ellzero.retrieval.encoding``), encoders.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from ellzero.cli import show
from ellzero.cli.retrieval import corpus_file, named_encoder
from ellzero.errors import InputError

__all__ = ["encode", "progress", "progress_text", "resident_bytes"]


def encode(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A .jsonl file of texts, or a folder of BEIR's.")],
    encoder: Annotated[
        str, typer.Option(help="A file of BM25 weights, an encoder's folder, module:object, or bm25 to fit it first.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the rows; a job that was stopped there goes on.")],
    group: Annotated[int, typer.Option(help="Texts that the encoder gets at a time.")] = 256,
    shard_documents: Annotated[int, typer.Option(help="Documents of a file.")] = 20_000,
    shard_seconds: Annotated[float, typer.Option(help="A file is written after so long at the latest.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Encode a corpus into sparse rows for `ellzero index`; killed at any moment, the same command goes on."""
    from ellzero.retrieval.encoding import encode_corpus

    corpus = corpus_file(corpus)
    if corpus.is_dir():
        raise InputError(f"CORPUS: {corpus} is encoded already, want a .jsonl file of texts")
    source, model = _model(encoder, corpus, out)
    options = {"group": group, "shard_documents": shard_documents, "shard_seconds": shard_seconds}
    try:
        with progress(Console(stderr=True), shown=not quiet and sys.stderr.isatty()) as (report, last):
            made = encode_corpus(corpus, model, out, source=source, name=encoder, report=report, **options)
    except KeyboardInterrupt:
        print(f"ellzero: the same command goes on from {out}", file=sys.stderr)
        raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    now = last[-1] if last else None
    record = {
        "encoded": str(out), "documents": made.documents, "terms": len(made.vocabulary), "shards": len(made),
        "documents_now": now.documents - now.documents_before if now else 0,
        "documents_per_second": now.speed if now else None, "peak_nbytes": peak,
    }  # fmt: skip
    if as_json:
        show.as_json(record)
    else:
        speed = f", {now.speed:,.0f} documents a second" if now else ""
        print(f"{made.documents:,} documents, {record['documents_now']:,} of them now{speed}, at most {_size(peak)}")
        print(f"encoded: {out}")


def _model(encoder: str, corpus: Path, out: Path) -> tuple[Path | None, Any]:
    """The encoder and, unless it is an object of a module, its file or folder."""
    from ellzero.retrieval import BM25Vectorizer, read_jsonl
    from ellzero.retrieval.encoders import BM25_FILE, standing

    if encoder != "bm25" or Path(encoder).exists():
        source = Path(encoder) if Path(encoder).exists() else None
        inside = standing(source) if source is not None and source.is_dir() else None
        return inside or source, named_encoder(encoder)
    if not (out / BM25_FILE).is_file():
        model = BM25Vectorizer().fit(text for _, text in read_jsonl(corpus))
        out.mkdir(parents=True, exist_ok=True)
        model.save(out / BM25_FILE)
    return out / BM25_FILE, BM25Vectorizer.load(out / BM25_FILE)


@contextlib.contextmanager
def progress(console: Console, shown: bool) -> Iterator[tuple[Callable[[Any], None], list[Any]]]:
    """A bar on a terminal: what to call with each report, and a list that ends with the last one."""
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
    last: list[Any] = []
    with Bar(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task("encode", total=None, text="loading")

        def report(step: Any) -> None:
            last[:] = [step]
            bar.update(task, total=step.total_nbytes, completed=step.nbytes, text=progress_text(step))

        yield report, last


def progress_text(step: Any) -> str:
    """Documents, documents a second, memory now, and time left."""
    left = step.seconds_left
    rest = "" if left is None else f", {_time(left)} left"
    return f"{step.documents:,} documents, {step.speed:,.0f} a second, {_size(resident_bytes())}{rest}"


def _time(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not say, the most that it held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""``ellzero serve``: a search page on this machine.

Lives here: its options. Does not live here: the page and its bounds (``ellzero.retrieval.web``).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from ellzero.cli.retrieval import corpus_file, open_index, query_encoder

__all__ = ["serve"]


def serve(
    directory: Annotated[Path, typer.Argument(metavar="INDEX", help="What `ellzero index` wrote.")],
    texts: Annotated[Path | None, typer.Option(help="The corpus (.jsonl or BEIR's), to show titles and texts.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="What encodes queries: a file, a folder or module:object, if none stands there.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the shards of an index are searched: here, or ray.")] = "here",
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines reach it if it is not loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8808,
    workers: Annotated[int, typer.Option(help="Searches at a time.")] = 2,
    connections: Annotated[int, typer.Option(help="Requests at a time.")] = 32,
    most_characters: Annotated[int, typer.Option(help="Of a query.")] = 500,
    most_hits: Annotated[int, typer.Option(help="Of an answer.")] = 100,
) -> None:
    """Serve a search page that shows why a document matched; read-only, on this machine alone unless told otherwise."""
    from ellzero.retrieval.service import SearchService, Texts
    from ellzero.retrieval.web import SearchServer

    held = open_index(directory, engine)
    service = SearchService(
        held, query_encoder(directory, held, encoder), texts=None if texts is None else Texts(corpus_file(texts)),
        name=directory.resolve().name, most_characters=most_characters, most_hits=most_hits,
    )  # fmt: skip
    with SearchServer(service, host, port, workers=workers, connections=connections) as server:
        if not server.loopback:
            print(f"ellzero: other machines can reach {server.address}; there is no password", file=sys.stderr)
        print(f"{held.documents} documents at {server.address} (Ctrl-C ends)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()

"""BM25 from texts to hits: ours and bm25s, on real text.

    python benchmarks/bm25.py [--copies 4] [--k 10] [--repeats 5]

Documents are the paragraphs of tiny Shakespeare and of WikiText-2's validation part that ship with ellzero (7,222 and
1,160); with ``--copies`` they stand that many times, each time under other words, so that the vocabulary grows with the
collection. Queries are the first twelve words of 500 documents. Both split, drop English stop words and stem alike,
weigh by the lucene form with k1 1.2 and b 0.75, and give the same scores, which is checked. "from texts" is
everything: tokens, weights, index, queries, hits; "a query" is tokens and hits of one query on an index that stands,
queries one by one; "batch" all in one call. Jobs take turns on one thread, the first turn is warm-up; seconds of the
processor clock.

Measured on 16,764 documents (two copies), two cores under a load of nine: from texts bm25s took 1.51 times our time, a
query 4.2 times, a batch of queries 22 times, the index alone 1.06 times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from table import setting

from ellzero.data import sets
from ellzero.retrieval import BM25Vectorizer, ImpactIndex, Words

QUERIES, LENGTH = 500, 12


def documents(copies: int) -> list[str]:
    """Real paragraphs; later copies with a letter before each word."""
    texts = [*sets.texts("wikitext2"), *sets.texts("tinyshakespeare")]
    marks = ["", *"qxzvkjwy"][:copies]
    return [" ".join(mark + word for word in text.split()) for mark in marks for text in texts]


def ours(texts: list[str], k: int) -> tuple[Callable, Callable, Callable]:
    def fit() -> tuple[Any, Any]:
        model = BM25Vectorizer("lucene", k1=1.2, b=0.75, tokenizer=Words())
        return model, ImpactIndex.build(model.fit_transform(texts))

    def ask(made: tuple, queries: list[str]) -> list[np.ndarray]:
        model, index = made
        return index.search(model.transform_queries(queries), k, n_threads=1).scores

    return fit, ask, lambda made, queries: [ask(made, [query])[0] for query in queries]


def theirs(texts: list[str], k: int) -> tuple[Callable, Callable, Callable]:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")

    def tokens(some: list[str]) -> Any:
        return bm25s.tokenize(some, stopwords="en", stemmer=stemmer, show_progress=False)

    def fit() -> Any:
        model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        model.index(tokens(texts), show_progress=False)
        return model

    def ask(model: Any, queries: list[str]) -> list[np.ndarray]:
        return list(model.retrieve(tokens(queries), k=k, show_progress=False, n_threads=0).scores)

    return fit, ask, lambda made, queries: [ask(made, [query])[0] for query in queries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    texts = documents(asked.copies)
    place = np.linspace(0, len(texts) - 1, QUERIES).astype(int)
    queries = [" ".join(texts[i].split()[:LENGTH]) for i in place]
    engines = {"ours": ours(texts, asked.k), "bm25s": theirs(texts, asked.k)}
    times: dict[tuple[str, str], list[float]] = {}
    scores = {}
    for turn in range(asked.repeats + 1):
        for name, (fit, ask, one_by_one) in engines.items():
            start = time.process_time()
            made = fit()
            fitted = time.process_time()
            found = ask(made, queries)
            ended = time.process_time()
            one_by_one(made, queries[:100])
            spent = {"index": fitted - start, "batch": (ended - fitted) / QUERIES, "from texts": ended - start,
                     "a query": (time.process_time() - ended) / 100}  # fmt: skip
            scores[name] = found
            for job, seconds in spent.items():
                if turn:
                    times.setdefault((job, name), []).append(seconds)
    off = max(float(np.abs(a[: len(b)] - b[: len(a)]).max(initial=0)) for a, b in zip(scores["ours"], scores["bm25s"]))
    print(f"{len(texts)} documents, {QUERIES} queries of {LENGTH} words, k = {asked.k}; {setting()}")
    largest = max(float(b.max()) for b in scores["bm25s"])
    print(f"largest difference of scores {off:.3g} of {largest:.3g} (ours has 8 bits)")
    for job in ("index", "batch", "a query", "from texts"):
        mine, peer = (statistics.median(times[job, name]) for name in engines)
        print(f"{job:12} ours {mine * 1e3:10.3f} ms   bm25s {peer * 1e3:10.3f} ms   bm25s / ours {peer / mine:.2f}")


if __name__ == "__main__":
    main()

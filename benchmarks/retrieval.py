"""Exact top-k of learned sparse representations: ours, BMP, PISA, Seismic, tantivy, SciPy on one synthetic collection.

    python benchmarks/retrieval.py [--documents 500000] [--queries 50] [--repeats 3] [--order topical|shuffled]
                                   [--block-size 64] [--peers bmp,pisa,seismic,tantivy,scipy] [--threads]

The collection is as a SPLADE encoder's: 30,000 terms, about 118 a document, frequencies by Zipf's law, strong weights
on the core terms of a document's topic and weak ones elsewhere, 8-bit impacts; queries have 35 terms. In topical
order the documents of a topic stand together. Every engine gets the same whole numbers, so exact ones give the same
scores, which is checked; the recall of others is printed (BMP's list at alpha = beta = 1 is nearly the exact one; why
not quite was not looked into; tantivy knows no impacts, so it ranks by its own BM25 with a query's weights as boosts,
and its time is that of another question over the same lists). Jobs take turns in one process on one thread; the first
turn is warm-up. Times are of the processor clock, per query, and with Python's share: set OMP_NUM_THREADS=1. Peers that
are not installed are named and left out; PISA's wheel needs that of tbb 2020.3 on LD_LIBRARY_PATH.

Measured at 500,000 documents (59.9 million postings, 796,000 of them a query's) in topical order: docs/retrieval.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from table import setting

from ellzero.kernels import impact
from ellzero.retrieval import ImpactIndex
from ellzero.rng import rng

TERMS, TOPICS, LENGTH = 30_000, 1_000, 35
CORE = 400


def make_collection(documents: int, queries: int, seed: int = 0) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Impacts ``[documents, terms]`` of 1 to 255 in topical order, and queries of whole numbers up to 255."""
    draw = rng(seed, "benchmark retrieval")
    popular = np.cumsum((np.arange(TERMS) + 50.0) ** -0.95)
    popular /= popular[-1]
    slope = np.cumsum(1 / (np.arange(CORE) + 20.0))
    slope /= slope[-1]
    core = np.searchsorted(popular, draw.random((TOPICS, CORE)))
    parts = []
    for first in range(0, documents, 50_000):
        n = min(50_000, documents - first)
        topic = np.arange(first, first + n) * TOPICS // documents
        own, rank = draw.random((n, 134)) < 0.55, np.searchsorted(slope, draw.random((n, 134)))
        columns = np.where(own, core[topic[:, None], rank], np.searchsorted(popular, draw.random((n, 134))))
        weight = np.log1p(np.where(own, 1.6 / (1 + rank / 40), 0.3) * draw.gamma(3.0, 0.4, (n, 134)))
        key = (np.arange(n)[:, None] * TERMS + columns).ravel()
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        key, weight = key[order][starts], np.maximum.reduceat(weight.ravel()[order], starts)
        impacts = np.clip(np.rint(weight * 100), 1, 255).astype(np.uint8)
        ptr = np.searchsorted(key, np.arange(n + 1) * TERMS)
        parts.append(sparse.csr_array((impacts, (key % TERMS).astype(np.int32), ptr), shape=(n, TERMS)))
    rows = []
    for _ in range(queries):
        topic = draw.integers(TOPICS)
        rank = np.unique(np.searchsorted(slope, draw.random(26)))
        weights = dict(zip(core[topic, rank].tolist(), (1.6 / (1 + rank / 40)).tolist()))
        while len(weights) < LENGTH:
            weights.setdefault(int(np.searchsorted(popular, draw.random())), 0.3)
        value = np.log1p(np.array(list(weights.values())) * draw.gamma(3.0, 0.4, LENGTH))
        row = np.zeros(TERMS, np.int32)
        row[list(weights)] = np.clip(np.rint(value * 100), 1, 255)
        rows.append(sparse.csr_array(row[None]))
    return sparse.csr_array(sparse.vstack(parts, format="csr")), sparse.csr_array(sparse.vstack(rows, format="csr"))


Search = Callable[[int], list[np.ndarray]]
"""k -> the scores of each query's hits, descending."""


def ours(index: ImpactIndex, Q: sparse.csr_array, algorithm: str, threads: int = 1) -> Search:
    return lambda k: index.search(Q, k, algorithm=algorithm, n_threads=threads).scores


def with_scipy(X: sparse.csr_array, Q: sparse.csr_array) -> Search:
    by_term, asked = sparse.csr_array(X.T.astype(np.int32)), Q.astype(np.int32)

    def run(k: int) -> list[np.ndarray]:
        found = []
        for q in range(asked.shape[0]):
            scores = (asked[[q]] @ by_term).data
            best = np.partition(scores, -k)[-k:] if len(scores) > k else scores
            found.append(np.sort(best)[::-1])
        return found

    return run


def with_bmp(X: sparse.csr_array, Q: sparse.csr_array, folder: Path) -> tuple[Search, int]:
    import bmp

    path = str(folder / "index.bmp")
    indexer = bmp.Indexer(path, 32, True)
    names = np.array([f"t{c}" for c in range(X.shape[1])], object)
    for d in range(X.shape[0]):
        part = slice(X.indptr[d], X.indptr[d + 1])
        indexer.add_document(str(d), dict(zip(names[X.indices[part]].tolist(), X.data[part].tolist())))
    indexer.finish()
    searcher = bmp.Searcher(path)
    asked = [{f"t{c}": int(v) for c, v in zip(*_row(Q, q))} for q in range(Q.shape[0])]
    run = lambda k: [searcher.search(q, k=k, alpha=1.0, beta=1.0)[0] for q in asked]  # noqa: E731 (its scores are in
    return run, Path(path).stat().st_size  # units of its own, so its hits are scored anew outside the clock)


def with_seismic(X: sparse.csr_array, Q: sparse.csr_array) -> tuple[Search, int]:
    import seismic

    kind = seismic.get_seismic_string()
    names = np.array([f"t{c}" for c in range(X.shape[1])], dtype=kind)
    dataset = seismic.SeismicDataset()
    for d in range(X.shape[0]):
        part = slice(X.indptr[d], X.indptr[d + 1])
        dataset.add_document(str(d), names[X.indices[part]], X.data[part].astype(np.float32))
    index = seismic.SeismicIndex.build_from_dataset(dataset, num_threads=1)
    asked = [(names[np.array(c)], np.array(v, np.float32)) for c, v in (_row(Q, q) for q in range(Q.shape[0]))]

    def run(k: int) -> list[np.ndarray]:
        return [np.array([s for _, s, _ in index.search("q", *q, k=k, query_cut=10, heap_factor=0.8)]) for q in asked]

    return run, 0


def with_tantivy(X: sparse.csr_array, Q: sparse.csr_array, folder: Path) -> tuple[Search, int]:
    import tantivy

    fields = tantivy.SchemaBuilder()
    fields.add_text_field("terms", stored=False, tokenizer_name="whitespace", index_option="freq")
    fields.add_integer_field("number", stored=False, fast=True)
    home = folder / "tantivy"
    home.mkdir()
    held = tantivy.Index(fields.build(), path=str(home))
    writer = held.writer(heap_size=500_000_000, num_threads=1)
    names = np.array([f"t{c}" for c in range(X.shape[1])], object)
    for d in range(X.shape[0]):
        text = " ".join(names[X.indices[X.indptr[d] : X.indptr[d + 1]]].tolist())
        writer.add_document(tantivy.Document(terms=[text], number=[d]))
    writer.commit()
    writer.wait_merging_threads()
    held.reload()
    searcher, should = held.searcher(), tantivy.Occur.Should
    asked = []
    for q in range(Q.shape[0]):
        parts = [tantivy.Query.term_query(held.schema, "terms", f"t{c}", "freq") for c in _row(Q, q)[0]]
        boosted = [tantivy.Query.boost_query(part, float(v)) for part, v in zip(parts, _row(Q, q)[1])]
        asked.append(tantivy.Query.boolean_query([(should, part) for part in boosted]))

    def run(k: int) -> list[Any]:
        return [searcher.search(query, k, count=False).hits for query in asked]

    run.documents = lambda hits: searcher.fast_field_values("number", [place for _, place in hits])
    return run, sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


def _pisa() -> Any:
    """The extension module alone: its package would import PyTerrier and with it a Java machine."""
    package = importlib.util.find_spec("pyterrier_pisa")
    if package is None:
        raise ImportError("pyterrier-pisa is not installed")
    file = next(Path(package.submodule_search_locations[0]).glob("_pisathon*.so"))
    spec = importlib.util.spec_from_file_location("_pisathon", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_pisa(X: sparse.csr_array, Q: sparse.csr_array, folder: Path) -> tuple[Search, int]:
    _pisathon = _pisa()
    by_term = sparse.csc_array(X)
    with open(folder / "inv.docs", "wb") as docs, open(folder / "inv.freqs", "wb") as counts:
        docs.write(np.array([1, X.shape[0]], np.uint32).tobytes())
        names = sorted((f"t{c}", c) for c in range(X.shape[1]) if by_term.indptr[c + 1] > by_term.indptr[c])
        for _, c in names:
            part = slice(by_term.indptr[c], by_term.indptr[c + 1])
            size = np.array([part.stop - part.start], np.uint32).tobytes()
            docs.write(size + by_term.indices[part].astype(np.uint32).tobytes())
            counts.write(size + by_term.data[part].astype(np.uint32).tobytes())
    lengths = X.sum(1).astype(np.uint32)
    (folder / "inv.sizes").write_bytes(np.concatenate([[len(lengths)], lengths]).astype(np.uint32).tobytes())
    (folder / "fwd.terms").write_text("".join(f"{name}\n" for name, _ in names))
    (folder / "fwd.documents").write_text("".join(f"{d}\n" for d in range(X.shape[0])))
    for name in ("terms", "documents"):
        _pisathon.build_binlex(str(folder / f"fwd.{name}"), str(folder / f"fwd.{name[:4].rstrip('u')}lex"))
    context = _pisathon.RetrievalContext()
    stops = folder / "stops"
    stops.write_text("")
    _pisathon.prepare_index(context, str(folder), "block_simdbp", "quantized", "", quantize=0, stop_fname=str(stops))
    asked = [(q, {f"t{c}": float(v) for c, v in zip(*_row(Q, q))}) for q in range(Q.shape[0])]

    def run(k: int) -> list[np.ndarray]:
        n = Q.shape[0] * k
        places, ranks, scores = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
        size = _pisathon.retrieve(context, "maxscore", asked, k=k, threads=1, query_weighted=1, pretokenised=1,
                                  result_qidxs=places, result_docnos=np.empty(n, object), result_ranks=ranks,
                                  result_scores=scores)  # fmt: skip
        return [scores[:size][places[:size] == q] for q in range(Q.shape[0])]

    size = sum(path.stat().st_size for path in folder.iterdir() if "simdbp" in path.name)
    return run, size


def _row(Q: sparse.csr_array, q: int) -> tuple[list[int], list[int]]:
    part = slice(Q.indptr[q], Q.indptr[q + 1])
    return Q.indices[part].tolist(), Q.data[part].tolist()


def race(engines: dict[str, Search], k: int, X: Any, Q: Any, repeats: int, exact: str) -> None:
    """Milliseconds a query, turn by turn; every engine's scores are held against those of ``exact``."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    truth = engines[exact](k)
    for turn in range(repeats + 1):
        for name, search in engines.items():
            start = time.process_time()
            found = search(k)
            if turn:
                times[name].append(1000 * (time.process_time() - start) / Q.shape[0])
            else:
                if name in ("bmp", "tantivy"):
                    numbers = [search.documents(hits) for hits in found] if name == "tantivy" else found
                    found = [np.sort((X[np.array(ids, int)].astype(int) @ Q[[q]].T.astype(int)).toarray()[:, 0])[::-1]
                             for q, ids in enumerate(numbers)]  # fmt: skip
                shares = [(np.asarray(a)[: len(b)] >= b[-1]).mean() for a, b in zip(found, truth) if len(b) and len(a)]
                print(f"  {name:24} recall {np.mean(shares):.4f}", flush=True)
    base = statistics.median(times["ours"])
    for name, spent in times.items():
        middle = statistics.median(spent)
        print(f"  {name:24} {middle:9.3f} ms ({min(spent):.3f} to {max(spent):.3f}), {middle / base:.2f} of ours")


def read_rate() -> float:
    """Bytes a second that one thread reads from memory: the best of five sums over 256 MB."""
    block = np.ones(2**25)
    spent = []
    for _ in range(5):
        start = time.process_time()
        block.sum()
        spent.append(time.process_time() - start)
    return block.nbytes / min(spent)


def where_bytes_are(index: ImpactIndex) -> dict[str, float]:
    """Bytes a posting of each part of an index of one segment."""
    x, found = index._snapshot.segments[0].lists.arrays, {}
    windows, size = x.windows, np.diff(x.starts.astype(np.int64))
    found["short lists"] = int(size[x.form == 0].sum())
    found["largest impacts"] = windows * int((x.form > 0).sum())
    found["sizes of cuts"] = windows * int(x.form.sum(dtype=np.int64))
    for name in ("bounds", "gaps", "places"):
        found[name] = 0
    for start, form in zip(x.starts.tolist(), x.form.tolist()):
        if form:
            sizes = x.data[start + windows : start + windows * (1 + form)].view(f"<u{form}").astype(np.int64)
            pairs, wide = sizes >> 1, (sizes & 1).astype(bool)
            found["bounds"] += 32 * int((pairs >= impact.LEAST_BOUNDED).sum())
            found["gaps"] += 2 * int(pairs[~wide].sum())
            packed = (3 * pairs + 1) // 2 if x.shift <= 6 else 2 * pairs
            found["places"] += int((pairs + packed)[wide].sum())
    found["ids' order and terms"] = index.nbytes - sum(found.values())
    return {name: count / index.postings for name, count in found.items()}


def on_threads(index: ImpactIndex, Q: Any, repeats: int) -> None:
    """A batch on one thread and on two, by turns: the wall clock, and the processor's time of all threads together.

    Where two threads take more processor time than one, the cores wait for one another (hardware threads of one core,
    memory, other programs): the gain of the wall clock cannot pass twice the ratio of the two.
    """
    for k in (10, 1000):
        spent: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for turn in range(4 * repeats + 1):
            for threads in spent:
                wall, busy = time.perf_counter(), time.process_time()
                index.search(Q, k, n_threads=threads)
                if turn:
                    spent[threads].append((time.perf_counter() - wall, time.process_time() - busy))
        (one, alone), (two, both) = (1000 * np.min(spent[threads], axis=0) / Q.shape[0] for threads in (1, 2))
        print(f"k = {k}, a batch on two threads: {one / two:.2f} times one thread's rate ({one:.3f} and {two:.3f} ms "
              f"a query); processor time {alone:.3f} and {both:.3f} ms, so at most {2 * alone / both:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--order", choices=["topical", "shuffled"], default="topical")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--peers", default="bmp,pisa,tantivy,scipy", help="also seismic, slow to build")
    parser.add_argument("--threads", action="store_true", help="measure a batch on two threads by the wall clock")
    options = parser.parse_args()
    X, Q = make_collection(options.documents, options.queries)
    if options.order == "shuffled":
        X = sparse.csr_array(X[rng(0, "shuffle").permutation(X.shape[0])])
    frequency = np.bincount(X.indices, minlength=TERMS)
    print(f"{X.shape[0]} documents, {X.nnz} postings, {Q.shape[0]} queries of {LENGTH} terms and "
          f"{frequency[Q.indices].sum() / Q.shape[0]:.0f} postings, {options.order} order; {setting()}")  # fmt: skip
    each = frequency[Q.indices].sum() / Q.shape[0]
    print(f"bound: reading two bytes of each such posting takes {1000 * 2 * each / read_rate():.3f} ms, one addition a "
          f"nanosecond {each / 1e6:.3f} ms")  # fmt: skip
    start = time.process_time()
    index = ImpactIndex.build(X, block_size=options.block_size, scale=1.0)
    spent = time.process_time() - start
    print(f"built in {spent:.1f} s, {X.shape[0] / spent * 60 / 1e6:.2f} M documents a minute; {index!r}")
    print("bytes a posting: " + ", ".join(f"{name} {count:.3f}" for name, count in where_bytes_are(index).items()))
    engines = {
        "ours": ours(index, Q, "auto"),
        "ours, exhaustive": ours(index, Q, "exhaustive"),
        "ours, bmp": ours(index, Q, "bmp"),
    }
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Any]] = {
            "bmp": lambda: with_bmp(X, Q, Path(folder)), "pisa": lambda: with_pisa(X, Q, Path(folder)),
            "seismic": lambda: with_seismic(X, Q), "tantivy": lambda: with_tantivy(X, Q, Path(folder)),
            "scipy": lambda: (with_scipy(X, Q), X.nnz * 5),
        }  # fmt: skip
        for name in filter(None, options.peers.split(",")):
            try:
                engines[name], size = makers[name]()
                told = f"{size / X.nnz:.2f} bytes a posting" if size else "its size was not asked"
                print(f"{name}: {told}", flush=True)
            except ImportError as error:
                print(f"{name}: not measured ({error})")
        for k in (10, 1000):
            print(f"k = {k}")
            race(engines, k, X, Q, options.repeats, "ours, exhaustive")
    if options.threads:
        on_threads(index, Q, options.repeats)


if __name__ == "__main__":
    main()

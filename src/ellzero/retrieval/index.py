"""The index of sparse representations: build, search, explain, append, delete, merge.

Lives here: ``ImpactIndex``, which joins quantisation, segments and the compiled search. Does not live here: inverted
lists (``layouts.inverted``), files (``segments``), who writes the rows (BM25, encoders).
A searcher works on the snapshot that it found; writers replace the snapshot as a whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check, check_choice, check_integer
from ellzero.layouts.inverted import checked_shift
from ellzero.registry import register
from ellzero.retrieval import segments as disk
from ellzero.retrieval.building import check_vocabulary, index_home, make_segment, permutation, pieces
from ellzero.retrieval.explaining import contributions
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.ids import as_ids
from ellzero.retrieval.quantise import Queries, as_matrix, as_queries, impact_scale, quantise
from ellzero.retrieval.segments import Segment

__all__ = ["ImpactIndex"]

ALGORITHMS = ("auto", "exhaustive", "bmp")


@dataclass(frozen=True)
class _Snapshot:
    segments: tuple[Segment, ...]
    generation: int = 0


@register(
    id="S141", kind="method", wing="retrieval", source="arXiv:2405.01117",
    claim="pruning by block bounds gives the exhaustive list and reads a fraction of the postings",
    example=lambda: ImpactIndex.build(np.eye(4)),
)  # fmt: skip
class ImpactIndex:
    """Exact top-k of ``Q X'`` for sparse, non-negative ``X`` and ``Q``, from an inverted index of 8-bit impacts.

    A document's weight is stored as ``round(weight / scale)`` within 1..255, a query's weights are rounded to 15 bits
    (whole numbers are taken as they are), and the score is the exact sum of their products. Hits are ordered by score
    descending, then by document id ascending (numbers as numbers, text by code point); documents with score 0 are no
    hits. Every algorithm gives the same list at ``alpha = beta = 1``, for every block size and document order.

    ``bmp`` is block-max pruning, Mallia et al. (2024), equations 1 and 2: blocks whose sum of largest impacts
    ``UB = sum_t w_t max_{d in block} x_dt`` does not reach the threshold hold no hit. Here bounds have two levels,
    windows of 64 blocks and the blocks within, and what is scored or left out is a window.

    Made by ``build`` or ``load``; ``append``, ``delete`` and ``merge`` change it, on the disk too if it stands there.
    """

    def __init__(
        self,
        snapshot: _Snapshot,
        *,
        terms: int,
        scale: float,
        levels: int,
        block_size: int,
        vocabulary: Sequence[str] | None = None,
        path: Path | None = None,
    ):
        self._snapshot = snapshot
        self.terms, self.scale, self.levels, self.block_size = terms, scale, levels, block_size
        self.vocabulary = None if vocabulary is None else list(vocabulary)
        self._columns = None if vocabulary is None else {term: column for column, term in enumerate(vocabulary)}
        self.path = path
        self._writing = threading.Lock()

    @classmethod
    def build(
        cls,
        X: Any,
        ids: Iterable[Any] | None = None,
        *,
        bits: int = 8,
        scale: float | None = None,
        order: str | Sequence[int] | np.ndarray = "none",
        block_size: int = 64,
        vocabulary: Sequence[str] | None = None,
        path: str | os.PathLike | None = None,
        postings_at_once: int = 20_000_000,
    ) -> ImpactIndex:
        """An index of the rows of ``X``.

        Parameters
        ----------
        X : sparse or dense ``[documents, terms]`` of weights, zero or more; or an iterable of pairs ``(X, ids)``, which
            may be larger than memory.
        ids : one per document, all whole numbers or all text; default 0, 1, ...
        bits : levels of a stored weight are 1 to ``2^bits - 1``; at most 8.
        scale : the weight of one level; default the largest weight over the number of levels, or 1 where all weights
            are whole numbers that fit. An iterable of other numbers must give it.
        order : ``"none"``; ``"bp"``, by ``graph_bisection`` (slow to make); or a permutation: documents that stand
            together share bounds, so similar ones should.
        block_size : documents that share a bound: a power of two up to 1024.
        vocabulary : the terms' names, for queries given as dictionaries and for ``explain``.
        path : a folder to hold the index; an index that stands there stays until the new one is complete.
        postings_at_once : of an iterable: about so many are held in memory.

        Raises
        ------
        InputError : negative or infinite weights, an id that stands twice, weights that do not fit the scale.
        """
        levels = 2 ** check_integer("bits", bits, at_least=1, at_most=8) - 1
        checked_shift(block_size)
        if scale is not None:
            check("scale", scale, above=0, below=np.inf)
        if isinstance(order, str):
            check_choice("order", order, ["none", "bp"])
        home = None if path is None else index_home(path)
        if hasattr(X, "shape"):
            matrix = as_matrix("X", X)
            documents = as_ids("ids", range(matrix.shape[0]) if ids is None else ids, matrix.shape[0])
            scale = impact_scale(matrix, levels) if scale is None else float(scale)
            parts: Iterable = [(quantise("X", matrix, scale, levels), documents)]
            terms = matrix.shape[1]
        else:
            if ids is not None or not (isinstance(order, str) and order == "none"):
                raise InputError("ids: an iterable of pairs (X, ids) brings its own ids and order")
            parts, terms, scale = pieces(X, scale, levels, postings_at_once)
        index = cls(_Snapshot(()), terms=terms, scale=scale, levels=levels, block_size=block_size,
                    vocabulary=vocabulary)  # fmt: skip
        if vocabulary is not None:
            check_vocabulary(index.vocabulary, terms)
        index._fill(parts, order, home)
        return index

    def _fill(self, parts: Iterable, order: Any, home: Path | None) -> None:
        """Make a segment of each part, then one of all; on the disk where there is a home."""
        made: list[Segment] = []
        with disk.lock(home) if home is not None else _NoLock():
            for impacts, ids in parts:
                segment = make_segment(impacts, ids, permutation(order, impacts, self.block_size), self.block_size)
                made.append(segment if home is None else disk.write_segment(home, segment))
            if len(made) > 1:
                made = [disk.merge(made) if home is None else disk.merge_into(home, made)]
            generation = 0
            if home is not None:
                generation = disk.write_index(home, made, self._meta(), self.vocabulary)
        self.path, self._snapshot = home, _Snapshot(tuple(made), generation)

    # ------------------------------------------------------------ facts

    @property
    def documents(self) -> int:
        """Documents that can be found."""
        return sum(segment.live for segment in self._snapshot.segments)

    @property
    def postings(self) -> int:
        """Stored postings, those of deleted documents included."""
        return sum(segment.lists.nnz for segment in self._snapshot.segments)

    @property
    def nbytes(self) -> int:
        """Bytes of the inverted lists with their bounds and directories."""
        return sum(segment.lists.nbytes for segment in self._snapshot.segments)

    @property
    def segments(self) -> int:
        """Number of segments."""
        return len(self._snapshot.segments)

    def __len__(self) -> int:
        return self.documents

    def __repr__(self) -> str:
        return (
            f"ImpactIndex({self.documents} documents, {self.terms} terms, {self.postings} postings, "
            f"{self.segments} segments, {self.nbytes / max(self.postings, 1):.2f} bytes a posting)"
        )

    def _meta(self) -> dict[str, Any]:
        return {"terms": self.terms, "scale": self.scale, "levels": self.levels, "block_size": self.block_size}

    # ------------------------------------------------------------ search

    def search(
        self,
        Q: Any,
        k: int = 10,
        *,
        algorithm: str = "auto",
        alpha: float = 1.0,
        beta: float = 1.0,
        within: Iterable[Any] | None = None,
        n_threads: int | None = None,
    ) -> Hits:
        """The k best documents of each query.

        Parameters
        ----------
        Q : ``[queries, terms]`` sparse or dense, or a list of dictionaries of weights by term (its name, or its
            column). Terms that the index does not have are ignored.
        algorithm : ``"exhaustive"``, ``"bmp"``, or ``"auto"``, which chooses and says why.
        alpha : below 1, a window is left out where ``alpha * bound`` is below the threshold: faster, and not exact.
        beta : below 1, only the share of a query's terms with the largest weights is used, at least one.
        within : ids among which to search; those that the index does not have are ignored.
        n_threads : over queries; default all. The result does not depend on it.

        Raises
        ------
        InputError : k below 1, an unknown algorithm, alpha or beta outside (0, 1], weights that are negative.
        """
        k = check_integer("k", k, at_least=1)
        check_choice("algorithm", algorithm, ALGORITHMS)
        check("alpha", alpha, above=0, at_most=1)
        if n_threads is not None:
            check_integer("n_threads", n_threads, at_least=1)
        snapshot = self._snapshot
        queries = as_queries(Q, self.terms, self._columns, beta)
        algorithm, why = self._choose(algorithm, snapshot, queries, k)
        filtered = None if within is None else list(within)
        options = {"prune": algorithm == "bmp", "alpha": alpha, "n_threads": n_threads}
        found, counts = [], np.zeros(4, np.int64)
        for segment in snapshot.segments:
            allowed = segment.allowed(_ranks_within(segment, filtered))
            hits = segment.lists.search(*queries[:3], min(k, max(len(segment.ids), 1)), allowed=allowed, **options)
            counts += hits.counts.sum(0)
            found.append((segment, hits))
        ids, scores = _join(found, queries, k, self.scale)
        return Hits(ids, scores, algorithm, why, (alpha == 1 or algorithm == "exhaustive") and beta == 1,
                    int(counts[0]), int(counts[1] + counts[2]), int(counts[3]), k)  # fmt: skip

    def _choose(self, algorithm: str, snapshot: _Snapshot, queries: Queries, k: int) -> tuple[str, str]:
        if algorithm != "auto":
            return algorithm, "asked for"
        windows = sum(segment.lists.arrays.windows for segment in snapshot.segments)
        frequency = sum(segment.lists.arrays.frequency for segment in snapshot.segments)
        postings = int(np.sum(frequency[queries.terms], dtype=np.int64)) if snapshot.segments else 0
        each = postings / max(len(queries), 1)
        if windows <= 2:
            return "exhaustive", f"{windows} windows of {64 * self.block_size} documents leave nothing to skip"
        if k * 4 >= self.documents:
            return "exhaustive", f"k is {k} of {self.documents} documents, so most are scored anyway"
        if k >= 6 * windows:
            return "exhaustive", f"k is {k} over {windows} windows, so that nearly each holds hits"
        if each < 16 * windows:
            return "exhaustive", f"{each:.0f} postings a query over {windows} windows cost less than their bounds"
        return "bmp", f"{each:.0f} postings a query over {windows} windows: bounds cost a hundredth of them"

    def explain(self, query: Any, document: Any) -> dict[str, Any]:
        """Why a document has its score: per term the query's weight, the document's weight and their product.

        Parameters
        ----------
        query : one row of weights, or a dictionary. document : its id.

        Returns
        -------
        ``{"id", "score", "terms": [{"term", "query", "document", "score"}, ...]}``, largest contribution first; the
        numbers are those that the index works with.
        """
        found = self.reasons(query, [document])[0]
        if found is None:
            raise InputError(f"document: got {document!r}, which the index does not hold")
        return found

    def reasons(self, query: Any, documents: Sequence[Any]) -> list[dict[str, Any] | None]:
        """``explain`` for several documents, each list read once; None for those that the index does not hold."""
        rows = [query] if isinstance(query, dict) else query
        queries = as_queries(np.atleast_2d(rows) if isinstance(rows, np.ndarray) else rows, self.terms, self._columns)
        if len(queries) != 1:
            raise InputError(f"query: got {len(queries)} queries, want one")
        return contributions(self._snapshot.segments, queries, list(documents), self.scale, self.vocabulary)

    # ------------------------------------------------------------ changes

    def append(self, X: Any, ids: Iterable[Any]) -> None:
        """Add documents as a new segment.

        Raises
        ------
        InputError : another number of terms, a weight above the index's largest, an id that is there already.
        """
        matrix = as_matrix("X", X, self.terms)
        names = as_ids("ids", ids, matrix.shape[0])
        impacts = quantise("X", matrix, self.scale, self.levels)
        with self._turn() as snapshot:
            self._check_kind(snapshot, names)
            for segment in snapshot.segments:
                there = np.flatnonzero(segment.find(names) >= 0)
                if len(there):
                    raise InputError(f"ids: {names[there[0]]!r} is in the index already; delete it first")
            made = make_segment(impacts, names, None, self.block_size)
            if self.path is not None:
                made = disk.write_segment(self.path, made)
            self._commit([*snapshot.segments, made])

    def delete(self, ids: Iterable[Any]) -> int:
        """Take documents out; they cost space until the next merge. Returns how many; unknown ids are refused."""
        with self._turn() as snapshot:
            names = as_ids("ids", ids)
            left = np.ones(len(names), bool)
            kept = []
            for segment in snapshot.segments:
                ranks = segment.find(names)
                left &= ranks < 0
                kept.append(segment.without(ranks[ranks >= 0]) if (ranks >= 0).any() else segment)
            if left.any():
                raise InputError(f"ids: {names[np.flatnonzero(left)[0]]!r} is not in the index")
            self._commit(kept)
        return len(np.unique(names))

    def merge(self) -> None:
        """Make one segment of all, and drop what was deleted; memory holds some terms at a time."""
        with self._turn() as snapshot:
            if len(snapshot.segments) < 2 and all(segment.deleted is None for segment in snapshot.segments):
                return
            whole = list(snapshot.segments)
            self._commit([disk.merge(whole) if self.path is None else disk.merge_into(self.path, whole)])

    def _turn(self):
        return _Turn(self)

    def _commit(self, segments: list[Segment]) -> None:
        generation = self._snapshot.generation
        if self.path is not None:
            generation = disk.write_index(self.path, segments, self._meta(), self.vocabulary)
        self._snapshot = replace(self._snapshot, segments=tuple(segments), generation=generation)

    def _check_kind(self, snapshot: _Snapshot, names: np.ndarray) -> None:
        kind = "number" if names.dtype.kind == "i" else "text"
        for segment in snapshot.segments:
            if len(segment.ids) and len(names) and segment.ids.kind != kind:
                raise InputError(f"ids: got {kind}s, and the index has {segment.ids.kind}s")

    # ------------------------------------------------------------ files

    def save(self, path: str | os.PathLike) -> None:
        """Write the index to a folder; from then on it stands there, and changes are written too."""
        home = index_home(path)
        with self._writing, disk.lock(home):
            made = [disk.write_segment(home, segment) for segment in self._snapshot.segments]
            generation = disk.write_index(home, made, self._meta(), self.vocabulary)
            self.path, self._snapshot = home, _Snapshot(tuple(made), generation)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ImpactIndex:
        """The index in a folder, mapped into memory, with every file's hash checked.

        Raises
        ------
        InputError : a torn, changed, missing, foreign or newer file, by name.
        """
        home = Path(path)
        made, meta, vocabulary, generation = disk.read_index(home)
        try:
            return cls(_Snapshot(tuple(made), generation), vocabulary=vocabulary, path=home, **meta)
        except TypeError as error:
            raise InputError(f"{home}: is not an index that this version knows ({error})") from error

    @classmethod
    def from_ciff(cls, path: str | os.PathLike, **options: Any) -> ImpactIndex:
        """An index of a CIFF file, whose counts are the weights; options as ``build``."""
        from ellzero.retrieval.ciff import read_ciff

        held = read_ciff(path)
        return cls.build(held.X, held.ids, vocabulary=held.vocabulary, **options)

    def to_ciff(self, path: str | os.PathLike) -> None:
        """Write impacts, ids and terms as CIFF; deleted documents are left out, terms need names."""
        from ellzero.retrieval.ciff import write_ciff

        if self.vocabulary is None:
            raise InputError("vocabulary: the index has none, and CIFF names its terms")
        parts = [part for segment in self._snapshot.segments if (part := disk.merge([segment])).lists.documents]
        matrices = [part.lists.to_csr() for part in parts] or [sparse.csr_array((0, self.terms), dtype=np.uint8)]
        names = [
            name for part in parts for name in part.ids.take(np.asarray(part.lists.arrays.rank, np.int64)).tolist()
        ]
        write_ciff(path, sparse.vstack(matrices), names, self.vocabulary)


class _Turn:
    """The turn of one writer: the index's own, and the folder's; a folder that another process changed is refused."""

    def __init__(self, index: ImpactIndex):
        self.index = index
        self.files = _NoLock() if index.path is None else disk.lock(index.path)

    def __enter__(self) -> _Snapshot:
        self.index._writing.acquire()
        try:
            self.files.__enter__()
            index = self.index
            if index.path is not None:
                now = disk.manifest.load(index.path, disk.INDEX, version=disk.VERSION).number
                if now != index._snapshot.generation:
                    raise InputError(f"{index.path}: was changed by another writer since it was loaded; load it again")
            return index._snapshot
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *error: Any) -> None:
        self.files.__exit__(*error)
        self.index._writing.release()


class _NoLock:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        return None


def _ranks_within(segment: Segment, ids: list | None) -> np.ndarray | None:
    if ids is None:
        return None
    ranks = segment.find(ids)
    return ranks[ranks >= 0]


def _join(found: list, queries: Queries, k: int, scale: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids and scores of the k best over all segments, which share one unit of scores."""
    if len(found) == 1:
        segment, hits = found[0]
        counts = hits.found.tolist()
        valid = np.arange(hits.ranks.shape[1]) < hits.found[:, None]
        names, ends = segment.ids.take(hits.ranks[valid]), np.cumsum(hits.found).tolist()
        whole = hits.scores * (queries.unit * scale)[:, None]
        return [names[end - n : end] for n, end in zip(counts, ends)], [row[:n] for n, row in zip(counts, whole)]
    ids, scores = [], []
    for q in range(len(queries)):
        names = [s.ids.take(h.ranks[q, : h.found[q]]) for s, h in found]
        whole = np.concatenate([h.scores[q, : h.found[q]] for _, h in found] or [np.empty(0, np.int32)])
        names = np.concatenate(names or [np.empty(0, np.int64)])
        order = _order(whole, names)[:k]
        ids.append(names[order])
        scores.append(whole[order] * (queries.unit[q] * scale))
    return ids, scores


def _order(scores: np.ndarray, names: np.ndarray) -> np.ndarray:
    if names.dtype.kind == "i":
        return np.lexsort((names, -scores.astype(np.int64)))
    keys = [(-int(s), n.encode()) for s, n in zip(scores, names)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

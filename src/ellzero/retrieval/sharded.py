"""An index in several shards, each an ``ImpactIndex``: built and searched in this process, or in parallel on Ray.

Lives here: ``ShardedIndex`` and where its work runs. Does not live here: the index of one shard (``index``).

All shards quantise with one scale and see the same queries, so a score does not depend on the shard; hits are merged by
score descending, then id ascending. The list is that of one index over all documents.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ellzero.errors import InputError, check_choice, check_integer, require
from ellzero.io import manifest
from ellzero.retrieval.encoded import Encoded
from ellzero.retrieval.hits import Hits
from ellzero.retrieval.ids import as_ids
from ellzero.retrieval.index import ImpactIndex
from ellzero.retrieval.quantise import as_matrix, impact_scale

__all__ = ["ShardedIndex", "is_sharded"]

KIND, VERSION = "impact-shards", 1
_PREFIX = "shard-"


class Engine(Protocol):
    """Where work runs: ``run`` gives the results in order; ``hold`` opens shards and gives what asks each of them.

    What ``hold`` gives takes the name of a method of ``ImpactIndex`` and its arguments, and gives every shard's answer.
    """

    def run(self, work: Callable, arguments: Sequence[tuple]) -> list: ...

    def hold(self, paths: Sequence[Path]) -> Callable[..., list]: ...


class Here:
    """In this process, one shard after another; threads work within a shard."""

    def run(self, work: Callable, arguments: Sequence[tuple]) -> list:
        return [work(*each) for each in arguments]

    def hold(self, paths: Sequence[Path]) -> Callable[..., list]:
        held = [ImpactIndex.load(path) for path in paths]
        return lambda method, *given, **options: [getattr(index, method)(*given, **options) for index in held]


class OnRay:
    """On a Ray cluster: a task per shard to build, an actor per shard that keeps it open to search.

    Every machine must see the index's folder (and that of the encoded documents) under the same path. A cluster that
    this process is connected to already is used; else one is found or started as ``ray.init`` does with ``options``.
    """

    def __init__(self, **options: Any):
        self.ray = require("ray", "cluster", "to build and search shards in parallel")
        if not self.ray.is_initialized():
            self.ray.init(**options)

    def run(self, work: Callable, arguments: Sequence[tuple]) -> list:
        task = self.ray.remote(work)
        return self.ray.get([task.remote(*each) for each in arguments])

    def hold(self, paths: Sequence[Path]) -> Callable[..., list]:
        actor = self.ray.remote(_Searcher)
        held = [actor.remote() for _ in paths]
        self.ray.get([each.open.remote(str(path)) for each, path in zip(held, paths)])  # a damaged shard is told now

        def ask(method: str, *given: Any, **options: Any) -> list:
            values = [self.ray.put(value) for value in given]
            return self.ray.get([each.ask.remote(method, *values, **options) for each in held])

        ask.actors = held  # they live as long as the function does
        return ask


class _Searcher:
    def open(self, path: str) -> None:
        self.index = ImpactIndex.load(path)

    def ask(self, method: str, *given: Any, **options: Any) -> Any:
        return getattr(self.index, method)(*given, **options)


def _engine(engine: str | Engine) -> Engine:
    if isinstance(engine, str):
        check_choice("engine", engine, ["here", "ray"])
        return Here() if engine == "here" else OnRay()
    return engine


class ShardedIndex:
    """Shards of one index in a folder; search gives what one index over all documents gives.

    Made by ``build`` or ``load``. ``engine`` is ``"here"``, ``"ray"`` (needs the extra ``cluster``), or an ``OnRay``
    with options of its own.
    """

    def __init__(self, path: Path, meta: dict[str, Any], vocabulary: list[str] | None, engine: Engine):
        self.path, self.meta, self.vocabulary = path, meta, vocabulary
        self.terms, self.scale = meta["terms"], meta["scale"]
        self.documents, self.postings, self.nbytes = meta["documents"], meta["postings"], meta["nbytes"]
        self.homes = [path / name for name in meta["shards"]]
        self._columns = None if vocabulary is None else {term: column for column, term in enumerate(vocabulary)}
        self._ask = engine.hold(self.homes)

    @classmethod
    def build(
        cls,
        X: Any,
        ids: Iterable[Any] | None = None,
        *,
        path: str | os.PathLike,
        shards: int = 2,
        engine: str | Engine = "here",
        scale: float | None = None,
        block_size: int = 64,
        vocabulary: Sequence[str] | None = None,
    ) -> ShardedIndex:
        """Shards of the rows of ``X``, or of an ``Encoded`` corpus, whose files each shard's builder reads by itself.

        Parameters
        ----------
        X : sparse or dense ``[documents, terms]``, or ``Encoded``. ids, scale, block_size, vocabulary : as for
            ``ImpactIndex.build``; ``Encoded`` brings its own ids and vocabulary.
        path : a new or empty folder, or one of shards, which stay until the new ones are complete.
        shards : how many; no more than there are documents, or files of encoded documents.

        Raises
        ------
        InputError : as ``ImpactIndex.build``; also ids that stand in two shards.
        """
        engine, home = _engine(engine), _home(path)
        check_integer("shards", shards, at_least=1)
        if isinstance(X, Encoded):
            if ids is not None or vocabulary is not None:
                raise InputError("ids: encoded documents bring their own ids and vocabulary")
            vocabulary, scale = X.vocabulary, X.scale() if scale is None else scale
            parts = [(str(X.path), part.tolist()) for part in np.array_split(X.shards, min(shards, len(X)))]
            terms = len(vocabulary)
        else:
            matrix = as_matrix("X", X)
            names = as_ids("ids", range(matrix.shape[0]) if ids is None else ids, matrix.shape[0])
            scale = impact_scale(matrix, 255) if scale is None else scale
            cuts = np.linspace(0, len(names), max(min(shards, len(names)), 1) + 1).astype(int)
            parts = [(matrix[a:b], names[a:b]) for a, b in itertools.pairwise(cuts)]
            terms = matrix.shape[1]
        folders = [f"{_PREFIX}{secrets.token_hex(8)}" for _ in parts]
        options = {"scale": scale, "block_size": block_size, "vocabulary": vocabulary}
        try:
            work = [(str(home / name), *part, options) for name, part in zip(folders, parts)]
            told = engine.run(_build_shard, work)
            _check_once(home, folders, [marks for _, marks in told])
            sums = {name: sum(facts[name] for facts, _ in told) for name in ("documents", "postings", "nbytes")}
            meta = {"shards": folders, "terms": terms, "scale": scale, **sums}
            content = {} if vocabulary is None else {"vocabulary.txt": "\n".join(vocabulary).encode()}
            manifest.save(home, content, meta, KIND, VERSION)
        except BaseException:
            for name in folders:
                shutil.rmtree(home / name, ignore_errors=True)
            raise
        for old in home.glob(f"{_PREFIX}*"):
            if old.name not in folders:
                shutil.rmtree(old, ignore_errors=True)
        return cls(home, meta, None if vocabulary is None else list(vocabulary), engine)

    @classmethod
    def load(cls, path: str | os.PathLike, *, engine: str | Engine = "here") -> ShardedIndex:
        """The shards in a folder.

        Raises
        ------
        InputError : a torn, changed, missing, foreign or newer file, by name.
        """
        found = manifest.load(path, KIND, version=VERSION)
        there = "vocabulary.txt" in found.files
        vocabulary = found.read("vocabulary.txt").decode().split("\n") if there else None
        return cls(Path(path), dict(found.meta), vocabulary, _engine(engine))

    def __len__(self) -> int:
        return self.documents

    def search(self, Q: Any, k: int = 10, **options: Any) -> Hits:
        """The k best documents of each query; arguments and hits as ``ImpactIndex.search``."""
        k = check_integer("k", k, at_least=1)
        if "within" in options and options["within"] is not None:
            options["within"] = list(options["within"])
        found = self._ask("search", Q, k, **options)
        ids, scores = [], []
        for each in zip(*found):
            names, score = (np.concatenate(part) for part in zip(*each))
            order = _order(names, score)[:k]
            ids.append(names[order])
            scores.append(score[order])
        first = found[0]
        names = sorted({hits.algorithm for hits in found})
        return Hits(ids, scores, "+".join(names), f"{len(found)} shards; the first: {first.why}",
                    all(hits.exact for hits in found), sum(hits.windows_scored for hits in found),
                    sum(hits.windows_left for hits in found), sum(hits.postings for hits in found), k)  # fmt: skip

    def explain(self, query: Any, document: Any) -> dict[str, Any]:
        """Why a document has its score; arguments and answer as ``ImpactIndex.explain``."""
        found = self.reasons(query, [document])[0]
        if found is None:
            raise InputError(f"document: got {document!r}, which the index does not hold")
        return found

    def reasons(self, query: Any, documents: Sequence[Any]) -> list[dict[str, Any] | None]:
        """``explain`` for several documents; None for those that no shard holds."""
        told = self._ask("reasons", query, list(documents))
        return [next((one for one in each if one is not None), None) for each in zip(*told)]


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether a folder holds shards."""
    try:
        manifest.load(path, KIND, version=VERSION)
    except InputError:
        return False
    return True


def _home(path: str | os.PathLike) -> Path:
    home = Path(path)
    if home.is_dir() and any(home.iterdir()):
        manifest.load(home, KIND, version=VERSION)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"path: {home} cannot be made ({error.strerror})") from error
    return home


def _build_shard(path: str, rows: Any, which: Any, options: dict[str, Any]) -> tuple[dict[str, int], np.ndarray]:
    """Build one shard; its sizes, and a mark of each id that is very likely its own."""
    if isinstance(rows, str):
        made = ImpactIndex.build(Encoded(rows, which), path=path, **options)
    else:
        made = ImpactIndex.build(rows, which, path=path, **options)
    marks = [hashlib.blake2b(f"{name!r}".encode(), digest_size=8).digest() for name in _ids(made)]
    facts = {name: getattr(made, name) for name in ("documents", "postings", "nbytes")}
    return facts, np.frombuffer(b"".join(marks), np.uint64)


def _ids(index: ImpactIndex) -> Iterable[Any]:
    for segment in index._snapshot.segments:
        for rank in range(len(segment.ids)):
            yield segment.ids[rank]


def _check_once(home: Path, folders: Sequence[str], marks: Sequence[np.ndarray]) -> None:
    """No id in two shards; where two marks are equal the ids themselves are compared."""
    values, counts = np.unique(np.concatenate(marks), return_counts=True)
    if (counts == 1).all():
        return
    twice, seen = set(values[counts > 1].tolist()), set()
    for name, part in zip(folders, marks):
        if not twice.isdisjoint(part.tolist()):
            for one in _ids(ImpactIndex.load(home / name)):
                mark = int(np.frombuffer(hashlib.blake2b(f"{one!r}".encode(), digest_size=8).digest(), np.uint64)[0])
                if mark in twice and one in seen:
                    raise InputError(f"ids: {one!r} stands twice, want every id once")
                seen.add(one)


def _order(names: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores of one query are whole numbers times one unit, so equal ones are equal to the bit."""
    if names.dtype.kind == "i":
        return np.lexsort((names, -scores))
    keys = [(-score, str(name).encode()) for score, name in zip(scores.tolist(), names)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

"""What an index is built from: its folder, an order, parts of a collection, segments of impacts.

Lives here: the checks and steps of ``ImpactIndex.build``. Does not live here: the index itself, files (``segments``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ellzero.errors import InputError, check_choice, check_integer
from ellzero.layouts.inverted import InvertedLists
from ellzero.retrieval import segments as disk
from ellzero.retrieval.ids import Ids, as_ids
from ellzero.retrieval.ordering import graph_bisection
from ellzero.retrieval.quantise import as_matrix, impact_scale, quantise
from ellzero.retrieval.segments import Segment

__all__ = ["check_vocabulary", "index_home", "make_segment", "permutation", "pieces"]


def index_home(path: str | os.PathLike) -> Path:
    """A folder that is new, empty or an index."""
    home = Path(path)
    if home.exists() and not home.is_dir():
        raise InputError(f"path: {home} is a file, want a folder")
    if home.is_dir() and any(home.iterdir()):
        known = [entry.name for entry in home.iterdir() if not entry.name.startswith((".", "segment-"))]
        if known and disk.manifest.NAME not in known:
            raise InputError(f"path: {home} holds {known[0]!r}, want a new or empty folder, or an index")
        if known:
            disk.manifest.load(home, disk.INDEX, version=disk.VERSION)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"path: {home} cannot be made ({error.strerror})") from error
    return home


def permutation(order: Any, X: Any, block_size: int) -> np.ndarray | None:
    """The order of the rows of ``X``: none, by graph bisection, or as given."""
    if isinstance(order, str):
        check_choice("order", order, ["none", "bp"])
        return None if order == "none" else graph_bisection(X, leaf=block_size)
    documents, order = X.shape[0], np.asarray(order)
    if (
        order.shape != (documents,)
        or order.dtype.kind not in "iu"
        or not np.array_equal(np.sort(order), np.arange(documents))
    ):
        raise InputError(f"order: want a permutation of the {documents} documents, 'none' or 'bp'")
    return order


def make_segment(impacts: Any, ids: np.ndarray, order: np.ndarray | None, block_size: int) -> Segment:
    sorted_ids, rank = Ids.sorted_from(ids)
    if order is not None:
        impacts, rank = impacts[order], rank[order]
    return Segment(InvertedLists.from_csr(impacts, rank=rank, block_size=block_size), sorted_ids)


def pieces(pairs: Iterable, scale: float | None, levels: int, at_once: int) -> tuple[Iterable, int, float]:
    """Quantised parts of about ``at_once`` postings; the number of terms and the scale come from the first pair."""
    check_integer("postings_at_once", at_once, at_least=1)
    pairs = iter(pairs)
    first = next(pairs, None)
    if first is None:
        raise InputError("X: got an iterable without any documents")
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise InputError(f"X: got an iterable of {type(first).__name__}, want pairs (X, ids)")
    matrix = as_matrix("X", first[0])
    terms = matrix.shape[1]
    if scale is None:
        scale = impact_scale(matrix, levels)
        if scale != 1:
            raise InputError("scale: want the weight of one level (the largest weight over 255) for an iterable of "
                             "weights that are not whole numbers up to 255")  # fmt: skip

    def parts() -> Iterable:
        held, names, count = [], [], 0
        for X, ids in itertools.chain([first], pairs):
            impacts = quantise("X", as_matrix("X", X, terms), scale, levels)
            held.append(impacts)
            names.append(as_ids("ids", ids, impacts.shape[0]))
            count += impacts.nnz
            if count >= at_once:
                yield sparse.csr_array(sparse.vstack(held, format="csr")), np.concatenate(names)
                held, names, count = [], [], 0
        if held:
            yield sparse.csr_array(sparse.vstack(held, format="csr")), np.concatenate(names)

    return parts(), terms, float(scale)


def check_vocabulary(vocabulary: list[str], terms: int) -> None:
    if len(vocabulary) != terms or len(set(vocabulary)) != terms:
        raise InputError(f"vocabulary: got {len(set(vocabulary))} different terms, want {terms}, one per column")
    bad = next((term for term in vocabulary if not isinstance(term, str) or "\n" in term), None)
    if bad is not None:
        raise InputError(f"vocabulary: got {bad!r}, want text without line breaks")

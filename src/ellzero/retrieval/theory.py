"""How many dimensions and terms retrieval needs: bounds, what collections say of them, and how quality falls with size.

Lives here: margins and random projections (S115), false positives of dense vectors and growing collections (S161),
overlap of terms (S056). Does not live here: the penalty that makes rows sparse (``parts``), search, plots (``growth``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import betainc

from ellzero.errors import InputError, check, check_array, check_integer
from ellzero.registry import register

__all__ = [
    "effective_dimension", "empirical_margin", "expected_overlap", "false_positive_rate", "flips_at_most",
    "flops_uniformity", "max_index_size", "posting_lengths", "projection_dimension",
]  # fmt: skip


# ------------------------------------------------------------ random projections


def _exponent(margin: Any) -> np.ndarray:
    margin = np.asarray(margin, np.float64)
    if not ((margin > 0) & (margin <= 1)).all():
        raise InputError(f"margin: got {margin.min() if margin.size else 'none'}, want above 0 and at most 1")
    return margin**2 / 2 - margin**3 / 3


@register(
    id="S115", kind="metric", wing="retrieval", source="arXiv:2005.00181, theorem 1",
    claim="dimensions that keep the order of a bag of words grow with the documents' length",
)  # fmt: skip
def projection_dimension(margin: float, error: float = 0.05, *, documents: int = 1) -> int:
    """Dimensions after which a random projection keeps an order of that margin, except with probability ``error``.

    ``k = 2 log(4 D / error) / (mu^2 / 2 - mu^3 / 3)``, rounded up. Luan et al. (2021), theorem 1, with the union over
    ``documents`` pairs D: for one pair leave it at 1, for the first place among n documents take n - 1.

    Parameters
    ----------
    margin : the normalised margin ``<q, d1 - d2> / (|q| |d1 - d2|)`` of ``empirical_margin``, in (0, 1].
    error : in (0, 1).

    Raises
    ------
    InputError : a margin or an error outside; fewer than one document.
    """
    check("error", error, above=0, below=1)
    check_integer("documents", documents, at_least=1)
    return math.ceil(2 * math.log(4 * documents / error) / float(_exponent(check("margin", margin))))


def flips_at_most(margin: Any, k: int, *, documents: int = 1) -> np.ndarray:
    """The bound itself: a pair's order turns with a probability of at most ``4 D exp(-(k / 2)(mu^2/2 - mu^3/3))``.

    Parameters
    ----------
    margin : of any shape, in (0, 1]. k : dimensions. The bound is 1 where the formula gives more.
    """
    k = check_integer("k", k, at_least=1)
    return np.minimum(4 * check_integer("documents", documents, at_least=1) * np.exp(-k / 2 * _exponent(margin)), 1.0)


def empirical_margin(Q: Any, X: Any, *, depth: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Margins of each query's best document over the next ones.

    Parameters
    ----------
    Q, X : queries ``[q, V]`` and documents ``[n, V]``, sparse or dense. depth : ranks 2 to ``depth`` are compared with.

    Returns
    -------
    margins : float64 ``[q, depth - 1]``, NaN where a pair is tied or the query matches nothing.
    ranked : ``[q, depth]``, documents by their place in X, best first, ties by place.
    """
    depth = check_integer("depth", depth, at_least=2)
    Q, X = (sparse.csr_array(part, dtype=np.float64) for part in (Q, X))
    if Q.shape[1] != X.shape[1]:
        raise InputError(f"Q: got {Q.shape[1]} columns, want the {X.shape[1]} of X")
    if X.shape[0] < depth:
        raise InputError(f"depth: got {depth}, want at most the {X.shape[0]} documents")
    size, squares = np.sqrt((Q**2).sum(1)), (X**2).sum(1)
    margins, ranked = np.full((Q.shape[0], depth - 1), np.nan), np.empty((Q.shape[0], depth), np.int64)
    for q in range(Q.shape[0]):
        scores = (X @ Q[[q]].T).toarray().ravel()
        best = np.argsort(-scores, kind="stable")[:depth]
        ranked[q] = best
        shared = (X[best[1:]] @ X[best[:1]].T).toarray().ravel()
        apart = np.sqrt(np.maximum(squares[best[0]] + squares[best[1:]] - 2 * shared, 0))
        gap = scores[best[0]] - scores[best[1:]]
        there = (gap > 0) & (apart > 0)
        margins[q, there] = np.minimum(gap[there] / (size[q] * apart[there]), 1.0)
    return margins, ranked


# ------------------------------------------------------------ false positives


@register(
    id="S161", kind="metric", wing="retrieval", source="arXiv:2012.14210, section 3",
    claim="quality of dense retrieval falls with the collection's size, faster at fewer dimensions",
)  # fmt: skip
def false_positive_rate(similarity: Any, dimensions: Any, documents: Any = 1) -> np.ndarray | float:
    """The probability that one of n random documents is nearer to the query than the relevant one.

    ``1 - (1 - P)^n`` with ``P = I_{1 - s^2}((k - 1) / 2, 1 / 2) / 2``, the share of the sphere in k dimensions that
    lies within the cosine s of the query. Reimers and Gurevych (2021), section 3. Documents are uniform on the sphere;
    embeddings are not, so ``dimensions`` should be the ``effective_dimension`` of theirs, and then it is still hopeful.

    Parameters
    ----------
    similarity : cosine s in [-1, 1]. dimensions : k, 2 or more, whole or not. documents : n, 0 or more. They broadcast.
    """
    s, k, n = (np.asarray(value, np.float64) for value in (similarity, dimensions, documents))
    if not (abs(s) <= 1).all():
        raise InputError(f"similarity: got {similarity}, want cosines from -1 to 1")
    if not (k >= 2).all():
        raise InputError(f"dimensions: got {dimensions}, want 2 or more")
    if not (n >= 0).all():
        raise InputError(f"documents: got {documents}, want 0 or more")
    cap = betainc((k - 1) / 2, 0.5, np.clip(1 - s**2, 0, 1)) / 2
    one = np.where(s < 0, 1 - cap, cap)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(n == 0, 0.0, -np.expm1(n * np.log1p(-one)))
    return found if found.ndim else float(found)


def max_index_size(similarity: float, dimensions: float, error: float = 0.05) -> float:
    """The most random documents among which the relevant one is first, except with probability ``error``.

    Infinite where one of them is nearer with a probability below what float64 holds.
    """
    check("error", error, above=0, below=1)
    one = false_positive_rate(float(check("similarity", similarity, at_least=-1, at_most=1)), dimensions)
    if one in (0.0, 1.0):
        return math.inf if one == 0 else 0.0
    return float(math.floor(math.log1p(-error) / math.log1p(-one)))


def effective_dimension(X: Any) -> float:
    """The participation ratio ``(sum_i l_i)^2 / sum_i l_i^2`` of the covariance's eigenvalues, of rows ``[n, d]``.

    It is d where all directions vary equally, 1 where one alone does.
    """
    X = check_array("X", np.asarray(X), ndim=2, dtypes="f").astype(np.float64)
    if len(X) < 2:
        raise InputError(f"X: got {len(X)} rows, want two or more")
    centred = X - X.mean(0)
    covariance = centred.T @ centred
    total = np.trace(covariance)
    if total <= 0:
        raise InputError("X: all rows are equal, want rows that vary")
    return float(total**2 / (covariance**2).sum())


# ------------------------------------------------------------ overlap of terms


def posting_lengths(X: Any) -> tuple[np.ndarray, int]:
    """In how many documents each term stands, and the number of documents: of a matrix ``[n, V]`` or an index.

    Of an index the stored postings count, those of documents deleted since the last merge included.
    """
    if hasattr(X, "_snapshot"):
        parts = [segment.lists.arrays.frequency for segment in X._snapshot.segments]
        documents = sum(segment.lists.documents for segment in X._snapshot.segments)
        return np.sum(parts, axis=0, dtype=np.int64) if parts else np.zeros(X.terms, np.int64), documents
    if not sparse.issparse(X):
        X = check_array("X", np.asarray(X), ndim=2, dtypes="fiub")
        return (X != 0).sum(0), len(X)
    X = sparse.csr_array(X)
    return np.bincount(X.indices[X.data != 0], minlength=X.shape[1]), X.shape[0]


@register(
    id="S056", kind="metric", wing="retrieval", source="arXiv:2004.05665, section 3",
    claim="at equal activity the work is least where all terms are equally busy",
)  # fmt: skip
def expected_overlap(Q: Any, X: Any) -> float:
    """Terms that a random query shares with a random document: ``F = sum_j p_j^q p_j^d``, the work of one product.

    ``p_j`` is the share of rows in which term j stands, from posting lengths; exact for these rows, not an estimate.
    Paria et al. (2020), section 3; with ``Q = X`` their ``sum_j p_j^2``.

    Parameters
    ----------
    Q, X : matrices ``[rows, V]`` (sparse or dense), or indexes.
    """
    (asked, queries), (there, documents) = posting_lengths(Q), posting_lengths(X)
    if len(asked) != len(there):
        raise InputError(f"Q: got {len(asked)} columns, want the {len(there)} of X")
    if queries == 0 or documents == 0:
        raise InputError("X: got no rows, want one or more on both sides")
    return float((asked / queries) @ (there / documents))


def flops_uniformity(X: Any) -> float:
    """How unevenly terms are used: ``R = V sum_j p_j^2 / (sum_j p_j)^2``, 1 where all are equally busy.

    At the same number of terms a row the expected work is R times the least. Paria et al. (2020), section 3.
    """
    there, documents = posting_lengths(X)
    if documents == 0 or there.sum() == 0:
        raise InputError("X: has no entries, want rows with terms")
    share = there / documents
    return float(len(share) * (share @ share) / share.sum() ** 2)

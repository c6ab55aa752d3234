"""What a recommender is measured against: the most taken items, and neighbours of the items taken.

Lives here: ``Popularity`` and ``ItemKNN``. Does not live here: metrics and splits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from ellzero.errors import check, check_integer
from ellzero.kernels import top_k
from ellzero.recommend.ranking import Recommendations, top_items
from ellzero.registry import register

__all__ = ["ItemKNN", "Popularity"]


def _validated(estimator: BaseEstimator, X: Any, *, reset: bool) -> sparse.csr_array:
    dtypes = [np.float32, np.float64]
    return sparse.csr_array(validate_data(estimator, X, accept_sparse="csr", dtype=dtypes, reset=reset))


@register(kind="estimator", wing="recommend", source="folklore")
class Popularity(BaseEstimator):
    """The same list for everyone: items by the sum of their interactions.

    Attributes
    ----------
    score_ : ``[items]``, the column sums of the interactions.
    """

    def fit(self, X: Any, y: Any = None) -> Popularity:
        """Count interactions ``X`` (users, items). ``y`` is not used."""
        self.score_ = np.asarray(_validated(self, X, reset=True).sum(axis=0))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Scores ``[users, items]``, equal for all users."""
        check_is_fitted(self)
        return np.tile(self.score_, (_validated(self, X, reset=False).shape[0], 1))

    def recommend(self, X: Any, k: int = 10, *, exclude_seen: bool = True) -> Recommendations:
        """The ``k`` most taken items, for each user without those already taken."""
        check_is_fitted(self)
        return top_items(self.predict, X, k, exclude_seen=exclude_seen)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


@register(kind="estimator", wing="recommend", source="Sarwar et al. (2001)")
class ItemKNN(BaseEstimator):
    """Items near those taken: the sum of cosines between items, over each item's nearest neighbours.

    ``S_ij = r_i . r_j / (|r_i| |r_j| + shrink)`` over columns r of the interactions, kept for the ``neighbours`` items
    i that are nearest to j; scores are ``R S``.

    Parameters
    ----------
    neighbours : kept per item; all, where there are fewer.
    shrink : pulls the cosines of items that few have taken towards 0.

    Attributes
    ----------
    similarity_ : S, CSR ``[items, items]`` with a zero diagonal.

    Raises
    ------
    InputError : neighbours below 1, or shrink below 0.
    """

    def __init__(self, neighbours: int = 100, *, shrink: float = 0.0):
        self.neighbours = neighbours
        self.shrink = shrink

    def fit(self, X: Any, y: Any = None) -> ItemKNN:
        """Compare the columns of interactions ``X`` (users, items). ``y`` is not used."""
        check_integer("neighbours", self.neighbours, at_least=1)
        check("shrink", self.shrink, at_least=0)
        X = _validated(self, X, reset=True)
        n_items = X.shape[1]
        keep, by_item = min(self.neighbours, n_items), X.T.tocsr()
        norms = np.sqrt(np.asarray(by_item.multiply(by_item).sum(axis=1)))
        step, parts = max(1, (1 << 22) // n_items), []
        for start in range(0, n_items, step):
            cosines = (by_item[start : start + step] @ X).toarray()
            below = norms[start : start + step, None] * norms + self.shrink
            cosines = np.divide(cosines, below, out=np.zeros_like(cosines), where=below > 0)
            cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = 0
            values, nearest = top_k(cosines, keep)
            rows = np.repeat(np.arange(len(cosines)), keep)
            parts.append(sparse.csr_array((values.ravel(), (rows, nearest.ravel())), shape=cosines.shape))
        self.similarity_ = sparse.csr_array(sparse.vstack(parts).T)
        self.similarity_.eliminate_zeros()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Scores ``[users, items]`` of every item, seen ones too."""
        check_is_fitted(self)
        return (_validated(self, X, reset=False) @ self.similarity_).toarray()

    def recommend(self, X: Any, k: int = 10, *, exclude_seen: bool = True) -> Recommendations:
        """The ``k`` best items of each user by descending score, without those already taken."""
        check_is_fitted(self)
        return top_items(self.predict, X, k, exclude_seen=exclude_seen)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

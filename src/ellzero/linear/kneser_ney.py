"""Interpolated Kneser-Ney smoothing with three discounts: the n-gram model that others are measured by.

Lives here: ``KneserNey``. Does not live here: contexts and counts (``contexts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ellzero.errors import check, check_integer
from ellzero.linear.contexts import Contexts, PairCounts, Shape, as_stream
from ellzero.registry import register

__all__ = ["KneserNey"]


@register(kind="model", wing="linear", source="Chen and Goodman (1999)", example=lambda: KneserNey(2))
class KneserNey:
    """Modified Kneser-Ney: ``P(w | h) = max(c - D(c), 0) / c(h) + gamma(h) P(w | h')``, h' without its farthest word.

    Below the highest order, c counts the different words before (continuation counts). D has a value each for counts of
    one, two and more, by Chen and Goodman's formula from the counts of counts; ``discount`` scales all of them and is
    the one thing to tune. The lowest order is mixed with the uniform distribution.

    Parameters
    ----------
    order : longest n-gram. discount : factor on D, above 0 and at most 2 (D stays within the count).
    """

    def __init__(self, order: int = 5, discount: float = 1.0):
        self.order = check_integer("order", order, at_least=1)
        self.discount = check("discount", discount, above=0, at_most=2)

    def fit(self, documents: Sequence[Any], vocabulary: int) -> KneserNey:
        """Count in documents of tokens 0 to ``vocabulary - 1``; the end of a document is one more token."""
        stream = as_stream(documents, vocabulary)
        self.vocabulary, self.tokens = vocabulary, vocabulary + 1
        self._levels = []
        higher = None
        for n in reversed(range(self.order)):
            contexts = Contexts(Shape(n), stream, self.tokens)
            pairs = PairCounts(contexts.numbers, stream, contexts.count, self.tokens)
            counts = pairs.count if higher is None else np.bincount(pairs.place[higher], minlength=len(pairs.count))
            higher = np.unique(pairs.place, return_index=True)[1]
            self._levels.append((contexts, pairs, *self._discounted(pairs, counts)))
        self._levels.reverse()
        return self

    def _discounted(self, pairs: PairCounts, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each pair's discounted share, and each context's weight for the order below."""
        n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
        base = n[1] / max(n[1] + 2 * n[2], 1)
        formula = [k - (k + 1) * base * n[k + 1] / max(n[k], 1) for k in (1, 2, 3)]
        D = np.array([0.0, *(np.clip(self.discount * d, 0.01 * k, 0.999 * k) for k, d in enumerate(formula, start=1))])
        taken = np.minimum(D[np.minimum(counts, 3)], counts)
        total = np.bincount(pairs.context, counts, minlength=len(pairs.total))
        share = (counts - taken) / total[pairs.context]
        left = np.bincount(pairs.context, taken, minlength=len(pairs.total)) / total
        return share, left

    def log_probabilities(self, documents: Sequence[Any]) -> np.ndarray:
        """Natural logarithms, one per token, the end of each document being one too."""
        stream = as_stream(documents, self.vocabulary)
        probability = np.full(len(stream), 1 / self.tokens)
        for contexts, pairs, share, left in self._levels:
            numbers = contexts.lookup(stream)
            place = pairs.lookup(numbers, stream)
            mixed = np.where(place >= 0, share[place], 0) + left[numbers] * probability
            probability = np.where(numbers >= 0, mixed, probability)
        return np.log(probability)

    def perplexity(self, documents: Sequence[Any]) -> float:
        """``exp`` of minus the mean logarithm."""
        return float(np.exp(-self.log_probabilities(documents).mean()))

"""Measures of rankings by judged relevance, as trec_eval defines them.

Lives here: ``evaluate``, in plain NumPy. Does not live here: reading runs and judgements (``runs``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ellzero.errors import InputError, check_choice

__all__ = ["evaluate", "means"]

_NAME = re.compile(r"(nDCG|AP|RR|P|R)(?:@([1-9]\d*))?")


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Iterable[str] = ("nDCG@10", "RR@10", "R@100"),
    *,
    ties: str = "trec",
    gain: str = "linear",
) -> dict[str, dict[str, float]]:
    """``{measure: {query: value}}`` over the judged queries; one that the run lacks counts 0.

    ``nDCG@k = sum_i gain_i / log2(i + 1)`` over the k first, by the same of the best order; ``AP`` is the mean of the
    precisions at the relevant documents, ``RR`` one over the first one's rank, ``P`` and ``R`` precision and recall.
    A document is relevant from judgement 1; below 0 counts as 0. Without ``@k`` the whole list counts.

    Parameters
    ----------
    run : scores by query and document. qrels : judgements by query and document.
    ties : ``"trec"`` (scores in 32 bits, equal ones by document id descending, as trec_eval), or ``"order"`` (as the
        run's dictionaries are ordered, scores in 64 bits).
    gain : of nDCG: ``"linear"``, the judgement itself, or ``"exp"``, ``2^judgement - 1``.
    """
    check_choice("ties", ties, ["trec", "order"])
    check_choice("gain", gain, ["linear", "exp"])
    wanted = [(name, *_parsed(name)) for name in measures]
    found: dict[str, dict[str, float]] = {name: {} for name in measures}
    for query, judged in qrels.items():
        ranked = _ranked(run.get(query, {}), ties)
        got = np.array([max(judged.get(document, 0), 0) for document in ranked], np.float64)
        best = np.sort(np.array([max(value, 0) for value in judged.values()], np.float64))[::-1]
        for name, kind, cut in wanted:
            found[name][query] = _value(kind, cut, got, best, gain)
    return found


def means(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over queries of each measure."""
    return {name: float(np.mean(list(each.values()))) if each else 0.0 for name, each in values.items()}


def _parsed(name: Any) -> tuple[str, int | None]:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or (match[1] == "P" and match[2] is None) or (match[1] == "R" and match[2] is None):
        raise InputError(f"measures: got {name!r}, want nDCG, AP or RR, with @k or without, P@k or R@k")
    return match[1], None if match[2] is None else int(match[2])


def _ranked(scores: Mapping[str, float], ties: str) -> list[str]:
    if ties == "order":
        return sorted(scores, key=lambda document: -scores[document])
    return sorted(sorted(scores, reverse=True), key=lambda document: -np.float32(scores[document]))


def _value(kind: str, cut: int | None, got: np.ndarray, best: np.ndarray, gain: str) -> float:
    relevant, total = got >= 1, int((best >= 1).sum())
    cut = len(got) if cut is None and kind != "nDCG" else cut
    if kind == "P":
        return float(relevant[:cut].sum() / cut)
    if kind == "R":
        return float(relevant[:cut].sum() / total) if total else 0.0
    if kind == "RR":
        first = np.flatnonzero(relevant[:cut])
        return float(1 / (first[0] + 1)) if len(first) else 0.0
    if kind == "AP":
        at = np.flatnonzero(relevant[:cut])
        return float(((np.arange(len(at)) + 1) / (at + 1)).sum() / total) if total else 0.0
    ideal = _dcg(best[:cut], gain)
    return _dcg(got[:cut], gain) / ideal if ideal else 0.0


def _dcg(judged: np.ndarray, gain: str) -> float:
    gains = judged if gain == "linear" else 2**judged - 1
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())

"""Measures against pytrec_eval, ties included, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InputError
from ellzero.retrieval import evaluate, means

THEIRS = {"nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "AP": "map", "RR": "recip_rank", "P@5": "P_5", "R@10": "recall_10"}


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([1, 3, 10**9]), documents=st.integers(1, 60))
def test_equal_pytrec_eval_with_ties(seed, levels, documents):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="the extra `retrieval`")
    draw = np.random.default_rng(seed)
    run, qrels = {}, {}
    for query in ("a", "b"):
        names = [f"d{i}" for i in draw.permutation(100)[:documents]]
        run[query] = dict(zip(names, (draw.integers(0, levels, documents) / max(levels, 7)).tolist()))
        qrels[query] = {f"d{i}": int(draw.integers(0, 4)) for i in draw.permutation(100)[: draw.integers(1, 50)]}
        qrels[query]["d0"] = 1  # the peer may not come back from a query without any relevant document
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(THEIRS.values())).evaluate(run)
    for name, values in evaluate(run, qrels, THEIRS).items():
        for query, value in values.items():
            assert value == pytest.approx(theirs[query][THEIRS[name]], abs=1e-9), (name, query)


def test_by_hand():
    run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0}}, {"q": {"b": 2, "d": 1, "x": 1}, "lost": {"a": 1}}
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    trec = evaluate(run, qrels, ["nDCG", "RR@1", "RR@10", "P@2", "R@4", "AP"])
    assert trec["nDCG"]["q"] == pytest.approx((2 / math.log2(4) + 1 / math.log2(5)) / ideal)  # c comes before b
    assert trec["RR@10"] == {"q": pytest.approx(1 / 3), "lost": 0.0}
    assert trec["RR@1"]["q"] == 0
    assert trec["R@4"]["q"] == pytest.approx(2 / 3)
    assert trec["AP"]["q"] == pytest.approx((1 / 3 + 2 / 4) / 3)
    ordered = evaluate(run, qrels, ["P@2", "nDCG@2"], ties="order")
    assert ordered["P@2"]["q"] == 0.5
    exp = evaluate(run, qrels, ["nDCG@2"], ties="order", gain="exp")
    assert exp["nDCG@2"]["q"] == pytest.approx((3 / math.log2(3)) / (3 + 1 / math.log2(3)))
    assert means(trec)["RR@10"] == pytest.approx(1 / 6)
    for bad in ("nDCG@0", "R", "MAP", 3):
        with pytest.raises(InputError, match="measures"):
            evaluate(run, qrels, [bad])

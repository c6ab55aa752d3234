"""Do the retrieval methods do what their papers say?"""

import numpy as np
import pytest
from scipy import sparse

from ellzero.data import sets
from ellzero.kernels import live
from ellzero.retrieval import BM25Vectorizer, ImpactIndex, evaluate, means, read_smart
from ellzero.rng import rng

CRANFIELD = ("retrieval/cranfield/cran.all.1400", "retrieval/cranfield/cran.qry", "retrieval/cranfield/cranqrel")
MED = ("retrieval/med/MED.ALL", "retrieval/med/MED.QRY", "retrieval/med/MED.REL")


def cranfield():
    """Documents, queries by their place (their own numbers do not match the judgements), gains of 4 down to 1."""
    docs, queries, judged = (sets.data_root() / name for name in CRANFIELD)
    qrels: dict[str, dict[str, int]] = {}
    for line in judged.read_text().splitlines():
        if fields := line.split():
            code = int(fields[2])
            qrels.setdefault(fields[0], {})[fields[1]] = 5 - code if 1 <= code <= 4 else 0
    texts = [text for _, text in read_smart(queries)]
    return read_smart(docs), [(str(place + 1), text) for place, text in enumerate(texts)], qrels


def med():
    docs, queries, judged = (sets.data_root() / name for name in MED)
    qrels: dict[str, dict[str, int]] = {}
    for line in judged.read_text().splitlines():
        if fields := line.split():
            qrels.setdefault(fields[0], {})[fields[2]] = 1
    return read_smart(docs), read_smart(queries), qrels


@pytest.mark.parametrize(("read", "files", "known"), [(cranfield, CRANFIELD, 0.3695), (med, MED, 0.6986)])
def test_bm25_ranks_as_known(read, files, known):
    """nDCG@10 of Lucene's form with k1 1.2 and b 0.75 on titles and abstracts, to the fourth digit."""
    pytest.importorskip("Stemmer", reason="the extra `retrieval`")
    if (reason := sets.missing(*files)) is not None:
        pytest.skip(reason)
    docs, queries, qrels = read()
    model = BM25Vectorizer("lucene", k1=1.2, b=0.75)
    rows = model.fit_transform([text for _, text in docs])
    asked = model.transform_queries([text for _, text in queries])
    names = [name for name, _ in docs]
    scores = (asked @ rows.T).toarray()
    run = {query: {names[d]: float(row[d]) for d in np.argsort(-row, kind="stable")[:100] if row[d] > 0}
           for (query, _), row in zip(queries, scores)}  # fmt: skip
    exact = means(evaluate(run, qrels, ["nDCG@10"]))["nDCG@10"]
    index = ImpactIndex.build(rows, names)
    found = index.search(asked, 100).as_run([query for query, _ in queries])
    stored = means(evaluate(found, qrels, ["nDCG@10"]))["nDCG@10"]
    print(f"nDCG@10 {exact:.4f}, from the index of 8 bits {stored:.4f} ({index.nbytes / rows.nnz:.2f} bytes a posting)")
    assert exact == pytest.approx(known, abs=5e-5)
    assert stored == pytest.approx(known, abs=0.004)


def topical(documents, terms, topics, queries, seed, order=None):
    """Impacts whose strong terms come by topic: 12 of a topic's 40 core terms, 30 weak ones of all."""
    draw = rng(seed, "topical")
    core = draw.integers(0, terms, (topics, 40))
    topic = np.arange(documents) * topics // documents
    columns = np.concatenate([
        core[topic[:, None], draw.integers(0, 40, (documents, 12))],
        (terms * draw.random((documents, 30)) ** 2.5).astype(int),
    ], 1)  # fmt: skip
    impacts = np.concatenate([draw.integers(90, 256, (documents, 12)), draw.integers(1, 60, (documents, 30))], 1)
    if order is not None:
        columns, impacts = columns[order], impacts[order]
    rows = np.repeat(np.arange(documents), 42)
    by_place = sparse.coo_array((impacts.ravel(), (rows, columns.ravel())), shape=(documents, terms)).tocsr()
    by_place.data = np.minimum(by_place.data, 255)
    asked = np.concatenate([core[draw.integers(0, topics, queries)][:, :20],
                            (terms * draw.random((queries, 15)) ** 2.5).astype(int)], 1)  # fmt: skip
    weights = np.concatenate([draw.integers(40, 128, (queries, 20)), draw.integers(1, 40, (queries, 15))], 1)
    Q = sparse.coo_array((weights.ravel(), (np.repeat(np.arange(queries), 35), asked.ravel())), shape=(queries, terms))
    return by_place, Q.tocsr()


@pytest.mark.claim("S141")
@pytest.mark.skipif(not live, reason="the plain reference prunes nothing")
def test_pruning_by_bounds_is_exact_and_reads_a_fraction():
    """Against exhaustive search on the same lists: identical hits, and on topical order a fraction of the postings."""
    X, Q = topical(30_000, 3000, 60, 40, seed=0)
    shuffled = rng(0, "shuffle").permutation(X.shape[0])
    for name, order in (("topical", "none"), ("shuffled", shuffled)):
        index = ImpactIndex.build(X, order=order, block_size=8)
        for k in (1, 10, 100, 1000):
            exact = index.search(Q, k, algorithm="exhaustive")
            pruned = index.search(Q, k, algorithm="bmp")
            for (a, s), (b, t) in zip(exact, pruned):
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(s, t)
            share = pruned.postings / exact.postings
            print(f"{name}, k {k}: {share:.3f} of the postings")
            if name == "topical" and k <= 100:
                assert share < 0.2
        # at alpha 0.7 one of the two orders has a recall of 0.47
        rough = index.search(Q, 10, algorithm="bmp", alpha=0.8, beta=0.8)
        recall = rough.recall_of(index.search(Q, 10, algorithm="bmp"))
        print(
            f"{name}, alpha 0.8, beta 0.8: {rough.postings / exact.postings:.3f} of the postings, recall {recall:.3f}"
        )
        assert recall > 0.5

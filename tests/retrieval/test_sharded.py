"""Shards equal one index: scores, ids, order; in one process, and on a local Ray cluster of two workers."""

import json
import os

import numpy as np
import pytest
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import ImpactIndex, encode_corpus
from ellzero.retrieval.service import SearchService
from ellzero.retrieval.sharded import OnRay, ShardedIndex, is_sharded
from ellzero.rng import rng

TERMS = 40


def matrix(n, whole=False):
    draw = rng(0, "sharded", str(n))
    X = draw.integers(1, 4, (n, TERMS)) if whole else draw.random((n, TERMS)) + 0.01
    return sparse.csr_array(X * (draw.random((n, TERMS)) < 0.2))


def queries(whole):
    draw = rng(0, "sharded queries")
    Q = (draw.integers(1, 4, (12, TERMS)) if whole else draw.random((12, TERMS))) * (draw.random((12, TERMS)) < 0.3)
    Q[3] = 0
    return sparse.csr_array(Q)


def same(one, many, Q, k, **options):
    wanted, found = one.search(Q, k, **options), many.search(Q, k, **options)
    for (ids, scores), (other_ids, other_scores) in zip(wanted, found, strict=True):
        assert ids.tolist() == other_ids.tolist()
        assert scores.tolist() == other_scores.tolist()
    assert found.exact == wanted.exact
    for q in (0, 1):
        names = [*found.ids[q][:3].tolist(), "none"]
        assert many.reasons(Q[q : q + 1], names) == one.reasons(Q[q : q + 1], names)
        if len(names) > 1:
            assert many.explain(Q[q : q + 1], names[0]) == one.explain(Q[q : q + 1], names[0])
    assert found.postings >= 0


def check_all(tmp_path, engine, cases):
    for whole, text, shards in cases:
        X = matrix(500, whole)
        ids = [f"dôc {i * 7919 % 500}" for i in range(500)] if text else [i * 7919 % 500 for i in range(500)]
        one = ImpactIndex.build(X, ids, block_size=4)
        many = ShardedIndex.build(X, ids, path=tmp_path / f"{whole}{text}", shards=shards, engine=engine, block_size=4)
        assert (many.documents, many.scale) == (500, one.scale)
        for k in (1, 10, 700):
            for options in ({}, {"algorithm": "bmp"}, {"beta": 0.5}, {"within": ids[::3]}):
                same(one, many, queries(whole), k, **options)
        same(one, ShardedIndex.load(tmp_path / f"{whole}{text}", engine=engine), queries(whole), 20)


def test_shards_equal_one_index(tmp_path):
    check_all(tmp_path, "here", [(False, True, 2), (True, False, 3), (True, True, 2)])
    tiny = ShardedIndex.build(matrix(2, True), path=tmp_path / "tiny", shards=5)
    assert len(tiny.homes) == 2
    same(ImpactIndex.build(matrix(2, True)), tiny, queries(True), 3)
    empty = ShardedIndex.build(matrix(0, True), path=tmp_path / "empty", shards=2)
    assert [len(ids) for ids, _ in empty.search(queries(True))] == [0] * 12


def test_a_service_over_shards_answers_as_over_one_index(tmp_path):
    X, names = matrix(300), [f"t{i}" for i in range(TERMS)]
    ids = [f"d{i}" for i in range(300)]
    one = ImpactIndex.build(X, ids, vocabulary=names)
    many = ShardedIndex.build(X, ids, path=tmp_path / "many", shards=3, vocabulary=names)
    told = []
    for index in (one, many):
        service = SearchService(index, lambda texts: [dict.fromkeys(text.split(), 1.0) for text in texts])
        answer = service.answer("t3 t5 t9 unknown", 20)
        assert service.about()["postings"] == X.nnz
        told.append({name: answer[name] for name in ("query", "terms", "hits", "exact")})
    assert told[0] == told[1]
    assert len(told[0]["hits"]) == 20
    assert all(hit["terms"] for hit in told[0]["hits"])


class Letters:
    vocabulary = tuple("abcdefghij")

    def encode_document(self, texts):
        return sparse.csr_array(np.array([[text.count(x) for x in self.vocabulary] for text in texts], float))

    encode_query = encode_document


def check_encoded(tmp_path, engine):
    draw = rng(0, "sharded corpus")
    texts = ["".join(draw.choice(list("abcdefghij"), 9)) for _ in range(400)]
    lines = [json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    rows = encode_corpus(tmp_path / "c.jsonl", Letters(), tmp_path / "rows", group=50, shard_documents=50)
    many = ShardedIndex.build(rows, path=tmp_path / "index", shards=2, engine=engine)
    one = ImpactIndex.build(rows, scale=rows.scale(), vocabulary=rows.vocabulary)
    same(one, many, [{"a": 2, "c": 1}, {"j": 1}, {}, {"unknown": 1}], 100)
    return many


def test_encoded_documents_go_into_shards(tmp_path):
    assert check_encoded(tmp_path, "here").vocabulary == list("abcdefghij")


def test_what_is_refused_and_what_stays(tmp_path):
    X = matrix(20, True)
    made = ShardedIndex.build(X, range(20), path=tmp_path / "i")
    before = sorted(path.name for path in (tmp_path / "i").iterdir())
    for ids, bad, message in (
        ([*range(19), 0], X, "0 stands twice"), (range(20), X * -1, "negative"), (range(19), X, "got 19 ids"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            ShardedIndex.build(bad, ids, path=tmp_path / "i")
        assert sorted(path.name for path in (tmp_path / "i").iterdir()) == before
    same(ImpactIndex.build(X), made, queries(True), 5)
    ShardedIndex.build(matrix(30, True), path=tmp_path / "i", shards=3)
    assert len(list((tmp_path / "i").glob("shard-*"))) == 3
    for options, message in (({"shards": 0}, "shards"), ({"engine": "spark"}, "engine"), ({"scale": 0.001}, "scale")):
        with pytest.raises(InputError, match=message):
            ShardedIndex.build(X, path=tmp_path / "i", **options)
    with pytest.raises(InputError, match="k: got 0"):
        made.search(queries(True), 0)
    ImpactIndex.build(X, path=tmp_path / "one")
    with pytest.raises(InputError, match="impact-index"):
        ShardedIndex.load(tmp_path / "one")
    assert is_sharded(tmp_path / "i")
    assert not is_sharded(tmp_path / "one")
    assert not is_sharded(tmp_path / "none")


@pytest.fixture(scope="module")
def cluster():
    """Two workers of this machine."""
    ray = pytest.importorskip("ray", reason="the extra `cluster`")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    engine = OnRay(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
                   logging_level="ERROR", address="local")  # fmt: skip
    yield engine
    ray.shutdown()


def test_a_cluster_of_two_workers_equals_one_index(tmp_path, cluster):
    check_all(tmp_path, cluster, [(False, True, 2)])


def test_a_cluster_reads_encoded_documents_and_tells_mistakes(tmp_path, cluster):
    many = check_encoded(tmp_path, cluster)
    assert len(many.homes) == 2
    with pytest.raises(InputError, match="stands twice"):
        ShardedIndex.build(matrix(20, True), [*range(19), 0], path=tmp_path / "x", engine=cluster)
    (many.homes[0] / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json"):
        ShardedIndex.load(tmp_path / "index", engine=cluster)

"""CIFF, JSON vectors, runs, qrels and collections: round trips, bytes by hand, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import (
    ImpactIndex,
    JsonVectors,
    read_ciff,
    read_jsonl,
    read_qrels,
    read_run,
    read_smart,
    read_topics,
    write_ciff,
    write_json_vectors,
    write_run,
)  # fmt: skip
from ellzero.retrieval.runs import write_qrels
from ellzero.rng import rng


def counts(seed, documents, terms, most=300):
    draw = rng(seed, "formats")
    return sparse.csr_array((draw.random((documents, terms)) < 0.3) * draw.integers(1, most, (documents, terms)))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), documents=st.integers(0, 300), most=st.sampled_from([2, 300, 10**6]))
def test_ciff_round_trips(tmp_path_factory, seed, documents, most):
    path = tmp_path_factory.mktemp("ciff") / "x.ciff"
    X, terms = counts(seed, documents, 4, most), ["ü", "b", "a", "never"]
    X = sparse.csr_array(X.toarray() * [1, 1, 1, 0])
    write_ciff(path, X, [f"d{i}" for i in range(documents)], terms)
    found = read_ciff(path)
    kept = [t for t in ("a", "b", "ü") if X[:, [terms.index(t)]].nnz]
    assert found.vocabulary == kept
    assert found.ids == [f"d{i}" for i in range(documents)]
    np.testing.assert_array_equal(found.X.toarray(), X.toarray()[:, [terms.index(t) for t in kept]])
    np.testing.assert_array_equal(found.lengths, X.sum(1))


def test_ciff_bytes_by_hand(tmp_path):
    """One term in documents 0 and 300 of 301: what the format's own definition says, byte by byte."""
    X = sparse.csr_array(([2, 5], ([0, 300], [0, 0])), shape=(301, 1))
    write_ciff(tmp_path / "x", X, range(301), ["hi"])
    raw = (tmp_path / "x").read_bytes()
    postings = b"\x22\x02\x10\x02" + b"\x22\x05\x08\xac\x02\x10\x05"
    message = b"\x0a\x02hi" + b"\x10\x02" + b"\x18\x07" + postings
    assert bytes([len(message)]) + message in raw
    assert raw.endswith(b"\x0a\x08\xac\x02\x12\x03300\x18\x05")
    for cut in (3, len(raw) // 2, len(raw) - 1):
        (tmp_path / "y").write_bytes(raw[:cut])
        with pytest.raises(InputError, match="y: is not a CIFF file"):
            read_ciff(tmp_path / "y")
    (tmp_path / "y").write_bytes(raw + b"\x00")
    with pytest.raises(InputError, match="more bytes"):
        read_ciff(tmp_path / "y")
    with pytest.raises(InputError, match="X: want whole numbers"):
        write_ciff(tmp_path / "z", X * 0.3, range(301), ["hi"])


def test_an_index_goes_through_ciff_and_json_vectors(tmp_path):
    X, terms = counts(0, 90, 8, 256), [f"t{i}" for i in range(8)]
    ids = [f"d{i}" for i in range(90)]
    index = ImpactIndex.build(X[:60], ids[:60], vocabulary=terms)
    index.append(X[60:], ids[60:])
    index.delete(["d7", "d70"])
    query = [{"t1": 3, "t5": 1, "t7": 2}]
    wanted = [array.tolist() for array in index.search(query, 40)[0]]
    index.to_ciff(tmp_path / "x.ciff")
    assert [array.tolist() for array in ImpactIndex.from_ciff(tmp_path / "x.ciff").search(query, 40)[0]] == wanted
    left = [i for i in range(90) if i not in (7, 70)]
    write_json_vectors(tmp_path / "x.jsonl", X[left], [ids[i] for i in left], terms)
    vectors = JsonVectors(tmp_path / "x.jsonl", at_once=13)
    assert vectors.vocabulary == terms
    again = ImpactIndex.build(vectors, vocabulary=vectors.vocabulary, path=tmp_path / "index", postings_at_once=60)
    assert [array.tolist() for array in again.search(query, 40)[0]] == wanted
    with pytest.raises(InputError, match="vocabulary: the index has none"):
        ImpactIndex.build(np.eye(2)).to_ciff(tmp_path / "y")


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2 is no"), ('{"id": 3}', "line 2 is no"), ('{"id": [], "vector": {}}', "line 2 has no id"),
     ('{"id": "a", "vector": {"x": "y"}}', "line 2 gives the term 'x' 'y'")],
)  # fmt: skip
def test_bad_vectors_are_named_by_line(tmp_path, line, message):
    (tmp_path / "v.jsonl").write_text('{"id": "ok", "vector": {"x": 1}}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        JsonVectors(tmp_path / "v.jsonl")


def test_runs_and_judgements(tmp_path):
    run = {"q1": {"d2": 1.25, "d1": 3.0}, "q2": {"d9": 0.1}}
    write_run(tmp_path / "run", run)
    assert (tmp_path / "run").read_text().splitlines()[0] == "q1 Q0 d1 1 3.0 ellzero"
    assert read_run(tmp_path / "run") == run
    qrels = {"q1": {"d1": 2, "d3": -1}}
    write_qrels(tmp_path / "qrels", qrels)
    assert read_qrels(tmp_path / "qrels") == qrels
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\td 1\t2\n")
    assert read_qrels(tmp_path / "beir.tsv") == {"q 1": {"d 1": 2}}
    for text, reader, message in (
        ("q Q0 d 1", read_run, "line 1 has 4 fields"), ("q Q0 d 1 x t", read_run, "the score 'x'"),
        ("q Q0 d 1 2 t\nq Q0 d 2 1 t", read_run, "line 2 names the document 'd' a second time"),
        ("q d", read_qrels, "line 1 has 2 fields"), ("q 0 d 1.5", read_qrels, "judgement '1.5'"),
    ):  # fmt: skip
        (tmp_path / "bad").write_text(text)
        with pytest.raises(InputError, match=message):
            reader(tmp_path / "bad")
    with pytest.raises(InputError, match="without spaces"):
        write_run(tmp_path / "run", {"q 1": {}})


def test_collections(tmp_path):
    lines = ['{"_id": "a", "title": "T", "text": "words"}', "", '{"id": 7, "contents": "more"}']
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    assert list(read_jsonl(tmp_path / "c.jsonl")) == [("a", "T words"), ("7", "more")]
    (tmp_path / "t.tsv").write_text("1\twhat is\n2\twhere\n")
    assert read_topics(tmp_path / "t.tsv") == [("1", "what is"), ("2", "where")]
    assert read_topics(tmp_path / "c.jsonl")[0] == ("a", "T words")
    (tmp_path / "smart").write_text(".I 1\n.T\na title\n.A\nsomeone\n.W\nwords\nmore\n.I 2\n.W\n")
    assert read_smart(tmp_path / "smart") == [("1", "a title words more"), ("2", "")]
    assert read_smart(tmp_path / "smart", "A") == [("1", "someone"), ("2", "")]
    for text, reader, message in (
        ("no", read_jsonl, "line 1 is no JSON"), ('{"_id": 1}', read_jsonl, "line 1 lacks an id"),
        ("a b", read_topics, "line 1 has no tab"), ("text", read_smart, "no line that starts with .I"),
    ):  # fmt: skip
        (tmp_path / "bad").write_text(text)
        with pytest.raises(InputError, match=message):
            list(reader(tmp_path / "bad"))

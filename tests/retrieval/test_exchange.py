"""BEIR's folders, PISA's canonical files, bulk files of OpenSearch and Qdrant: round trips, bytes by hand, refusals."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ellzero.errors import InputError
from ellzero.retrieval import BeirFolder, ImpactIndex, JsonVectors, export, read_topics, rows, write_beir
from ellzero.retrieval.engines import read_opensearch, read_qdrant, write_opensearch, write_qdrant
from ellzero.retrieval.pisa import read_pisa, write_pisa
from ellzero.rng import rng

TERMS = ["ü", "b.c", "a", "##x", "never"]
WILD = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
NAMES = st.lists(WILD.filter(lambda t: t == t.strip() and len(t.splitlines()) == 1 and "\t" not in t), min_size=1,
                 max_size=6, unique=True)  # fmt: skip


def matrix(seed, documents, whole, most=255):
    draw = rng(seed, "exchange")
    X = draw.integers(1, most + 1, (documents, 5)) if whole else draw.random((documents, 5)) + 1e-3
    return sparse.csr_array(X * (draw.random((documents, 5)) < 0.5) * [1, 1, 1, 1, 0])


@settings(max_examples=40)
@given(names=NAMES, texts=st.lists(WILD, min_size=6, max_size=6), values=st.lists(st.integers(-3, 9), min_size=6))
def test_beir_round_trips(tmp_path_factory, names, texts, values):
    home = tmp_path_factory.mktemp("beir") / "set"
    documents = [(name, text[::-1], text) for name, text in zip(names, texts)]
    queries = list(zip(names, texts))
    qrels = {"test": {names[0]: dict(zip(names, values))}, "dev": {}}
    write_beir(home, documents, queries, qrels)
    found = BeirFolder(home)
    assert [tuple(document) for document in found.documents()] == documents
    assert found.queries() == [(name, f" {text}".strip()) for name, text in queries]
    assert found.splits == ["dev", "test"]
    assert found.qrels() == qrels["test"]
    assert [name for name, _ in found.queries("test")] == names[:1]
    assert [name for name, _ in found.texts()] == names


def test_beir_refusals(tmp_path):
    with pytest.raises(InputError, match=r"no corpus\.jsonl"):
        BeirFolder(tmp_path)
    for documents, qrels, message in (
        ([("a", "x"), ("a", "y")], {}, "documents: the id 'a' stands twice"), ([(1, "x")], {}, "got 1"),
        ([("a", "x")], {"t": {"q\t": {"a": 1}}}, r"got the id 'q\\t'"),
        ([("a", "x")], {"../t": {}}, "split"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            write_beir(tmp_path / "x", documents, [], qrels)
        assert not any(tmp_path.iterdir())
    write_beir(tmp_path / "x", [("a", "x")], [], {})
    with pytest.raises(InputError, match="is there already"):
        write_beir(tmp_path / "x", [], [], {})
    with pytest.raises(InputError, match="split: got 'test'"):
        BeirFolder(tmp_path / "x").qrels()


def test_topics_of_trec(tmp_path):
    (tmp_path / "topics").write_text(
        "<top>\n<num> Number: 301\n<title> Topic: International\n Crime\n<desc> Description:\nwhat\n</top>\n"
        "<top><num>302</num><title>Polio</title></top>\n"
    )
    assert read_topics(tmp_path / "topics") == [("301", "International Crime"), ("302", "Polio")]
    (tmp_path / "topics").write_text("<top><num>302</num></top>")
    with pytest.raises(InputError, match="topic 1 lacks"):
        read_topics(tmp_path / "topics")


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), documents=st.integers(0, 200), most=st.sampled_from([1, 255, 2**32 // 6]))
def test_pisa_round_trips(tmp_path_factory, seed, documents, most):
    prefix = tmp_path_factory.mktemp("pisa") / "inv"
    X, ids = matrix(seed, documents, True, most), [f"d{i}" for i in range(documents)]
    write_pisa(prefix, X, ids, TERMS)
    found = read_pisa(prefix)
    kept = [t for t in ("##x", "a", "b.c", "ü") if X[:, [TERMS.index(t)]].nnz]
    assert found.vocabulary == kept
    assert found.ids == ids
    np.testing.assert_array_equal(found.X.toarray(), X.toarray()[:, [TERMS.index(t) for t in kept]])
    np.testing.assert_array_equal(found.lengths, X.sum(1))


def test_pisa_bytes_by_hand_and_refusals(tmp_path):
    X = sparse.csr_array(np.array([[2, 0], [0, 0], [5, 1]]))
    write_pisa(tmp_path / "i", X, ["x", "y", "z"], ["b", "a"])
    raw = {suffix: (tmp_path / f"i.{suffix}").read_bytes() for suffix in ("docs", "freqs", "sizes", "terms")}
    assert raw["docs"] == struct.pack("<7I", 1, 3, 1, 2, 2, 0, 2)
    assert raw["freqs"] == struct.pack("<5I", 1, 1, 2, 2, 5)
    assert raw["sizes"] == struct.pack("<4I", 3, 2, 0, 6)
    assert raw["terms"] == b"a\nb\n"
    (tmp_path / "i.terms").unlink()
    assert read_pisa(tmp_path / "i").vocabulary == ["0", "1"]
    for suffix, content, message in (
        ("docs", raw["docs"][:-4], "cut short"), ("docs", raw["docs"][:-1], "27 bytes"),
        ("docs", struct.pack("<7I", 1, 3, 1, 2, 2, 2, 2), "ascending"),
        ("docs", struct.pack("<7I", 1, 2, 1, 2, 2, 0, 1), "ascending documents below 2|lengths"),
        ("docs", struct.pack("<3I", 2, 3, 3), "want the number of documents alone"),
        ("freqs", struct.pack("<3I", 2, 2, 5), "other lengths"), ("sizes", struct.pack("<2I", 1, 2), "one sequence"),
        ("terms", b"a\n", "has 1 names"),
    ):  # fmt: skip
        good = (tmp_path / f"i.{suffix}").read_bytes() if suffix != "terms" else None
        (tmp_path / f"i.{suffix}").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_pisa(tmp_path / "i")
        if good is None:
            (tmp_path / "i.terms").unlink()
        else:
            (tmp_path / f"i.{suffix}").write_bytes(good)
    for bad, ids, message in ((X * 0.5, ["x", "y", "z"], "whole numbers"), (X, ["x", "y", "z\n"], "line breaks")):
        with pytest.raises(InputError, match=message):
            write_pisa(tmp_path / "j", bad, ids, ["b", "a"])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), documents=st.integers(0, 60), whole=st.booleans(),
    most_bytes=st.sampled_from([400, 3000, 10**7]), text=st.booleans(),
)  # fmt: skip
def test_bulk_files_round_trip(tmp_path_factory, seed, documents, whole, most_bytes, text):
    home = tmp_path_factory.mktemp("bulk")
    X = matrix(seed, documents, whole)
    ids = [f'"{i}" ü' for i in range(documents)] if text else list(range(-3, documents - 3))
    wanted = X.astype(np.float32).toarray()
    parts = [(X[:20], ids[:20]), (X[20:], ids[20:])]
    files = write_opensearch(home / "o", parts, TERMS, most_bytes=most_bytes)
    assert all(0 < file.stat().st_size <= most_bytes for file in files)
    found = list(read_opensearch(home / "o", TERMS))
    assert [name for _, names in found for name in names] == [str(name) for name in ids]
    got = np.concatenate([np.zeros((0, 5)), *(part.toarray() for part, _ in found)])
    np.testing.assert_array_equal(got.astype(np.float32), wanted)

    files = write_qdrant(home / "q", parts, TERMS, most_bytes=most_bytes)
    assert all(0 < file.stat().st_size <= most_bytes for file in files)
    found = list(read_qdrant(home / "q"))
    assert [name for _, names in found for name in names] == ids
    got = np.concatenate([np.zeros((0, 5)), *(part.toarray() for part, _ in found)])
    np.testing.assert_array_equal(got.astype(np.float32), wanted)
    points = [point["id"] for file in files for point in json.loads(file.read_text())["points"]]
    assert len({str(point) for point in points}) == documents
    assert all(point >= 0 if isinstance(point, int) else len(point) == 36 for point in points)


def test_bulk_bytes_by_hand_and_refusals(tmp_path):
    X = np.array([[0.1, 0, 3]])
    (bulk,) = write_opensearch(tmp_path / "o", [(X, ["d1"])], ["a", "b", "c"], name="news", field="w")
    assert bulk.read_text() == '{"index":{"_index":"news","_id":"d1"}}\n{"w":{"a":0.1,"c":3}}\n'
    mapping = json.loads((tmp_path / "o" / "index.json").read_text())
    assert mapping == {"mappings": {"properties": {"w": {"type": "rank_features"}}}}
    (points,) = write_qdrant(tmp_path / "q", [(X, [7])], ["a", "b", "c"], field="w")
    assert json.loads(points.read_text()) == {
        "points": [{"id": 7, "vector": {"w": {"indices": [0, 2], "values": [0.1, 3]}}, "payload": {"id": 7}}]
    }
    assert json.loads((tmp_path / "q" / "collection.json").read_text()) == {"sparse_vectors": {"w": {}}}
    for bad, most, message in ((X * -1, 10**6, "above zero"), (X + np.inf, 10**6, "finite"), (X, 20, "alone takes"),
                               (X[:, :2], 10**6, "shape")):  # fmt: skip
        for write in (write_opensearch, write_qdrant):
            with pytest.raises(InputError, match=message):
                write(tmp_path / "x", [(bad, ["d"])], ["a", "b", "c"], most_bytes=most)
            assert not (tmp_path / "x").exists()
    for read in (read_opensearch, lambda path: list(read_qdrant(path))):
        with pytest.raises(InputError, match="want a folder"):
            read(tmp_path)
    bulk.write_text('{"index": {}}\n{}\n')
    with pytest.raises(InputError, match="lines 1 and 2"):
        read_opensearch(tmp_path / "o")
    points.write_text('{"points": [{}]}')
    with pytest.raises(InputError, match="no points"):
        list(read_qdrant(tmp_path / "q"))


@pytest.mark.parametrize("whole", [True, False])
def test_an_exported_index_comes_back_the_same(tmp_path, whole):
    X, ids = matrix(1, 90, whole), [f"d{i}" for i in range(90)]
    index = ImpactIndex.build(X[:60], ids[:60], vocabulary=TERMS)
    index.append(X[60:] if whole else X[60:] * 0.5, ids[60:])
    index.delete(["d7", "d70"])
    query = [{"ü": 3, "a": 1, "##x": 2}]
    wanted = index.search(query, 100)
    assert sum(len(names) for _, names in rows(index, 13)) == 88

    def check(found, scale=1.0):
        hits = found.search(query, 100)
        assert hits.ids[0].tolist() == wanted.ids[0].tolist()
        np.testing.assert_allclose(hits.scores[0] * scale, wanted.scores[0], rtol=1e-12)

    options = {"vocabulary": TERMS, "scale": index.scale}
    check(ImpactIndex.build(rows(index, 13), **options))
    export(index, "vectors", tmp_path / "v.jsonl")
    check(ImpactIndex.build(JsonVectors(tmp_path / "v.jsonl", TERMS), **options))
    export(index, "ciff", tmp_path / "c.ciff")
    check(ImpactIndex.from_ciff(tmp_path / "c.ciff"), index.scale)
    export(index, "pisa", tmp_path / "p")
    held = read_pisa(tmp_path / "p")
    check(ImpactIndex.build(held.X, held.ids, vocabulary=held.vocabulary), index.scale)
    export(index, "opensearch", tmp_path / "o")
    check(ImpactIndex.build(read_opensearch(tmp_path / "o", TERMS), **options))
    export(index, "qdrant", tmp_path / "q")
    check(ImpactIndex.build(read_qdrant(tmp_path / "q"), **options))
    with pytest.raises(InputError, match="form: got 'parquet'"):
        export(index, "parquet", tmp_path / "x")
    with pytest.raises(InputError, match="vocabulary: the index has none"):
        export(ImpactIndex.build(np.eye(2)), "qdrant", tmp_path / "x")

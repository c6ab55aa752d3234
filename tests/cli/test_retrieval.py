"""The road from a JSONL corpus to a run and its measures, by the command line alone."""

import json

import pytest

from ellzero.cli.app import run

pytest.importorskip("Stemmer", reason="the extra `retrieval`")
TEXTS = {"d1": "wings lift in a slipstream", "d2": "heat in composite slabs", "d3": "lifting wings and heated wings",
         "d4": ""}  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in TEXTS.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.tsv").write_text("q1\tthe lift of wings\nq2\theat of slabs\nq3\tnothing known\n")
    (tmp_path / "qrels").write_text("q1 0 d3 1\nq1 0 d1 2\nq2 0 d2 1\n")
    return tmp_path


def test_from_a_corpus_to_a_run(corpus, capsys):
    home = str(corpus / "index")
    assert run(["index", str(corpus / "corpus.jsonl"), "--out", home, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 4
    line = ["search", home, "--queries", str(corpus / "queries.tsv"), "--out", str(corpus / "run")]
    assert run([*line, "--qrels", str(corpus / "qrels")]) == 0
    assert "RR@10 1.0000" in capsys.readouterr().out
    hits = [row.split()[0:3:2] for row in (corpus / "run").read_text().splitlines()]
    assert sorted(hits) == [["q1", "d1"], ["q1", "d3"], ["q2", "d2"], ["q2", "d3"]]
    assert run(["search", home, "lifting wings", "--k", "1", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert printed.split("\t")[1] in TEXTS
    assert "wing: 1 x" in printed
    assert run(["search", home, "unheard"]) == 0
    assert capsys.readouterr().out == "nothing matches\n"


def test_vectors_and_typed_queries(corpus, capsys, monkeypatch):
    import io

    (corpus / "v.jsonl").write_text('{"id": "a", "vector": {"x": 3, "y": 1}}\n{"id": "b", "vector": {"y": 2}}\n')
    assert run(["index", str(corpus / "v.jsonl"), "--out", str(corpus / "v")]) == 0
    assert "2 documents, 2 terms, 3 postings" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("y y\nx\n\nz\n"))
    assert run(["search", str(corpus / "v")]) == 0
    assert capsys.readouterr().out == "1\tb\t4.0000\n2\ta\t2.0000\n\n1\ta\t3.0000\n\n"


def test_an_order_changes_no_answer(corpus, capsys):
    (corpus / "v.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "vector": {f"t{(i + j) % 7}": 1 + i % 3 for j in range(3)}}) + "\n"
                for i in range(300))
    )  # fmt: skip
    told = []
    for order in ("none", "bp"):
        for source in ("corpus", "v"):
            home = str(corpus / f"{source}-{order}")
            assert (
                run(["index", str(corpus / f"{source}.jsonl"), "--out", home, "--order", order, "--block-size", "1"])
                == 0
            )
        capsys.readouterr()
        assert run(["search", str(corpus / f"corpus-{order}"), "lifting wings"]) == 0
        assert run(["search", str(corpus / f"v-{order}"), "t1 t2 t2 t5", "--k", "40", "--algorithm", "bmp"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].count("\n") > 40


def test_mistakes_are_one_line(corpus, capsys):
    for line, message in (
        (["index", str(corpus / "none.jsonl"), "--out", "x"], "FILE:"),
        (["index", str(corpus / "queries.tsv"), "--out", "x"], "line 1 is no JSON object"),
        (["index", str(corpus / "corpus.jsonl"), "--out", "x", "--form", "splade"], "--form: got 'splade'"),
        (["index", str(corpus / "corpus.jsonl"), "--out", str(corpus / "new"), "--order", "best"], "order: got 'best'"),
        (["search", str(corpus)], "manifest.json"),
        (["search", str(corpus), "a", "--queries", "b"], "--queries: got a query beside it"),
    ):
        assert run(line) == 2
        error = capsys.readouterr().err
        assert error.startswith("ellzero: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (corpus / "new").exists()

"""``ellzero train retrieval``: from a collection to an encoder's folder, with labels and without, and its refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ellzero.cli.app import run

pytest.importorskip("transformers")
pytest.importorskip("Stemmer", reason="the extra `retrieval`")

from ellzero.retrieval import load_encoder
from tests.retrieval.test_trainer import QUERIES, TEXTS, backbone  # noqa: F401


@pytest.fixture
def home(backbone, tmp_path):  # noqa: F811
    backbone.save(tmp_path / "model")
    with open(tmp_path / "corpus.jsonl", "w") as corpus:
        corpus.writelines(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "q.tsv").write_text("".join(f"q{i}\t{text}\n" for i, text in enumerate(QUERIES)))
    (tmp_path / "r.txt").write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(len(QUERIES))))
    pairs = ({"query": text, "document": f"d{i}"} for i, text in enumerate(QUERIES))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return tmp_path


def train(home, out, *more):
    return run(["train", "retrieval", str(home / "corpus.jsonl"), "--model", str(home / "model"), "--out",
                str(home / out), "--steps", "3", "--length", "32", *more])  # fmt: skip


def test_without_labels_and_with_and_with_pairs(home, capsys):
    judged = ("--queries", str(home / "q.tsv"), "--qrels", str(home / "r.txt"), "--recipe", "splade-doc")
    assert train(home, "free", "--terms", "4") == 0
    assert "terms a document" in capsys.readouterr().out
    assert train(home, "judged", *judged, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["recipe"], record["queries"], record["steps"]) == ("splade-doc", 12, 3)
    assert json.loads((home / "judged" / "training.json").read_text()) == record
    assert train(home, "pairs", "--pairs", str(home / "pairs.jsonl"), "--recipe", "splade-doc") == 0
    free, one, two = (load_encoder(home / name) for name in ("free", "judged", "pairs"))
    assert np.diff(free.encode_document(TEXTS).indptr).max() <= 4
    assert (one.encode_document(TEXTS) != two.encode_document(TEXTS)).nnz == 0  # the same answers, told otherwise


def test_a_checkpoint_goes_on_to_the_same_encoder(home):
    assert train(home, "a", "--checkpoint", str(home / "kept")) == 0
    assert train(home, "b", "--checkpoint", str(home / "kept")) == 0
    assert train(home, "c") == 0
    a, b, c = (load_encoder(home / name).encode_document(TEXTS).toarray() for name in "abc")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


def test_refusals_are_one_line(home, capsys):
    (home / "there").mkdir()
    (home / "bad.jsonl").write_text('{"query": "sun", "document": "none"}\n')
    for more, words in (
        (("there",), "--out: "),
        (("x", "--recipe", "splad"), "did you mean 'splade'"),
        (("x", "--recipe", "splade"), "--queries: got none"),
        (("x", "--queries", str(home / "q.tsv")), "want queries and qrels together"),
        (("x", "--pairs", str(home / "bad.jsonl")), "names the document 'none'"),
        (("x", "--pairs", str(home / "q.tsv")), "line 1 is no JSON object"),
        (("x", "--penalty", "-1"), "--penalty: got -1"),
        (("x", "--terms", "0"), "--terms: got 0"),
    ):
        assert train(home, *more) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (home / "x").exists()

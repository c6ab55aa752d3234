"""The task ``retrieval``: the split of queries, BM25 as baseline, the road to a search in another process, noise."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from ellzero.cli import show
from ellzero.cli.app import run as command_line
from ellzero.compare import apply, compare, take
from ellzero.compare.figures import entry_sizes
from ellzero.compare.report import render
from ellzero.compare.tasks.retrieval import Retrieval
from ellzero.errors import InputError
from ellzero.protocol import Task
from ellzero.retrieval import BM25Vectorizer, evaluate, means
from ellzero.retrieval.frontier import largest_terms
from ellzero.rng import rng

pytest.importorskip("Stemmer", reason="the extra `retrieval`")

TOPICS = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """200 documents of 20 topics, each with eight words of its topic's thirty among common ones; a query per topic."""
    home, draw = tmp_path_factory.mktemp("collection"), rng(0, "collection")
    common = [f"common{i}" for i in range(40)]
    with open(home / "corpus.jsonl", "w") as corpus, open(home / "qrels.txt", "w") as qrels:
        for number in range(10 * TOPICS):
            topic = number % TOPICS
            own = [f"topic{topic}word{i}" for i in draw.integers(0, 30, 8)]
            text = " ".join(draw.permutation(own + list(draw.choice(common, 20))))
            corpus.write(json.dumps({"_id": f"d{number}", "text": text}) + "\n")
            qrels.write(f"q{topic} 0 d{number} 1\n")
    with open(home / "queries.tsv", "w") as queries:
        for topic in range(TOPICS):
            words = [f"topic{topic}word{i}" for i in draw.integers(0, 30, 4)]
            queries.write(f"q{topic}\t{' '.join(words + list(draw.choice(common, 3)))}\n")
    return home


@pytest.fixture
def task(files):
    return Retrieval(*(str(files / name) for name in ("corpus.jsonl", "queries.tsv", "qrels.txt")))


def test_it_keeps_the_contract_and_the_queries_apart(task):
    assert isinstance(task, Task)
    assert Retrieval.from_spec(json.loads(json.dumps(task.to_spec()))) == task
    test = set(task.test().ids)
    for seed in range(3):
        data = task.data(seed)
        train, validation = set(data.train.ids), set(data.validation.ids)
        assert not train & validation
        assert not (train | validation) & test
        assert len(train | validation | test) == TOPICS
        assert set(task.refit_data(seed, "all").train.ids) == train | validation
        assert set(data.validation.qrels) == validation
    assert task.data(0).validation.ids != task.data(1).validation.ids
    assert set(task.methods()) == {"bm25", "bm25-cut"}


def test_the_uncut_baseline_is_bm25s_ndcg_and_cutting_costs(task):
    run = compare(task, budgets=[2, 8, 1000])
    points = {(point.method, point.target): point for point in run.points}
    whole = next(point for (name, _), point in points.items() if name == "bm25")
    data = task.data(0)
    texts, ids = data.info["documents"].texts, data.info["documents"].ids
    model = BM25Vectorizer()
    rows = model.fit_transform(texts)
    scores = (model.transform_queries(data.validation.texts) @ rows.T).toarray()
    found = {q: {ids[d]: float(s) for d, s in enumerate(row) if s > 0} for q, row in zip(data.validation.ids, scores)}
    want = means(evaluate(found, data.validation.qrels, ["nDCG@10"]))["nDCG@10"]
    assert whole.fidelity == pytest.approx(want, abs=0.05)  # 8 bits
    assert whole.realised == pytest.approx(rows.nnz / 200)
    assert points["bm25-cut", 1000].fidelity == whole.fidelity
    assert points["bm25-cut", 2].realised == 2
    assert points["bm25-cut", 2].fidelity < whole.fidelity
    assert points["bm25-cut", 2].nbytes < whole.nbytes
    assert all(point.error is None and point.run_seconds > 0 for point in run.points)
    named, each = entry_sizes(run)
    assert named == "bytes a posting"
    assert each == [f"{point.nbytes / (200 * point.realised):.2f}" for point in run.frontier]
    page, table = render(run), io.StringIO()
    assert f">{named}</th>" in page
    assert f">{each[0]}</td>" in page
    with contextlib.redirect_stdout(table):
        show.frontier(run)
    assert each[0] in table.getvalue()


def test_a_point_goes_home_and_searches_in_another_process(task, files, tmp_path, capsys):
    compare(task, budgets=[8], out=tmp_path / "run")
    taken = take(tmp_path / "run", "bm25-cut", 8, tmp_path / "home", refit="all")
    assert 0 < taken.fidelity <= 1
    assert taken.card["test"]["rows"] == 6
    output = apply(tmp_path / "home", files / "queries.tsv")
    assert output.columns["documents"].shape == output.columns["scores"].shape == (TOPICS, 10)
    code = (
        "from ellzero.compare import apply; import sys;"
        "print(apply(sys.argv[1], sys.argv[2]).columns['documents'][3].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "home", files / "queries.tsv"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == str(output.columns["documents"][3].tolist())
    text = (files / "queries.tsv").read_text().splitlines()[3].split("\t")[1]
    assert command_line(["search", str(tmp_path / "home" / "index"), text]) == 0
    found = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert found == output.columns["documents"][3].tolist()


def test_from_the_command_line(files, tmp_path, capsys):
    given = ["compare", "retrieval", str(files / "corpus.jsonl"), "--queries", str(files / "queries.tsv"), "--qrels",
             str(files / "qrels.txt"), "--budgets", "4", "--trials", "2", "--out", str(tmp_path / "run"),
             "--json"]  # fmt: skip
    assert command_line(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert {point["method"] for point in found["frontier"]} == {"bm25", "bm25-cut"}
    assert command_line([*given[:3], "--queries", str(files / "queries.tsv")]) == 2
    assert "qrels: got none" in capsys.readouterr().err
    assert command_line([*given[:7], "--data", "x"]) == 2
    assert command_line(["compare", "regression", "--queries", "x"]) == 2


def test_judgements_of_chance_score_as_chance(files, tmp_path):
    draw = rng(1, "noise")
    with open(tmp_path / "noise.txt", "w") as qrels:
        for topic in range(TOPICS):
            qrels.writelines(f"q{topic} 0 d{d} 1\n" for d in draw.choice(200, 10, replace=False))
    task = Retrieval(str(files / "corpus.jsonl"), str(files / "queries.tsv"), str(tmp_path / "noise.txt"))
    run = compare(task, budgets=[8], seeds=3, trials=4)
    assert all(np.mean(p.fidelities) < 0.15 for p in run.frontier)  # ten of 200 are relevant: 0.05 by chance


@pytest.mark.parametrize("name", ["label-free", "inference-free"])
def test_a_recipe_is_trained_once_and_cut(name, files, tmp_path):
    pytest.importorskip("transformers")
    from tests.retrieval.test_trainer import QUERIES, TEXTS, backbone

    model = tmp_path / "model"
    backbone.__wrapped__().save(model)
    with open(tmp_path / "c.jsonl", "w") as corpus:
        corpus.writelines(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    (tmp_path / "q.tsv").write_text("".join(f"q{i}\t{text}\n" for i, text in enumerate(QUERIES)))
    (tmp_path / "r.txt").write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(len(QUERIES))))
    task = Retrieval(*(str(tmp_path / n) for n in ("c.jsonl", "q.tsv", "r.txt")), str(model), steps=3, length=32)
    run = compare(task, [name], [2, 4], trials=2, out=tmp_path / "run")
    assert not run.failures
    assert {point.realised for point in run.points} <= {2, 4} | {p.realised for p in run.points if p.realised < 4}
    taken = take(tmp_path / "run", name, 4, tmp_path / "home")
    output = apply(tmp_path / "home", tmp_path / "q.tsv")
    assert len(output.columns["query"]) == len(QUERIES)
    assert taken.card["realised"] <= 4


def test_largest_terms_keeps_the_largest_of_each_row_first_of_equal_ones():
    X = sparse.csr_array(np.array([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 1.0]]))
    assert largest_terms(X, 2).toarray().tolist() == [[0, 3, 3, 0], [0, 0, 0, 0], [5, 0, 0, 1]]
    assert largest_terms(X, 1).toarray().tolist() == [[0, 3, 0, 0], [0, 0, 0, 0], [5, 0, 0, 0]]


def test_refusals(files, tmp_path):
    good = {"data": str(files / "corpus.jsonl")}
    asked = {"queries": str(files / "queries.tsv"), "qrels": str(files / "qrels.txt")}
    (tmp_path / "few.txt").write_text("q1 0 d1 1\n")
    for build, words in (
        (lambda: Retrieval.from_options(), "data: got none"),
        (lambda: Retrieval.from_options(**good, extra={**asked, "step": "3"}), "step: .*did you mean 'steps'"),
        (lambda: Retrieval.from_options(**good, extra={**asked, "steps": "x"}), "steps: got 'x'"),
        (lambda: Retrieval.from_options(**good, hook="h", extra=asked), "hook: the task retrieval takes none"),
        (lambda: Retrieval.from_options(**good, model="nowhere", extra=asked), "model: nowhere is no folder"),
        (lambda: Retrieval.from_options(**good, extra={**asked, "qrels": str(tmp_path / "few.txt")}), "judges 1 of"),
        (lambda: Retrieval.from_options(**good, extra={**asked, "qrels": "nowhere"}), "nowhere"),
        (lambda: Retrieval("a", "b", "c", steps=0), "steps: got 0"),
        (lambda: Retrieval("a", "b", "c").check_budgets([1.5]), "whole numbers"),
    ):
        with pytest.raises(InputError, match=words):
            build()

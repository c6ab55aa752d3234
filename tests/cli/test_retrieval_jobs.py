"""The road by the command line alone: encode, index, search, compare, serve, export; in clean processes or as typed."""

import io
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from rich.console import Console

from ellzero.cli.app import run
from ellzero.retrieval import Encoded, ImpactIndex, JsonVectors, read_opensearch, read_run
from ellzero.retrieval.encoding import Progress
from ellzero.rng import rng

pytest.importorskip("Stemmer", reason="the extra `retrieval`")
WORDS = [
    "wing",
    "lift",
    "slipstream",
    "heat",
    "composite",
    "slab",
    "pressure",
    "shear",
    "laminar",
    "boundary",
    "layer",
    "flow",
    "body",
    "nose",
    "shock",
    "wave",
]


@pytest.fixture
def road(tmp_path):
    """A corpus in JSON lines, TREC topics, and judgements that follow the words."""
    draw = rng(0, "road")
    with open(tmp_path / "corpus.jsonl", "w") as file:
        for i in range(300):
            text = " ".join([WORDS[i % 16]] * 3 + draw.choice(WORDS, 9).tolist())
            file.write(json.dumps({"_id": f"d{i}", "title": WORDS[i % 16], "text": text}) + "\n")
    topics = [(f"{i}", f"{WORDS[i]} {WORDS[i + 5]}") for i in range(11)]
    (tmp_path / "topics").write_text(
        "".join(f"<top>\n<num> Number: {i}\n<title> {text}\n</top>\n" for i, text in topics)
    )
    (tmp_path / "qrels").write_text("".join(f"{i} 0 d{d} 1\n" for i in range(11) for d in range(i, 300, 16)))
    return tmp_path


def ellzero(folder, *arguments):
    done = subprocess.run([sys.executable, "-m", "ellzero.cli", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_road_in_clean_processes(road):
    made = json.loads(ellzero(road, "encode", "corpus.jsonl", "--encoder", "bm25", "--out", "rows", "--json"))
    assert (made["documents"], made["documents_now"]) == (300, 300)
    assert made["documents_per_second"] > 0
    assert made["peak_nbytes"] > 10**7
    assert "300 documents" in ellzero(road, "index", "rows", "--out", "index")
    printed = ellzero(road, "search", "index", "--queries", "topics", "--out", "run", "--qrels", "qrels")
    assert float(re.search(r"nDCG@10 ([\d.]+)", printed)[1]) > 0.3  # a tenth of the documents is relevant to a topic
    assert sorted(read_run(road / "run")) == sorted(str(i) for i in range(11))

    asked = ("--data", "corpus.jsonl", "--option", "queries=topics", "--option", "qrels=qrels")
    frontier = json.loads(ellzero(road, "compare", "retrieval", *asked, "--methods", "bm25-cut", "--budgets", "3,6",
                                  "--out", "run3", "--quiet", "--json"))  # fmt: skip
    assert frontier
    ellzero(road, "take", "run3", "--method", "bm25-cut", "--budget", "3", "--out", "chosen")
    assert ImpactIndex.load(road / "chosen" / "index").postings <= 3 * 300
    found = json.loads(ellzero(road, "search", "chosen/index", f"{WORDS[0]} {WORDS[5]}", "--k", "10", "--json"))["1"]

    server = subprocess.Popen(
        [sys.executable, "-m", "ellzero.cli", "serve", "chosen/index", "--texts", "corpus.jsonl", "--port", "0"],
        cwd=road, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs lack
    )  # fmt: skip
    try:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        with urllib.request.urlopen(f"{address}api/search?q={WORDS[0]}+{WORDS[5]}&k=10", timeout=60) as response:
            answer = json.load(response)
        assert {hit["id"]: hit["score"] for hit in answer["hits"]} == found
        assert answer["hits"][0]["title"]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0

    ellzero(road, "export", "chosen/index", "--form", "opensearch", "--out", "bulk", "--name", "papers")
    vocabulary = ImpactIndex.load(road / "chosen" / "index").vocabulary
    rows = list(read_opensearch(road / "bulk", vocabulary))
    assert sum(len(ids) for _, ids in rows) == 300


def test_two_roads_to_bm25_lead_to_one_run(road, capsys, monkeypatch):
    monkeypatch.chdir(road)
    for _ in range(2):  # the second time nothing is left to do
        capsys.readouterr()
        assert run(["encode", "corpus.jsonl", "--encoder", "bm25", "--out", "rows", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents_now"] == 0
    run(["index", "rows", "--out", "encoded"])
    run(["index", "corpus.jsonl", "--out", "direct"])
    for home in ("encoded", "direct"):
        assert run(["search", home, "--queries", "topics", "--out", f"{home}.run"]) == 0
    assert read_run(road / "encoded.run") == read_run(road / "direct.run")
    for form in ("vectors", "opensearch"):
        assert run(["export", "encoded", "--form", form, "--out", form]) == 0
    vocabulary = ImpactIndex.load(road / "encoded").vocabulary
    (X, ids), *_ = JsonVectors(road / "vectors", vocabulary)
    (Y, names), *_ = read_opensearch(road / "opensearch", vocabulary)
    np.testing.assert_array_equal(X.astype(np.float32).toarray(), Y.astype(np.float32).toarray())
    assert ids == names
    capsys.readouterr()


def test_an_encoder_stands_beside_the_index_and_may_be_given(road, capsys, monkeypatch):
    monkeypatch.chdir(road)
    (road / "letters.py").write_text(
        "import numpy as np\nfrom scipy import sparse\n\nclass First:\n"
        "    vocabulary = tuple('abcdefghijklmnopqrstuvwxyz')\n"
        "    def encode_document(self, texts):\n"
        "        rows = [[sum(w[0] == x for w in text.split()) for x in self.vocabulary] for text in texts]\n"
        "        return sparse.csr_array(np.array(rows, np.float32))\n    encode_query = encode_document\n"
    )
    assert run(["encode", "corpus.jsonl", "--encoder", "letters:First", "--out", "rows", "--group", "7"]) == 0
    assert "300 documents, 300 of them now" in capsys.readouterr().out
    assert run(["index", "rows", "--out", "index"]) == 0
    capsys.readouterr()
    assert run(["search", "index", "wing nose", "--k", "300", "--encoder", "letters:First", "--json"]) == 0
    texts = [json.loads(line) for line in (road / "corpus.jsonl").read_text().splitlines()]
    words = {record["_id"]: f"{record['title']} {record['text']}".split() for record in texts}
    wanted = {name: sum(word[0] == x for word in each for x in "wn") for name, each in words.items()}
    found = json.loads(capsys.readouterr().out)["1"]
    assert found == {name: score for name, score in wanted.items() if score}
    assert run(["search", "index", "wing nose", "--k", "3"]) == 0  # no encoder stands there: words are the terms
    assert "nothing matches" in capsys.readouterr().out
    assert run(["encode", "corpus.jsonl", "--encoder", "bm25", "--out", "rows2"]) == 0
    assert run(["index", "rows2", "--out", "index"]) == 0  # another one takes its place
    assert (road / "index" / "bm25.safetensors").is_file()
    assert run(["search", "index", "wings", "--k", "1", "--explain"]) == 0  # stemmed as the encoder does
    assert "wing: 1 x" in capsys.readouterr().out
    assert run(["search", "index", "wings", "--encoder", "letters:First"]) == 2
    assert "letters:First: the encoder has other terms than the index" in capsys.readouterr().err
    (road / "v.jsonl").write_text('{"id": "a", "vector": {"x": 3}}\n')
    assert run(["index", "v.jsonl", "--out", "index"]) == 0
    assert not (road / "index" / "bm25.safetensors").exists()


def test_a_neural_encoder_goes_the_same_road(road, capsys, monkeypatch):
    pytest.importorskip("torch", reason="the extra `torch`")
    pytest.importorskip("transformers", reason="the extra `hf`")
    from ellzero.retrieval import SparseEncoder
    from ellzero.retrieval.pretrained import mlm_head
    from tests.retrieval import tiny

    monkeypatch.chdir(road)
    lines = (road / "corpus.jsonl").read_text().splitlines(keepends=True)
    (road / "corpus.jsonl").write_text("".join(lines[:60]))
    head = mlm_head(backbone := tiny.bert(road))
    encoder = SparseEncoder(head, head, backbone, document_terms=20)
    for form in ("ellzero", "sentence_transformers"):
        if form == "sentence_transformers":
            encoder = SparseEncoder(head, head, backbone)
        encoder.save(road / form, form)
        assert run(["encode", "corpus.jsonl", "--encoder", form, "--out", f"{form}-rows", "--group", "25"]) == 0
        assert run(["index", f"{form}-rows", "--out", "index"]) == 0
        assert (road / "index" / "encoder").is_dir()
        capsys.readouterr()
        assert run(["search", "index", "lifting wings", "--k", "5", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["1"]
        rows = np.concatenate([X.toarray() for X, _ in Encoded(road / f"{form}-rows")])
        exact = rows @ encoder.encode_query(["lifting wings"]).toarray()[0]
        assert len(found) == 5
        for name, score in found.items():  # 8 bits a weight: within a part in a hundred of the exact score
            assert score == pytest.approx(exact[int(name[1:])], rel=0.01)


def test_a_folder_of_beir_goes_in_as_it_is(road, capsys):
    from ellzero.retrieval import read_jsonl, write_beir

    write_beir(road / "beir", read_jsonl(road / "corpus.jsonl"), [("q", "wing")], {"test": {"q": {"d1": 1}}})
    assert run(["encode", str(road / "beir"), "--encoder", "bm25", "--out", str(road / "rows")]) == 0
    assert run(["index", str(road / "beir"), "--out", str(road / "index")]) == 0
    assert Encoded(road / "rows").documents == ImpactIndex.load(road / "index").documents == 300
    capsys.readouterr()


def test_mistakes_are_one_line(road, capsys, monkeypatch):
    monkeypatch.chdir(road)
    run(["encode", "corpus.jsonl", "--encoder", "bm25", "--out", "rows"])
    run(["index", "rows", "--out", "index"])
    capsys.readouterr()
    for line, message in (
        (["encode", "none.jsonl", "--encoder", "bm25", "--out", "x"], "FILE:"),
        (["encode", "rows", "--encoder", "bm25", "--out", "x"], "encoded already"),
        (["encode", "corpus.jsonl", "--encoder", "nothing", "--out", "x"], "encoder: nothing is not there"),
        (["encode", "corpus.jsonl", "--encoder", "json:loads", "--out", "x"], "has no 'encode_document'"),
        (["encode", "corpus.jsonl", "--encoder", "corpus.jsonl", "--out", "x"], "safetensors"),
        (["encode", "corpus.jsonl", "--encoder", "bm25", "--out", "index"], "holds"),
        (["encode", "topics", "--encoder", "bm25", "--out", "x"], "line 1 is no JSON object"),
        (["serve", "rows"], "manifest"),
        (["serve", "index", "--port", "99999"], "port: got 99999"),
        (["serve", "index", "--host", "300.1.1.1", "--port", "0"], "cannot listen"),
        (["export", "index", "--form", "parquet", "--out", "x"], "form: got 'parquet'"),
        (["export", "index", "--form", "qdrant", "--out", "index"], "is there already"),
        (["export", "index", "--form", "ciff", "--out", "no/x"], "cannot be written"),
    ):
        assert run(line) == 2, line
        error = capsys.readouterr().err
        assert error.startswith("ellzero: ")
        assert message in error
        assert error.count("\n") == 1


def test_shards_give_the_run_of_one_index(road, capsys, monkeypatch):
    monkeypatch.chdir(road)
    run(["encode", "corpus.jsonl", "--encoder", "bm25", "--out", "rows", "--group", "50", "--shard-documents", "50"])
    run(["index", "rows", "--out", "one"])
    assert run(["index", "rows", "--out", "many", "--shards", "3"]) == 0
    for home in ("one", "many"):
        assert run(["search", home, "--queries", "topics", "--out", f"{home}.run", "--k", "50"]) == 0
    assert read_run(road / "many.run") == read_run(road / "one.run")
    told = []
    for home in ("one", "many"):
        capsys.readouterr()
        assert run(["search", home, "wing", "--explain"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert " x " in told[0]
    assert run(["index", "rows", "--out", "x", "--shards", "3", "--order", "bp"]) == 2
    assert "--order: got bp with --shards" in capsys.readouterr().err
    assert run(["index", "corpus.jsonl", "--out", "x", "--shards", "3"]) == 2
    assert "--shards: got bm25" in capsys.readouterr().err


def test_a_killed_command_goes_on(road):
    (road / "slow.py").write_text(
        "import time\nimport numpy as np\nfrom scipy import sparse\n\nclass Slow:\n    vocabulary = ('a', 'b')\n"
        "    def encode_document(self, texts):\n        time.sleep(0.05)\n"
        "        return sparse.csr_array(np.array([[len(t), 1] for t in texts], float))\n"
        "    encode_query = encode_document\n"
    )
    line = [sys.executable, "-m", "ellzero.cli", "encode", "corpus.jsonl", "--encoder", "slow:Slow", "--out", "rows",
            "--group", "10", "--shard-documents", "10", "--json"]  # fmt: skip
    job = subprocess.Popen(line, cwd=road, stdout=subprocess.DEVNULL)
    while len(list(road.glob("rows/shard-*"))) < 3:
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    done = json.loads(ellzero(road, *line[3:]))
    assert done["documents"] == 300
    assert done["documents_now"] <= 270
    assert [name for _, ids in Encoded(road / "rows") for name in ids] == [f"d{i}" for i in range(300)]


def test_what_the_bar_says():
    from ellzero.cli.encoding import progress

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    step = Progress(documents=3000, nbytes=500, total_nbytes=2000, documents_before=1000, nbytes_before=100, seconds=8)
    assert (step.speed, step.seconds_left) == (250, 30)
    with progress(console, shown=True) as (report, last):
        report(step)
    assert last == [step]
    assert re.search(r"25%\s+3,000 documents, 250 a second, [\d.]+ [MG]iB, 0:00:30 left", screen.getvalue())
    screen.truncate(0)
    with progress(console, shown=False) as (report, _):
        report(step)
    assert "documents" not in screen.getvalue()
